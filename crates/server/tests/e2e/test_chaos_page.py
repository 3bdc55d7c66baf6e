"""Chaos on the page: planned, started, seen everywhere, and stopped from anywhere."""

import json
import time

import httpx
import pytest

from browser import Page
from serving import LONG
from upstream import call

TRACE = "[data-testid=trace-row]"
BAR = "[data-testid=chaos-bar]"
OUTLOOK = "[data-testid=outlook]"
STOPPED = "[data-testid=stopped]"
ROW = "[data-testid=experiment-row]"
# A button that a click would reach: nothing covers it, and no dialog keeps it from being clicked.
REACHABLE = """[...document.querySelectorAll("[data-testid=stop-all]")].some(button => {
    const { x, y, width, height } = button.getBoundingClientRect();
    return document.elementFromPoint(x + width / 2, y + height / 2) === button;
})"""


@pytest.fixture
def page(environment):
    with Page(environment) as page:
        yield page


@pytest.fixture
def proxy(instances, upstream):
    """That has seen a call, so that there is something to disturb."""
    proxy = instances.proxy(upstream.url, "--name", "shaken")
    call_tool(proxy)
    return proxy


def call_tool(instance, tool: str = "probe") -> float:
    """How long it took, in seconds."""
    began = time.monotonic()
    sent = httpx.post(instance.proxy, json=call(tool), trust_env=False, timeout=LONG)
    assert sent.status_code == 200
    return time.monotonic() - began


def token_of(instance) -> str:
    (token,) = [line.removeprefix("chaos token ") for line in instance.stderr().splitlines() if "chaos token" in line]
    return token


def shown(page: Page, url: str):
    page.open(url)
    page.wait_for_element("[data-testid=connection][data-link=live]", LONG)
    page.wait_for_element("[data-testid=maker]", LONG)


def says(page: Page, selector: str, text: str):
    page.wait_for(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})", LONG)


def planned(page: Page):
    """A constant delay, for as long as is allowed."""
    page.fill("[data-testid=maker] [name=duration]", "60s")
    page.choose("[data-testid=maker] [name=distribution]", "constant")
    page.fill("[data-testid=maker] [name=delay]", "300ms")
    assert page.evaluate("document.querySelector('[data-testid=start]').disabled")
    page.click("[data-testid=plan]")
    says(page, OUTLOOK, "on shaken")


def test_an_experiment_from_its_plan_to_its_report(page, proxy):
    shown(page, proxy.dashboard)
    planned(page)
    assert proxy.get("api/v1/chaos").json()["active_tests"] == 0, "nothing is started by a plan"
    # What is changed has not been planned.
    page.fill("[data-testid=maker] [name=intensity]", "2")
    assert not page.exists(OUTLOOK)
    page.click("[data-testid=plan]")
    says(page, "[data-testid=chaos-problem]", "intensity is \"2\": expected a share from 0 to 1")
    page.fill("[data-testid=maker] [name=intensity]", "")
    page.click("[data-testid=plan]")
    says(page, OUTLOOK, "on shaken")

    page.click("[data-testid=start]")
    says(page, "[data-testid=token]", "this needs the chaos token")
    page.fill("[name=token]", "guessed")
    page.press("Enter")
    says(page, "[data-testid=token]", "not the right one")
    token = token_of(proxy)
    page.fill("[name=token]", token)
    page.press("Enter")
    page.wait_for_element("[data-testid=running]", LONG)
    assert not any(token in url for url in page.requests())

    assert call_tool(proxy, "delayed") >= 0.3
    page.wait_for(f"/latency_injection on shaken · \\d+ s left · [1-9]\\d* hits/.test(document.querySelector('{BAR}')?.innerText)", LONG)
    page.wait_for(f"[...document.querySelectorAll('{TRACE}')].some(row => /delayed/.test(row.innerText) && row.querySelector('.injected'))", LONG)
    # The charts are shaded: there is a line in the colour of faults along the top.
    page.wait_for("""(() => {
        const { canvas, ctx } = (canvas => ({ canvas, ctx: canvas.getContext("2d") }))(document.querySelector(".plot canvas"));
        const { data } = ctx.getImageData(0, 0, canvas.width, canvas.height);
        const near = (value, other) => Math.abs(value - other) < 12;
        for (let at = 0; at < data.length; at += 4) {
            if (near(data[at], 129) && near(data[at + 1], 54) && near(data[at + 2], 184) && data[at + 3] > 150) return true;
        }
        return false;
    })()""", LONG)

    (test,) = proxy.get("api/v1/chaos").json()["active_tests_details"]
    page.click("[data-testid=running] button")
    page.wait_for_element(ROW, LONG)
    page.wait_for(f"document.querySelector('{BAR}') === null", LONG)
    says(page, ROW, "aborted")
    page.click(ROW)
    page.wait_for_element("[data-testid=report] [data-testid=slots]", LONG)
    assert page.evaluate("location.hash") == f"#experiment={test['id']}"
    for text in ("latency_injection", "on shaken", "300ms", "Calls that it touched"):
        says(page, "[data-testid=report]", text)
    page.reload()
    page.wait_for_element("[data-testid=report] [data-testid=slots]", LONG)
    page.press("Escape")
    page.wait_for("document.querySelector('[data-testid=report]') === null")
    # Refused were the mistake and the wrong token; the pixels were looked at more than once by this test alone.
    expected = ("401", "400", "getImageData")
    complaints = [said for said in page.complaints() if not any(part in said for part in expected)]
    assert complaints == []


