"""Made-up failures of jobs with 96 ranks on 12 hosts: the logs of every rank, and the truth.

Everything follows from a seed. The hosts' clocks are up to 30 s off, by amounts that are known;
what a rank writes has its host's time. Each scenario is a way in which a cluster fails.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Dict, FrozenSet, List, Optional, Set, Tuple

from orchestrator.diagnosis.evidence import Case, Process
from orchestrator.diagnosis.exits import with_exit
from orchestrator.diagnosis.reading import read_text
from orchestrator.diagnosis.signatures import SignatureTable
from tests.unit.diagnosis import messages

HOSTS, DEVICES = 12, 8
RANKS = HOSTS * DEVICES
BEGIN = datetime(2025, 6, 1, 10, 0, tzinfo=timezone.utc).timestamp()


@dataclass
class Log:
    """What one rank writes: (true time, line). ``cut`` ends it in the middle of a line."""

    rank: int
    ahead: float
    entries: List[Tuple[float, str]] = field(default_factory=list)
    cut: Optional[float] = None

    @property
    def host(self) -> str:
        return f"node{self.rank // DEVICES}"

    def write(self, rng: random.Random, at: float, block: List[str], peer: int = 0) -> None:
        wall = at + self.ahead
        moment = datetime.fromtimestamp(wall, timezone.utc)
        millis = f"{moment.microsecond // 1000:03d}"
        values = {
            "t": moment.strftime("%Y-%m-%d-%H:%M:%S.") + f"{millis}.{rng.randrange(1000):03d}",
            "iso": moment.strftime("%Y-%m-%d %H:%M:%S,") + millis,
            "pid": 40_000 + self.rank,
            "rank": self.rank,
            "dev": self.rank % DEVICES,
            "ip": f"10.0.0.{self.rank // DEVICES}",
            "peer": peer,
            "peer_ip": f"10.0.0.{peer // DEVICES}",
            "file": "transport_manager",
            "module": rng.choice(["DEVICE", "GE_ADPT", "DISTRIBUTED"]),
            "line": rng.randrange(1, 999),
        }
        self.entries += [(at, line.format(**values)) for line in block]

    def bytes(self, rng: random.Random) -> bytes:
        self.entries.sort(key=lambda entry: entry[0])
        kept = [line for at, line in self.entries if self.cut is None or at <= self.cut]
        data = "\n".join(kept).encode() + b"\n"
        if self.cut is not None and kept:
            data = data[: -rng.randrange(2, 20)]
        return data


@dataclass(frozen=True)
class Made:
    """A failure and its truth. ``killed`` are the ranks that we ended; exit codes are None where
    nobody was there to see them (logs from elsewhere)."""

    name: str
    logs: Dict[int, bytes]
    culprits: FrozenSet[int]
    code: str
    killed: FrozenSet[int]
    exits: Dict[int, Tuple[int, float]]
    ahead: Dict[str, float]

    def case(self, table: SignatureTable) -> Case:
        processes = []
        for rank, data in self.logs.items():
            host = f"node{rank // DEVICES}"
            exit_code, exit_time = self.exits.get(rank, (None, None))
            process = Process(
                name=f"rank_{rank}",
                rank=rank,
                host=host,
                logs=(read_text(data, table, name=f"logs/rank_{rank}.log"),),
                ended_by_us=rank in self.killed,
                exit_code=exit_code,
                exit_time=None if exit_time is None else exit_time + self.ahead[host],
                clock_ahead=self.ahead[host],
            )
            processes.append(with_exit(process, table))
        devices = {(f"10.0.0.{rank // DEVICES}", rank % DEVICES): rank for rank in range(RANKS)}
        return Case(tuple(processes), RANKS, clocks_known=True, devices=devices)


class Maker:
    """One failure in the making."""

    def __init__(self, seed: str, *, training: bool) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.ahead = {f"node{n}": self.rng.uniform(-30, 30) for n in range(HOSTS)}
        self.logs = {r: Log(r, self.ahead[f"node{r // DEVICES}"]) for r in range(RANKS)}
        self.culprit = self.rng.randrange(RANKS)
        self.training = training
        self.at = BEGIN + (self.rng.uniform(300, 3000) if training else self.rng.uniform(30, 90))
        self.killed: Set[int] = set()
        self.exits: Dict[int, Tuple[int, float]] = {}

    @property
    def others(self) -> List[int]:
        return [rank for rank in range(RANKS) if rank != self.culprit]

    def background(self) -> None:
        """Start-up chatter, and steps up to the failure."""
        for rank, log in self.logs.items():
            for _ in range(self.rng.randrange(6, 14)):
                at = BEGIN + self.rng.uniform(0, self.at - BEGIN)
                log.write(self.rng, at, [self.rng.choice(messages.NOISE)])
            if self.training:
                for step in range(8):
                    log.write(self.rng, self.at - 0.5 - 3 * step + rank / 1e3, [messages.STEP])

    def root(self, code: str, *, rank: Optional[int] = None, at: Optional[float] = None) -> None:
        rank = self.culprit if rank is None else rank
        at = self.at if at is None else at
        log = self.logs[rank]
        log.write(self.rng, at - 0.2, [messages.NOISE[4]])
        log.write(self.rng, at, self.rng.choice(messages.ROOTS[code]))
        for _ in range(self.rng.randrange(3)):
            log.write(self.rng, at + 0.05, self.rng.choice(messages.WRAPPERS))

    def symptoms(self, ranks: List[int], after: Tuple[float, float]) -> None:
        kinds = messages.SYMPTOMS_TRAINING if self.training else messages.SYMPTOMS_START
        for rank in ranks:
            at = self.at + self.rng.uniform(*after)
            self.logs[rank].write(self.rng, at, self.rng.choice(kinds), self.culprit)
            if self.rng.random() < 0.5:
                self.logs[rank].write(self.rng, at + 0.1, self.rng.choice(messages.WRAPPERS))
            self.logs[rank].write(self.rng, at + 0.2, [self.rng.choice(messages.NOISE)])

    def we_end(self, ranks: List[int], at: float) -> None:
        for rank in ranks:
            self.killed.add(rank)
            when = at + self.rng.uniform(0, 5)
            self.logs[rank].write(self.rng, when, self.rng.choice(messages.ENDED_BY_US))
            if self.rng.random() < 0.2:
                # What breaks while a rank is ended looks like a cause of its own.
                broken = self.rng.choice(["crash", "python-error", "EI0013", "EL0004", "disk-full"])
                self.logs[rank].write(self.rng, when, self.rng.choice(messages.ROOTS[broken]))
            self.exits[rank] = (self.rng.choice([143, 143, 137, 1]), when + 0.1)

    def made(self, scenario: str, code: str, culprits: Optional[Set[int]] = None) -> Made:
        return Made(
            f"{scenario}:{code}:{self.seed}",
            {rank: log.bytes(self.rng) for rank, log in self.logs.items()},
            frozenset(culprits if culprits is not None else {self.culprit}),
            code,
            frozenset(self.killed),
            self.exits,
            self.ahead,
        )


def fail_fast(code: str, seed: str) -> Made:
    """The culprit ends; a few complain; we end all others within seconds, 8 of them after they
    had complained."""
    maker = Maker(seed, training=_needs_training(code, seed))
    maker.background()
    maker.root(code)
    maker.exits[maker.culprit] = (1, maker.at + 0.5)
    complaining = maker.rng.sample(maker.others, 8)
    maker.symptoms(complaining, (0.6, 2.0))
    maker.we_end(maker.others, maker.at + 2.0)
    return maker.made("fail-fast", code)


def elsewhere(code: str, seed: str) -> Made:
    """Logs of a job that nobody watched: all others complain, after their timeout."""
    maker = Maker(seed, training=_needs_training(code, seed))
    maker.background()
    maker.root(code)
    maker.symptoms(maker.others, (100.0, 160.0))
    return maker.made("elsewhere", code)


def second_error(code: str, seed: str) -> Made:
    """Soon after the culprit another rank breaks too, on a host whose clock is behind: its error
    seems to be the earlier one."""
    maker = Maker(seed, training=_needs_training(code, seed))
    hosts = sorted(maker.ahead, key=lambda host: maker.ahead[host])
    maker.culprit = int(hosts[-1][4:]) * DEVICES + maker.rng.randrange(DEVICES)
    victim = int(hosts[0][4:]) * DEVICES + maker.rng.randrange(DEVICES)
    maker.background()
    maker.root(code)
    others = {"EI0013", "python-error", "EL0004", "disk-full"} - {code}
    late = maker.rng.choice(sorted(others))
    maker.root(late, rank=victim, at=maker.at + maker.rng.uniform(3, 9))
    maker.symptoms([r for r in maker.others if r != victim][::2], (20.0, 60.0))
    maker.exits[maker.culprit] = (1, maker.at + 1.0)
    maker.exits[victim] = (1, maker.at + 12.0)
    maker.we_end([r for r in maker.others if r != victim], maker.at + 61.0)
    return maker.made("second-error", code)


def overcome(code: str, seed: str) -> Made:
    """Long before, another rank had an error from which it recovered: it trained on."""
    maker = Maker(seed, training=True)
    maker.background()
    earlier = maker.rng.choice(maker.others)
    maker.root("EI0013", rank=earlier, at=maker.at - 250.0)
    maker.root(code)
    maker.symptoms(maker.others, (5.0, 60.0))
    return maker.made("overcome", code)


def killed_by_system(seed: str) -> Made:
    """SIGKILL from the system: a log that breaks off; the journal knows the exit status."""
    maker = Maker(seed, training=True)
    maker.background()
    maker.logs[maker.culprit].cut = maker.at - 0.1
    maker.exits[maker.culprit] = (137, maker.at)
    maker.symptoms(maker.rng.sample(maker.others, 30), (0.2, 2.0))
    maker.we_end(maker.others, maker.at + 2.5)
    return maker.made("killed-by-system", "killed")


def vanished(seed: str) -> Made:
    """Nobody watched: the culprit's log breaks off without an error, all others complain; some
    RoCE errors name the lost peer."""
    maker = Maker(seed, training=maker_training(seed))
    maker.background()
    maker.logs[maker.culprit].cut = maker.at - 0.1
    maker.symptoms(maker.others, (60.0, 100.0))
    for rank in maker.rng.sample(maker.others, 3):
        block = maker.rng.choice(messages.ROOTS["EI0013"])
        maker.logs[rank].write(maker.rng, maker.at + 20.0, block, maker.culprit)
    return maker.made("vanished", "vanished")


def host_down(seed: str) -> Made:
    """A whole host goes: its eight logs break off."""
    maker = Maker(seed, training=True)
    maker.background()
    host = maker.culprit // DEVICES
    gone = {rank for rank in range(RANKS) if rank // DEVICES == host}
    for rank in gone:
        maker.logs[rank].cut = maker.at
    maker.symptoms([rank for rank in maker.others if rank not in gone], (60.0, 100.0))
    return maker.made("host-down", "vanished", gone)


def never_started(seed: str) -> Made:
    """There is no log of the culprit at all."""
    maker = Maker(seed, training=False)
    maker.background()
    maker.symptoms(maker.others, (120.0, 140.0))
    del maker.logs[maker.culprit]
    return maker.made("never-started", "vanished")


def heartbeat(seed: str) -> Made:
    """The culprit hangs or is lost; some others say so by HCCL's heartbeat."""
    maker = Maker(seed, training=True)
    maker.background()
    lines = [
        "[INFO] HCCL({pid},python):{t} [heartbeat.cc:951] [1][TaskExecStage][HeartbeatAbnormal]"
        f"local rank [{{ip}}/{{dev}}]: crimer rank [{{peer_ip}}/{maker.culprit % DEVICES}] "
        "status[LOST] by informer rank [{ip}/{dev}]",
    ]
    for rank in maker.rng.sample(maker.others, 5):
        maker.logs[rank].write(maker.rng, maker.at + 30.0, lines, maker.culprit)
    maker.symptoms(maker.others, (60.0, 100.0))
    return maker.made("heartbeat", "heartbeat")


