"""`mcpscope serve`: many servers from one configuration file, none of which is touched by what becomes of another."""

import contextlib
import json
import os
import socket

import httpx
import pytest

from harness import ANY_PORT, free_port, marked, settles_at, wait_until
from serving import (
    AT_ONCE,
    HEADERS,
    INITIALIZE,
    LONG,
    NEVER,
    SERVED,
    in_background,
    kill,
    nowhere,
    pid_of,
    post,
    readiness,
    server,
    started,
    state,
    transports,
)
from upstream import call


def test_each_server_has_its_own_listener_and_labels(serve, upstream):
    instance = serve(server("one", upstream.url), server("two", upstream.url))
    assert instance.ready["proxy"].keys() == {"one", "two"}
    assert len(set(instance.ready["proxy"].values())) == 2
    for name, url in instance.ready["proxy"].items():
        assert url.endswith("/mcp") and f"proxy {url} {name}\n" in instance.stderr()
    for name, calls in [("one", 2), ("two", 3)]:
        for _ in range(calls):
            assert post(instance, name, call()).status_code == 200
    settles_at({("probe", "ok"): 2}, lambda: instance.metrics().tool_calls(server="one"))
    settles_at({("probe", "ok"): 3}, lambda: instance.metrics().tool_calls(server="two"))
    assert readiness(instance) == (200, "")


def test_what_cannot_be_served_is_refused(instances, tmp_path, upstream):
    file = tmp_path / "serve.yaml"

    def refused(text: str) -> tuple[int, str]:
        file.write_text(text)
        done = instances.finish("serve", "--config", str(file), "--dashboard", ANY_PORT)
        return done.returncode, done.stderr.decode()

    code, said = refused("{}")
    assert code == 64 and "serve needs at least one server" in said and "listen: 127.0.0.1:9001" in said
    code, said = refused("servers:\n  - name: one\n    upstream: localhost:1\n    lissten: 127.0.0.1:0\n")
    assert code == 64
    assert f"{file}:3:15: servers[0].upstream: expected a URL" in said
    assert f"{file}:4:5: servers[0].lissten: unknown key, did you mean `listen`?" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        two = [server("one", upstream.url, f"127.0.0.1:{port}"), server("two", upstream.url, f"localhost:{port}")]
        code, said = refused(json.dumps({"servers": two}))
    assert code == 69 and said.count(f"cannot listen on 127.0.0.1:{port}") == 2
    assert 'server "one"' in said and 'server "two"' in said


def test_one_that_is_down_is_a_warning(serve, upstream):
    instance = serve(server("up", upstream.url), server("down", nowhere()))
    settles_at("warning", lambda: transports(instance)["status"])
    assert transports(instance)["message"].startswith("down: upstream http://127.0.0.1:")
    assert readiness(instance) == (200, "")
    # One component of five is unwell.
    assert instance.get("api/v1/health").json()["overall"] == "degraded"
    answer = post(instance, "down", call(id=7))
    assert (answer.status_code, answer.json()["id"]) == (502, 7)
    assert post(instance, "up", call()).status_code == 200


def test_a_critical_one_that_is_down_is_critical(serve, upstream):
    instance = serve(server("up", upstream.url), server("down", nowhere(), critical=True))
    settles_at("critical", lambda: transports(instance)["status"])
    code, why = readiness(instance)
    assert code == 503 and why.startswith("down: upstream ")
    assert instance.get("api/v1/health").json()["overall"] == "critical"
    assert instance.get("healthz").status_code == 200
    assert post(instance, "up", call()).status_code == 200


def test_without_any_server_it_is_not_ready(serve):
    instance = serve(server("one", nowhere()), server("two", nowhere()))
    settles_at(503, lambda: readiness(instance)[0])
    settles_at("critical", lambda: transports(instance)["status"])
    settles_at(True, lambda: all(f"{name}: upstream" in readiness(instance)[1] for name in ["one", "two"]))


def test_a_server_is_started_and_ended(serve, environment):
    instance = serve(started("one"))
    pid = pid_of(instance, "one")
    assert os.getpgid(pid) == pid, "it has a process group of its own"
    settles_at((200, ""), lambda: readiness(instance), within=LONG)
    # What it prints is on our stderr.
    assert "serving\n" in instance.stderr() and "asked pid\n" in instance.stderr()
    settles_at(["one"], lambda: [process["name"] for process in instance.get("api/v1/dashboard").json()["processes"]])
    instance.process.terminate()
    assert instance.wait(LONG) == 0
    assert state(pid) == "X"


