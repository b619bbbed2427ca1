"""The known_hosts format: names, ports, hashes, patterns, markers; and that changes are seen."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.transport.known_hosts import fingerprint, load_known_hosts

A, B, C = (base64.b64encode(bytes([n]) * 20).decode() for n in (1, 2, 3))
names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)


def keys(tmp_path: Path, text: str, address: str, port: int = 22) -> list[str]:
    file = tmp_path / "known_hosts"
    file.write_text(text)
    found = load_known_hosts([file]).keys_of(address, port)
    return [base64.b64encode(key.blob).decode() for key in found]


def hashed(name: str, salt: bytes) -> str:
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def test_names_types_and_places(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"# comment\n\nNode1,10.0.0.1 ssh-ed25519 {A} someone\nnode1 ssh-rsa {B}\n")
    known = load_known_hosts([file])
    first, second = known.keys_of("node1", 22)
    assert (first.type, first.place) == ("ssh-ed25519", f"{file}:3")
    assert (second.type, second.place) == ("ssh-rsa", f"{file}:4")
    assert [key.type for key in known.keys_of("10.0.0.1", 22)] == ["ssh-ed25519"]
    assert known.keys_of("node10", 22) == []


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        (f"[n]:2222 ssh-ed25519 {A}\nn ssh-ed25519 {B}\n", 2222, [A]),
        (f"[n]:2222 ssh-ed25519 {A}\nn ssh-ed25519 {B}\n", 22, [B]),
        (f"[n]:2222 ssh-ed25519 {A}\n", 22, []),
        (f"[n]:2222 ssh-ed25519 {A}\n", 2223, []),
        (f"n ssh-ed25519 {B}\n", 2222, [B]),  # as OpenSSH: an entry without a port serves too
    ],
)
def test_ports(tmp_path: Path, text: str, port: int, expected: list[str]) -> None:
    assert keys(tmp_path, text, "n", port) == expected


@pytest.mark.parametrize(
    ("patterns", "address", "matches"),
    [
        ("node*", "node17", True),
        ("node?", "node17", False),
        ("node*,!node13", "node13", False),
        ("node*,!node13", "node12", True),
        ("!node13", "node12", False),
        ("10.0.0.*", "10.0.0.9", True),
        ("10.0.0.*", "10x0.0.9", False),
        ("n[1]*", "n1", False),  # no character classes in this format
    ],
)
def test_patterns(tmp_path: Path, patterns: str, address: str, matches: bool) -> None:
    found = keys(tmp_path, f"{patterns} ssh-ed25519 {A}\n", address)
    assert found == ([A] if matches else [])


def test_a_pattern_may_match_the_port_form(tmp_path: Path) -> None:
    assert keys(tmp_path, f"[10.0.0.*]:2222 ssh-ed25519 {A}\n", "10.0.0.7", 2222) == [A]


def test_revoked_keys_are_known_as_such_and_serve_no_host(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"@revoked * ssh-ed25519 {A}\nn ssh-ed25519 {B}\n")
    known = load_known_hosts([file])
    assert known.revoked == {base64.b64decode(A)}
    assert [key.blob for key in known.keys_of("n", 22)] == [base64.b64decode(B)]


@pytest.mark.parametrize(
    "line",
    [
        f"@cert-authority n ssh-ed25519 {A}",
        "n ssh-ed25519",
        "n ssh-ed25519 !!!notbase64",
        f"|1|broken ssh-ed25519 {A}",
        f"|1|!|! ssh-ed25519 {A}",
        "n",
    ],
)
def test_lines_that_say_nothing_usable_are_passed_over(tmp_path: Path, line: str) -> None:
    assert keys(tmp_path, f"{line}\nn ssh-ed25519 {B}\n", "n") == [B]


def test_an_authority_vouches_for_the_hosts_it_names_and_is_the_key_of_none(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"@cert-authority *.cluster,[gate]:2222,!bad.cluster ssh-ed25519 {A}\n")
    known = load_known_hosts([file])
    for address, port in (("n1.cluster", 22), ("n1.cluster", 2222), ("gate", 2222)):
        authority = known.authority_of(address, port)
        assert authority is not None
        assert authority.place == f"{file}:1"
        assert known.keys_of(address, port) == []
    assert known.authority_of("gate", 22) is None
    assert known.authority_of("bad.cluster", 22) is None


@given(known=names, other=names, salt=st.binary(min_size=20, max_size=20))
def test_a_hashed_name_is_found_by_that_name_only(
    tmp_path_factory: pytest.TempPathFactory, known: str, other: str, salt: bytes
) -> None:
    text = f"{hashed(known, salt)} ssh-ed25519 {A}\n"
    folder = tmp_path_factory.mktemp("hashed")
    assert keys(folder, text, known) == [A]
    assert keys(folder, text, other) == ([A] if other == known else [])


def test_files_hashed_by_ssh_keygen_are_understood(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    file = tmp_path / "known_hosts"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True
    )
    public = (tmp_path / "key.pub").read_text()
    file.write_text(f"node1 {public}[node2]:2222 {public}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "node" not in file.read_text()
    known = load_known_hosts([file])
    shown = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "key.pub"], check=True, capture_output=True, text=True
    ).stdout
    assert known.keys_of("node1", 22)[0].fingerprint in shown
    assert len(known.keys_of("node2", 2222)) == 1
    assert known.keys_of("node2", 22) == []


def test_a_file_is_parsed_once_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"n ssh-ed25519 {A}\n")
    first = load_known_hosts([file])
    assert load_known_hosts([file]) is first
    file.write_text(f"n ssh-ed25519 {B}\n")
    os.utime(file, ns=(1, 1))
    assert load_known_hosts([file]).keys_of("n", 22)[0].blob == base64.b64decode(B)


def test_missing_files_know_no_hosts(tmp_path: Path) -> None:
    assert load_known_hosts([tmp_path / "none", tmp_path / "nor-this"]).keys_of("n", 22) == []


def test_several_files_are_read_in_order(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    for file, key in zip(files, (A, C)):
        file.write_text(f"n ssh-ed25519 {key}\n")
    assert [key.place for key in load_known_hosts(files).keys_of("n", 22)] == [
        f"{files[0]}:1",
        f"{files[1]}:1",
    ]


def test_the_fingerprint_is_that_of_openssh() -> None:
    assert fingerprint(b"") == "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
