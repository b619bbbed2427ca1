"""Telling people and programs of a run's start, failure, recovery and end."""
