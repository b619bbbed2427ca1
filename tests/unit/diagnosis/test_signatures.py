"""The table: what is in it, what is wrong with one of a user, what wins."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.diagnosis.signatures import (
    ROLES,
    SignatureError,
    SignatureTable,
    builtin_file,
    load_table,
    parse,
    read_file,
)

ENTRY = """\
schema: 1
signatures:
  - id: ours
    regex: 'quota of team \\d+ is used up'
    role: root
    meaning: the quota is used up
    remedy: ask for more
"""


def test_every_entry_of_the_table_is_told_in_full(table):
    for signature in table.signatures:
        assert signature.role in ROLES
        for text in (signature.meaning, signature.cause, signature.remedy, signature.source):
            assert text, signature.id
    assert len(table.signatures) >= 60


def test_inner_codes_are_never_answers(table):
    for code in ("EZ9999", "E19999", "EE9999", "EH9999", "EI9999"):
        signature, _ = table.find(f"{code}: Inner Error!")
        assert signature.role == "generic"


@pytest.mark.parametrize("code", ["EI0002", "EI0006", "EI0009", "EE1002"])
def test_codes_of_waiting_are_symptoms(table, code):
    signature, _ = table.find(f"{code}: [PID: 3] 2025-04-08-18:07:20.444.436 text")
    assert (signature.id, signature.role) == (code, "symptom")


def test_a_code_that_the_table_does_not_know_is_told(table):
    signature, _ = table.find("EI0077: 2025-04-08-18:07:20.444.436 something new")
    assert (signature.id, signature.role) == ("EI0077", "root")
    line = "[PID: 210907] 2026-04-09-21:56:40.384.694 New_Error(EK0001): text"
    assert table.find(line)[0].id == "EK0001"
    assert table.shape(line.encode()) is not None


def test_a_quiet_line_counts_only_where_the_entry_says_so(table):
    assert table.find("a Permission denied", quiet=True) is None
    assert table.find("a Permission denied")[0].id == "permission"
    assert table.find("No space left on device", quiet=True)[0].id == "disk-full"


@pytest.mark.parametrize("number", ["107001", "107020", "507033", "507011", "1343225860"])
def test_a_process_id_is_not_an_error_code(table, number):
    line = f"[ERROR] DEVICE({number},ff,python):2023-11-20-15:34:32.886.561 [x.cc:{number}] y] ok"
    assert table.find(line) is None
    assert table.find(f"call failed, error code {number}") is not None


def test_a_table_of_the_user_comes_first(tmp_path, table):
    ours = tmp_path / "ours.yaml"
    ours.write_text(ENTRY)
    mixed = load_table([ours])
    line = "No space left on device, the quota of team 7 is used up"
    assert table.find(line)[0].id == "disk-full"
    assert mixed.find(line)[0].id == "ours"
    assert len(mixed.signatures) == len(table.signatures) + 1


def test_an_entry_of_the_user_replaces_one_of_the_same_id(tmp_path, table):
    ours = tmp_path / "ours.yaml"
    ours.write_text(ENTRY.replace("id: ours", "id: disk-full"))
    mixed = load_table([ours])
    assert mixed["disk-full"].remedy == "ask for more"
    assert len(mixed.signatures) == len(table.signatures)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("role: root", "role: cause"), "no known role"),
        (("id: ours", "id: 'a b'"), "needs an `id`"),
        (("meaning:", "meening:"), "did you mean `meaning`?"),
        (("remedy: ask for more", "remedy:"), "says no `remedy`"),
        (("regex: 'quota", "regex: '(quota"), "is not valid"),
        (("regex: 'quota", "regex: '(?i)quota"), "write (?i:…)"),
        (("regex: 'quota", "regex: '(?P<who>quota)"), "has a group 'who'"),
        (("regex: 'quota", "regex: '(q)uota\\1"), "refers back"),
        (("regex: 'quota", "regex: '(?!9)quota"), "negative look-around"),
        (("regex: 'quota of team \\d+ is used up'", "regex: '.*'"), "fits every line"),
        (("regex: 'quota of team \\d+ is used up'", "regex: []"), "needs a `regex`"),
        (("role: root", "role: root\n    wraps: 7"), "not true or false"),
        (("schema: 1", "schema: 2"), "not a table of signatures"),
        (("signatures:", "signatures: 7 #"), "ours.yaml:"),
        (("  - id: ours", "  - 7\n  - id: ours"), "not a mapping"),
    ],
)
def test_a_wrong_table_is_explained(change, said):
    text = ENTRY.replace(*change)
    assert text != ENTRY
    with pytest.raises(SignatureError) as caught:
        parse(text, "ours.yaml")
    shown = f"{caught.value} {caught.value.hint}"
    assert said in shown
    assert "ours.yaml" in shown


def test_the_same_id_twice_is_wrong():
    item = ENTRY.partition("signatures:\n")[2]
    with pytest.raises(SignatureError, match="twice"):
        parse(ENTRY + item, "ours.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SignatureError, match="cannot read"):
        read_file(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"schema: 1 # \xff\xfe")
    with pytest.raises(SignatureError, match="UTF-8"):
        read_file(tmp_path / "latin.yaml")


LINES = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        [
            "EI0006: x",
            "error code 507033",
            "crimer rank [1.2.3.4/5] status[LOST]",
            "8812 Killed",
            "Killed",
            "KeyError: 3",
            "socket type[1], listen on x fail",
            "step:[ 3/ 9] loss: nan",
            "[1,3]<stderr>:KeyError: 3",
        ]
    ),
)


@given(LINES, st.text(max_size=10))
def test_no_line_that_fits_is_passed_over(table, line, around):
    """``shape`` is only a quick look: what it refuses, no signature fits."""
    text = (line + around).split("\n")[0]
    if table.find(text) is not None:
        assert table.shape(text.encode("utf-8", "replace")) is not None


@given(st.from_regex(re.compile(r"[a-c0-9]{1,4}(\d|[1-5]|\w{1,2}|x\d{2})+", re.A), fullmatch=True))
def test_the_quick_look_knows_every_digit(text):
    for pattern in (r"[a-c0-9]{1,4}(?:\d|[1-5]|\w{1,2}|x\d{2})+", re.escape(text), r"\b3\d|7"):
        entry = ENTRY.replace("quota of team \\d+ is used up", pattern.replace("'", "''"))
        own = SignatureTable(parse(entry, "x"))
        if own.find(text) is not None:
            assert own.shape(text.encode()) is not None


def test_the_shipped_table_is_found():
    assert builtin_file().is_file()
