"""Files to real sshd servers, in a tree."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import pytest

from orchestrator.engine.hosts import connected
from orchestrator.engine.manifests import BLOCK_BYTES, Manifest, read_source
from orchestrator.engine.staging import Staged, stage_files
from orchestrator.errors import HostNotReady, OrchError, SpecError
from orchestrator.inventory import Host, ServerId
from orchestrator.node import relay
from orchestrator.node.staged import Store
from orchestrator.stage_options import parse_stage
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import Outcome
from tests.cluster.sshd import Loopback, wait_until

Start = Callable[..., Loopback]
BIG = 3 * BLOCK_BYTES + 17


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a file of several blocks, a small, an empty and an executable one."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "big.bin").write_bytes(os.urandom(BIG))
    (folder / "sub/小.json").write_text("{}")
    (folder / "empty").write_text("")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    return folder


def listed(folder: Path, **more: object) -> List[Manifest]:
    stage = parse_stage([{"from": str(folder), **more}], "/")
    return [read_source(item, folder.parent / "cache") for item in stage.items]


def send(
    hosts: Sequence[Host], wanted: Sequence[Manifest], **options: bool
) -> List[Outcome[Staged]]:
    with connected(hosts) as transports:
        return stage_files(hosts, transports, wanted, **options)


def values(outcomes: Sequence[Outcome[Staged]]) -> List[Staged]:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes if outcome.value is not None]


def content(host: Host, manifest: Manifest) -> Path:
    return Path(manifest.item.on_host(host.workdir))


def digests(folder: Path) -> Dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_twelve_hosts_get_one_copy_from_here(loopback: Start, source: Path) -> None:
    cluster = loopback(12)
    [manifest] = wanted = listed(source)
    done = values(send(cluster.hosts, wanted))
    assert sum(one.from_controller for one in done) == manifest.bytes
    assert sum(one.from_peers for one in done) == 11 * manifest.bytes
    assert all(one.notes == () for one in done)
    for host in cluster.hosts:
        there = content(host, manifest)
        assert digests(there) == digests(source)
        assert os.access(there / "run.sh", os.X_OK)
        assert not list(there.parent.parent.glob("*.partial"))
    again = values(send(cluster.hosts, wanted))
    assert sum(one.from_controller + one.from_peers for one in again) == 0


def test_a_new_host_gets_it_from_those_that_have_it(loopback: Start, source: Path) -> None:
    cluster = loopback(3)
    wanted = listed(source)
    values(send(cluster.hosts[:2], wanted))
    done = values(send(cluster.hosts, wanted))
    assert [one.from_controller for one in done] == [0, 0, 0]
    assert done[2].from_peers == wanted[0].bytes


def test_encrypted_means_nothing_between_hosts(loopback: Start, source: Path) -> None:
    cluster = loopback(3)
    done = values(send(cluster.hosts, listed(source), encrypt=True))
    assert [one.from_controller for one in done] == [BIG + 2 + 10] * 3


def test_a_peer_out_of_reach_is_made_good_from_here(loopback: Start, source: Path) -> None:
    """The first host's own address is one at which no other host reaches it."""
    cluster = loopback(3)
    lost = replace(cluster.hosts[0], server_id=ServerId("192.0.2.1"))
    done = values(send([lost, *cluster.hosts[1:]], listed(source)))
    assert any("cannot listen at 192.0.2.1" in note for note in done[0].notes)
    assert [one.from_peers for one in done] == [0, 0, 0]
    assert digests(content(cluster.hosts[2], listed(source)[0])) == digests(source)


def test_damaged_bytes_of_a_peer_do_not_count(loopback: Start, source: Path) -> None:
    """A host whose files were changed behind its record passes them on; nobody keeps them."""
    cluster = loopback(2)
    [manifest] = wanted = listed(source)
    values(send(cluster.hosts[:1], wanted))
    file = content(cluster.hosts[0], manifest) / "big.bin"
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[BLOCK_BYTES + 5] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    done = values(send(cluster.hosts, wanted))
    assert any("block 1 of big.bin arrived damaged" in note for note in done[1].notes)
    assert done[1].from_controller >= BLOCK_BYTES
    assert digests(content(cluster.hosts[1], manifest)) == digests(source)
    mended = values(send(cluster.hosts[:1], wanted, verify=True))
    assert mended[0].from_controller == BLOCK_BYTES
    assert digests(content(cluster.hosts[0], manifest)) == digests(source)


class Cut:
    """A transport whose host disappears once so many bytes were sent to it."""

    def __init__(self, transport: Transport, limit: int, cut: Callable[[], None]) -> None:
        self.name = transport.name
        self._transport = transport
        self._limit = limit
        self._cut = cut

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterator[bytes],
        *,
        timeout: Optional[float] = None,
        on_output: Callable[[bytes], None],
    ) -> object:
        def counted() -> Iterator[bytes]:
            sent = 0
            for chunk in chunks:
                sent += len(chunk)
                if sent > self._limit:
                    self._cut()
                    return
                yield chunk

        return self._transport.feed(argv, counted(), timeout=timeout, on_output=on_output)


