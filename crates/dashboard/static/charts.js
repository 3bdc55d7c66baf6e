// The seven metrics, each as a card: the current value, a live chart, what its lines are, and the same as a table.
import { faults } from "./engine.js";
import { clock } from "./format.js";
import { CRITICAL, drawn } from "./metrics.js";
import { go } from "./route.js";
import { color, onTheme } from "./theme.js";
import uPlot from "./vendor/uPlot.js";
import { html, useLayoutEffect, useMemo, useRef, useState } from "./view.js";

/**
 * @typedef {import("./metrics.js").Critical} Critical
 * @typedef {import("./engine.js").Fault} Fault
 */

const HEIGHT = 132;
const TABLE_ROWS = 12;
/** A page that was just opened shows this many seconds, most of them empty. */
const SHORTEST = 60;
/** @type {[string, string][]} minutes as in the route, and their name */
const RANGES = [["5", "5 min"], ["15", "15 min"], ["60", "1 h"]];
const COLORS = 8;
/** Steps of an axis that counts whole things. */
const WHOLE_STEPS = [0, 1, 2, 3, 4, 5, 6].flatMap(power => [1, 2, 5].map(n => n * 10 ** power));

/** @param {{ store: import("./store.js").Store, range: string }} props */
export function Charts({ store, range }) {
    const shaken = useMemo(() => faults(store.chaos, store.experiments), [store.chaos, store.experiments]);
    return html`<section aria-labelledby="charts-title">
        <div class="section-head">
            <h2 id="charts-title">Critical metrics</h2>
            <div class="choices" role="group" aria-label="Time shown">
                ${RANGES.map(([minutes, name]) => html`<button type="button" aria-pressed=${String(range === minutes)}
                    onClick=${() => go({ range: minutes })}>${name}</button>`)}
            </div>
        </div>
        <div class="charts">
            ${CRITICAL.map(critical => html`<${Card} key=${critical.name} critical=${critical} store=${store}
                faults=${shaken} seconds=${60 * (Number(range) || 15)} />`)}
        </div>
    </section>`;
}

/** @param {{ critical: Critical, store: import("./store.js").Store, faults: Fault[], seconds: number }} props */
function Card({ critical, store, faults, seconds }) {
    const [hover, setHover] = useState(/** @type {number | null} */ (null));
    const [table, setTable] = useState(false);
    const { times } = store.history;
    const newest = times.at(-1);
    const lines = useMemo(() => {
        const first = times.findIndex(time => time >= (newest ?? 0) - seconds);
        return drawn(critical, store.history.lines.get(critical.name) ?? new Map(), first);
    }, [newest, times.length, seconds]);
    const names = [...lines.keys()];
    const current = useMemo(() => {
        const series = store.metrics?.[critical.name]?.series ?? [];
        return critical.format(store.metrics ? critical.current(critical.read(series)) : null);
    }, [store.metrics]);
    const at = hover !== null && hover < times.length ? hover : null;
    /** @param {string} name */
    const shown = name => critical.format(lines.get(name)?.[at ?? times.length - 1]);
    const shaded = faults.some(({ to }) => to >= (newest ?? Infinity) - seconds);
    const said = `${critical.title}, ${critical.what} ${current}. ${names.map(name => `${name} ${shown(name)}`).join(", ")}${
        shaded ? ". A fault was active in the shaded time" : ""}`;

    return html`<article class=${critical.wide ? "card chart wide" : "card chart"} data-testid=${`metric-${critical.name}`}>
        <header>
            <h3 title=${critical.name}>${critical.title}</h3>
            <p class="current"><strong>${current}</strong> <small>${critical.what}</small></p>
            <button type="button" class="icon" aria-pressed=${String(table)} title="As a table"
                aria-label=${`${critical.title} as a table`} onClick=${() => setTable(!table)}>▤</button>
        </header>
        <div class=${table ? "plot away" : "plot"} role="img" aria-label=${said}>
            <${Plot} critical=${critical} names=${names} times=${times} lines=${lines} seconds=${seconds}
                newest=${newest} faults=${faults} onHover=${setHover} />
        </div>
        ${table && html`<${Numbers} critical=${critical} names=${names} times=${times} lines=${lines}
            faults=${faults} />`}
        <ul class="legend">
            ${names.map((name, index) => html`<li key=${name} title=${name}>
                <i data-line=${index % COLORS} data-dashed=${String(dashed(name))}></i>
                <span class="cut">${name}</span> <b>${shown(name)}</b>
            </li>`)}
            ${names.length === 0 && html`<li class="quiet">nothing yet</li>`}
            ${at !== null && html`<li class="when">${clock(times[at] * 1000)}</li>`}
        </ul>
    </article>`;
}

/** @param {string} name */
const dashed = name => name.endsWith(" injected");

/**
 * @param {{ critical: Critical, names: string[], times: number[], lines: Map<string, (number | null)[]>, seconds: number,
 *     newest: number | undefined, faults: Fault[], onHover: (index: number | null) => void }} props
 */
