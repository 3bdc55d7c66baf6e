"""`mcpscope chaos`: an experiment from its plan to its report, who may start one, and what a mistake is told."""

import json
import pathlib
import re
import signal

import httpx
import pytest

from harness import free_port, wait_until
from upstream import call, result_for

# More than a loaded machine needs for anything here.
LONG = 60


@pytest.fixture(autouse=True)
def own_temporary_directory(monkeypatch, tmp_path):
    """The runtime directory is elsewhere if nothing names one: no instance of the machine's may be found there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def proxy(instances, upstream):
    """A proxy that has passed a call, so that its server can be disturbed."""
    upstream.answer = lambda exchange: exchange.answer_json(result_for(exchange.json()))
    proxy = instances.proxy(upstream.url, "--name", "weather")
    assert not failed(proxy)
    return proxy


def failed(proxy) -> bool:
    """Whether a call of a tool does."""
    answer = httpx.post(proxy.proxy, json=call("forecast"), trust_env=False, timeout=LONG)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"].get("isError", False)


@pytest.fixture
def chaos(instances):
    """Runs `mcpscope chaos`, which is to end with `code`: its stdout if that says what was done, else its stderr."""

    def chaos(*arguments: str, code: int = 0) -> str:
        done = instances.finish("chaos", *arguments, within=LONG)
        stdout, stderr = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, (arguments, stdout, stderr)
        assert "\x1b" not in stdout + stderr, "colours are for terminals"
        return stdout if code in (0, 1) else stderr

    return chaos


@pytest.fixture
def chaos_json(chaos):
    """The same for programs: one line of JSON."""

    def chaos_json(*arguments: str, code: int = 0):
        text = chaos(*arguments, "--output", "json", code=code)
        assert text.count("\n") == 1 and text.endswith("\n"), text
        return json.loads(text)

    return chaos_json


@pytest.fixture
def start(chaos_json):
    """Starts an experiment and gives its id."""

    def start(*wanted: str) -> str:
        test = chaos_json("start", *wanted)
        assert test["status"] == "running", test
        return str(test["id"])

    return start


def ended(chaos_json, id: str) -> dict:
    """The experiment in the history, once it is there."""

    def find():
        return next((test for test in chaos_json("history") if str(test["id"]) == id), None)

    return wait_until(find, within=LONG, what=f"the end of experiment {id}")


# --- From the plan to the report


def test_an_experiment_from_its_plan_to_its_report(proxy, instances, chaos, chaos_json, tmp_path):
    wanted = ("tool_error", "tool=forecast", "duration=60s")
    plan = chaos("plan", *wanted)
    assert plan.startswith("tool_error would be started\n") and "weather" in plan
    assert "nothing was started; `mcpscope chaos start tool_error tool=forecast duration=60s` does it" in plan
    outlook = chaos_json("plan", *wanted)
    assert (outlook["scenario"], outlook["duration"], outlook["targets"]) == ("tool_error", 60_000, ["weather"])
    assert chaos_json("status")["active_tests"] == 0 and not failed(proxy)

    started = chaos("start", *wanted)
    id = re.match(r"experiment (\d+): tool_error is running\n", started)[1]
    for part in (f"mcpscope chaos stop {id}", f"mcpscope chaos report {id}", "mcpscope chaos emergency-stop"):
        assert part in started
    assert re.search(r"ends +at \d\d:\d\d:\d\d\.\d{3} UTC, after 60\.0 s\n", started), started
    assert [failed(proxy) for _ in range(3)] == [True, True, True]
    status = chaos_json("status")
    (test,) = status["active_tests_details"]
    assert (str(test["id"]), test["name"], test["details"]["injected"]) == (id, "tool_error", 3)
    row = next(line for line in chaos("status").splitlines() if "running" in line and "tool_error" in line)
    assert re.fullmatch(rf" *{id}  tool_error  running +\S+ m?s +3  weather  duration=60s tool=forecast", row), row
    overview = lambda: b"chaos: tool_error (experiment" in instances.finish("status", within=LONG).stdout  # noqa: E731
    wait_until(overview, within=LONG, what="the experiment at a glance")
    assert "has not ended" in chaos("report", id, code=69)

    assert f"`mcpscope chaos report {id}`" in chaos("stop", id)
    assert not failed(proxy)
    test = ended(chaos_json, id)
    assert (test["status"], test["details"]["report"]["injection"]["injected"]) == ("aborted", 3)
    assert "aborted" in chaos("history", "--limit", "1")
    report = chaos("report")
    assert report.startswith(f"experiment {id}: tool_error aborted\n") and "Not known: it was ended early" in report
    assert f"mcpscope chaos replay {id}" in report
    page = tmp_path / "report.html"
    done = instances.finish("chaos", "report", id, "--html", str(page), "--output", "json", within=LONG)
    assert (done.returncode, done.stderr.decode()) == (0, f"written to {page}\n")
    assert json.loads(done.stdout)["injection"]["observed"] == 3
    assert page.read_text().startswith("<!doctype html>")


def test_a_journal_is_decided_again_compared_and_done_again(proxy, chaos, chaos_json, start):
    def run(calls: int, *others: str) -> tuple[str, list[bool]]:
        id = start("tool_error", "probability=0.5", "duration=60s", *others)
        seen = [failed(proxy) for _ in range(calls)]
        chaos("stop", id)
        ended(chaos_json, id)
        return id, seen

    first, seen = run(16, "seed=7")
    assert "which were decided again: all are the same" in chaos("replay", first)
    assert chaos_json("replay", first)["hits"] == sum(seen)
    again = chaos_json("replay", first, "--start")
    assert (again["name"], again["status"], again["details"]["seed"]) == ("tool_error", "running", 7)
    assert [failed(proxy) for _ in range(16)] == seen
    chaos("stop", str(again["id"]))
    ended(chaos_json, str(again["id"]))
    assert "all are the same" in chaos("replay", first, str(again["id"]))
    other, differs = run(16, "seed=8")
    assert differs != seen, "of 2^16 chances one"
    told = chaos("replay", first, other, code=1)
    assert "they differ" in told and "the first: hit " in told
    assert "there is no experiment 77: the newest are " in chaos("replay", "77", code=64)


def test_the_newest_report_says_that_a_newer_experiment_has_none_yet(proxy, instances, chaos, chaos_json, start):
    ended(chaos_json, str(chaos_json("start", "hang", "duration=200ms", "recovery_time=200ms", "--wait")["id"]))
    assert instances.finish("chaos", "report", within=LONG).stderr == b""
    newer = start("hang", "duration=60s")
    done = instances.finish("chaos", "report", "--output", "json", within=LONG)
    told = f"mcpscope: experiment {newer} (hang) is running: this is experiment 1, which ended last\n"
    assert (done.returncode, json.loads(done.stdout)["id"], done.stderr.decode()) == (0, 1, told)


def test_waiting_ends_with_the_experiment(proxy, instances, chaos, chaos_json):
    told = chaos("start", "tool_error", "duration=200ms", "recovery_time=200ms", "--wait")
    assert "recovering" in told and re.search(r"\d\d:\d\d:\d\d\.\d{3}  completed", told), told
    assert "`mcpscope chaos report " in told.splitlines()[-1]
    # A program gets what became of it, in one line.
    report = chaos_json("start", "tool_error", "duration=200ms", "recovery_time=200ms", "--watch")
    assert (report["scenario"], report["status"]) == ("tool_error", "completed")

    waiting = instances.spawn("chaos", "start", "tool_error", "duration=60s", "--wait", ready=False)
    running = lambda: chaos_json("status")["active_tests_details"]  # noqa: E731
    (test,) = wait_until(running, within=LONG, what="the experiment")
    chaos("stop", str(test["id"]))
    assert waiting.wait(LONG) == 1
    assert "aborted: " in waiting.process.stdout.read().decode()


def test_following_the_state(proxy, instances, chaos, start):
    following = instances.spawn("chaos", "status", "--follow", "--output", "json", ready=False)

    def state() -> dict:
        return json.loads(following.process.stdout.readline())

    assert state()["active_tests"] == 0
    id = start("tool_error", "duration=60s")
    while state()["active_tests"] != 1:
        pass
    chaos("stop", id)
    while state()["total_history"] != 1:
        pass
    following.process.send_signal(signal.SIGINT)
    assert following.wait(LONG) in (130, -signal.SIGINT)
    assert following.stderr() == ""


def test_after_an_emergency_stop_nothing_starts_until_it_is_armed_again(proxy, chaos, chaos_json, start):
    assert "nothing was stopped" in chaos("rearm", code=69)
    start("tool_error", "duration=60s")
    assert failed(proxy)
    assert "`mcpscope chaos rearm`" in chaos("emergency-stop")
    assert not failed(proxy)
    refused = chaos("start", "tool_error", code=69)
    assert "everything was stopped by a person" in refused
    assert refused.endswith("; `mcpscope chaos rearm` allows experiments again\n")
    assert "EMERGENCY STOP by a person: nothing is started until `mcpscope chaos rearm`\n" in chaos("status")
    assert chaos_json("status")["emergency_stop"] is True
    assert "can be started again" in chaos("rearm")
    start("tool_error", "duration=60s")


# --- Who may start one


def test_only_who_knows_the_token_starts_something(proxy, instances, tmp_path):
    stranger = tmp_path / "stranger"
    stranger.mkdir(mode=0o700)
    # One who does not find what the instance left for its user.
    variables = instances.variables() | {"XDG_RUNTIME_DIR": str(stranger), "TMPDIR": str(stranger)}

    def chaos(*arguments: str) -> tuple[int, str]:
        command = instances.spawn("chaos", *arguments, "--addr", proxy.grpc, ready=False, env=variables)
        stdout = command.process.stdout.read().decode()
        return command.wait(LONG), stdout + command.stderr()

    (note,) = pathlib.Path(instances.variables()["XDG_RUNTIME_DIR"], "mcpscope").glob("*.json")
    token = json.loads(note.read_text())["chaos_token"]
    files = {name: tmp_path / name for name in ("right", "wrong", "empty")}
    for name, text in (("right", token + "\n"), ("wrong", "0123456789abcdef"), ("empty", "\n")):
        files[name].write_text(text)
    code, told = chaos("start", "tool_error")
    assert code == 64 and "this needs the chaos token" in told and "--token-file" in told, told
    code, told = chaos("start", "tool_error", "--token-file", str(files["wrong"]))
    assert code == 64 and "this is not the chaos token" in told, told
    code, told = chaos("start", "tool_error", "--token-file", str(files["empty"]))
    assert code == 64 and "has no token in it" in told, told
    assert not failed(proxy)
    code, told = chaos("start", "tool_error", "duration=60s", "--token-file", str(files["right"]))
    # What comes next is about the same instance.
    assert code == 0 and f"mcpscope chaos emergency-stop --addr {proxy.grpc}" in told, told
    assert failed(proxy)
    assert chaos("emergency-stop")[0] == 0 and not failed(proxy)
    assert chaos("rearm")[0] == 64
    assert chaos("rearm", "--token-file", str(files["right"]))[0] == 0


# --- What a mistake is told


@pytest.mark.parametrize(
    "arguments, code, told",
    [
        (["start", "latency_injecton"], 64, "a similar value exists: 'latency_injection'"),
        (["start"], 64, "<SCENARIO>"),
        (["start", "hang", "every"], 64, "hang: `every` is no parameter: expected NAME=VALUE"),
        (["start", "hang", "every=2", "every=3"], 64, "hang: every is given twice"),
        (["start", "hang", "evry=2"], 64, "hang has no parameter `evry`: expected one of "),
        (["start", "hang", "evry=2"], 64, "; `mcpscope chaos scenarios hang` lists what it takes"),
        (["plan", "hang", "duration=61s"], 64, "at most 1m, which is the plan's test_duration"),
        (["start", "hang", "server=other"], 64, "there is weather"),
        (["plan", "process_crash"], 69, "process_crash is not available here"),
        (["start", "hang", "every=0", "evry=2"], 64, "expected one of "),
        (["start", "hang", "every=0", "evry=2"], 64, "\nhang: every is \"0\": expected a whole number"),
        (["stop", "77"], 64, "experiment 77 is not running"),
        (["report", "77"], 64, "there is no experiment 77: there was none yet"),
        (["report"], 64, "no experiment has ended yet"),
        (["replay", "1", "2", "--start"], 64, "cannot be used with"),
        (["start", "hang", "--token-file", "/nonexistent/token"], 64, "--token-file: cannot read /nonexistent/token"),
        (["history", "--limit", "1001"], 64, "1001 is not in 1..=1000"),
    ],
)
def test_a_mistake_is_told_what_is_right(proxy, chaos, arguments, code, told):
    assert told in chaos(*arguments, code=code)


@pytest.mark.parametrize("command", [["status"], ["emergency-stop"], ["start", "hang"]])
def test_nobody_there_is_69(chaos, command):
    address = f"127.0.0.1:{free_port()}"
    assert address in chaos(*command, "--addr", address, code=69)


def test_what_can_be_started_is_known_without_an_instance(chaos, chaos_json):
    assert "Inject random network latency" in chaos("scenarios")
    assert len(chaos_json("scenarios")) == 27
    page = chaos("scenarios", "latency_injection")
    assert "distribution" in page and "uniform" in page
    parameters = {parameter["name"]: parameter for parameter in chaos_json("scenarios", "hang")["parameters"]}
    assert parameters["tool"]["default"] is None and "Only calls of this tool" in parameters["tool"]["about"]
