// The seven critical metrics: which lines each one shows, and their history since the page was opened.
import * as format from "./format.js";

/**
 * @typedef {{ min: number, max: number, avg: number, count: number, sum: number, p50: number, p90: number, p95: number,
 *     p99: number, rate: number }} Window
 * @typedef {{ labels: Record<string, string>, value: number, window: Window | null }} Series
 * @typedef {{ unit: string, kind: string, series: Series[] }} Metric
 * @typedef {Record<string, Metric>} Metrics by critical name; what else is in there stands in the dashboard too
 * @typedef {Map<string, number | null>} Lines the newest value of each line
 * @typedef {(number | null)[]} Values of one line, oldest first
 *
 * @typedef {object} Critical one of the seven
 * @property {string} name
 * @property {string} title
 * @property {string} what what the current value is
 * @property {(value: format.Maybe) => string} format
 * @property {(series: Series[]) => Lines} read
 * @property {(lines: Lines) => number | null} current
 * @property {(one: number, other: number) => number} join what two lines are together
 * @property {boolean} [wide] takes the room of two
 * @property {boolean} [whole] counts things: no fractions on the axis
 */

/** Seconds of history. */
const KEPT = 3600;
/** A pause (s) longer than this breaks the lines. */
const PAUSE = 20;
/** The shortest time (s) between two points. */
const INSTANT = 0.001;
/** A point that is older than the last by more than this (s) tells that the clock was set back. */
const TURNED_BACK = 1;
/** Lines per chart; the wire's label values are many, a reader's eyes are two. */
const MAX_LINES = 12;
/** Lines kept per metric. A server bounds its label values; those of one after another are not. */
const MAX_KEPT = 300;
const REST = "other";

/** Halvings: enough for the three digits that are shown. */
const STEPS = 32;

/** @type {["min" | "max" | "p50" | "p90" | "p95" | "p99", number][]} */
const POINTS = [["min", 0], ["p50", 0.5], ["p90", 0.9], ["p95", 0.95], ["p99", 0.99], ["max", 1]];

/**
 * The share of a window's values up to `value`, straight between the points that are known.
 * @param {Window} window
 * @param {number} value
 */
function shareUpTo(window, value) {
    let [below, share] = [window.min, 0];
    if (value < below) return 0;
    for (const [name, at] of POINTS) {
        const point = window[name];
        if (value < point) return share + (at - share) * ((value - below) / (point - below));
        [below, share] = [Math.max(below, point), at];
    }
    return 1;
}

/**
 * A percentile over several windows, each weighed by its number of values. Percentiles cannot be added; this mixes the
 * distributions that they outline, and of one window it is the server's own figure. The command line does the same, step by
 * step, in crates/server/src/client/percentile.rs.
 * @param {Window[]} windows
 * @param {0.5 | 0.95} quantile
 * @returns {number | null} none without values
 */
export function percentile(windows, quantile) {
    const some = windows.filter(window => window.count > 0);
    if (some.length < 2) return some.length ? some[0][quantile === 0.5 ? "p50" : "p95"] : null;
    let [low, high, total] = [Infinity, 0, 0];
    for (const { min, max, count } of some) {
        [low, high, total] = [Math.min(low, min), Math.max(high, max), total + count];
    }
    for (let step = 0; step < STEPS; step++) {
        const middle = (low + high) / 2;
        let up = 0;
        for (const window of some) up += window.count * shareUpTo(window, middle);
        if (up < quantile * total) low = middle;
        else high = middle;
    }
    return high;
}

/** @param {Series} series */
export const isInjected = series => series.labels.injected === "true";

/** @type {(label: string) => (series: Series[]) => Lines} */
const sumsBy = label => series => {
    const lines = new Map();
    for (const { labels, value } of series) {
        const line = labels[label] ?? REST;
        lines.set(line, (lines.get(line) ?? 0) + value);
    }
    return lines;
};

/** @param {Series[]} series */
function percentiles(series) {
    const windows = (/** @type {boolean} */ injected) =>
        series.flatMap(s => (s.window && isInjected(s) === injected ? [s.window] : []));
    const [real, injected] = [windows(false), windows(true)];
    const lines = new Map([["p50", percentile(real, 0.5)], ["p95", percentile(real, 0.95)]]);
    if (injected.length) lines.set("p95 injected", percentile(injected, 0.95));
    return lines;
}

/** @param {Series[]} series */
function errorRatios(series) {
    const lines = new Map();
    for (const one of series) {
        const line = `${one.labels.component ?? REST}${isInjected(one) ? " injected" : ""}`;
        lines.set(line, Math.min(1, (lines.get(line) ?? 0) + one.value));
    }
    return lines;
}

/** @type {Critical["join"]} */
const plus = (one, other) => one + other;
/** @type {Critical["join"]} */
const larger = (one, other) => Math.max(one, other);
/** @type {(lines: Lines) => number} */
const sum = lines => [...lines.values()].reduce((/** @type {number} */ total, value) => total + (value ?? 0), 0);
/** @type {(lines: Lines) => number} */
const worst = lines => Math.max(0, ...[...lines].map(([line, value]) => (line.endsWith(" injected") ? 0 : value ?? 0)));
/** @type {(lines: Lines) => number | null} */
const p95 = lines => lines.get("p95") ?? null;