function Plot({ critical, names, times, lines, seconds, newest, faults, onHover }) {
    const box = useRef(/** @type {HTMLElement | null} */ (null));
    const plot = useRef(/** @type {uPlot | null} */ (null));
    const range = useRef(seconds);
    range.current = seconds;
    const shaken = useRef(faults);
    shaken.current = faults;
    /** @type {() => import("./vendor/uPlot.js").Data} */
    const data = () => [times, ...(names.length ? names.map(name => lines.get(name) ?? []) : [times.map(() => 0)])];

    useLayoutEffect(() => {
        const parent = /** @type {HTMLElement} */ (box.current);
        const made = new uPlot(options(critical, names, parent.clientWidth, range, shaken, onHover), data(), parent);
        plot.current = made;
        const resized = new ResizeObserver(() => {
            if (parent.clientWidth) made.setSize({ width: parent.clientWidth, height: HEIGHT });
        });
        resized.observe(parent);
        const recoloured = onTheme(() => made.redraw());
        return () => {
            resized.disconnect();
            recoloured();
            made.destroy();
        };
    }, [JSON.stringify(names)]);
    useLayoutEffect(() => plot.current?.setData(data()), [newest, times.length, seconds]);
    useLayoutEffect(() => plot.current?.redraw(), [JSON.stringify(faults)]);
    return html`<div ref=${box}></div>`;
}

/**
 * @param {Critical} critical
 * @param {string[]} names
 * @param {number} width
 * @param {{ current: number }} seconds
 * @param {{ current: Fault[] }} faults
 * @param {(index: number | null) => void} onHover
 * @returns {import("./vendor/uPlot.js").Options}
 */
function options(critical, names, width, seconds, faults, onHover) {
    const axis = {
        stroke: () => color("--muted"),
        grid: { stroke: () => color("--grid"), width: 1 },
        ticks: { show: false },
        font: "11px system-ui, sans-serif",
    };
    const line = (/** @type {string} */ name, /** @type {number} */ index) => ({
        label: name,
        stroke: () => color(`--line-${index % COLORS}`),
        width: 1.75,
        dash: dashed(name) ? [5, 4] : undefined,
        points: { show: false, size: 4, filter: lonely },
    });
    return {
        width: Math.max(width, 100),
        height: HEIGHT,
        padding: [8, 10, 0, 0],
        legend: { show: false },
        cursor: {
            drag: { x: false, y: false },
            sync: { key: "mcpscope", scales: ["x", null] },
            y: false,
            points: { size: 6 },
        },
        scales: {
            x: {
                range: ({ data: [times] }) => {
                    const end = times.at(-1) ?? Date.now() / 1000;
                    return [Math.max(end - seconds.current, Math.min(times[0] ?? end, end - SHORTEST)), end];
                },
            },
            y: {
                range: (_plot, _min, max) => [0, max > 0 ? max * 1.12 : 1],
            },
        },
        axes: [
            {
                ...axis,
                size: 22,
                gap: 4,
                space: 64,
                values: (plot, splits, _axis, _space, step) =>
                    splits.map(time => (fits(plot, time) ? clock(time * 1000).slice(0, step < 60 ? 8 : 5) : "")),
            },
            {
                ...axis,
                size: 52,
                gap: 6,
                space: 30,
                incrs: critical.whole ? WHOLE_STEPS : undefined,
                values: (_plot, splits) => splits.map(value => critical.format(value)),
            },
        ],
        series: [{}, ...(names.length ? names.map(line) : [line("none", 0)])],
        hooks: { drawClear: [plot => shade(plot, faults.current)], setCursor: [({ cursor }) => onHover(cursor.idx ?? null)] },
    };
}

/**
 * The time in which faults were active.
 * @param {uPlot} plot
 * @param {Fault[]} faults
 */
function shade(plot, faults) {
    const { ctx, bbox: { left, top, width, height } } = plot;
    const at = (/** @type {number} */ time) => Math.min(left + width, Math.max(left, plot.valToPos(time, "x", true)));
    ctx.save();
    ctx.fillStyle = color("--injected");
    for (const { from, to } of faults) {
        const [start, end] = [at(from), Number.isFinite(to) ? at(to) : left + width];
        if (end <= start) continue;
        ctx.globalAlpha = 0.13;
        ctx.fillRect(start, top, end - start, height);
        ctx.globalAlpha = 0.8;
        ctx.fillRect(start, top, end - start, 2);
    }
    ctx.restore();
}

/**
 * Whether a time's name does not run over the edge.
 * @param {uPlot} plot
 * @param {number} time
 */
function fits(plot, time) {
    const x = plot.valToPos(time, "x");
    return x > 20 && x < plot.over.clientWidth - 16;
}

/**
 * The points without a neighbour, which no line shows.
 * @param {uPlot} plot
 * @param {number} index of the series
 * @returns {number[]} their indices
 */
function lonely({ data }, index) {
    const values = /** @type {(number | null)[]} */ (data[index]);
    return [...values.keys()].filter(i => values[i] != null && values[i - 1] == null && values[i + 1] == null);
}

/**
 * @param {{ critical: Critical, names: string[], times: number[], lines: Map<string, (number | null)[]>,
 *     faults: Fault[] }} props
 */
function Numbers({ critical, names, times, lines, faults }) {
    const shaken = (/** @type {number} */ time) => faults.some(({ from, to }) => from <= time && time <= to);
    const first = Math.max(0, times.length - TABLE_ROWS);
    const rows = times.slice(first).map((time, index) => ({ time, at: first + index }));
    return html`<div class="numbers" tabindex="0" role="group" aria-label=${`${critical.title}, newest values`}><table>
        <thead><tr><th scope="col">Time</th>${names.map(name => html`<th scope="col" class="number">${name}</th>`)}</tr></thead>
        <tbody>${rows.reverse().map(({ time, at }) => html`<tr key=${time}>
            <th scope="row">${clock(time * 1000)}${shaken(time) && html` <span class="injected" title="A fault was active">
                <span aria-hidden="true">⚡</span><span class="unseen">a fault was active</span></span>`}</th>
            ${names.map(name => html`<td class="number">${critical.format(lines.get(name)?.[at])}</td>`)}
        </tr>`)}</tbody>
    </table></div>`;
}
