// The console: the frame around every page, and which page it is.

import { Component, type ComponentChildren, render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { claims, link, signIn, signOut, token } from "./api";
import { clock, span } from "./format";
import { Overview } from "./overview";
import { PoolForm } from "./pool-form";
import { Pools } from "./pools";
import { address, followed, go, place, useHere } from "./router";
import { SessionPage } from "./session";
import { Sessions } from "./sessions";
import { SignIn } from "./sign-in";
import { useNow, useValue } from "./store";
import { Dialog, Empty, Head, Icon, Logo } from "./ui";

/** A token that comes in the fragment, which no server sees, is taken out of the address at once. */
function takeToken(): void {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  if (given) signIn(given);
}

takeToken();
addEventListener("hashchange", takeToken);

const PAGES: { page: string; name: string; icon: "overview" | "pools" | "sessions"; key: string }[] = [
  { page: "", name: "Overview", icon: "overview", key: "o" },
  { page: "pools", name: "Pools", icon: "pools", key: "p" },
  { page: "sessions", name: "Sessions", icon: "sessions", key: "s" },
];

function Page({ page }: { page: string }) {
  if (page === "" || page === "overview") return <Overview />;
  if (page === "pools") return <Pools />;
  if (page === "pools/new") return <PoolForm key="new" isNew />;
  if (page === "pools/edit") return <PoolForm key="edit" isNew={false} />;
  if (page === "sessions") return <Sessions />;
  if (page.startsWith("session/")) return <SessionPage tab={page.slice("session/".length)} />;
  return (
    <>
      <Head title="No such page" />
      <div class="card">
        <Empty title="Nothing is here">
          <p>The address names no page of the console.</p>
          <a class="button" href="/console/">
            To the overview
          </a>
        </Empty>
      </div>
    </>
  );
}

const THEMES = ["system", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];

function ThemeSwitch() {
  const [theme, set] = useState<Theme>(() => (document.documentElement.dataset["theme"] as Theme | undefined) ?? "system");
  const choose = (chosen: Theme) => {
    set(chosen);
    if (chosen === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = chosen;
    try {
      localStorage.setItem("sandpool.theme", chosen);
    } catch {
      // It holds for this page.
    }
  };
  return (
    <select aria-label="Look" value={theme} onChange={(event) => choose(event.currentTarget.value as Theme)}>
      <option value="system">System look</option>
      <option value="light">Light</option>
      <option value="dark">Dark</option>
    </select>
  );
}

function Who({ onKeys }: { onKeys: () => void }) {
  const own = useValue(token);
  const said = own ? claims(own) : null;
  const now = useNow(30_000);
  return (
    <div class="who">
      <div class="name">{said ? said.subject || "Somebody" : "An API key"}</div>
      {said && (
        <div class="muted">
          {said.role || "no role"}, tenant {said.tenant}
          {said.ends !== null && <>; good for {span(60 * Math.floor(Math.max(0, said.ends - now) / 60_000))}</>}
        </div>
      )}
      <ThemeSwitch />
      <div class="row">
        <button type="button" class="small" onClick={() => signOut()}>
          Sign out
        </button>
        <button type="button" class="small quiet" onClick={onKeys} aria-label="Keyboard shortcuts" title="Keyboard shortcuts (?)">
          <Icon name="keyboard" />
        </button>
      </div>
    </div>
  );
}

function Banner() {
  const { awaySince, lastAnswer, why } = useValue(link);
  const now = useNow(1000);
  if (awaySince === null) return null;
  return (
    <div class="banner" role="alert">
      <span class="spin" aria-hidden="true" />
      <span>
        The server does not answer. {why} {lastAnswer ? `Its last answer was at ${clock(lastAnswer)}: what is shown is of then.` : "Nothing was heard of it yet."}{" "}
        <span aria-hidden="true">Tried again and again for {span(Math.floor((now - awaySince) / 1000))}.</span>
      </span>
    </div>
  );
}

function Keys({ onClose }: { onClose: () => void }) {
  const rows: [string[], string][] = [
    [["?"], "This list"],
    [["g", "o"], "Overview"],
    [["g", "p"], "Pools"],
    [["g", "s"], "Sessions"],
    [["/"], "Find sessions"],
    [["n"], "New: a session, or a pool on the page of pools"],
    [["1"], "to 6: the pages of a session"],
    [["Shift", "Enter"], "In a cell: run it, and go to the next"],
    [["Ctrl", "Enter"], "In a cell: run it"],
    [["Esc"], "In a cell: leave it; on the playground: interrupt what runs"],
    [["Ctrl", "Shift", "Esc"], "In a terminal: leave it with the keyboard"],
  ];
  return (
    <Dialog title="Keyboard" onClose={onClose}>
      <div class="keys">
        {rows.map(([keys, text]) => (
          <>
            <span>
              {keys.map((key, at) => (
                <>
                  {at > 0 && " "}
                  <kbd>{key}</kbd>
                </>
              ))}
            </span>
            <span>{text}</span>
          </>
        ))}
      </div>
      <div class="actions">
        <button type="button" onClick={onClose} autofocus>
          Close
        </button>
      </div>
    </Dialog>
  );
}

/** A key is a shortcut when nobody is writing. */
function isWriting(event: KeyboardEvent): boolean {
  const target = event.target as HTMLElement;
  return target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName) || Boolean(target.closest("dialog"));
}

function useShortcuts(showKeys: () => void): void {
  useEffect(() => {
    let isGoing = false;
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isWriting(event)) return;
      const key = event.key;
      if (isGoing) {
        isGoing = false;
        const to = PAGES.find((one) => one.key === key);
        if (to) return go(address(to.page));
      }
      if (key === "g") {
        isGoing = true;
        setTimeout(() => (isGoing = false), 1500);
      } else if (key === "?") showKeys();
      else if (key === "/") {
        event.preventDefault();
        if (place.get().page !== "sessions") go(address("sessions"));
        requestAnimationFrame(() => document.getElementById("search")?.focus());
      } else if (key === "n") {
        event.preventDefault();
        document.querySelector<HTMLElement>("main .head .primary")?.click();
      } else if (/^[1-6]$/.test(key)) document.querySelectorAll<HTMLElement>("main .tabs a")[Number(key) - 1]?.click();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [showKeys]);
}

/** A page that fails says so, and the others go on. */
class Guard extends Component<{ page: string; children: ComponentChildren }, { failed: string | null; page: string }> {
  override state = { failed: null as string | null, page: this.props.page };

  static override getDerivedStateFromProps(props: { page: string }, state: { page: string }) {
    return state.page === props.page ? null : { failed: null, page: props.page };
  }

  override componentDidCatch(error: Error) {
    console.error(error);
    this.setState({ failed: error.message });
  }

  override render() {
    if (this.state.failed === null) return this.props.children;
    return (
      <p class="note bad" role="alert">
        This page has failed: {this.state.failed}. Load it again; if it fails again, please report it.
      </p>
    );
  }
}

function App() {
  const own = useValue(token);
  const { page } = useHere();
  const { awaySince } = useValue(link);
  const [hasKeys, setKeys] = useState(false);
  const [showKeys] = useState(() => () => setKeys(true));
  useShortcuts(showKeys);
  const top = page.startsWith("session/") ? "session" : page;
  useEffect(() => {
    // A new page begins at its top, where a reader finds its title.
    document.querySelector<HTMLElement>("main h1")?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, [top]);
  if (!own) return <SignIn />;
  return (
    <div class={`shell ${awaySince === null ? "" : "is-away"}`} onClick={followed}>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.querySelector<HTMLElement>("main")?.focus(); }}>
        To the content
      </a>
      <header class="side">
        <a class="brand" href="/console/" aria-label="Sandpool, overview">
          <Logo /> Sandpool
        </a>
        <nav aria-label="Pages">
          {PAGES.map((one) => {
            const isHere = one.page === page || (one.page !== "" && page.startsWith(one.page)) || (one.page === "sessions" && top === "session");
            return (
              <a key={one.page} href={address(one.page)} aria-current={isHere ? "page" : undefined}>
                <Icon name={one.icon} /> {one.name}
              </a>
            );
          })}
        </nav>
        <div class="grow" />
        <Who onKeys={showKeys} />
      </header>
      <div>
        <Banner />
        <main id="main" tabIndex={-1}>
          <Guard page={page}>
            <Page page={page} />
          </Guard>
        </main>
      </div>
      {hasKeys && <Keys onClose={() => setKeys(false)} />}
    </div>
  );
}

render(<App />, document.getElementById("app")!);
