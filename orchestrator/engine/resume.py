"""Going on from the checkpoints of an earlier run: in place, or brought into a new shape.

A rank looks for its checkpoint in ``resume/`` of its run folder. Where the earlier run had the
same ranks on the same hosts in the same layout, and all have the step, that is a link to its
output. Otherwise the last complete step is collected here, cut for the new layout, and each host
is sent the files of its ranks. What the worker then reads it verifies by checksum, and ranks step
back together where one of them has not got a step whole (``glm2/resume.py``).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import yaml

from orchestrator.checkpoints.catalogue import StepId
from orchestrator.checkpoints.checkpoint import Reading, open_checkpoint
from orchestrator.checkpoints.checksum import check_file
from orchestrator.checkpoints.merge import merge
from orchestrator.checkpoints.shards import index_file
from orchestrator.checkpoints.strategy import save_strategy
from orchestrator.checkpoints.worker_cut import WorkerCut, worker_cut, worker_strategy
from orchestrator.engine.catalogue import Source, list_checkpoints
from orchestrator.engine.choice import choose
from orchestrator.engine.collect import CollectReport, collect, sources_of
from orchestrator.engine.control import is_running, read_plan, reopened
from orchestrator.engine.hosts import load_hosts, on_all
from orchestrator.engine.launch import OpenRun
from orchestrator.errors import Busy, CheckpointError, PlanError, UsageError
from orchestrator.planning.plan import HostPlan, Plan
from orchestrator.planning.planner import CONFIG_FILE
from orchestrator.runs.layout import RunPaths, RunStore
from orchestrator.transport.base import RemoteFile, Transport
from orchestrator.transport.pool import fan_out

FOLDER = "resume"
"""In the run folder of a host; as ``output/`` of the earlier run."""
WORKER_ARGS = ("--load_checkpoint", f"../../{FOLDER}", "--resume_training", "True")
"""The worker's arguments: it runs in the folder of its rank."""
TRAINING = ("train", "finetune")


def earlier_run(store: RunStore, name: str) -> RunPaths:
    """The run to go on from; ``latest`` is the newest that trained.

    Raises UsageError where there is none or it did not train, Busy while it runs.
    """
    if name == "latest":
        trained = [run for run in reversed(store.names()) if _trains(store.resolve(run))]
        if not trained:
            raise UsageError(
                f"there is no training to resume in {store.root}", hint="leave --resume out"
            )
        name = trained[0]
    paths = store.resolve(name)
    if not _trains(paths):
        raise UsageError(
            f"run {paths.run_id} is no training by glm2", hint="give the run id of a training"
        )
    if is_running(paths):
        raise Busy(
            f"run {paths.run_id} still runs",
            hint=f"end it first: glm2-orch stop {paths.run_id}",
        )
    return paths


def prepare(run: OpenRun, earlier: RunPaths) -> Tuple[str, ...]:
    """Put what the ranks of ``run`` go on from where they look for it; returns what was done.

    Raises CheckpointError when no step of ``earlier`` is complete and whole, and the errors of
    hosts.
    """
    old = read_plan(earlier)
    before, now = _cut(old), _cut(run.plan)
    with (
        reopened(earlier) as opened,
        sources_of(old, opened.transports, load_hosts(earlier.hosts_file)) as sources,
    ):
        same = before == now and _placement(old) == _placement(run.plan)
        choice = choose(sources, step="latest", everything=True) if same else None
        if choice is not None and len(choice.files) == old.world_size:
            _link(run, earlier.run_id)
            notes = (*choice.notes, f"resumes run {earlier.run_id} in place, step {choice.step}")
        else:
            folder = run.paths.dir / FOLDER
            try:
                report, notes = _collected(sources, folder / "collected")
                cut = _recut(report, now, folder)
                _push(run, cut)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            how = "sent anew" if before == now else f"cut from {before} for {now}"
            notes = (*notes, f"resumes run {earlier.run_id}, step {report.step}, {how}")
    run.journal.append("resume", run_id=earlier.run_id, notes=list(notes))
    return notes


