"""What a command of the supervisor answers when it cannot do what it was asked."""

from __future__ import annotations

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Dict

EXIT_STATUS = {
    "error": 1, "usage": 2, "spec": 3, "host-not-ready": 4, "busy": 9, "fenced": 9, "port-taken": 9
}  # fmt: skip
"""Exit status for each code; the same numbers as on the controller."""


class NodeError(Exception):
    """A command cannot be done. ``code`` is a key of EXIT_STATUS, ``hint`` the next step."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.code]

    def to_json(self) -> Dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


def print_exception() -> None:
    """The traceback of the exception that is being handled, for an error of our own."""
    import traceback  # here, because of light.py

    traceback.print_exc()
