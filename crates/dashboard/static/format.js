// Numbers and times as people read them. Every function takes null for "not known" and shows a dash.

/** @typedef {number | null | undefined} Maybe */

const DASH = "–";
const PLAIN = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/**
 * @param {Maybe} value
 * @returns {value is number}
 */
const known = value => typeof value === "number" && Number.isFinite(value);

/** @param {Maybe} value */
export function count(value) {
    if (!known(value)) return DASH;
    return Math.abs(value) >= 10_000 ? COMPACT.format(value) : PLAIN.format(Math.round(value * 1000) / 1000);
}

/** @param {Maybe} value events per second */
export const rate = value => (known(value) ? `${count(value)}/s` : DASH);

/** @param {Maybe} ratio 0..1 */
export function percent(ratio) {
    if (!known(ratio)) return DASH;
    const value = ratio * 100;
    return value > 0 && value < 0.1 ? "<0.1 %" : `${PLAIN.format(Math.round(value * 10) / 10)} %`;
}

/** @param {Maybe} ms */
export function duration(ms) {
    if (!known(ms)) return DASH;
    if (ms === 0) return "0 ms";
    if (ms < 0.9995) return `${PLAIN.format(Math.round(ms * 1000))} µs`;
    return ms < 999.5 ? `${PLAIN.format(ms)} ms` : ms < 120_000 ? `${PLAIN.format(ms / 1000)} s` : span(ms);
}

/** @param {Maybe} bytes */
export function bytes(bytes) {
    if (!known(bytes)) return DASH;
    const unit = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(bytes, 1)) / 10)));
    return `${PLAIN.format(bytes / 1024 ** unit)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

/**
 * A long time in its two largest units.
 * @param {Maybe} ms
 */
export function span(ms) {
    if (!known(ms)) return DASH;
    const seconds = Math.max(0, Math.floor(ms / 1000));
    const [d, h, min, s] = [seconds / 86_400, (seconds / 3600) % 24, (seconds / 60) % 60, seconds % 60].map(Math.floor);
    if (d) return `${d} d ${h} h`;
    if (h) return `${h} h ${min} min`;
    return min ? `${min} min ${s} s` : `${s} s`;
}

/**
 * Local time of day.
 * @param {Maybe} time ms since the epoch
 */
export function clock(time) {
    if (!known(time)) return DASH;
    return new Date(time).toLocaleTimeString("en-GB");
}

/**
 * Local date and time to the millisecond.
 * @param {Maybe} time ms since the epoch
 */
export function moment(time) {
    if (!known(time)) return DASH;
    const date = new Date(time);
    return `${date.toLocaleDateString("en-CA")} ${clock(time)}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}
