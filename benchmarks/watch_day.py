"""A day of a big run through the watcher: 1,000 hosts of 8 ranks, in one process, without I/O.

    python -m benchmarks.watch_day [--hosts 1000] [--ranks 8] [--hours 24] [--step 60]

Events are those that ``engine.follow`` makes of what the hosts send: signs of life gathered every
second, a tick every half second, a line of metrics a rank and step, journals of the hosts at the
start and the end; every minute all ranks are compared. The time between them
is only counted. Shown is the CPU time of the process.
"""

from __future__ import annotations

import argparse
import time
from typing import Iterator, List, Tuple

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
        kind = type(event).__name__
        if isinstance(event, reducer.Tick) and event.thorough:
            kind = "Tick, all compared"
        began = time.process_time()
        state, actions = watcher.reduce(state, event, now)
        spent[kind] += time.process_time() - began
        count[kind] += 1
        decisions += actions
    for kind, seconds in spent.items():
        print(f"{kind:20} {count[kind]:>10,} events {seconds:8.2f} s")
    print(f"{'in all':20} {sum(count.values()):>10,} events {sum(spent.values()):8.2f} s")
    day_of = f"{options.hosts * options.ranks} ranks, {options.hours:g} h"
    figure(day_of, f"{sum(count.values()):,} events", f"{sum(spent.values()):.2f} s")
    ending = decisions[-1]
    assert isinstance(ending, reducer.Finish), decisions
    print(f"ending: {ending.outcome}, decisions: {len(decisions) - 1}")
    return 0


def day(names: List[str], places: List[Place], seconds: float, step_s: float) -> Iterator[Timed]:
    hosts = tuple(names)
    for phase in ("startup", "compile", "train"):
        lines = tuple((place.rank, {"phase": phase, "wall": 1.0}) for place in places)
        yield 0.0, watcher.Metrics(lines)
    step = 0
    for half in range(int(seconds * 2)):
        now = half / 2
        if half % 2 == 0:
            yield now, reducer.Heard(hosts)
        if now >= (step + 1) * step_s:
            step += 1
            line = {
                "schema": 1,
                "step": step,
                "loss": 2.5,
                "step_time_s": step_s,
                "overflow": False,
                "loss_scale": 65536.0,
                "wall": now,
            }
            yield now, watcher.Metrics(tuple((place.rank, line) for place in places))
        yield now, reducer.Tick(thorough=half % 120 == 119)
    for place in places:
        event = {"event": "process_exited", "rank": place.rank, "code": 0, "collateral": False}
        yield seconds, reducer.NodeEvent(place.host, event)
    for name in names:
        yield seconds, reducer.NodeEvent(name, {"event": "finished", "outcome": "succeeded"})


if __name__ == "__main__":
    raise SystemExit(main())
