// The filter over the traces, and what of them it finds in the whole store.
import { ask } from "./ask.js";
import * as format from "./format.js";
import { NO_FILTER, go } from "./route.js";
import { html, useEffect, useRef, useState } from "./view.js";

/**
 * @typedef {import("./store.js").Trace} Trace
 * @typedef {import("./store.js").Dashboard} Dashboard
 * @typedef {import("./route.js").Filter} Filter
 * @typedef {{ target: { value: string } }} Change
 * @typedef {{ traces: Trace[], problem?: string, busy?: boolean }} Found
 */

/** The newest of those that match; more would be nobody's to read. */
export const LIMIT = 200;
/** What is typed is looked for once it has not changed for this long (ms). */
const PAUSE = 250;
const STATUSES = ["ok", "error", "timeout", "cancelled", "injected"];
const WITHIN = ["60", "300", "900", "3600"];
const DURATIONS = ["10ms", "100ms", "1s", "10s"];
/** More suggestions than this are no help. */
const SUGGESTED = 100;
const NAMES = /** @type {(keyof Filter)[]} */ (Object.keys(NO_FILTER));

/** @param {Filter} filter */
export const isSet = filter => NAMES.some(name => filter[name]);

/**
 * What of the whole store is let through, asked for again with each frame; without a filter, the frame's own.
 * @param {Filter} filter
 * @param {Dashboard | undefined} frame
 * @returns {Found}
 */
export function useTraces(filter, frame) {
    const key = JSON.stringify(NAMES.map(name => filter[name]));
    const [found, setFound] = useState(/** @type {Found & { key: string }} */ ({ key: "", traces: [] }));
    const again = useRef(() => {});
    const now = useRef(0);
    now.current = frame?.timestamp ?? Date.now();
    useEffect(() => {
        if (!isSet(filter)) return setFound({ key, traces: [] });
        const stop = new AbortController();
        let asking = false;
        // One question at a time, and none for a page that nobody sees.
        const look = async () => {
            if (asking || document.hidden) return;
            asking = true;
            const { value, problem } = await ask(`/api/v1/traces?${query(filter, now.current)}`, stop.signal);
            asking = false;
            if (!stop.signal.aborted) setFound({ key, traces: value ?? [], problem });
        };
        const typed = setTimeout(() => {
            again.current = look;
            look();
        }, PAUSE);
        return () => {
            again.current = () => {};
            clearTimeout(typed);
            stop.abort();
        };
    }, [key]);
    useEffect(() => void again.current(), [frame]);
    if (!isSet(filter)) return { traces: frame?.traces ?? [] };
    // Until the answer is there, what was there before.
    return found.key === key ? found : { traces: found.traces, busy: true };
}

/**
 * @param {Filter} filter
 * @param {number} now the server's time, in ms since the epoch
 */
function query({ q, status, server, session, min, within }, now) {
    const injected = status === "injected";
    const wanted = {
        text: q.trim(),
        status: injected ? "" : status,
        injected: injected ? "true" : "",
        server,
        session,
        min_duration: min.trim(),
        since: Number(within) ? String(Math.max(0, now - Number(within) * 1000)) : "",
        limit: String(LIMIT),
    };
    return new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
}

/**
 * The filter in words.
 * @param {Filter} filter
 */
export function inWords({ q, status, server, session, min, within }) {
    const parts = [
        q && `“${q}” in it`,
        status && `status ${status}`,
        server && `server ${server}`,
        session && `session ${session}`,
        min && `a duration of ${min} or more`,
    ].filter(Boolean);
    return `${parts.length ? ` with ${parts.join(", ")}` : ""}${within ? ` from the ${last(within)}` : ""}`;
}

/** @param {string} within */
const last = within => `last ${format.span(Number(within) * 1000).replace(/ 0 (s|min)$/, "")}`;

/**
 * @param {{ filter: Filter, traces: Trace[], metrics: import("./metrics.js").Metrics | undefined }} props the traces that
 *     are known, from which there is something to choose
 */
export function FilterBar({ filter, traces, metrics }) {
    const labels = (metrics?.tool_call_duration_ms?.series ?? []).map(({ labels }) => labels);
    const names = seen([...traces.map(({ operation }) => operation), ...labels.map(({ tool }) => tool)]);
    const servers = seen([...traces.map(({ server }) => server), ...labels.map(({ server }) => server), filter.server]);
    const sessions = seen([...traces.map(({ session }) => session), filter.session]);
    return html`<search class="filter" aria-label="Filter the traces">
        <input id="filter" type="search" placeholder="Filter  ( / )" maxlength="200" list="names" value=${filter.q}
            aria-label="Text in operation, server, session or id" onInput=${set("q")} />
        <datalist id="names">${names.slice(0, SUGGESTED).map(name => html`<option key=${name} value=${name} />`)}</datalist>
        <${Choice} name="status" value=${filter.status} any="any status" options=${STATUSES} />
        <${Choice} name="server" value=${filter.server} any="any server" options=${servers} />
        ${sessions.length > 0 && html`<${Choice} name="session" value=${filter.session} any="any session" options=${sessions} />`}
        <input type="text" data-filter="min" class=${filter.min && "set"} size="7" maxlength="20" placeholder="≥ 0 ms"
            list="durations" aria-label="Minimum duration, such as 200ms or 1s" value=${filter.min} onInput=${set("min")} />
        <datalist id="durations">${DURATIONS.map(one => html`<option key=${one} value=${one} />`)}</datalist>
        <${Choice} name="within" value=${filter.within} any="any time" options=${seen([...WITHIN, filter.within])} show=${last} />
        ${isSet(filter) && html`<button type="button" data-testid="clear-filter" onClick=${clear}>Clear</button>`}
    </search>`;
}

export function clear() {
    go(NO_FILTER);
    document.getElementById("filter")?.focus();
}

/** @param {keyof Filter} name */
const set = name => (/** @type {Change} */ { target }) => go({ [name]: target.value });

/**
 * @param {{ name: keyof Filter, value: string, any: string, options: string[], show?: (option: string) => string }} props
 */
function Choice({ name, value, any, options, show = option => option }) {
    return html`<select data-filter=${name} class=${value && "set"} aria-label=${any.replace("any ", "")} value=${value}
        onChange=${set(name)}>
        <option value="">${any}</option>
        ${options.map(one => html`<option key=${one} value=${one} selected=${one === value}>${show(one)}</option>`)}
    </select>`;
}

/**
 * Each once, in order.
 * @param {(string | null | undefined)[]} values
 * @returns {string[]}
 */
const seen = values => [...new Set(values.flatMap(value => value || []))]
    .sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
