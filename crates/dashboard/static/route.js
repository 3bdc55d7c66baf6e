// What the reader looks at, in the URL's hash, so that a link shows the same: `#trace=ID&q=TEXT&status=error`.

/** @typedef {{ trace: string, q: string, status: string, sort: string, range: string }} Route */

/** @type {Route} */
const DEFAULTS = { trace: "", q: "", status: "", sort: "-rate", range: "15" };
const NAMES = /** @type {(keyof Route)[]} */ (Object.keys(DEFAULTS));

/** @returns {Route} */
export function route() {
    const hash = new URLSearchParams(location.hash.slice(1));
    const found = { ...DEFAULTS };
    for (const name of NAMES) found[name] = hash.get(name) ?? DEFAULTS[name];
    return found;
}

/** @param {Partial<Route>} change */
function href(change) {
    const hash = new URLSearchParams();
    const next = { ...route(), ...change };
    for (const name of NAMES) if (next[name] !== DEFAULTS[name]) hash.set(name, next[name]);
    return hash.size ? `#${hash}` : location.pathname;
}

/**
 * Goes there. Opening a trace is a step of the browser's history; filters and sorting are not.
 * @param {Partial<Route>} change
 */
export function go(change) {
    history[change.trace ? "pushState" : "replaceState"](null, "", href(change));
    dispatchEvent(new Event("hashchange"));
}
