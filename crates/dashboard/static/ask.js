// Questions and commands over HTTP.

/** @typedef {{ value?: any, status?: number, problem?: string }} Answer a value, or why there is none */

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @param {RequestInit} [request]
 * @returns {Promise<Answer>}
 */
export async function ask(path, signal, request) {
    try {
        const answer = await fetch(path, { ...request, signal });
        const { ok, status } = answer;
        const value = await answer.json();
        return ok ? { value } : { status, problem: value.detail };
    } catch {
        return { problem: "The server cannot be reached." };
    }
}

/**
 * Something that is to be done.
 * @param {string} method
 * @param {string} path
 * @param {any} [body]
 * @param {Record<string, string>} [headers]
 */
export const tell = (method, path, body = {}, headers = {}) => ask(path, undefined, {
    method,
    headers: { "Content-Type": "application/json", "X-Mcpscope-Request": "1", ...headers },
    body: JSON.stringify(body),
});
