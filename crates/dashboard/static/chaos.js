// Chaos: what can be injected, an experiment to plan and start, those that run and those that have ended.
import { ask } from "./ask.js";
import { isActive, isOn, plan, start } from "./engine.js";
import * as format from "./format.js";
import { follow, href } from "./route.js";
import { Left, Progress, StopOne } from "./stop.js";
import { withToken } from "./token.js";
import { Cut, Impact, State, html, useEffect, useMemo, useRef, useState } from "./view.js";

/**
 * @typedef {import("./store.js").Store} Store
 * @typedef {import("./engine.js").Scenario} Scenario
 * @typedef {import("./engine.js").Parameter} Parameter
 * @typedef {import("./engine.js").Test} Test
 * @typedef {import("./engine.js").Outlook} Outlook
 * @typedef {{ target: { value: string } }} Change
 */

/** What nearly every scenario has, in the order of the form: shown when asked for. */
const MORE = ["server", "tool", "method", "direction", "transport", "session", "kind", "control", "probability", "nth", "every",
    "after", "max_hits", "steady_state", "abort_when", "recovery_time", "seed"];
/** Rows of a plan. */
const HITS = 6;
const OFF = "Chaos is off in this instance; --chaos manual, or chaos.mode in its configuration, switches it on.";

/** @param {{ store: Store, current: string }} props the experiment that is looked at */
export function Chaos({ store, current }) {
    const { chaos } = store;
    if (chaos === undefined) return null;
    const off = !isOn(chaos);
    return html`<section aria-labelledby="chaos-title" id="chaos" data-testid="chaos">
        <div class="section-head"><h2 id="chaos-title" tabindex="-1">Chaos ${chaos && html`<small>${chaos.mode}</small>`}</h2></div>
        ${off && html`<p class="card empty">${chaos?.off ? `Chaos is off: ${chaos.off}.` : OFF}</p>`}
        ${chaos && (!off || store.experiments.length > 0) && html`<div class=${off ? "" : "chaos"}>
            ${!off && html`<${Maker} store=${store} />`}
            <${Experiments} store=${store} current=${current} />
        </div>`}
    </section>`;
}

/** A new experiment: what, how, what it would do. @param {{ store: Store }} props */
function Maker({ store }) {
    const { scenarios, problem } = useScenarios();
    const [name, setName] = useState("latency_injection");
    const available = new Set(store.chaos?.available_scenarios);
    const scenario = scenarios.find(one => one.name === name);
    if (!scenario) return html`<div class="card empty" role="status">${problem ?? "Loading the scenarios…"}</div>`;
    return html`
        <fieldset class="card scenarios" data-testid="scenarios">
            <legend class="unseen">Scenario</legend>
            ${scenarios.map(one => html`<label key=${one.name} title=${available.has(one.name) ? `Over ${one.applies_to}` : "Not available here"}>
                <input type="radio" name="scenario" value=${one.name} checked=${one.name === name}
                    disabled=${!available.has(one.name)} onChange=${() => setName(one.name)} />
                <span><b>${one.name}</b> <${Impact} impact=${one.impact} /><small>${one.description}</small></span>
            </label>`)}
        </fieldset>
        <${Form} key=${name} scenario=${scenario} store=${store} />`;
}

function useScenarios() {
    const [found, setFound] = useState(/** @type {{ scenarios: Scenario[], problem?: string }} */ ({ scenarios: [] }));
    useEffect(() => {
        const stop = new AbortController();
        ask("/api/v1/chaos/scenarios", stop.signal).then(({ value, problem }) => {
            if (!stop.signal.aborted) setFound({ scenarios: value ?? [], problem });
        });
        return () => stop.abort();
    }, []);
    return found;
}

