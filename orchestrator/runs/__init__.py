"""The controller's own record of runs: where files are, the journal, the lease, the state."""
