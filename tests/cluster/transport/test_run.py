"""``run`` and ``stream``: the same behaviour over SSH and locally."""

from __future__ import annotations

import shlex
import threading
from contextlib import suppress
from pathlib import Path
from typing import Callable, List

import psutil
import pytest

from orchestrator.errors import HostTimeout, HostUnreachable
from orchestrator.transport.base import Transport
from orchestrator.transport.local import LocalTransport
from tests.cluster.sshd import Loopback, wait_until
from tests.cluster.transport.conftest import Dial

NASTY = [
    "",
    " ",
    "two words",
    "'single'",
    '"double"',
    "$HOME `id` $(id) ${x}",
    "a;b&&c|d>e<f",
    "back\\slash",
    "new\nline",
    "tab\t",
    "*?[a]~!#%^",
    "-n",
    "--",
    "ünïcödé 中文",
]


def test_arguments_arrive_as_they_are(transport: Transport) -> None:
    done = transport.run(["printf", "%s\\0", *NASTY])
    assert done.ok
    assert done.stdout.decode().split("\0")[:-1] == NASTY


@pytest.mark.parametrize("status", [0, 1, 3, 126, 127, 137, 254, 255])
def test_exit_statuses(transport: Transport, status: int) -> None:
    done = transport.run(["sh", "-c", f"echo out; echo err >&2; exit {status}"])
    assert (done.exit_status, done.stdout, done.stderr) == (status, b"out\n", b"err\n")
    assert done.ok == (status == 0)


@pytest.mark.parametrize(("signal", "status"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
def test_death_by_a_signal_is_a_result(transport: Transport, signal: str, status: int) -> None:
    assert transport.run(["sh", "-c", f"kill -{signal} $$"]).exit_status == status


def test_a_program_that_does_not_exist(transport: Transport, tmp_path: Path) -> None:
    done = transport.run([f"{tmp_path}/nope"])
    assert done.exit_status == 127
    assert b"nope" in done.stderr


def test_a_file_that_cannot_be_run(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    assert transport.run([f"{tmp_path}/text"]).exit_status == 126


def test_much_output_on_both_pipes_at_once(transport: Transport) -> None:
    both = "head -c 1000000 /dev/zero; head -c 500000 /dev/zero >&2"
    script = f"for i in 1 2 3 4 5 6 7 8; do {both}; done"
    done = transport.run(["sh", "-c", script])
    assert (len(done.stdout), len(done.stderr)) == (8_000_000, 4_000_000)


def test_input_goes_through_unchanged_while_output_comes(transport: Transport) -> None:
    data = bytes(range(256)) * 40_000
    assert transport.run(["cat"], stdin=data).stdout == data


def test_input_that_nobody_reads(transport: Transport) -> None:
    assert transport.run(["true"], stdin=bytes(5_000_000)).ok


def test_no_input_is_an_empty_input(transport: Transport) -> None:
    assert transport.run(["cat"]).stdout == b""


def test_a_command_that_takes_too_long(transport: Transport) -> None:
    transport.run(["true"])  # the limit counts for connecting too
    with pytest.raises(HostTimeout, match=r"`sleep` has not ended within 1 s") as caught:
        transport.run(["sleep", "60"], timeout=1.0)
    assert caught.value.host == transport.name
    assert transport.run(["echo", "still usable"]).stdout == b"still usable\n"


def test_output_does_not_stop_the_clock(transport: Transport) -> None:
    with pytest.raises(HostTimeout):
        transport.run(["yes"], timeout=0.3)


def test_many_commands_at_once(transport: Transport) -> None:
    """More than the 10 sessions that sshd allows a connection."""
    answers: List[bytes] = []

    def ask(number: int) -> None:
        answers.append(transport.run(["sh", "-c", f"sleep 0.05; echo {number}"]).stdout)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(f"{number}\n".encode() for number in range(24))


def test_a_closed_transport_says_so(transport: Transport) -> None:
    transport.run(["true"])
    transport.close()
    transport.close()
    for use in (lambda: transport.run(["true"]), lambda: transport.stream(["true"])):
        with pytest.raises(HostUnreachable, match="closed here") as caught:
            use()
        assert caught.value.host == transport.name


def test_close_frees_whoever_waits(transport: Transport) -> None:
    stream = transport.stream(["sh", "-c", "echo started; exec sleep 60"])
    chunks = iter(stream)
    assert next(chunks) == b"started\n"
    ended = threading.Event()

    def read() -> None:
        with suppress(HostUnreachable):
            list(chunks)
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    transport.close()
    assert ended.wait(30)


def test_a_stream_hands_out_output_as_it_comes(transport: Transport, tmp_path: Path) -> None:
    go = shlex.quote(str(tmp_path / "go"))
    script = f"echo one; until [ -e {go} ]; do sleep 0.01; done; echo why >&2; echo two; exit 5"
    stream = transport.stream(["sh", "-c", script])
    chunks = iter(stream)
    assert next(chunks) == b"one\n"
    assert stream.exit_status is None
    (tmp_path / "go").touch()
    assert b"".join(chunks) == b"two\n"
    assert stream.exit_status == 5
    assert stream.stderr == b"why\n"
    stream.close()
    assert stream.exit_status == 5


def test_a_stream_of_a_missing_program(transport: Transport, tmp_path: Path) -> None:
    stream = transport.stream([f"{tmp_path}/nope"])
    assert list(stream) == []
    assert stream.exit_status == 127
    assert b"nope" in stream.stderr


def test_a_streams_errors_are_kept_to_their_last_8_kib(transport: Transport) -> None:
    stream = transport.stream(["sh", "-c", "head -c 3000000 /dev/zero >&2; echo end >&2"])
    assert list(stream) == []
    assert len(stream.stderr) == 8192
    assert stream.stderr.endswith(b"\0end\n")


def test_closing_a_stream_ends_its_iteration_without_an_error(transport: Transport) -> None:
    stream = transport.stream(["sh", "-c", "echo started; exec sleep 60"])
    chunks = iter(stream)
    assert next(chunks) == b"started\n"
    closing = threading.Thread(target=stream.close)
    closing.start()
    assert list(chunks) == []
    closing.join()
    stream.close()
    assert stream.exit_status is None
    assert transport.run(["echo", "still usable"]).ok


def test_a_local_stream_ends_its_command_when_closed() -> None:
    stream = LocalTransport("here", python="python3").stream(["sh", "-c", "echo $$; sleep 60"])
    pid = int(next(iter(stream)))
    stream.close()
    assert not psutil.pid_exists(pid)


def test_a_local_command_that_takes_too_long_is_ended() -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(HostTimeout):
        LocalTransport("here", python="python3").run(["sh", "-c", "sleep 60"], timeout=0.2)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_streamed_command_can_watch_its_input(
    loopback: Callable[[int], Loopback], dial: Dial, tmp_path: Path
) -> None:
    """Its standard input ends when nobody follows any more."""
    transport = dial(loopback(1).hosts[0])
    noticed = tmp_path / "noticed"
    stream = transport.stream(["sh", "-c", f"echo started; cat; touch {noticed}"])
    assert next(iter(stream)) == b"started\n"
    assert not noticed.exists()
    stream.close()
    wait_until(noticed.exists, "the command to see the end of its input")
