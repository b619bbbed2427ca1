"""Launches at set times: what is scheduled, how the machine is told, and what became of it."""
