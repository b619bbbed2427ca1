"""What runs as a rank in a drill: steps, metrics and checkpoints as ``docs/contracts.md`` says.

Standard library only. As real ranks do, all wait for each other in every step. ``DRILL_DIR`` is a
folder that all ranks and the drill share:

``model/rank_N``     content of a rank's checkpoint, made by the drill
``go``               the ranks go on from their start-up when it is there
``finish``           they end soon after it is there
``hold``             while it is there, a checkpoint stays half written (but never the first)
``leave``            a rank that stands still ends badly when it is there
``tricks/WHAT.N``    makes rank N do WHAT from then on, see ``Rank.trick``
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, Set

STEP_S = 0.04
SLOW_S = 0.2
EVERY = 4
"""Steps from one checkpoint to the next."""
FOREVER_S = 300.0
"""Nothing waits longer than this: a drill that died leaves nothing for ever."""


class Stopped(Exception):
    """SIGTERM came: save and end."""


class Rank:
    def __init__(self) -> None:
        self.rank = int(os.environ["RANK_ID"])
        self.size = int(os.environ["RANK_SIZE"])
        self.shared = Path(os.environ["DRILL_DIR"])
        self.run_dir = Path(os.environ["GLM2_RUN_DIR"])
        self.output = Path(os.environ["GLM2_OUTPUT_DIR"]) / "checkpoint" / f"rank_{self.rank}"
        self.metrics = (Path(os.environ["GLM2_RANK_DIR"]) / "metrics.jsonl").open("a")
        self.at = self.shared / "at" / os.environ["GLM2_RUN_ID"]
        self.done: Set[str] = set()
        self.nan = self.slow = self.stopping = False

    def main(self) -> int:
        signal.signal(signal.SIGTERM, self.on_term)
        self.output.mkdir(parents=True, exist_ok=True)
        self.at.mkdir(parents=True, exist_ok=True)
        self.phase("startup")
        self.wait(lambda: (self.shared / "go").exists())
        step = self.resumed()
        self.mark(step)
        self.phase("train")
        while not self.last(step):
            step += 1
            self.step(step)
            if step % EVERY == 0:
                self.save(step)
            if self.stopping:
                self.save(step)
                return 143
        self.phase("done")
        (self.at / f"done.{self.rank}").touch()
        return 0

    def step(self, step: int) -> None:
        begin = time.monotonic()
        self.wait(lambda: True)
        time.sleep(SLOW_S if self.slow else STEP_S)
        own = time.monotonic() - begin
        self.mark(step)
        self.wait(lambda: all(self.reached(rank) >= step for rank in range(self.size)))
        loss = float("nan") if self.nan else 1.0 / step
        self.write(step=step, steps=0, loss=loss, step_time_s=own, overflow=False)
        print(f"step {step} loss {loss}", flush=True)

    def save(self, step: int) -> None:
        """Into another file that then gets its name, as a whole checkpoint."""
        name = f"drill_rank_{self.rank}-1_{step}.ckpt"
        if (self.output / name).exists():
            return
        self.phase("checkpoint")
        content = (self.shared / "model" / f"rank_{self.rank}").read_bytes()
        part = self.output / f".{name}.part"
        with part.open("wb") as stream:
            stream.write(content[: len(content) // 2])
            stream.flush()
            if step > EVERY and not self.stopping:
                self.wait(lambda: not (self.shared / "hold").exists())
            stream.write(content[len(content) // 2 :])
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(self.output / name)
        self.phase("train")

    def last(self, step: int) -> bool:
        """Whether this was the last step. Rank 0 says which it is, two steps ahead."""
        note = self.at / "last"
        if self.rank == 0 and (self.shared / "finish").exists() and not note.exists():
            fresh = self.at / "last.part"
            fresh.write_text(str(step + 2))
            fresh.rename(note)
        return note.exists() and step >= int(note.read_text())

    def resumed(self) -> int:
        """The step of the newest checkpoint that all ranks have, where there is an earlier run."""
        earlier = os.environ.get("GLM2_RESUME_RUN")
        if not earlier:
            return 0
        folder = self.run_dir.parent / earlier / "output" / "checkpoint" / f"rank_{self.rank}"
        names = (path.name for path in folder.glob("*.ckpt"))
        own = sorted({int(name.rpartition("_")[2][:-5]) for name in names})
        (self.at / f"has.{self.rank}.part").write_text(json.dumps(own))
        (self.at / f"has.{self.rank}.part").rename(self.at / f"has.{self.rank}")
        notes = [self.at / f"has.{rank}" for rank in range(self.size)]
        self.wait(lambda: all(note.exists() for note in notes))
        common = set.intersection(*(set(json.loads(note.read_text())) for note in notes))
        return max(common, default=0)

    def mark(self, step: int) -> None:
        """How far this rank is, as the size of a file: it is never seen half written."""
        with open(self.at / f"rank_{self.rank}", "ab") as stream:
            os.truncate(stream.fileno(), step)

    def reached(self, rank: int) -> int:
        try:
            return (self.at / f"rank_{rank}").stat().st_size
        except FileNotFoundError:
            return -1

    def wait(self, condition: Any) -> None:
        """Until it holds; meanwhile tricks are played, and SIGTERM ends a rank that only waits."""
        deadline = time.monotonic() + FOREVER_S
        while True:
            self.play()
            if condition():
                return
            if self.stopping:
                sys.exit(143)
            if time.monotonic() > deadline:
                sys.exit("the drill is gone")
            time.sleep(0.01)

    def play(self) -> None:
        for path in (self.shared / "tricks").glob(f"*.{self.rank}"):
            name = path.name.rpartition(".")[0]
            if name not in self.done:
                self.done.add(name)
                self.trick(name, path)

    def trick(self, name: str, path: Path) -> None:
        if name == "say":  # lines of a recorded log; then it stands still
            print(path.read_text(), flush=True)
            self.stand_still()
        if name == "say-and-exit":
            print(path.read_text(), flush=True)
            sys.exit(1)
        if name == "exit":
            sys.exit(3)
        if name == "raise":
            raise RuntimeError("a mistake in the training script")
        if name == "nan":
            self.nan = True
        if name == "slow":
            self.slow = True
        if name == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if name == "fork":  # a helper that leaves its family
            subprocess.Popen(
                ["sh", "-c", f"setsid sleep {FOREVER_S:.0f} & echo $! >{path}.pid"],
                start_new_session=True,
            ).wait()

    def stand_still(self) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for _ in range(int(FOREVER_S * 100)):
            if (self.shared / "leave").exists():
                sys.exit(1)
            time.sleep(0.01)
        sys.exit("the drill is gone")

    def phase(self, name: str) -> None:
        self.write(phase=name)

    def write(self, **fields: Any) -> None:
        self.metrics.write(json.dumps({"schema": 1, **fields, "wall": time.time()}) + "\n")
        self.metrics.flush()

    def on_term(self, _number: int, _frame: object) -> None:
        self.stopping = True


def scheduler() -> int:
    """As MindSpore's, it ends when all ranks have ended well."""
    notes = Path(os.environ["DRILL_DIR"], "at", os.environ["GLM2_RUN_ID"])
    for _ in range(int(FOREVER_S * 10)):
        if len(list(notes.glob("done.*"))) == int(os.environ["MS_WORKER_NUM"]):
            return 0
        time.sleep(0.1)
    return 1


if __name__ == "__main__":
    sys.exit(scheduler() if sys.argv[1:] == ["scheduler"] else Rank().main())