def test_a_transfer_that_was_cut_goes_on(loopback: Start, source: Path) -> None:
    cluster = loopback(2)
    [manifest] = wanted = listed(source)
    first = cluster.hosts[0]
    with connected(cluster.hosts) as transports:
        limit = 2 * BLOCK_BYTES + (1 << 20)
        broken = Cut(transports[first.name], limit, lambda: cluster.cut(first))
        mixed = {**transports, first.name: broken}
        outcomes = stage_files(cluster.hosts, mixed, wanted)  # type: ignore[arg-type]
    assert outcomes[0].error is not None
    assert outcomes[1].error is None  # which had it as its only source
    partial = content(first, manifest).parent.with_name(f"{manifest.digest}.partial")
    wait_until(lambda: (partial / "have").exists(), "blocks that were kept")
    done = values(send(cluster.hosts, wanted))
    assert done[0].from_controller == 0
    assert 0 < done[0].from_peers <= manifest.bytes - BLOCK_BYTES
    for host in cluster.hosts:
        assert digests(content(host, manifest)) == digests(source)


def test_a_place_of_its_own_and_one_that_is_taken(loopback: Start, source: Path) -> None:
    [host] = loopback(1).hosts
    place = source.parent / "placed/data"
    values(send([host], listed(source, to=str(place))))
    assert digests(place) == digests(source)
    (source / "empty").write_text("no more")
    values(send([host], listed(source, to=str(place))))
    assert (place / "empty").read_text() == "no more"
    place.unlink()
    place.write_text("mine")
    [outcome] = send([host], listed(source, to=str(place)))
    assert isinstance(outcome.error, HostNotReady)
    assert "is no link to staged files" in str(outcome.error)
    assert place.read_text() == "mine"


def test_one_host_that_fails_holds_nobody_up(loopback: Start, source: Path) -> None:
    cluster = loopback(4)
    wrong = replace(cluster.hosts[0], workdir="/proc/nowhere")
    outcomes = send([wrong, *cluster.hosts[1:]], listed(source))
    assert isinstance(outcomes[0].error, HostNotReady)
    assert len(values(outcomes[1:])) == 3


def test_a_source_that_changes_meanwhile_is_an_error(loopback: Start, source: Path) -> None:
    [host] = loopback(1).hosts
    wanted = listed(source)
    (source / "big.bin").write_bytes(os.urandom(BIG))
    [outcome] = send([host], wanted)
    assert isinstance(outcome.error, (SpecError, OrchError))
    assert "has changed while it was staged" in str(outcome.error)
    assert not content(host, wanted[0]).exists()


def test_two_transfers_of_the_same_files_at_once(loopback: Start, source: Path) -> None:
    cluster = loopback(3)
    wanted = listed(source)
    found: List[Outcome[Staged]] = []
    other = threading.Thread(target=lambda: found.extend(send(cluster.hosts, wanted)))
    other.start()
    done = values(send(cluster.hosts, wanted))
    other.join()
    both = done + values(found)
    assert sum(one.from_controller + one.from_peers for one in both) == 3 * wanted[0].bytes


def test_a_stranger_gets_nothing(tmp_path: Path) -> None:
    """Who does not know the token is not answered; who does can only name blocks."""
    data = os.urandom(1000)
    (tmp_path / "file").write_bytes(data)
    [manifest] = listed(tmp_path / "file")
    store = Store(
        str(tmp_path / "w"), [{"digest": manifest.digest, "files": manifest.files}], BLOCK_BYTES
    )
    store.open(False, print)
    store.write(0, data)
    port = relay.serve(store, "127.0.0.1", "ab" * 32)
    source = {"host": "h", "address": "127.0.0.1", "port": port}
    empty = Store(str(tmp_path / "v"), [_plain(manifest)], BLOCK_BYTES)
    empty.open(False, print)
    with pytest.raises(ValueError, match="does not have all"):
        relay.pull(empty, {**source, "token": "cd" * 32}, lambda size: None)
    assert empty.missing() == [0]
    relay.pull(empty, {**source, "token": "ab" * 32}, lambda size: None)
    assert empty.whole


def _plain(manifest: Manifest) -> Dict[str, object]:
    return {"digest": manifest.digest, "files": list(manifest.files)}


def test_nothing_secret_is_on_a_command_line(loopback: Start, source: Path) -> None:
    """The token travels on standard input: not even the host's other users see it."""
    cluster = loopback(1)
    seen: List[Sequence[str]] = []
    with connected(cluster.hosts) as transports:
        [transport] = transports.values()
        feed = transport.feed

        def watched(argv: Sequence[str], chunks: Iterator[bytes], **named: object) -> object:
            seen.append(argv)
            return feed(argv, chunks, **named)  # type: ignore[arg-type]

        transport.feed = watched  # type: ignore[method-assign, assignment]
        values(stage_files(cluster.hosts, transports, listed(source)))
    [argv] = seen
    assert argv[1:3] == ["-I", "-c"]
    assert not any(len(word) >= 64 and word.isalnum() for word in argv)
