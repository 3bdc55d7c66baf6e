// What is known: the server's latest words and the history made of them since the page was opened.
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
 *     cpu_usage: number | null, processes?: Process[] }} Dashboard
 * @typedef {{ kind: string, component: string, from: HealthState, to: HealthState, message: string,
 *     timestamp: number }} Event
 */

/** A component's changes that are kept for show. */
const KEPT_EVENTS = 5;

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

    /** @param {any} message */
    receive({ type, data }) {
        if (typeof data !== "object" || data === null) return;
        this.updated = Date.now();
        if (type === "dashboard") {
            // A younger server is another one: its numbers do not continue the lines of the last.
            if (this.dashboard && data.system_uptime + 1000 < this.dashboard.system_uptime) {
                this.history.gap();
                this.health = undefined;
            }
            this.dashboard = data;
            this.#healthIs(data.system_health);
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
        }
        this.#changed();
    }
}
