// Terminals of a session: they go on without us, and show what they have when we come back.

import { useEffect, useRef, useState } from "preact/hooks";
import { type Place, ask, get, sessionPath } from "./api";
import { usePoll } from "./poll";
import { change, useHere } from "./router";
import type { State } from "./terminal";
import { Badge, Empty, Icon, Wrong } from "./ui";

/** As the server tells it: /terminals. */
interface Known {
  name: string;
  execution: string;
  state: string;
  attached: number;
}

const nameable = /^[A-Za-z0-9._-]{1,64}$/;

export function Terminals({ place }: { place: Place }) {
  const open = useHere().query.get("terminal");
  const polled = usePoll(
    `terminals ${JSON.stringify(place)}`,
    async (signal) => {
      const got = await get<Known[] | { value: Known[] }>(sessionPath(place, "/terminals"), signal);
      return Array.isArray(got) ? got : got.value;
    },
    3000,
  );
  const known = polled.data ?? [];
  const living = known.filter((one) => one.state !== "ended");
  const names = [...new Set([...living.map((one) => one.name), ...(open ? [open] : [])])];
  const [error, setError] = useState<Error | null>(null);

  const add = () => {
    let number = 1;
    while (names.includes(`term-${number}`)) number += 1;
    change({ terminal: `term-${number}` });
  };
  const end = async (name: string) => {
    try {
      await ask(sessionPath(place, `/terminals/${encodeURIComponent(name)}`), { method: "DELETE" });
    } catch (why) {
      setError(why as Error);
    }
    change({ terminal: names.find((one) => one !== name) ?? null });
    polled.again();
  };

  // One that goes on is shown without being asked for.
  useEffect(() => {
    if (!open && living[0]) change({ terminal: living[0].name });
  }, [open, living[0]?.name]);

  if (!polled.data) return polled.error ? <Wrong error={polled.error} /> : <p class="muted">Loading …</p>;
  return (
    <div>
      <Wrong error={error ?? polled.error} />
      <div class="term-tabs">
        <div role="tablist" aria-label="Terminals" class="actions">
          {names.map((name) => (
            <button key={name} type="button" role="tab" class="small" aria-selected={name === open} onClick={() => change({ terminal: name })}>
              {name}
            </button>
          ))}
        </div>
        <button type="button" class="small" onClick={add}>
          <Icon name="plus" /> Terminal
        </button>
        {open && (
          <button type="button" class="small" onClick={() => end(open)}>
            <Icon name="trash" /> End {open}
          </button>
        )}
      </div>
      {open && nameable.test(open) ? (
        <One key={open} place={place} name={open} />
      ) : (
        <div class="card">
          <Empty title="No terminal yet">
            <p>A terminal is a shell in the session. It goes on when you leave this page, and shows what it has when you come back.</p>
            <button type="button" class="primary" onClick={add}>
              Open a terminal
            </button>
          </Empty>
        </div>
      )}
    </div>
  );
}

const TONES: Record<State["kind"], string> = { connecting: "warn", attached: "good", away: "bad", ended: "", refused: "bad" };

function One({ place, name }: { place: Place; name: string }) {
  const box = useRef<HTMLDivElement>(null);
  const [state, setState] = useState<State>({ kind: "connecting", text: "connecting" });
  useEffect(() => {
    let close: (() => void) | null = null;
    let isGone = false;
    // What draws a terminal is large, and loaded when there is one.
    void import("./terminal").then(
      ({ attach }) => {
        if (!isGone && box.current) close = attach(box.current, place, name, setState);
      },
      () => setState({ kind: "refused", text: "The terminal could not be loaded. Load the page again." }),
    );
    return () => {
      isGone = true;
      close?.();
    };
  }, []);
  return (
    <div role="tabpanel" aria-label={`Terminal ${name}`}>
      <div class="screen" ref={box} />
      <p class="toolbar" role="status" style={{ marginTop: "10px" }}>
        <Badge tone={TONES[state.kind]}>{state.kind}</Badge>
        <span class="muted">{state.text}</span>
      </p>
    </div>
  );
}
