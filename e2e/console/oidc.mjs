// Signing in at an issuer, as a person does it: told by SANDPOOL_DRIVE (JSON).

import { Browser, check } from "./browser.mjs";

const told = JSON.parse(process.env.SANDPOOL_DRIVE);
const browser = await Browser.open(told.chromium, told.artefacts);
const { page, figures } = browser;

await page.goto(`${told.endpoint}/console/sessions?q=mine`);
await page.getByRole("button", { name: "Sign in with Example" }).click();
// At the issuer, which asks who it is.
await page.getByRole("button", { name: "I am Ada" }).click();
await page.getByRole("heading", { name: "Sessions", level: 1 }).waitFor();
check(new URL(page.url()).search === "?q=mine" && !page.url().includes("code="), `one comes back to where one was: ${page.url()}`);
await page.getByText("ada@example", { exact: true }).waitFor();
await browser.look("signed-in-at-an-issuer", { only: ["light"] });

// A code that was not asked for here is refused.
await page.getByRole("button", { name: "Sign out" }).click();
await page.goto(`${told.endpoint}/console/?code=stolen&state=nobodys`);
await page.getByText("This sign-in was not begun here").waitFor();

// Who may nothing there is told so.
await page.getByRole("button", { name: "Sign in with Example" }).click();
await page.getByRole("button", { name: "I am Eve" }).click();
await page.getByRole("alert").waitFor();
figures.refusal = await page.getByRole("alert").innerText();

await browser.close();
console.log(JSON.stringify(figures));
if (browser.complaints.length > 0) {
  console.error(`the browser complained:\n${browser.complaints.join("\n")}`);
  process.exit(1);
}
