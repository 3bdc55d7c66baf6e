"""The configuration is read again while mcpscope runs: a good one changes what it is about, a bad one nothing."""

import concurrent.futures
import contextlib
import http.client
import json
import signal
import socket
import threading
import time

import pytest

from harness import connects, free_port, settles_at, wait_until
from serving import HEADERS, LONG, in_background, pid_of, post, readiness, server, started, state, transports
from upstream import call, result_for


def port_of(instance, name: str) -> int:
    return int(instance.ready["proxy"][name].rsplit(":", 1)[1].split("/")[0])


def says(instance, text: str, times: int = 1):
    deadline = time.monotonic() + LONG
    while instance.stderr().count(text) < times and time.monotonic() < deadline:
        time.sleep(0.02)
    assert instance.stderr().count(text) >= times, instance.stderr()


def read_again(instance):
    """The ready file is that of the servers there are."""
    instance.ready = json.loads(instance.ready_file.read_text())
    return instance.ready["proxy"]


class Held:
    """An upstream whose calls wait until they are let go."""

    def __init__(self, upstream):
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        upstream.answer = self.answer

    def answer(self, exchange):
        self.begun.release()
        assert self.go_on.wait(LONG)
        exchange.answer_json(result_for(exchange.json()))


def test_servers_come_and_go_and_no_other_is_touched(serve, upstream):
    held = Held(upstream)
    steady, other = server("steady", upstream.url), started("other")
    instance = serve(steady, other)
    old, pid = port_of(instance, "other"), pid_of(instance, "other")
    with in_background(lambda: post(instance, "steady", call(id="long"))) as wait:
        assert held.begun.acquire(timeout=LONG)

        serve.rewrite(steady, other, started("third"))
        says(instance, "mcpscope: servers added: third\n")
        settles_at({"steady", "other", "third"}, lambda: set(read_again(instance)), within=LONG)
        assert f"proxy {instance.ready['proxy']['third']} third\n" in instance.stderr()
        third = pid_of(instance, "third")
        assert (pid_of(instance, "other"), port_of(instance, "other")) == (pid, old)

        changed = started("other", listen=f"127.0.0.1:{old}")
        serve.rewrite(steady, changed, started("fourth"))
        says(instance, "mcpscope: servers added: fourth; changed: other; removed: third\n")
        settles_at({"steady", "other", "fourth"}, lambda: set(read_again(instance)), within=LONG)
        wait_until(lambda: state(third) == "X", within=LONG, what="the end of the one removed")
        wait_until(lambda: state(pid) == "X", within=LONG, what="the end of the one changed")
        assert pid_of(instance, "other") not in (pid, third)

        held.go_on.set()
        answer = wait()
        assert (answer.status_code, answer.json()["id"]) == (200, "long")
    assert instance.metrics().tool_calls(server="steady") == {("probe", "ok"): 1}
    settles_at((200, ""), lambda: readiness(instance), within=LONG)


def test_a_removed_one_finishes_what_is_in_flight(serve, upstream):
    held = Held(upstream)
    steady, leaving = server("steady", upstream.url), server("leaving", upstream.url)
    instance = serve(steady, leaving)
    port = port_of(instance, "leaving")
    with in_background(lambda: post(instance, "leaving", call(id=5))) as wait:
        assert held.begun.acquire(timeout=LONG)
        serve.rewrite(steady)
        says(instance, "mcpscope: servers removed: leaving\n")
        settles_at(False, lambda: connects(port), within=LONG)
        held.go_on.set()
        assert wait().json()["id"] == 5
    assert set(read_again(instance)) == {"steady"}
    settles_at((200, ""), lambda: readiness(instance), within=LONG)


