"""Who may start chaos, and that the secret which says so is told once and nowhere else."""

import os
import pathlib

import pytest

from chaos import LONG, Chaos, token_of
from harness import wait_until

pytestmark = pytest.mark.usefixtures("alone")

WHAT = {"scenario": "hang", "parameters": {"duration": "60s"}}
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def instance(instances, tmp_path):
    return instances.run("--data", str(tmp_path / "data"), "--name", "peer", command=["cat"])


def start(chaos: Chaos, token: str | None):
    return chaos.ask("POST", "/experiments", WHAT, token)


@pytest.mark.parametrize("wrong", [None, "wrong", "0" * 32, SECRET[:-1]])
def test_without_the_token_nothing_is_started(instance, tmp_path, wrong):
    chaos = Chaos(instance, tmp_path / "data")
    for path in ("/experiments", "/rearm"):
        answer = chaos.ask("POST", path, WHAT if path == "/experiments" else {}, wrong)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert chaos.token not in answer.text
    assert chaos.status()["active_tests"] == 0
    # To stop takes none.
    id = start(chaos, chaos.token).json()["id"]
    assert chaos.ask("DELETE", f"/experiments/{id}", token=wrong).status_code == 200
    assert chaos.ask("POST", "/emergency-stop", {}, wrong).status_code == 200


@pytest.mark.parametrize("missing", ["X-Mcpscope-Request", "Content-Type"])
def test_another_page_of_the_browser_cannot_start_it(instance, tmp_path, missing):
    chaos = Chaos(instance, tmp_path / "data")
    del chaos.http.headers[missing]
    content = b'{"scenario": "hang", "parameters": {}}'
    headers = {"Authorization": f"Bearer {chaos.token}"}
    answer = chaos.http.post(chaos.base + "/experiments", content=content, headers=headers)
    assert answer.status_code == (403 if missing == "X-Mcpscope-Request" else 415)
    assert chaos.status()["active_tests"] == 0


def test_no_auth_does_without(instances, tmp_path):
    instance = instances.run("--no-auth", "--data", str(tmp_path / "data"), command=["cat"])
    assert "chaos token" not in instance.stderr()
    chaos = Chaos(instance, tmp_path / "data", token="none")
    assert start(chaos, None).status_code == 202


def test_one_of_a_file(instances, tmp_path):
    config, file = tmp_path / "mcpscope.yaml", tmp_path / "token"
    config.write_text("auth: { chaos_token_file: token }\n")
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    options = ("--config", str(config), "--data", str(tmp_path / "data"), "--name", "peer")
    instance = instances.run(*options, command=["cat"])
    assert SECRET not in instance.stderr()
    chaos = Chaos(instance, tmp_path / "data", token=SECRET)
    assert start(chaos, "1" + SECRET[1:]).status_code == 401
    answer = start(chaos, SECRET)
    assert answer.status_code == 202
    assert chaos.ask("DELETE", f"/experiments/{answer.json()['id']}").status_code == 200

    # The commands take the file, too, and one that is wrong is none.
    arguments = ("chaos", "start", "hang", "duration=60s", "--addr", instance.grpc, "--output", "json")
    done = instances.finish(*arguments, "--token-file", str(file), within=LONG)
    assert done.returncode == 0, done.stderr
    wrong = tmp_path / "wrong"
    wrong.write_text("no\n")
    done = instances.finish(*arguments, "--token-file", str(wrong), within=LONG)
    assert done.returncode != 0 and chaos.status()["active_tests"] == 1
    assert SECRET not in instance.stderr() + done.stderr.decode()


def test_the_commands_find_it_by_themselves(instances, instance, tmp_path):
    chaos = Chaos(instance, tmp_path / "data")
    done = instances.finish("chaos", "start", "hang", "tool=slow", "duration=60s", within=LONG)
    assert done.returncode == 0, done.stderr
    (running,) = chaos.status()["active_tests_details"]
    assert (running["name"], running["details"]["parameters"]["tool"]) == ("hang", "slow")
    done = instances.finish("chaos", "emergency-stop", within=LONG)
    assert done.returncode == 0 and chaos.status()["emergency_stop"], done.stderr
    done = instances.finish("chaos", "start", "hang", within=LONG)
    assert done.returncode != 0 and b"stopped by" in done.stderr
    done = instances.finish("chaos", "rearm", within=LONG)
    assert done.returncode == 0 and not chaos.status()["emergency_stop"], done.stderr


def test_it_is_told_once(instances, environment, tmp_path):
    """Not in what is logged, even at the finest level, nor in the command line, the journal, or any answer."""
    options = ("--log", "trace", "--data", str(tmp_path / "data"), "--name", "peer")
    instance = instances.run(*options, command=["sh", "-c", "env; cat"])
    chaos = Chaos(instance, tmp_path / "data")
    token = token_of(instance)
    assert len(token) >= 32
    start(chaos, "wrong")
    id = start(chaos, token).json()["id"]
    chaos.stop(id)
    done = instances.finish("chaos", "start", "hang", "duration=60s", within=LONG)
    assert done.returncode == 0 and token not in done.stdout.decode() + done.stderr.decode()
    for path in ("", "/history", "/scenarios", f"/experiments/{id}"):
        assert token not in chaos.ask("GET", path).text
    for path in ("", "metrics", "api/v1/dashboard", "api/v1/health", "api/v1/traces"):
        assert token not in instance.get(path).text
    assert token.encode() not in pathlib.Path(f"/proc/{instance.process.pid}/cmdline").read_bytes()
    for file in (tmp_path / "data").rglob("*.jsonl"):
        assert token not in file.read_text()
    (published,) = (tmp_path / "runtime" / "mcpscope").iterdir()
    assert token in published.read_text() and os.stat(published).st_mode & 0o077 == 0
    instance.process.stdin.close()
    assert instance.wait(LONG) == 0
    # Its child has not inherited it.
    assert token.encode() not in instance.process.stdout.read()
    wait_until(lambda: not published.exists(), within=LONG, what="the end of what was published")
    assert instance.stderr().count(token) == 1
