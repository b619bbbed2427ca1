"""The live view of a run: ``view(snapshot, width, height, now)`` is a screen of text. Pure.

Every host has a row while the screen has room. Then every rank keeps one character, in a map, and
only the hosts that need a look have rows. Where even that is too much, each host keeps one.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.logs.ranks import format_ranks
from orchestrator.logs.text import printable
from orchestrator.report.hosts import HostView, Usage, host_views
from orchestrator.report.reading import Snapshot
from orchestrator.report.summary import Summary, sentence, summarise
from orchestrator.report.words import duration, quantity, sparkline
from orchestrator.runs.state import ProcessStatus, RunStatus
from orchestrator.watching.reducer import describe_exit

_STATUS = {
    RunStatus.PREPARING: "yellow",
    RunStatus.RUNNING: "cyan",
    RunStatus.STOPPING: "yellow",
    RunStatus.SUCCEEDED: "green",
    RunStatus.FAILED: "bold red",
    RunStatus.CANCELLED: "yellow",
}

MARKS: Mapping[str, Tuple[str, str]] = {
    "train": ("■", "green"),
    "done": ("■", "green"),
    "eval": ("e", "magenta"),
    "checkpoint": ("k", "blue"),
    "compile": ("c", "cyan"),
    "startup": ("s", "yellow"),
    "running": ("r", "cyan"),
    "waiting": ("·", "dim"),
    "succeeded": ("✓", "green"),
    "stopped": ("-", "dim"),
    "slow": ("~", "bold yellow"),
    "silent": ("?", "bold yellow"),
    "unknown": ("?", "bold yellow"),
    "failed": ("✗", "bold red"),
}
"""What a rank does, its mark, its colour; the later a word, the more it needs a look."""

_PLAIN = str.maketrans("■✓✗·━─…▁▂▃▄▅▆▇█", "#+X.=-~........")


def view(
    shot: Snapshot,
    width: int,
    height: int,
    now: float,
    *,
    devices: Optional[Mapping[str, Usage]] = None,
    plain: bool = False,
) -> RenderableType:
    """The screen: at most ``height`` lines of ``width`` characters. ``now`` is in Unix seconds.

    ``devices`` is what the hosts said of theirs, by host, where they were asked. ``plain`` uses
    ASCII only.
    """
    hosts = host_views(shot, now, devices or {})
    summary = summarise(shot, now)
    head = _head(summary, hosts, width)
    foot = _foot(shot, summary, hosts, now)
    room = height - len(head) - 1
    least = min(1, len(foot))
    body = _body(hosts, width, room - least, room - len(foot), bool(devices))
    foot = foot[len(foot) - min(len(foot), max(least, room - len(body))) :]
    lines = [*head, Text(), *body, *foot][:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
        if plain:
            line.plain = line.plain.translate(_PLAIN)
    return Group(*lines)


def _head(summary: Summary, hosts: Sequence[HostView], width: int) -> List[Text]:
    state = summary.state
    first = Text.assemble((state.run_id, "bold"), "  ")
    first.append(state.status.value, _STATUS[state.status])
    first.append(printable(f"  {state.mode} on {state.cluster}"), "dim")
    age = "" if summary.age_s is None else duration(summary.age_s)
    first.append(age.rjust(max(1, width - len(first))) if age else "")
    return [first, _progress(summary, width), _figures(summary), _legend(hosts)]


def _progress(summary: Summary, width: int) -> Text:
    if summary.step is None:
        return Text("no step yet", "dim")
    if not summary.steps:
        return Text(f"step {summary.step:,}")
    share = min(1.0, summary.step / summary.steps)
    text = Text(f"step {summary.step:,} of {summary.steps:,} ")
    rest = f" {share:4.0%}"
    if summary.left_s is not None:
        rest += f"  {duration(summary.left_s)} left"
    bar = max(8, width - len(text) - max(len(rest), 20))
    full = round(share * bar)
    text.append("━" * full, "green").append("─" * (bar - full), "dim").append(rest)
    return text


def _figures(summary: Summary) -> Text:
    text = Text()
    if summary.loss is not None:
        text.append("loss ").append(f"{summary.loss:.4f} ", "bold")
        text.append(sparkline(summary.losses, 12), "magenta").append("   ")
    if summary.speed is not None:
        text.append(f"{quantity(summary.speed)} ", "bold").append("tokens/s/p ")
        text.append(_speed_bars(summary.speeds, 12), "cyan")
        text.append(f"   {quantity(summary.speed_in_all)} in all", "dim")
    if summary.reported_s is not None and not summary.state.status.is_terminal:
        text.append(f"   {duration(summary.reported_s)} ago", "dim")
    return text


def _legend(hosts: Sequence[HostView]) -> Text:
    """What the marks mean, and how many ranks there are of each."""
    counts: Dict[str, int] = {}
    for host in hosts:
        for doing in host.doing:
            counts[doing] = counts.get(doing, 0) + 1
    ranks = sum(counts.values())
    text = Text()
    text.append(f"{len(hosts)} host{'s' * (len(hosts) != 1)}, {ranks} ranks: ", "dim")
    order = list(MARKS)
    for doing in sorted(counts, key=order.index):
        mark, style = MARKS[doing]
        text.append(f"{mark} ", style).append(f"{counts[doing]} {doing}  ")
    return text


def _body(hosts: Sequence[HostView], width: int, room: int, rest: int, devices: bool) -> List[Text]:
    """As much of the hosts as ``room`` lines hold; what is not needed is left to ``rest``."""
    if not hosts:
        return [Text("nothing was sent to the hosts yet", "dim")][:room]
    if len(hosts) + 1 <= room:
        return _rows(hosts, width, devices)
    lines = _rank_map(hosts, width)
    if len(lines) > room:
        lines = _host_map(hosts, width)
    if len(lines) > room:
        shown = max(0, room - 1)
        return [*lines[:shown], Text(f"… {len(lines) - shown} more lines of hosts", "dim")]
    troubled = sorted((host for host in hosts if host.troubles), key=lambda host: -host.troubles)
    rows = min(len(troubled), rest - len(lines) - 1)
    return [*lines, *_rows(troubled[:rows], width, devices)] if rows > 0 else lines


def _rows(hosts: Sequence[HostView], width: int, devices: bool) -> List[Text]:
    """A table with a row a host; what does not fit in ``width`` is left out."""
    cells = max(5, *(len(host.doing) for host in hosts))
    ranks = max(5, *(len(format_ranks(host.ranks)) for host in hosts))
    columns: List[Tuple[str, int, bool]] = [("RANKS", min(ranks, 11), True), ("", cells, False)]
    columns += [("PHASE", 8, False), ("STEP", 7, True), ("LOSS", 8, True), ("TOK/S/P", 7, True)]
    if devices:
        columns += [("USE", 4, True), ("MEM", 4, True), ("°C", 3, True)]
    columns += [("TREND", 8, False), ("HEARD", 6, True)]
    for droppable in ("TREND", "LOSS", "HEARD", "PHASE"):
        if sum(size + 1 for _, size, _ in columns) + 12 > width:
            columns = [column for column in columns if column[0] != droppable]
    longest = max(4, *(len(host.name) for host in hosts))
    name = min(longest, max(8, width - sum(size + 1 for _, size, _ in columns)))
    header = Text("HOST".ljust(name), "bold")
    for title, size, right in columns:
        header.append(" " + (title.rjust(size) if right else title.ljust(size)))
    fastest = max((speed for host in hosts for speed in host.speeds), default=1.0)
    return [header, *(_row(host, name, columns, fastest) for host in hosts)]


def _row(
    host: HostView, name: int, columns: Sequence[Tuple[str, int, bool]], fastest: float
) -> Text:
    text = Text()
    text.append(_fit(host.name, name), "bold yellow" if host.troubles else "")
    usage = host.usage
    values = {
        "RANKS": format_ranks(host.ranks),
        "PHASE": {"checkpoint": "ckpt"}.get(host.phase, host.phase),
        "STEP": "-" if host.step is None else f"{host.step}",
        "LOSS": "-" if host.loss is None else f"{host.loss:.4f}",
        "TOK/S/P": "-" if host.speed is None else quantity(host.speed),
        "USE": "-" if usage is None or usage.busy is None else f"{usage.busy:.0f}%",
        "MEM": "-" if usage is None or usage.memory is None else f"{usage.memory:.0f}%",
        "°C": "-" if usage is None or usage.celsius is None else str(usage.celsius),
        "TREND": _speed_bars(host.speeds, 8, fastest),
        "HEARD": "-" if host.heard_s is None else duration(host.heard_s),
    }
    for title, size, right in columns:
        text.append(" ")
        if title == "":
            for doing in host.doing:
                text.append(*MARKS[doing])
            text.append(" " * (size - len(host.doing)))
            continue
        style = {"TREND": "cyan", "HEARD": "bold yellow" if host.silent else ""}.get(title, "")
        value = _fit(values[title], size)
        text.append(value.strip().rjust(size) if right else value, style)
    return text


def _rank_map(hosts: Sequence[HostView], width: int) -> List[Text]:
    """Every rank as one character, hosts apart, each line with its first rank."""
    digits = len(str(max((rank for host in hosts for rank in host.ranks), default=0)))
    cells = max(1, *(len(host.doing) for host in hosts))
    across = max(1, (width - digits) // (cells + 1))
    lines: List[Text] = []
    for start in range(0, len(hosts), across):
        some = hosts[start : start + across]
        first = next((host.ranks[0] for host in some if host.ranks), 0)
        line = Text()
        line.append(str(first).rjust(digits), "dim")
        for host in some:
            line.append(" ")
            for doing in host.doing:
                line.append(*MARKS[doing])
            line.append(" " * (cells - len(host.doing)))
        lines.append(line)
    return lines


def _host_map(hosts: Sequence[HostView], width: int) -> List[Text]:
    """Every host as the mark of that of its ranks which most needs a look."""
    digits = len(str(len(hosts)))
    across = max(1, width - digits - 1)
    lines: List[Text] = []
    for start in range(0, len(hosts), across):
        line = Text()
        line.append(str(start).rjust(digits) + " ", "dim")
        for host in hosts[start : start + across]:
            line.append(*MARKS[host.worst])
        lines.append(line)
    return lines


def _foot(shot: Snapshot, summary: Summary, hosts: Sequence[HostView], now: float) -> List[Text]:
    """What needs a look, the most important last."""
    lines: List[Text] = []
    for event in shot.events[-200:]:
        if event.get("event") == "decision" and event.get("rule") != "straggler":
            age = duration(max(0.0, now - float(event.get("wall", now))))
            lines.append(Text(f"{age} ago: {sentence(event)}", "yellow"))
    lines = lines[-3:]
    for one in shot.stragglers[:2]:
        ranks = format_ranks(one.ranks)
        slow = f"slow: {one.kind} {printable(str(one.name))}"
        if one.kind != "rank":
            slow += f" (ranks {ranks})"
        lines.append(Text(f"{slow}, {one.ratio:.1f} times the usual step", "bold yellow"))
    silent = [host for host in hosts if host.silent]
    if silent:
        worst = max(silent, key=lambda host: host.heard_s or 0.0)
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        age = duration(worst.heard_s or 0.0)
        lines.append(Text(f"silent: {printable(worst.name)} for {age}{more}", "bold yellow"))
    state = summary.state
    failed = [rank for rank in state.ranks if rank.status is ProcessStatus.FAILED]
    if failed and not state.cause:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        what = describe_exit(failed[0].exit_code)
        where = printable(failed[0].host)
        lines.append(Text(f"failed: rank {failed[0].rank} on {where}, {what}{more}", "bold red"))
    if state.unwatched:
        lines.append(Text(f"nobody watches it: glm2-orch attach {state.run_id}", "bold yellow"))
    cause = (state.cause or {}).get("sentence")
    if cause:
        lines.append(Text(f"cause: {printable(str(cause))}", "bold red"))
    return lines


def line_of(shot: Snapshot, now: float) -> str:
    """The view as one line, for a pipe."""
    summary = summarise(shot, now)
    parts = [f"{summary.state.status.value}"]
    if summary.step is not None:
        parts.append(f"step {summary.step}/{summary.steps or '?'}")
    if summary.loss is not None:
        parts.append(f"loss {summary.loss:.4f}")
    if summary.speed is not None:
        parts.append(f"{quantity(summary.speed)} tokens/s/p")
    if summary.left_s is not None:
        parts.append(f"{duration(summary.left_s)} left")
    counts: Dict[str, int] = {}
    hosts = host_views(shot, now, {})
    for host in hosts:
        for doing in host.doing:
            counts[doing] = counts.get(doing, 0) + 1
    parts.append(", ".join(f"{count} {doing}" for doing, count in counts.items()))
    notes = _foot(shot, summary, hosts, now)
    return " · ".join([*parts, *([notes[-1].plain] if notes else [])])


def _speed_bars(speeds: Sequence[float], width: int, fastest: float = 0.0) -> str:
    """From zero, so that a drop looks as deep as it is; the usual speed leaves some room above."""
    return sparkline(speeds, width, low=0.0, high=1.15 * max([fastest, *speeds]))


def _fit(text: str, size: int) -> str:
    text = printable(text)
    return text.ljust(size) if len(text) <= size else text[: size - 1] + "…"