def test_all_is_stopped_from_anywhere(page, proxy):
    token = token_of(proxy)
    shown(page, f"{proxy.dashboard}#token={token}&range=5")
    assert page.evaluate("location.hash") == "#range=5", "the token is nowhere to be seen"
    assert page.evaluate(REACHABLE)
    for where in ("in a field", "in a trace", "by the button"):
        planned(page)
        page.click("[data-testid=start]")
        page.wait_for_element("[data-testid=running]", LONG)
        assert page.evaluate(REACHABLE)
        if where == "in a field":
            page.click("#filter")
            page.press("Shift+Escape")
        elif where == "in a trace":
            page.click(TRACE)
            page.wait_for_element("[data-testid=waterfall][open]", LONG)
            assert page.evaluate(REACHABLE)
            page.press("Shift+Escape")
            page.wait_for_element(f"[data-testid=waterfall] {STOPPED}", LONG)
            page.press("Escape")
            page.wait_for("document.querySelector('[data-testid=waterfall]') === null")
        else:
            page.click("[data-testid=stop-all]")
        says(page, STOPPED, "Stopped by a person.")
        status = proxy.get("api/v1/chaos").json()
        assert (status["emergency_stop"], status["active_tests"]) == (True, 0)
        # The server's own words.
        page.click("[data-testid=plan]")
        says(page, "[data-testid=chaos-problem]", "everything was stopped by a person: expected it to be armed again")
        page.click("[data-testid=rearm]")
        page.wait_for(f"document.querySelector('{STOPPED}') === null", LONG)
        assert proxy.get("api/v1/chaos").json()["emergency_stop"] is False
    page.wait_for(f"document.querySelectorAll('{ROW}').length === 3", LONG)
    assert not any(token in url for url in page.requests())
    assert all("409" in said for said in page.complaints())


def test_a_narrow_screen_has_the_button_too(environment, proxy):
    with Page(environment, viewport={"width": 390, "height": 800}) as page:
        shown(page, proxy.dashboard)
        for top in (0, 600, 100_000):
            page.evaluate(f"scrollTo(0, {top})")
            page.wait_for(REACHABLE)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.complaints() == []


def test_chaos_that_is_off_is_said_to_be_off(page, instances, upstream):
    proxy = instances.proxy(upstream.url, "--chaos", "off")
    page.open(proxy.dashboard)
    page.wait_for_element("[data-testid=chaos]", LONG)
    says(page, "[data-testid=chaos]", "Chaos is off")
    assert not page.exists("[data-testid=stop-all]") and not page.exists("[data-testid=maker]")
    assert page.complaints() == []


def test_a_plan_says_what_would_be_taken(page, proxy):
    shown(page, proxy.dashboard)
    page.click("[data-testid=scenarios] [value=cpu_overload]")
    page.wait_for_element("[data-testid=maker] [name=cores]", LONG)
    page.fill("[data-testid=maker] [name=intensity]", "1")
    page.fill("[data-testid=maker] [name=cores]", "1")
    page.click("[data-testid=plan]")
    says(page, OUTLOOK, "Would take 95 % of one core for 10 s")
    says(page, OUTLOOK, "100 % was asked for: ")
