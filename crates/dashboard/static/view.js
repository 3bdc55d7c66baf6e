// What every part of the page is made with: Preact through htm's template tag, and a few small parts.
import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export { render } from "./vendor/preact.js";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact-hooks.js";
export const html = htm.bind(h);

/** @type {Record<string, string>} */
const GLYPHS = {
    healthy: "✓", degraded: "!", warning: "!", critical: "✕",
    ok: "✓", error: "✕", timeout: "◷", cancelled: "–",
};

/**
 * A state as word and sign, so that colour is never all there is.
 * @param {{ state: string, large?: boolean }} props
 */
export function State({ state, large }) {
    return html`<span class=${large ? "state large" : "state"} data-state=${state}>
        <span class="glyph" aria-hidden="true">${GLYPHS[state] ?? "?"}</span>${state}
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
