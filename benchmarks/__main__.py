"""All benchmarks, one after the other: one table with ratios, and the facts of the machine.

    python -m benchmarks [--out FILE] [--quick] [NAME ...]

Each benchmark runs ours and its peers side by side in one run; see ``python -m benchmarks.NAME
--help`` for what it does. Its own tables, with more columns, stand below the one of all. A peer
that is not installed is said, and does not take part. Figures mean something on a quiet machine
only. ``--quick`` takes small sizes and one or two rounds, to see that all of them run.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Dict, List, Tuple

from benchmarks.figures import VARIABLE, markdown, read_figures

# Name -> arguments of --quick; without it the benchmark's own defaults hold, whose sizes are
# those that the project's targets name.
BENCHMARKS: Dict[str, Tuple[str, ...]] = {
    "rank_tables": ("--rounds", "2"),
    "fan_out": ("--hosts", "12", "--rounds", "2"),
    "follow_logs": ("--seconds", "8", "--rounds", "1"),
    "watch_day": ("--hours", "1"),
    "stop_times": ("--hosts", "3", "--rounds", "1"),
    "stage": ("--hosts", "2", "4", "--mib", "8", "--rounds", "1"),
    "collect": ("--mib", "2", "--rounds", "1"),
    "merge_ckpt": ("--size", "0.3", "--rounds", "1"),
    "glm2_train": ("--rounds", "1"),
    "glm2_decode": ("--rounds", "1"),
    "glm2_parallel": ("--steps", "4"),
}
_HEADING = """\
Ratio: ours is so many times as fast as it.

| benchmark | case | contestant | result | ratio |
| --- | --- | --- | --- | --- |
"""
_PACKAGES = ("mindspore", "numpy", "paramiko", "torch", "transformers")
_TOOLS = {"rsync": "--version", "pdsh": "-V", "clush": "--version", "ssh": "-V", "scp": ""}


def main() -> int:
    """Run them; the exit status is 1 when one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--out", type=Path, metavar="FILE", default=Path("bench.md"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    failed: List[str] = []
    rows, sections = "", ""
    head = f"# Benchmarks, {time.strftime('%Y-%m-%d %H:%M')}\n\n{facts()}\n{_HEADING}"
    for name in options.names or BENCHMARKS:
        arguments = BENCHMARKS[name] if options.quick else ()
        print(f"==> {name} {' '.join(arguments)}".rstrip(), file=sys.stderr, flush=True)
        done, figures = run(name, arguments)
        print(done.stdout, end="", flush=True)
        rows += figures
        sections += "\n" + section(name, arguments, done)
        options.out.write_text(head + rows + sections, encoding="utf-8")
        if done.returncode:
            failed.append(name)
    print(f"written to {options.out}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, arguments: Tuple[str, ...]) -> Tuple[subprocess.CompletedProcess[str], str]:
    """One benchmark in a process of its own, and its rows of the table; what it says on the way
    is shown at once."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures.jsonl")
        environ = {**os.environ, "COLUMNS": "100", VARIABLE: str(figures)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environ, check=False)
        rows = markdown(name, read_figures(figures))
    if done.returncode:
        rows += f"| {name} | | | **failed**, status {done.returncode} | |\n"
    return done, rows


def section(name: str, arguments: Tuple[str, ...], done: subprocess.CompletedProcess[str]) -> str:
    """The tables of one benchmark as a piece of Markdown."""
    title = f"## {name}\n\n`python -m benchmarks.{name} {' '.join(arguments)}".rstrip() + "`\n"
    status = f"\nended with status {done.returncode}\n" if done.returncode else ""
    return f"{title}\n```\n{done.stdout.rstrip()}\n```\n{status}"


def facts() -> str:
    """What the figures were taken on: processor, memory, kernel, packages and tools."""
    lines = [
        f"- processor: {_processor()}, {len(os.sched_getaffinity(0))} cores usable",
        f"- memory: {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        f"- system: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"- load before: {', '.join(f'{load:.1f}' for load in os.getloadavg())}",
        f"- packages: {', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}",
        f"- tools: {', '.join(f'{name}: {_tool(name)}' for name in _TOOLS)}",
    ]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _tool(name: str) -> str:
    if not _TOOLS[name]:  # it has no version of its own
        return "installed" if shutil.which(name) else "absent"
    try:
        done = subprocess.run([name, _TOOLS[name]], capture_output=True, text=True, check=False)
    except OSError:
        return "absent"
    return ((done.stdout or done.stderr).strip().splitlines() or ["unknown"])[0]


if __name__ == "__main__":
    sys.exit(main())
