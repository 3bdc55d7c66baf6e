// The chaos engine: the shapes in which it is told of, its commands, and the token that some of them need.
import { tell } from "./ask.js";

/**
 * @typedef {"planned" | "running" | "recovering" | "completed" | "failed" | "aborted" | "not_started"} Status
 * @typedef {Record<string, string | number | boolean>} Parameters
 * @typedef {{ calls: number, errors: number, p50_ms?: number, p95_ms?: number, p99_ms?: number }} Calls
 * @typedef {Calls & { duration: number, error_rate: number | null, repeated?: number, duplicates?: number,
 *     touched?: Calls }} Slot
 * @typedef {{ connections: number, connections_chosen: number, matched: number, injected: number, observed: number,
 *     requested_intensity: number, achieved_intensity: number | null, unjournalled: number,
 *     resource?: { requested: number, achieved: number, unit: string, cgroup?: string } }} Injection
 * @typedef {{ scenario: string, start_time: number, end_time: number, started_by: string, steady_state: string[], guard?: string,
 *     before: Slot | null, during: Slot | null, after: Slot | null, injection: Injection, time_to_detect: number | null,
 *     recovery: { limit: number, time: number | null, observed: boolean }, leak: string | null, replay?: string }} Report
 * @typedef {{ id: number, name: string, start_time: number, end_time: number, status: Status, impact: string,
 *     recovery_time: number, details: { parameters: Parameters, targets: string[], seed: number, injected: number,
 *     error?: string, report?: Report } }} Test
 * @typedef {{ timestamp: number, mode?: string, off?: string, active_tests: number, emergency_stop: boolean,
 *     stopped_by: string | null, rearm_at: number | null, total_history: number, available_scenarios: string[],
 *     active_tests_details: Test[], recent_failures: Test[] }} ChaosStatus
 * @typedef {{ name: string, about: string, default: string | null, expected: string, kind: string, words?: string[] }} Parameter
 * @typedef {{ name: string, description: string, impact: string, applies_to: string, duration: number,
 *     recovery_time: number, parameters: Parameter[] }} Scenario
 * @typedef {{ scenario: string, parameters: Parameters }} Wanted
 * @typedef {{ scenario: string, duration: number, targets: string[], connections: number, connection_share: number,
 *     packets?: boolean, expected_hits: number, hits: { server: string, direction: string, kind: string,
 *     method: string | null, tool: string | null, hits: number }[], recovery_time: number, steady_state: string[],
 *     crash?: { signal: string, rate?: number, most: number, processes: { target: string, components?: string[],
 *         pid?: number, program?: string, group?: number, restarted_after?: number }[] },
 *     resource?: { requested: number, expected: number, unit: string, cores?: number, limit?: string, cgroup?: string } }} Outlook
 */

const API = "/api/v1/chaos";
const KEY = "mcpscope.chaos-token";
/** Where there is no storage it lasts as long as the page. */
let kept = "";

const token = () => {
    try {
        return sessionStorage.getItem(KEY) ?? kept;
    } catch {
        return kept;
    }
};

/** @param {string} secret kept for as long as the tab is open */
export function keepToken(secret) {
    kept = secret;
    try {
        sessionStorage.setItem(KEY, secret);
    } catch {
        // As above.
    }
}

/** Takes the token out of the address, where it came with a link: nobody who sees the address later is to see it. */
export function takeToken() {
    const hash = new URLSearchParams(location.hash.slice(1));
    const secret = hash.get("token");
    if (secret === null) return;
    hash.delete("token");
    history.replaceState(null, "", hash.size ? `#${hash}` : location.pathname + location.search);
    if (secret) keepToken(secret);
}

const authorization = () => {
    const secret = token();
    return secret ? { Authorization: `Bearer ${secret}` } : undefined;
};

/** @param {Wanted} wanted what it would do: an {@link Outlook} */
export const plan = wanted => tell("POST", `${API}/plan`, wanted);

/** @param {Wanted} wanted */
export const start = wanted => tell("POST", `${API}/experiments`, wanted, authorization());

/** @param {number} id */
export const stop = id => tell("DELETE", `${API}/experiments/${id}`);

export const stopAll = () => tell("POST", `${API}/emergency-stop`);

export const rearm = () => tell("POST", `${API}/rearm`, {}, authorization());

/** Whether there is, or may be, something to stop. @param {ChaosStatus | null | undefined} chaos */
export const isOn = chaos => Boolean(chaos && (chaos.mode !== "off" || chaos.active_tests > 0));

/** While the fault is there. @param {Test} test */
export const isActive = ({ status }) => status === "planned" || status === "running";

/**
 * When faults were active, in seconds since the epoch; of one that is, the end is not known yet.
 * @typedef {{ from: number, to: number }} Fault
 * @param {ChaosStatus | null | undefined} chaos
 * @param {Test[]} ended
 * @returns {Fault[]}
 */
export const faults = (chaos, ended) => [...(chaos?.active_tests_details ?? []), ...ended]
    .filter(({ status }) => status !== "planned" && status !== "not_started")
    .map(test => ({ from: test.start_time / 1000, to: test.status === "running" ? Infinity : test.end_time / 1000 }));
