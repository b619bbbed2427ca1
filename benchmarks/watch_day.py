"""A day of a big run through the watcher: 1,000 hosts of 8 ranks, in one process, without I/O.

    python -m benchmarks.watch_day [--hosts 1000] [--ranks 8] [--hours 24] [--step 60]

What comes in is what ``engine.follow`` makes of what such a job sends:

- a heartbeat a host and second: every half second the signs of life of half the hosts,
- a tick every half second, and once a minute one at which all ranks are compared,
- a line of metrics a rank and step (``--step``, 60 s: 1,440 steps), each rank with times of its
  own; the ranks wait for each other, so those of a step come in two batches,
- the journal of each host at the end: an exit a rank, and its end.

An event is one of these as a host sends it: a heartbeat, a line, an entry, or a tick of our own.
Their making is not counted. Shown is the CPU time of the process.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any, Dict, Iterator, List, Tuple

from benchmarks.figures import figure
from orchestrator.watching import reducer, watcher
from orchestrator.watching.training import Place

Timed = Tuple[float, watcher.Event]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch_day", description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=8, help="of each host")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--step", type=float, default=60.0, help="seconds of a training step")
    options = parser.parse_args()
    names = [f"node{number}" for number in range(options.hosts)]
    places = [
        Place(index * options.ranks + slot, host, slot)
        for index, host in enumerate(names)
        for slot in range(options.ranks)
    ]
    state, _ = watcher.begin(names, places, watcher.Rules(), 0.0)
    spent = dict.fromkeys(("Heard", "Tick", "Tick, all compared", "Metrics", "NodeEvent"), 0.0)
    count = dict.fromkeys(spent, 0)
    decisions: List[watcher.Action] = []
    for now, event in day(names, places, options.hours * 3600.0, options.step):
        kind, sent = type(event).__name__, 1
        if isinstance(event, reducer.Tick) and event.thorough:
            kind = "Tick, all compared"
        elif isinstance(event, reducer.Heard):
            sent = len(event.hosts)
        elif isinstance(event, watcher.Metrics):
            sent = len(event.lines)
        began = time.process_time()
        state, actions = watcher.reduce(state, event, now)
        spent[kind] += time.process_time() - began
        count[kind] += sent
        decisions += actions
    for kind, seconds in spent.items():
        print(f"{kind:20} {count[kind]:>12,} events {seconds:8.2f} s")
    events, took = sum(count.values()), sum(spent.values())
    print(f"{'in all':20} {events:>12,} events {took:8.2f} s, {events / took:,.0f} a second")
    case = f"{options.hosts * options.ranks} ranks, {options.hours:g} h"
    figure(case, f"{events:,} events", f"{took:.2f} s, {events / took:,.0f} events/s")
    ending = decisions[-1]
    assert isinstance(ending, reducer.Finish), decisions
    print(f"ending: {ending.outcome}, decisions: {len(decisions) - 1}")
    return 0


def day(names: List[str], places: List[Place], seconds: float, step_s: float) -> Iterator[Timed]:
    chance = random.Random(1)
    halves = tuple(names[::2]), tuple(names[1::2])
    for phase in ("startup", "compile", "train"):
        lines = tuple((place.rank, {"phase": phase, "wall": 1.0}) for place in places)
        yield 0.0, watcher.Metrics(lines)
    step = 0
    for half in range(int(seconds * 2)):
        now = half / 2
        yield now, reducer.Heard(halves[half % 2])
        if now >= (step + 1) * step_s:
            step += 1
            lines = tuple((place.rank, _line(step, step_s, now, chance)) for place in places)
            late = chance.randrange(len(lines))
            yield now, watcher.Metrics(lines[:late])
            yield now, watcher.Metrics(lines[late:])
        yield now, reducer.Tick(thorough=half % 120 == 119)
    for place in places:
        event = {"event": "process_exited", "rank": place.rank, "code": 0, "collateral": False}
        yield seconds, reducer.NodeEvent(place.host, event)
    for name in names:
        yield seconds, reducer.NodeEvent(name, {"event": "finished", "outcome": "succeeded"})


def _line(step: int, step_s: float, now: float, chance: random.Random) -> Dict[str, Any]:
    return {
        "schema": 1,
        "step": step,
        "loss": 2.5,
        "step_time_s": step_s * chance.uniform(0.97, 1.03),
        "overflow": False,
        "loss_scale": 65536.0,
        "wall": now + chance.uniform(0.0, 0.2),
    }


if __name__ == "__main__":
    raise SystemExit(main())