/** @param {{ scenario: Scenario, store: Store }} props */
function Form({ scenario, store }) {
    const [given, setGiven] = useState(/** @type {Record<string, string>} */ ({}));
    const [outlook, setOutlook] = useState(/** @type {Outlook | null} */ (null));
    const [problem, setProblem] = useState("");
    const [busy, setBusy] = useState(false);
    const starter = useRef(/** @type {HTMLButtonElement | null} */ (null));
    const [first, more] = useMemo(() => {
        const place = (/** @type {Parameter} */ { name }) => MORE.indexOf(name);
        return [
            scenario.parameters.filter(one => place(one) < 0).sort((a, b) => Number(b.name === "duration") - Number(a.name === "duration")),
            scenario.parameters.filter(one => place(one) >= 0).sort((a, b) => place(a) - place(b)),
        ];
    }, [scenario]);
    const wanted = { scenario: scenario.name, parameters: filled(given) };
    // What was planned is what was given then.
    const change = (/** @type {string} */ name) => (/** @type {Change} */ { target }) => {
        setGiven(all => ({ ...all, [name]: target.value }));
        setOutlook(null);
        setProblem("");
    };
    /** @param {() => Promise<import("./ask.js").Answer>} command */
    const doing = async command => {
        setBusy(true);
        const { value, problem } = await command();
        setBusy(false);
        setProblem(problem ?? "");
        return value;
    };
    const look = async (/** @type {Event} */ event) => {
        event.preventDefault();
        setOutlook(await doing(() => plan(wanted)) ?? null);
        starter.current?.focus();
    };
    const begin = async () => {
        if (await doing(() => withToken(() => start(wanted)))) setOutlook(null);
    };
    const field = (/** @type {Parameter} */ parameter) => html`<${Field} key=${parameter.name} parameter=${parameter}
        scenario=${scenario} value=${given[parameter.name] ?? ""} onInput=${change(parameter.name)} />`;
    return html`<form class="card maker" data-testid="maker" onSubmit=${look} aria-label=${`New experiment: ${scenario.name}`}>
        <h3>${scenario.name} <${Impact} impact=${scenario.impact} /></h3>
        <p>${scenario.description}. <span class="muted">Over ${scenario.applies_to}; all is to be well again within
            ${" "}${format.duration(scenario.recovery_time)}.</span></p>
        <div class="fields">${first.map(field)}</div>
        ${more.length > 0 && html`<details><summary>Which traffic, guards, seed</summary>
            <div class="fields">${more.map(field)}</div></details>`}
        <div class="row"><button type="submit" disabled=${busy} data-testid="plan">Plan</button>
            <button ref=${starter} type="button" class="primary" data-testid="start" disabled=${busy || !outlook}
                title=${outlook ? "" : "Plan it first"} onClick=${begin}>Start</button>
            <span class="muted">${!outlook && !problem && "Plan shows what it will hit; nothing is started by it."}</span></div>
        <div role="status">${outlook && html`<${Foreseen} outlook=${outlook} />`}</div>
        ${problem && html`<p class="bad" role="alert" data-testid="chaos-problem">${problem}</p>`}
    </form>`;
}

/** @param {Record<string, string>} given */
const filled = given => Object.fromEntries(
    Object.entries(given).map(([name, value]) => [name, value.trim()]).filter(([, value]) => value),
);

/**
 * @param {{ parameter: Parameter, scenario: Scenario, value: string, onInput: (event: Change) => void }} props
 */
function Field({ parameter: { name, about, kind, words, expected, default: fallback }, scenario, value, onInput }) {
    const usual = fallback ?? "";
    const hint = `${about}${kind === "choice" ? "" : `: ${expected}`}`;
    return html`<label title=${hint}>
        <span>${name}</span>
        ${words ? html`<select name=${name} class=${value && "set"} value=${value} onChange=${onInput}>
            <option value="">${usual || "any"}</option>
            ${words.filter(word => word !== usual).map(word => html`<option key=${word} value=${word}>${word}</option>`)}
        </select>` : html`<input name=${name} type="text" class=${value && "set"} placeholder=${usual || "–"} maxlength="256"
            autocomplete="off" spellcheck="false" value=${value} onInput=${onInput} />`}
        <small>${about}</small>
    </label>`;
}

/** What it would do. @param {{ outlook: Outlook }} props */
function Foreseen({ outlook }) {
    const { crash, resource } = outlook;
    return crash ? html`<${Crashing} outlook=${outlook} crash=${crash} />`
        : resource ? html`<${Taking} outlook=${outlook} resource=${resource} />` : html`<${Hitting} outlook=${outlook} />`;
}

/** Which processes it would end. @param {{ outlook: Outlook, crash: NonNullable<Outlook["crash"]> }} props */
function Crashing({ outlook, crash: { signal, rate, most, processes } }) {
    const once = processes.length === 1 ? "this process" : `one of these ${processes.length} processes`;
    const restart = processes[0]?.restarted_after;
    return html`<div class="outlook" data-testid="outlook">
        <p>Would crash (<code>${signal}</code>) ${rate === undefined ? `${once}, once` : html`each of these processes with a chance of
            ${" "}<b>${format.percent(rate)}</b> every second for <b>${format.duration(outlook.duration)}</b>, at most ${most} times`}.
            ${" "}${signal === "stop" ? html`It goes on after <b>${format.duration(outlook.duration)}</b>.`
                : restart !== undefined && html`It is started again after <b>${format.duration(restart)}</b>, and is to be well again within
                    ${" "}<b>${format.duration(outlook.recovery_time)}</b>.`}</p>
        <ul>${processes.map(({ target, pid, program, group, components = [] }) => html`<li>
            <b>${pid ?? "–"}</b> <${Cut} text=${[program, group > 1 && `and ${group - 1} more in its group`].filter(Boolean).join(" ")} />
            <${Cut} text=${[target, ...components].join(" ")} class="muted" /></li>`)}</ul>
    </div>`;
}

