// Chromium by remote control: each line on stdin is a command, `["name", argument, ...]`, each line on stdout what came of
// it, `{"value": ...}` or `{"error": "..."}`. It ends with its stdin.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [modules, executablePath, options] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");

const FLAGS = [
    ...["--no-first-run", "--disable-gpu"],
    ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
];
// Beyond this machine there is nothing.
const NOWHERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost";

const args = [...FLAGS, NOWHERE];
const browser = await chromium.launch({ executablePath, headless: true, chromiumSandbox: false, args });
const context = await browser.newContext(JSON.parse(options));
const page = await context.newPage();

/** Every URL that was asked for, WebSockets included. */
const requests = [];
context.on("request", request => requests.push(request.url()));
page.on("websocket", socket => requests.push(socket.url()));

/** Errors and warnings on the console, exceptions, what the policy forbade. */
const complaints = [];
page.on("console", message => {
    if (["error", "warning"].includes(message.type())) complaints.push(`${message.type()}: ${message.text()}`);
});
page.on("pageerror", error => complaints.push(`exception: ${error}`));

const commands = {
    open: async url => void (await page.goto(url)),
    reload: async () => void (await page.reload()),
    evaluate: expression => page.evaluate(expression),
    click: async selector => void (await page.click(selector, { timeout: 5000 })),
    fill: async (selector, text) => void (await page.fill(selector, text, { timeout: 5000 })),
    choose: async (selector, value) => void (await page.selectOption(selector, value, { timeout: 5000 })),
    press: async key => void (await page.keyboard.press(key)),
    screenshot: async path => void (await page.screenshot({ path })),
    requests: () => requests,
    complaints: () => complaints.splice(0),
};

for await (const line of createInterface({ input: process.stdin })) {
    const [name, ...rest] = JSON.parse(line);
    let answer;
    try {
        answer = { value: (await commands[name](...rest)) ?? null };
    } catch (error) {
        answer = { error: String(error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
