"""The demo's own experiment: harmless, by itself, and seen from all sides."""

import json

import pytest
import websockets.sync.client

from chaos import LONG, Chaos
from harness import wait_until

# When it begins, and how long it lasts, in seconds.
UNDISTURBED, LASTS = 20, 15


@pytest.mark.timeout(UNDISTURBED + LASTS + 4 * LONG)
def test_it_is_seen_everywhere_and_ends_well(instances, tmp_path):
    demo = instances.demo("--data", str(tmp_path / "data"))
    chaos = Chaos(demo, tmp_path / "data")
    injected = lambda name: demo.metrics().sum(name, injected="true")  # noqa: E731
    of_chaos = lambda name: demo.metrics().sum(f"mcpscope_chaos_{name}", scenario="latency_injection")  # noqa: E731
    with websockets.sync.client.connect(demo.dashboard.replace("http", "ws") + "ws", proxy=None) as socket:

        def event(status: str) -> dict:
            while True:
                message = json.loads(socket.recv(UNDISTURBED + LASTS + LONG))
                if message["type"] == "event" and message["data"].get("status") == status:
                    return message["data"]

        assert injected("mcpscope_tool_call_duration_seconds_count") == 0 and chaos.status()["total_history"] == 0
        running = event("running")
        assert (running["kind"], running["event"], running["scenario"]) == ("chaos", "changed", "latency_injection")
        id = running["id"]
        (test,) = chaos.status()["active_tests_details"]
        assert (test["id"], test["status"]) == (id, "running")
        parameters = {"delay": "100ms", "direction": "to_server", "duration": f"{LASTS}s"}
        assert test["details"]["parameters"] == parameters and test["details"]["targets"] == ["demo", "demo-stdio"]
        assert of_chaos("experiments_active") == 1 and of_chaos("experiments_started_total") == 1
        said = f"chaos experiment {id}: every message to the server comes 100 ms later, for {LASTS} s"
        wait_until(lambda: said in demo.stderr(), within=LONG, what=said)
        assert "mcpscope chaos emergency-stop" in demo.stderr()

        wait_until(lambda: of_chaos("faults_injected_total") > 0, within=LONG, what="faults")
        wait_until(lambda: injected("mcpscope_tool_call_duration_seconds_count") > 0, within=LONG, what="touched calls")
        ended = event("completed")
        assert ended["id"] == id
    report = chaos.report(id)
    assert report["status"] == "completed" and not report["leak"] and report["started_by"] == "demo"
    injection = report["injection"]
    assert injection["matched"] == injection["injected"] == injection["observed"] > 0
    assert of_chaos("faults_injected_total") == injection["injected"] == len(chaos.hits(id))
    assert {(hit["effect"], hit["amount"]) for hit in chaos.hits(id)} == {("delay", 100_000)}
    assert of_chaos("experiments_active") == 0 and of_chaos("experiments_completed_total") == 1
    assert report["during"]["touched"]["calls"] > 0 and report["during"]["touched"]["p50_ms"] >= 100
    traces = demo.get("api/v1/traces?injected=true&limit=1000").json()
    assert traces and all(trace["injected"] for trace in traces)
    # It is not done again.
    assert [test["id"] for test in chaos.ask("GET", "/history").json()] == [id]
