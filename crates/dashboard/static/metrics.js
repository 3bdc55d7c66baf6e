// The seven critical metrics: which lines each one shows, and their history since the page was opened.
import * as format from "./format.js";

/**
 * @typedef {{ min: number, max: number, avg: number, count: number, sum: number, p50: number, p90: number, p95: number,
 *     p99: number, rate: number }} Window
 * @typedef {{ labels: Record<string, string>, value: number, window: Window | null }} Series
 * @typedef {{ unit: string, kind: string, series: Series[] }} Metric
 * @typedef {Record<string, Metric>} Metrics by critical name; what else is in there stands in the dashboard too
 * @typedef {Map<string, number | null>} Lines the newest value of each line
 *
 * @typedef {object} Critical one of the seven
 * @property {string} name
 * @property {string} title
 * @property {string} what what the current value is
 * @property {(value: format.Maybe) => string} format
 * @property {(series: Series[]) => Lines} read
 * @property {(lines: Lines) => number | null} current
 * @property {boolean} [wide] takes the room of two
 * @property {boolean} [whole] counts things: no fractions on the axis
 */

/** Seconds of history. */
const KEPT = 3600;
/** A pause (s) longer than this breaks the lines. */
const PAUSE = 20;
/** Lines per chart; the wire's label values are many, a reader's eyes are two. */
const MAX_LINES = 12;
const REST = "other";

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
 * distributions that they outline, and of one window it is the server's own figure.
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
    for (let step = 0; step < 32 && high - low > high * 1e-4; step++) {
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
        wide: true,
    },
    {
        name: "error_rates_by_component",
        title: "Errors by component",
        what: "highest",
        format: format.percent,
        read: errorRatios,
        current: worst,
    },
    {
        name: "registry_operations_per_second",
        title: "Registry operations",
        what: "in all",
        format: format.rate,
        read: sumsBy("operation"),
        current: sum,
    },
    {
        name: "session_creation_latency_ms",
        title: "Session creation",
        what: "p95",
        format: format.duration,
        read: percentiles,
        current: p95,
    },
    {
        name: "active_sessions_count",
        title: "Active sessions",
        what: "in all",
        format: format.count,
        read: sumsBy("protocol"),
        current: sum,
        whole: true,
    },
    {
        name: "transport_connection_count",
        title: "Connections",
        what: "in all",
        format: format.count,
        read: sumsBy("transport"),
        current: sum,
        whole: true,
    },
    {
        name: "message_queue_depth",
        title: "Message queue",
        what: "in all",
        format: format.count,
        read: sumsBy("direction"),
        current: sum,
        whole: true,
    },
];

/** Points of all lines at common times, at most an hour of them. */
export class History {
    /** Seconds since the epoch, rising. @type {number[]} */
    times = [];
    /** By metric and line: as many values as there are times. @type {Map<string, Map<string, (number | null)[]>>} */
    lines = new Map(CRITICAL.map(({ name }) => [name, new Map()]));

    /** Ends all lines here; the next point begins new ones. */
    gap() {
        const last = this.times.at(-1);
        if (last !== undefined) this.#push(last + 0.001, () => new Map());
    }

    /**
     * @param {Metrics} metrics
     * @param {number} time seconds since the epoch
     */
    add(metrics, time) {
        const last = this.times.at(-1);
        if (last !== undefined && time - last > PAUSE) this.gap();
        this.#push(time, ({ name, read }) => read(metrics[name]?.series ?? []));
    }

    /**
     * @param {number} time
     * @param {(critical: Critical) => Lines} read
     */
    #push(time, read) {
        // The clock may be set back; the time of a chart may not.
        this.times.push(Math.max(time, (this.times.at(-1) ?? 0) + 0.001));
        const points = this.times.length;
        for (const critical of CRITICAL) {
            const lines = /** @type {Map<string, (number | null)[]>} */ (this.lines.get(critical.name));
            for (const [line, value] of read(critical)) {
                const name = lines.has(line) || lines.size < MAX_LINES ? line : REST;
                const values = lines.get(name) ?? Array(points - 1).fill(null);
                lines.set(name, values);
                values[points - 1] = values.length === points ? (values[points - 1] ?? 0) + (value ?? 0) : value;
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
                if (values.every(value => value === null)) lines.delete(line);
            }
        }
    }
}
