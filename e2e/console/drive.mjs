// A person's way through the console, in a real browser against a real server: `node drive.mjs`, told by SANDPOOL_DRIVE (JSON).

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Browser, check, until } from "./browser.mjs";

const told = JSON.parse(process.env.SANDPOOL_DRIVE);
const browser = await Browser.open(told.chromium, told.artefacts);
const { page, figures } = browser;
const button = (name) => page.getByRole("button", { name, exact: true });
const heading = (name) => page.getByRole("heading", { name, exact: true, level: 1 });
const began = Date.now();
const step = async (what, work) => {
  const at = Date.now();
  try {
    await work();
  } catch (error) {
    await page.screenshot({ path: join(told.artefacts, "failed.png") }).catch(() => undefined);
    throw new Error(`${what}: ${error.message}`, { cause: error });
  }
  console.error(`${what}: ${Date.now() - at} ms`);
};

/** A program that draws the whole window, whatever its size, until somebody presses q. */
const FULL_SCREEN = `import curses

def main(screen):
    while True:
        rows, columns = screen.getmaxyx()
        screen.erase()
        screen.border()
        screen.addstr(1, 2, "FULL SCREEN", curses.A_REVERSE)
        screen.addstr(2, 2, f"{rows} rows {columns} columns")
        for row in range(4, rows - 2):
            screen.addstr(row, 2, f"cpu {row:2} [" + "|" * (columns // 4 + row % 9) + "]", curses.A_BOLD if row % 2 else curses.A_DIM)
        screen.addstr(rows - 2, 2, "press q")
        screen.refresh()
        if screen.getch() == ord("q"):
            return

curses.wrapper(main)
`;

/** Bytes that came over the wire for the page as it is now, and until when it was there. */
const weigh = async (name) => {
  figures[name] = await page.evaluate(() => {
    const ours = performance.getEntriesByType("resource").filter((one) => new URL(one.name).pathname.startsWith("/console/"));
    const [own] = performance.getEntriesByType("navigation");
    return {
      bytes: [own, ...ours].reduce((total, one) => total + one.encodedBodySize, 0),
      unpackedBytes: [own, ...ours].reduce((total, one) => total + one.decodedBodySize, 0),
      files: ours.length + 1,
      domInteractiveMilliseconds: Math.round(own.domInteractive),
    };
  });
};

await step("sign in", async () => {
  await page.goto(`${told.endpoint}/console/`);
  await page.getByLabel("Token or API key").waitFor();
  await browser.look("sign-in");
  await page.getByLabel("Token or API key").fill("not-a-token");
  await button("Sign in").click();
  await page.getByRole("alert").waitFor();
  check(/token|key/i.test(await page.getByRole("alert").innerText()), "a wrong token is refused in words");
  // Then by the address that `sandpool console` prints.
  await page.goto("about:blank");
  await page.goto(told.address);
  await heading("Overview").waitFor();
  await page.getByRole("heading", { name: "Healthy" }).waitFor();
  figures.interactiveMilliseconds = Math.round(await page.evaluate(() => performance.now()));
  check(!page.url().includes("token"), "the token is out of the address");
  check((await page.evaluate(() => history.length)) >= 1 && !(await page.evaluate(() => location.hash)), "there is no fragment left");
  await weigh("first page");
  await browser.look("overview");
});

await step("keyboard", async () => {
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keyboard" }).waitFor();
  await browser.look("keyboard", { only: ["light"] });
  await page.keyboard.press("Escape");
  await page.keyboard.press("g");
  await page.keyboard.press("s");
  await heading("Sessions").waitFor();
  await page.getByRole("heading", { name: "No sessions" }).waitFor();
  await browser.look("sessions-empty", { only: ["light"] });
  await page.keyboard.press("g");
  await page.keyboard.press("p");
  await heading("Pools").waitFor();
  await page.getByRole("heading", { name: "python", exact: true }).waitFor();
  await browser.look("pools");
});