def test_who_connects_during_a_change_is_not_turned_away(serve, upstream):
    ours, theirs = started("ours", critical=True), server("theirs", upstream.url)
    instance = serve(ours, theirs)
    elsewhere = theirs | {"upstream": upstream.url.replace("127.0.0.1", "localhost")}
    done, wrong = threading.Event(), []

    def ask(name):
        while not done.is_set():
            # A connection of its own each time.
            connection = http.client.HTTPConnection("127.0.0.1", port_of(instance, name), timeout=LONG)
            with contextlib.closing(connection):
                try:
                    connection.request("POST", "/mcp", json.dumps(call("pid")), HEADERS)
                    answer = connection.getresponse()
                    if answer.status != 200:
                        wrong.append((name, answer.status, answer.read()))
                except (OSError, http.client.HTTPException) as error:
                    wrong.append((name, repr(error)))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, name) for name in ("ours", "theirs") * 2]
        try:
            for change in range(1, 5):
                pid = pid_of(instance, "ours")
                # The same ports for the next ones, and for the next process, which is started when the first has ended.
                command = [*ours["command"], str(change)]
                serve.rewrite(ours | {"command": command}, elsewhere if change % 2 else theirs)
                says(instance, "mcpscope: servers changed: ours, theirs\n", times=change)
                assert pid_of(instance, "ours") != pid
        finally:
            done.set()
        for each in asking:
            each.result(LONG)
    assert not wrong
    settles_at((200, ""), lambda: readiness(instance), within=LONG)
    assert instance.metrics().sum("mcpscope_restarts_total") == 0


def test_a_renamed_one_waits_for_the_process_that_has_its_port(serve, upstream):
    before = started("before")
    instance = serve(before)
    pid = pid_of(instance, "before")
    elsewhere = before["upstream"].replace("127.0.0.1", "localhost").replace("/mcp", "/other")
    # The process goes on as long as this may take to end.
    held = http.client.HTTPConnection("127.0.0.1", port_of(instance, "before"), timeout=LONG)
    with contextlib.closing(held):
        held.request("POST", "/mcp", json.dumps(call("hang")), HEADERS)
        says(instance, "asked hang\n")
        serve.rewrite(before | {"name": "after", "upstream": elsewhere})
        says(instance, "mcpscope: servers added: after; removed: before\n")
        settles_at({"after"}, lambda: set(read_again(instance)), within=LONG)
        assert pid_of(instance, "after") != pid
    settles_at((200, ""), lambda: readiness(instance), within=LONG)
    assert instance.metrics().sum("mcpscope_restarts_total") == 0


def test_one_may_become_critical_without_being_touched(serve, upstream):
    bad = server("bad", f"http://127.0.0.1:{free_port()}/mcp")
    good = started("good")
    instance = serve(good, bad)
    pid = pid_of(instance, "good")
    settles_at("warning", lambda: transports(instance).get("status"), within=LONG)
    serve.rewrite(good | {"critical": True}, bad | {"critical": True})
    settles_at(503, lambda: readiness(instance)[0], within=LONG)
    serve.rewrite(good, bad)
    settles_at(200, lambda: readiness(instance)[0], within=LONG)
    assert pid_of(instance, "good") == pid


def test_one_may_be_renamed_where_it_is(serve, upstream):
    at = f"127.0.0.1:{free_port()}"
    instance = serve(server("before", upstream.url, at))
    serve.rewrite(server("after", upstream.url, at))
    says(instance, "mcpscope: servers added: after; removed: before\n")
    read_again(instance)
    assert post(instance, "after", call()).status_code == 200
    settles_at({("probe", "ok"): 1}, lambda: instance.metrics().tool_calls(server="after"))


