// The official TypeScript SDK as a client that does what it is told: `caller.mjs MODULES URL|COMMAND...` calls the tool that each
// line of stdin names, `TOOL TIMEOUT_MS`, and prints what became of it.
import { createInterface } from "node:readline";

const [modules, first, ...rest] = process.argv.slice(2);
const load = path => import(`${modules}/@modelcontextprotocol/sdk/dist/esm/${path}.js`);
const { Client } = await load("client/index");
const { StdioClientTransport } = await load("client/stdio");
const { StreamableHTTPClientTransport } = await load("client/streamableHttp");

const client = new Client({ name: "e2e", version: "1" });
await client.connect(
    rest.length > 0
        ? new StdioClientTransport({ command: first, args: rest, env: { ...process.env }, stderr: "ignore" })
        : new StreamableHTTPClientTransport(new URL(first)),
);
const TIMED_OUT = -32001;

async function call(name, timeout) {
    try {
        const result = await client.callTool({ name, arguments: {} }, undefined, { timeout });
        return result.isError ? "failed" : result.content[0].text;
    } catch (error) {
        if (error.code === TIMED_OUT) return "timeout";
        return error.code === undefined ? error.name : `error ${error.code}`;
    }
}

// Its checks of structured results know the tools that were listed.
await client.listTools();
console.log("connected");
for await (const line of createInterface({ input: process.stdin })) {
    const [name, timeout] = line.split(" ");
    console.log(await call(name, Number(timeout)));
}
await client.close();
process.exit(); // not only once the idle connections are closed
