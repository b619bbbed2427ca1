"""``glm2-orch init``: what it writes is read back by the other commands."""

from __future__ import annotations

import io
import json

import pytest

from orchestrator.cli.main import main


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return ended.value.code


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "home"))
    return tmp_path


def test_the_guides_servers_are_planned(folder, capsys):
    (folder / "run.sh").write_text('IP_LIST=("10.0.0.1", "10.0.0.2")\n')
    options = ("--target", "CPU", "--devices", "[0,2)", "--user", "ma-user")
    assert run("init", "--from", "run.sh", "--out", "mine.yaml", *options) == 0
    said = capsys.readouterr()
    assert said.out == "mine.yaml\n"
    assert "2 hosts" in said.err
    assert run("plan", "-i", "mine.yaml", "finetune", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [host["host"] for host in plan["hosts"]] == ["10.0.0.1", "10.0.0.2"]
    text = (folder / "mine.yaml").read_text()
    assert 'user: "ma-user"' in text
    assert text.count("#") > 10


def test_settings_of_ansible_become_those_of_hosts(folder, capsys):
    (folder / "hosts").write_text(
        "[a]\nn1 ansible_host=10.0.0.1 ansible_port=2222\nn2\n[all:vars]\nansible_user=u\n"
    )
    assert run("init", "--from", "hosts", "--json") == 0
    assert json.loads(capsys.readouterr().out)["hosts"] == ["n1", "n2"]
    text = (folder / "inventory.yaml").read_text()
    assert '"n1": {address: "10.0.0.1", ssh: {port: 2222}}' in text
    assert 'user: "u"' in text


def test_a_file_is_not_overwritten_unasked(folder, capsys):
    (folder / "inventory.yaml").write_text("mine")
    assert run("init", "--hosts", "n[1-3]") == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "inventory.yaml").read_text() == "mine"
    assert run("init", "--hosts", "n[1-3]", "--force") == 0


@pytest.mark.parametrize(
    "value", ['x"\n  setup: touch pwned\n#', "{{ 7 * 7 }}", "a: b", "~", "é\x1b[2J"]
)
def test_a_hostile_value_stays_one_value_or_is_refused(folder, capsys, value):
    status = run("init", "--hosts", "n1", "--cluster", value, "--workdir", "/w")
    capsys.readouterr()
    if status == 0:
        assert run("facts", "-i", "inventory.yaml", "--limit", "nobody") != 0
        from orchestrator.cli.request import read_inventory

        made = read_inventory("inventory.yaml", None)
        assert made.cluster == value
        assert "pwned" not in made.hosts[0].setup
    else:
        assert status == 3
        assert not (folder / "inventory.yaml").exists()


def test_standard_input_and_nothing_at_all(folder, capsys, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"n1\nn2\n")

    monkeypatch.setattr("sys.stdin", Stdin)
    assert run("init", "--from", "-") == 0
    assert run("init") == 2
    assert run("init", "--from", "missing") == 2
    assert "cannot read missing" in capsys.readouterr().err
