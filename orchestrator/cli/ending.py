"""Following a run on the terminal to its end, and saying how it ended: the last line counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Mapping, Optional, Sequence

from orchestrator.cli.output import print_json, say, seconds
from orchestrator.cli.results import print_results
from orchestrator.errors import HostUnreachable, JobCancelled, JobFailed, JobHung, OrchError

if TYPE_CHECKING:
    from orchestrator.diagnosis.cause import Diagnosis
    from orchestrator.engine.launch import OpenRun
    from orchestrator.runs.layout import RunPaths
    from orchestrator.runs.state import RunState

_LAST_LINES = 20


def follow_to_end(run: OpenRun, *, grace_s: float, show_logs: bool, output: str) -> None:
    """Follow, holding the run's lease, through all attempts that its recovery allows; print the
    ending; raise the error it calls for."""
    from orchestrator.cli.progress import RunProgress
    from orchestrator.cli.recovering import go_on
    from orchestrator.engine.launch import watch_run

    ranks = {
        process.name: process.rank
        for host in run.plan.hosts
        for process in host.processes
        if process.rank is not None
    }
    with RunProgress(ranks, show_logs=show_logs).shown() as progress:
        watch_run(run, progress, grace_s=grace_s)
    if not go_on(run.paths, show_logs=show_logs, output=output):
        tell_ending(run.paths, output)


def tell_ending(paths: RunPaths, output: str) -> None:
    """Say how an ended run ended. Raises JobFailed, JobHung, JobCancelled or
    HostUnreachable."""
    from orchestrator.cli.status import state_record
    from orchestrator.diagnosis.report import record
    from orchestrator.runs.state import read_state

    state = read_state(paths)
    answer = _diagnosis(paths, state)
    if output == "json":
        found = None if answer is None else record(answer)
        print_json({**state_record(state), "diagnosis": found})
    error = ending_error(state, answer)
    if error is None:
        took = seconds((state.ended or 0) - (state.created or 0))
        if output == "table":
            print_results(state)
        for line in left_lines(state.left):
            say(line)
        say(f"run {state.run_id} succeeded: {len(state.ranks)} of {len(state.ranks)} ranks, {took}")
        return
    for line in _evidence(paths, state, answer):
        say(line)
    if state.exit_status == JobHung.exit_status and paths.stacks("rank_0").parent.is_dir():
        say(f"where each rank stood: {paths.stacks('rank_0').parent}")
    for line in left_lines(state.left) or _all_clean(state):
        say(line)
    if output == "json":
        # The state is on stdout already: only the talk and the exit status remain.
        say(f"error: {error}")
        raise SystemExit(error.exit_status)
    raise error


def ending_error(state: RunState, answer: Optional[Diagnosis] = None) -> Optional[OrchError]:
    """The error that the ending of a run stands for; None for success.

    Its sentence is that of ``answer`` where the logs told more than the exit codes.
    """
    cause = (state.cause or {}).get("sentence") or "the cause is not known"
    rank = (state.cause or {}).get("rank")
    if answer is not None and _tells_more(answer):
        from orchestrator.diagnosis.report import headline

        cause = headline(answer)
        rank = answer.who[0].rank if answer.who else rank
    if state.exit_status == 0:
        return None
    if state.exit_status == 5:
        return HostUnreachable(
            f"run {state.run_id} failed: {cause}",
            hint="see that the host is up, then: glm2-orch status " + state.run_id,
        )
    if state.status.value == "cancelled":
        return JobCancelled(f"run {state.run_id} was stopped", hint="")
    kind = JobHung if state.exit_status == 7 else JobFailed
    return kind(
        f"run {state.run_id} failed: {cause}",
        hint=f"read the log: glm2-orch logs {state.run_id}"
        + ("" if rank is None else f" --rank {rank}"),
    )


def left_lines(left: Sequence[Mapping[str, Any]]) -> List[str]:
    """What is left on the hosts, a line each."""
    lines = []
    for one in left:
        if "unknown" in one:
            lines.append(f"{one['host']}: {one['unknown']}")
            continue
        parts = []
        if one.get("left"):
            names = ", ".join(f"{item['command']} (pid {item['pid']})" for item in one["left"])
            parts.append(f"processes {names}")
        if one.get("ports"):
            parts.append("ports " + ", ".join(map(str, one["ports"])))
        if one.get("devices"):
            parts.append("leases of " + ", ".join(one["devices"]))
        if one.get("shared_memory"):
            parts.append("shared memory " + ", ".join(f["path"] for f in one["shared_memory"]))
        if one.get("lock"):
            parts.append(f"the supervisor's lock (pid {one['lock'].get('pid')})")
        lines.append(f"{one['host']}: still there: {'; '.join(parts)}")
    return lines


def _all_clean(state: RunState) -> List[str]:
    if state.certified is None:
        return []
    return [f"{state.certified} of {len(state.hosts)} hosts are clean: nothing of the run is left"]


def _diagnosis(paths: RunPaths, state: RunState) -> Optional[Diagnosis]:
    """What the logs of a failed run say of its cause. Whatever is wrong with a table of
    signatures, the run's ending is told."""
    from orchestrator.cli.diagnose import reading_shown
    from orchestrator.engine.diagnose import diagnose_run, tables

    if state.status.value != "failed":
        return None
    try:
        with reading_shown() as progress:
            return diagnose_run(paths, tables(), progress=progress)
    except OrchError as error:
        say(f"no diagnosis: {error}")
        return None


def _tells_more(answer: Diagnosis) -> bool:
    return answer.signature is not None


def _evidence(paths: RunPaths, state: RunState, answer: Optional[Diagnosis]) -> List[str]:
    """The first cause where it is known, else the last lines of the process that failed first."""
    from orchestrator.diagnosis.report import block
    from orchestrator.logs.tail import read_lines
    from orchestrator.logs.text import decode_line

    if answer is not None and _tells_more(answer):
        return block(answer)
    process = (state.cause or {}).get("process")
    if not isinstance(process, str):
        return []
    lines = [line for _, line in read_lines({process: paths.log(process)}, last=_LAST_LINES)]
    if not lines:
        return [f"{process} wrote nothing to its log"]
    return [f"last lines of {process}:", *(f"  | {decode_line(line)}" for line in lines)]
