// The page: the header, the parts below it, the keyboard, and the connection that feeds them.
import { Charts } from "./charts.js";
import { connect } from "./connection.js";
import * as format from "./format.js";
import { HealthMap } from "./health.js";
import { route } from "./route.js";
import { Store } from "./store.js";
import { onTheme, theme, toggleTheme } from "./theme.js";
import { Tools } from "./tools.js";
import { Traces } from "./traces.js";
import { html, render, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import { TraceDialog } from "./waterfall.js";

const store = new Store();

/** @type {[string, string][]} */
const KEYS = [
    ["?", "this help"],
    ["t", "light or dark"],
    ["/", "filter the traces"],
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
        for (const event of ["hashchange", "popstate"]) addEventListener(event, again);
        const onKey = (/** @type {KeyboardEvent} */ event) => press(event, () => setHelp(open => !open));
        addEventListener("keydown", onKey);
        return () => {
            for (const event of ["hashchange", "popstate"]) removeEventListener(event, again);
            removeEventListener("keydown", onKey);
        };
    }, []);
    const { link, health, dashboard } = store;
    const here = route();
    const traces = dashboard?.traces ?? [];
    useEffect(() => {
        document.title = `${link === "live" ? health?.overall ?? link : link} · mcpscope`;
    }, [link, health?.overall]);
    return html`
        <${Header} onHelp=${() => setHelp(true)} />
        <main class=${link === "live" ? "" : "stale"}>
            <${HealthMap} store=${store} />
            <${Charts} store=${store} range=${here.range} />
            <div class="columns">
                <${Tools} metrics=${store.metrics} sort=${here.sort} />
                <${Traces} store=${store} route=${here} />
            </div>
        </main>
        ${here.trace && html`<${TraceDialog} id=${here.trace} traces=${traces} />`}
        ${help && html`<${Help} onClose=${() => setHelp(false)} />`}`;
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

/** @param {{ onClose: () => void }} props */
function Help({ onClose }) {
    const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
    useLayoutEffect(() => dialog.current?.showModal(), []);
    return html`<dialog ref=${dialog} class="help" aria-labelledby="help-title" onClose=${onClose}>
        <h2 id="help-title">Keys</h2>
        <dl>${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
        <p class="muted">Charts hold what came since the page was opened, up to an hour. The filter looks through all traces that
            are kept. The address holds filter, sorting and the open trace. Percentiles over several series are mixed from each one's; errors are the server's own:
            callers' mistakes, cancelled calls and injected faults do not count.</p>
        <button type="button" onClick=${() => dialog.current?.close()}>Close</button>
    </dialog>`;
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
    else if (event.key === "?" && !document.querySelector("dialog.trace")) toggleHelp();
    else if (event.key === "/" && !document.querySelector("dialog")) {
        event.preventDefault();
        document.getElementById("filter")?.focus();
    }
}

store.send = connect(message => store.receive(message), link => store.linked(link));
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
