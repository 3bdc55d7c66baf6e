// The tools by rate, errors and duration.
import * as format from "./format.js";
import { isInjected, percentile } from "./metrics.js";
import { go } from "./route.js";
import { Cut, Injected, html, useMemo, useState } from "./view.js";

/**
 * @typedef {{ tool: string, server: string, rate: number, errors: number | null, p50: number | null, p95: number | null,
 *     last: number | null, injected: boolean }} Tool
 * @typedef {import("./metrics.js").Series} Series
 * @typedef {{ key: keyof Tool, title: string, number?: boolean, hint?: string }} Column
 */

/** What counts against the server; the caller's mistakes and changes of mind do not. */
const ERRORS = new Set(["error", "timeout"]);
/** A table of more rows than this is cut until asked for. */
const FIRST = 50;

/** @type {Column[]} */
const COLUMNS = [
    { key: "tool", title: "Tool" },
    { key: "server", title: "Server" },
    { key: "rate", title: "Rate", number: true, hint: "Calls per second in the last window" },
    { key: "errors", title: "Errors", number: true, hint: "Share of errors and timeouts; injected ones are left out" },
    { key: "p50", title: "p50", number: true, hint: "Half of the calls took less" },
    { key: "p95", title: "p95", number: true, hint: "95 % of the calls took less" },
    { key: "last", title: "Last", number: true, hint: "The newest call of its most frequent outcome" },
];

/** @param {{ metrics: import("./metrics.js").Metrics | undefined, sort: string }} props */
export function Tools({ metrics, sort }) {
    const [whole, setWhole] = useState(false);
    const tools = useMemo(() => summarize(metrics?.tool_call_duration_ms?.series ?? []), [metrics]);
    const down = sort.startsWith("-");
    const key = COLUMNS.find(column => column.key === sort.replace("-", ""))?.key ?? "rate";
    const sorted = useMemo(() => {
        return tools.toSorted((a, b) => compare(a[key], b[key], down) || compare(a.tool, b.tool, false));
    }, [tools, sort]);
    const rows = whole ? sorted : sorted.slice(0, FIRST);
    return html`<section aria-labelledby="tools-title" class="panel">
        <div class="section-head"><h2 id="tools-title">Tools <small>${tools.length || ""}</small></h2></div>
        <div class="card scroll" data-testid="tools" tabindex="0" role="group" aria-labelledby="tools-title">
            ${tools.length ? html`<table>
                <thead><tr>${COLUMNS.map(column => html`<${Head} key=${column.key} column=${column}
                    sorted=${column.key === key} down=${down} />`)}</tr></thead>
                <tbody>${rows.map(tool => html`<${Row} key=${`${tool.server}\n${tool.tool}`} tool=${tool} />`)}</tbody>
            </table>` : html`<${Empty} />`}
            ${rows.length < tools.length && html`<button type="button" class="more"
                onClick=${() => setWhole(true)}>Show all ${tools.length} tools</button>`}
        </div>
    </section>`;
}

/** @param {{ column: Column, sorted: boolean, down: boolean }} props */
function Head({ column, sorted, down }) {
    const { key, title, number, hint } = column;
    // Numbers are looked at from the top, names from A.
    const next = sorted ? !down : Boolean(number);
    const order = down ? "descending" : "ascending";
    return html`<th scope="col" class=${number ? "number" : ""} aria-sort=${sorted ? order : undefined}>
        <button type="button" title=${hint} onClick=${() => go({ sort: `${next ? "-" : ""}${key}` })}>
            ${title}<span aria-hidden="true">${sorted ? (down ? " ↓" : " ↑") : ""}</span>
        </button>
    </th>`;
}

/** @param {{ tool: Tool }} props */
function Row({ tool }) {
    return html`<tr data-testid="tool-row" data-tool=${tool.tool}>
        <td class="name"><button type="button" class="link cut" title=${`${tool.tool}\nShow its traces`}
            onClick=${() => go({ q: tool.tool })}>${tool.tool}</button>${tool.injected && html` <${Injected} />`}</td>
        <td class="server"><${Cut} text=${tool.server} class="muted" /></td>
        <td class="number">${format.rate(tool.rate)}</td>
        <td class=${tool.errors ? "number bad" : "number"}>${format.percent(tool.errors)}</td>
        <td class="number">${format.duration(tool.p50)}</td>
        <td class="number">${format.duration(tool.p95)}</td>
        <td class="number">${format.duration(tool.last)}</td>
    </tr>`;
}

/** @param {{}} _props */
const Empty = _props => html`<div class="empty">
    <p>No traffic yet: point a client at mcpscope.</p>
    <p><code>mcpscope run -- CMD</code> wraps a stdio server; <code>mcpscope proxy --upstream URL --listen ADDR</code> goes in
    front of an HTTP one. What they listen on is on stderr.</p>
</div>`;

/**
 * One row for each tool of each server, from a series for each of its outcomes.
 * @param {Series[]} series
 * @returns {Tool[]}
 */
function summarize(series) {
    /** @type {Map<string, Series[]>} */
    const byTool = new Map();
    for (const one of series) {
        const id = `${one.labels.server}\n${one.labels.tool}`;
        const others = byTool.get(id);
        if (others) others.push(one);
        else byTool.set(id, [one]);
    }
    return [...byTool.values()].map(all => {
        const real = all.filter(one => !isInjected(one));
        const calls = total(real);
        const windows = (real.length ? real : all).flatMap(({ window }) => (window ? [window] : []));
        const { server = "", tool = "" } = all[0].labels;
        return {
            tool,
            server,
            rate: total(all),
            errors: calls ? total(real.filter(({ labels }) => ERRORS.has(labels.outcome))) / calls : null,
            p50: percentile(windows, 0.5),
            p95: percentile(windows, 0.95),
            // Which outcome came last is not told; the most frequent one speaks for the tool.
            last: all.reduce((most, one) => ((one.window?.count ?? 0) > (most.window?.count ?? 0) ? one : most)).value,
            injected: all.length > real.length && total(all) > calls,
        };
    });
}

/** @param {Series[]} series */
const total = series => series.reduce((sum, { window }) => sum + (window?.rate ?? 0), 0);

/**
 * What is not known comes last either way.
 * @param {Tool[keyof Tool]} a
 * @param {Tool[keyof Tool]} b
 * @param {boolean} down
 */
function compare(a, b, down) {
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    const order = typeof a === "string" ? a.localeCompare(String(b)) : Number(a) - Number(b);
    return down ? -order : order;
}
