// What is known: the server's latest words and the history made of them since the page was opened.
import { ask } from "./ask.js";
import { History } from "./metrics.js";

/**
 * @typedef {"healthy" | "degraded" | "warning" | "critical"} HealthState
 * @typedef {{ status: HealthState, message: string, since: number, rate?: number, count?: number }} Component
 * @typedef {{ name: string, pid: number, memory_usage: number | null, memory_ratio?: number | null,
 *     cpu_usage: number | null }} Process
 * @typedef {{ overall: HealthState, health_percentage: number, components: Record<string, Component>, uptime: number,
 *     timestamp: number }} Health
 * @typedef {{ name: string, at_us: number, attributes: Record<string, string> }} SpanEvent
 * @typedef {{ id: string, parent: string | null, name: string, kind: string, start_us: number, duration_us: number,
 *     status: string, message: string | null, attributes: Record<string, string>, events: SpanEvent[],
 *     dropped_events: number }} Span
 * @typedef {{ id: string, timestamp: number, operation: string, duration_ms: number, status: string,
 *     details: Record<string, string>, server: string, method: string, tool: string | null, session: string | null,
 *     injected: boolean, spans: Span[] }} Trace
 * @typedef {{ timestamp: number, metrics: import("./metrics.js").Metrics, traces: Trace[], system_health: Health,
 *     active_connections: number, system_uptime: number, memory_usage: number | null, memory_ratio: number | null,
 *     cpu_usage: number | null, processes?: Process[], chaos_status: import("./engine.js").ChaosStatus | null }} Dashboard
 * @typedef {{ kind: string, component: string, from: HealthState, to: HealthState, message: string,
 *     timestamp: number }} Event
 */

/** A component's changes that are kept for show. */
const KEPT_EVENTS = 5;
/** Experiments that are listed. */
const LISTED = 100;
/** How often (ms) one that is going on is asked about. */
const WATCH = 1000;

export class Store {
    /** @type {import("./connection.js").Link} */
    link = "connecting";
    /** When the last message came, by `Date.now()`. */
    updated = 0;
    /** @type {Dashboard | undefined} */
    dashboard;
    /** @type {Health | undefined} */
    health;
    /** @type {import("./metrics.js").Metrics | undefined} */
    metrics;
    /** Newest first. @type {Event[]} */
    events = [];
    history = new History();
    /** `null` where chaos is off. @type {import("./engine.js").ChaosStatus | null | undefined} */
    chaos;
    /** The experiments that have ended, newest first. @type {import("./engine.js").Test[]} */
    experiments = [];
    /** Why what was asked of it was not done. */
    failure = "";
    /** What happened in the chaos engine last, in words. */
    said = "";
    /** What is added to `Date.now()` for the server's time, in ms. */
    skew = 0;
    /** As many experiments had ended when they were listed last. */
    #listed = -1;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    #watch;
    /** @type {(command: string) => void} */
    send = () => {};
    /** @type {Set<() => void>} */
    #listeners = new Set();

    /**
     * @param {() => void} listener called after each change
     * @returns {() => void} ends it
     */
    subscribe(listener) {
        this.#listeners.add(listener);
        return () => void this.#listeners.delete(listener);
    }

    #changed() {
        this.#listeners.forEach(listener => listener());
    }

    /** @param {string} failure nothing: it was done */
    failed(failure) {
        this.failure = failure;
        this.send("get_chaos");
        this.#changed();
    }

    /** @param {import("./connection.js").Link} link */
    linked(link) {
        if (link === this.link) return;
        this.link = link;
        this.#changed();
    }

    /**
     * A frame may have been made before the answer that overtook it.
     * @param {Health} health
     */
    #healthIs(health) {
        if (!this.health || health.timestamp >= this.health.timestamp) this.health = health;
    }

    /**
     * Likewise.
     * @param {import("./engine.js").ChaosStatus | null} chaos
     */
    #chaosIs(chaos) {
        if (chaos && this.chaos && chaos.timestamp < this.chaos.timestamp) return;
        this.chaos = chaos;
        if (!chaos) return;
        this.skew = chaos.timestamp - Date.now();
        if (chaos.total_history !== this.#listed) this.#list(chaos.total_history);
        clearTimeout(this.#watch);
        if (chaos.active_tests > 0) this.#watch = setTimeout(() => this.send("get_chaos"), WATCH);
    }

    /** @param {number} ended */
    async #list(ended) {
        this.#listed = ended;
        const { value } = await ask(`/api/v1/chaos/history?limit=${LISTED}`);
        if (value) this.experiments = value;
        else this.#listed = -1;
        this.#changed();
    }

    /** @param {any} message */
    receive({ type, data }) {
        if (type === "chaos" && data === null) this.#chaosIs(null);
        if (typeof data !== "object" || data === null) return;
        this.updated = Date.now();
        if (type === "dashboard") {
            // A younger server is another one: its numbers do not continue the lines of the last.
            if (this.dashboard && data.system_uptime + 1000 < this.dashboard.system_uptime) {
                this.history.gap();
                this.health = undefined;
                this.chaos = undefined;
                this.#listed = -1;
            }
            this.dashboard = data;
            this.#healthIs(data.system_health);
            // Before the first tick nothing is known of it.
            if (data.chaos_status) this.#chaosIs(data.chaos_status);
            else if (this.chaos !== null) this.send("get_chaos");
            // A first look; this one holds the first 50 series only.
            this.metrics ??= data.metrics;
            this.send("get_metrics");
        } else if (type === "metrics") {
            this.metrics = data;
            this.history.add(data, this.updated / 1000);
        } else if (type === "health") {
            this.#healthIs(data);
        } else if (type === "event" && data.kind === "health") {
            this.events = [data, ...this.events].slice(0, KEPT_EVENTS);
            this.send("get_health");
        } else if (type === "chaos") {
            this.#chaosIs(data);
        } else if (type === "event" && data.kind === "chaos") {
            this.said = inWords(data) || this.said;
            this.send("get_chaos");
        }
        this.#changed();
    }
}

/**
 * @param {Record<string, any>} event of the chaos engine
 * @returns {string | undefined} nothing where there is nothing to be said
 */
function inWords({ event, id, scenario, status, reason }) {
    const because = reason ? `: ${reason}` : "";
    if (event === "changed" && status !== "planned") return `${scenario} #${id} ${status.replace("_", " ")}${because}`;
    if (event === "refused") return `${scenario} was refused${because}`;
    if (event === "emergency_stop") return "All faults were stopped";
    if (event === "rearmed") return "Experiments can be started again";
}
