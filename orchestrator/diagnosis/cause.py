"""The first cause of a failure, out of the evidence: one rule after the other, the first that fits.

``own-error``   a rank reports something that broke in itself (role root or config), or the system
                killed it: the earliest one, on clocks that were corrected.
``named``       other ranks say whom they lost or wait for, and that rank reports nothing.
``hang``        the run was stopped because no rank got on: those that were behind.
``host-lost``   a host was given up.
``vanished``    others complain, a few ranks are silent or have no log at all: those few.
``peer-error``  a transfer broke (may be the echo of a peer's end, but no peer vanished).
``symptom``     only effects were logged: the earliest.
``exit``        the rank that failed first logged nothing that is known.

A rank that we ended is never the cause, unless we ended it because it hung. What such a rank had
logged before is told as a note.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple, Union

from orchestrator.diagnosis.evidence import Case, Device, Finding, Process
from orchestrator.diagnosis.grouping import Group, group
from orchestrator.diagnosis.signatures import Signature
from orchestrator.diagnosis.weighing import Seen, counting, is_free, is_own
from orchestrator.logs.ranks import format_ranks

_TOGETHER_S = 60.0
"""The same error on other ranks within this time has the same cause."""
_ECHO_S = 2.0
_MOST_GROUPS = 8

VANISHED = Signature(
    id="vanished",
    patterns=(),
    role="root",
    meaning="the rank fell silent without an error while others waited for it",
    cause="its process was killed or hangs, its host went down, or it was never started",
    remedy="see on its host: `dmesg -T` (memory), `npu-smi info`, and what the process does",
    source="HCCL user guide, fault diagnosis",
)

HUNG = Signature(
    id="hung",
    patterns=(),
    role="root",
    meaning="the ranks stood still",
    cause="a rank waits for data or storage, its device hangs, or the ranks wait for each other",
    remedy="see the last lines of the ranks that were behind, their storage and `npu-smi info`",
    source="the pace of the ranks",
)

Blamed = Union[int, Device]


@dataclass(frozen=True)
class Diagnosis:
    """The answer. ``rule`` is empty when nothing was found; ``reason`` is a sentence.

    ``who`` begins with the first; more where the same broke in several ranks at once. ``device``
    is what HCCL named where no rank is known for it. ``time`` is on our clock.
    """

    rule: str = ""
    reason: str = ""
    signature: Optional[Signature] = None
    finding: Optional[Finding] = None
    who: Tuple[Process, ...] = ()
    device: Optional[Device] = None
    time: Optional[float] = None
    evidence: Tuple[Group, ...] = ()
    collateral: Tuple[str, ...] = ()
    silent: Tuple[int, ...] = ()
    notes: Tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        return bool(self.rule)


def first_cause(case: Case) -> Diagnosis:
    """Judge a job. Pure."""
    court = _Court(case)
    rules: Tuple[Callable[[], Optional[Diagnosis]], ...] = (
        court.own_error,
        court.named,
        court.hang,
        court.host_lost,
        court.vanished,
        court.peer_error,
        court.symptom,
        court.exit,
    )
    answer = next(filter(None, (rule() for rule in rules)), Diagnosis())
    return court.completed(answer)


class _Court:
    """The evidence of a case, sorted by what it can be used for."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.ranks = case.by_rank()
        self.all: List[Seen] = []
        for process in case.processes:
            self.all.extend(counting(process))
        self.all.sort(key=lambda seen: seen.order)
        self.free = [seen for seen in self.all if is_free(seen.process)]
        self.complaining = {
            seen.process.name for seen in self.all if seen.finding.signature.role == "symptom"
        }
        self.devices = _devices(case)

    def own_error(self) -> Optional[Diagnosis]:
        own = [s for s in self.free if is_own(s.finding.signature)]
        if not own:
            return None
        first = own[0]
        peers = [s for s in self.free if s.finding.signature.may_follow]
        if peers and _clearly_before(peers[0], first):
            return None
        same = _same(first, own)
        reason = "it broke in the rank itself; the earliest such error"
        if len({s.process.name for s in own}) == 1:
            reason = "it broke in the rank itself; there is no other such error"
        return self._answer("own-error", reason, first, [s.process for s in same])

    def named(self) -> Optional[Diagnosis]:
        votes, witnesses = self._votes()
        votes = {one: weight for one, weight in votes.items() if self._may_be_blamed(one)}
        if not votes:
            return None
        most = max(votes.values())
        blamed = [one for one, weight in votes.items() if weight == most]
        ranks = sorted(one for one in blamed if isinstance(one, int))
        size = self.case.world_size or len(self.ranks)
        if len(blamed) > 1 and len(blamed) * 2 > max(size, 2):
            return None
        witness = min(
            (s for s in witnesses if self._blames(s) & set(blamed)), key=lambda s: s.order
        )
        who = [self._process(rank) for rank in ranks]
        device = None if ranks else next(one for one in blamed if not isinstance(one, int))
        by = [
            s.process.rank
            for s in witnesses
            if s.process.rank is not None and self._blames(s) & set(blamed)
        ]
        silent = self._silent()
        rest = "with no error of its own"
        if device is not None and len(silent) == 1:
            who, rest = silent, f"as device {device[1]} of {device[0]}; it alone is silent"
            device = None
        elif device is not None:
            rest = "its rank is not known"
        reason = f"named by {_ranks(by) if by else 'others'}, {rest}"
        answer = self._answer("named", reason, witness, who)
        return replace(answer, device=device)

    def hang(self) -> Optional[Diagnosis]:
        still = self.case.standstill
        if still is None:
            return None
        who = [self._process(rank) for rank in still.ranks]
        last = max((p.last_time for p in who if p.last_time is not None), default=None)
        return Diagnosis("hang", still.sentence, HUNG, None, tuple(who), time=last)

    def host_lost(self) -> Optional[Diagnosis]:
        for host, sentence in self.case.lost_hosts.items():
            gone = [p for p in self.case.processes if p.host == host and not p.ended_by_us]
            if gone:
                last = max((p.last_time for p in gone if p.last_time is not None), default=None)
                return Diagnosis(
                    "host-lost", sentence, VANISHED, None, tuple(_by_rank(gone)), time=last
                )
        return None

    def vanished(self) -> Optional[Diagnosis]:
        silent = self._silent()
        witnesses = [s for s in self.all if s.finding.signature.role in ("symptom", "root")]
        size = max(self.case.world_size or 0, len(self.ranks))
        if not silent or not witnesses or len(silent) * 2 > max(size, 2):
            return None
        silent.sort(key=lambda p: (p.last_time is not None, p.last_time or 0.0, p.rank or 0))
        absent = [p for p in silent if not p.logs]
        if absent:
            reason = "there is no log of it while others complain"
        else:
            reason = "no error of its own while others complain"
        first = silent[0]
        return Diagnosis(
            "vanished", reason, VANISHED, None, tuple(_by_rank(silent)), time=first.last_time
        )

    def peer_error(self) -> Optional[Diagnosis]:
        peers = [s for s in self.free if s.finding.signature.may_follow]
        if not peers:
            return None
        reason = "the earliest error that is more than waiting"
        return self._answer("peer-error", reason, peers[0], [peers[0].process])

    def symptom(self) -> Optional[Diagnosis]:
        symptoms = [s for s in self.free if s.finding.signature.role == "symptom"]
        if not symptoms:
            return None
        reason = "the logs hold no cause, only effects; this is the earliest"
        return self._answer("symptom", reason, symptoms[0], [symptoms[0].process])

    def exit(self) -> Optional[Diagnosis]:
        failed = [
            p for p in self.case.processes if not p.ended_by_us and p.exit_code not in (None, 0)
        ]
        failed.sort(key=lambda p: (p.exit_time is None, p.when(p.exit_time) or 0.0, p.rank or 0))
        generic = [s for s in self.free if s.finding.signature.role == "generic"]
        if failed:
            first = failed[0]
            own = next((s for s in generic if s.process.name == first.name), None)
            return Diagnosis(
                "exit",
                "it failed first; its log holds no line that is known",
                None,
                own.finding if own else None,
                (first,),
                time=first.when(first.exit_time),
            )
        if generic:
            reason = "the earliest error; it only passes on another one that was not logged"
            return replace(
                self._answer("symptom", reason, generic[0], [generic[0].process]), signature=None
            )
        return None

    def completed(self, answer: Diagnosis) -> Diagnosis:
        """The answer with what is around it: evidence, ranks that we ended, silent ones, notes."""
        collateral = [p for p in self.case.processes if p.ended_by_us]
        silent = [p.rank for p in self._silent() if p.rank is not None] if answer.found else []
        return replace(
            answer,
            evidence=tuple(self._evidence(answer)),
            collateral=tuple(p.name if p.rank is None else str(p.rank) for p in collateral),
            silent=tuple(sorted(silent)),
            notes=tuple(self._notes(answer)),
        )

    def _answer(self, rule: str, reason: str, seen: Seen, who: Iterable[Process]) -> Diagnosis:
        return Diagnosis(
            rule, reason, seen.finding.signature, seen.finding, tuple(who), time=seen.time
        )

    def _votes(self) -> Tuple[Dict[Blamed, float], List[Seen]]:
        votes: Dict[Blamed, float] = {}
        witnesses: List[Seen] = []
        for seen in self.all:
            blamed = self._blames(seen)
            for one in blamed:
                # A heartbeat tells of an end; a rank that waits only tells whom it waits for.
                weight = 3.0 if seen.finding.signature.may_follow else 1.0 / len(blamed)
                votes[one] = votes.get(one, 0.0) + weight
            if blamed:
                witnesses.append(seen)
        return votes, witnesses

    def _blames(self, seen: Seen) -> Set[Blamed]:
        named = seen.finding.named
        blamed: Set[Blamed] = set(named.ranks)
        for device in named.devices:
            rank = self._rank_of(device)
            blamed.add(device if rank is None else rank)
        if named.present:
            blamed |= self._absent(seen.process)
        if seen.process.rank is not None:
            blamed.discard(seen.process.rank)
        return blamed

    def _rank_of(self, device: Device) -> Optional[int]:
        """Its rank, as it was told; or counted from another device of its server, whose ranks
        are numbered in the order of the devices."""
        known = self.devices.get(device)
        if known is not None:
            return known
        server, number = device
        for (other, at), rank in self.devices.items():
            counted = rank - at + number
            if other == server and min(number, at) >= 0 and counted in self.ranks:
                return counted
        return None

    def _absent(self, process: Process) -> Set[int]:
        """Ranks that are on none of the lists of who showed up."""
        present: Set[int] = set()
        for finding in process.findings:
            present |= finding.named.present
        sizes = [log.world_size for log in process.logs if log.world_size]
        size = self.case.world_size or max(sizes, default=0)
        return set(range(min(size, 1_000_000))) - present

    def _may_be_blamed(self, one: Blamed) -> bool:
        """Not a rank that we ended, nor one that waits for others itself."""
        if not isinstance(one, int):
            return True
        if self.case.world_size is not None and one >= self.case.world_size:
            return False
        process = self.ranks.get(one)
        return process is None or (is_free(process) and process.name not in self.complaining)

    def _process(self, rank: int) -> Process:
        known = self.ranks.get(rank)
        return known if known is not None else Process(f"rank_{rank}", rank)

    def _silent(self) -> List[Process]:
        """Ranks that say nothing of an error though they did not end well, and absent ones."""
        speaking = {s.process.name for s in self.all if s.finding.signature.role != "generic"}
        ranks = self.ranks
        silent = [
            process
            for process in ranks.values()
            if is_free(process) and not process.running and process.name not in speaking
        ]
        if self.case.world_size is not None and len(ranks) > max(1, self.case.world_size // 2):
            missing = set(range(self.case.world_size)) - set(ranks)
            silent += [self._process(rank) for rank in sorted(missing)]
        return silent

    def _evidence(self, answer: Diagnosis) -> List[Group]:
        chosen: List[Seen] = []
        rest: List[Seen] = []
        for seen in self.all:
            (chosen if seen.finding == answer.finding else rest).append(seen)
        rest = [s for s in rest if s.finding.signature.role != "collateral"]
        rest.sort(key=lambda s: (s.finding.signature.role == "generic", s.order))
        groups = group([(s.process, s.finding, s.time) for s in [*chosen, *rest]])
        return groups[:_MOST_GROUPS]

    def _notes(self, answer: Diagnosis) -> List[str]:
        notes: List[str] = []
        for seen in self.all:
            process, finding = seen.process, seen.finding
            if not process.ended_by_us or not is_own(finding.signature):
                continue
            earlier = answer.time is None or seen.time is None or seen.time <= answer.time
            if not answer.found or (earlier and answer.rule in ("symptom", "peer-error", "exit")):
                notes.append(
                    f"{process.label()} was ended by us, but had logged {finding.signature.id} "
                    f"before: {finding.place}"
                )
                break
        votes, _ = self._votes()
        ranks = self.ranks
        ended = [
            one
            for one in votes
            if isinstance(one, int) and one in ranks and ranks[one].ended_by_us
            if ranks[one].name not in self.complaining
        ]
        if ended and answer.rule in ("symptom", "peer-error"):
            notes.append(
                f"others name {_ranks(ended)}, which still ran when we ended it: look there next"
            )
        if answer.found and not self.case.clocks_known and self._several_hosts():
            notes.append(
                "the clocks of the hosts are not known: which error came first may be wrong"
            )
        skimmed = sum(log.skimmed for p in self.case.processes for log in p.logs)
        if skimmed:
            notes.append(
                f"{skimmed >> 20} MiB in the middle of long logs were looked through for error "
                "lines only; --whole reads all of it"
            )
        return notes

    def _several_hosts(self) -> bool:
        return len({p.host for p in self.case.processes}) > 1


def _clearly_before(one: Seen, other: Seen) -> bool:
    """An error that came so much earlier is no echo of the other."""
    return one.time is not None and other.time is not None and one.time < other.time - _ECHO_S


def _same(first: Seen, own: List[Seen]) -> List[Seen]:
    """Those that report the same error at about the same time, each process once."""
    found: Dict[str, Seen] = {first.process.name: first}
    for seen in own:
        near = seen.time is None or first.time is None or seen.time - first.time <= _TOGETHER_S
        if seen.finding.signature.id == first.finding.signature.id and near:
            found.setdefault(seen.process.name, seen)
    return list(found.values())


def _by_rank(processes: Iterable[Process]) -> List[Process]:
    return sorted(processes, key=lambda p: (p.rank is None, p.rank or 0, p.name))


def _devices(case: Case) -> Dict[Device, int]:
    """Ranks of devices: of the plan or rank table first, then as the logs tell them."""
    devices = dict(case.devices)
    for process in case.processes:
        for log in process.logs:
            for device, rank in log.devices.items():
                devices.setdefault(device, rank)
            if log.device is not None and process.rank is not None:
                devices.setdefault(log.device, process.rank)
    return devices


def _ranks(ranks: Iterable[int]) -> str:
    listed = format_ranks(ranks)
    return f"rank {listed}" if listed.isdecimal() else f"ranks {listed}"
