"""The timeline: like things together, by one clock, and nothing forgotten."""

from __future__ import annotations

from orchestrator.report.timeline import timeline

LAUNCH = {
    "wall": 100.0, "event": "launch", "mode": "finetune", "cluster": "c", "world_size": 4,
    "hosts": [{"name": "a"}, {"name": "b"}],
}  # fmt: skip


def texts(controller=(), nodes=None, ahead=None):
    moments, _ = timeline(controller, nodes or {}, ahead or {})
    return [(round(one.wall, 1), one.tone, one.text, one.hosts) for one in moments]


def test_the_hosts_are_told_together():
    events = [{"wall": 101.0 + n, "event": "host", "host": h, "state": "sent"} for n, h in
              enumerate("ab")]  # fmt: skip
    assert texts([LAUNCH, *events]) == [
        (100.0, "plain", "launched: finetune on c, 4 ranks on 2 hosts", ()),
        (101.0, "plain", "files sent", ("a", "b")),
    ]


def test_a_failure_and_its_consequences_by_our_clock():
    failed = {"event": "process_exited", "name": "rank_1", "code": 137, "wall": 205.0}
    ended = {"event": "process_exited", "name": "rank_2", "code": 143, "collateral": True}
    nodes = {
        "a": [failed, {"event": "finished", "outcome": "failed", "wall": 206.0}],
        "b": [{**ended, "wall": 111.0}, {**ended, "name": "rank_3", "wall": 112.0}],
    }
    decision = {"wall": 106.0, "event": "decision", "action": "stop", "rule": "rank-failed",
                "evidence": {"host": "a"}}  # fmt: skip
    assert texts([decision], nodes, {"a": 100.0}) == [
        (105.0, "bad", "rank_1 failed, killed by SIGKILL (137)", ("a",)),
        (106.0, "bad", "stopping the run: rank-failed a", ()),
        (106.0, "bad", "host finished: failed", ("a",)),
        (111.0, "plain", "2 processes ended, asked by us", ("b",)),
    ]


def test_what_is_far_apart_stays_apart():
    told = {"event": "decision", "action": "tell", "rule": "x", "evidence": {}}
    assert len(texts([{**told, "wall": 1.0}, {**told, "wall": 20.0}, {**told, "wall": 500.0}])) == 2


def test_events_of_another_version_are_shown_as_they_are():
    event = {"wall": 1.0, "event": "recovered", "attempt": 2, "host": "a\x1b[2J", "deep": {"x": 1}}
    assert texts([event]) == [(1.0, "plain", "recovered, attempt 2", ("a\\x1b[2J",))]
    assert texts([{"event": "no time"}]) == []


def test_events_with_sentences_of_their_own():
    clean = {"event": "certificate", "clean": True}
    events = [
        {"wall": 1.0, "event": "replanned", "notes": ["s1 for n3", "n3 is off"]},
        {"wall": 2.0, "event": "start-spread", "spread_s": 0.4},
        {"wall": 3.0, "event": "take-over", "owner": "attach {pid} (pid 12)"},
        {"wall": 4.0, "event": "swept", "host": "a", "swept": 3},
        {"wall": 5.0, "host": "a", **clean},
        {"wall": 5.0, "host": "b", **clean},
        {"wall": 5.5, "event": "certificate", "host": "c", "clean": False},
    ]
    assert texts(events) == [
        (1.0, "warn", "planned anew: s1 for n3; n3 is off", ()),
        (2.0, "plain", "the hosts started within 0.4 s", ()),
        (3.0, "warn", "attach {pid} (pid 12) took the run over", ()),
        (4.0, "warn", "ended 3 processes that run ? had left", ("a",)),
        (5.0, "good", "nothing is left there", ("a", "b")),
        (5.5, "bad", "something of the run is left there", ("c",)),
    ]


def test_long_runs_keep_their_beginning_and_end():
    events = [{"wall": float(n), "event": f"e{n}"} for n in range(1000)]
    moments, left_out = timeline(events, {}, {})
    assert (moments[0].text, moments[-1].text) == ("e0", "e999")
    assert len(moments) + left_out == 1000
