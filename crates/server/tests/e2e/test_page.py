"""The page in headless Chromium: what somebody who opens it sees, and what it must never do."""

import json
import time
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from mcp import Client, MCPError

from browser import Page
from everything import run_async
from harness import ANY_PORT, wait_until
from scrape import CRITICAL
from upstream import Upstream, call, result_for

# The slowest update that the page may take, by default settings.
SOON = 6
METRICS = sorted({name for name, _ in CRITICAL.values()})
EVIL = """<img src=x onerror="window.hacked=1">"""
LINK = "[data-testid=connection]"


@pytest.fixture
def page(environment):
    with Page(environment) as page:
        yield page


@pytest.fixture
def proxy(instances, upstream):
    return instances.proxy(upstream.url, "--name", "paged")


def call_tool(instance, tool: str, id=1, session: str | None = None):
    headers = {"Mcp-Session-Id": session} if session else {}
    sent = httpx.post(instance.proxy, json=call(tool, id=id), headers=headers, trust_env=False, timeout=10)
    assert sent.status_code == 200


def tool_row(tool: str) -> str:
    return f'[data-testid=tools] [data-tool="{tool}"]'


def wait_for_link(page: Page, state: str, within: float = 15):
    page.wait_for(f"document.querySelector('{LINK}')?.innerText.trim() === '{state}'", within)


def shown(page: Page, instance):
    """Opens the page, and waits for its first data."""
    page.open(instance.dashboard)
    wait_for_link(page, "live")
    page.wait_for_element("[data-testid=overall][data-state]")


def stays_here(page: Page, instance) -> list[str]:
    """The paths of all requests; each of them was to the instance."""
    asked = [urlsplit(url) for url in page.requests()]
    assert {where.netloc for where in asked} == {urlsplit(instance.dashboard).netloc}
    assert {where.scheme for where in asked} <= {"http", "ws"}
    return [where.path for where in asked]


def test_a_call_on_the_demo(page, instances):
    """Made by the official client among the demo's own traffic."""
    demo = instances.demo()
    shown(page, demo)

    async def made():
        async with Client(demo.ready["proxy"]["demo"], read_timeout_seconds=10) as client:
            # There is no such tool, which makes it one of its kind.
            with pytest.raises(MCPError):
                await client.call_tool("made-by-this-test", {})

    run_async(made)
    began = time.monotonic()
    page.wait_for_element(tool_row("made-by-this-test"), SOON)
    page.wait_for_element(tool_row("echo"), 15)
    print(f"shown after {time.monotonic() - began:.1f} s")
    # Both of its servers, and what is well with them.
    page.wait_for("document.querySelector('[data-testid=tools]').innerText.includes('demo-stdio')", 15)
    for component in ("registry", "sessions", "transports", "observability"):
        assert page.exists(f"[data-testid=component-{component}][data-state=healthy]"), component
    stays_here(page, demo)
    assert page.complaints() == []


def test_a_call_its_trace_and_the_waterfall(page, proxy):
    shown(page, proxy)
    assert not page.exists("[data-testid=tool-row]") and not page.exists("[data-testid=trace-row]")
    call_tool(proxy, "probe")
    began = time.monotonic()
    page.wait_for_element(tool_row("probe"), SOON)
    page.wait_for_element("[data-testid=traces] [data-testid=trace-row]", SOON)
    assert time.monotonic() - began < SOON
    assert "tools/call probe" in page.text("[data-testid=trace-row]")

    (trace,) = proxy.get("api/v1/traces").json()
    page.click(f'[data-trace="{trace["id"]}"]')
    page.wait_for_element("[data-testid=waterfall][open]")
    spans = page.evaluate("[...document.querySelectorAll('[data-testid=waterfall] .span')].map(span => span.innerText)")
    assert len(spans) == len(trace["spans"]) > 0
    for span in trace["spans"]:
        assert any(span["name"] in text for text in spans), span["name"]
    # Each has a bar, and the root's is as wide as its track.
    bars = page.evaluate(
        "[...document.querySelectorAll('[data-testid=waterfall] .bar')].map(bar => bar.getBoundingClientRect().width)"
    )
    assert len(bars) == len(spans) and max(bars) > 100
    text = page.text("[data-testid=waterfall]")
    assert trace["id"] in text and "tools/call probe" in text
    assert trace["id"] in page.evaluate("location.hash"), "the address shows the same to others"
    page.press("Escape")
    page.wait_for("document.querySelector('[data-testid=waterfall]') === null")
    # By its address alone.
    page.open(f"{proxy.dashboard}#trace={trace['id']}")
    page.reload()
    page.wait_for_element("[data-testid=waterfall][open] .span")
    assert "/ws" in stays_here(page, proxy)
    assert page.complaints() == []


