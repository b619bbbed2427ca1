"""Hosts from lists, bash and Ansible: read, never run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import InventoryError
from orchestrator.inventory import expand, fold, import_hosts

GUIDE = [f"192.168.0.{number}" for number in range(12)]


def names(text: str) -> list:
    return [host.name for host in import_hosts(text, "f")]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(GUIDE),
        ", ".join(GUIDE),
        "# ours\n192.168.0.[0-11]   # all\n",
        "192.168.0.[0:11] slots=8",
        "IP_LIST=(" + ", ".join(f'"{name}"' for name in GUIDE) + ")\nfor i in x; do ssh; done\n",
        "#!/bin/bash\nLOCAL=(a b)\nexport IP_LIST=(\n"
        + "\n".join(f"  '{name}' # one" for name in GUIDE)
        + "\n)\n",
        "[workers]\n" + "\n".join(GUIDE),
        "[workers]\n192.168.0.[0:11]",
        "all:\n  hosts:\n" + "".join(f"    {name}:\n" for name in GUIDE),
        "workers:\n  hosts:\n    192.168.0.[0:11]:\n",
    ],
)
def test_the_guides_hosts_in_every_form(text):
    assert names(text) == GUIDE


def test_a_list_may_name_user_and_port():
    (host,) = import_hosts("ma-user@node1:2222\n", "f")
    assert (host.name, host.settings) == ("node1", {"user": "ma-user", "port": "2222"})


def test_ansible_says_how_hosts_are_reached():
    text = (
        "[a]\nn1 ansible_host=10.0.0.1 ansible_port=2222 other=x\n[b]\nn1\nn2\n"
        "[top:children]\na\nb\n[top:vars]\nansible_user=top\n[a:vars]\nansible_user='of a'\n"
    )
    one, two = import_hosts(text, "f")
    assert one.groups == ("a", "b")
    assert one.settings["address"] == "10.0.0.1"
    assert two.settings == {"user": "top"}
    same = (
        "all:\n  children:\n    top:\n      vars: {ansible_user: top}\n      children:\n"
        "        b: {hosts: {n2: }}\n"
    )
    (host,) = import_hosts(same, "f")
    assert (host.name, host.groups, host.settings) == ("n2", ("b",), {"user": "top"})


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("", "names no host", 0),
        ("IP_LIST=()", "names no host", 0),
        ('IP_LIST=("a"\n$(touch pwned))', "'$(touch'", 2),
        ('IP_LIST=("a" `touch`)', "'`touch`'", 1),
        ('IP_LIST=("a" ... "b")', "'...'", 1),
        ("A=(a)\nB=(b)", "2 arrays", 0),
        ("a\nb;reboot", "'b;reboot'", 2),
        ("a\na", "listed twice", 2),
        ("-oProxyCommand=x", "no host name", 1),
        ("../../etc", "no host name", 1),
        ("a\x1b[2J", r"'a\x1b", 1),
        ("node[1-", "not closed", 1),
        ("[g]\nn ansible_host='{{ x }}'", "template", 2),
        ("[g:nope]\nn", "not known to Ansible", 1),
        ("g:\n  hosts: [a]\n", "must be a mapping", 2),
        ("g:\n  host: {a: }\n", "unknown key 'host'", 2),
        ("g:\n  hosts: {a: }\n  - b", "f:", 0),
        ('IP_LIST=("a)', "quot", 1),
    ],
)
def test_what_is_no_list_of_hosts_is_named_with_its_place(text, said, line):
    with pytest.raises(InventoryError) as refused:
        import_hosts(text, "f")
    assert said in str(refused.value)
    assert "\x1b" not in str(refused.value)
    if line:
        assert refused.value.location is not None
        assert refused.value.location.line == line
        assert refused.value.hint


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(
    st.lists(
        st.builds(
            "{}{}".format,
            st.sampled_from(["n", "192.168.0.", "node0", "a-1-", ""]),
            st.one_of(st.integers(0, 120).map(str), st.sampled_from(["007", "08", "09", "x"])),
        ).filter(bool),
        max_size=30,
    )
)
def test_folded_names_unfold_to_the_same(listed):
    assert [name for pattern in fold(listed) for name in expand(pattern)] == listed


def test_the_guides_list_folds_into_one_pattern():
    assert fold(GUIDE) == ["192.168.0.[0-11]"]


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = 'touch pwned\nIP_LIST=("a" "b")\n$(touch pwned)\n`touch pwned`\n'
    assert names(text) == ["a", "b"]
    assert list(Path().iterdir()) == []