def agents(seed: str) -> Made:
    """The root of a group names the ranks that never came."""
    maker = Maker(seed, training=False)
    maker.background()
    block = ["[ERROR] HCCL({pid},python):{t} [x.cc:5] [1][Init]Failed to connect agent[{peer}]"]
    root = 0 if maker.culprit else 1
    maker.symptoms([rank for rank in maker.others if rank != root], (120.0, 140.0))
    maker.logs[root].write(maker.rng, maker.at + 121.0, block, maker.culprit)
    return maker.made("agents", "unreachable-agents")


def links(seed: str) -> Made:
    """Neighbours name the peer that they could not connect to in a table of links."""
    maker = Maker(seed, training=False)
    maker.background()
    row = [
        messages.HCCL + "[Wait][LinkEstablish]wait socket establish timeout, role[1]",
        messages.HCCL + "   _____________LINK_ERROR_INFO_____________",
        messages.HCCL
        + "   |  10.1.{peer}.9({peer})  |  16666  |   10.1.{rank}.9({rank})   |  32344  "
        "|  client  | time out |   DISABLE  | LinkInfo",
    ]
    neighbours = maker.rng.sample(maker.others, 9)
    for rank in neighbours:
        maker.logs[rank].write(maker.rng, maker.at + 121.0, row, maker.culprit)
    maker.symptoms([rank for rank in maker.others if rank not in neighbours], (125.0, 140.0))
    return maker.made("links", "EI0006")


