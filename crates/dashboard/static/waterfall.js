// One trace: its spans as a waterfall, and what each of them says.
import * as format from "./format.js";
import { go } from "./route.js";
import { Cut, Injected, State, html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";

/**
 * @typedef {import("./store.js").Trace} Trace
 * @typedef {import("./store.js").Span} Span
 * @typedef {{ id: string, trace?: Trace, problem?: string }} Found
 */

const GONE = "This trace is not kept any more: only the newest are, with a reserve for errors and slow ones.";
const TICKS = [0, 0.25, 0.5, 0.75, 1];

/** @param {{ id: string, traces: Trace[] }} props */
export function TraceDialog({ id, traces }) {
    const { trace, problem } = useTrace(id, traces);
    const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
    useLayoutEffect(() => dialog.current?.showModal(), []);
    const close = () => dialog.current?.close();
    return html`<dialog ref=${dialog} class="trace" data-testid="waterfall" aria-label="Trace" onClose=${() => go({ trace: "" })}
        onClick=${(/** @type {MouseEvent} */ event) => event.target === dialog.current && close()}>
        <div class="sheet">
            <button type="button" class="icon close" aria-label="Close" title="Close (Escape)" onClick=${close}>✕</button>
            ${trace ? html`<${Waterfall} key=${trace.id} trace=${trace} />`
                : html`<p class="empty" role="status">${problem ?? "Looking for the trace…"}</p>`}
        </div>
    </dialog>`;
}

/**
 * The trace as long as it is looked at, also when newer ones have pushed it off the list.
 * @param {string} id
 * @param {Trace[]} traces
 * @returns {Found}
 */
function useTrace(id, traces) {
    const [found, setFound] = useState(/** @type {Found} */ ({ id: "" }));
    const listed = traces.find(trace => trace.id === id);
    useEffect(() => {
        if (listed) return setFound({ id, trace: listed });
        if (found.id === id && found.trace) return;
        const stop = new AbortController();
        const problem = (/** @type {string} */ text) => !stop.signal.aborted && setFound({ id, problem: text });
        fetch(`/api/v1/traces/${encodeURIComponent(id)}`, { signal: stop.signal }).then(
            async answer => {
                if (answer.ok) setFound({ id, trace: await answer.json() });
                else problem(answer.status === 404 ? GONE : `The server answered ${answer.status}.`);
            },
        ).catch(() => problem("The server cannot be reached."));
        return () => stop.abort();
    }, [id, listed]);
    return listed ? { id, trace: listed } : found.id === id ? found : { id };
}

/** @param {{ trace: Trace }} props */
function Waterfall({ trace }) {
    const rows = nested(trace.spans);
    const [chosen, choose] = useState(rows[0]?.span.id);
    const span = trace.spans.find(({ id }) => id === chosen);
    const ends = trace.spans.map(({ start_us, duration_us }) => start_us + duration_us);
    const whole = Math.max(1, trace.duration_ms * 1000, ...ends);
    /** @param {number} us */
    const share = us => `${(us / whole) * 100}%`;
    return html`
        <header>
            <h2>${trace.operation}</h2>
            <p class="facts"><${State} state=${trace.status} />${trace.injected && html`<${Injected} />`}
                <b>${format.duration(trace.duration_ms)}</b><span>${format.moment(trace.timestamp)}</span>
                <span>${trace.server}</span></p>
        </header>
        <div class="waterfall" role="group" aria-label="Spans" onKeyDown=${walk}>
            <div class="axis" aria-hidden="true"><span></span><span>${TICKS.map(at => html`
                <i style=${{ left: `${at * 100}%` }}>${format.duration((whole * at) / 1000)}</i>`)}</span></div>
            ${rows.map(({ span: one, depth }) => html`<button type="button" key=${one.id} class="span"
                aria-pressed=${String(one.id === chosen)} data-status=${one.status} onClick=${() => choose(one.id)}>
                <span class="cut" title=${one.name} style=${{ paddingLeft: `${Math.min(depth, 12) * 14}px` }}>${one.name}</span>
                <span class="track" aria-hidden="true">
                    <i class="bar" style=${{ left: share(one.start_us), width: share(one.duration_us) }}></i>
                    ${one.events.map(event => html`<i class="event" title=${event.name} style=${{ left: share(event.at_us) }}></i>`)}
                </span>
                <span class="number">${format.duration(one.duration_us / 1000)}</span>
            </button>`)}
            ${rows.length === 0 && html`<p class="empty">No spans were recorded for it.</p>`}
        </div>
        <div class="about">
            ${span && html`<section aria-label="Span"><h3>Span <${Cut} text=${span.name} /></h3>
                <${Pairs} pairs=${own(span)} />
                ${Object.keys(span.attributes).length > 0 && html`<h4>Attributes</h4><${Pairs} pairs=${span.attributes} />`}
                ${span.events.length > 0 && html`<h4>Events</h4>`}
                ${span.events.map(({ name, at_us, attributes }) => html`
                    <${Pairs} pairs=${{ [name]: `at ${format.duration(at_us / 1000)}`, ...attributes }} />`)}
            </section>`}
            <section aria-label="Trace"><h3>Trace</h3><${Pairs} pairs=${{ id: trace.id, ...trace.details }} /></section>
        </div>`;
}

/** @param {Span} span */
const own = ({ kind, status, start_us, duration_us, id, parent }) => ({
    kind,
    status,
    start: format.duration(start_us / 1000),
    duration: format.duration(duration_us / 1000),
    id,
    ...(parent && { parent }),
});

/** @param {{ pairs: Record<string, unknown> }} props */
const Pairs = ({ pairs }) => html`<dl>${Object.entries(pairs).map(([name, value]) => html`<div key=${name}>
    <dt>${name}</dt><dd>${typeof value === "string" ? value : JSON.stringify(value)}</dd></div>`)}</dl>`;

/**
 * Up and down between the spans.
 * @param {KeyboardEvent & { currentTarget: HTMLElement }} event
 */
function walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const spans = /** @type {HTMLElement[]} */ ([...event.currentTarget.querySelectorAll(".span")]);
    const next = spans[spans.indexOf(/** @type {HTMLElement} */ (document.activeElement)) + step];
    next?.focus();
    next?.click();
}

/**
 * The spans in the order of a tree: each under its parent, brothers by their beginning. One whose parent is elsewhere, or
 * whose parents go round in a circle, stands at the top.
 * @param {Span[]} spans
 */
export function nested(spans) {
    const known = new Set(spans.map(({ id }) => id));
    /** @type {Map<string | null, Span[]>} */
    const children = new Map();
    for (const span of spans.toSorted((a, b) => a.start_us - b.start_us)) {
        const parent = span.parent !== null && known.has(span.parent) ? span.parent : null;
        const brothers = children.get(parent);
        if (brothers) brothers.push(span);
        else children.set(parent, [span]);
    }
    /** @type {{ span: Span, depth: number }[]} */
    const rows = [];
    const placed = new Set();
    for (const top of [...(children.get(null) ?? []), ...spans]) {
        const open = [{ span: top, depth: 0 }];
        for (let row = open.pop(); row; row = open.pop()) {
            const { span, depth } = row;
            if (placed.has(span)) continue;
            placed.add(span);
            rows.push(row);
            const below = children.get(span.id) ?? [];
            open.push(...below.toReversed().map(child => ({ span: child, depth: depth + 1 })));
        }
    }
    return rows;
}
