// One experiment: what was asked for, what was done, and what it did.
import { ask } from "./ask.js";
import * as format from "./format.js";
import { go } from "./route.js";
import { Left, Progress, StopOne } from "./stop.js";
import { CloseButton, Dialog, Impact, Pairs, State, html, useEffect, useState } from "./view.js";

/**
 * @typedef {import("./engine.js").Test} Test
 * @typedef {import("./engine.js").Report} Report
 * @typedef {import("./engine.js").Slot} Slot
 * @typedef {import("./engine.js").Calls} Calls
 * @typedef {{ id: string, test?: Test, problem?: string }} Found
 */

/** @type {Record<string, string>} */
const STARTED_BY = { person: "a person", scheduler: "the scheduler", demo: "the demo" };
/** @type {[string, (slot: Slot) => string][]} */
const UNTOUCHED = [
    ["Calls", slot => format.count(slot.calls)],
    ["Errors", slot => format.percent(slot.error_rate)],
    ["p50", slot => format.duration(slot.p50_ms)],
    ["p95", slot => format.duration(slot.p95_ms)],
    ["p99", slot => format.duration(slot.p99_ms)],
];
/** @type {[string, (calls: Calls | undefined) => string][]} */
const TOUCHED = [
    ["Calls", calls => format.count(calls?.calls ?? 0)],
    ["Errors", calls => format.percent(calls?.calls ? calls.errors / calls.calls : null)],
    ["p95", calls => format.duration(calls?.p95_ms)],
];

const ENDED = ["completed", "failed", "aborted", "not_started"];
/** In ms. */
const LOOK_AGAIN = 500;

/** @param {{ id: string, store: import("./store.js").Store, children?: any }} props */
export function ReportDialog({ id, store, children }) {
    const active = store.chaos?.active_tests_details.find(test => String(test.id) === id);
    const { test, problem } = useTest(id, active?.status ?? "");
    const shown = active ?? test;
    return html`<${Dialog} class="side" testid="report" label="Experiment" onClose=${() => go({ experiment: "" })}>
        ${children}
        <div class="sheet">
            <${CloseButton} />
            ${shown ? html`<${Shown} test=${shown} store=${store} />`
                : html`<p class="empty" role="status">${problem ?? "Looking for the experiment…"}</p>`}
        </div>
    <//>`;
}

/** Whether it has ended, and it is being looked for what it has left over. @param {Test} test */
const isUndecided = ({ status, details }) => ENDED.includes(status) && !details.report;

/**
 * Asked for again whenever it is at another place in its life, and until there is a report once it has ended.
 * @param {string} id
 * @param {string} status
 * @returns {Found}
 */
function useTest(id, status) {
    const [found, setFound] = useState(/** @type {Found} */ ({ id: "" }));
    useEffect(() => {
        const stop = new AbortController();
        /** @type {ReturnType<typeof setTimeout> | undefined} */
        let again;
        const look = () => ask(`/api/v1/chaos/experiments/${encodeURIComponent(id)}`, stop.signal).then(({ value, problem }) => {
            if (stop.signal.aborted) return;
            setFound({ id, test: value, problem });
            if (value && isUndecided(value)) again = setTimeout(look, LOOK_AGAIN);
        });
        look();
        return () => {
            stop.abort();
            clearTimeout(again);
        };
    }, [id, status]);
    return found.id === id ? found : { id };
}