TOOLS = """[...document.querySelectorAll('[data-testid=trace-row] .name a')].map(link => link.innerText.split(' ')[1])"""
CLEAR = "[data-testid=clear-filter]"


def lists(page: Page, *tools: str):
    """The traces shown are soon those of these tools, newest first."""
    page.wait_for(f"JSON.stringify({TOOLS}) === {json.dumps(json.dumps(tools, separators=(',', ':')))}", 2 * SOON)


def test_the_filter_looks_through_everything_that_is_kept(page, proxy, upstream):
    def answer(exchange):
        answer = result_for(exchange.json())
        answer["result"]["isError"] = exchange.json()["params"]["name"] == "bad"
        if exchange.json()["params"]["name"] == "slow":
            time.sleep(0.2)
        exchange.answer_json(answer)

    upstream.answer = answer
    for tool in ("bad", "slow", "bad"):
        call_tool(proxy, tool)
    with httpx.Client(trust_env=False) as client:
        for number in range(110):
            client.post(proxy.proxy, json=call(f"flood{number}"))
    shown(page, proxy)
    page.wait_for(f"{TOOLS}.length === 100", SOON)
    assert not page.exists(CLEAR)
    assert page.evaluate(f"{TOOLS}.includes('bad')") is False, "a frame has the newest only"

    page.choose("[data-filter=status]", "error")
    lists(page, "bad", "bad")
    page.click(CLEAR)
    page.wait_for(f"{TOOLS}.length === 100")
    assert urlsplit(page.evaluate("location.href")).fragment == "" and not page.exists(CLEAR)
    # Typed, also with capitals and the space within a name.
    page.fill("#filter", "CALL slow")
    lists(page, "slow")
    page.fill("#filter", "")
    page.fill("[data-filter=min]", "150ms")
    lists(page, "slow")
    # What comes is found too, without another word.
    call_tool(proxy, "slow")
    lists(page, "slow", "slow")
    page.choose("[data-filter=within]", "60")
    page.choose("[data-filter=server]", "paged")
    lists(page, "slow", "slow")
    # All of it is in the address.
    page.reload()
    lists(page, "slow", "slow")
    values = "[...document.querySelectorAll('.filter select, .filter input')].map(field => field.value)"
    assert page.evaluate(values) == ["", "", "paged", "150ms", "60"]
    # Nothing found: said with what was looked for, and one click away from everything.
    page.choose("[data-filter=status]", "timeout")
    page.wait_for("document.querySelector('[data-testid=traces] .empty')?.innerText.startsWith('No trace is kept')")
    said = page.text("[data-testid=traces] .empty")
    assert "with status timeout, server paged, a duration of 150ms or more from the last 1 min." in said
    page.click("[data-testid=traces] .empty button")
    page.wait_for(f"{TOOLS}.length === 100")
    assert page.complaints() == []

    asked = [urlsplit(url) for url in page.requests()]
    searches = [where.query for where in asked if where.path == "/api/v1/traces"]
    assert all("limit=200" in search for search in searches)
    # Each of some ten changes, and a few frames.
    assert len(searches) < 30, searches
    # What cannot be meant is explained by the server.
    page.fill("[data-filter=min]", "soon")
    page.wait_for("document.querySelector('[data-testid=traces] .empty')?.innerText.includes('expected a duration')")
    assert all("400" in said for said in page.complaints())


def test_a_trace_leads_to_its_session(page, proxy):
    # A session is known once its first call has been answered.
    for tool, session in (("first", "a"), ("first", "b"), ("second", "a"), ("second", "b"), ("third", "a")):
        call_tool(proxy, tool, session=session)
    shown(page, proxy)
    page.wait_for(f"{TOOLS}.length === 5", SOON)
    (third,) = proxy.get("api/v1/traces?tool=third").json()
    of_a = [trace["tool"] for trace in proxy.get("api/v1/traces?session=a").json()]
    assert of_a[:2] == ["third", "second"]
    page.click(f'[data-trace="{third["id"]}"]')
    page.wait_for_element("[data-testid=waterfall][open] .span")
    page.click("[data-testid=session]")
    page.wait_for("document.querySelector('[data-testid=waterfall]') === null")
    lists(page, *of_a)
    assert page.evaluate("document.activeElement.id") == "traces"
    assert page.evaluate("document.querySelector('[data-filter=session]').value") == "a"
    # Back leads to the trace again.
    page.evaluate("history.back()")
    page.wait_for_element("[data-testid=waterfall][open] .span")
    assert page.complaints() == []