def crash_while(serve, phase):
    """A server is killed in a phase of a session, and its client goes on with the next request."""
    instance = serve(started("one"), started("other"), supervision=AT_ONCE)
    other = pid_of(instance, "other")
    pid = pid_of(instance, "one")
    phase(instance, lambda: kill(pid))
    assert pid_of(instance, "one") not in (pid, other)
    assert pid_of(instance, "other") == other
    settles_at(1, lambda: instance.metrics().sum("mcpscope_restarts_total", server="one"))
    assert instance.metrics().sum("mcpscope_restarts_total", server="other") == 0
    settles_at((200, ""), lambda: readiness(instance), within=LONG)


def test_killed_while_idle(serve):
    crash_while(serve, lambda _, kill: kill())


def test_killed_before_initialize(serve):
    def phase(instance, kill):
        kill()
        answer = post(instance, "one", INITIALIZE)
        assert answer.status_code == 200 and answer.json()["id"] == 0

    crash_while(serve, phase)


def test_killed_in_a_session(serve):
    def phase(instance, kill):
        session = {"Mcp-Session-Id": post(instance, "one", INITIALIZE).headers["Mcp-Session-Id"]}
        assert post(instance, "one", call(), **session).status_code == 200
        kill()
        # The server has forgotten it, says so by 404, and the client begins anew, as the protocol has it.
        assert post(instance, "one", call(), **session).status_code == 404
        session = {"Mcp-Session-Id": post(instance, "one", INITIALIZE).headers["Mcp-Session-Id"]}
        assert post(instance, "one", call(), **session).status_code == 200

    crash_while(serve, phase)


def test_killed_during_calls(serve):
    def phase(instance, kill):
        with contextlib.ExitStack() as calls:
            waits = [
                calls.enter_context(in_background(lambda id=id: post(instance, "one", call("hang", id=id))))
                for id in [7, "seven", 8]
            ]
            wait_until(lambda: instance.stderr().count("asked hang") == 3, within=LONG, what="the calls")
            kill()
            for wait, id in zip(waits, [7, "seven", 8]):
                answer = wait()
                assert (answer.status_code, answer.json()["id"]) == (502, id)
                assert answer.json()["error"]["code"] == -32603
                assert "the connection broke before an answer" in answer.json()["error"]["message"]

    crash_while(serve, phase)


@pytest.mark.parametrize("in_session", [False, True])
def test_killed_during_an_event_stream(serve, in_session):
    def phase(instance, kill):
        headers = {}
        if in_session:
            headers["Mcp-Session-Id"] = post(instance, "one", INITIALIZE).headers["Mcp-Session-Id"]
        url, message = instance.ready["proxy"]["one"], json.dumps(call("stream", id="s"))
        with httpx.stream(
            "POST", url, content=message, headers=HEADERS | headers, trust_env=False, timeout=LONG
        ) as answer:
            lines = answer.iter_lines()
            assert "notifications/message" in next(lines)
            kill()
            # The stream ends as if the server had ended it, with an error of ours in place of its answer.
            data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        (error,) = data
        assert (error["id"], error["error"]["code"], error["error"]["data"]) == ("s", -32603, {"source": "mcpscope"})
        assert error["error"]["message"] == "mcpscope: the server crashed before it answered"
        settles_at(1, lambda: instance.metrics().tool_calls(server="one").get(("stream", "error"), 0))

    crash_while(serve, phase)


def test_killed_in_the_middle_of_an_event(serve):
    def phase(instance, kill):
        url, message = instance.ready["proxy"]["one"], json.dumps(call("half", id="h"))
        with httpx.stream("POST", url, content=message, headers=HEADERS, trust_env=False, timeout=LONG) as answer:
            chunks = answer.iter_raw()
            assert next(chunks).startswith(b"data: ")
            kill()
            # No error could follow half an event: the stream is broken off, which is an error, too.
            with pytest.raises(httpx.RemoteProtocolError):
                list(chunks)

    crash_while(serve, phase)


def test_a_crash_by_itself_is_no_other(serve):
    instance = serve(started("one"), supervision=AT_ONCE)
    pid = pid_of(instance, "one")
    answer = post(instance, "one", call("exit", id=9))
    assert (answer.status_code, answer.json()["id"]) == (502, 9)
    assert pid_of(instance, "one") != pid


