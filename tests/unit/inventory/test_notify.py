"""``notify:`` of an inventory: what is said, what is refused, and no secret in either."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InventoryError
from orchestrator.inventory import Notification, Secret, parse_inventory

TOP = "hosts: a\ndefaults: {device_target: CPU, devices: '[0,2)', workdir: /w}\nnotify:\n"


def read(text: str):
    return parse_inventory(
        TOP + text, "i.yaml", folder=Path("/inv"), default_python="p", home=Path("/home/u")
    ).notify


def test_receivers_with_their_secrets_elsewhere():
    assert read(
        "  - {to: dingtalk, url_file: ~/ding, secret_env: SIGN, on: [failure, end]}\n"
        "  - {to: command, command: [./hook, --x], name: pager}\n"
        "  - {to: webhook, url_file: sub/url}\n"
    ) == (
        Notification(
            "dingtalk",
            "dingtalk 1",
            ("failure", "end"),
            Secret(file="/home/u/ding"),
            Secret(env="SIGN"),
        ),
        Notification("command", "pager", command=("/inv/hook", "--x")),
        Notification("webhook", "webhook 3", url=Secret(file="/inv/sub/url")),
    )


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("{to: slack, url_env: X}", "`to` 'slack' is not known"),
        ("{url_env: X}", "has no `to`"),
        ("{to: webhook}", "no `url_env` or `url_file`"),
        ("{to: webhook, url: 'http://h/tok3n'}", "`url` is a secret"),
        ("{to: webhook, url_env: 'http://h/tok3n'}", "`url_env` is no name of a variable"),
        ("{to: webhook, url_env: X, url_file: y}", "both `url_env` and `url_file`"),
        ("{to: feishu, url_env: X, secret: tok3n}", "`secret` is a secret"),
        ("{to: wecom, url_env: X, secret_env: Y}", "takes no secret"),
        ("{to: command}", "has no `command`"),
        ("{to: command, command: 'rm -rf /'}", "must be a list"),
        ("{to: webhook, url_env: X, command: [a]}", "means nothing"),
        ("{to: webhook, url_env: X, on: fail}", "`on` 'fail' is not one of"),
        ("{to: webhook, url_env: X, colour: red}", "unknown key 'colour'"),
        ("nobody", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(item, said):
    with pytest.raises(InventoryError) as refused:
        read(f"  - {item}\n")
    text = str(refused.value) + refused.value.hint
    assert said in text
    assert "i.yaml:4" in text
    assert "tok3n" not in text
