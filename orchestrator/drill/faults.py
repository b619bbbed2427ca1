"""What may happen to a job, and how it should end then. Rank 2 is the victim, on the second host.

At the moment ``launch`` the ranks are started and none has made a step; a fault that is ``early``
is there before the launch instead. At ``checkpoint`` all ranks have half written their second one.
At ``collect`` the first is being collected while the job runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, Mapping, Optional, Sequence, Tuple

from orchestrator.drill import acts
from orchestrator.drill.scene import Done, Scene

MOMENTS = ("launch", "training", "checkpoint", "collect")
VICTIM = 2
VICTIM_HOST = "127.0.1.2"


@dataclass(frozen=True)
class Expected:
    """How a run should end: exit status of ``launch`` (or of ``attach``, where the launch was
    killed) and the first cause, as ``rehearsal.cause`` shows it; empty: none."""

    status: int
    cause: str = ""


def _nothing(_scene: Scene) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """Something that happens to a job. ``launched`` is what is expected at the moment of launch."""

    name: str
    what: str
    act: Callable[[Scene], None]
    expected: Expected
    launched: Optional[Expected] = None
    early: bool = False
    prepare: Callable[[Scene], None] = _nothing
    """Before the launch, at every moment."""
    rescue: Optional[Callable[[Scene], Optional[Done]]] = None
    """What an operator does afterwards; an answer replaces that of the launch."""
    seen: Optional[Callable[[Scene], str]] = None
    """The cause, where it is another than that of the ending."""
    whole_host: bool = False
    """The first cause is that of the host, whichever of its ranks told it."""
    collected: Tuple[int, ...] = (0,)
    """Exit statuses of a collect that goes on meanwhile."""
    watch: Mapping[str, object] = field(default_factory=dict)
    needs: Sequence[Callable[[], str]] = ()
    """Each says what is missing for it on this machine; nothing: nothing."""
    moments: Tuple[str, ...] = MOMENTS

    def expects(self, moment: str) -> Expected:
        return self.launched if moment == "launch" and self.launched else self.expected

    @property
    def survived(self) -> bool:
        """Whether the job should go on to its own end."""
        return self.expected.status == 0


_KILLED = Expected(6, f"killed rank {VICTIM}")
_HUNG = {"startup_s": 4, "first_step_s": 4, "step_s": 4, "checkpoint_s": 4}
_SILENT = {"silence_s": 3}
_LOST = Expected(5, f"host-silent {VICTIM_HOST}")
_WELL = Expected(0)

FAULTS: Tuple[Fault, ...] = (
    Fault("kill-rank", "a rank is killed (SIGKILL)", acts.kill_rank, _KILLED),
    Fault(
        "crash-rank",
        "a rank crashes (SIGSEGV)",
        acts.crash_rank,
        Expected(6, f"crash rank {VICTIM}"),
    ),
    Fault(
        "raise-in-rank",
        "an exception ends a rank",
        acts.raise_in_rank,
        Expected(6, f"runtime-error rank {VICTIM}"),
    ),
    Fault(
        "hang-rank",
        "a rank stands still (SIGSTOP)",
        acts.hang_rank,
        Expected(7, f"hung rank {VICTIM}"),
        watch=_HUNG,
    ),
    Fault(
        "slow-rank",
        "a rank takes five times as long for each step",
        acts.slow_rank,
        Expected(0, f"straggler rank {VICTIM}"),
        seen=acts.straggler,
    ),
    Fault(
        "kill-supervisor",
        "a supervisor is killed (SIGKILL)",
        acts.kill_supervisor,
        Expected(6, f"supervisor-lost {VICTIM_HOST}"),
    ),
    Fault(
        "kill-controller",
        "the controller is killed (SIGKILL), then attach",
        acts.kill_controller,
        _WELL,
        rescue=acts.attach,
    ),
    Fault(
        "cut-network",
        "a host's network fails: connections break, new ones are refused",
        acts.cut_network,
        _LOST,
        launched=Expected(5, f"unreachable {VICTIM_HOST}"),
        early=True,
        rescue=acts.mend_network,
        collected=(0, 5),
        watch=_SILENT,
    ),
    Fault(
        "freeze-network",
        "a host's network falls silent: nothing comes back",
        acts.freeze_network,
        _LOST,
        launched=Expected(5, f"timeout {VICTIM_HOST}"),
        early=True,
        rescue=acts.thaw_network,
        collected=(0, 5),
        watch=_SILENT,
    ),
    Fault(
        "short-cut",
        "all connections to a host break; it can be reached again at once",
        acts.short_cut,
        _WELL,
        collected=(0, 5),
        seen=acts.lost_lines,
    ),
    Fault(
        "full-disk",
        "the disk of a host is full",
        acts.fill_disk,
        Expected(6, f"disk-full {VICTIM_HOST}"),
        whole_host=True,
        prepare=acts.small_disk,
        needs=(acts.no_mounts,),
        collected=(0,),
    ),
    Fault(
        "damaged-checkpoint",
        "bytes of a complete checkpoint change on the disk of a host",
        acts.damage_checkpoint,
        _WELL,
        seen=acts.collects_damage,
        collected=(0, 10),
        moments=("training", "checkpoint", "collect"),
    ),
    Fault(
        "ei0006-storm",
        "a rank cannot start its HCCP process; all others complain and end first (recorded lines)",
        acts.storm,
        Expected(6, f"EJ0001 rank {VICTIM}"),
    ),
    Fault(
        "silent-rank",
        "a rank ends without a word; all others complain (recorded lines)",
        acts.silent_exit,
        Expected(6, f"vanished rank {VICTIM}"),
    ),
    Fault(
        "nan-loss",
        "the loss of a rank is no number any more",
        acts.nan_loss,
        Expected(6, f"loss-nan rank {VICTIM}"),
        watch={"on_divergence": "stop"},
    ),
    Fault(
        "wrong-host-key",
        "a host shows another key than it is known by",
        acts.change_key,
        _LOST,
        launched=Expected(5, f"host-key {VICTIM_HOST}"),
        early=True,
        rescue=acts.trust_key,
        collected=(0, 5),
        watch=_SILENT,
    ),
    Fault(
        "no-python",
        "the Python of a host is gone",
        acts.remove_python,
        _WELL,
        launched=Expected(4, f"host-not-ready {VICTIM_HOST}"),
        early=True,
        rescue=acts.bring_python_back,
        collected=(0, 4),
    ),
    Fault(
        "leased-device",
        "another run wants the devices",
        acts.second_launch,
        _WELL,
        seen=acts.intruder,
        launched=Expected(9, "busy 127.0.1.1"),
        early=True,
    ),
    Fault(
        "clock-skew",
        "two ranks break; the clock of the later one is ten minutes behind",
        acts.break_two,
        Expected(6, "EJ0001 rank 0"),
        prepare=acts.slow_clock,
    ),
    Fault(
        "deaf-rank",
        "a rank is killed, another one ignores SIGTERM",
        acts.kill_beside_deaf,
        _KILLED,
    ),
    Fault(
        "left-behind",
        "a rank is killed, another one had started a helper that left its family",
        acts.kill_beside_fork,
        _KILLED,
    ),
)

BY_NAME: Dict[str, Fault] = {fault.name: fault for fault in FAULTS}
