// Cells of code in a session, as in a notebook. What was written is kept for this tab; what ran, by the server.

import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Place } from "./api";
import { Foot, Outputs } from "./outputs";
import { type Run, type Work, begun, follow, stop } from "./run";
import { Badge, Icon } from "./ui";

interface Cell {
  key: number;
  source: string;
  /** The execution that it started last. */
  id: string | null;
}

export type Language = "python" | "node" | "shell";

const HINTS: Record<Language, string> = {
  python: "print('hello'), or a figure: import matplotlib.pyplot as plt; plt.plot([1, 4, 9]); plt.show()",
  node: "console.log(process.version); [1, 2, 3].map((n) => n * n)",
  shell: "uname -a; ls -la /mnt/data",
};

const keyOf = (place: Place) => `sandpool.cells/${place.tenant ?? ""}/${place.pool}/${place.session}`;

function restored(place: Place): Cell[] {
  try {
    const kept = JSON.parse(sessionStorage.getItem(keyOf(place)) ?? "[]") as { source: string; id: string | null }[];
    const cells = kept.map(({ source, id }, key) => ({ key, source, id }));
    if (cells.length > 0) return cells;
  } catch {
    // It begins anew.
  }
  return [{ key: 0, source: "", id: null }];
}

export function Playground({ place, language }: { place: Place; language: Language }) {
  const [cells, setCells] = useState(() => restored(place));
  const [runs, setRuns] = useState<ReadonlyMap<number, Run>>(new Map());
  const stops = useRef(new Map<number, AbortController>());
  const inputs = useRef(new Map<number, HTMLTextAreaElement>());
  const next = useRef(cells.reduce((most, cell) => Math.max(most, cell.key), 0) + 1);

  useEffect(() => {
    try {
      sessionStorage.setItem(keyOf(place), JSON.stringify(cells.map(({ source, id }) => ({ source, id }))));
    } catch {
      // Too much to keep; it is still here.
    }
  }, [cells]);

  const attend = useCallback((key: number, id: string, work: Work | null) => {
    stops.current.get(key)?.abort();
    const controller = new AbortController();
    stops.current.set(key, controller);
    const draw = (run: Run) => !controller.signal.aborted && setRuns((before) => new Map(before).set(key, run));
    draw(begun(id));
    void follow(place, id, work, draw, controller.signal);
  }, []);

  useEffect(() => {
    for (const cell of cells) if (cell.id) attend(cell.key, cell.id, null);
    return () => stops.current.forEach((one) => one.abort());
  }, []);

  const isRunning = (key: number) => runs.get(key) !== undefined && runs.get(key)!.state !== "ended";
  const running = cells.filter((cell) => isRunning(cell.key));

  const interrupt = () => {
    for (const cell of running) if (cell.id) stop(place, cell.id, "interrupt").catch(() => undefined);
  };

  useEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      if (event.key === "Escape" && (event.target as HTMLElement).tagName !== "TEXTAREA" && !document.querySelector("dialog[open]")) interrupt();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  });

  const execute = (cell: Cell, thenNext: boolean) => {
    if (cell.source.trim() && !isRunning(cell.key)) {
      const id = crypto.randomUUID ? crypto.randomUUID() : uuid();
      setCells((all) => all.map((one) => (one.key === cell.key ? { ...one, id } : one)));
      attend(cell.key, id, language === "shell" ? { command: cell.source } : { code: cell.source });
    }
    if (!thenNext) return;
    const at = cells.findIndex((one) => one.key === cell.key);
    const following = cells[at + 1];
    if (following) return void inputs.current.get(following.key)?.focus();
    add(at + 1);
  };

  const add = (at: number) => {
    const key = next.current++;
    setCells((all) => [...all.slice(0, at), { key, source: "", id: null }, ...all.slice(at)]);
    requestAnimationFrame(() => requestAnimationFrame(() => inputs.current.get(key)?.focus()));
  };

  const remove = (key: number) => {
    stops.current.get(key)?.abort();
    setCells((all) => (all.length === 1 ? [{ key: next.current++, source: "", id: null }] : all.filter((one) => one.key !== key)));
  };

  return (
    <div>
      <div class="toolbar">
        <button type="button" onClick={() => add(cells.length)}>
          <Icon name="plus" /> Cell
        </button>
        <button type="button" onClick={interrupt} disabled={running.length === 0}>
          <Icon name="stop" /> Interrupt
        </button>
        <span class="muted" role="status">
          {running.length > 0 ? `${running.length === 1 ? "One cell runs" : `${running.length} cells run, one after another`}` : "Shift+Enter runs a cell"}
        </span>
      </div>
      <div class="cells">
        {cells.map((cell, at) => {
          const run = runs.get(cell.key);
          const isBusy = isRunning(cell.key);
          return (
            <section key={cell.key} class="cell" aria-label={`Cell ${at + 1}`}>
              <div class="source">
                <span class="mark" aria-hidden="true">
                  {isBusy ? <span class="spin" /> : `[${at + 1}]`}
                </span>
                <Editor
                  label={`Code of cell ${at + 1}`}
                  hint={at === 0 ? HINTS[language] : ""}
                  value={cell.source}
                  keep={(input) => (input ? inputs.current.set(cell.key, input) : inputs.current.delete(cell.key))}
                  onChange={(source) => setCells((all) => all.map((one) => (one.key === cell.key ? { ...one, source } : one)))}
                  onRun={(thenNext) => execute(cell, thenNext)}
                />
                <div class="tools">
                  <button type="button" class="small quiet" disabled={isBusy || !cell.source.trim()} onClick={() => execute(cell, false)} aria-label={`Run cell ${at + 1}`} title="Run (Ctrl+Enter)">
                    <Icon name="play" />
                  </button>
                  <button type="button" class="small quiet" onClick={() => remove(cell.key)} aria-label={`Remove cell ${at + 1}`} title="Remove the cell">
                    <Icon name="trash" />
                  </button>
                </div>
              </div>
              {run && <Outputs run={run} label={`Output of cell ${at + 1}`} />}
              {run && <Foot run={run} />}
              {run?.state === "queued" && (
                <div class="foot">
                  <Badge>waits for its turn</Badge>
                </div>
              )}
            </section>
          );
        })}
      </div>
    </div>
  );
}