def test_a_bad_file_changes_nothing(serve, upstream):
    one = server("one", upstream.url)
    instance = serve(one)
    bad = "servers:\n  - { name: one, upstrem: 'http://127.0.0.1:1' }\ntracing: { max_traces: 0 }\n"
    serve.put(bad)
    says(instance, "mcpscope: the configuration is bad, and what runs stays as it is:\n")
    file = serve.file
    says(instance, f"{file}:2:18: servers[0].upstrem: unknown key, did you mean `upstream`?\n")
    says(instance, f"{file}:3:24: tracing.max_traces: expected a whole number from 1 to 1000000, found 0\n")
    assert post(instance, "one", call()).status_code == 200

    serve.rewrite()
    says(instance, "mcpscope: the servers stay as they are: serve needs at least one server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        serve.rewrite(server("two", upstream.url, at), server("three", upstream.url))
        says(instance, f'mcpscope: the servers stay as they are: server "two": cannot listen on {at}: ')
    file.unlink()
    says(instance, f"{file}: cannot be read: No such file")
    assert post(instance, "one", call()).status_code == 200
    assert set(read_again(instance)) == {"one"}
    serve.rewrite(one, server("two", upstream.url))
    says(instance, "mcpscope: servers added: two\n")
    assert instance.process.poll() is None


def test_what_cannot_change_takes_effect_at_the_next_start(serve, upstream):
    one = server("one", upstream.url)
    instance = serve(one)
    serve.rewrite(one, tracing={"max_traces": 7}, supervision={"give_up": 3})
    says(instance, "mcpscope: take effect at the next start: supervision.give_up, tracing.max_traces\n")
    serve.rewrite(one, server("two", upstream.url), tracing={"max_traces": 7})
    says(instance, "mcpscope: takes effect at the next start: tracing.max_traces\n")
    says(instance, "mcpscope: servers added: two\n")


def test_a_hangup_reads_it_again(serve, upstream):
    one = server("one", upstream.url)
    instance = serve(one)
    instance.process.send_signal(signal.SIGHUP)
    says(instance, "mcpscope: the configuration was read again\n")
    assert "mcpscope: servers" not in instance.stderr()
    serve.rewrite(one, server("two", upstream.url))
    instance.process.send_signal(signal.SIGHUP)
    says(instance, "mcpscope: the configuration was read again\n", times=2)
    says(instance, "mcpscope: servers added: two\n")
    assert instance.stderr().count("mcpscope: servers") == 1


def test_a_link_that_leads_elsewhere_is_a_change(serve, upstream, instances, tmp_path):
    # As Kubernetes mounts a ConfigMap.
    for version, names in [("v1", ["one"]), ("v2", ["one", "two"])]:
        (tmp_path / version).mkdir()
        servers = [server(name, upstream.url) for name in names]
        (tmp_path / version / "serve.yaml").write_text(json.dumps({"servers": servers}))
    data = tmp_path / "data"
    data.symlink_to("v1")
    file = tmp_path / "linked.yaml"
    file.symlink_to("data/serve.yaml")
    instance = instances.serve(file)
    new = tmp_path / "new"
    new.symlink_to("v2")
    new.replace(data)
    says(instance, "mcpscope: servers added: two\n")


@pytest.mark.parametrize("command", ["proxy", "demo"])
def test_a_hangup_ends_no_other_command(instances, upstream, tmp_path, command):
    file = tmp_path / "mcpscope.yaml"
    file.write_text("tracing: { max_traces: 5 }\n")
    options = ("--config", str(file))
    instance = instances.proxy(upstream.url, *options) if command == "proxy" else instances.demo(*options)
    file.write_text("tracing: { max_traces: 6 }\nservers: []\n")
    says(instance, "mcpscope: takes effect at the next start: tracing.max_traces\n")
    file.write_text("tracing: { max_traces: many }\n")
    instance.process.send_signal(signal.SIGHUP)
    says(instance, f"{file}:1:24: tracing.max_traces: expected a whole number")
    file.write_text("tracing: { max_traces: 5 }\n")
    instance.process.send_signal(signal.SIGHUP)
    says(instance, "mcpscope: the configuration was read again\n")
    assert instance.get("healthz").status_code == 200
    instance.process.terminate()
    assert instance.wait(LONG) == 0


def test_a_hangup_is_the_wrapped_server_s(instances, tmp_path):
    file = tmp_path / "mcpscope.yaml"
    file.write_text("tracing: { max_traces: 5 }\n")
    instance = instances.run("--config", str(file), command=["cat"])
    file.write_text("tracing: { max_traces: 6 }\n")
    says(instance, "mcpscope: takes effect at the next start: tracing.max_traces\n")
    instance.process.send_signal(signal.SIGHUP)
    assert instance.wait(LONG) == 128 + signal.SIGHUP
