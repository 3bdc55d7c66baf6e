"""The README's picture: the page after some time of the demo's traffic, written to `$E2E_SCREENSHOT`."""

import os
import pathlib
import tempfile
import time

from browser import Page
from harness import Environment, Instances, leftovers

# So that the charts have lines and the percentiles windows behind them, and the demo's experiment is running, in seconds.
TRAFFIC = 29


def take(environment: Environment, path: str, directory: pathlib.Path):
    with Instances(environment, directory) as instances, Page(environment) as page:
        page.open(instances.demo().dashboard)
        page.wait_for("document.querySelector('[data-testid=connection]')?.dataset.link === 'live'")
        time.sleep(TRAFFIC)
        assert page.complaints() == []
        page.screenshot(path)


if __name__ == "__main__":
    environment = Environment.from_variables()
    mark = environment.new_mark()
    with tempfile.TemporaryDirectory() as directory:
        take(environment, os.environ["E2E_SCREENSHOT"], pathlib.Path(directory))
    assert not leftovers(mark, grace=5)
