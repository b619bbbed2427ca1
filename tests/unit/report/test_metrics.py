"""Metrics: the documented set, valid text, whole files, an endpoint."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import cli, main
from orchestrator.report.metrics import CATALOGUE, exposition, markdown
from orchestrator.report.reading import RunReader
from orchestrator.resources import resource_dir
from orchestrator.runs.layout import RunPaths
from tests.unit.report.made_run import START, made_run

NAMES = {metric.name: metric for metric in CATALOGUE}
_SAMPLE = re.compile(r'([a-z_0-9]+)\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)')
_LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"')


def parsed(text: str) -> Dict[Tuple[str, Tuple[Tuple[str, str], ...]], float]:
    """A strict reader of the format: families whole and in one piece, no sample twice."""
    found: Dict[Tuple[str, Tuple[Tuple[str, str], ...]], float] = {}
    seen: List[str] = []
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert name not in seen
            seen.append(name)
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {seen[-1]} {NAMES[seen[-1]].kind}"
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match.group(1) == seen[-1]
            labels = tuple(_LABEL.findall(match.group(2)))
            assert tuple(name for name, _ in labels) == NAMES[seen[-1]].labels
            key = (seen[-1], labels)
            assert key not in found
            found[key] = float(match.group(3))
    return found


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    decisions = [{"action": "tell", "rule": "straggler", "evidence": {}}] * 2
    made = made_run(
        tmp_path, slow_hosts=[3], failed_rank=17, ended="failed", nan_at=60, decisions=decisions
    )
    with made.metrics("rank_0").open("a") as stream:
        stream.write(json.dumps({"schema": 1, "result": {"rouge-1": 0.31}, "wall": 1.0}) + "\n")
    return made


def test_every_metric_has_its_samples(paths):
    shot = RunReader(paths).read()
    found = parsed(exposition(shot, START + 200))
    run = ("run", paths.run_id)
    rank17 = (run, ("host", "192.168.0.2"), ("rank", "17"))
    assert found["glm2_run_status", (run, ("status", "failed"))] == 1
    assert found["glm2_run_status", (run, ("status", "running"))] == 0
    assert found["glm2_run_ranks", (run, ("status", "stopped"))] == 95
    assert found["glm2_run_exit_status", (run,)] == 6
    assert found["glm2_run_decisions_total", (run, ("rule", "straggler"))] == 2
    assert found["glm2_run_result", (run, ("name", "rouge-1"))] == 0.31
    assert found["glm2_rank_exit_code", rank17] == 137
    assert found["glm2_rank_step", rank17] == 60
    assert math.isnan(found["glm2_rank_loss", rank17])
    assert found["glm2_rank_overflow", rank17] == 0
    assert found["glm2_rank_slow_ratio", (run, ("host", "192.168.0.3"), ("rank", "24"))] > 1.3
    running = replace(shot, state=replace(shot.state, status=type(shot.state.status)("running")))
    names = {name for name, _ in found} | {
        name for name, _ in parsed(exposition(running, START + 200))
    }
    assert names - {"glm2_run_loss"} == set(NAMES) - {"glm2_run_loss"}, "a NaN has no median"


def test_the_reference_parser_agrees(paths):
    parser = pytest.importorskip(
        "prometheus_client.parser", reason="prometheus_client is not installed"
    )
    text = exposition(RunReader(paths).read(), START + 200)
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    ours = {(name, tuple(sorted(labels))): value for (name, labels), value in parsed(text).items()}
    assert theirs.keys() == ours.keys()
    assert all(
        theirs[key] == ours[key] or (math.isnan(theirs[key]) and math.isnan(ours[key]))
        for key in theirs
    )


def test_hostile_names_stay_in_their_label(tmp_path):
    names = ['a"} 1\nglm2_rank_up{run="x', "back\\slash", "\x1b[31m"]
    text = exposition(
        RunReader(made_run(tmp_path, host_names=names, per_host=1)).read(), START + 200
    )
    assert len([line for line in text.splitlines() if line.startswith("glm2_rank_up")]) == 3
    parsed(text)


def test_the_documentation_lists_the_set():
    text = Path(__file__).parents[3].joinpath("docs", "metrics.md").read_text("utf-8")
    assert markdown() in text
    assert _foreign(text) == set()


def test_the_dashboard_shows_metrics_that_exist():
    board = json.loads((resource_dir("templates") / "grafana-dashboard.json").read_text("utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["query"]["query"] for one in board["templating"]["list"] if one["name"] == "run"]
    assert len(asked) > 15
    assert all(re.search(r"glm2_\w+", expression) for expression in asked)
    assert _foreign("\n".join(asked)) == set()
    for expression in asked:
        used = set(re.findall(r"[{,] ?(\w+)=", expression))
        used |= {w for part in re.findall(r"by \(([^)]*)\)", expression) for w in part.split(", ")}
        for name in re.findall(r"glm2_\w+", expression):
            assert used <= set(NAMES[name].labels), expression
    for panel in board["panels"]:
        names = re.findall(r"glm2_\w+", panel["targets"][0]["expr"])
        for label in re.findall(r"\{\{(\w+)\}\}", panel["targets"][0]["legendFormat"]):
            assert label in NAMES[names[0]].labels


def _foreign(text: str) -> set:
    return set(re.findall(r"glm2_(?:run|host|rank)_\w+", text)) - set(NAMES)


def test_the_textfile_is_replaced_as_a_whole(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    target = tmp_path / "out" / "glm2.prom"
    answer = CliRunner().invoke(cli, ["metrics", "--textfile", str(target)])
    assert "cannot write" in str(answer.exception)
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o600)
    answer = CliRunner().invoke(cli, ["metrics", "--textfile", str(target), "--every", "60"])
    assert (answer.exit_code, answer.output) == (0, ""), "the run is over: written once"
    assert parsed(target.read_text())
    assert target.stat().st_mode & 0o777 == 0o644, "node_exporter is another user"
    assert [entry.name for entry in target.parent.iterdir()] == ["glm2.prom"]


def test_the_endpoint(paths, tmp_path):
    env = {**os.environ, "GLM2_ORCH_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "orchestrator.cli.main", "metrics", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=env, text=True) as process:
        try:
            assert process.stderr is not None
            address = re.search(r"http://\S+(?=/metrics)", process.stderr.readline())
            assert address is not None
            with urllib.request.urlopen(address.group() + "/metrics", timeout=30) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                assert parsed(answer.read().decode())
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                urllib.request.urlopen(address.group() + "/", timeout=30)
            refused.value.close()
            for run in (tmp_path / "runs").iterdir():
                (run / "journal.jsonl").unlink()
            with pytest.raises(urllib.error.HTTPError, match="503") as refused:
                urllib.request.urlopen(address.group() + "/metrics", timeout=30)
            refused.value.close()
        finally:
            process.terminate()
            process.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "9400"], "no address and port"),
        (["--listen", "127.0.0.1:99999"], "no address and port"),
        (["--listen", "192.0.2.1:9400"], "cannot listen on"),
        (["--every", "5"], "--every needs --textfile"),
        (["--rank", "0"], "--rank needs --tensorboard"),
        (["--listen", "127.0.0.1:0", "--textfile", "x"], "exclude each other"),
    ],
)
def test_bad_options_are_told(paths, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["metrics", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_tensorboard_is_an_extra(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(SystemExit) as ended:
        main(["metrics", "--tensorboard", str(tmp_path / "tb")])
    assert ended.value.code == 4
    assert "pip install 'glm2-orch[tensorboard]'" in capsys.readouterr().err


def test_tensorboard_events_hold_the_steps(paths, tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    folder = tmp_path / "tb"
    answer = CliRunner().invoke(cli, ["metrics", "--tensorboard", str(folder), "--rank", "3"])
    assert answer.exit_code == 0
    (file,) = (folder / paths.run_id / "rank_3").iterdir()
    data, losses = file.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        body = data[12 : 12 + length]
        assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(body)
        event = event_pb2.Event.FromString(body)
        for value in event.summary.value:
            if value.tag == "train/loss":
                losses[event.step] = (value.simple_value, event.wall_time)
        data = data[16 + length :]
    assert sorted(losses) == list(range(1, 60)), "a NaN is left out"
    assert losses[1][1] == START + 21.5
    again = CliRunner().invoke(cli, ["metrics", "--tensorboard", str(folder), "--rank", "3"])
    assert "is not empty" in str(again.exception)
