"""Makes one fault happen at one moment, and looks whether the run ends as it should."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping

from orchestrator.drill.cluster import Loopback
from orchestrator.drill.faults import Expected, Fault
from orchestrator.drill.processes import DrillTimeout, wait_until
from orchestrator.drill.scene import Done, Scene, Steps, standin
from orchestrator.errors import OrchError
from orchestrator.watching.reducer import LOST

_HOSTS = 2


@dataclass(frozen=True)
class Row:
    """A fault at a moment: what was expected, what was seen. ``verdict`` is ``ok``, ``wrong`` or
    ``skipped``; ``notes`` say what is wrong, or why it was skipped."""

    fault: str
    moment: str
    what: str
    expected: str
    seen: str
    verdict: str
    notes: tuple[str, ...]
    seconds: float


def rehearse(fault: Fault, moment: str, folder: Path) -> Row:
    """Run the job in ``folder`` (a new one) and let ``fault`` happen at ``moment``."""
    began = time.monotonic()
    expected = fault.expects(moment)
    lacking = [text for text in (need() for need in fault.needs) if text]
    if lacking:
        return _row(fault, moment, began, expected, "-", "skipped", lacking)
    try:
        wrong, done, found = _play(fault, moment, folder)
    except (DrillTimeout, OrchError, OSError) as error:
        return _row(fault, moment, began, expected, "-", "wrong", [str(error)])
    seen = Expected(done.status, found)
    if seen != expected:
        wrong.insert(0, _last_line(done))
    return _row(fault, moment, began, expected, _shown(seen), "wrong" if wrong else "ok", wrong)


def cause(answer: Mapping[str, Any], *, whole_host: bool = False) -> str:
    """The first cause in what a command printed: ``killed rank 2``, ``host-silent 127.0.1.2``.
    ``whole_host``: the host, where it is ranks of one."""
    error = answer.get("error")
    if isinstance(error, dict):
        errors = [one for one in error.get("errors", []) if isinstance(one, dict)] or [error]
        return f"{errors[0].get('code')} {errors[0].get('host') or ''}".strip()
    told: Dict[str, Any] = answer.get("cause") or {}
    rule = str(told.get("rule") or "")
    if rule in LOST:
        return f"{rule} {told.get('host')}"
    diagnosis: Dict[str, Any] = answer.get("diagnosis") or {}
    if not diagnosis.get("found") or diagnosis.get("rule") == "journal":
        return rule if told.get("rank") is None else f"{rule} rank {told['rank']}"
    ranks = diagnosis.get("ranks") or []
    if whole_host and diagnosis.get("host"):
        return f"{diagnosis.get('code') or diagnosis.get('rule')} {diagnosis['host']}"
    who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    return f"{diagnosis.get('code') or diagnosis.get('rule')} {who}"


def _play(fault: Fault, moment: str, folder: Path) -> tuple[List[str], Done, str]:
    """What is wrong besides the ending, the ending, and its cause."""
    early = fault.early and moment == "launch"
    with Loopback(folder / "cluster", _HOSTS) as cluster:
        scene = Scene(folder, cluster, cluster.hosts, standin(), watch=fault.watch)
        try:
            fault.prepare(scene)
            if moment != "launch" or early:
                scene.let("go")
            if moment == "checkpoint":
                scene.let("hold")
            before: Steps = {}
            if early:
                fault.act(scene)
                scene.launched = scene.launch()
            else:
                scene.launched = scene.launch()
                scene.reach(moment)
                before = scene.complete_steps()
                fault.act(scene)
            scene.let("go")
            scene.release("hold")
            return _ending(fault, moment, scene, before)
        finally:
            scene.close()
            for host in cluster.hosts:
                cluster.server(host).close()
            for mounted in scene.unmount:
                subprocess.run(["umount", "-l", str(mounted)], check=False)


def _ending(fault: Fault, moment: str, scene: Scene, before: Steps) -> tuple[List[str], Done, str]:
    launched = scene.launched
    survives = fault.expects(moment).status == 0
    wrong: List[str] = []
    if scene.collecting is not None:
        collected = scene.collecting.wait().status
        if collected not in fault.collected:
            wrong.append(f"the collect under way ended with {collected}")
    if survives:
        if fault.name == "slow-rank":
            assert fault.seen is not None
            fault.seen(scene)
        _wait_for_progress(scene)
        scene.let("finish")
    done = launched.wait() if launched is not None and scene.launched is not None else None
    if fault.rescue is not None:
        done = fault.rescue(scene) or done
    assert done is not None
    found = cause(done.answer, whole_host=fault.whole_host)
    if fault.seen is not None:
        found = fault.seen(scene)
    wrong += _left(scene)
    wrong += _lost(fault, scene, before)
    if moment == "collect":
        wrong += _collected(scene)
    return wrong, done, found


def _wait_for_progress(scene: Scene) -> None:
    """The job goes on: every rank makes more steps."""
    begin = max(scene.step(rank) for rank in scene.ranks)
    scene.until(lambda: all(scene.step(rank) >= begin + 2 for rank in scene.ranks), "further steps")


def _left(scene: Scene) -> List[str]:
    with suppress(DrillTimeout):  # what was killed a moment ago may not be gone yet
        wait_until(lambda: not scene.left(), "the end of all", 15.0)
    left = scene.left()
    return [f"left behind: {', '.join(left)}"] if left else []


def _lost(fault: Fault, scene: Scene, before: Steps) -> List[str]:
    """Complete checkpoints that are there no more, or are others."""
    after = scene.complete_steps()
    spoilt = scene.notes.get("damaged")
    lost = [step for step in before if step != spoilt and after.get(step) != before[step]]
    return [f"complete checkpoints lost: steps {', '.join(map(str, lost))}"] if lost else []


def _collected(scene: Scene) -> List[str]:
    """A collect afterwards must have a complete step."""
    done = scene.collect().wait()
    if done.status:
        return [f"a collect afterwards ended with {done.status}: {_last_line(done)}"]
    return []


def _last_line(done: Done) -> str:
    lines = [line for line in done.talk.strip().splitlines() if line.startswith("error: ")]
    lines = lines or done.talk.strip().splitlines()[-1:] or ["it said nothing"]
    return lines[-1]


def _shown(ending: Expected) -> str:
    return f"{ending.status} {ending.cause}".strip()


def _row(
    fault: Fault,
    moment: str,
    began: float,
    expected: Expected,
    seen: str,
    verdict: str,
    notes: List[str],
) -> Row:
    return Row(
        fault.name,
        moment,
        fault.what,
        _shown(expected),
        seen,
        verdict,
        tuple(notes),
        round(time.monotonic() - began, 1),
    )
