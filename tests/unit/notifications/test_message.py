"""What is told of a run, and how each receiver wants it."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator.notifications.formats import refusal, request
from orchestrator.notifications.message import message_of, trial, what_it_is

LAUNCH = {
    "event": "launch",
    "wall": 1000.0,
    "cluster": "c12",
    "mode": "finetune",
    "world_size": 96,
    "hosts": [{}] * 12,
}
FAILED = {
    "event": "end",
    "wall": 8500.0,
    "outcome": "failed",
    "exit_status": 6,
    "cause": {"sentence": "rank 3 on node1 exited with 1\x1b[2J"},
}


@pytest.mark.parametrize(
    ("entry", "event"),
    [
        ({"event": "running"}, "start"),
        ({"event": "end", "outcome": "succeeded"}, "end"),
        ({"event": "end", "outcome": "cancelled"}, "end"),
        ({"event": "end", "outcome": "failed"}, "failure"),
        ({"event": "recovery", "sentence": "x", "next": "r1.2"}, "recovery"),
        ({"event": "recovery", "sentence": "no restart", "next": None}, None),
        ({"event": "take-over", "owner": "attach (pid 1 on ops)"}, "recovery"),
        ({"event": "take-over", "owner": "background controller (pid 1 on ops)"}, None),
        ({"event": "host", "host": "a", "state": "sent"}, None),
    ],
)
def test_which_entries_are_told(entry, event):
    assert what_it_is(entry) == event


def test_a_failure_says_what_when_why_and_what_next():
    message = message_of("r1", FAILED, LAUNCH)
    assert message is not None
    assert message.text.splitlines() == [
        "finetune r1 on c12 failed after 2 h 05 m (exit status 6)",
        r"cause: rank 3 on node1 exited with 1\x1b[2J",
        "next: glm2-orch diagnose r1",
    ]
    record = message.record()
    assert record["schema"] == 1
    assert (record["event"], record["run_id"], record["exit_status"]) == ("failure", "r1", 6)
    json.dumps(record)


def test_a_start_and_a_recovery_in_a_sentence():
    start = message_of("r1", {"event": "running", "wall": 1010.0}, LAUNCH)
    assert start is not None
    assert start.text == "finetune r1 on c12 has started: 96 ranks on 12 hosts"
    entry = {"event": "take-over", "wall": 1.0, "owner": "attach (pid 1 on ops)"}
    back = message_of("r1", entry, LAUNCH)
    assert back is not None
    assert "attach (pid 1 on ops) watches it now" in back.text
    entry = {"event": "recovery", "wall": 1.0, "sentence": "restart 1 of 3", "next": "r1.2"}
    again = message_of("r1", entry, LAUNCH)
    assert again is not None
    assert again.text == "finetune r1 on c12 goes on: restart 1 of 3, as r1.2"


def test_text_messages_of_the_three_robots():
    message = trial("c12", 0.0)
    for to in ("dingtalk", "wecom"):
        made = request(to, "https://h/robot?access_token=T", None, message, 1.0)
        assert json.loads(made.body) == {"msgtype": "text", "text": {"content": message.text}}
        assert made.url == "https://h/robot?access_token=T"
    feishu = json.loads(request("feishu", "https://h/x", None, message, 1.0).body)
    assert feishu == {"msg_type": "text", "content": {"text": message.text}}


def test_dingtalk_is_signed_in_the_url():
    made = request("dingtalk", "https://h/robot?access_token=T", "SEC1", trial("c", 0.0), 1.5)
    query = parse_qs(urlsplit(made.url).query)
    assert query["timestamp"] == ["1500"]
    # openssl: printf '1500\nSEC1' | openssl dgst -sha256 -hmac SEC1 -binary | base64
    assert query["sign"] == ["7+rn52hek3XIVZQI/H82/skYiP/0iWPMewTrfBSeznA="]
    assert b"SEC1" not in made.body
    assert "SEC1" not in made.url


def test_feishu_is_signed_in_the_body():
    body = json.loads(request("feishu", "https://h/x", "SEC1", trial("c", 0.0), 1.5).body)
    assert body["timestamp"] == "1"
    # openssl: printf '' | openssl dgst -sha256 -hmac "$(printf '1\nSEC1')" -binary | base64
    assert body["sign"] == "R85I337lYhDDjF/nltQapDHKJdvNFpZIP6fKRNNYdos="


@pytest.mark.parametrize(
    ("to", "status", "body", "again"),
    [
        ("webhook", 200, b"anything", None),
        ("webhook", 204, b"", None),
        ("webhook", 500, b"", True),
        ("webhook", 429, b"", True),
        ("webhook", 404, b"", False),
        ("webhook", 302, b"", False),
        ("dingtalk", 200, b'{"errcode":0,"errmsg":"ok"}', None),
        ("dingtalk", 200, b'{"errcode":310000,"errmsg":"sign not match"}', False),
        ("dingtalk", 200, b'{"errcode":130101}', True),
        ("feishu", 200, b'{"code":0}', None),
        ("feishu", 200, b'{"StatusCode":0,"StatusMessage":"success"}', None),
        ("feishu", 200, b'{"code":19021,"msg":"sign match fail"}', False),
        ("wecom", 200, b'{"errcode":93000}', False),
        ("wecom", 200, b'{"errcode":45009}', True),
        ("wecom", 200, b"<html>", False),
        ("wecom", 200, b"[]", False),
    ],
)
def test_what_an_answer_means(to, status, body, again):
    found = refusal(to, status, body)
    assert (None if found is None else found.again) == again
