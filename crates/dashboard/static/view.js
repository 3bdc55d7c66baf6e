// What every part of the page is made with: Preact through htm's template tag, and a few small parts.
import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";
import { useLayoutEffect, useRef } from "./vendor/preact-hooks.js";

export { render } from "./vendor/preact.js";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact-hooks.js";
export const html = htm.bind(h);

/** @type {Record<string, string>} */
const GLYPHS = {
    healthy: "✓", degraded: "!", warning: "!", critical: "✕",
    ok: "✓", error: "✕", timeout: "◷", cancelled: "–",
    planned: "◷", running: "⚡", recovering: "◷", completed: "✓", failed: "✕", aborted: "■", not_started: "–",
};

/**
 * A state as word and sign, so that colour is never all there is.
 * @param {{ state: string, large?: boolean }} props
 */
export function State({ state, large }) {
    return html`<span class=${large ? "state large" : "state"} data-state=${state}>
        <span class="glyph" aria-hidden="true">${GLYPHS[state] ?? "?"}</span>${state.replace("_", " ")}
    </span>`;
}

/**
 * Text cut to the room that there is; whole in its title.
 * @param {{ text: string, class?: string }} props
 */
export const Cut = ({ text, class: name }) => html`<span class=${`cut ${name ?? ""}`} title=${text}>${text}</span>`;

/** @param {{}} _props */
export const Injected = _props => html`<span class="injected" title="A chaos experiment touched this">
    <span aria-hidden="true">⚡</span> <span class="word">injected</span>
</span>`;

/**
 * A modal dialog, which is there for as long as it is open.
 * @param {{ class?: string, label: string, testid?: string, onClose: () => void,
 *     children?: any }} props
 */
export function Dialog({ class: name, label, testid, onClose, children }) {
    const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
    useLayoutEffect(() => dialog.current?.showModal(), []);
    const clicked = (/** @type {MouseEvent} */ event) => event.target === dialog.current && dialog.current?.close();
    return html`<dialog ref=${dialog} class=${name} data-testid=${testid} aria-label=${label} onClose=${onClose}
        onClick=${clicked}>
        ${children}
    </dialog>`;
}

/** Closes the dialog that it is in. @param {{}} _props */
export const CloseButton = _props => html`<button type="button" class="icon close" aria-label="Close" title="Close (Escape)"
    onClick=${(/** @type {MouseEvent & { currentTarget: HTMLElement }} */ event) => event.currentTarget.closest("dialog")?.close()}>✕</button>`;

/** @param {{ pairs: Record<string, unknown> }} props */
export const Pairs = ({ pairs }) => html`<dl>${Object.entries(pairs).map(([name, value]) => html`<div key=${name}>
    <dt>${name}</dt><dd>${String(value)}</dd></div>`)}</dl>`;

/** How much an experiment can hurt. @param {{ impact: string }} props */
export const Impact = ({ impact }) => html`<span class="impact" data-impact=${impact}>${impact} impact</span>`;
