"""After a failed attempt of a run: what the policy says, journaled, and the next attempt.

Each attempt is a run of its own, called RUN, RUN.2, RUN.3 …; ``attempt.json`` in its folder says
of which run it is one, how the attempts before it ended, and how it was launched, so that
whoever controls it, in the foreground or not, can go on with the next.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from orchestrator.diagnosis.blame import blame
from orchestrator.engine.arming import give_up
from orchestrator.engine.choice import choose
from orchestrator.engine.collect import sources_of
from orchestrator.engine.control import ended, read_plan, reopened
from orchestrator.engine.diagnose import diagnose_run, tables
from orchestrator.engine.hosts import load_hosts
from orchestrator.errors import OrchError
from orchestrator.notifications.announcer import Announcer, notify_file
from orchestrator.runs.journal import Journal, read_events
from orchestrator.runs.layout import RunPaths, RunStore
from orchestrator.runs.quarantine import Quarantine
from orchestrator.watching.reducer import LOST
from orchestrator.watching.retry import GIVE_UP, Attempt, Decision, Policy, decide

STOPPED = "stop-requested"
_LONGEST_ID = 60
_KIND_OF_STATUS = {2: "config", 3: "config", 4: "host", 5: "host"}
"""Whose fault it is that an attempt could not be started, by the exit status of the error."""


@dataclass(frozen=True)
class Record:
    """What is kept of an attempt. ``options`` are those of ``launch``, ``folder`` is where it was
    called; ``left_out`` are the hosts that no spare replaced."""

    first: str
    number: int
    policy: Policy
    options: Mapping[str, Any]
    folder: str
    earlier: Tuple[Attempt, ...] = ()
    left_out: Tuple[str, ...] = ()
    resumes: Optional[str] = None
    """The attempt whose checkpoint this one goes on from."""

    @property
    def run_id(self) -> str:
        base = self.first[:_LONGEST_ID]
        return self.first if self.number == 1 else f"{base}.{self.number}"


def record_file(paths: RunPaths) -> Path:
    return paths.dir / "attempt.json"


def keep(paths: RunPaths, record: Record) -> None:
    """Write how this attempt was launched (0600: the options may hold secrets)."""
    text = json.dumps({"schema": 1, **asdict(record)}, indent=1, ensure_ascii=False, default=list)
    # Whole or not at all: a controller may stand still at any moment, and another takes over.
    temporary = record_file(paths).with_suffix(".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")
    os.replace(temporary, record_file(paths))


def kept(paths: RunPaths) -> Optional[Record]:
    """What ``keep`` wrote; None where the run is of an older version or its launch was undone."""
    try:
        fields = json.loads(record_file(paths).read_bytes())
        fields.pop("schema")
        fields["policy"] = Policy(**fields["policy"])
        fields["earlier"] = tuple(Attempt(**one) for one in fields["earlier"])
        fields["left_out"] = tuple(fields["left_out"])
        return Record(**fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OrchError(
            f"cannot read {record_file(paths)}: {error}",
            hint="the run folder is damaged; start again by hand with launch --resume",
        ) from None


def not_started(store: RunStore, before: RunPaths, record: Record, error: OrchError) -> RunPaths:
    """Keep the attempt ``record``, which could not be started after that of ``before``, so that it
    is judged as one that failed later."""
    paths = store.path(record.run_id)
    if not paths.dir.exists():  # it was not even planned
        store.create(record.run_id)
        with suppress(FileNotFoundError):
            shutil.copy(notify_file(before), notify_file(paths))
    if not ended(paths):
        give_up(Journal(paths.journal, listener=Announcer(paths)), error)
    keep(paths, record)
    return paths


def is_open(store: RunStore, paths: RunPaths) -> bool:
    """Whether it is still to be decided, or to be done, what follows an ended attempt. So it is
    also after a controller died just then."""
    record, end = kept(paths), ended(paths)
    if record is None or end is None or record.policy.max_restarts < 1:
        return False
    if end["outcome"] != "failed" or _was_stopped(paths):
        return False
    said = _last_decision(paths)
    return said is None or (
        said["next"] is not None and not store.path(said["next"]).journal.exists()
    )


def forbid(paths: RunPaths) -> None:
    """No attempt shall follow: an operator stopped the run."""
    record = kept(paths)
    if record is not None and record.policy.max_restarts:
        Journal(paths.journal, listener=Announcer(paths)).append(
            "recovery",
            action=GIVE_UP,
            rule=STOPPED,
            sentence="no restart: the run was stopped by request",
            evidence={},
            host=None,
            next=None,
        )


def is_forbidden(paths: RunPaths) -> bool:
    said = _last_decision(paths)
    return said is not None and said["rule"] == STOPPED


def next_attempt(paths: RunPaths, spares: Mapping[str, int]) -> Tuple[Decision, Optional[Record]]:
    """What is done about an ended attempt that ``is_open``, and the attempt that follows, if one
    does. The decision is journaled, and a bad host quarantined.

    ``spares`` says for each host of the run how many spares could take its place.
    """
    record, end = kept(paths), ended(paths)
    assert record is not None
    assert end is not None
    attempt, cluster, hosts = _attempt(paths, record, end)
    attempts = (*record.earlier, attempt)
    free = spares.get(attempt.host or "", 0)
    decision = decide(record.policy, attempts, hosts=hosts, spares=free)
    following = (
        None if decision.action == GIVE_UP else _following(paths, record, attempts, decision)
    )
    if decision.host is not None:
        _quarantine(paths, cluster, decision, attempt, record.policy)
    Journal(paths.journal, listener=Announcer(paths)).append(
        "recovery",
        action=decision.action,
        rule=decision.rule,
        sentence=decision.sentence,
        evidence=dict(decision.evidence),
        host=decision.host,
        next=None if following is None else following.run_id,
    )
    return decision, following


def current_attempt(store: RunStore, paths: RunPaths) -> RunPaths:
    """What the name of a run stands for: its newest attempt. A later attempt stands for itself."""
    record = kept(paths)
    return newest_attempt(store, paths) if record is not None and record.number == 1 else paths


def newest_attempt(store: RunStore, paths: RunPaths) -> RunPaths:
    """The last attempt of a run, of which ``paths`` is one."""
    while True:
        said = _last_decision(paths)
        if said is None or not said["next"] or not store.path(said["next"]).journal.exists():
            return paths
        paths = store.path(said["next"])


def attempts_shown(store: RunStore, paths: RunPaths) -> List[Dict[str, Any]]:
    """All attempts of a run, oldest first: run id, how it ended, and what was decided then.
    Empty where there is one attempt and nothing was decided."""
    record = kept(paths)
    if record is None:
        return []
    found: List[Dict[str, Any]] = []
    here: Optional[RunPaths] = store.path(record.first)
    while here is not None and here.journal.exists():
        events = list(read_events(here.journal))
        end: Mapping[str, Any] = next(
            (one for one in reversed(events) if one["event"] == "end"), {}
        )
        said: Mapping[str, Any] = next(
            (one for one in reversed(events) if one["event"] == "recovery"), {}
        )
        found.append(
            {
                "run_id": here.run_id,
                "outcome": end.get("outcome"),
                "decision": said.get("action"),
                "rule": said.get("rule"),
                "sentence": said.get("sentence"),
            }
        )
        here = store.path(said["next"]) if said.get("next") else None
    return found if len(found) > 1 or (found[:1] and found[0]["decision"]) else []


def _was_stopped(paths: RunPaths) -> bool:
    """By request, whatever failed then."""
    rules = {one.get("rule") for one in read_events(paths.journal) if one["event"] == "decision"}
    return STOPPED in rules


def _last_decision(paths: RunPaths) -> Optional[Mapping[str, Any]]:
    said = [one for one in read_events(paths.journal) if one["event"] == "recovery"]
    return said[-1] if said else None


def _attempt(paths: RunPaths, record: Record, end: Mapping[str, Any]) -> Tuple[Attempt, str, int]:
    """How it ended, the cluster's name and the number of hosts."""
    cause: Mapping[str, Any] = end.get("cause") or {}
    rule = str(cause.get("rule") or "")
    if rule == "start-failed":
        return _never_begun(paths, record, end)
    answer = diagnose_run(paths, tables())
    host = cause.get("host")
    if rule not in LOST and answer.who:
        names = {process.host for process in answer.who}
        host = names.pop() if len(names) == 1 else None
    signature = answer.signature.id if answer.signature is not None else rule or answer.rule
    own = _last_step(paths)
    before = record.earlier[-1].step if record.earlier else None
    step = before if own is None else own
    kind, plan = blame(answer, rule), read_plan(paths)
    attempt = Attempt(str(end["outcome"]), signature, kind, host or None, step)
    return attempt, plan.cluster, len(plan.hosts)


