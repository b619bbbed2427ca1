"""Real lines of the HCCL guide and of public issues give the code that they are about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.diagnosis.cause import first_cause
from orchestrator.diagnosis.folder import read_folder

ROOT = Path(__file__).parents[3]
LOGS = Path(os.environ.get("GLM2_SHARED", str(ROOT.parent / "shared"))) / "fixtures/logs"

EXPECTED = {
    "hccl_docs/EI0001_device_ip_family_mismatch.log": "EI0001",
    "hccl_docs/EI0001_env_invalid.log": "EI0001",
    "hccl_docs/EI0001_socket_ifname_not_found.log": "EI0001",
    "hccl_docs/EI0002_notify_wait_timeout.log": "EI0002",
    "hccl_docs/EI0002_notify_wait_timeout_3.log": "EI0002",
    "hccl_docs/EI0002_notify_wait_timeout_4.log": "EI0002",
    "hccl_docs/EI0004_ranktable_path_invalid.log": "EI0004",
    "hccl_docs/EI0004_super_device_id_empty.log": "EI0004",
    "hccl_docs/EI0005_cmd_check_fail_plog.log": "EI0005",
    "hccl_docs/EI0006_link_error_info_table.log": "EI0006",
    "hccl_docs/EI0009_transport_init_2.log": "EI0009",
    "hccl_docs/EI0011_qp_memory.log": "EI0011",
    "hccl_docs/EI0013_cqe12_plog.log": "EI0013",
    "hccl_docs/EI0013_roce_cqe.log": "EI0013",
    "hccl_docs/EI0014_ranktable_ip_differs_from_nic.log": "EI0014",
    "hccl_docs/EI0015_agent_cannot_reach_root.log": "EI0015",
    "hccl_docs/EI0015_root_waits_4_of_8_ranks.log": "EI0015",
    "hccl_docs/EI0016_tls_inconsistent.log": "EI0016",
    "hccl_docs/aicore_kernel_failed.log": "aicore",
    "hccl_docs/cluster_exception_lost.log": "heartbeat",
    "hccl_docs/cluster_exception_stuck.log": "heartbeat",
    "hccl_docs/heartbeat_LOST.log": "heartbeat",
    "hccl_docs/other_param_link_stage_2.log": "EI0009",
    "hccl_docs/port_16666_listen_fail.log": "EI0020",
    "hccl_docs/roce_cqe_driver_log.log": "EI0013",
    "issues/EC0010_env_not_sourced.log": "EC0010",
    "issues/EH9999_task_timeout_107020_prefixed_by_worker.log": "107020",
    "issues/EJ0001_stale_process_mindspore_style.log": "EJ0001",
    "issues/EL0004_new_style_title_and_code.log": "EL0004",
    "issues/faq_HcclCommInitRootInfo_error_2.log": "hccl-init",
    "issues/faq_master_addr_dns.log": "scheduler-name",
    "issues/faq_scheduler_alive_nodes.log": "alive-nodes",
    "issues/getnext_slow_dataset_507011.log": "getnext-slow",
    "issues/msrun_scheduler_exit_timeout_nodes.log": "node-timeout",
    "issues/port16666_bound_then_EI0006.log": "EI0020",
}


def judge(name, table):
    path = LOGS / name
    if not path.exists():
        pytest.skip(f"no {name}: set GLM2_SHARED to the folder of the shared fixtures")
    return first_cause(read_folder(path, table))


@pytest.mark.parametrize(("name", "code"), EXPECTED.items())
def test_a_real_log_gives_its_code(table, name, code):
    answer = judge(name, table)
    assert answer.signature is not None
    assert answer.signature.id == code


def test_every_real_log_is_expected():
    if not LOGS.exists():
        pytest.skip(f"no {LOGS}: set GLM2_SHARED to the folder of the shared fixtures")
    found = {path.relative_to(LOGS).as_posix() for path in LOGS.glob("*/*.log")}
    assert found == set(EXPECTED)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("hccl_docs/EI0015_root_waits_4_of_8_ranks.log", [1, 3, 5, 7]),
        ("hccl_docs/EI0006_link_error_info_table.log", [0]),
        ("hccl_docs/EI0009_transport_init_2.log", [1]),
        ("issues/msrun_scheduler_exit_timeout_nodes.log", [3]),
        ("issues/EH9999_task_timeout_107020_prefixed_by_worker.log", [1]),
    ],
)
def test_lines_that_name_the_culprit(table, name, ranks):
    assert [process.rank for process in judge(name, table).who] == ranks


def test_a_heartbeat_names_a_device_whose_rank_is_not_known(table):
    assert judge("hccl_docs/heartbeat_LOST.log", table).device == ("127.10.0.2", 2)