/** What it would take. @param {{ outlook: Outlook, resource: NonNullable<Outlook["resource"]> }} props */
function Taking({ outlook, resource: { requested, expected, unit, cores, limit, cgroup } }) {
    const show = unit === "bytes" ? format.bytes : format.percent;
    const of = cores === undefined ? "of memory" : cores === 1 ? "of one core" : `of each of ${cores} cores`;
    return html`<div class="outlook" data-testid="outlook">
        <p>Would take <b>${show(expected)}</b> ${of} for <b>${format.duration(outlook.duration)}</b>${cgroup && html` in the control
            group <code>${cgroup}</code>`}. ${limit && `${show(requested)} was asked for: ${limit}.`}</p>
    </div>`;
}

/** Which messages it would hit. @param {{ outlook: Outlook }} props */
function Hitting({ outlook }) {
    const { targets, duration, connections, connection_share, packets, expected_hits, hits } = outlook;
    const what = packets ? "the packets of" : "about";
    const unit = !packets ? "messages" : Math.round(expected_hits) === 1 ? "connection" : "connections";
    /** Requests and their answers together. @type {Map<string, { server: string, what: string, hits: number }>} */
    const joined = new Map();
    for (const { server, method, tool, hits: some } of hits) {
        const what = [method, tool].filter(Boolean).join(" ");
        const row = joined.get(`${server}\n${what}`) ?? { server, what, hits: 0 };
        joined.set(`${server}\n${what}`, { ...row, hits: row.hits + some });
    }
    const shown = [...joined.values()].filter(row => row.hits >= 0.5).sort((a, b) => b.hits - a.hits).slice(0, HITS);
    return html`<div class="outlook" data-testid="outlook">
        <p>Would hit ${what} <b>${format.count(Math.round(expected_hits))}</b> ${unit} in <b>${format.duration(duration)}</b> on
            ${" "}<b>${targets.join(", ")}</b>: ${connection_share < 1 ? `${format.percent(connection_share)} of ` : ""}${connections}
            ${" "}open ${connections === 1 ? "connection" : "connections"}${packets ? ", and of new ones" : ", going by the last minute"}.</p>
        ${shown.length > 0 && html`<ul>${shown.map(row => html`<li>
            <b>${format.count(Math.round(row.hits))}</b> <${Cut} text=${row.what} />
            <${Cut} text=${row.server} class="muted" /></li>`)}</ul>`}
    </div>`;
}

/** @param {{ store: Store, current: string }} props */
function Experiments({ store, current }) {
    const tests = store.chaos?.active_tests_details ?? [];
    return html`<div class="card experiments" data-testid="experiments">
        <div class="scroll" tabindex="0" role="group" aria-label="Experiments">
            ${tests.length > 0 && html`<ul class="running">${tests.map(test => html`<li key=${test.id} data-testid="running">
                <div><a class="link" href=${href({ experiment: String(test.id) })}><b>${test.name}</b></a>
                    <${State} state=${test.status} /> <span class="muted">on ${test.details.targets.join(", ")}</span></div>
                <${Progress} test=${test} store=${store} />
                <div><span><${Left} test=${test} store=${store} /> · ${format.count(test.details.injected)} hits</span>
                    ${isActive(test) && html`<${StopOne} test=${test} store=${store} />`}</div>
            </li>`)}</ul>`}
            ${store.experiments.length > 0 ? html`<table>
                <thead><tr><th scope="col">Time</th><th scope="col">Experiment</th><th scope="col" class="number">Hits</th>
                    <th scope="col" class="number">Recovery</th><th scope="col">Outcome</th></tr></thead>
                <tbody>${store.experiments.map(test => html`<${Row} key=${test.id} test=${test} current=${String(test.id) === current} />`)}</tbody>
            </table>` : tests.length === 0 && html`<p class="empty">No experiment yet. Choose a scenario, plan it, start it: what became of it is
                kept here.</p>`}
        </div>
    </div>`;
}

/** @param {{ test: Test, current: boolean }} props */
function Row({ test, current }) {
    const { id, name, start_time, status, details: { injected, error, report } } = test;
    const open = (/** @type {MouseEvent & { currentTarget: HTMLElement }} */ event) =>
        follow(event, { experiment: String(id) }) && event.currentTarget.querySelector("a")?.focus();
    return html`<tr data-testid="experiment-row" data-experiment=${id} aria-current=${current ? "true" : undefined} onClick=${open}>
        <td class="time" title=${format.moment(start_time)}>${format.clock(start_time)}</td>
        <td class="name"><a class="link cut" href=${href({ experiment: String(id) })} title=${`${name} #${id}`}>${name}</a></td>
        <td class="number">${format.count(injected)}</td>
        <td class="number">${report?.recovery.time === undefined ? "–" : format.duration(report.recovery.time)}</td>
        <td title=${error}><${State} state=${status} /></td>
    </tr>`;
}