/** Outside of secure contexts, where browsers have no randomUUID. */
function uuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const text = [...bytes].map((one) => one.toString(16).padStart(2, "0")).join("");
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join("-");
}

interface EditorProps {
  label: string;
  hint: string;
  value: string;
  keep: (input: HTMLTextAreaElement | null) => void;
  onChange: (value: string) => void;
  onRun: (thenNext: boolean) => void;
}

function Editor({ label, hint, value, keep, onChange, onRun }: EditorProps) {
  const box = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    keep(box.current);
    return () => keep(null);
  }, []);
  // As high as what is in it.
  useLayoutEffect(() => {
    const own = box.current!;
    own.style.height = "auto";
    own.style.height = `${own.scrollHeight + 2}px`;
  }, [value]);
  const pressed = (event: KeyboardEvent) => {
    const own = box.current!;
    if (event.key === "Enter" && (event.shiftKey || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      onRun(event.shiftKey);
    } else if (event.key === "Tab" && !event.shiftKey && !event.ctrlKey) {
      event.preventDefault();
      insert(own, "    ");
    } else if (event.key === "Enter") {
      const line = own.value.slice(0, own.selectionStart).split("\n").at(-1) ?? "";
      const indent = (/^[ \t]*/.exec(line)?.[0] ?? "") + (/[:{([]\s*$/.test(line) ? "    " : "");
      if (indent) {
        event.preventDefault();
        insert(own, `\n${indent}`);
      }
    } else if (event.key === "Escape") {
      // The way out for the keyboard: Tab is for the code.
      event.stopPropagation();
      own.closest<HTMLElement>(".cell")?.querySelector<HTMLElement>(".tools button:not(:disabled)")?.focus();
    }
  };
  return (
    <textarea ref={box} aria-label={label} placeholder={hint} rows={1} spellcheck={false} autocapitalize="off" autocomplete="off" value={value}
      onInput={(event) => onChange(event.currentTarget.value)} onKeyDown={pressed} />
  );
}

/** Writes at the cursor, so that it can be undone. */
function insert(box: HTMLTextAreaElement, text: string): void {
  if (!document.execCommand("insertText", false, text)) {
    box.setRangeText(text, box.selectionStart, box.selectionEnd, "end");
    box.dispatchEvent(new InputEvent("input", { bubbles: true }));
  }
}