/** @param {{ test: Test, store: import("./store.js").Store }} props */
function Shown({ test, store }) {
    const { id, name, status, impact, start_time, details } = test;
    const { report, parameters, targets, seed, injected, error } = details;
    return html`
        <header>
            <h2>${name} <small>#${id}</small></h2>
            <p class="facts"><${State} state=${status} /><${Impact} impact=${impact} /><span>${format.moment(start_time)}</span>
                <span>on ${targets.join(", ")}</span>${report && html`<span>started by ${STARTED_BY[report.started_by] ?? report.started_by}</span>`}
                ${report && html`<a href=${`/api/v1/chaos/experiments/${id}?format=html`} target="_blank" rel="noopener">Full report</a>`}</p>
            ${error && html`<p class=${status === "failed" ? "bad" : ""}>${error}</p>`}
        </header>
        ${report ? html`<${Outcome} report=${report} />` : isUndecided(test) ? html`<p class="empty" role="status">
            Looking for what it has left over…</p>` : html`<div class="running">
            <${Progress} test=${test} store=${store} />
            <p><${Left} test=${test} store=${store} /> · ${format.count(injected)} hits
                ${" "}${status === "running" && html`<${StopOne} test=${test} store=${store} />`}</p></div>`}
        <div class="about">
            <section aria-label="Parameters"><h3>Parameters</h3><${Pairs} pairs=${{ ...parameters, seed }} /></section>
            ${report && html`<section aria-label="Steady state"><h3>Steady state</h3>
                <${Pairs} pairs=${{ checks: report.steady_state.join(", ") || "none", ...(report.guard && { guard: report.guard }),
                    "left over": report.leak ?? "nothing", ...(report.replay && { "again by": report.replay }) }} /></section>`}
        </div>`;
}

/** What was done: to messages, to processes, or with resources. @param {{ scenario: string, injection: Injection }} props */
function Injected({ scenario, injection }) {
    const { injected, observed, matched, connections, connections_chosen, resource } = injection;
    const asked = `${format.percent(injection.requested_intensity)} asked for`;
    const intensity = html`<div><dt>Intensity</dt><dd>${format.percent(injection.achieved_intensity)}</dd><dd>${asked}</dd></div>`;
    if (scenario === "process_crash") {
        return html`<div><dt>Crashes</dt><dd>${format.count(injected)}</dd><dd>${matched ? `in ${format.count(matched)} chances` : ""}</dd></div>
            ${matched > 0 && intensity}`;
    }
    if (scenario === "memory_pressure" || scenario === "cpu_overload") {
        const [name, show] = scenario === "memory_pressure" ? ["Memory", format.bytes] : ["Load of each core", format.percent];
        return html`<div><dt>${name}</dt><dd>${show(resource?.achieved)}</dd><dd>${show(resource?.requested)} asked for</dd></div>`;
    }
    return html`<div><dt>Injected</dt><dd>${format.count(injected)}</dd><dd>${format.count(observed)} observed</dd></div>
        ${intensity}
        <div><dt>Connections</dt><dd>${connections_chosen}</dd><dd>of ${connections}</dd></div>`;
}

/** @param {{ report: Report }} props */
function Outcome({ report }) {
    const { scenario, before, during, after, injection, recovery, time_to_detect, start_time, end_time } = report;
    const slots = [before, during, after];
    const recovered = recovery.time === null ? recovery.observed ? "not in time" : "not observed" : format.duration(recovery.time);
    return html`
        <dl class="figures">
            <${Injected} scenario=${scenario} injection=${injection} />
            <div><dt>Lasted</dt><dd>${format.duration(end_time - start_time)}</dd>
                <dd>${time_to_detect === null ? "not noticed" : `noticed after ${format.duration(time_to_detect)}`}</dd></div>
            <div><dt>Recovery</dt><dd>${recovered}</dd><dd>limit ${format.duration(recovery.limit)}</dd></div>
        </dl>
        ${slots.some(Boolean) ? html`<div class="scroll" tabindex="0" role="group" aria-label="Before, during and after"><table data-testid="slots">
            <thead><tr><th scope="col"></th><th scope="col" class="number">Before</th><th scope="col" class="number">During</th>
                <th scope="col" class="number">After</th></tr></thead>
            <tbody>
                <tr><th scope="rowgroup" colspan="4">Calls that the fault did not touch</th></tr>
                ${UNTOUCHED.map(([name, read]) => html`<${Line} name=${name} values=${slots.map(slot => (slot ? read(slot) : "–"))} />`)}
                <tr class="touched"><th scope="rowgroup" colspan="4">Calls that it touched</th></tr>
                ${TOUCHED.map(([name, read]) => html`<${Line} name=${name} values=${slots.map(slot => (slot ? read(slot.touched) : "–"))} />`)}
            </tbody>
        </table></div>` : html`<p class="muted">Nobody watched the calls.</p>`}`;
}

/** @param {{ name: string, values: string[] }} props */
const Line = ({ name, values }) => html`<tr><th scope="row">${name}</th>
    ${values.map(value => html`<td class="number">${value}</td>`)}</tr>`;