/** @type {Critical[]} */
export const CRITICAL = [
    {
        name: "tool_call_duration_ms",
        title: "Tool call duration",
        what: "p95",
        format: format.duration,
        read: percentiles,
        current: p95,
        join: larger,
        wide: true,
    },
    {
        name: "error_rates_by_component",
        title: "Errors by component",
        what: "highest",
        format: format.percent,
        read: errorRatios,
        current: worst,
        join: larger,
    },
    {
        name: "registry_operations_per_second",
        title: "Registry operations",
        what: "in all",
        format: format.rate,
        read: sumsBy("operation"),
        current: sum,
        join: plus,
    },
    {
        name: "session_creation_latency_ms",
        title: "Session creation",
        what: "p95",
        format: format.duration,
        read: percentiles,
        current: p95,
        join: larger,
    },
    {
        name: "active_sessions_count",
        title: "Active sessions",
        what: "in all",
        format: format.count,
        read: sumsBy("protocol"),
        current: sum,
        join: plus,
        whole: true,
    },
    {
        name: "transport_connection_count",
        title: "Connections",
        what: "in all",
        format: format.count,
        read: sumsBy("transport"),
        current: sum,
        join: plus,
        whole: true,
    },
    {
        name: "message_queue_depth",
        title: "Message queue",
        what: "in all",
        format: format.count,
        read: sumsBy("direction"),
        current: sum,
        join: plus,
        whole: true,
    },
];

/**
 * The lines of one metric that a chart and its legend show: those that leave zero since the point `first`. Of too many, the
 * later ones are drawn as one.
 * @param {Critical} critical
 * @param {Map<string, Values>} lines
 * @param {number} first
 * @returns {Map<string, Values>}
 */
export function drawn({ join }, lines, first) {
    const alive = [...lines].filter(([, values]) => values.some((value, at) => at >= first && value));
    if (alive.length <= MAX_LINES) return new Map(alive);
    const named = alive.filter(([line]) => line !== REST).slice(0, MAX_LINES - 1);
    const shown = new Map(named);
    const others = alive.filter(([line]) => !shown.has(line)).map(([, values]) => values);
    return shown.set(REST, others.reduce((all, values) => all.map((value, at) => joined(join, value, values[at]))));
}

/** @type {(join: Critical["join"], one: number | null, other: number | null) => number | null} */
const joined = (join, one, other) => (one === null ? other : other === null ? one : join(one, other));

/** Points of all lines at common times, at most an hour of them. */
export class History {
    /** Seconds since the epoch, rising. @type {number[]} */
    times = [];
    /** By metric and line: as many values as there are times. @type {Map<string, Map<string, Values>>} */
    lines = new Map(CRITICAL.map(({ name }) => [name, new Map()]));

    /** Ends all lines here; the next point begins new ones. */
    gap() {
        const last = this.times.at(-1);
        if (last !== undefined) this.#push(last + INSTANT, () => new Map());
    }

    /**
     * @param {Metrics} metrics
     * @param {number} time seconds since the epoch
     */
    add(metrics, time) {
        const last = this.times.at(-1);
        if (last !== undefined && (time - last > PAUSE || last - time > TURNED_BACK)) this.gap();
        this.#turnBack(time);
        this.#push(time, ({ name, read }) => read(metrics[name]?.series ?? []));
    }

    /**
     * When the clock was set back, so is what came before, to end now: the time of a chart only rises.
     * @param {number} time
     */
    #turnBack(time) {
        const ahead = (this.times.at(-1) ?? time) - time;
        if (ahead > TURNED_BACK) this.times = this.times.map(before => before - ahead - INSTANT);
    }

    /**
     * @param {number} time
     * @param {(critical: Critical) => Lines} read
     */
    #push(time, read) {
        this.times.push(Math.max(time, (this.times.at(-1) ?? 0) + INSTANT));
        const points = this.times.length;
        for (const critical of CRITICAL) {
            const lines = /** @type {Map<string, Values>} */ (this.lines.get(critical.name));
            for (const [line, value] of read(critical)) {
                const name = lines.has(line) || lines.size < MAX_KEPT ? line : REST;
                const values = lines.get(name) ?? Array(points - 1).fill(null);
                lines.set(name, values);
                values[points - 1] = joined(critical.join, values[points - 1] ?? null, value);
            }
            for (const values of lines.values()) if (values.length < points) values.push(null);
        }
        this.#forget();
    }

    #forget() {
        const oldest = this.times[this.times.length - 1] - KEPT;
        // In batches: cutting the front off an array moves all the rest.
        if (this.times[0] > oldest - 60) return;
        const old = this.times.findIndex(time => time >= oldest);
        this.times.splice(0, old);
        for (const lines of this.lines.values()) {
            for (const [line, values] of lines) {
                values.splice(0, old);
                if (!values.some(Boolean)) lines.delete(line);
            }
        }
    }
}
