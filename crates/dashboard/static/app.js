// The page: the header, the parts below it, the keyboard, and the connection that feeds them.
import { Chaos } from "./chaos.js";
import { Charts } from "./charts.js";
import { connect } from "./connection.js";
import { takeToken } from "./engine.js";
import * as format from "./format.js";
import { HealthMap } from "./health.js";
import { ReportDialog } from "./report.js";
import { route } from "./route.js";
import { ChaosBar, StopAll, stopEverything } from "./stop.js";
import { Store } from "./store.js";
import { onTheme, theme, toggleTheme } from "./theme.js";
import { TokenDialog } from "./token.js";
import { Tools } from "./tools.js";
import { Traces } from "./traces.js";
import { CloseButton, Dialog, html, render, useEffect, useState } from "./view.js";
import { TraceDialog } from "./waterfall.js";

takeToken();
const store = new Store();

/** @type {[string, string][]} */
const KEYS = [
    ["?", "this help"],
    ["t", "light or dark"],
    ["/", "filter the traces"],
    ["c", "chaos"],
    ["Shift Escape", "stop all faults, from anywhere"],
    ["↑ ↓", "walk through a trace's spans"],
    ["Escape", "close, or clear the filter"],
];

/** @param {{}} _props */
function App(_props) {
    const [, tick] = useState(0);
    const [help, setHelp] = useState(false);
    const again = () => tick(n => n + 1);
    useEffect(() => store.subscribe(again), []);
    useEffect(() => onTheme(again), []);
    useEffect(() => {
        const moved = () => {
            takeToken();
            again();
        };
        for (const event of ["hashchange", "popstate"]) addEventListener(event, moved);
        const onKey = (/** @type {KeyboardEvent} */ event) => press(event, () => setHelp(open => !open));
        addEventListener("keydown", onKey);
        addEventListener("keydown", onStopKey, true);
        return () => {
            for (const event of ["hashchange", "popstate"]) removeEventListener(event, moved);
            removeEventListener("keydown", onKey);
            removeEventListener("keydown", onStopKey, true);
        };
    }, []);
    const { link, health, dashboard, chaos } = store;
    const here = route();
    const traces = dashboard?.traces ?? [];
    const shaken = chaos?.active_tests ? "⚡ " : "";
    useEffect(() => {
        document.title = `${shaken}${link === "live" ? health?.overall ?? link : link} · mcpscope`;
    }, [link, health?.overall, shaken]);
    const bar = html`<${ChaosBar} store=${store} inDialog />`;
    return html`
        <div class="head">
            <${Header} onHelp=${() => setHelp(true)} />
            <${ChaosBar} store=${store} />
        </div>
        <p class="unseen" role="status">${store.said}</p>
        <main class=${link === "live" ? "" : "stale"}>
            <${HealthMap} store=${store} />
            <${Charts} store=${store} range=${here.range} />
            <${Chaos} store=${store} current=${here.experiment} />
            <div class="columns">
                <${Tools} metrics=${store.metrics} sort=${here.sort} />
                <${Traces} store=${store} route=${here} />
            </div>
        </main>
        ${here.trace && html`<${TraceDialog} id=${here.trace} traces=${traces}>${bar}<//>`}
        ${here.experiment && !here.trace && html`<${ReportDialog} id=${here.experiment} store=${store}>${bar}<//>`}
        ${help && html`<${Help} onClose=${() => setHelp(false)}>${bar}<//>`}
        <${TokenDialog}>${bar}<//>`;
}

/** @param {{ onHelp: () => void }} props */
function Header({ onHelp }) {
    const { link, dashboard } = store;
    const other = theme() === "dark" ? "light" : "dark";
    return html`<header class="top">
        <h1><img src="/static/icon.svg" alt="" width="22" height="22" /> mcpscope</h1>
        <p class="link-state">
            <span data-testid="connection" data-link=${link} role="status"><i class="dot" aria-hidden="true"></i>${link}</span>
            ${link !== "live" && store.updated > 0 && html` <${Age} since=${store.updated} />`}</p>
        ${dashboard && html`<dl class="readings">
            <div><dt>Uptime</dt><dd>${format.span(dashboard.system_uptime)}</dd></div>
            <div><dt>Memory</dt><dd>${format.bytes(dashboard.memory_usage)}
                ${dashboard.memory_ratio != null && html` <small>${format.percent(dashboard.memory_ratio)}</small>`}</dd></div>
            <div><dt>CPU</dt><dd>${format.percent(dashboard.cpu_usage)}</dd></div>
        </dl>`}
        <div class="buttons">
            <${StopAll} store=${store} />
            <button type="button" class="icon" data-testid="theme" aria-label=${`Switch to ${other}`}
                title=${`Switch to ${other} (t)`} onClick=${toggleTheme}>${other === "dark" ? "☾" : "☀"}</button>
            <button type="button" class="icon" aria-label="Help" title="Help (?)" onClick=${onHelp}>?</button>
        </div>
    </header>`;
}

/** @param {{ since: number }} props */
function Age({ since }) {
    const [now, setNow] = useState(Date.now());
    useEffect(() => {
        const timer = setInterval(() => setNow(Date.now()), 1000);
        return () => clearInterval(timer);
    }, []);
    return html`<span class="age">last update ${format.span(now - since)} ago</span>`;
}

/** @param {{ onClose: () => void, children?: any }} props */
function Help({ onClose, children }) {
    return html`<${Dialog} class="help" label="Keys" onClose=${onClose}>
        ${children}
        <div class="sheet">
            <${CloseButton} />
            <h2>Keys</h2>
            <dl>${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
            <p class="muted">Charts hold what came since the page was opened, up to an hour. The filter looks through all traces that
            are kept. The address holds filter, sorting and the open trace. Percentiles over several series are mixed from each one's; errors are the server's own:
            callers' mistakes, cancelled calls and injected faults do not count. Where a chart is shaded, a fault was active.</p>
        </div>
    <//>`;
}

/** Before anything else that listens for keys: it works from anywhere in the page. @param {KeyboardEvent} event */
function onStopKey(event) {
    if (event.key !== "Escape" || !event.shiftKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    stopEverything(store);
}

/**
 * @param {KeyboardEvent} event
 * @param {() => void} toggleHelp
 */
function press(event, toggleHelp) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = /** @type {HTMLElement} */ (event.target);
    if (target.matches("input, select, textarea")) {
        // A search field empties itself on Escape; the second press leaves it.
        if (event.key === "Escape" && !(/** @type {HTMLInputElement} */ (target).value)) target.blur();
        return;
    }
    if (event.key === "t") toggleTheme();
    else if (event.key === "?" && !document.querySelector("dialog.side")) toggleHelp();
    else if (event.key === "c" && !document.querySelector("dialog")) {
        const title = document.getElementById("chaos-title");
        title?.scrollIntoView({ block: "start" });
        title?.focus({ preventScroll: true });
    }
    else if (event.key === "/" && !document.querySelector("dialog")) {
        event.preventDefault();
        document.getElementById("filter")?.focus();
    }
}

store.send = connect(message => store.receive(message), link => store.linked(link));
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
