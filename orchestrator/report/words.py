"""Numbers for people, in few characters."""

from __future__ import annotations

from typing import List, Optional, Sequence

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """``4s``, ``12m05s``, ``3h20m``, ``2d04h``: never more than six characters below 100 days."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def quantity(value: float) -> str:
    """Three or four digits: ``0.82``, ``812``, ``12.3k``, ``1.2M``."""
    if value != value or value in (float("inf"), float("-inf")):
        return "?"
    for bound, divisor, unit in ((1e4, 1.0, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < bound:
            scaled = value / divisor
            digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{value:.1e}"


def size(count: int) -> str:
    """Bytes: ``812 B``, ``1.5 GiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def sparkline(
    values: Sequence[float],
    width: int,
    *,
    low: Optional[float] = None,
    high: Optional[float] = None,
) -> str:
    """The values as bars, at most ``width`` characters; more are averaged in equal parts.

    ``low`` and ``high`` are the ends of the scale where these are not the least and the greatest.
    """
    if len(values) < 2:
        return ""
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    out: List[str] = []
    count = min(width, len(values))
    for place in range(count):
        part = values[place * len(values) // count : (place + 1) * len(values) // count]
        share = 0.5 if high <= low else (sum(part) / len(part) - low) / (high - low)
        out.append(_BARS[max(0, min(7, int(share * 8)))])
    return "".join(out)
