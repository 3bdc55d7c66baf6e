"""What chaos.yaml and its options say is checked before anything starts, and again whenever it changes."""

import signal
import time

import pytest

from serving import LONG

PLAN = "scenarios:\n  - { name: latency_injection, parameters: { delay: 300ms }, match: { tool: echo } }\n"
THRESHOLDS = "emergency_stop: { threshold: 7 }\nchaos_engine: { emergency_threshold: 5 }\n"


def says(instance, text: str, times: int = 1):
    deadline = time.monotonic() + LONG
    while instance.stderr().count(text) < times and time.monotonic() < deadline:
        time.sleep(0.02)
    assert instance.stderr().count(text) >= times, instance.stderr()


@pytest.mark.parametrize(
    ("plan", "place", "why"),
    [
        ("scenarios:\n  - { name: latency }\n", "2:13: scenarios[0].name", "there is no scenario `latency`: expected"),
        (PLAN.replace("300ms", "soon"), "2:53: scenarios[0].parameters.delay", "expected a duration from 0s to 10m"),
        (PLAN.replace("delay", "delai"), "2:53: scenarios[0].parameters.delai", "has no parameter `delai`: expected"),
        (PLAN.replace("tool", "tol"), "2:71: scenarios[0].match.tol", "unknown key, did you mean `tool`?"),
        ("chaos_engine: { test_duration: 11m }\n", "1:32: chaos_engine.test_duration", "expected a duration from 1s"),
        (THRESHOLDS, "1:30: emergency_stop.threshold", "are one thing: expected the same number"),
        ("monitoring: { alerting: { email_alerts: true } }\n", "1:41: monitoring.alerting.email_alerts", "not available"),
    ],
)
def test_a_bad_plan_is_refused_with_its_place(instances, tmp_path, plan, place, why):
    config, file = tmp_path / "mcpscope.yaml", tmp_path / "chaos.yaml"
    config.write_text("chaos: { mode: scheduled }\n")
    file.write_text(plan)
    done = instances.finish("run", "--config", str(config), "--", "cat")
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 64 and done.stdout == b""
    assert f"{file}:{place}: " in line and why in line


def test_a_file_that_is_named_has_to_be_there(instances, tmp_path):
    config = tmp_path / "mcpscope.yaml"
    config.write_text("chaos:\n  file: plan.yaml\nauth:\n  chaos_token_file: token\n")
    done = instances.finish("run", "--config", str(config), "--", "cat")
    (line,) = done.stderr.decode().splitlines()
    missing = f"{tmp_path}/plan.yaml cannot be read: No such file or directory"
    assert done.returncode == 64 and f"{config}:2:9: chaos.file: {missing}" in line

    (tmp_path / "plan.yaml").write_text(PLAN)
    done = instances.finish("run", "--config", str(config), "--", "cat")
    (line,) = done.stderr.decode().splitlines()
    missing = f"{tmp_path}/token cannot be read: No such file or directory"
    assert done.returncode == 64 and f"{config}:4:21: auth.chaos_token_file: {missing}" in line


def test_a_mode_that_is_none_is_told_which_there_are(instances):
    done = instances.finish("run", "--chaos", "on", "--", "cat")
    assert done.returncode == 64 and b"off, manual, scheduled" in done.stderr


def test_a_token_that_everybody_can_read_is_warned_of(instances, tmp_path):
    config, token = tmp_path / "mcpscope.yaml", tmp_path / "token"
    config.write_text("auth: { chaos_token_file: token }\n")
    token.write_text("0123456789abcdef\n")
    token.chmod(0o644)
    instance = instances.run("--config", str(config), command=["cat"])
    says(instance, "every user of this machine can read the chaos token (mode 0644)")
    assert "0123456789abcdef" not in instance.stderr()


def test_it_is_read_again_and_a_bad_one_changes_nothing(instances, upstream, tmp_path):
    config, file = tmp_path / "mcpscope.yaml", tmp_path / "chaos.yaml"
    config.write_text("tracing: { max_traces: 5 }\n")
    instance = instances.proxy(upstream.url, "--config", str(config))
    # It was not there when the program started.
    file.write_text("chaos_engine: { seed: 1 }\n")
    says(instance, "mcpscope: takes effect at the next start: chaos_engine.seed\n")
    file.write_text("scenarios: [{ name: latency }]\n")
    says(instance, f"{file}:1:21: scenarios[0].name: there is no scenario `latency`")
    assert "the configuration is bad, and what runs stays as it is" in instance.stderr()
    file.write_text(PLAN)
    instance.process.send_signal(signal.SIGHUP)
    says(instance, "mcpscope: the configuration was read again\n")
    # What is named anew is watched from then on, also while it is not there.
    config.write_text("chaos: { file: plan.yaml }\ntracing: { max_traces: 5 }\n")
    says(instance, f"{config}:1:16: chaos.file: {tmp_path}/plan.yaml cannot be read")
    (tmp_path / "plan.yaml").write_text("chaos_engine: { seed: 2 }\n")
    says(instance, "mcpscope: takes effect at the next start: chaos_engine.seed\n", times=2)
    assert instance.get("healthz").status_code == 200