def test_it_is_not_ready_while_its_server_is_down(serve):
    instance = serve(started("one"), supervision=NEVER, proxy={"connect_timeout": "500ms"})
    settles_at((200, ""), lambda: readiness(instance), within=LONG)
    kill(pid_of(instance, "one"))
    settles_at((503, "one: server restarting, attempt 1"), lambda: readiness(instance), within=LONG)
    settles_at("critical", lambda: transports(instance)["status"])
    answer = post(instance, "one", call(id=3))
    assert (answer.status_code, answer.json()["id"]) == (502, 3)
    assert "server restarting, attempt 1, and no connection within 0.5 s" in answer.json()["error"]["message"]
    instance.process.terminate()
    assert instance.wait(LONG) == 0


def test_a_server_that_is_given_up_hurts_no_other(serve, upstream):
    crashing = server("bad", nowhere(), command=["sh", "-c", "exit 9"])
    missing = server("missing", nowhere(), command=["/nowhere/at-all"])
    instance = serve(server("good", upstream.url), crashing, missing, supervision=AT_ONCE | {"give_up": 3})
    given_up = "server given up after 3 crashes in 60 s"
    settles_at(f"bad: {given_up}; missing: {given_up}", lambda: transports(instance)["message"], within=LONG)
    assert transports(instance)["status"] == "warning"
    assert "No such file" in instance.stderr()
    for name in ["bad", "missing"]:
        answer = post(instance, name, call(id=4))
        assert (answer.status_code, answer.json()["id"]) == (502, 4)
        assert given_up in answer.json()["error"]["message"]
    assert post(instance, "good", call()).status_code == 200
    assert readiness(instance) == (200, "")


def test_a_server_that_never_listens_is_given_up(serve, upstream):
    hanging = server("hanging", nowhere(), command=["sleep", "1000"])
    supervision = AT_ONCE | {"give_up": 3, "start_timeout": "300ms"}
    instance = serve(server("good", upstream.url), hanging, supervision=supervision)
    given_up = "server given up after 3 crashes (the last: accepted no connections within 0.3 s)"
    settles_at(f"hanging: {given_up}", lambda: transports(instance)["message"], within=LONG)
    assert "accepted no connections within 0.3 s" in instance.stderr()
    answer = post(instance, "hanging", call(id=4))
    assert (answer.status_code, answer.json()["id"]) == (502, 4)
    assert given_up in answer.json()["error"]["message"]
    assert post(instance, "good", call()).status_code == 200
    assert instance.metrics().sum("mcpscope_restarts_total", server="hanging") == 2


@pytest.mark.parametrize(("tool", "options"), [("leave", ()), ("exit", ("--restart", "never"))])
def test_what_ends_well_or_is_not_to_be_started_again_stays_ended(serve, tool, options):
    instance = serve(started("one", critical=True), options=options)
    pid_of(instance, "one")
    assert post(instance, "one", call(tool)).status_code == 502
    code = {"leave": 0, "exit": 3}[tool]
    ended = f"one: server ended (exit status: {code})"
    settles_at((503, ended), lambda: readiness(instance), within=LONG)
    assert post(instance, "one", call()).status_code == 502
    assert instance.metrics().sum("mcpscope_restarts_total") == 0


def test_what_a_server_leaves_behind_ends_with_it(serve, environment):
    port = free_port()
    # The shell is the process; the server is its child, as with npx.
    script = f'sleep 1000 & {SERVED[0]} {SERVED[1]} {port} & wait'
    instance = serve(server("one", f"http://127.0.0.1:{port}/mcp", command=["sh", "-c", script]), supervision=AT_ONCE)
    pid = pid_of(instance, "one")

    def sleeping() -> list[int]:
        return [pid for pid, line in marked(environment.mark).items() if line.startswith("sleep 1000")]

    (first,) = wait_until(sleeping, within=LONG, what="the group")
    kill(os.getpgid(pid))
    wait_until(lambda: sleeping() and sleeping() != [first], within=LONG, what="the next group")
    assert pid_of(instance, "one") != pid
    settles_at(1, lambda: len(sleeping()))


def test_a_second_signal_leaves_no_server_behind(serve):
    one = started("one")
    # It ends by SIGKILL only, which the first signal would get to after ten seconds.
    stubborn = one | {"command": ["sh", "-c", 'trap "" TERM; exec "$@"', "sh", *one["command"]]}
    instance = serve(stubborn, started("two"))
    pids = [pid_of(instance, name) for name in ["one", "two"]]

    def insist():
        instance.process.terminate()
        return instance.process.poll()

    assert wait_until(insist, within=LONG, what="the end") == 143
    settles_at(["X", "X"], lambda: [state(pid) for pid in pids])