def everywhere(code: str, seed: str) -> Made:
    """A mistake that every rank makes, such as a wrong rank table: all of them are named."""
    maker = Maker(seed, training=False)
    maker.background()
    for rank in range(RANKS):
        maker.root(code, rank=rank, at=maker.at + maker.rng.uniform(0, 20))
    return maker.made("everywhere", code, set(range(RANKS)))


def corpus(table: SignatureTable, series: str = "") -> List[Made]:
    """All cases of a series: every signature of role root or config in several scenarios, and
    the failures that have no line of their own."""
    made: List[Made] = []
    for signature in table.signatures:
        code = signature.id
        if signature.role not in ("root", "config") or code == "heartbeat":
            continue
        made += [fail_fast(code, f"a-{code}{series}"), elsewhere(code, f"b-{code}{series}")]
        made += [second_error(code, f"c-{code}{series}"), overcome(code, f"d-{code}{series}")]
        if signature.role == "config":
            made.append(everywhere(code, f"e-{code}{series}"))
    for scenario in (
        killed_by_system,
        vanished,
        host_down,
        never_started,
        heartbeat,
        agents,
        links,
    ):
        made += [scenario(f"{scenario.__name__}-{number}{series}") for number in range(5)]
    return made


def maker_training(seed: str) -> bool:
    return random.Random(seed).random() < 0.5


def _needs_training(code: str, seed: str) -> bool:
    return code == "loss-nan" or maker_training(seed)
