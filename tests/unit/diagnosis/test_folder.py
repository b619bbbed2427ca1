"""Folders of logs from elsewhere: whose log is which."""

from __future__ import annotations

import json

import pytest

from orchestrator.diagnosis.cause import first_cause
from orchestrator.diagnosis.folder import devices_of, discover, read_folder
from orchestrator.errors import UsageError

OOM = b"EL0004: 2024-01-01-00:00:05.000.000 Failed to allocate memory\n"
WAIT = b"EI0006: 2024-01-01-00:02:05.000.000 Getting socket times out\n"


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("logs/rank_7.log", 7),
        ("ranks/rank_7/stdout.log", 7),
        ("output/log/rank_7/info.log", 7),
        ("output/log/rank_7/error.log", 7),
        ("mf_parallel7/mindformer.log", 7),
        ("output/msrun_log/worker_7.log", 7),
        ("modelarts-job-2b3c-proc-rank-7-device-3.txt", 7),
        ("modelarts-job-2b3c-worker-0.log", None),
        ("scheduler.log", None),
        ("rank_7/logs/mindspore.log.ERROR.20240101", 7),
        ("rank_7/x.log.1", 7),
        ("plog/plog-123_20240101.log", None),
    ],
)
def test_known_layouts(tmp_path, name, rank):
    write(tmp_path, {name: b"x"})
    (found,) = discover(tmp_path)
    assert (found.name, found.rank) == (name, rank)


def test_files_of_one_rank_belong_together(tmp_path, table):
    write(
        tmp_path,
        {
            "output/log/rank_0/info.log": b"fine\n",
            "output/log/rank_0/error.log": WAIT,
            "output/log/rank_1/info.log": b"fine\n",
            "output/log/rank_1/error.log": OOM,
        },
    )
    case = read_folder(tmp_path, table)
    assert {process.name: len(process.logs) for process in case.processes} == {
        "rank_0": 2,
        "rank_1": 2,
    }
    answer = first_cause(case)
    assert [process.rank for process in answer.who] == [1]
    assert answer.finding.place.file == "output/log/rank_1/error.log"


def test_a_plog_goes_to_the_rank_with_its_process_id(tmp_path, table):
    line = b"[WARNING] ME(%d:28,Main):2024-01-01-00:00:00.000.000 [x.py:1] y\n"
    plog = b"[ERROR] HCCL(102,python):2024-01-01-00:00:07.000.000 [x.cc:1] [9]EI0020: z\n"
    write(
        tmp_path,
        {
            "rank_0.log": line % 101 + WAIT,
            "rank_1.log": line.replace(b"ME(%d:28", b"ME(%d,28") % 102,
            "debug/plog/plog-102_2024.log": plog,
        },
    )
    answer = first_cause(read_folder(tmp_path, table))
    assert [process.rank for process in answer.who] == [1]
    assert answer.signature.id == "EI0020"


def test_a_folder_a_host(tmp_path, table):
    write(
        tmp_path,
        {"10.0.0.1/output/log/rank_0/a.log": WAIT, "10.0.0.2/output/log/rank_8/a.log": OOM},
    )
    answer = first_cause(read_folder(tmp_path, table))
    assert (answer.who[0].label(), answer.signature.id) == ("rank 8 on 10.0.0.2", "EL0004")


def test_the_same_numbers_on_several_hosts_are_no_ranks(tmp_path, table):
    write(tmp_path, {f"node{host}/rank_{n}.log": WAIT for host in (1, 2) for n in range(2)})
    write(tmp_path, {"node2/rank_1.log": OOM})
    answer = first_cause(read_folder(tmp_path, table))
    assert [(p.name, p.rank, p.host) for p in answer.who] == [("node2/rank_1", None, "node2")]


def test_the_run_folder_of_a_host_tells_how_ranks_ended(tmp_path, table):
    for rank, (line, code, collateral) in enumerate([(OOM, 143, True), (WAIT, 1, False)]):
        ending = {"schema": 1, "name": f"rank_{rank}", "code": code, "collateral": collateral}
        write(
            tmp_path,
            {
                f"ranks/rank_{rank}/stdout.log": line,
                f"ranks/rank_{rank}/exit.json": json.dumps(ending).encode(),
            },
        )
    answer = first_cause(read_folder(tmp_path, table))
    assert (answer.rule, [process.rank for process in answer.who]) == ("symptom", [1])
    assert answer.collateral == ("0",)


def test_a_log_that_several_ranks_wrote(tmp_path, table):
    write(tmp_path, {"all.log": b"worker-0: " + WAIT + b"worker-1: " + OOM + b"worker-2: " + WAIT})
    answer = first_cause(read_folder(tmp_path / "all.log", table))
    assert [process.rank for process in answer.who] == [1]


def test_a_rank_table_tells_ranks_of_devices(tmp_path, table):
    servers = [
        {
            "server_id": f"10.0.0.{server}",
            "device": [{"device_id": str(d), "rank_id": str(server * 2 + d)} for d in range(2)],
        }
        for server in range(2)
    ]
    lost = (
        b"[INFO] HCCL(1,p):2024-01-01-00:01:00.000.000 [h.cc:9] local rank [10.0.0.0/0]: "
        b"crimer rank [10.0.0.1/1] status[LOST] by informer\n"
    )
    write(
        tmp_path,
        {
            "hccl_4p.json": json.dumps({"server_list": servers}).encode(),
            **{f"rank_{rank}.log": lost + WAIT for rank in range(3)},
        },
    )
    case = read_folder(tmp_path, table)
    assert case.world_size == 4
    answer = first_cause(case)
    assert (answer.rule, [process.rank for process in answer.who]) == ("named", [3])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"server_list": 7}', "[" * 100_000, '{"a"'])
def test_what_is_no_rank_table_tells_nothing(text):
    assert devices_of(text) == ({}, set())


def test_a_folder_without_logs_is_an_error(tmp_path, table):
    write(tmp_path, {"old.log.1.gz": b"x", "a.ckpt": b"x", "rank_0.json": b"x"})
    with pytest.raises(UsageError, match="no log"):
        read_folder(tmp_path, table)
    with pytest.raises(UsageError, match="no folder"):
        read_folder(tmp_path / "none", table)


def test_links_are_not_followed_in_circles(tmp_path, table):
    write(tmp_path, {"a/rank_0.log": OOM})
    (tmp_path / "a/again").symlink_to(tmp_path)
    (tmp_path / "a/gone.log").symlink_to(tmp_path / "nothing")
    assert [found.name for found in discover(tmp_path)] == ["a/rank_0.log"]