def test_a_trace_by_its_address(page, proxy):
    call_tool(proxy, "probe")
    (trace,) = proxy.get("api/v1/traces").json()
    with httpx.Client(trust_env=False) as client:
        for number in range(110):
            client.post(proxy.proxy, json=call(f"flood{number}"))
    page.open(f"{proxy.dashboard}#trace={trace['id']}")
    page.wait_for_element("[data-testid=waterfall][open] .span")
    assert "tools/call probe" in page.text("[data-testid=waterfall]")
    assert page.evaluate("document.querySelector('.facts .id').href") == f"{proxy.dashboard}#trace={trace['id']}"
    page.click("[data-testid=copy-link]")
    page.wait_for("/Copied/.test(document.querySelector('[data-testid=waterfall] [role=status]').innerText)")
    assert page.complaints() == []
    # One that is gone, and one that never was one.
    for id, said in (("1" * 32, "took its place"), ("nonsense", "is no trace id")):
        page.evaluate(f"void (location.hash = '#trace={id}')")
        page.wait_for(f"document.querySelector('[data-testid=waterfall]').innerText.includes('{said}')")
    assert all("404" in said or "400" in said for said in page.complaints())


# A call that was sent on, as the server tells of it.
FORWARDED = {
    **{"id": "f" * 32, "timestamp": 1_800_000_000_000, "operation": "tools/call sum", "duration_ms": 10.0},
    **{"status": "error", "server": "paged", "method": "tools/call", "tool": "sum", "session": None, "injected": True},
    "details": {"method": "tools/call", "proxy_us": "1000", "queue_us": "1000", "server_us": "8000"},
    "spans": [
        {
            **{"id": "a" * 16, "parent": None, "name": "tools/call sum", "kind": "server", "start_us": 0},
            **{"duration_us": 10_000, "status": "error", "message": EVIL, "dropped_events": 7},
            "attributes": {"gen_ai.tool.name": EVIL},
            "events": [
                {"name": "notifications/progress", "at_us": 2500, "attributes": {"progress": "1", "total": "4"}},
                {"name": EVIL, "at_us": 7500, "attributes": {EVIL: EVIL}},
            ],
        },
        {
            **{"id": "b" * 16, "parent": "a" * 16, "name": "tools/call sum", "kind": "client", "start_us": 2000},
            **{"duration_us": 8000, "status": "error", "message": None, "dropped_events": 0},
            **{"attributes": {}, "events": []},
        },
    ],
}


def test_where_the_time_went(page, proxy):
    shown(page, proxy)
    page.evaluate(f"void (window.fetch = async () => new Response(JSON.stringify({json.dumps(FORWARDED)})))")
    page.evaluate(f"void (location.hash = '#trace={FORWARDED['id']}')")
    page.wait_for_element("[data-testid=parts]")
    parts = page.text("[data-testid=parts]")
    for part in ("in the proxy 1 ms 10 %", "in the queue 1 ms 10 %", "waiting for the server 8 ms 80 %"):
        assert part in " ".join(parts.split())
    widths = "[...document.querySelectorAll('[data-testid=parts] > div i')].map(part => part.getBoundingClientRect().width)"
    proxy_time, queue, server = page.evaluate(widths)
    assert proxy_time == pytest.approx(queue) and server == pytest.approx(8 * queue, rel=0.02)
    kinds = "[...document.querySelectorAll('[data-testid=waterfall] .span')].map(span => span.dataset.kind)"
    assert page.evaluate(kinds) == ["server", "client"]
    assert page.evaluate("document.querySelector('.span .unseen').innerText") == ", 2 events"
    # Each event has its mark where it happened, and its line.
    marks = "[...document.querySelectorAll('.event')].map(mark => [mark.style.left, mark.title])"
    assert page.evaluate(marks) == [["25%", "+2.5 ms notifications/progress"], ["75%", f"+7.5 ms {EVIL}"]]
    text = " ".join(page.text("[data-testid=events]").split())
    assert text == f"+2.5 ms notifications/progress progress 1 total 4 +7.5 ms {EVIL} {EVIL} {EVIL}"
    sheet = page.text("[data-testid=waterfall]")
    assert "7 further events found no place" in sheet and "proxy_us" not in sheet
    assert page.text("[data-testid=waterfall] .about .bad") == EVIL
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.complaints() == []


