// The newest traces, and the filter over them.
import * as format from "./format.js";
import { go } from "./route.js";
import { Cut, Injected, State, html } from "./view.js";

/**
 * @typedef {import("./store.js").Trace} Trace
 * @typedef {{ target: { value: string } }} Change
 */

const STATUSES = ["ok", "error", "timeout", "cancelled", "injected"];

/** @param {{ traces: Trace[], route: import("./route.js").Route }} props */
export function Traces({ traces, route: { q, status, trace: here } }) {
    const found = traces.filter(trace => matches(trace, q.toLowerCase(), status));
    const shown = found.length < traces.length ? `${found.length} of ${traces.length}` : traces.length || "";
    const longest = Math.max(...found.map(trace => trace.duration_ms));
    return html`<section aria-labelledby="traces-title" class="panel">
        <div class="section-head">
            <h2 id="traces-title">Newest traces <small>${shown}</small></h2>
            <search class="filter">
                <input id="filter" type="search" placeholder="Filter  ( / )" maxlength="200"
                    aria-label="Filter traces by operation, server or id" value=${q}
                    onInput=${(/** @type {Change} */ { target }) => go({ q: target.value })} />
                <select aria-label="Status" value=${status}
                    onChange=${(/** @type {Change} */ { target }) => go({ status: target.value })}>
                    <option value="">any status</option>
                    ${STATUSES.map(one => html`<option value=${one} selected=${one === status}>${one}</option>`)}
                </select>
            </search>
        </div>
        <div class="card scroll" data-testid="traces" tabindex="0" role="group" aria-labelledby="traces-title">
            ${found.length > 0 && html`<table>
                <thead><tr><th scope="col">Time</th><th scope="col">Operation</th><th scope="col">Server</th>
                    <th scope="col" class="number">Duration</th><th scope="col">Status</th></tr></thead>
                <tbody>${found.map(trace => html`<${Row} key=${trace.id} trace=${trace} longest=${longest}
                    current=${trace.id === here} />`)}</tbody>
            </table>`}
            ${traces.length === 0 && html`<p class="empty">No traces yet: they appear with a client's first request.</p>`}
            ${traces.length > 0 && found.length === 0 && html`<div class="empty">
                <p>None of the ${traces.length} newest traces matches.</p>
                <p><button type="button" onClick=${() => go({ q: "", status: "" })}>Clear the filter</button></p>
            </div>`}
        </div>
    </section>`;
}

/**
 * Opens a row's trace. The focus goes to the row's button first, to come back there.
 * @param {{ currentTarget: HTMLElement }} event
 */
function open({ currentTarget: row }) {
    row.querySelector("button")?.focus();
    go({ trace: row.dataset.trace });
}

/** @param {{ trace: Trace, longest: number, current: boolean }} props */
function Row({ trace, longest, current }) {
    const { id, timestamp, operation, server, duration_ms, status, injected } = trace;
    return html`<tr data-testid="trace-row" data-trace=${id} aria-current=${current ? "true" : undefined} onClick=${open}>
        <td class="time" title=${format.moment(timestamp)}>${format.clock(timestamp)}</td>
        <td class="name"><button type="button" class="link cut" title=${operation}>${operation}</button>
            ${injected && html` <${Injected} />`}</td>
        <td class="server"><${Cut} text=${server} class="muted" /></td>
        <td class="number length"><i style=${{ width: `${(duration_ms / longest) * 100 || 0}%` }}></i>
            ${format.duration(duration_ms)}</td>
        <td><${State} state=${status} /></td>
    </tr>`;
}

/**
 * @param {Trace} trace
 * @param {string} text in lower case
 * @param {string} status
 */
function matches({ operation, server, id, status: mine, injected }, text, status) {
    if (status && !(status === "injected" ? injected : mine === status)) return false;
    return [operation, server, id].some(field => field.toLowerCase().includes(text));
}
