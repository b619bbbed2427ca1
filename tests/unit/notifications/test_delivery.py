"""Messages on their way: tried again, bounded, and nothing secret in what is said of it."""

from __future__ import annotations

import json
import socket
import stat
import sys

import pytest

from orchestrator.inventory import Notification, Secret
from orchestrator.notifications.delivery import Patience, deliver
from orchestrator.notifications.message import trial
from tests.unit.notifications.receiver import receiving

MESSAGE = trial("c12", 0.0)
QUICK = Patience(pauses=(0.01, 0.01, 0.01), attempt_s=5.0, whole_s=20.0)
TOKEN = "token-that-nobody-may-see"


def to(kind: str, **fields: object) -> Notification:
    values = {"url": Secret(env="HOOK"), **fields}
    return Notification(kind, f"{kind} 1", **values)  # type: ignore[arg-type]


@pytest.fixture
def receiver():
    with receiving() as made:
        yield made


def fared(notification, url: str = "", patience: Patience = QUICK, **variables: str):
    (one,) = deliver([notification], MESSAGE, environ={"HOOK": url, **variables}, patience=patience)
    assert TOKEN not in str(one)
    return one.problem, one.attempts


@pytest.mark.parametrize("kind", ["webhook", "dingtalk", "feishu", "wecom"])
def test_a_message_arrives(receiver, kind):
    assert fared(to(kind), receiver.url(f"/{TOKEN}")) == (None, 1)
    assert receiver.paths == [f"/{TOKEN}"]
    assert MESSAGE.text in json.dumps(receiver.bodies)


def test_trouble_there_is_waited_out(receiver):
    receiver.answers = [(500, b""), (503, b""), (200, b"")]
    assert fared(to("webhook"), receiver.url(f"/{TOKEN}")) == (None, 3)


def test_it_is_given_up_in_the_end(receiver):
    receiver.answers = [(500, b"")]
    assert fared(to("webhook"), receiver.url(f"/{TOKEN}")) == ("HTTP status 500", 4)


def test_what_is_refused_is_not_repeated(receiver):
    receiver.answers = [(404, b"")]
    assert fared(to("webhook"), receiver.url(f"/{TOKEN}")) == ("HTTP status 404", 1)
    receiver.answers = [(200, b'{"errcode":310000,"errmsg":"%s"}' % TOKEN.encode())]
    assert fared(to("dingtalk"), receiver.url()) == ("dingtalk refused it with code 310000", 1)


def test_a_message_goes_nowhere_else(receiver):
    with receiving() as elsewhere:
        receiver.answers = [(302, elsewhere.url().encode())]
        assert fared(to("webhook"), receiver.url()) == ("HTTP status 302", 1)
        assert elsewhere.bodies == []


def test_a_receiver_that_hangs_is_left(receiver):
    receiver.hang.clear()
    patience = Patience(pauses=(0.01,), attempt_s=0.2, whole_s=5.0)
    problem, attempts = fared(to("webhook"), receiver.url(f"/{TOKEN}"), patience)
    assert (problem, attempts) == ("no answer within 0.2 s", 2)


def test_one_that_drips_its_answer_is_left():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        # It takes the connection in its backlog and answers byte by byte: here, not at all.
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/{TOKEN}"
        patience = Patience(pauses=(), attempt_s=0.2, whole_s=0.1)
        problem, _ = fared(to("webhook"), url, patience)
    assert problem in ("no answer within 0.2 s", "no answer in time")


def test_nobody_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/{TOKEN}"
        problem, attempts = fared(to("webhook"), url)
    assert problem is not None
    assert "refused" in problem
    assert attempts == 4


@pytest.mark.parametrize(
    "url", [f"file:///etc/{TOKEN}", f"{TOKEN}", f"http://[{TOKEN}/", f"http://a b/{TOKEN}\n"]
)
def test_what_is_no_url_is_not_repeated_in_the_reason(url):
    problem, attempts = fared(to("webhook"), url)
    assert problem is not None
    assert attempts == 1


def test_one_receiver_does_not_hold_up_another(receiver):
    with receiving() as stuck:
        stuck.hang.clear()
        order = []

        def done(one):
            order.append(one.name)
            stuck.hang.set()

        deliver(
            [to("webhook", url=Secret(env="STUCK")), to("feishu")],
            MESSAGE,
            environ={"STUCK": stuck.url(), "HOOK": receiver.url()},
            patience=Patience(pauses=(), attempt_s=20.0, whole_s=20.0),
            done=done,
        )
    assert order == ["feishu 1", "webhook 1"]


def test_secrets_come_from_files_that_only_the_owner_reads(receiver, tmp_path):
    url, secret = tmp_path / "url", tmp_path / "secret"
    url.write_text(receiver.url() + "\n")
    secret.write_text(f"{TOKEN}\n")
    sent = to("dingtalk", url=Secret(file=str(url)), secret=Secret(file=str(secret)))
    url.chmod(0o644)
    secret.chmod(0o600)
    problem, attempts = fared(sent)
    assert "can be read by others" in str(problem)
    assert attempts == 1
    url.chmod(0o600)
    assert fared(sent) == (None, 1)
    assert "sign=" in receiver.paths[0]
    assert TOKEN not in receiver.paths[0]
    secret.unlink()
    assert "No such file" in str(fared(sent)[0])


def test_a_variable_that_is_not_set_is_named():
    assert fared(to("webhook")) == ("its URL is missing: HOOK is not set", 1)


def test_a_command_reads_the_message_and_no_shell_reads_its_words(tmp_path):
    out = tmp_path / "out"
    code = (
        "import json,os,sys;m=json.load(sys.stdin);m['argv']=sys.argv[1:];"
        f"m['seen']=os.environ['GLM2_ORCH_EVENT'];open({str(out)!r},'w').write(json.dumps(m))"
    )
    words = (sys.executable, "-c", code, "$(touch x)", ";")
    assert fared(to("command", url=None, command=words)) == (None, 1)
    said = json.loads(out.read_text())
    assert said["argv"] == ["$(touch x)", ";"]
    assert (said["event"], said["seen"]) == ("test", "test")
    assert said["text"] == MESSAGE.text


@pytest.mark.parametrize(
    ("code", "said", "attempts"),
    [
        ("raise SystemExit(3)", "ended with status 3", 4),
        (f"print('{TOKEN}'); raise SystemExit(1)", "ended with status 1", 4),
        ("import time; time.sleep(600)", "did not end within", 1),
    ],
)
def test_a_command_that_fails(code, said, attempts):
    patience = Patience(pauses=(0.01, 0.01, 0.01), attempt_s=0.5 if attempts == 1 else 20.0)
    command = to("command", url=None, command=(sys.executable, "-c", code))
    problem, tried = fared(command, patience=patience)
    assert said in str(problem)
    assert tried == attempts


def test_a_command_that_is_not_there():
    problem, attempts = fared(to("command", url=None, command=("/nowhere/hook",)))
    assert problem == "the command cannot be run: No such file or directory"
    assert attempts == 1


def test_what_is_kept_of_receivers_is_for_the_owner(tmp_path):
    from orchestrator.notifications.announcer import load_receivers, save_receivers

    file = tmp_path / "notify.json"
    save_receivers(file, [])
    assert not file.exists()
    kept = [to("dingtalk", secret=Secret(file="/s")), to("command", url=None, command=("a", "b"))]
    save_receivers(file, kept)
    assert load_receivers(file) == kept
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
