"""Experiments that start by themselves, within the limits of the plan, and what forbids or changes that."""

import json
import time

import pytest

from chaos import LONG, Chaos
from harness import wait_until

pytestmark = pytest.mark.usefixtures("alone")

ENGINE = {"scheduler_delay": "0s", "scheduler_interval": "1s", "max_concurrent_tests": 2, "seed": 7}
# Long ones, so that there are soon as many as there may be; of messages that nobody sends.
LASTING = {"duration": "60s", "tool": "none"}
SCENARIOS = ("hang", "latency_injection", "rpc_error")
# In which several ticks pass.
TICKS = 2.5


def scheduled(name: str, **others) -> dict:
    return {"name": name, "probability": 1, "enabled": True, "parameters": LASTING} | others


class Planned:
    """An instance with a `chaos.yaml`."""

    def __init__(self, instances, folder):
        self.folder, self.instances = folder, instances
        self.config, self.file = folder / "mcpscope.yaml", folder / "chaos.yaml"
        self.config.write_text("{}\n")

    def plan(self, *scenarios: dict, **engine):
        # JSON is YAML. It is replaced in one step.
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"chaos_engine": ENGINE | engine, "scenarios": scenarios}))
        new.replace(self.file)

    def run(self, mode: str = "scheduled", *options: str) -> Chaos:
        data = self.folder / "data"
        options += ("--config", str(self.config), "--chaos", mode, "--data", str(data), "--name", "peer")
        self.instance = self.instances.run(*options, command=["cat"])
        return Chaos(self.instance, data, token=None if "chaos token" in self.instance.stderr() else "none")

    def says(self, text: str):
        wait_until(lambda: text in self.instance.stderr(), within=LONG, what=text)

    def events(self) -> list[dict]:
        file = self.folder / "data" / "peer" / "chaos" / "engine.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def began(self) -> list[str]:
        """What was started, in this order."""
        return [event["scenario"] for event in self.events() if event.get("status") == "running"]


@pytest.fixture
def planned(instances, tmp_path):
    return Planned(instances, tmp_path)


def are_running(chaos: Chaos, count: int):
    wait_until(lambda: chaos.status()["active_tests"] == count, within=LONG, what=f"{count} experiments")


def stays(chaos: Chaos, count: int):
    """There are so many, whatever a tick might do."""
    until = time.monotonic() + TICKS
    while time.monotonic() < until:
        assert chaos.status()["active_tests"] == count


def test_they_start_by_themselves_and_never_too_many(planned):
    planned.plan(*map(scheduled, SCENARIOS))
    chaos = planned.run()
    are_running(chaos, 2)
    stays(chaos, 2)
    assert chaos.status()["mode"] == "scheduled"
    for test in chaos.status()["active_tests_details"]:
        assert test["name"] in SCENARIOS and test["details"]["parameters"] == LASTING
    # A person has the same limit.
    code, why = chaos.refused("hang")
    assert code == 409 and "expected fewer than 2 (max_concurrent_tests)" in why, why
    # In the place of one that ended comes another.
    ended = chaos.status()["active_tests_details"][0]["id"]
    assert chaos.stop(ended)["started_by"] == "scheduler"
    are_running(chaos, 2)

    assert chaos.ask("POST", "/emergency-stop", {}).status_code == 200
    stays(chaos, 0)
    assert chaos.ask("POST", "/rearm", {}, chaos.token).status_code == 200
    are_running(chaos, 2)
    # Nothing began in between.
    changes = ("emergency_stop", "rearmed")
    of_interest = [event for event in planned.events() if event["event"] in changes or event.get("status") == "running"]
    names = [event["event"] for event in of_interest]
    assert names[names.index("emergency_stop") + 1] == "rearmed"


def test_what_is_not_enabled_or_has_no_chance_never_starts(planned):
    never = [scheduled("hang", enabled=False), scheduled("rpc_error", probability=0)]
    planned.plan(*never, scheduled("latency_injection"))
    chaos = planned.run()
    are_running(chaos, 2)
    assert set(planned.began()) == {"latency_injection"}


def test_the_first_waits_for_its_delay(planned):
    planned.plan(scheduled("hang"), scheduler_delay="10m")
    chaos = planned.run()
    stays(chaos, 0)
    # Until then a person may.
    chaos.stop(chaos.start("hang"))


def test_manual_starts_none(planned):
    planned.plan(scheduled("hang"))
    chaos = planned.run("manual")
    stays(chaos, 0)
    assert chaos.status()["mode"] == "manual"


def test_off_refuses_everything_and_says_why(planned, instances):
    planned.plan(scheduled("hang"))
    chaos = planned.run("off", "--no-auth")
    stays(chaos, 0)
    status = chaos.status()
    assert (status["mode"], status["off"]) == ("off", "--chaos off")
    why = "chaos is off (--chaos off): expected mode manual or scheduled"
    code, detail = chaos.refused("hang")
    assert (code, detail) == (409, why)
    for command in ("start", "plan"):
        done = instances.finish("chaos", command, "hang", within=LONG)
        assert done.returncode != 0 and why in done.stderr.decode(), done.stderr
    assert "--chaos off" in instances.finish("chaos", "status", within=LONG).stdout.decode()


def test_off_is_said_to_who_has_no_token(planned, instances):
    planned.run("off")
    done = instances.finish("chaos", "start", "hang", within=LONG)
    assert done.returncode != 0 and "chaos is off (--chaos off)" in done.stderr.decode()


def test_switched_on_later_it_can_be_started(planned, instances):
    planned.plan(enabled=False)
    planned.run("manual")
    planned.plan()
    planned.says("mcpscope: chaos follows the changed plan")
    done = instances.finish("chaos", "start", "hang", "duration=1s", within=LONG)
    assert done.returncode == 0, done.stderr


def test_another_plan_holds_at_once_and_a_bad_one_changes_nothing(planned):
    planned.plan(scheduled("hang"), max_concurrent_tests=1)
    chaos = planned.run()
    are_running(chaos, 1)
    planned.file.write_text('{"scenarios": [{"name": "latency"}]}')
    planned.says("the configuration is bad, and what runs stays as it is")
    (test,) = chaos.status()["active_tests_details"]
    assert test["name"] == "hang" and chaos.status()["mode"] == "scheduled"

    planned.plan(scheduled("rpc_error"), max_concurrent_tests=3)
    planned.says("mcpscope: chaos follows the changed plan\n")
    are_running(chaos, 3)
    # What runs keeps its terms; what comes is of the new plan.
    names = [test["name"] for test in chaos.status()["active_tests_details"]]
    assert sorted(names) == ["hang", "rpc_error", "rpc_error"]

    planned.plan(enabled=False)
    planned.says("mcpscope: chaos is off: chaos_engine.enabled is false\n")
    are_running(chaos, 0)
    (hang,) = [test for test in chaos.ask("GET", "/history").json() if test["name"] == "hang"]
    assert hang["status"] == "aborted"
    assert "chaos_engine.enabled is false" in chaos.refused("hang")[1]
