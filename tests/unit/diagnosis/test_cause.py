"""The rules, one by one, on a few ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.diagnosis.cause import first_cause
from orchestrator.diagnosis.evidence import Case, Process
from orchestrator.diagnosis.exits import with_exit
from orchestrator.diagnosis.reading import read_text
from orchestrator.diagnosis.report import block, headline, record, who

OOM = "EL0004: {} Failed to allocate memory"
WAIT = "EI0006: {} Getting socket times out"
RDMA = "EI0013: {} An error CQE occurred"
OK = "{} - mindformers - INFO - all is well"


def at(second):
    return f"2024-01-01-00:{second // 60:02d}:{second % 60:02d}.000.000"


@pytest.fixture
def rank(table):
    """A rank with lines such as (second, OOM)."""

    def make(number, *lines, host="", **fields):
        text = "\n".join(line.format(at(second)) for second, line in lines)
        evidence = read_text(text.encode(), table, name=f"rank_{number}.log")
        made = Process(f"rank_{number}", number, host, (evidence,), **fields)
        return with_exit(made, table)

    return make


def judge(*processes, size=None, **fields):
    return first_cause(Case(processes, size or len(processes), **fields))


def told(answer):
    return (answer.rule, [p.rank for p in answer.who], answer.signature and answer.signature.id)


def test_root_beats_symptom_even_when_it_is_later(rank):
    answer = judge(rank(0, (5, WAIT)), rank(1, (9, OOM)), rank(2, (5, WAIT)))
    assert told(answer) == ("own-error", [1], "EL0004")


def test_the_earliest_root_is_first_and_the_same_error_is_told_along(rank):
    answer = judge(rank(0, (8, OOM)), rank(1, (5, OOM)), rank(2, (90, OOM)))
    assert told(answer) == ("own-error", [1, 0], "EL0004")
    assert who(answer) == "ranks 0-1"


def test_clocks_are_corrected(rank):
    late = rank(0, (5, "EJ0001: {} x"), clock_ahead=-10.0, host="a")
    first = rank(1, (9, OOM), clock_ahead=0.0, host="b")
    assert told(judge(late, first, clocks_known=True)) == ("own-error", [1], "EL0004")
    assert told(judge(replace(late, clock_ahead=0.0), first))[1] == [0]


def test_a_rank_that_we_ended_is_collateral_and_told_in_a_note(rank):
    answer = judge(rank(0, (3, OOM), ended_by_us=True), rank(1, (5, WAIT)), rank(2, (6, WAIT)))
    assert told(answer) == ("symptom", [1], "EI0006")
    assert answer.collateral == ("0",)
    assert any("rank 0 was ended by us, but had logged EL0004" in note for note in answer.notes)


def test_a_rank_that_somebody_asked_to_end_is_not_the_cause(rank):
    answer = judge(rank(0, (3, "{} received SIGTERM")), rank(1, (5, WAIT)), rank(2, (6, WAIT)))
    assert told(answer) == ("symptom", [1], "EI0006")


def test_the_silent_rank_is_the_suspect(rank):
    answer = judge(rank(0, (5, WAIT)), rank(1, (2, OK)), rank(2, (5, WAIT)))
    assert told(answer) == ("vanished", [1], "vanished")
    assert answer.silent == (1,)


def test_a_rank_without_a_log_is_the_suspect(rank):
    answer = judge(rank(0, (5, WAIT)), rank(2, (5, WAIT)), size=3)
    assert told(answer) == ("vanished", [1], "vanished")
    assert "no log" in answer.reason


def test_when_most_are_silent_silence_tells_nothing(rank):
    answer = judge(rank(0, (5, WAIT)), rank(1, (2, OK)), rank(2, (3, OK)), rank(3))
    assert told(answer) == ("symptom", [0], "EI0006")


def test_a_vanished_rank_beats_a_broken_transfer(rank):
    answer = judge(rank(0, (5, RDMA)), rank(1, (2, OK)), rank(2, (5, WAIT)), rank(3, (5, WAIT)))
    assert told(answer) == ("vanished", [1], "vanished")
    answer = judge(rank(0, (5, RDMA)), rank(1, (6, WAIT)), rank(2, (5, WAIT)))
    assert told(answer) == ("peer-error", [0], "EI0013")


def test_a_rank_that_still_runs_is_not_silent(rank):
    answer = judge(rank(0, (5, WAIT)), rank(1, (2, OK), running=True), rank(2, (5, WAIT)))
    assert told(answer) == ("symptom", [0], "EI0006")


def test_others_name_the_culprit(rank):
    lost = "[INFO] HCCL(1,p):{} [h.cc:9] local rank [a/0]: crimer rank [b/7] status[LOST] by [a/0]"
    logs = (rank(0, (5, lost), (9, WAIT)), rank(1, (2, OK)), rank(2, (9, WAIT)))
    answer = judge(*logs, devices={("b", 7): 1})
    assert told(answer) == ("named", [1], "heartbeat")
    assert "rank 0" in answer.reason
    unknown = judge(*logs)
    assert told(unknown) == ("named", [1], "heartbeat")
    assert unknown.reason == "named by rank 0, as device 7 of b; it alone is silent"
    alone = judge(logs[0], size=3)
    assert (alone.rule, alone.device) == ("named", ("b", 7))
    assert who(alone) == "device 7 of b"


def test_a_device_is_counted_from_another_of_its_server(rank):
    lost = "[INFO] HCCL(1,p):{} [h.cc:9] local rank [b/1]: crimer rank [b/0] status[LOST] by [b/1]"
    answer = judge(rank(0, (9, WAIT)), rank(1, (9, WAIT)), rank(2, (2, OK)), rank(3, (5, lost)))
    assert told(answer) == ("named", [2], "heartbeat")
    assert "named by rank 3" in answer.reason


def test_a_culprit_that_we_ended_is_a_note(rank):
    lost = "[INFO] HCCL(1,p):{} [h.cc:9] local rank [a/0]: crimer rank [b/7] status[STUCK] by [a/0]"
    logs = (rank(0, (5, lost), (9, WAIT)), rank(1, (2, OK), ended_by_us=True), rank(2, (9, WAIT)))
    answer = judge(*logs, devices={("b", 7): 1})
    assert [p.rank for p in answer.who] == [0]
    assert any("others name rank 1" in note for note in answer.notes)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(137, "killed"), (139, "crash"), (134, "crash")],
)
def test_a_signal_that_we_did_not_send_is_the_cause(rank, code, expected):
    answer = judge(
        rank(0, (5, WAIT), exit_code=1, exit_time=1704067206.0),
        rank(1, (2, OK), exit_code=code, exit_time=1704067204.0),
        rank(2, (3, OK), exit_code=137, exit_time=1704067203.0, ended_by_us=True),
    )
    assert told(answer) == ("own-error", [1], expected)


def test_an_exit_without_a_known_line_is_told_as_it_is(rank):
    answer = judge(rank(0, (2, OK), exit_code=143, ended_by_us=True), rank(1, (2, OK), exit_code=3))
    assert (answer.rule, answer.signature) == ("exit", None)
    assert headline(answer) == "rank 1: failed first, its log does not say why"


def test_inner_errors_are_never_the_answer(rank):
    answer = judge(rank(0, (5, "EZ9999: {} Inner Error!")), rank(1, (6, "EE9999: {} x")))
    assert answer.signature is None
    answer = judge(rank(0, (1, "EZ9999: {} Inner Error!"), (1, WAIT)), rank(1, (6, OOM)))
    assert told(answer) == ("own-error", [1], "EL0004")


def test_a_given_up_host_is_the_cause(rank):
    logs = (rank(0, (5, OK), host="a"), rank(1, (9, OK), host="b", ended_by_us=True))
    answer = judge(*logs, lost_hosts={"a": "a was not heard of for too long"})
    assert (answer.rule, headline(answer)) == ("host-lost", "a was not heard of for too long")


def test_an_error_that_was_overcome_does_not_count(rank):
    step = "{} - mindformers - INFO - step:[ 1/ 9], loss:[3.1]"
    answer = judge(rank(0, (1, OOM), (30, step)), rank(1, (60, "EJ0001: {} x")))
    assert told(answer) == ("own-error", [1], "EJ0001")


def test_what_follows_a_complaint_is_a_consequence(rank):
    answer = judge(rank(0, (5, WAIT), (40, "PermissionError: x {}")), rank(1, (50, OOM)))
    assert told(answer) == ("own-error", [1], "EL0004")


def test_a_python_error_that_only_wraps_a_complaint_is_none(rank):
    wrapped = [(5, "RuntimeError: allreduce failed"), (5, WAIT)]
    answer = judge(rank(0, *wrapped), rank(1, (9, "KeyError: 'x'")))
    assert told(answer) == ("own-error", [1], "python-error")


def test_the_same_message_of_many_ranks_is_one_line(rank):
    answer = judge(rank(9, (1, OOM)), *(rank(n, (n, WAIT)) for n in range(2, 8)), size=10)
    shown = [line for line in block(answer) if "EI0006" in line]
    assert len(shown) == 1
    assert shown[0].startswith("  [2-7] 00:00:02.000 rank_2.log:1: EI0006")


def test_an_exception_is_told_by_its_own_words(rank):
    answer = judge(rank(0, (1, "KeyError: 'input_ids'")), rank(1, (2, OK)))
    assert headline(answer) == "rank 0: KeyError: 'input_ids'"


def test_nothing_found_is_said(rank):
    answer = judge(rank(0, (1, OK)), rank(1, (2, OK)))
    assert not answer.found
    assert block(answer) == ["first cause: no cause was found in the logs"]
    assert record(answer)["code"] is None


def test_the_block_says_who_when_and_what_to_do(rank):
    answer = judge(rank(5, (9, OOM), host="node1", clock_ahead=2.5), clocks_known=True)
    lines = block(answer)
    assert lines[0] == (
        "first cause: rank 5 on node1: EL0004, memory of the device could not be allocated"
    )
    assert any("2024-01-01 00:00:06.500 (the clock of node1 is 2.5 s ahead" in x for x in lines)
    assert any("npu-smi" in line and line.startswith("  do") for line in lines)
    assert record(answer)["time"] == "2024-01-01 00:00:06.500"


LINES = st.lists(
    st.tuples(st.integers(0, 3000), st.sampled_from([OOM, WAIT, RDMA, OK, "KeyError: {}"])),
    max_size=4,
)


@given(st.lists(st.tuples(LINES, st.booleans(), st.sampled_from([None, 0, 1, 137])), max_size=6))
def test_laws(table, ranks):
    """No rank that we ended is named; the order in which logs are given changes nothing."""
    processes = []
    for number, (lines, ended, code) in enumerate(ranks):
        text = "\n".join(line.format(at(second)) for second, line in lines)
        log = read_text(text.encode(), table, name=f"rank_{number}.log")
        process = Process(f"rank_{number}", number, "", (log,), ended_by_us=ended, exit_code=code)
        processes.append(with_exit(process, table))
    answer = first_cause(Case(tuple(processes), len(processes) or None))
    assert not any(process.ended_by_us for process in answer.who)
    backwards = first_cause(Case(tuple(reversed(processes)), len(processes) or None))
    assert told(backwards) == told(answer)
    assert backwards.time == answer.time