def test_the_seven_metrics_are_drawn(page, proxy):
    shown(page, proxy)
    call_tool(proxy, "probe")
    cards = page.evaluate("[...document.querySelectorAll('[data-testid^=metric-]')].map(card => card.dataset.testid)")
    assert sorted(cards) == [f"metric-{name}" for name in METRICS]
    for card in cards:
        # Not just there: something is drawn on it.
        page.wait_for(f"""(() => {{
            const canvas = document.querySelector('[data-testid={card}] canvas');
            if (!canvas || canvas.width < 100 || canvas.height < 50) return false;
            const {{ data }} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return data.some(byte => byte > 0);
        }})()""")
    # A value once a window has closed.
    value = "document.querySelector('[data-testid=metric-tool_call_duration_ms] strong').innerText"
    call_tool(proxy, "probe")
    page.wait_for(f"/\\d/.test({value})", 20)
    assert page.complaints() == []


def test_a_change_of_health_is_not_contradicted(page, instances):
    """By what the last push said, which may be some time ago."""
    with Upstream() as upstream:
        hourly = instances.variables() | {"MCPSCOPE_DASHBOARD_UPDATE_INTERVAL": "1h"}
        proxy = instances.proxy(upstream.url, env=hourly)
        wait_until(lambda: proxy.get("api/v1/dashboard").json()["system_health"]["components"], what="a frame")
        shown(page, proxy)
        page.wait_for_element("[data-testid=component-transports][data-state=healthy]")
    with httpx.Client(trust_env=False) as client:
        client.post(proxy.proxy, json=call())
    page.wait_for_element(".changes [data-state=critical]")
    page.wait_for_element("[data-testid=component-transports][data-state=critical]", 2)
    assert page.complaints() == []


# What is kept of these reports, each with the errors of its components and the second that it came in.
LINES = """(async reports => {
    const { CRITICAL, History, drawn } = await import("/static/metrics.js");
    const critical = CRITICAL.find(({ name }) => name === "error_rates_by_component");
    const history = new History();
    for (const [time, names, value] of reports) {
        const series = names.map(component => ({ labels: { component }, value, window: null }));
        history.add({ [critical.name]: { series } }, time);
    }
    const lines = first => Object.fromEntries(drawn(critical, history.lines.get(critical.name), first));
    return { times: history.times, all: lines(0), last: lines(history.times.length - 1) };
})"""


def test_the_lines_of_a_chart(page, proxy):
    shown(page, proxy)
    kept = lambda *reports: page.evaluate(f"{LINES}({json.dumps(reports)})")  # noqa: E731
    many = [f"component{number}" for number in range(20)]
    crowded = kept([1000, many, 0.5])["all"]
    assert len(crowded) == 12 and crowded["other"] == [0.5], "shares do not add up"
    # Who has gone leaves its place to who is there.
    left = kept([1000, many[:12], 0.5], [1005, [], 0], [1010, many[12:14], 0.5])
    assert sorted(left["last"]) == many[12:14] and len(left["all"]) == 12
    # A clock that was set back by an hour: the lines end, and go on from there.
    back = kept([5000, many[:1], 0.1], [5005, many[:1], 0.2], [1400, many[:1], 0.3], [1405, many[:1], 0.4])
    first, second, gap, third, fourth = back["times"]
    assert first < second < gap < third == 1400 and fourth == 1405 and second - first == pytest.approx(5)
    assert back["all"][many[0]] == [0.1, 0.2, None, 0.3, 0.4]
    assert page.complaints() == []


def test_every_tool_is_in_the_table(page, proxy):
    """Also where there are more than a push holds."""
    for number in range(60):
        call_tool(proxy, f"tool{number}")
    shown(page, proxy)
    page.wait_for("document.querySelector('#tools-title').innerText.includes('60')", 2 * SOON)
    page.click("[data-testid=tools] .more")
    rows = "document.querySelectorAll('[data-testid=tool-row]').length"
    page.wait_for(f"{rows} === 60")
    assert page.complaints() == []