await step("create a pool", async () => {
  await page.keyboard.press("n");
  await heading("New pool").waitFor();
  await page.getByLabel("Name", { exact: true }).fill("lab");
  await page.getByLabel("Memory", { exact: true }).fill("3Mi");
  // The server's own words, at the field, before anything is sent for good.
  const wrong = page.locator(".field", { has: page.getByLabel("Memory", { exact: true }) }).getByRole("alert");
  await wrong.waitFor();
  check(/64Mi/.test(await wrong.innerText()), `the field says what it takes: ${await wrong.innerText()}`);
  await browser.look("pool-form-wrong");
  await page.getByLabel("Memory", { exact: true }).fill("1Gi");
  await page.getByLabel("Ready at least").fill("1");
  await page.getByText("Checked: this would be a new pool.").waitFor();
  await page.getByLabel("Egress").selectOption("allow-list");
  await page.getByLabel("Hosts").fill("allowed.example");
  await page.getByText("Checked: this would be a new pool.").waitFor();
  await button("Create the pool").click();
  await heading("Pools").waitFor();
  await page.getByRole("region", { name: "lab" }).getByText("ready", { exact: true }).waitFor();
  // Changed, and seen to be.
  await page.getByRole("link", { name: "Edit the pool lab" }).click();
  await page.getByLabel("Sessions at most").fill("7");
  await page.getByText("Checked: this would change the pool.").waitFor();
  await button("Apply the changes").click();
  await heading("Pools").waitFor();
  await page.getByRole("region", { name: "lab" }).getByText("0 of 7").waitFor();
});

const SESSION = "chat-17";

await step("a session", async () => {
  await page.keyboard.press("g");
  await page.keyboard.press("s");
  await heading("Sessions").waitFor();
  await button("New session").first().click();
  const dialog = page.getByRole("dialog", { name: "New session" });
  await dialog.getByLabel("Pool").selectOption("lab");
  await dialog.getByLabel("Name").fill(SESSION);
  await browser.look("new-session", { only: ["light"] });
  await dialog.getByRole("button", { name: "Begin" }).click();
  await heading(SESSION).waitFor();
});

const cell = (number) => page.getByRole("region", { name: `Cell ${number}`, exact: true });

await step("run code with a plot", async () => {
  await page.getByLabel("Code of cell 1").fill("import matplotlib.pyplot as plt\nimport pandas as pd\nx = 41\nplt.plot([1, 4, 9, 16], marker='o')\nplt.title('Squares')\nplt.show()\nx + 1");
  await page.keyboard.press("Shift+Enter");
  const figure = cell(1).getByRole("img", { name: /Figure/ });
  await figure.waitFor();
  const size = await figure.evaluate((image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight]));
  check(size[0] > 200 && size[1] > 150, `the plot is a picture: ${size}`);
  await cell(1).getByText("42", { exact: true }).waitFor();
  await cell(1).getByText("done", { exact: true }).waitFor();
  // A table, in a document that has no rights.
  await page.getByLabel("Code of cell 2").fill("pd.DataFrame({'city': ['Oslo', 'Rome'], 'degrees': [3.5, 17.25]})");
  await page.keyboard.press("Shift+Enter");
  await page.frameLocator("iframe").getByRole("cell", { name: "Rome" }).waitFor();
  // An exception, with its traceback once.
  await page.getByLabel("Code of cell 3").fill("def f():\n    return 1 / 0\nf()");
  await page.keyboard.press("Shift+Enter");
  await cell(3).getByText("raised", { exact: true }).waitFor();
  check((await cell(3).innerText()).match(/Traceback/g)?.length === 1, "one traceback is shown");
  // Output comes while it runs, and an interrupt keeps the variables.
  await page.getByLabel("Code of cell 4").fill("import time\nprint('begun', flush=True)\nwhile True:\n    time.sleep(0.02)");
  await page.keyboard.press("Control+Enter");
  await cell(4).getByText("begun").waitFor();
  await button("Interrupt").click();
  await cell(4).getByText("raised", { exact: true }).or(cell(4).getByText("stopped", { exact: true })).waitFor();
  await page.getByLabel("Code of cell 4").fill("x");
  await page.keyboard.press("Control+Enter");
  await cell(4).getByText("41", { exact: true }).waitFor();
  await page.evaluate(() => scrollTo(0, 0));
  await browser.look("playground");
  // A reload finds what ran.
  await page.reload();
  await cell(1).getByRole("img", { name: /Figure/ }).waitFor();
  await cell(4).getByText("41", { exact: true }).waitFor();
});

