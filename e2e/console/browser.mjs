// A browser on the console, for tests: what it complains of is kept, and each page is looked at by day and by night.

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** What a refusal or a server that is away does to its log; and a directive that this browser does not know yet. */
const NO_COMPLAINT = /^Failed to load resource|^WebSocket connection to|^Unrecognized Content-Security-Policy directive 'webrtc'/;

export class Browser {
  /** What the browser complained of. */
  complaints = [];
  figures = {};

  static async open(program, artefacts) {
    const own = new Browser();
    own.artefacts = artefacts;
    mkdirSync(artefacts, { recursive: true });
    own.profile = await mkdtemp(join(tmpdir(), "sandpool-console-"));
    own.context = await chromium.launchPersistentContext(own.profile, {
      executablePath: program,
      headless: true,
      // A page that did not come from this machine, as the browser sees it then, may otherwise not reach it.
      args: process.env.CONSOLE_SITE ? [...FLAGS, "--disable-features=LocalNetworkAccessChecks"] : FLAGS,
      viewport: { width: 1320, height: 860 },
      colorScheme: "light",
      acceptDownloads: true,
    });
    own.context.setDefaultTimeout(30_000);
    await own.context.addInitScript(() => {
      document.addEventListener("securitypolicyviolation", (event) => {
        console.error(`POLICY ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber} ${event.sample}`);
      });
    });
    // A bundle to be looked at without building the program anew: its files, with the program's own headers.
    const site = process.env.CONSOLE_SITE;
    if (site) {
      await own.context.route(/\/console(\/(?!sign-in\.json).*)?$/, async (route) => {
        const path = new URL(route.request().url()).pathname.replace(/^\/console\/?/, "");
        const file = join(site, path.startsWith("assets/") || path.startsWith("output") ? path : "index.html");
        const { origin } = new URL(route.request().url());
        const answer = await route.fetch({ url: path.startsWith("output") ? `${origin}/console/output.html` : `${origin}/console/` });
        const headers = { ...answer.headers(), "content-type": { js: "text/javascript", css: "text/css" }[file.split(".").at(-1)] ?? "text/html; charset=utf-8" };
        for (const name of ["content-encoding", "content-length", "etag"]) delete headers[name];
        await route.fulfill({ status: 200, headers, body: readFileSync(file) });
      });
    }
    own.page = own.context.pages()[0] ?? (await own.context.newPage());
    own.watch(own.page);
    own.context.on("page", (page) => own.watch(page));
    return own;
  }

  watch(page) {
    page.on("console", (message) => {
      const text = message.text();
      if (message.type() === "error" && !NO_COMPLAINT.test(text)) this.complaints.push(text);
    });
    page.on("pageerror", (error) => this.complaints.push(String(error.stack ?? error)));
  }

  /** A picture by day and by night, and what axe finds in both. */
  async look(name, { skipAxe = false, only = ["light", "dark"] } = {}) {
    for (const scheme of only) {
      await this.page.emulateMedia({ colorScheme: scheme });
      await this.page.screenshot({ path: join(this.artefacts, `${name}-${scheme}.png`) });
      if (skipAxe) continue;
      await this.page.evaluate(AXE);
      const found = await this.page.evaluate(() =>
        // Frames are of sandboxes: what is in them is not ours.
        globalThis.axe.run(document, { iframes: false, runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }),
      );
      for (const one of found.violations) {
        const where = one.nodes.slice(0, 4).map((node) => `${node.target.join(" ")}: ${node.failureSummary?.replaceAll(/\s+/g, " ")}`);
        this.complaints.push(`axe, ${name} ${scheme}: ${one.id} (${one.impact}): ${where.join(" | ")}`);
      }
    }
    await this.page.emulateMedia({ colorScheme: "light" });
  }

  async close() {
    await this.context.close();
    rmSync(this.profile, { recursive: true, force: true });
    writeFileSync(join(this.artefacts, "figures.json"), JSON.stringify(this.figures, null, 2));
  }
}

export function check(is, what) {
  if (!is) throw new Error(`not so: ${what}`);
}

/** Waits until it is so. */
export async function until(what, is, limit = 30_000) {
  const end = Date.now() + limit;
  for (;;) {
    const found = await is();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited ${limit} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
