// The newest traces, or those that the filter finds.
import { FilterBar, LIMIT, clear, inWords, isSet, useTraces } from "./filter.js";
import * as format from "./format.js";
import { follow, href } from "./route.js";
import { Cut, Injected, State, html } from "./view.js";

/** @typedef {import("./store.js").Trace} Trace */

/** @param {{ store: import("./store.js").Store, route: import("./route.js").Route }} props */
export function Traces({ store: { dashboard, metrics }, route }) {
    const { traces, problem, busy } = useTraces(route, dashboard);
    const newest = dashboard?.traces ?? [];
    const longest = Math.max(...traces.map(trace => trace.duration_ms));
    const found = traces.length < LIMIT ? `${traces.length} found` : `the newest ${LIMIT} found`;
    return html`<section aria-labelledby="traces-title" class="panel">
        <div class="section-head">
            <h2 id="traces-title">Newest traces <small>${isSet(route) ? !busy && !problem && found : traces.length || ""}</small></h2>
            <${FilterBar} filter=${route} traces=${[...newest, ...traces]} metrics=${metrics} />
        </div>
        <div id="traces" class="card scroll" data-testid="traces" tabindex="0" role="group" aria-labelledby="traces-title"
            aria-busy=${String(Boolean(busy))}>
            ${traces.length > 0 && html`<table>
                <thead><tr><th scope="col">Time</th><th scope="col">Operation</th><th scope="col">Server</th>
                    <th scope="col" class="number">Duration</th><th scope="col">Status</th></tr></thead>
                <tbody>${traces.map(trace => html`<${Row} key=${trace.id + trace.spans[0]?.id} trace=${trace}
                    longest=${longest} current=${trace.id === route.trace} />`)}</tbody>
            </table>`}
            ${traces.length === 0 && html`<div class="empty" role="status">${!isSet(route)
                ? html`<p>No traces yet: they appear with a client's first request.</p>`
                : html`<p>${busy ? "Looking…" : problem ?? `No trace is kept${inWords(route)}.`}</p>
                <p><button type="button" onClick=${clear}>Clear the filter</button></p>`}</div>`}
        </div>
    </section>`;
}

/** @param {{ trace: Trace, longest: number, current: boolean }} props */
function Row({ trace, longest, current }) {
    const { id, timestamp, operation, server, duration_ms, status, injected } = trace;
    // The focus goes to the row's link first, to come back there.
    const open = (/** @type {MouseEvent & { currentTarget: HTMLElement }} */ event) =>
        follow(event, { trace: id }) && event.currentTarget.querySelector("a")?.focus();
    return html`<tr data-testid="trace-row" data-trace=${id} aria-current=${current ? "true" : undefined} onClick=${open}>
        <td class="time" title=${format.moment(timestamp)}>${format.clock(timestamp)}</td>
        <td class="name"><a class="link cut" href=${href({ trace: id })} title=${operation}>${operation}</a>
            ${injected && html` <${Injected} />`}</td>
        <td class="server"><${Cut} text=${server} class="muted" /></td>
        <td class="number length"><i style=${{ width: `${(duration_ms / longest) * 100 || 0}%` }}></i>
            ${format.duration(duration_ms)}</td>
        <td><${State} state=${status} /></td>
    </tr>`;
}
