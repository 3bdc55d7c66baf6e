"""`mcpscope chaos run`: experiments of a file one after the other, and what a pipeline gets to read."""

import json
import signal
import xml.etree.ElementTree as xml

import httpx
import pytest

from harness import free_port, wait_until
from upstream import call, result_for

# More than a loaded machine needs for anything here.
LONG = 60

# It ends soon, and without calls there is nothing to judge by.
SHORT = "parameters: { duration: 200ms, recovery_time: 200ms }"


@pytest.fixture(autouse=True)
def own_temporary_directory(monkeypatch, tmp_path):
    """The runtime directory is elsewhere if nothing names one: no instance of the machine's may be found there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def proxy(instances, upstream):
    """A proxy that has passed a call, so that its server can be disturbed."""
    upstream.answer = lambda exchange: exchange.answer_json(result_for(exchange.json()))
    proxy = instances.proxy(upstream.url, "--name", "weather")
    assert httpx.post(proxy.proxy, json=call("forecast"), trust_env=False, timeout=LONG).status_code == 200
    return proxy


class Runs:
    """Runs files of experiments."""

    def __init__(self, instances, folder):
        self.instances, self.file, self.junit = instances, folder / "suite.yaml", folder / "junit.xml"
        self.arguments = ["chaos", "run", str(self.file), "--assert", "--junit", str(self.junit)]

    def write(self, *experiments: str):
        self.file.write_text("experiments:\n" + "".join(f"  - {{ {experiment} }}\n" for experiment in experiments))

    def __call__(self, *experiments: str, code: int = 0, options=()) -> tuple[str, str]:
        """Stdout and stderr of a run of these."""
        self.write(*experiments)
        done = self.instances.finish(*self.arguments, *options, within=LONG)
        stdout, stderr = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, (stdout, stderr)
        assert "\x1b" not in stdout + stderr, "colours are for terminals"
        return stdout, stderr

    def cases(self) -> dict[str, tuple[str, str]]:
        """Of each test case what a reader of JUnit makes of it, and why."""
        (suite,) = root = xml.parse(self.junit).getroot()
        assert (root.tag, suite.tag) == ("testsuites", "testsuite")
        cases, counts = {}, {"failure": 0, "error": 0, "skipped": 0}
        for case in suite.findall("testcase"):
            assert float(case.get("time")) >= 0
            (result,) = (part for part in case if part.tag != "properties")
            if result.tag in counts:
                counts[result.tag] += 1
            why = result.text if result.tag == "system-out" else result.get("message")
            cases[case.get("name")] = ("passed" if result.tag == "system-out" else result.tag, why)
        told = [int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")]
        assert told == [len(cases), *counts.values()]
        assert [root.get(name) for name in ("tests", "failures")] == [suite.get(name) for name in ("tests", "failures")]
        return cases

    def properties(self, name: str) -> dict[str, str]:
        case = xml.parse(self.junit).getroot().find(f"testsuite/testcase[@name='{name}']")
        return {part.get("name"): part.get("value") for part in case.iter("property")}


@pytest.fixture
def runs(instances, tmp_path):
    return Runs(instances, tmp_path)


@pytest.fixture
def chaos(instances):
    """What `mcpscope chaos` says as JSON."""

    def chaos(*arguments: str):
        done = instances.finish("chaos", *arguments, "--output", "json", within=LONG)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return chaos


def test_experiments_are_run_in_order_and_told_as_junit(proxy, runs, chaos, tmp_path):
    reports = tmp_path / "new" / "reports"
    options = ["--report", str(reports), "--output", "json"]
    first = "name: a <slow> tool, scenario: tool_error, match: { tool: forecast, every: 3 }"
    stdout, stderr = runs(f"{first}, {SHORT}", f"scenario: hang, pause: 10ms, {SHORT}", options=options)
    assert stderr.index("1/2 a <slow> tool: passed: ") < stderr.index("2/2 hang: starts in 10ms\n")
    assert "2/2 hang: passed: Not known: " in stderr
    assert stdout.count("\n") == 1
    slow, hang = json.loads(stdout)["experiments"]
    assert (slow["outcome"], slow["scenario"], slow["status"], slow["held"]) == (
        "passed",
        "tool_error",
        "completed",
        None,
    )
    assert slow["id"] < hang["id"] and slow["seconds"] >= 0.2

    assert {name: outcome for name, (outcome, _) in runs.cases().items()} == {
        "a <slow> tool": "passed",
        "hang": "passed",
    }
    properties = runs.properties("hang")
    assert (properties["id"], properties["seed"], properties["status"]) == (
        str(hang["id"]),
        str(hang["seed"]),
        "completed",
    )
    assert properties["report"] == str(reports / f"experiment-{hang['id']}.html")
    pages = {page.name for page in reports.iterdir()}
    assert pages == {f"experiment-{case['id']}.html" for case in (slow, hang)}
    assert all(page.read_text().startswith("<!doctype html>") for page in reports.iterdir())
    # What the file says has arrived as it was written.
    newest, before = chaos("history")
    assert (newest["name"], before["name"], before["details"]["targets"]) == ("hang", "tool_error", ["weather"])
    assert {"tool": "forecast", "every": "3"}.items() <= before["details"]["parameters"].items()


def test_one_that_does_not_end_as_expected_fails_the_run(proxy, runs, instances):
    suite = (
        # Nobody calls: there is nothing to judge by.
        f"name: unseen, scenario: hang, expect: held, {SHORT}",
        f"name: well, scenario: hang, {SHORT}",
        f"name: too well, scenario: hang, expect: failed, {SHORT}",
    )
    stdout, stderr = runs(*suite, code=1)
    cases = runs.cases()
    assert [outcome for outcome, _ in cases.values()] == ["failure", "passed", "failure"]
    assert cases["unseen"][1].startswith("Expected calls to show that it held: Not known: ")
    assert cases["too well"][1].startswith("Expected it to fail: ")
    assert stdout.endswith("1 passed, 2 failed of 3\n") and "unseen: failed: Expected calls" in stderr
    # Without --assert it is only told.
    runs.arguments.remove("--assert")
    assert runs(*suite)[0].endswith("1 passed, 2 failed of 3\n")


def test_one_that_was_stopped_fails_and_the_next_is_run(proxy, runs, instances, chaos):
    runs.write(
        "name: long, scenario: hang, expect: aborted, parameters: { duration: 60s }", f"scenario: tool_error, {SHORT}"
    )
    run = instances.spawn(*runs.arguments, ready=False)
    (test,) = wait_until(lambda: chaos("status")["active_tests_details"], within=LONG, what="the first experiment")
    assert instances.finish("chaos", "stop", str(test["id"]), within=LONG).returncode == 0
    assert run.wait(LONG) == 1
    cases = runs.cases()
    assert cases["long"] == (
        "failure",
        "Expected its guard to end it: Not known: it was ended early (stopped by a person).",
    )
    assert cases["tool_error"][0] == "passed"


def test_an_emergency_stop_skips_the_rest(proxy, runs, instances, chaos):
    runs.write(
        "scenario: hang, parameters: { duration: 60s }",
        f"scenario: tool_error, {SHORT}",
        f"scenario: oversize, {SHORT}",
    )
    run = instances.spawn(*runs.arguments, ready=False)
    wait_until(lambda: chaos("status")["active_tests_details"], within=LONG, what="the first experiment")
    # Until an experiment has ended nothing is known of it.
    assert {case: outcome for case, (outcome, _) in runs.cases().items()} == dict.fromkeys(
        ["hang", "tool_error", "oversize"], "skipped"
    )
    assert instances.finish("chaos", "emergency-stop", within=LONG).returncode == 0
    assert run.wait(LONG) == 1
    cases = runs.cases()
    assert cases["hang"][0] == "failure"
    assert cases["tool_error"] == cases["oversize"] == ("skipped", "everything was stopped by a person")
    assert "everything was stopped by a person: what follows is skipped\n" in run.stderr()
    assert chaos("status")["total_history"] == 1
    # And none begins until it is armed again.
    _, stderr = runs(f"scenario: hang, {SHORT}", code=69)
    assert "everything was stopped by a person; `mcpscope chaos rearm` allows experiments again" in stderr


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_experiment_that_runs(proxy, runs, instances, chaos, number, code):
    runs.write("scenario: hang, parameters: { duration: 60s }", f"scenario: tool_error, {SHORT}")
    run = instances.spawn(*runs.arguments, ready=False)
    (test,) = wait_until(lambda: chaos("status")["active_tests_details"], within=LONG, what="the first experiment")
    # From here on it follows the experiment, or will.
    run.process.send_signal(number)
    assert run.wait(LONG) == code
    assert f"interrupted: experiment {test['id']} is being stopped\n" in run.stderr()
    status = chaos("status")
    assert (status["active_tests"], status["total_history"], status["emergency_stop"]) == (0, 1, False)
    cases = runs.cases()
    assert cases["hang"][0] == "failure" and "stopped by a person" in cases["hang"][1]
    assert cases["tool_error"] == ("skipped", "the run was interrupted")


def test_a_signal_ends_a_pause(proxy, runs, instances, chaos):
    runs.write(f"scenario: hang, pause: 1h, {SHORT}")
    run = instances.spawn(*runs.arguments, ready=False)
    wait_until(lambda: "1/1 hang: starts in 1h\n" in run.stderr(), within=LONG, what="the pause")
    run.process.send_signal(signal.SIGINT)
    assert run.wait(LONG) == 130
    assert runs.cases() == {"hang": ("skipped", "the run was interrupted")}
    assert chaos("status")["total_history"] == 0


def test_nothing_is_started_if_one_is_refused(proxy, runs, chaos):
    good = f"scenario: hang, {SHORT}"
    _, stderr = runs(
        good,
        "name: a, scenario: hang, parameters: { evry: 2, every: 0, duration: 61s }",
        "name: b, scenario: hang, match: { server: x }",
        "name: c, scenario: hung",
        "name: d, scenario: hang, expect: fine",
        code=64,
    )
    lines = stderr.splitlines()
    for line, (place, told) in zip(
        lines,
        [
            ("3:52: experiments[1].parameters.evry", "hang has no parameter `evry`: expected one of "),
            ("3:62: experiments[1].parameters.every", "hang: every is \"0\": expected a whole number"),
            ("3:75: experiments[1].parameters.duration", "expected at most 1m, which is the plan's test_duration"),
            ("4:49: experiments[2].match.server", "hang matches nothing"),
            ("5:26: experiments[3].scenario", "there is no scenario `hung`"),
            ("6:40: experiments[4].expect", "expected completed, held, failed or aborted"),
        ],
        strict=True,
    ):
        assert f"{runs.file}:{place}: " in line and told in line, line
    assert lines[-1].endswith("; nothing was started")
    assert chaos("status")["total_history"] == 0 and not runs.junit.exists()


@pytest.mark.parametrize(
    "experiments, told",
    [
        (["scenari: hang"], "suite.yaml:2:7: experiments[0].scenari: unknown key, did you mean `scenario`?"),
        (["scenario: hang, expect: fine"], "experiments[0].expect: expected completed, held, failed or aborted, found"),
        (["scenario: hang", "scenario: hang"], 'experiments[1]: "hang" is experiments[0] already'),
        ([], "suite.yaml:1:13: experiments: expected a list of experiments"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(runs, experiments, told):
    _, stderr = runs(*experiments, code=64)
    assert told in stderr


def test_where_results_cannot_be_written_nothing_is_started(proxy, runs, chaos):
    runs.junit = runs.file / "no" / "junit.xml"
    runs.arguments[-1] = str(runs.junit)
    _, stderr = runs(f"scenario: hang, {SHORT}", code=64)
    assert f"--junit: cannot write {runs.junit}" in stderr
    runs.arguments = ["chaos", "run", str(runs.file), "--report", str(runs.file)]
    _, stderr = runs(f"scenario: hang, {SHORT}", code=64)
    assert f"--report: cannot make {runs.file}" in stderr
    assert chaos("status")["total_history"] == 0


def test_nobody_there_is_69(runs):
    address = f"127.0.0.1:{free_port()}"
    assert address in runs(f"scenario: hang, {SHORT}", code=69, options=["--addr", address])[1]


def test_an_instance_that_ends_in_the_middle_is_told(proxy, runs, instances, chaos):
    runs.write("scenario: hang, parameters: { duration: 60s }", f"scenario: tool_error, {SHORT}")
    run = instances.spawn(*runs.arguments, ready=False)
    wait_until(lambda: chaos("status")["active_tests_details"], within=LONG, what="the first experiment")
    proxy.process.kill()
    proxy.wait(LONG)
    assert run.wait(LONG) == 69
    cases = runs.cases()
    assert cases["hang"][0] == "error" and "127.0.0.1" in cases["hang"][1]
    assert cases["tool_error"] == ("skipped", "it was not run")