def test_the_server_is_restarted(page, instances, upstream):
    options = ("proxy", "--upstream", upstream.url, "--listen", ANY_PORT, "--name", "again")
    first = instances.spawn(*options, "--dashboard", ANY_PORT)
    shown(page, first)
    call_tool(first, "before")
    page.wait_for_element(tool_row("before"), SOON)
    assert page.complaints() == []

    first.stop()
    wait_for_link(page, "reconnecting")
    assert page.exists(tool_row("before")), "what was known last stays in sight"
    second = instances.spawn(*options, "--dashboard", urlsplit(first.dashboard).netloc)
    assert second.dashboard == first.dashboard
    wait_for_link(page, "live")
    call_tool(second, "after")
    page.wait_for_element(tool_row("after"), SOON)
    # It is the new one's data.
    page.wait_for(f"document.querySelector({json.dumps(tool_row('before'))}) === null")
    # It may have said that nobody was there, and nothing else.
    assert all("ERR_CONNECTION_REFUSED" in said or "WebSocket" in said for said in page.complaints())
    page.wait_for(f"document.querySelector('{LINK}').innerText.trim() === 'live'", 1)
    stays_here(page, second)


def test_names_are_text(page, proxy):
    """A server may name its tools as it likes; so may whoever calls it."""
    shown(page, proxy)
    call_tool(proxy, EVIL)
    names = "[...document.querySelectorAll('[data-testid=tool-row]')].map(row => row.dataset.tool)"
    page.wait_for(f"{names}.includes({json.dumps(EVIL)})", SOON)
    assert EVIL in page.text("[data-testid=tools]")
    page.wait_for(f"document.querySelector('[data-testid=traces]').innerText.includes({json.dumps(EVIL)})", SOON)
    # In the trace too, and in the filter that a click on the tool sets.
    page.click("[data-testid=trace-row]")
    page.wait_for_element("[data-testid=waterfall][open] .span")
    assert EVIL in page.text("[data-testid=waterfall]")
    page.press("Escape")
    page.wait_for("document.querySelector('[data-testid=waterfall]') === null")
    page.click("[data-testid=tool-row] button")
    page.wait_for(f"document.querySelector('#filter').value === {json.dumps(EVIL)}")
    images = "[...document.querySelectorAll('img')].map(image => new URL(image.src).pathname)"
    assert page.evaluate(images) == ["/static/icon.svg"]
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert "/x" not in stays_here(page, proxy)
    assert page.complaints() == []


def test_dark_and_light(page, proxy):
    shown(page, proxy)
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    label = lambda: page.evaluate("document.querySelector('[data-testid=theme]').ariaLabel")  # noqa: E731
    light = ground()
    assert label() == "Switch to dark"
    page.click("[data-testid=theme]")
    assert (page.evaluate("document.documentElement.dataset.theme"), label()) == ("dark", "Switch to light")
    dark = ground()
    assert brightness(dark) < 80 < 200 < brightness(light)
    page.reload()
    wait_for_link(page, "live")
    assert ground() == dark, "the choice is kept"
    page.press("t")
    assert ground() == light
    assert page.complaints() == []


def brightness(color: str) -> float:
    """From 0 to 255, of `rgb(r, g, b)`."""
    parts = [float(part) for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
    return sum(parts) / 3


def test_the_policy_holds(page, proxy, upstream):
    """And what it forbids is noticed by these tests."""
    answer = proxy.get("")
    directives = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"
    assert {directives[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"

    shown(page, proxy)
    assert page.complaints() == []
    page.evaluate(f"""{{
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.hacked=2">');
        new Image().src = '{upstream.url}';
        fetch('{upstream.url}').catch(() => {{}});
    }}""")
    wait_until(lambda: page.exists("img[src=x]"), what="the image")
    said = []
    wait_until(lambda: said.extend(page.complaints()) or len(said) >= 4, what="complaints")
    assert all("Content Security Policy" in one or "404" in one for one in said), said
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert upstream.seen == []


def test_what_has_not_changed_is_not_sent_again(page, proxy):
    """Every file that a browser loaded."""
    shown(page, proxy)
    files = {path for path in stays_here(page, proxy) if path == "/" or path.startswith("/static/")}
    assert files >= {"/", "/static/app.js", "/static/style.css"} and len(files) > 10
    with httpx.Client(base_url=proxy.dashboard, trust_env=False) as client:
        for path in files:
            for encoding in ("gzip", "identity"):
                headers = {"Accept-Encoding": encoding}
                whole = client.get(urljoin(proxy.dashboard, path), headers=headers)
                assert whole.status_code == 200 and whole.content
                tag = whole.headers["etag"]
                again = client.get(path, headers=headers | {"If-None-Match": tag})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert client.get(path, headers=headers | {"If-None-Match": '"other"'}).content == whole.content
        script = client.get("/static/app.js", headers={"Accept-Encoding": "gzip"})
        assert script.headers["content-encoding"] == "gzip"
