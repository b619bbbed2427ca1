"""The command line, for tests that run it whole."""

from tests.cluster.launch.conftest import cli, free_port

__all__ = ["cli", "free_port"]
