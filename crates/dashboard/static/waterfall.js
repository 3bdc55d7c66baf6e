// One trace: where its time went, its spans as a waterfall, and what each of them says.
import { ask } from "./ask.js";
import * as format from "./format.js";
import { NO_FILTER, follow, go, href, traceHref } from "./route.js";
import { CloseButton, Cut, Dialog, Injected, Pairs, State, html, useEffect, useState } from "./view.js";

/**
 * @typedef {import("./store.js").Trace} Trace
 * @typedef {import("./store.js").Span} Span
 * @typedef {{ id: string, trace?: Trace, problem?: string }} Found
 */

const GONE = "This trace is not kept: it is unknown, or newer ones took its place.";
const TICKS = [0, 0.25, 0.5, 0.75, 1];
/** Where the time went, by the detail's name. @type {[string, string][]} */
const PARTS = [["proxy_us", "in the proxy"], ["queue_us", "in the queue"], ["server_us", "waiting for the server"]];

/** @param {{ id: string, traces: Trace[], children?: any }} props */
export function TraceDialog({ id, traces, children }) {
    const { trace, problem } = useTrace(id, traces);
    return html`<${Dialog} class="side" testid="waterfall" label="Trace" onClose=${() => go({ trace: "" })}>
        ${children}
        <div class="sheet">
            <${CloseButton} />
            ${trace ? html`<${Waterfall} key=${trace.id} trace=${trace} />`
                : html`<p class="empty" role="status">${problem ?? "Looking for the trace…"}</p>`}
        </div>
    <//>`;
}

/**
 * The trace as long as it is looked at, also when newer ones have pushed it off the list. What is listed is one call; the
 * whole trace may have more of them.
 * @param {string} id
 * @param {Trace[]} traces
 * @returns {Found}
 */
