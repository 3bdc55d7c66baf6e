"""Chaos as whoever starts it sees it: over HTTP, and in the files that an instance leaves."""

import json
import pathlib
import re

import httpx

from harness import Instance, wait_until

# More than a loaded machine needs for anything here.
LONG = 30
# As long as no test lasts: a fault is over when the test ends it.
OPEN = {"duration": "60s"}
HEADERS = {"Content-Type": "application/json", "X-Mcpscope-Request": "1"}
# What a record says that depends on the time and on the seed.
DRAWN = {"record", "t_us", "draw"}


def token_of(instance: Instance) -> str:
    """What an instance says at its start."""
    (token,) = re.findall(r"^chaos token (\S+)$", instance.stderr(), re.M)
    return token


class Chaos:
    """The chaos of a running instance; `data` is what it was given as `--data`."""

    def __init__(self, instance: Instance, data: pathlib.Path | None = None, token: str | None = None):
        self.base = instance.dashboard + "api/v1/chaos"
        self.data = data
        self.token = token or token_of(instance)
        self.http = httpx.Client(trust_env=False, timeout=LONG, headers=HEADERS)

    def ask(self, method: str, path: str = "", body: dict | None = None, token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self.http.request(method, self.base + path, json=body, headers=headers)

    def post(self, scenario: str, parameters: dict, path: str = "/experiments") -> httpx.Response:
        body = {"scenario": scenario, "parameters": parameters}
        return self.ask("POST", path, body, self.token)

    def start(self, scenario: str, **parameters) -> int:
        answer = self.post(scenario, OPEN | parameters)
        assert answer.status_code == 202, (scenario, parameters, answer.text)
        return answer.json()["id"]

    def refused(self, scenario: str, path: str = "/experiments", **parameters) -> tuple[int, str]:
        """How a start, or a plan, that must fail is answered."""
        answer = self.post(scenario, parameters, path)
        assert answer.status_code >= 400, answer.text
        return answer.status_code, answer.json()["detail"]

    def status(self) -> dict:
        return self.ask("GET").json()

    def test(self, id: int) -> dict:
        answer = self.ask("GET", f"/experiments/{id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def injected(self, id: int) -> int:
        return self.test(id)["details"]["injected"]

    def has_hit(self, id: int, times: int = 1):
        """Waits until so many messages were given the fault."""
        wait_until(lambda: self.injected(id) >= times, within=LONG, what=f"hit {times} of experiment {id}")

    def stop(self, id: int) -> dict:
        """Ends an experiment, and gives its report."""
        answer = self.ask("DELETE", f"/experiments/{id}")
        assert answer.status_code == 200, answer.text
        return self.report(id)

    def report(self, id: int) -> dict:
        """Of an experiment that ends by now."""
        return wait_until(lambda: self.test(id)["details"].get("report"), within=LONG, what="the report")

    def history(self) -> list[dict]:
        return self.ask("GET", "/history").json()

    def ended(self, id: int) -> dict:
        """The report of an experiment of which all is decided, also what it has left over."""
        decided = lambda: (report := self.report(id))["audit"]["looked_at"] and report  # noqa: E731
        return wait_until(decided, within=LONG, what=f"the end of experiment {id}")

    def emergency_stop(self):
        answer = self.ask("POST", "/emergency-stop", {})
        assert (answer.status_code, answer.json()) == (200, {"emergency_stop": True})

    def rearm(self):
        answer = self.ask("POST", "/rearm", {}, self.token)
        assert answer.status_code == 200, answer.text

    def journal(self, id: int) -> list[dict]:
        """Of an experiment that has ended; its file gets its last name a moment later."""
        (file,) = wait_until(lambda: [*self.data.glob(f"*/chaos/{id}.jsonl")], within=LONG, what="the journal")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def hits(self, id: int) -> list[dict]:
        """What its journal says of each hit, but for the time and the draw."""
        hits = [record for record in self.journal(id) if record["record"] == "hit"]
        return [{name: value for name, value in hit.items() if name not in DRAWN} for hit in hits]


def counts(report: dict) -> tuple[int, int, int]:
    """Messages that matched, that were given the fault, and those to which it could be done."""
    injection = report["injection"]
    return injection["matched"], injection["injected"], injection["observed"]