def _never_begun(
    paths: RunPaths, record: Record, end: Mapping[str, Any]
) -> Tuple[Attempt, str, int]:
    """As ``_attempt``, of one that could not be started: what is wrong with a host, or with what
    all were given. Where it was not even planned, one before it tells on how many hosts."""
    cause = end["cause"]
    kind = _KIND_OF_STATUS.get(end["exit_status"], "unknown")
    step = record.earlier[-1].step if record.earlier else None
    attempt = Attempt("failed", cause["code"], kind, cause["host"] or None, step)
    store = RunStore(paths.dir.parent.parent)
    planned = paths
    for number in range(record.number, 0, -1):
        planned = store.path(replace(record, number=number).run_id)
        if planned.plan.exists():
            break
    plan, known = read_plan(planned), kept(planned)
    assert known is not None
    gone = len(record.left_out) - len(known.left_out)
    return attempt, plan.cluster, len(plan.hosts) - gone


def _last_step(paths: RunPaths) -> Optional[int]:
    """The last step of this attempt that is complete on the hosts that answer."""
    with (
        reopened(paths) as run,
        sources_of(run.plan, run.transports, load_hosts(paths.hosts_file)) as sources,
    ):
        try:
            return int(re.split(r"[_-]", choose(sources, step="latest").step)[-1])
        except (OrchError, ValueError):
            return None


def _following(
    paths: RunPaths, record: Record, attempts: Tuple[Attempt, ...], decision: Decision
) -> Record:
    step = attempts[-1].step
    before = record.earlier[-1].step if record.earlier else None
    resumes = paths.run_id if step is not None and step != before else record.resumes
    left_out = record.left_out
    if decision.host is not None and not decision.spare:
        left_out = (*left_out, decision.host)
    return replace(
        record,
        number=record.number + 1,
        earlier=attempts,
        left_out=left_out,
        resumes=resumes,
    )


def _quarantine(
    paths: RunPaths, cluster: str, decision: Decision, attempt: Attempt, policy: Policy
) -> None:
    assert decision.host is not None
    home = paths.dir.parent.parent
    reason = f"{attempt.signature} in run {paths.run_id}"
    Quarantine(home, cluster).add(
        {decision.host: reason}, by=paths.run_id, lasting=policy.quarantine_for
    )
