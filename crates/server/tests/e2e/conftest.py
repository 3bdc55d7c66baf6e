"""Fixtures of the end-to-end tests: the environment they need, a time limit per test, and no leftovers."""

import contextlib
import signal
import subprocess
import sys

import pytest

# Both before the helpers are imported: the source tree stays as it was, and their assertions say what they compared.
sys.dont_write_bytecode = True
pytest.register_assert_rewrite("chaos", "everything", "harness", "peers", "processes", "rpc", "scrape", "serving")

from everything import EverythingHttp  # noqa: E402
from harness import Environment, Instances, leftovers  # noqa: E402
from peers import RmcpHttp  # noqa: E402
from serving import Served  # noqa: E402
from upstream import Upstream  # noqa: E402

DEFAULT_TIMEOUT = 60


@pytest.fixture(scope="session")
def environment() -> Environment:
    """The program under test and those beside it. A missing one is an error, never a skip."""
    return Environment.from_variables()


@pytest.fixture(autouse=True)
def nothing_left_behind(environment):
    """No process of a test outlives it: each carries the test's mark in its environment."""
    mark = environment.new_mark()
    yield
    left = leftovers(mark, grace=5)
    assert not left, f"processes left behind (killed now): {left}"


@pytest.fixture
def instances(environment, tmp_path):
    """Starts mcpscope processes, and ends them with the test."""
    with Instances(environment, tmp_path) as running:
        yield running


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """The commands find no instance by themselves but those of the test, whatever else this machine runs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.fixture
def serve(instances, tmp_path):
    """Starts `mcpscope serve`."""
    return Served(instances, tmp_path)


@pytest.fixture
def promtool(environment):
    """Checks a metrics page; promtool has nothing to say about a good one."""

    def check(text: str):
        command = [environment.promtool, "check", "metrics"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=20)
        assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")

    return check


@pytest.fixture
def upstream():
    """A little HTTP server whose answers the test decides, and which counts what it gets."""
    with Upstream() as server:
        yield server


@pytest.fixture
def everything_http(environment, tmp_path):
    """The reference MCP server, over Streamable HTTP."""
    with EverythingHttp(environment, tmp_path) as server:
        yield server


@pytest.fixture
def rmcp_http(environment, tmp_path):
    """The server on rmcp that has all that the conformance suite calls, over Streamable HTTP."""
    with RmcpHttp(environment, tmp_path) as server:
        yield server


@contextlib.contextmanager
def time_limit(item):
    """Fails a phase of a test that takes too long.

    Armed inside the phases only, where pytest expects exceptions: one between them would end the whole run. The
    alarm repeats, because an event loop may swallow an exception that lands in one of its callbacks.
    """
    marker = item.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else DEFAULT_TIMEOUT

    def expired(_signal, _frame):
        pytest.fail(f"took longer than its {seconds} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds, 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    with time_limit(item):
        return (yield)
