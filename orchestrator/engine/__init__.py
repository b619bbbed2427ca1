"""The imperative shell: the only place where planning, watching, transport and runs meet."""
