// The dialog that asks for the chaos token, when the server does.
import { keepToken } from "./engine.js";
import { CloseButton, Dialog, html, useState } from "./view.js";

/** @typedef {import("./ask.js").Answer} Answer */

/** Who shows the dialog; it is answered with the token, or nothing. */
const asking = { ask: async (/** @type {string} */ _problem) => "" };

/**
 * Does what needs the token, and asks for it for as long as the server wants another one.
 * @param {() => Promise<Answer>} command
 * @returns {Promise<Answer>}
 */
export async function withToken(command) {
    for (;;) {
        const answer = await command();
        if (answer.status !== 401) return answer;
        const secret = await asking.ask(answer.problem ?? "");
        if (!secret) return answer;
        keepToken(secret);
    }
}

/** @param {{ children?: any }} props what is there on every view */
export function TokenDialog({ children }) {
    const [asked, setAsked] = useState(/** @type {{ problem: string, answer: (secret: string) => void } | null} */ (null));
    asking.ask = problem => new Promise(answer => setAsked({ problem, answer }));
    if (!asked) return null;
    const done = (/** @type {string} */ secret) => {
        setAsked(null);
        asked.answer(secret);
    };
    const submit = (/** @type {SubmitEvent & { currentTarget: HTMLFormElement }} */ event) => {
        event.preventDefault();
        done(String(new FormData(event.currentTarget).get("token") ?? "").trim());
    };
    return html`<${Dialog} class="token" testid="token" label="Chaos token" onClose=${() => done("")}>
        ${children}
        <form class="sheet" onSubmit=${submit}>
            <${CloseButton} />
            <h2>Chaos token</h2>
            <p>Whoever starts experiments, or allows them again, has to know it. mcpscope prints it on stderr when it starts, unless
                the configuration names a file for it. It is kept until this tab is closed. To stop takes none.</p>
            <p class="muted" role="status">${asked.problem}</p>
            <div class="row"><input name="token" type="password" required maxlength="512" autocomplete="off" spellcheck="false"
                aria-label="Chaos token" autofocus /> <button type="submit" class="primary">Continue</button></div>
        </form>
    <//>`;
}