function useTrace(id, traces) {
    const [found, setFound] = useState(/** @type {Found} */ ({ id: "" }));
    const listed = traces.filter(trace => trace.id === id);
    useEffect(() => {
        const stop = new AbortController();
        ask(`/api/v1/traces/${encodeURIComponent(id)}`, stop.signal).then(({ value, status, problem }) => {
            if (stop.signal.aborted) return;
            const none = { id, problem: status === 404 ? GONE : problem };
            setFound(before => (value ? { id, trace: value } : before.id === id && before.trace ? before : none));
        });
        return () => stop.abort();
    }, [id, listed.length]);
    const mine = found.id === id ? found : { id };
    return mine.trace || !listed.length ? mine : { id, trace: listed[0] };
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
                <span>${trace.server}</span>
                ${trace.session && html`<${SessionLink} session=${trace.session} />`}</p>
            <p class="facts"><a class="id" href=${traceHref(trace.id)}>${trace.id}</a><${CopyLink} key=${trace.id} id=${trace.id} /></p>
        </header>
        <${Parts} details=${trace.details} />
        <div class="waterfall" role="group" aria-label="Spans" onKeyDown=${walk}>
            <div class="axis" aria-hidden="true"><span></span><span>${TICKS.map(at => html`
                <i style=${{ left: `${at * 100}%` }}>${format.duration((whole * at) / 1000)}</i>`)}</span></div>
            ${rows.map(({ span: one, depth }) => html`<button type="button" key=${one.id} class="span" data-kind=${one.kind}
                aria-pressed=${String(one.id === chosen)} data-status=${one.status} onClick=${() => choose(one.id)}>
                <span class="cut" title=${`${one.kind} ${one.name}`} style=${{ paddingLeft: `${Math.min(depth, 12) * 14}px` }}>
                    <small class="kind">${one.kind}</small> ${one.name}</span>
                <span class="track" aria-hidden="true">
                    <i class="bar" style=${{ left: share(one.start_us), width: share(one.duration_us) }}></i>
                    ${one.events.map(event => html`<i class="event" title=${`${after(event)} ${event.name}`}
                        style=${{ left: share(event.at_us) }}></i>`)}
                </span>
                <span class="number">${format.duration(one.duration_us / 1000)}
                    ${one.events.length > 0 && html`<span class="unseen">, ${one.events.length} events</span>`}</span>
            </button>`)}
            ${rows.length === 0 && html`<p class="empty">No spans were recorded for it.</p>`}
        </div>
        <div class="about">
            ${span && html`<section aria-label="Span"><h3>Span <${Cut} text=${span.name} /></h3>
                ${span.message && html`<p class="bad">${span.message}</p>`}
                <${Pairs} pairs=${own(span)} />
                ${Object.keys(span.attributes).length > 0 && html`<h4>Attributes</h4><${Pairs} pairs=${span.attributes} />`}
                <${Events} span=${span} />
            </section>`}
            <section aria-label="Trace"><h3>Trace</h3><${Pairs} pairs=${facts(trace)} /></section>
        </div>`;
}

/** @param {{ session: string }} props */
function SessionLink({ session }) {
    const change = { ...NO_FILTER, trace: "", session };
    const open = (/** @type {MouseEvent} */ event) =>
        // The list has the focus once the trace is closed.
        follow(event, change) && setTimeout(() => document.getElementById("traces")?.focus());
    return html`<span>session <a data-testid="session" title="All traces of this session" href=${href(change)}
        onClick=${open}>${session}</a></span>`;
}

/** Only where the browser lets pages write to the clipboard, as it does on this machine. @param {{ id: string }} props */
function CopyLink({ id }) {
    const [done, setDone] = useState("");
    if (!navigator.clipboard) return null;
    const copy = () => navigator.clipboard.writeText(new URL(traceHref(id), location.href).href)
        .then(() => setDone("Copied"), () => setDone("The browser did not allow it"));
    return html`<span><button type="button" data-testid="copy-link" onClick=${copy}>Copy link</button>
        <span role="status"> ${done}</span></span>`;
}

/** @param {{ details: Record<string, string> }} props */
function Parts({ details }) {
    const known = PARTS.flatMap(([name, title], line) => (name in details ? [{ title, line, us: Number(details[name]) }] : []));
    const whole = known.reduce((sum, { us }) => sum + us, 0);
    if (!(whole > 0)) return null;
    return html`<section class="parts" data-testid="parts" aria-label="Where the time went">
        <div aria-hidden="true">${known.map(({ line, us }) => html`<i data-line=${line} style=${{ flexGrow: us / whole }}></i>`)}</div>
        <ul class="legend">${known.map(({ title, line, us }) => html`<li><i data-line=${line} aria-hidden="true"></i>${title}
            <b>${format.duration(us / 1000)}</b> ${format.percent(us / whole)}</li>`)}</ul>
    </section>`;
}

/** @param {{ span: Span }} props */
const Events = ({ span: { events, dropped_events } }) => html`
    ${events.length > 0 && html`<h4>Events</h4><ol class="events" data-testid="events">${events.map(event => html`<li>
        <span class="muted">${after(event)}</span> ${event.name}
        ${Object.entries(event.attributes).map(([name, value]) => html` <span class="muted">${name}</span> ${value}`)}</li>`)}</ol>`}
    ${dropped_events > 0 && html`<p class="events muted">${dropped_events} further events found no place.</p>`}`;

/** @param {import("./store.js").SpanEvent} event */
const after = ({ at_us }) => `+${format.duration(at_us / 1000)}`;

/** @param {Trace} trace */
const facts = ({ details }) =>
    Object.fromEntries(Object.entries(details).filter(([name]) => !PARTS.some(([part]) => part === name)));

/** @param {Span} span */
const own = ({ kind, status, start_us, duration_us, id, parent }) => ({
    kind,
    status,
    start: format.duration(start_us / 1000),
    duration: format.duration(duration_us / 1000),
    id,
    ...(parent && { parent }),
});

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
