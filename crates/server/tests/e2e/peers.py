"""The server on rmcp, and the clients that are tried on it."""

import pathlib
import subprocess

from harness import Environment


class RmcpHttp:
    """The server on rmcp over HTTP. It says where it listens."""

    def __init__(self, environment: Environment, directory: pathlib.Path):
        self.command = [environment.mcp_peer, "serve"]
        self.variables = environment.variables(directory)

    def __enter__(self):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(self.command, env=self.variables, start_new_session=True, **pipes)
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server on rmcp does not start"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate(timeout=5)