await step("hostile HTML", async () => {
  // What a sandbox shows cannot reach the token, the server, or anywhere else.
  const hostile = `from IPython.display import HTML
HTML("""<p id=said>shown</p><script>
const out = [];
try { out.push("storage " + sessionStorage.length) } catch (e) { out.push("no storage") }
try { out.push("parent " + parent.document.title) } catch (e) { out.push("no parent") }
fetch("${told.endpoint}/pools").then(() => out.push("fetched"), () => out.push("no fetch")).finally(() => { document.getElementById("said").textContent = out.join(", ") });
</script>""")`;
  await page.getByLabel("Code of cell 4").fill(hostile);
  // Its own document complains of what it tries, which is what is wanted here.
  const before = browser.complaints.length;
  await page.getByLabel("Code of cell 4").press("Control+Enter");
  // Its scripts do not run by themselves; when they are let, they have nothing.
  const said = page.frameLocator("iframe >> nth=-1").locator("#said");
  await said.waitFor();
  check((await said.innerText()) === "shown", "its scripts wait to be asked");
  await button("Run its scripts").click();
  await page.frameLocator("iframe >> nth=-1").getByText("no storage, no parent, no fetch").waitFor();
  await page.getByLabel("Code of cell 4").fill("x");
  await page.getByLabel("Code of cell 4").press("Control+Enter");
  await cell(4).getByText("41", { exact: true }).waitFor();
  browser.complaints.splice(before);
});

