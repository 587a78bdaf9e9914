// One terminal: xterm.js over a WebSocket that is made again when it breaks, from where the output had been seen.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import { type Place, link, returns, sessionPath, token } from "./api";
import { looks } from "./terminal-style";

export interface State {
  kind: "connecting" | "attached" | "away" | "ended" | "refused";
  text: string;
}

const THEME = {
  background: "#0f1216", foreground: "#d8dce3", cursor: "#8fb0ff", selectionBackground: "#3a4a6e",
  black: "#3b4048", red: "#f07a72", green: "#6ecf8f", yellow: "#e5bd6b", blue: "#7ea4ff", magenta: "#cf93e3", cyan: "#62c8d4", white: "#d8dce3",
  brightBlack: "#7d8591", brightRed: "#ff9c95", brightGreen: "#8ee6aa", brightYellow: "#f5d38a", brightBlue: "#a3bfff", brightMagenta: "#e2b3f2", brightCyan: "#8adfe8", brightWhite: "#ffffff",
};

/** Shows the terminal in `box`. The answer lets go of it; what runs in it goes on. */
export function attach(box: HTMLElement, place: Place, name: string, tell: (state: State) => void): () => void {
  looks();
  const terminal = new Terminal({
    fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace',
    fontSize: 13,
    lineHeight: 1.15,
    cursorBlink: false,
    scrollback: 10_000,
    screenReaderMode: true,
    minimumContrastRatio: 4.5,
    theme: THEME,
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(box);
  fit.fit();
  // Tab belongs to the shell: this is the keyboard's way out.
  terminal.attachCustomKeyEventHandler((event) => {
    if (!(event.key === "Escape" && event.ctrlKey && event.shiftKey)) return true;
    terminal.blur();
    document.querySelector<HTMLElement>('[role="tab"][aria-selected="true"]')?.focus();
    return false;
  });

  const encoder = new TextEncoder();
  let socket: WebSocket | null = null;
  let seen = 0;
  let isOver = false;
  let isClosed = false;
  let wait = 500;
  let timer = 0;
  /** What runs on it. A later terminal of its name is another one. */
  let execution: string | null = null;
  let failures = 0;

  const say = (message: object) => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
  const size = () => ({ rows: terminal.rows, columns: terminal.cols });

  const connect = () => {
    const query = { rows: String(terminal.rows), columns: String(terminal.cols), after: String(seen), existing: "true", ...(execution ? { execution } : {}) };
    const address = new URL(sessionPath(place, `/terminals/${encodeURIComponent(name)}`, query), location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    // A browser sends no Authorization here; what stands in the offer is not said again by anybody.
    const own = new WebSocket(address, ["sandpool.terminal.v1", `sandpool.bearer.${token.get() ?? ""}`]);
    own.binaryType = "arraybuffer";
    socket = own;
    let wasAttached = false;
    own.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
      if (typeof data !== "string") {
        seen += data.byteLength;
        terminal.write(new Uint8Array(data));
        return;
      }
      const message = JSON.parse(data) as { type: string; execution?: string; offset?: number; missed?: number; bytes?: number; outcome?: string; exitCode?: number | null };
      if (message.type === "attached") {
        wasAttached = true;
        [wait, failures] = [500, 0];
        execution = message.execution ?? null;
        seen = message.offset ?? seen;
        if (message.missed) terminal.write(`\r\n\x1b[2m${message.missed} bytes before this are not kept\x1b[0m\r\n`);
        say({ type: "resize", ...size() });
        tell({ kind: "attached", text: "It goes on when you leave this page. Ctrl+Shift+Esc leaves it with the keyboard." });
        terminal.focus();
      } else if (message.type === "missed") {
        seen += message.bytes ?? 0;
        terminal.write(`\r\n\x1b[2m${message.bytes ?? 0} bytes came too fast to be shown\x1b[0m\r\n`);
      } else if (message.type === "ended") {
        isOver = true;
        const code = message.exitCode === null || message.exitCode === undefined ? "" : ` (${message.exitCode})`;
        tell({ kind: "ended", text: `Its program has ended: ${message.outcome ?? ""}${code}.` });
      }
    };
    own.onclose = ({ code, reason }) => {
      if (isClosed || isOver) return;
      if (!wasAttached && link.get().awaySince === null) {
        failures += 1;
        if (execution) {
          // What was here has ended meanwhile: what has its name now is shown from its beginning.
          [execution, seen] = [null, 0];
          terminal.reset();
        } else if (failures > 3 || code === 1008) {
          // A refused upgrade tells a browser nothing; asked in another way, the server does.
          void refusal(place).then((why) => tell({ kind: "refused", text: why ?? (reason || "The server refuses it: there may be too many terminals in this session.") }));
          return;
        }
      }
      tell({ kind: "away", text: "The connection is gone; it is made again." });
      timer = window.setTimeout(connect, wait);
      wait = Math.min(wait * 1.7, 8000);
    };
  };

  terminal.onData((text) => socket?.readyState === WebSocket.OPEN && socket.send(encoder.encode(text)));
  terminal.onBinary((text) => socket?.readyState === WebSocket.OPEN && socket.send(Uint8Array.from(text, (sign) => sign.charCodeAt(0))));
  terminal.onResize(() => say({ type: "resize", ...size() }));
  const resized = new ResizeObserver(() => fit.fit());
  resized.observe(box);
  const unfollow = returns.follow(() => {
    if (!socket || socket.readyState === WebSocket.CLOSED) {
      clearTimeout(timer);
      connect();
    }
  });
  connect();

  return () => {
    isClosed = true;
    clearTimeout(timer);
    unfollow();
    resized.disconnect();
    socket?.close();
    terminal.dispose();
  };
}

async function refusal(place: Place): Promise<string | null> {
  const answer = await fetch(sessionPath(place, "/terminals"), { headers: { Authorization: `Bearer ${token.get() ?? ""}` } }).catch(() => null);
  if (!answer || answer.ok) return null;
  const problem = (await answer.json().catch(() => null)) as { message?: string } | null;
  return problem?.message ?? null;
}
