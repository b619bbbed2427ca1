"""Many hosts at once: a transport for each, and bounded, order-keeping fan-out over them."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import Callable, Generic, List, Optional, Protocol, Sequence, Tuple, TypeVar, Union

from orchestrator.errors import OrchError
from orchestrator.inventory import Host
from orchestrator.transport.base import Transport
from orchestrator.transport.local import LocalTransport

MAX_AT_ONCE = 32


class Named(Protocol):
    """Anything that stands for one host: a Host or its Transport."""

    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What came of one host: a value, or the error that stood in its way."""

    host: str
    value: Optional[Result] = None
    error: Optional[OrchError] = None

    @property
    def ok(self) -> bool:
        return self.error is None


def connect(host: Host) -> Transport:
    """The transport that the host's ``connection`` names; it connects when it is first used."""
    if host.connection == "local":
        return LocalTransport(host.name, python=host.python)
    # Paramiko takes a while to import: commands that use no SSH should not wait for it.
    from orchestrator.transport.ssh import SshTransport

    return SshTransport(host)


def fan_out(
    items: Sequence[Item],
    function: Callable[[Item], Result],
    *,
    limit: int = MAX_AT_ONCE,
    on_done: Optional[Callable[[Outcome[Result]], None]] = None,
) -> List[Outcome[Result]]:
    """Call ``function`` on every item, at most ``limit`` at once; outcomes in the items' order.

    An OrchError is the outcome of its host and stops no other. Any other exception is a bug:
    it is raised here, after all hosts have ended. ``on_done`` is called in this thread, in the
    order in which the hosts end. Ctrl-C is obeyed at once: waiting hosts are not started, and
    running calls are left behind in daemon threads.
    """
    waiting: queue.SimpleQueue[Tuple[int, Item]] = queue.SimpleQueue()
    done: queue.SimpleQueue[Tuple[int, Union[Outcome[Result], BaseException]]]
    done = queue.SimpleQueue()
    stop = threading.Event()
    for job in enumerate(items):
        waiting.put(job)

    def work() -> None:
        while not stop.is_set():
            try:
                index, item = waiting.get_nowait()
            except queue.Empty:
                return
            done.put((index, _attempt(item, function)))

    for number in range(min(limit, len(items))):
        threading.Thread(target=work, daemon=True, name=f"fan-out-{number}").start()
    outcomes: List[Optional[Outcome[Result]]] = [None] * len(items)
    bug: Optional[BaseException] = None
    try:
        for _ in items:
            index, result = done.get()
            if isinstance(result, BaseException):
                bug = bug or result
                continue
            outcomes[index] = result
            if on_done is not None:
                on_done(result)
    finally:
        stop.set()
    if bug is not None:
        raise bug
    return [outcome for outcome in outcomes if outcome is not None]


def _attempt(
    item: Item, function: Callable[[Item], Result]
) -> Union[Outcome[Result], BaseException]:
    try:
        return Outcome(item.name, value=function(item))
    except OrchError as error:
        return Outcome(item.name, error=error)
    except BaseException as error:  # carried to the caller's thread and raised there
        return error