def _collected(sources: Sequence[Source], out: Path) -> Tuple[CollectReport, Tuple[str, ...]]:
    """The newest step that is complete and undamaged, and why newer ones were passed over."""
    outcomes = fan_out(sources, list_checkpoints)
    files = [file for o in outcomes if o.value is not None for file in o.value.files]
    steps: List[StepId] = sorted({file.step for file in files if file.step}, reverse=True)
    notes: List[str] = []
    for step in steps:
        try:
            report = collect(sources, step=str(step), out=out)
            for file in report.files:
                path = report.checkpoint / f"rank_{file.rank}" / file.name
                check_file(index_file(path), str(path))
        except CheckpointError as error:
            notes.append(f"step {step} is passed over: {error.message}")
            continue
        return report, tuple(notes)
    raise CheckpointError(
        "there is no complete and undamaged step to resume from"
        + "".join(f"; {note}" for note in notes),
        hint="name an earlier run with --resume RUN, or start without --resume",
    )


def _recut(report: CollectReport, cut: WorkerCut, folder: Path) -> Dict[int, Path]:
    """Cut a collected step for a layout: the file of each rank."""
    reading = Reading(step=report.step)
    tensors = open_checkpoint(report.checkpoint, report.strategy, reading).tensors
    strategy = worker_strategy(tensors, cut)
    save_strategy(strategy, folder / "target")
    merge(
        report.checkpoint,
        report.strategy,
        folder / "cut",
        step=report.step,
        target=folder / "target",
        crc=True,
    )
    series = re.sub(r"_rank_\d+-.*", "", report.files[0].name)
    found: Dict[int, Path] = {}
    for rank in range(strategy.world_size):
        (made,) = (folder / "cut" / f"rank_{rank}").glob("*.ckpt")
        found[rank] = made.rename(made.with_name(f"{series}_rank_{rank}-{report.step}.ckpt"))
    return found


def _link(run: OpenRun, earlier: str) -> None:
    """On each host let ``resume`` be the output of the earlier run."""
    plans = {host.host: host for host in run.plan.hosts}

    def link(transport: Transport) -> None:
        run_dir = plans[transport.name].run_dir
        target = f"../{earlier}/output"
        for argv in (["mkdir", "-p", run_dir], ["ln", "-sfn", target, f"{run_dir}/{FOLDER}"]):
            done = transport.run(argv)
            if not done.ok:
                raise CheckpointError(
                    f"cannot link {run_dir}/{FOLDER} on {transport.name}: "
                    f"{done.stderr.decode('utf-8', 'replace').strip()}",
                    hint="see that the workdir of the host can be written",
                )

    on_all(run.transports, "linking", link, None)


def _push(run: OpenRun, files: Mapping[int, Path]) -> None:
    """Send each host the files of its ranks."""
    plans = {host.host: host for host in run.plan.hosts}

    def push(transport: Transport) -> None:
        host = plans[transport.name]
        wanted = [
            RemoteFile(f"{FOLDER}/checkpoint/rank_{rank}/{files[rank].name}", source=files[rank])
            for rank in _ranks(host)
        ]
        transport.put(wanted, host.run_dir)

    on_all(run.transports, "sending checkpoints", push, None)


def _trains(paths: RunPaths) -> bool:
    try:
        plan = read_plan(paths)
    except PlanError:  # a damaged run folder: nothing to go on from
        return False
    return plan.mode in TRAINING and bool(_values(plan)) and plan.ships_worker


def _cut(plan: Plan) -> WorkerCut:
    return worker_cut(_values(plan), plan.world_size)


def _values(plan: Plan) -> Mapping[str, Any]:
    """The worker's configuration in a plan; empty where it has none."""
    texts = [file.text for file in plan.hosts[0].files if file.path == CONFIG_FILE]
    values = yaml.safe_load(texts[0]) if texts else {}
    return values if isinstance(values, dict) else {}


def _placement(plan: Plan) -> List[Tuple[str, str, Tuple[int, ...]]]:
    """Where each rank's files are: host, folder of runs, ranks."""
    return [(host.host, str(Path(host.run_dir).parent), _ranks(host)) for host in plan.hosts]


def _ranks(host: HostPlan) -> Tuple[int, ...]:
    return tuple(process.rank for process in host.processes if process.rank is not None)
