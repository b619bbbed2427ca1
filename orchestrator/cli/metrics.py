"""``glm2-orch metrics``: a run for Prometheus, Grafana and TensorBoard."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Tuple

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import say, writing_to
from orchestrator.errors import OrchError, UsageError

if TYPE_CHECKING:
    from orchestrator.report.reading import RunReader
    from orchestrator.runs.layout import RunStore


@click.command()
@click.argument("run", default="latest", type=RUN)
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write FILE for node_exporter's textfile collector, replaced as a whole.",
)
@click.option(
    "--every",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="With --textfile: write it again and again until the run is over.",
)
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help="Answer Prometheus at http://ADDRESS:PORT/metrics, e.g. 127.0.0.1:9400.",
)
@click.option(
    "--tensorboard",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the steps as event files for TensorBoard below DIR.",
)
@click.option(
    "--rank", "ranks", metavar="0-7,9", help="With --tensorboard: these ranks.  [default: 0]"
)
def metrics(
    run: str,
    textfile: Optional[Path],
    every: Optional[float],
    listen: Optional[str],
    tensorboard: Optional[Path],
    ranks: Optional[str],
) -> None:
    """Give the metrics of RUN (default: latest) to other programs; asks no host.

    Without an option they are printed as Prometheus reads them. --listen looks up `latest`
    at every scrape, so that one exporter serves all runs that come; it knows no passwords.
    docs/metrics.md lists the metrics; templates/grafana-dashboard.json shows them.
    """
    from orchestrator.runs.layout import RunStore, home

    store = RunStore(home())
    if sum(option is not None for option in (textfile, listen, tensorboard)) > 1:
        raise UsageError(
            "--textfile, --listen and --tensorboard exclude each other",
            hint="give the one you need",
        )
    if every is not None and textfile is None:
        raise UsageError("--every needs --textfile", hint="name the file to write")
    if ranks is not None and tensorboard is None:
        raise UsageError("--rank needs --tensorboard", hint="metrics are those of all ranks")
    if listen is not None:
        _serve(_Source(store, run), listen)
    elif tensorboard is not None:
        _write_scalars(store, run, tensorboard, ranks or "0")
    elif textfile is not None:
        _write(_Source(store, run), textfile, every)
    else:
        click.echo(_Source(store, run).text()[0], nl=False)


class _Source:
    """What ``run`` means now, as metrics; one reader a run."""

    def __init__(self, store: RunStore, run: str) -> None:
        self._store = store
        self._run = run
        self._readers: Dict[str, RunReader] = {}

    def text(self) -> Tuple[str, bool]:
        """The metrics, and whether the run is over."""
        from orchestrator.report.metrics import exposition
        from orchestrator.report.reading import RunReader

        paths = self._store.resolve(self._run)
        if paths.run_id not in self._readers:
            self._readers = {paths.run_id: RunReader(paths)}
        shot = self._readers[paths.run_id].read()
        return exposition(shot, time.time()), shot.state.status.is_terminal


def _write(source: _Source, target: Path, every: Optional[float]) -> None:
    while True:
        text, over = source.text()
        # node_exporter reads *.prom: the half of a file must have another name.
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        with writing_to(str(target)):
            try:
                temporary.write_text(text, "utf-8", "replace")
                temporary.chmod(0o644)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        if every is None or over:
            return
        time.sleep(every)


def _write_scalars(store: RunStore, run: str, folder: Path, ranks: str) -> None:
    from orchestrator.logs.ranks import parse_ranks
    from orchestrator.report.scalars import write_scalars

    paths = store.resolve(run)
    steps = write_scalars(paths, sorted(parse_ranks(ranks)), folder)
    say(f"{steps} steps of run {paths.run_id}; look at them with: tensorboard --logdir {folder}")


def _serve(source: _Source, listen: str) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from orchestrator.report.metrics import CONTENT_TYPE

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            if self.path.split("?")[0] != "/metrics":
                self._answer(404, "there is only /metrics here\n", "text/plain; charset=utf-8")
                return
            try:
                text = source.text()[0]
            except OrchError as error:
                self._answer(503, f"{error}\n", "text/plain; charset=utf-8")
                return
            self._answer(200, text, CONTENT_TYPE)

        def _answer(self, status: int, text: str, kind: str) -> None:
            body = text.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass  # A line a scrape tells nobody anything.

    address, port = _endpoint(listen)
    try:
        server = HTTPServer((address, port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on {listen}: {getattr(error, 'strerror', None) or error}",
            hint="choose a free port of this machine, e.g. --listen 127.0.0.1:9400",
        ) from error
    with server:
        say(f"metrics at http://{address}:{server.server_port}/metrics; end it with Ctrl-C")
        server.serve_forever()


def _endpoint(listen: str) -> Tuple[str, int]:
    address, colon, port = listen.rpartition(":")
    if not colon or not address or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{listen!r} is no address and port", hint="write it as 127.0.0.1:9400")
    return address, int(port)
