// Light or dark. The system decides until the reader says otherwise, and again once both agree.

const KEY = "mcpscope.theme";
const DARK = matchMedia("(prefers-color-scheme: dark)");
/** @type {Set<() => void>} */
const listeners = new Set();
/** @type {Map<string, string>} */
const resolved = new Map();

function stored() {
    try {
        return localStorage.getItem(KEY);
    } catch {
        return null; // No storage: the choice lasts as long as the page.
    }
}

/** @param {string | null} choice */
function apply(choice) {
    if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
    else delete document.documentElement.dataset.theme;
    resolved.clear();
    listeners.forEach(listener => listener());
}

const system = () => (DARK.matches ? "dark" : "light");

/** @returns {string} `light` or `dark` */
export const theme = () => document.documentElement.dataset.theme ?? system();

export function toggleTheme() {
    const next = theme() === "dark" ? "light" : "dark";
    const choice = next === system() ? null : next;
    try {
        if (choice) localStorage.setItem(KEY, choice);
        else localStorage.removeItem(KEY);
    } catch {
        // As above.
    }
    apply(choice);
}

/**
 * Calls `listener` after each change of colours.
 * @param {() => void} listener
 * @returns {() => void} ends it
 */
export function onTheme(listener) {
    listeners.add(listener);
    return () => void listeners.delete(listener);
}

/**
 * A custom property as a colour that a canvas understands: `light-dark()` is resolved by asking an element.
 * @param {string} property
 */
export function color(property) {
    let value = resolved.get(property);
    if (value === undefined) {
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(${property})`;
        value = getComputedStyle(probe).color;
        probe.remove();
        resolved.set(property, value);
    }
    return value;
}

apply(stored());
DARK.addEventListener("change", () => apply(stored()));
