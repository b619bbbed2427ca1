"""The host keys we know: OpenSSH's ``known_hosts`` files, parsed once a file and version.

Format: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". Paramiko's own reader is quadratic in the length
of the file and knows neither patterns nor ``@revoked``. Certificates of hosts cannot be checked
with it: a line ``@cert-authority`` only serves to say so.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Dict, FrozenSet, List, Optional, Sequence, Tuple

from orchestrator.inventory import Host

DEFAULT_FILES = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True)
class HostKey:
    """A public key as it stands in the file, and where it stands."""

    type: str
    blob: bytes
    place: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.blob)


@dataclass(frozen=True)
class KnownHosts:
    """What the files say about all hosts."""

    exact: Dict[str, Tuple[HostKey, ...]]
    hashed: Tuple[Tuple[bytes, bytes, HostKey], ...]
    """(salt, HMAC-SHA1 of the name, key) of entries whose names are hashed."""
    patterns: Tuple[Tuple[Tuple[str, ...], HostKey], ...]
    """Entries with wildcards or negation."""
    revoked: FrozenSet[bytes]
    authorities: Tuple[Tuple[Tuple[str, ...], HostKey], ...]
    """Keys of certificate authorities, and the patterns of the hosts that they vouch for."""

    def keys_of(self, address: str, port: int) -> List[HostKey]:
        """All keys known for a server, in the order of the files.

        As OpenSSH does, an entry without a port also serves when there is none for the port.
        """
        name = address.lower()
        if port != 22:
            return self._lookup(f"[{name}]:{port}") or self._lookup(name)
        return self._lookup(name)

    def authority_of(self, address: str, port: int) -> Optional[HostKey]:
        """The certificate authority that vouches for a server, if any."""
        name = address.lower()
        written = (name,) if port == 22 else (f"[{name}]:{port}", name)
        found = (key for names, key in self.authorities if any(_matches(w, names) for w in written))
        return next(found, None)

    def _lookup(self, name: str) -> List[HostKey]:
        found = list(self.exact.get(name, ()))
        encoded = name.encode("utf-8")
        found += [
            key
            for salt, digest, key in self.hashed
            if hmac.compare_digest(hmac.new(salt, encoded, hashlib.sha1).digest(), digest)
        ]
        found += [key for patterns, key in self.patterns if _matches(name, patterns)]
        return found


def known_hosts_files(host: Host) -> List[Path]:
    """The files that say which keys the host may have: the inventory's, else the usual ones."""
    names = (host.ssh.known_hosts,) if host.ssh.known_hosts else DEFAULT_FILES
    return [Path(name).expanduser() for name in names]


def load_known_hosts(files: Sequence[Path]) -> KnownHosts:
    """Read the files; one that does not exist knows no hosts. Raises OSError for other problems."""
    versions = []
    for file in files:
        try:
            stat = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        versions.append((file, stat.st_mtime_ns, stat.st_size))
    return _load(tuple(versions))


def fingerprint(blob: bytes) -> str:
    """As ``ssh-keygen -l`` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


@lru_cache(maxsize=32)
def _load(versions: Tuple[Tuple[Path, int, int], ...]) -> KnownHosts:
    exact: Dict[str, List[HostKey]] = {}
    hashed: List[Tuple[bytes, bytes, HostKey]] = []
    patterns: List[Tuple[Tuple[str, ...], HostKey]] = []
    authorities: List[Tuple[Tuple[str, ...], HostKey]] = []
    revoked = set()
    for file, _, _ in versions:
        text = file.read_text("utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            fields = line.split()
            marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
            if len(fields) < 3 or fields[0].startswith("#"):
                continue
            try:
                blob = base64.b64decode(fields[2], validate=True)
                salt_and_digest = _hashed_name(fields[0])
            except ValueError:
                continue  # a damaged line makes its host unknown, and that is reported
            key = HostKey(fields[1], blob, f"{file}:{number}")
            names = tuple(fields[0].lower().split(","))
            if marker == "@revoked":
                revoked.add(blob)
            elif marker == "@cert-authority":
                authorities.append((names, key))
            elif salt_and_digest is not None:
                hashed.append((*salt_and_digest, key))
            elif any(set(name) & set("*?!") for name in names):
                patterns.append((names, key))
            else:
                for name in names:
                    exact.setdefault(name, []).append(key)
    return KnownHosts(
        {name: tuple(keys) for name, keys in exact.items()},
        tuple(hashed),
        tuple(patterns),
        frozenset(revoked),
        tuple(authorities),
    )


def _hashed_name(field: str) -> Optional[Tuple[bytes, bytes]]:
    """Salt and digest of ``|1|SALT|DIGEST``; None for a name in clear text."""
    if not field.startswith("|1|"):
        return None
    salt, digest = field[3:].split("|")
    return base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """At least one pattern matches and no negated one does."""
    if any(p.startswith("!") and _glob(p[1:]).fullmatch(name) for p in patterns):
        return False
    return any(not p.startswith("!") and _glob(p).fullmatch(name) for p in patterns)


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` only: brackets are part of ``[host]:port``."""
    return re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."))
