"""The official conformance suite gives the same results through the proxy as without it."""

import difflib
import json
import os
import pathlib
import re
import subprocess

import pytest

from everything import PROTOCOL
from harness import wait_until

# Revision: how many scenarios the suite has for it at least, those included that it runs without scoring.
SCENARIOS = {"2025-11-25": 33, "2026-07-28": 50}
# How many checks each server passes directly at least, so that there is something to lose. The one on rmcp passes all
# there are. The reference server does not speak the newer revision: what passes there are refusals.
PASSED = {
    ("rmcp", "2025-11-25"): 83,
    ("rmcp", "2026-07-28"): 197,
    ("demo", "2025-11-25"): 40,
    ("demo", "2026-07-28"): 90,
    ("everything", "2025-11-25"): 40,
    ("everything", "2026-07-28"): 8,
}
# The foreign host of the scenario `dns-rebinding-protection` is let through: the server's own answer is compared.
LET_THROUGH = "proxy: { allowed_hosts: [evil.example.com], allowed_origins: ['http://evil.example.com'] }\n"

# What differs from run to run: times, session ids, and event ids, which concurrent streams get in any order.
TIMES = {"timestamp", "date", "createdAt", "lastUpdatedAt"}
UUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
EVENT_ID = re.compile(r"\d+/\d+")
A_TIME_IN_MS = 1_000_000_000_000
# How many messages the suite had read when it closed. The reference server logs a subscription on the standalone GET
# stream and answers it on another connection; nothing orders the two, and the suite closes at the answer: with 5 ms
# of delay on the GET stream alone it counts 7, 8 or 9. That it read some at all is compared.
READ_BEFORE_CLOSE = "messagesValidated"


class Suite:
    """Runs the conformance suite, and reads what it wrote."""

    def __init__(self, environment, directory: pathlib.Path):
        self.environment = environment
        self.directory = directory
        self.runs = 0

    def run(self, url: str, *options: str) -> dict[str, list]:
        """The checks of each scenario, in comparable form."""
        self.runs += 1
        results = self.directory / f"run-{self.runs}"
        package = os.path.join(self.environment.node_modules, "@modelcontextprotocol", "conformance")
        run = subprocess.run(
            [self.environment.node, f"{package}/dist/index.js", "server", "--url", url, "-o", results, *options],
            env=self.environment.variables(self.directory),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=100,
        )
        # 1 stands for failed checks, but for a crash, too.
        assert run.returncode in (0, 1) and results.exists(), run.stderr
        gave_up = dict(re.findall(r"^Failed to run scenario (\S+): (.*)$", run.stderr, re.M))
        found = {}
        for folder in sorted(results.iterdir()):
            scenario = re.fullmatch(r"server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z", folder.name)[1]
            assert scenario not in found, "ran twice"
            if scenario in gave_up:
                found[scenario] = [{"id": "gave up", "status": "FAILURE", "errorMessage": gave_up[scenario]}]
            else:
                found[scenario] = json.loads((folder / "checks.json").read_text())
        authority = re.fullmatch(r"http://(.+)/mcp", url)[1]
        return {scenario: comparable(checks, authority) for scenario, checks in found.items()}


def comparable(value, authority: str):
    """`value` without what differs from run to run and between addresses."""
    if isinstance(value, dict):
        return {
            key: bool(item) if key == READ_BEFORE_CLOSE else comparable(item, authority)
            for key, item in value.items()
            if key not in TIMES
        }
    if isinstance(value, list):
        return [comparable(item, authority) for item in value]
    if isinstance(value, str):
        return "EVENT" if EVENT_ID.fullmatch(value) else UUID.sub("UUID", value).replace(authority, "SERVER")
    if isinstance(value, int) and value > A_TIME_IN_MS:
        return "TIME"
    return value


def lines(results: dict[str, list]) -> list[str]:
    """One line per check with all that is known about it."""
    return [
        f"{scenario}: {check['id']}: {check['status']}: {json.dumps(check, sort_keys=True)}"
        for scenario, checks in results.items()
        for check in checks
    ]


def statuses(results: dict[str, list]) -> list[str]:
    return [check["status"] for checks in results.values() for check in checks]


@pytest.fixture
def suite(environment, tmp_path):
    return Suite(environment, tmp_path)


@pytest.fixture
def demo(instances) -> str:
    """The address of the demo's server, with nothing in front of it."""
    server = instances.spawn("demo-server", "--http", "127.0.0.1:0", ready=False)
    said = lambda: re.search(r"^demo-server (\S+)$", server.stderr(), re.M)  # noqa: E731
    return wait_until(said, what="the demo's server")[1]


@pytest.fixture
def rmcp(rmcp_http) -> str:
    return rmcp_http.url


@pytest.fixture
def everything(everything_http) -> str:
    return everything_http.url


@pytest.mark.timeout(150)
@pytest.mark.parametrize("propagate", ["off", "on"])
@pytest.mark.parametrize(("server", "revision"), PASSED)
def test_the_results_through_the_proxy_are_those_of_the_server(
    request, instances, suite, tmp_path, server, revision, propagate
):
    url = request.getfixturevalue(server)
    config = tmp_path / "let-through.yaml"
    config.write_text(LET_THROUGH)
    proxy = instances.proxy(url, "--config", str(config), "--propagate", propagate)

    direct = suite.run(url, "--requirements", revision)
    assert proxy.metrics().sum("mcpscope_tool_call_duration_seconds_count") == 0
    proxied = suite.run(proxy.proxy, "--requirements", revision)

    assert len(direct) >= SCENARIOS[revision]
    assert statuses(direct).count("SUCCESS") >= PASSED[server, revision]
    if server == "rmcp":
        # What is told only, and the one scenario that the suite itself always leaves out.
        assert set(statuses(direct)) <= {"SUCCESS", "INFO", "SKIPPED"}
        assert statuses(direct).count("SKIPPED") <= 1
    differences = list(difflib.unified_diff(lines(direct), lines(proxied), "direct", "proxied", n=0, lineterm=""))
    assert not differences, "\n".join(differences)
    assert proxy.metrics().sum("mcpscope_tool_call_duration_seconds_count") >= 5, "not through the proxy"


def test_the_proxy_protects_a_server_that_does_not_protect_itself(everything, instances, suite):
    """Without the configuration above, the proxy's own listener refuses foreign hosts."""
    scenario = ("--scenario", "dns-rebinding-protection", "--spec-version", PROTOCOL)
    direct = suite.run(everything, *scenario)
    proxied = suite.run(instances.proxy(everything).proxy, *scenario)
    assert sorted(statuses(direct)) == ["FAILURE", "SUCCESS"]
    assert statuses(proxied) == ["SUCCESS", "SUCCESS"]
