"""After a failed attempt: start the run again, without a host, or give up. Pure.

The rules, in the order in which they are asked; the first that fits decides:

``ended-well``       nothing failed, or an operator stopped it: nothing is to be done
``no-recovery``      the job does not want it
``user-error``       the job itself is wrong (its code, its data): it would fail again
``config-error``     what it was given is wrong: the same
``max-restarts``     it was restarted as often as it may be
``same-again``       the same cause as the last time, and no further complete step since
``too-few-hosts``    a host has to be left out, no spare stands by, and fewer are not allowed
``bad-host``         the host is at fault: it is quarantined, and a spare or nobody takes its place
``passing``          start again on the same hosts, from the last complete step

A host is left out at once when its hardware or system is at fault (class ``host``). What may pass
(``network``, ``unknown``) is tried once more with it, and it is left out when it is blamed a second
time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Sequence

CLASSES = ("user", "config", "host", "network", "unknown")

RESTART, WITHOUT_HOST, GIVE_UP = "restart", "restart-without-host", "give-up"


@dataclass(frozen=True)
class Policy:
    """What a job allows. ``min_hosts`` None: only as many hosts as it was launched with."""

    max_restarts: int = 0
    min_hosts: Optional[int] = None
    spares: bool = True
    """Whether a host of the group ``spares`` may take the place of a bad one."""
    quarantine_for: float = 24 * 3600.0
    """Seconds for which a bad host is kept out of further plans."""


@dataclass(frozen=True)
class Attempt:
    """How one attempt of a run ended.

    ``signature`` is what the first cause is known by (``EL0004``, ``killed``, a rule of the
    watcher), ``kind`` one of ``CLASSES``. ``step`` is the last step that is complete on the hosts
    after it, None where there is none; steps count on from attempt to attempt.
    """

    outcome: str
    """``succeeded``, ``failed`` or ``cancelled``."""
    signature: str = ""
    kind: str = "unknown"
    host: Optional[str] = None
    """The host that is blamed, where it is one."""
    step: Optional[int] = None


@dataclass(frozen=True)
class Decision:
    """``action`` is ``restart``, ``restart-without-host`` or ``give-up``. ``host`` is the one to
    be left out. ``sentence`` is for people."""

    action: str
    rule: str
    sentence: str
    host: Optional[str] = None
    spare: bool = False
    """A spare takes its place; otherwise the world gets smaller."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


def decide(policy: Policy, attempts: Sequence[Attempt], *, hosts: int, spares: int) -> Decision:
    """What to do after the last of ``attempts`` (all of the run, oldest first), which ran on
    ``hosts`` hosts while ``spares`` that could replace one stood by."""
    last = attempts[-1]
    restarts = len(attempts) - 1
    evidence = {
        "attempts": len(attempts),
        "max_restarts": policy.max_restarts,
        "signature": last.signature,
        "class": last.kind,
        "host": last.host,
        "step": last.step,
        "step_before": attempts[-2].step if restarts else None,
        "hosts": hosts,
        "spares": spares,
    }

    def give_up(rule: str, sentence: str) -> Decision:
        return Decision(GIVE_UP, rule, sentence, evidence=evidence)

    if last.outcome != "failed":
        return give_up("ended-well", f"the run {last.outcome}")
    if policy.max_restarts < 1:
        return give_up("no-recovery", "no restart is allowed (max_restarts is 0)")
    if last.kind in ("user", "config"):
        what = "the job itself" if last.kind == "user" else "the configuration"
        return give_up(f"{last.kind}-error", f"no restart: {what} is at fault ({last.signature})")
    if restarts >= policy.max_restarts:
        times = f"{restarts} time" + "s" * (restarts != 1)
        return give_up("max-restarts", f"no restart: it was restarted {times} already")
    if restarts and not _progress(attempts) and last.signature == attempts[-2].signature:
        where = "no step was completed" if last.step is None else f"still at step {last.step}"
        return give_up("same-again", f"no restart: {last.signature} again, and {where}")
    if last.host is None or not _leave_out(attempts):
        return Decision(RESTART, "passing", f"starting again{_whence(last)}", evidence=evidence)
    if policy.spares and spares > 0:
        sentence = f"{last.host} is left out, a spare takes its place; starting again"
        return Decision(
            WITHOUT_HOST, "bad-host", sentence + _whence(last), last.host, True, evidence
        )
    if policy.min_hosts is not None and hosts - 1 >= policy.min_hosts:
        sentence = f"{last.host} is left out; starting again on {_hosts(hosts - 1)}"
        return Decision(
            WITHOUT_HOST, "bad-host", sentence + _whence(last), last.host, False, evidence
        )
    fewest = hosts if policy.min_hosts is None else policy.min_hosts
    return give_up(
        "too-few-hosts",
        f"no restart: {last.host} would have to be left out, no spare stands by, and the job needs "
        f"{_hosts(fewest)} (min_hosts)",
    )


def _progress(attempts: Sequence[Attempt]) -> bool:
    """Whether the last attempt came to a further complete step than the one before it."""
    last, before = attempts[-1].step, attempts[-2].step
    return last is not None and (before is None or last > before)


def _leave_out(attempts: Sequence[Attempt]) -> bool:
    last = attempts[-1]
    return last.kind == "host" or any(one.host == last.host for one in attempts[:-1])


def _hosts(count: int) -> str:
    return f"{count} host" + "s" * (count != 1)


def _whence(last: Attempt) -> str:
    return " from the beginning" if last.step is None else f" from step {last.step}"
