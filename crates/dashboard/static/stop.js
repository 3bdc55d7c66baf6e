// What is there on every view while chaos is on: the button that stops all of it, and what is going on.
import { isActive, isOn, rearm, stop, stopAll } from "./engine.js";
import * as format from "./format.js";
import { go } from "./route.js";
import { withToken } from "./token.js";
import { html, useEffect, useState } from "./view.js";

/**
 * @typedef {import("./store.js").Store} Store
 * @typedef {import("./engine.js").Test} Test
 */

/** Stops everything. @param {Store} store */
export async function stopEverything(store) {
    if (!isOn(store.chaos)) return;
    const { problem } = await stopAll();
    store.failed(problem ? `STOP ALL failed: ${problem}` : "");
}

/** @param {{ store: Store }} props */
export function StopAll({ store }) {
    if (!isOn(store.chaos)) return null;
    const running = (store.chaos?.active_tests ?? 0) > 0;
    return html`<button type="button" class=${running ? "stop-all armed" : "stop-all"} data-testid="stop-all"
        title="End every fault now (Shift+Escape)" aria-keyshortcuts="Shift+Escape"
        onClick=${() => stopEverything(store)}>STOP ALL</button>`;
}

/**
 * What is going on, if there is something; in a dialog, which covers the header, with the button.
 * @param {{ store: Store, inDialog?: boolean }} props
 */
export function ChaosBar({ store, inDialog }) {
    const { chaos, failure } = store;
    const tests = chaos?.active_tests_details ?? [];
    const stopped = chaos?.emergency_stop;
    if (!isOn(chaos) || (!inDialog && !tests.length && !stopped && !failure)) return null;
    return html`<aside class="chaos-bar" data-testid="chaos-bar" data-stopped=${String(Boolean(stopped))}
        data-active=${String(tests.length > 0)} aria-label="Chaos">
        <div>
            ${failure && html`<p class="bad" role="alert">${failure}</p>`}
            ${stopped && html`<${Stopped} store=${store} />`}
            ${tests.map(test => html`<p key=${test.id}><span aria-hidden="true">⚡</span>${" "}
                <button type="button" class="link" onClick=${() => go({ trace: "", experiment: String(test.id) })}
                    title="Show this experiment"><b>${test.name}</b></button>
                ${" "}on ${test.details.targets.join(", ")} · <${Left} test=${test} store=${store} /> ·${" "}
                ${format.count(test.details.injected)} hits</p>`)}
        </div>
        ${inDialog && html`<${StopAll} store=${store} />`}
    </aside>`;
}

/** @param {{ store: Store }} props */
function Stopped({ store }) {
    const { chaos, skew } = store;
    const now = useNow() + skew;
    if (!chaos) return null;
    const wait = (chaos.rearm_at ?? 0) - now;
    const again = async () => store.failed((await withToken(rearm)).problem ?? "");
    return html`<p data-testid="stopped"><span aria-hidden="true">■</span> <b>Stopped by ${chaos.stopped_by}.</b>
        ${wait > 0 ? html` Experiments can be allowed again in ${format.span(wait + 999)}.` : " Nothing can be started."}
        ${" "}<button type="button" data-testid="rearm" disabled=${wait > 0} onClick=${again}>Rearm</button></p>`;
}

/**
 * How long a fault will be there.
 * @param {{ test: Test, store: Store }} props
 */
export function Left({ test, store }) {
    const now = useNow() + store.skew;
    if (!isActive(test)) return html`<span>${test.status}</span>`;
    return html`<span data-testid="left">${format.span(Math.max(0, test.end_time - now + 999))} left</span>`;
}

/** How much of a fault's time has passed, 0..1. @param {{ test: Test, store: Store }} props */
export function Progress({ test, store }) {
    const now = useNow() + store.skew;
    const share = (now - test.start_time) / Math.max(1, test.end_time - test.start_time);
    const shown = isActive(test) ? Math.min(1, Math.max(0, share)) : 1;
    return html`<progress max="1" value=${shown} aria-label="Time passed"></progress>`;
}

/** @param {{ test: Test, store: Store }} props */
export function StopOne({ test, store }) {
    const [busy, setBusy] = useState(false);
    const end = async () => {
        setBusy(true);
        store.failed((await stop(test.id)).problem ?? "");
        setBusy(false);
    };
    return html`<button type="button" disabled=${busy} aria-label=${`Stop ${test.name} ${test.id}`} onClick=${end}>Stop</button>`;
}

/** The time of day, twice a second. */
function useNow() {
    const [now, setNow] = useState(Date.now());
    useEffect(() => {
        const timer = setInterval(() => setNow(Date.now()), 500);
        return () => clearInterval(timer);
    }, []);
    return now;
}
