// The official TypeScript SDK as a client: `client.mjs MODULES URL|COMMAND...` does everything that a relay may get wrong,
// once, and prints a report of it.
const [modules, ...target] = process.argv.slice(2);
const load = path => import(`${modules}/@modelcontextprotocol/sdk/dist/esm/${path}.js`);
const { Client } = await load("client/index");
const { StdioClientTransport } = await load("client/stdio");
const { StreamableHTTPClientTransport } = await load("client/streamableHttp");
const types = await load("types");

const WATCHED = "test://watched-resource";
const PATTERN = "0123456789abcdef";

const client = new Client({ name: "e2e", version: "1" }, { capabilities: { elicitation: {}, sampling: {} } });

const asked = [];
client.setRequestHandler(types.CreateMessageRequestSchema, ({ params }) => {
    asked.push([params.messages[0].content].flat()[0].text);
    return { role: "assistant", content: { type: "text", text: "from the model" }, model: "none" };
});
client.setRequestHandler(types.ElicitRequestSchema, ({ params }) => {
    asked.push(params.message);
    return { action: "accept", content: { username: "from the user", email: "user@example.com" } };
});
const updated = new Promise(resolve => {
    client.setNotificationHandler(types.ResourceUpdatedNotificationSchema, ({ params }) => resolve(params.uri));
});

const call = (name, args = {}, options = undefined) => client.callTool({ name, arguments: args }, undefined, options);
const text = result => result.content[0].text;

/** Cancels a call once the server has begun. */
async function cancelACall() {
    const controller = new AbortController();
    const options = { signal: controller.signal, onprogress: () => controller.abort("enough") };
    await call("wait", { key: "typescript" }, options).then(
        () => Promise.reject(new Error("the cancelled call was answered")),
        () => undefined,
    );
}

const [first, ...rest] = target;
const env = { ...process.env };
await client.connect(
    rest.length > 0
        ? new StdioClientTransport({ command: first, args: rest, env, stderr: "ignore" })
        : new StreamableHTTPClientTransport(new URL(first)),
);
const report = { text: text(await call("test_simple_text")) };
const failed = await call("test_error_handling");
report.error = [failed.isError, text(failed)];
report.progress = [];
await call("test_tool_with_progress", {}, { onprogress: ({ progress }) => report.progress.push(progress) });
report.sampled = text(await call("test_sampling", { prompt: "for the model" })).includes("from the model");
report.elicited = text(await call("test_elicitation", { message: "for the user" })).includes("from the user");
report.asked = asked;
await client.subscribeResource({ uri: WATCHED });
await call("touch", { uri: WATCHED });
report.updated = await updated;
const large = text(await call("large", { bytes: 1_000_000 }));
report.large = [large.length, large === PATTERN.repeat(large.length / PATTERN.length)];
await cancelACall();
report.cancelled = text(await call("cancelled", { key: "typescript" }));
report.afterwards = text(await call("test_simple_text"));
await client.transport.terminateSession?.();
await client.close();
console.log(JSON.stringify(report));
process.exit(); // not only once the idle connections are closed
