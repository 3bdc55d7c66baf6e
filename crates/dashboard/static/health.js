// The health map: the whole, each component, what changed last, and the supervised processes.
import * as format from "./format.js";
import { Cut, State, html } from "./view.js";

/** @param {{ store: import("./store.js").Store }} props */
export function HealthMap({ store }) {
    const { health, events } = store;
    if (!health) {
        return html`<section aria-label="Health">
            <p class="empty" data-testid="overall">Waiting for the first data.</p>
        </section>`;
    }
    const components = Object.entries(health.components ?? {});
    const sound = components.filter(([, { status }]) => status === "healthy").length;
    const processes = store.dashboard?.processes ?? [];
    return html`<section aria-labelledby="health-title">
        <h2 id="health-title">Health</h2>
        <div class="health">
            <article class="card overall" data-testid="overall" data-state=${health.overall}>
                <h3>Overall</h3>
                <${State} state=${health.overall} large />
                <p>${components.length ? `${sound} of ${components.length} healthy` : "No components yet"}</p>
            </article>
            ${components.map(([name, component]) => html`<${Part} key=${name} name=${name} component=${component}
                now=${health.timestamp} />`)}
            ${processes.map(process => html`<${Child} key=${`${process.name} ${process.pid}`} process=${process} />`)}
        </div>
        ${events.length > 0 && html`<ol class="changes" aria-label="Latest changes of health">
            ${events.map(event => html`<li key=${`${event.timestamp} ${event.component}`}>
                <time>${format.clock(event.timestamp)}</time>
                <${Cut} text=${event.component} />
                <${State} state=${event.from} /> <span role="img" aria-label="to">→</span> <${State} state=${event.to} />
                <${Cut} text=${event.message} class="muted" />
            </li>`)}
        </ol>`}
    </section>`;
}

/** @param {{ name: string, component: import("./store.js").Component, now: number }} props */
function Part({ name, component, now }) {
    const { status, message, since, rate, count } = component;
    const figures = [rate != null && format.rate(rate), count != null && format.count(count)].filter(Boolean).join(" · ");
    return html`<article class="card" data-testid=${`component-${name}`} data-state=${status}>
        <h3><${Cut} text=${name} /></h3>
        <${State} state=${status} />
        <p title=${message}>${message}${figures && html` <b>${figures}</b>`}</p>
        <p class="muted" title=${format.moment(since)}>for ${format.span(now - since)}</p>
    </article>`;
}

/** @param {{ process: import("./store.js").Process }} props */
function Child({ process }) {
    const { name, pid, memory_usage, memory_ratio, cpu_usage } = process;
    return html`<article class="card">
        <h3><${Cut} text=${name} /> <small class="muted">pid ${pid}</small></h3>
        <p>CPU <b>${format.percent(cpu_usage)}</b></p>
        <p>Memory <b>${format.bytes(memory_usage)}</b>
            ${memory_ratio != null && html` <span class="muted">${format.percent(memory_ratio)}</span>`}</p>
    </article>`;
}
