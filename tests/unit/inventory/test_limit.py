"""``--limit``: which hosts it selects."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from orchestrator.errors import UsageError
from orchestrator.inventory import Inventory, limit, parse_inventory

TEXT = """\
defaults: {devices: "[0,8)", device_target: Ascend, workdir: /data}
groups:
  front: {hosts: "node[1-3]"}
  back: {hosts: "node[4-6]"}
  spares: {hosts: "extra[1-2]"}
hosts:
  node1: {device_ips: "10.1.[0-7].1"}
"""


@pytest.fixture
def inventory() -> Inventory:
    return parse_inventory(
        TEXT, "inv.yaml", folder=Path("/x"), default_python="python3", home=Path("/h")
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("node2", ["node2"]),
        ("node[5,2]", ["node2", "node5"]),
        ("back", ["node4", "node5", "node6"]),
        ("front,node5,!node[1-2]", ["node3", "node5"]),
        ("!back", ["node1", "node2", "node3"]),
        ("all,!front", ["node4", "node5", "node6"]),
        ("node1,extra2", ["node1", "extra2"]),
        ("!extra1", ["node1", "node2", "node3", "node4", "node5", "node6"]),
    ],
)
def test_selects_in_the_order_of_the_file(
    inventory: Inventory, pattern: str, names: List[str]
) -> None:
    assert [host.name for host in limit(inventory, pattern).hosts] == names


def test_a_chosen_spare_is_no_spare(inventory: Inventory) -> None:
    assert [host.name for host in limit(inventory, "extra2").spares] == ["extra1"]


@pytest.mark.parametrize(
    ("pattern", "message", "hint"),
    [
        ("nodes", "no host or group 'nodes'", "did you mean"),
        ("node[1-9]", "'node7' (and 2 more)", ""),
        ("node[1-", "not closed", ""),
        ("", "missing", ""),
        ("front,!front", "leaves no host", ""),
        ("!", "missing", ""),
    ],
)
def test_refuses(inventory: Inventory, pattern: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        limit(inventory, pattern)
    assert message in str(caught.value)
    assert hint in caught.value.hint
