"""Bringing a message to its receivers: tried again for a while, bounded, and all at once.

What goes wrong is told without anything secret: neither URLs nor what a library says of them, nor
the output of a command.
"""

from __future__ import annotations

import http.client
import json
import os
import stat
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, build_opener
from urllib.request import Request as HttpRequest

from orchestrator.inventory import Notification, Secret
from orchestrator.notifications.formats import Refusal, Request, refusal, request
from orchestrator.notifications.message import Message

_LONGEST_ANSWER = 65_536


@dataclass(frozen=True)
class Patience:
    """How long a receiver is tried. Times in seconds."""

    pauses: Sequence[float] = (2.0, 10.0, 30.0)
    """Between attempts; there is one attempt more."""
    attempt_s: float = 10.0
    """One attempt over the network, or one run of a command."""
    whole_s: float = 120.0
    """After that nobody is tried any more."""


@dataclass
class Delivery:
    """How one receiver fared. ``problem`` is None when it has taken the message."""

    name: str
    attempts: int = 0
    problem: Optional[str] = None


def deliver(
    receivers: Sequence[Notification],
    message: Message,
    *,
    environ: Mapping[str, str] = os.environ,
    patience: Patience = Patience(),
    done: Callable[[Delivery], None] = lambda _: None,
) -> List[Delivery]:
    """Bring ``message`` to all ``receivers`` at once; how each fared, in their order.

    ``done`` is called as each is through, from one thread at a time. Never raises for a receiver.
    """
    box = _Box([Delivery(receiver.name, problem="no answer in time") for receiver in receivers])
    deadline = time.monotonic() + patience.whole_s

    def bring(index: int) -> None:
        fared = _bring(receivers[index], message, environ, patience, deadline)
        box.put(index, fared, done)

    threads = [
        threading.Thread(target=bring, args=(index,), name=f"notify {index}", daemon=True)
        for index in range(len(receivers))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        # A receiver that drips its answer must not hold us.
        thread.join(max(0.0, deadline + patience.attempt_s - time.monotonic()))
    return box.close(done)


@dataclass
class _Box:
    """Where the threads put how they fared, until it is closed."""

    fared: List[Delivery]
    told: Dict[int, bool] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def put(self, index: int, fared: Delivery, done: Callable[[Delivery], None]) -> None:
        with self.lock:
            if not self.closed:
                self.fared[index] = fared
                self.told[index] = True
                done(fared)

    def close(self, done: Callable[[Delivery], None]) -> List[Delivery]:
        with self.lock:
            self.closed = True
            for index, fared in enumerate(self.fared):
                if index not in self.told:
                    done(fared)
            return self.fared


class _SecretMissing(Exception):
    """A secret cannot be had; the text says why, not what it is."""


def _bring(
    receiver: Notification,
    message: Message,
    environ: Mapping[str, str],
    patience: Patience,
    deadline: float,
) -> Delivery:
    fared = Delivery(receiver.name)
    for pause in (*patience.pauses, None):
        fared.attempts += 1
        try:
            refused = _attempt(receiver, message, environ, patience)
        except _SecretMissing as error:
            refused = Refusal(str(error), again=False)
        fared.problem = None if refused is None else refused.reason
        if refused is None or not refused.again or pause is None:
            break
        if time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
    return fared


def _attempt(
    receiver: Notification, message: Message, environ: Mapping[str, str], patience: Patience
) -> Optional[Refusal]:
    if receiver.to == "command":
        return _run(receiver.command, message, environ, patience.attempt_s)
    url = _secret(receiver.url, "URL", environ)
    secret = None if receiver.secret is None else _secret(receiver.secret, "secret", environ)
    if not _is_web_url(url):
        return Refusal("its URL is no http or https URL", again=False)
    made = request(receiver.to, url, secret, message, time.time())
    return _post(receiver.to, made, patience.attempt_s)


def _is_web_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return known and text.isascii() and text.isprintable() and " " not in text


def _post(to: str, made: Request, timeout: float) -> Optional[Refusal]:
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "glm2-orch"}
    try:
        asked = HttpRequest(made.url, data=made.body, headers=headers, method="POST")
        with _opener().open(asked, timeout=timeout) as answer:
            return refusal(to, answer.status, answer.read(_LONGEST_ANSWER))
    except HTTPError as error:
        with error:
            return refusal(to, error.code, b"")
    except TimeoutError:
        return Refusal(f"no answer within {timeout:g} s", again=True)
    except URLError as error:
        # Its text may repeat the URL: only the kind of the reason is told.
        if isinstance(error.reason, TimeoutError):
            return Refusal(f"no answer within {timeout:g} s", again=True)
        why = error.reason.strerror if isinstance(error.reason, OSError) else None
        return Refusal(f"cannot connect: {why or type(error.reason).__name__}", again=True)
    except (OSError, http.client.HTTPException) as error:
        return Refusal(f"the connection broke ({type(error).__name__})", again=True)


class _NoRedirect(HTTPRedirectHandler):
    """A message is for the receiver that was named, and no other."""

    def redirect_request(self, *_args: object, **_options: object) -> None:
        return None


def _opener() -> OpenerDirector:
    return build_opener(_NoRedirect)


def _run(
    command: Sequence[str], message: Message, environ: Mapping[str, str], timeout: float
) -> Optional[Refusal]:
    variables = {
        "GLM2_ORCH_EVENT": message.event,
        "GLM2_ORCH_RUN": message.run_id,
        "GLM2_ORCH_OUTCOME": message.outcome or "",
    }
    try:
        done = subprocess.run(
            command,
            input=json.dumps(message.record(), ensure_ascii=True).encode("ascii"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environ, **variables},
            cwd="/",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return Refusal(f"the command did not end within {timeout:g} s", again=False)
    except OSError as error:
        return Refusal(f"the command cannot be run: {error.strerror}", again=False)
    if done.returncode == 0:
        return None
    return Refusal(f"the command ended with status {done.returncode}", again=True)


def _secret(source: Optional[Secret], what: str, environ: Mapping[str, str]) -> str:
    if source is None:
        raise _SecretMissing(f"it has no {what}")
    if source.env is not None:
        value = environ.get(source.env, "").strip()
        if not value:
            raise _SecretMissing(f"its {what} is missing: {source.env} is not set")
        return value
    path = Path(source.file or "")
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise _SecretMissing(f"{path} can be read by others: chmod 600 it")
        value = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise _SecretMissing(f"its {what} cannot be read from {path}: {why}") from None
    if not value:
        raise _SecretMissing(f"{path} is empty")
    return value
