"""A page in Chromium, driven through playwright-core."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile

from harness import Environment, wait_until

DRIVER = pathlib.Path(__file__).with_name("browser.mjs")
DESKTOP = {"viewport": {"width": 1440, "height": 1200}, "colorScheme": "light"}


class Page:
    """One page in a browser of its own, with a fresh profile. Expressions are JavaScript."""

    def __init__(self, environment: Environment, **options):
        # The profile is somewhere in there. Not in pytest's directory: the paths of Chromium's sockets must be short.
        self.directory = tempfile.TemporaryDirectory(prefix="e2e-", ignore_cleanup_errors=True)
        variables = environment.variables(pathlib.Path(self.directory.name)) | {"TMPDIR": self.directory.name}
        arguments = [environment.node_modules, environment.chromium, json.dumps(DESKTOP | options)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(
            [environment.node, str(DRIVER), *arguments], env=variables, text=True, start_new_session=True, **pipes
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)
        self.process.stdout.close()
        self.directory.cleanup()

    def ask(self, command: str, *arguments):
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the browser's driver ended; its words are on stderr"
        answer = json.loads(line)
        assert "error" not in answer, f"{command} {arguments}: {answer['error']}"
        return answer["value"]

    def open(self, url: str):
        self.ask("open", url)

    def reload(self):
        self.ask("reload")

    def evaluate(self, expression: str):
        return self.ask("evaluate", expression)

    def wait_for(self, expression: str, within: float = 10):
        """Until it is true."""
        # From here, because waiting in the page takes an `eval` that its policy forbids.
        wait_until(lambda: self.evaluate(expression), within, expression)

    def click(self, selector: str):
        self.ask("click", selector)

    def fill(self, selector: str, text: str):
        self.ask("fill", selector, text)

    def choose(self, selector: str, value: str):
        self.ask("choose", selector, value)

    def press(self, key: str):
        self.ask("press", key)

    def screenshot(self, path: str | os.PathLike):
        self.ask("screenshot", os.path.abspath(path))

    def requests(self) -> list[str]:
        """The URLs of all requests so far, WebSockets included."""
        return self.ask("requests")

    def complaints(self) -> list[str]:
        """Errors and warnings since the last time."""
        return self.ask("complaints")

    # What the tests look at.

    def exists(self, selector: str) -> bool:
        return self.evaluate(f"document.querySelector({json.dumps(selector)}) !== null")

    def wait_for_element(self, selector: str, within: float = 10):
        self.wait_for(f"document.querySelector({json.dumps(selector)}) !== null", within)

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
