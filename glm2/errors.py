"""The errors that glm2 raises on purpose, each with the exit status it ends the program with.

::

    Glm2Error                 1
    ├── LostRank              1   another rank of the run ended, so this one cannot go on
    ├── DownloadError         1   a released file that cannot be fetched
    ├── UsageError            2   the command line is wrong
    ├── ConfigError           3   the YAML, or a file that it names, is wrong
    └── CheckpointError      10   weights that do not fit the model, or a damaged file
"""

from __future__ import annotations


class Glm2Error(Exception):
    """One sentence that says what is wrong and where; ``hint`` is the next step."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class LostRank(Glm2Error):
    """Another rank ended. The process must leave at once, without MindSpore's own clean-up:
    that waits half a minute for the lost rank and then ends in SIGTERM, whose status would
    look like a stop on request.
    """


class DownloadError(Glm2Error):
    """A file of a released model that is not here and cannot be fetched."""


class UsageError(Glm2Error):
    """The command line is wrong."""

    exit_status = 2


class ConfigError(Glm2Error):
    """The configuration, or a file that it names, is wrong."""

    exit_status = 3


class CheckpointError(Glm2Error):
    """A checkpoint that does not fit the model, or that is damaged."""

    exit_status = 10