await step("files", async () => {
  await page.getByRole("link", { name: "Files" }).click();
  await page.getByRole("heading", { name: "Nothing here yet" }).waitFor();
  const csv = "city,degrees\nOslo,3.5\n\"Rome, old\",17.25\n";
  const png = readFileSync(told.png);
  await page.getByLabel("Files to upload").setInputFiles([
    { name: "weather.csv", mimeType: "text/csv", buffer: Buffer.from(csv) },
    { name: "chart.png", mimeType: "image/png", buffer: png },
    { name: "full.py", mimeType: "text/x-python", buffer: Buffer.from(FULL_SCREEN) },
  ]);
  await button("Preview weather.csv").click();
  const preview = page.getByRole("region", { name: "Preview of weather.csv" });
  await preview.getByRole("cell", { name: "Rome, old" }).waitFor();
  await browser.look("files");
  await button("Preview chart.png").click();
  const image = page.getByRole("region", { name: "Preview of chart.png" }).getByRole("img");
  await image.waitFor();
  check(await image.evaluate((one) => one.decode().then(() => one.naturalWidth > 0)), "the image is one");
  const downloading = page.waitForEvent("download");
  await button("Download weather.csv").click();
  const path = await (await downloading).path();
  check(readFileSync(path, "utf8") === csv, "what comes out is what went in");
  // By dropping.
  await page.evaluate(() => {
    const data = new DataTransfer();
    data.items.add(new File(["dropped here\n"], "note.txt", { type: "text/plain" }));
    document.querySelector(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
  });
  await button("Preview note.txt").click();
  await page.getByRole("region", { name: "Preview of note.txt" }).getByText("dropped here").waitFor();
  await button("Delete note.txt").click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await button("Preview note.txt").waitFor({ state: "detached" });
});

await step("executions", async () => {
  await page.getByRole("link", { name: "Executions" }).click();
  const first = page.locator("tbody .link").first();
  await first.click();
  await page.locator("[role=log]").first().waitFor();
  await browser.look("executions");
});

if (told.has.terminals) {
  await step("terminal", async () => {
    await page.getByRole("link", { name: "Terminal" }).click();
    await button("Open a terminal").click();
    await page.getByText("attached", { exact: true }).waitFor();
    await weigh("with a terminal");
    const says = (text) => until(`the terminal to say ${text}`, async () => (await page.locator(".xterm").innerText()).includes(text));
    const type = async (text) => page.keyboard.type(text, { delay: 2 });
    await page.locator(".xterm-helper-textarea").focus();
    await type("echo before-$((40+2))\n");
    await says("before-42");
    // A program that draws the whole screen: Python's curses, with the window's size on it.
    await type("python3 full.py\n");
    await says("FULL SCREEN");
    await says("press q");
    await browser.look("terminal");
    const size = async () => /(\d+) rows (\d+) columns/.exec(await page.locator(".xterm").innerText())?.slice(1).map(Number);
    const before = await until("a size", size);
    await page.setViewportSize({ width: 1000, height: 700 });
    await until("another size", async () => { const now = await size(); return now && (now[0] !== before[0] || now[1] !== before[1]); });
    await page.setViewportSize({ width: 1320, height: 860 });
    // It survives a reload, with its screen; then with its scrollback.
    await page.reload();
    await page.getByText("attached", { exact: true }).waitFor();
    await says("FULL SCREEN");
    await page.locator(".xterm-helper-textarea").focus();
    await type("q");
    await says("before-42");
    // Several at once.
    await button("Terminal").click();
    await page.getByRole("tab", { name: "term-2" }).waitFor();
    await page.getByText("attached", { exact: true }).waitFor();
    await page.locator(".xterm-helper-textarea").focus();
    await type("echo second-$((1+1))\n");
    await says("second-2");
    await page.getByRole("tab", { name: "term-1" }).click();
    await says("before-42");
  });
}

if (told.has.telemetry) {
  await step("egress and activity", async () => {
    await page.getByRole("link", { name: "Egress" }).click();
    await page.getByText("allowed.example", { exact: true }).waitFor();
    await page.getByRole("heading", { name: "Nothing was tried" }).waitFor();
    await page.getByRole("link", { name: "Playground" }).click();
    await page.getByLabel("Code of cell 4").fill("import urllib.request\ntry:\n    urllib.request.urlopen('http://denied.example/', timeout=5)\nexcept Exception as error:\n    print(type(error).__name__)\nsum(range(30_000_000))");
    await page.getByLabel("Code of cell 4").press("Control+Enter");
    await cell(4).getByText("done", { exact: true }).waitFor();
    await page.getByRole("link", { name: "Egress" }).click();
    await page.getByRole("rowheader", { name: /denied\.example/ }).first().waitFor();
    await browser.look("egress");
    await page.getByRole("link", { name: "Activity" }).click();
    await page.getByRole("img", { name: /^Memory: .* now/ }).waitFor();
    await page.getByRole("img", { name: /^Processor: .* now/ }).waitFor();
    await browser.look("activity");
  });
}

await step("a server that goes away and comes back", async () => {
  if (told.has.terminals) await page.getByRole("link", { name: "Terminal" }).click();
  else await page.getByRole("link", { name: "Executions" }).click();
  await page.getByText("idle", { exact: true }).or(page.getByText("busy", { exact: true })).first().waitFor();
  // The launcher would start another at once; here it may not yet.
  process.kill(told.launcher, "SIGSTOP");
  try {
    process.kill(told.server, "SIGKILL");
    const banner = page.getByText("The server does not answer.");
    await banner.waitFor();
    check(/last answer was at \d/.test(await page.locator(".banner").innerText()), "it says when it last heard of it");
    await page.getByText(/^as of \d/).first().waitFor();
    await browser.look("server-away");
  } finally {
    process.kill(told.launcher, "SIGCONT");
  }
  await page.locator(".banner").waitFor({ state: "detached" });
  if (told.has.terminals) {
    await page.getByText("attached", { exact: true }).waitFor();
    await until("the terminal's scrollback", async () => (await page.locator(".xterm").innerText()).includes("before-42"));
  }
  await page.getByRole("link", { name: "Playground" }).click();
  await page.getByLabel("Code of cell 4").fill("x + 2");
  await page.getByLabel("Code of cell 4").press("Control+Enter");
  await cell(4).getByText("43", { exact: true }).waitFor();
});

await step("the sessions' list, and a thousand of them", async () => {
  await page.keyboard.press("Escape");
  await page.getByRole("link", { name: "Sessions", exact: true }).first().click();
  await page.getByRole("rowheader", { name: new RegExp(SESSION) }).waitFor();
  await page.getByRole("row", { name: new RegExp(SESSION) }).getByText(/[KM]iB/).first().waitFor();
  await browser.look("sessions");
  // A thousand sandboxes are more than a test's machine has: the answers are made up, the page is not.
  let asked = 0;
  await page.route("**/pools/*/sessions?*", async (route) => {
    asked += 1;
    const pool = /pools\/([^/]+)\//.exec(route.request().url())[1];
    const value = pool !== "lab" ? [] : Array.from({ length: 1000 }, (_, at) => ({
      pool, identifier: `many-${String(at).padStart(4, "0")}`, sandbox: `00000000-0000-4000-8000-${String(at).padStart(12, "0")}`, tenant: "default", owner: "somebody", level: "process",
      createdAt: new Date(Date.now() - at * 1000).toISOString(), lastUsedAt: new Date().toISOString(), expiresAt: new Date(Date.now() + 300_000).toISOString(), busy: at % 7 === 0 ? 1 : 0,
      usage: { memoryBytes: 2e6 + at * 1000, memoryPeakBytes: 3e6, pids: 4, cpuSeconds: at / 100 + performance.now() / 20_000, oomKills: 0, storedBytes: 0, sentBytes: 0, receivedBytes: 0 },
    }));
    await route.fulfill({ json: { value, next: null } });
  });
  const at = Date.now();
  await page.goto(`${told.endpoint}/console/sessions`);
  await page.getByRole("rowheader", { name: /many-0/ }).first().waitFor();
  figures.thousandSessionsMilliseconds = Date.now() - at;
  figures.requestsOfThousandSessions = asked;
  const rows = await page.locator("tbody tr").count();
  check(rows < 80, `only what is seen is drawn: ${rows} rows`);
  figures.frames = await page.evaluate(async () => {
    const box = document.querySelector(".table-box");
    let frames = 0;
    const end = performance.now() + 1000;
    while (performance.now() < end) {
      box.scrollTop += 700;
      if (box.scrollTop + box.clientHeight >= box.scrollHeight) box.scrollTop = 0;
      await new Promise(requestAnimationFrame);
      frames += 1;
    }
    return frames;
  });
  const typed = Date.now();
  await page.getByLabel("Find sessions").fill("many-0999");
  await page.getByRole("rowheader", { name: /many-0999/ }).waitFor();
  figures.findMilliseconds = Date.now() - typed;
  await page.getByLabel("Find sessions").fill("");
  await browser.look("sessions-thousand", { only: ["light"] });
  await page.unroute("**/pools/*/sessions?*");
});

await step("a narrow window, and the other look", async () => {
  await page.setViewportSize({ width: 420, height: 860 });
  await page.goto(`${told.endpoint}/console/`);
  await page.getByRole("heading", { name: "Healthy" }).waitFor();
  check(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is wider than the window");
  await browser.look("overview-narrow", { only: ["light"] });
  await page.setViewportSize({ width: 1320, height: 860 });
  await page.getByLabel("Look").selectOption("dark");
  check((await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor)) === "rgb(16, 18, 22)", "it is dark because it was chosen");
  await page.reload();
  await page.getByRole("heading", { name: "Healthy" }).waitFor();
  check((await page.evaluate(() => document.documentElement.dataset.theme)) === "dark", "the choice is kept");
  await page.getByLabel("Look").selectOption("system");
  await browser.look("overview-used");
});

await step("delete the session, the pool, and sign out", async () => {
  await page.getByRole("link", { name: "Sessions", exact: true }).first().click();
  await page.getByRole("link", { name: SESSION }).click();
  await button("Delete").click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete the session" }).click();
  await heading("Sessions").waitFor();
  await page.getByRole("heading", { name: "No sessions" }).waitFor();
  await page.goBack();
  await page.getByRole("heading", { name: "There is no such session" }).waitFor();
  await browser.look("session-gone", { only: ["light"] });
  await page.getByRole("link", { name: "Pools", exact: true }).click();
  await button("Remove the pool lab").click();
  await page.getByRole("dialog").getByRole("button", { name: "Remove the pool" }).click();
  await page.getByRole("region", { name: "lab" }).waitFor({ state: "detached" });
  await button("Sign out").click();
  await page.getByLabel("Token or API key").waitFor();
  check((await page.evaluate(() => JSON.stringify([sessionStorage.getItem("sandpool.token"), localStorage.getItem("sandpool.token")]))) === "[null,null]", "the token is nowhere");
});

figures.allMilliseconds = Date.now() - began;
await browser.close();
writeFileSync(join(told.artefacts, "complaints.json"), JSON.stringify(browser.complaints, null, 2));
console.log(JSON.stringify(figures));
if (browser.complaints.length > 0) {
  console.error(`the browser complained:\n${browser.complaints.join("\n")}`);
  process.exit(1);
}
