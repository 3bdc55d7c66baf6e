// The WebSocket: one at a time, opened again for as long as the page is open.

/** @typedef {"connecting" | "live" | "silent" | "reconnecting"} Link */

const BACKOFF_MIN = 500;
const BACKOFF_MAX = 10_000;
/** Without a message for this long (ms) the server is asked, then called silent, then given up. */
const ASK = 12_000;
const SILENT = 15_000;
const DEAD = 30_000;

/**
 * Keeps a connection to the server's pushes.
 *
 * @param {(message: any) => void} onMessage each message, in the order in which they were sent
 * @param {(link: Link) => void} onLink each change of state
 * @returns {(command: string) => void} sends a command, if there is a connection
 */
export function connect(onMessage, onLink) {
    /** @type {WebSocket | undefined} */
    let socket;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let retry;
    let failures = 0;
    let heard = 0;
    let asked = false;
    let opened = false;

    const send = (/** @type {string} */ command) => {
        if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify([command]));
    };

    function open() {
        clearTimeout(retry);
        retry = undefined;
        const scheme = location.protocol === "https:" ? "wss:" : "ws:";
        const mine = new WebSocket(`${scheme}//${location.host}/ws?encoding=gzip`);
        mine.binaryType = "arraybuffer";
        socket = mine;
        heard = performance.now();
        // Unpacking takes its time; each frame waits for the one before.
        let queue = Promise.resolve();
        mine.onmessage = event => {
            if (socket !== mine) return;
            heard = performance.now();
            asked = false;
            queue = queue.then(() => decode(event.data)).then(message => {
                if (socket !== mine) return;
                failures = 0;
                opened = true;
                onLink("live");
                onMessage(message);
            }).catch(error => console.warn("mcpscope: a frame could not be read:", error));
        };
        mine.onclose = () => socket === mine && again();
    }

    function again() {
        if (socket) {
            const old = socket;
            socket = undefined;
            old.close();
        }
        onLink(opened ? "reconnecting" : "connecting");
        const longest = Math.min(BACKOFF_MAX, BACKOFF_MIN * 2 ** Math.min(failures++, 10));
        // Between half and all of it, so that many pages do not come back at the same moment.
        retry = setTimeout(open, Math.max(BACKOFF_MIN, longest * (0.5 + Math.random() / 2)));
    }

    /** The reader looks, or the network is back: do not wait for the rest of a long pause. */
    const hurry = () => {
        if (retry === undefined || document.hidden) return;
        failures = 0;
        open();
    };
    addEventListener("online", hurry);
    document.addEventListener("visibilitychange", hurry);

    setInterval(() => {
        if (!socket) return;
        const quiet = performance.now() - heard;
        if (quiet > DEAD) again();
        else if (quiet > SILENT && socket.readyState === WebSocket.OPEN) onLink("silent");
        else if (quiet > ASK && !asked) {
            asked = true;
            send("get_dashboard");
        }
    }, 1000);

    open();
    return send;
}

/** @param {string | ArrayBuffer} data text is JSON, binary is JSON in gzip */
async function decode(data) {
    if (typeof data === "string") return JSON.parse(data);
    const text = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(text).json();
}
