"""Messages in the formats of the receivers, and what they answer. Pure.

Sources: "Custom robot access" of DingTalk's open platform (text messages, signing with
HMAC-SHA256 of "timestamp\\nsecret"), "Use custom bots in a group" of Feishu's (the same string
is the key there, and the text is empty), "Group robot configuration" of WeCom's. All three answer
HTTP 200 to a refused message too: their own code in the body counts.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, Dict, Optional
from urllib.parse import quote, urlsplit

from orchestrator.notifications.message import Message

_BUSY_CODES = {
    "dingtalk": (-1, 130101),
    "feishu": (9499, 11232),
    "wecom": (-1, 45009),
}
"""Codes that ask for patience: too many messages, or a system that is busy."""


@dataclass(frozen=True)
class Request:
    """An HTTP POST of JSON. ``url`` is a secret: never show it."""

    url: str
    body: bytes


@dataclass(frozen=True)
class Refusal:
    """Why a receiver did not take a message, without anything secret."""

    reason: str
    again: bool
    """Whether the same message may be taken later."""


def request(to: str, url: str, secret: Optional[str], message: Message, now: float) -> Request:
    """The request that brings ``message`` to a receiver of kind ``to``; ``now`` in seconds."""
    body: Dict[str, Any] = {"msgtype": "text", "text": {"content": message.text}}
    if to == "webhook":
        body = message.record()
    elif to == "feishu":
        body = {"msg_type": "text", "content": {"text": message.text}}
        if secret is not None:
            stamp = str(int(now))
            body = {"timestamp": stamp, "sign": _sign(f"{stamp}\n{secret}", ""), **body}
    elif to == "dingtalk" and secret is not None:
        stamp = str(int(now * 1000))
        sign = quote(_sign(secret, f"{stamp}\n{secret}"), safe="")
        join = "&" if urlsplit(url).query else "?"
        url = f"{url}{join}timestamp={stamp}&sign={sign}"
    return Request(url, json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def refusal(to: str, status: int, body: bytes) -> Optional[Refusal]:
    """What an answer says; None: the message was taken."""
    if not 200 <= status < 300:
        return Refusal(f"HTTP status {status}", again=status >= 500 or status in (408, 425, 429))
    if to == "webhook":
        return None
    try:
        answer = json.loads(body)
        code = answer.get("errcode", answer.get("code", answer.get("StatusCode")))
    except (ValueError, AttributeError):
        code = None
    if not isinstance(code, int):
        return Refusal(f"no answer of {to}: is the URL right?", again=False)
    if code == 0:
        return None
    return Refusal(f"{to} refused it with code {code}", again=code in _BUSY_CODES[to])


def _sign(key: str, text: str) -> str:
    made = hmac.new(key.encode("utf-8"), text.encode("utf-8"), hashlib.sha256)
    return base64.b64encode(made.digest()).decode("ascii")
