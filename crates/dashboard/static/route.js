// What the reader looks at, in the URL's hash, so that a link shows the same: `#trace=ID`, `#experiment=ID`,
// `#q=TEXT&status=error`.

/** Which traces are shown, as `GET /api/v1/traces` takes it; `within` is in seconds, up to now. */
/** @typedef {{ q: string, status: string, server: string, session: string, min: string, within: string }} Filter */
/** @typedef {Filter & { trace: string, experiment: string, sort: string, range: string }} Route */

/** @type {Filter} */
export const NO_FILTER = { q: "", status: "", server: "", session: "", min: "", within: "" };
/** @type {Route} */
const DEFAULTS = { trace: "", experiment: "", ...NO_FILTER, sort: "-rate", range: "15" };
const NAMES = /** @type {(keyof Route)[]} */ (Object.keys(DEFAULTS));

/** @returns {Route} */
export function route() {
    const hash = new URLSearchParams(location.hash.slice(1));
    const found = { ...DEFAULTS };
    for (const name of NAMES) found[name] = hash.get(name) ?? DEFAULTS[name];
    return found;
}

/**
 * The address of what is looked at, but for a change.
 * @param {Partial<Route>} change
 * @param {Route} from
 */
export function href(change, from = route()) {
    const hash = new URLSearchParams();
    const next = { ...from, ...change };
    for (const name of NAMES) if (next[name] !== DEFAULTS[name]) hash.set(name, next[name]);
    return hash.size ? `#${hash}` : location.pathname;
}

/**
 * The address of a trace and nothing else.
 * @param {string} trace its id
 */
export const traceHref = trace => href({ trace }, DEFAULTS);

/**
 * Goes there. Opening a trace or an experiment is a step of the browser's history; filters and sorting are not.
 * @param {Partial<Route>} change
 * @param {boolean} step
 */
export function go(change, step = Boolean(change.trace || change.experiment)) {
    history[step ? "pushState" : "replaceState"](null, "", href(change));
    dispatchEvent(new Event("hashchange"));
}

/**
 * Goes where a link goes. What the reader asks the browser for, as a tab of its own, is left to the browser.
 * @param {MouseEvent} event
 * @param {Partial<Route>} change
 * @returns {boolean} whether it went there
 */
export function follow(event, change) {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return false;
    event.preventDefault();
    go(change, true);
    return true;
}
