// Questions over HTTP.

/** @typedef {{ value?: any, status?: number, problem?: string }} Answer a value, or why there is none */

/**
 * @param {string} path
 * @param {AbortSignal} signal
 * @returns {Promise<Answer>}
 */
export async function ask(path, signal) {
    try {
        const answer = await fetch(path, { signal });
        const { ok, status } = answer;
        const value = await answer.json();
        return ok ? { value } : { status, problem: value.detail };
    } catch {
        return { problem: "The server cannot be reached." };
    }
}
