"""Inventory YAML: what it means, and what is said about its mistakes."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InventoryError, Location
from orchestrator.inventory import Host, Inventory, load_inventory, parse_inventory
from orchestrator.resources import resource_dir

HOME = Path("/home/someone")
FOLDER = Path("/etc/glm2")


def parse(text: str) -> Inventory:
    return parse_inventory(
        dedent(text), "inv.yaml", folder=FOLDER, default_python="/opt/this/python", home=HOME
    )


def refused(text: str) -> InventoryError:
    with pytest.raises(InventoryError) as caught:
        parse(text)
    return caught.value


def host(inventory: Inventory, name: str) -> Host:
    return next(host for host in inventory.hosts if host.name == name)


CLUSTER = """\
    cluster: cluster12
    ssh: {user: ma-user, port: 22, key: ~/.ssh/id_ed25519, known_hosts: keys/known_hosts}
    defaults: {devices: "[0,8)", device_target: Ascend, workdir: "/data/{host}",
               python: /usr/local/bin/python3, setup: "source /opt/set_env.sh",
               env: {GLOG_v: 2, KEEP: yes}}
    groups:
      workers: {hosts: "192.168.0.[0-11]", env: {GLOG_v: 1}}
      spares:  {hosts: "192.168.0.[12-13]"}
    hosts:
      192.168.0.3: {server_id: 10.0.0.3, ssh: {port: 2222}}
      "192.168.0.[4-5]": {devices: [0, 1, 4, 5]}
    job: {config: tiny, set: {a.b: 1e-5}}
    """


def test_settings_come_from_defaults_then_groups_then_hosts() -> None:
    inventory = parse(CLUSTER)
    assert [h.name for h in inventory.hosts] == [f"192.168.0.{i}" for i in range(12)]
    third = host(inventory, "192.168.0.3")
    assert third.server_id == "10.0.0.3"
    assert third.address == "192.168.0.3"
    assert (third.ssh.user, third.ssh.port) == ("ma-user", 2222)
    assert third.devices == tuple(range(8))
    assert third.workdir == "/data/192.168.0.3"
    assert third.setup == "source /opt/set_env.sh"
    assert third.groups == ("workers",)
    assert host(inventory, "192.168.0.5").devices == (0, 1, 4, 5)


def test_text_is_kept_as_written() -> None:
    assert host(parse(CLUSTER), "192.168.0.0").env == {"GLOG_v": "1", "KEEP": "yes"}


def test_a_workdir_that_the_controller_sees_too() -> None:
    inventory = parse(
        """\
        defaults: {devices: "[0,8)", device_target: Ascend, workdir: "/data/{host}"}
        hosts:
          a: {}
          b: {shared_workdir: true}
          c: {shared_workdir: "/mnt/all/{host}/"}
        """
    )
    assert [h.shared_workdir for h in inventory.hosts] == [None, "/data/b", "/mnt/all/c"]


def test_paths_of_the_controller() -> None:
    ssh = host(parse(CLUSTER), "192.168.0.0").ssh
    assert ssh.key == "/home/someone/.ssh/id_ed25519"
    assert ssh.known_hosts == "/etc/glm2/keys/known_hosts"


def test_spares_stand_by() -> None:
    inventory = parse(CLUSTER)
    assert [h.name for h in inventory.spares] == ["192.168.0.12", "192.168.0.13"]


def test_the_job_section_is_carried_with_its_places() -> None:
    inventory = parse(CLUSTER)
    assert inventory.job == {"config": "tiny", "set": {"a.b": 1e-5}}
    assert inventory.job_locations[("set", "a.b")] == Location("inv.yaml", 12, 32)


def test_a_local_host() -> None:
    only = parse(
        """\
        hosts: localhost
        defaults: {connection: local, device_target: CPU, devices: "[0,2)", workdir: ~/work}
        """
    ).hosts[0]
    assert only.python == "/opt/this/python"
    assert only.workdir == "/home/someone/work"
    assert only.connection == "local"


def test_the_name_of_the_cluster_defaults_to_the_file() -> None:
    assert parse(MINIMAL).cluster == "inv"


MINIMAL = """\
    hosts: "node[01-02]"
    defaults: {devices: "[0,8)", device_target: Ascend, workdir: /data}
    """


def test_remote_python_is_found_on_the_path() -> None:
    assert [h.python for h in parse(MINIMAL).hosts] == ["python3", "python3"]


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ("[a, b]", ["a", "b"]),
        ('["n[1-2]", b]', ["n1", "n2", "b"]),
        ('"n[1-2],b"', ["n1", "n2", "b"]),
        ("{a: , b: {workdir: /x}}", ["a", "b"]),
    ],
)
def test_forms_of_hosts(hosts: str, names: list[str]) -> None:
    text = MINIMAL.replace('"node[01-02]"', hosts)
    assert [h.name for h in parse(text).hosts] == names


def test_device_ips_by_pattern() -> None:
    inventory = parse(MINIMAL.replace('"node[01-02]"', '{a: {device_ips: "10.1.[0-7].10"}}'))
    assert inventory.hosts[0].device_ips == tuple(f"10.1.{i}.10" for i in range(8))


def test_anchors_and_merge_keys() -> None:
    inventory = parse(
        """\
        hosts:
          a: &base {devices: "[0,8)", device_target: Ascend, workdir: /data}
          b: {<<: *base, workdir: /other}
        """
    )
    assert [h.workdir for h in inventory.hosts] == ["/data", "/other"]


@pytest.mark.parametrize(
    ("line", "place", "message", "hint"),
    [
        ("defalts: {}", (4, 1), "unknown key 'defalts'", "did you mean `defaults`"),
        ("ssh: {port: 99999}", (4, 13), "not a port", "1 to 65535"),
        ("ssh: {prot: 22}", (4, 7), "unknown key 'prot'", "did you mean `port`"),
        ("ssh: 22", (4, 6), "must be a mapping", "lines below"),
        ("hosts: b", (4, 1), "given twice, first in line 1", "remove"),
        ("cluster: [a]", (4, 10), "must be text", ""),
        ("cluster:", (4, 9), "is empty", "remove the key"),
        ("job: 3", (4, 6), "must be a mapping", ""),
        ("job: {a: !!python/name:os.system x}", (4, 10), "could not determine a constructor", ""),
        ("\tcluster: x", (4, 1), "tab", "spaces"),
        ("cluster: a: b", (4, 11), "mapping values are not allowed", "quote"),
        ("cluster: *x", (4, 10), "undefined alias", "quote"),
        ("groups: {a b: {hosts: n1}}", (4, 10), "cannot name a group", ""),
        ("groups: {a: {}}", (4, 10), "has no `hosts`", "name its hosts"),
    ],
)
def test_mistakes_are_placed(line: str, place: tuple[int, int], message: str, hint: str) -> None:
    base = '{devices: "[0,8)", device_target: Ascend, workdir: /data}'
    hosts = "a: {}" if not line.startswith("groups") else "n1: {}"
    error = refused(f"hosts:\n  {hosts}\ndefaults: {base}\n{line}\n")
    assert message in str(error)
    assert f"inv.yaml:{place[0]}:{place[1]}:" in str(error)
    assert hint in (error.hint if error.location else str(error))


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("devices: [0,8]", "a YAML list of two devices", '"[0,8)"'),
        ("devices: [1, 0, 2]", "ascending", "sort"),
        ("devices: 0-7", "not a device range", '"[0,8)"'),
        ("devices: [a]", "numbers only", ""),
        ('devices: "[8,16)"', "does not exist on a 910", '"[0,8)"'),
        ('devices: "0,1,2,4"', "does not accept these four", "{0,1,4,5}"),
        ("device_target: ascend", "not one of Ascend, CPU", ""),
        ("workdir: data", "not absolute", "/data"),
        ("workdir: ~/data", "by ssh", "absolute path"),
        ("workdir: /data/../etc", "`..`", ""),
        ("workdir: /data/{name}", "braces", "{host}"),
        ("shared_workdir: data", "neither `true` nor an absolute path", "write `true`"),
        ("shared_workdir: /data/../etc", "`..`", ""),
        ("python: -c", "not a program", ""),
        ("connection: telnet", "not one of ssh, local", ""),
        ("env: {1A: x}", "not a name of an environment variable", ""),
        ("env: {A: [x]}", "must be text", ""),
        ("env: {A: }", "is empty", ""),
        ('setup: "a\\nb"', "control character", ""),
        ('device_ips: "10.1.[0-6].10"', "7 addresses for 8 devices", "one for each"),
        ("device_ips: [10.1.1.x]", "'10.1.1.x' is not an IP address", "hccn_tool"),
        ('device_ips: "10.1.[0-7.10"', "not closed", ""),
        ("server_id: " + "x" * 65, "65 characters", ""),
        ("address: a;b", "not a host name or IP", ""),
        ("ssh: {user: -oProxy}", "not a user name", ""),
        ("ssh: {connect_timeout: soon}", "time in seconds", ""),
        ("wrkdir: /x", "unknown key", "did you mean `workdir`"),
    ],
)
def test_settings_are_checked(setting: str, message: str, hint: str) -> None:
    error = refused(
        f"""\
        defaults: {{devices: "[0,8)", device_target: Ascend, workdir: /data}}
        hosts:
          a:
            {setting}
        """
    )
    assert message in str(error)
    assert error.location is not None
    assert error.location.line == 4
    assert hint in error.hint


@pytest.mark.parametrize(
    "name", ["../x", "-oProxyCommand=x", "a b", "a;b", "$(x)", ".", "a/b", '"a\\u0007"', "fd00::1"]
)
def test_hostile_host_names_are_refused(name: str) -> None:
    error = refused(MINIMAL.replace('"node[01-02]"', f"[{name}]" if name[0] != '"' else name))
    assert "\x07" not in str(error)
    assert error.location is not None


def test_all_mistakes_at_once() -> None:
    error = refused(
        """\
        defaults: {devces: "[0,8)", device_target: Ascnd, workdir: data}
        groups:
          workers: {hosts: "192.168.0.[0-11"}
          more: {hosts: [a, a]}
        """
    )
    text = str(error)
    assert text.startswith("inv.yaml has ")
    for part in (
        "1:12: unknown key 'devces'",
        "1:44: `device_target`",
        "3:31: host pattern",
        "listed twice",
    ):
        assert part in text
    assert "did you mean `devices`" in text


def test_a_malformed_pattern_is_pointed_at() -> None:
    error = refused(MINIMAL.replace("[01-02]", "[01-02,x]"))
    assert error.location == Location("inv.yaml", 1, 20)


def test_an_unquoted_range_is_explained() -> None:
    error = refused("defaults:\n  devices: [0,8)\nhosts: a\n")
    assert "must be quoted" in str(error)
    assert error.location == Location("inv.yaml", 2, 12)
    assert '"[0,8)"' in error.hint


def test_what_is_missing_is_said_at_the_host() -> None:
    text = str(refused("hosts: node1\n"))
    for key in ("devices", "workdir", "device_target"):
        assert f"inv.yaml:1:8: no `{key}` for host 'node1'" in text


def test_a_host_twice() -> None:
    assert "listed twice" in str(refused(MINIMAL.replace('"node[01-02]"', "[a, b, a]")))


def test_a_server_id_twice() -> None:
    error = refused(MINIMAL.replace('"node[01-02]"', "{a: {server_id: x}, b: {server_id: x}}"))
    assert "server_id` 'x' is given twice, for hosts a and b" in str(error)


def test_a_device_ip_twice() -> None:
    error = refused(
        MINIMAL.replace(
            '"node[01-02]"',
            '{a: {device_ips: "10.1.[0-7].10"}, b: {device_ips: "10.[1-8].7.10"}}',
        )
    )
    assert "device IP '10.1.7.10' is given twice, for hosts a and b" in str(error)


def test_groups_that_contradict_each_other() -> None:
    text = """\
        defaults: {devices: "[0,8)", device_target: Ascend}
        groups:
          a: {hosts: n1, workdir: /a}
          b: {hosts: n1, workdir: /b}
        """
    error = refused(text)
    assert "another value in line 3" in str(error)
    settled = parse(dedent(text) + "hosts: {n1: {workdir: /c}}\n")
    assert settled.hosts[0].workdir == "/c"


def test_an_override_of_a_host_that_is_in_no_group() -> None:
    error = refused(CLUSTER.replace("192.168.0.3:", "192.168.0.33:"))
    assert "'192.168.0.33' is in no group" in str(error)


def test_a_spare_host_that_also_works() -> None:
    assert "both in group `spares`" in str(refused(CLUSTER.replace("[12-13]", "[11-13]")))


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file(text: str) -> None:
    assert "empty" in str(refused(text)) or "mapping" in str(refused(text))


def test_no_hosts() -> None:
    assert "names no host" in str(refused("cluster: x\n"))


def test_alias_bombs_and_cycles_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "more than 100000 values" in str(refused("\n".join(lines)))
    assert "contains itself" in str(refused("job: &a {x: *a}\n"))
    assert "too deep" in str(refused("[" * 5000))


def test_a_control_character() -> None:
    error = refused("cluster: a\x01b\n")
    assert error.location == Location("inv.yaml", 1, 11)
    assert "\x01" not in str(error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        load_inventory(path, default_python="python3", home=HOME)

    with pytest.raises(InventoryError, match="there is no inventory"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InventoryError, match="cannot read"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"cluster: \xe9\n")
    with pytest.raises(InventoryError, match="not UTF-8"):
        load(tmp_path / "latin.yaml")


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "inv.yaml"
    file.write_text(dedent(MINIMAL) + "ssh: {key: ../id}\n", encoding="utf-8-sig")
    inventory = load_inventory(file, default_python="python3", home=HOME)
    assert inventory.hosts[0].ssh.key == str(tmp_path / "id")
    assert inventory.folder == str(tmp_path / "sub")


@pytest.mark.parametrize(("name", "ranks"), [("local", 2), ("cluster12", 96), ("loopback12", 12)])
def test_shipped_inventories(name: str, ranks: int) -> None:
    path = resource_dir("inventories") / f"{name}.yaml"
    inventory = load_inventory(path, default_python="python3", home=HOME)
    assert inventory.cluster == name
    assert sum(len(host.devices) for host in inventory.hosts) == ranks


def test_the_guides_wiring_in_cluster12() -> None:
    path = resource_dir("inventories") / "cluster12.yaml"
    for host in load_inventory(path, default_python="python3", home=HOME).hosts:
        subnets = [ip.rsplit(".", 2)[0] for ip in host.device_ips]
        assert subnets[:4] == subnets[4:]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["hosts", "defaults", "groups", "ssh", "devices", "env", "a"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_document_is_read_or_refused_with_places(document: object) -> None:
    said = "inv.yaml"
    try:
        said = parse(yaml.safe_dump(document)).source
    except InventoryError as error:
        said = str(error)
    assert "inv.yaml" in said
