// What ran in a session, newest first, with its output.

import { useEffect, useState } from "preact/hooks";
import { type Place, type Schema, get, sessionPath } from "./api";
import { clock, span } from "./format";
import { Foot, Outcome, Outputs } from "./outputs";
import { usePoll } from "./poll";
import { change, useHere } from "./router";
import { type Run, follow, stop } from "./run";
import { Badge, Empty, Icon, Stale, Wrong } from "./ui";

type Outline = Schema<"ExecutionOutline">;

export function Executions({ place }: { place: Place }) {
  const open = useHere().query.get("execution");
  const polled = usePoll(`executions ${JSON.stringify(place)}`, async (signal) => (await get<Schema<"Executions">>(sessionPath(place, "/executions"), signal)).value, 2500);
  const [error, setError] = useState<Error | null>(null);
  const all = polled.data ? [...polled.data].reverse() : null;
  if (!all) return polled.error ? <Wrong error={polled.error} /> : <p class="muted">Loading …</p>;
  if (all.length === 0) {
    return (
      <div class="card">
        <Empty title="Nothing has run yet">
          <p>The last 64 executions of a session are kept, with their output.</p>
        </Empty>
      </div>
    );
  }
  return (
    <>
      <Wrong error={error ?? polled.error} />
      {polled.isStale && (
        <div class="toolbar">
          <Stale of={polled} />
        </div>
      )}
      <div class="table-box stale-able">
        <table>
          <thead>
            <tr>
              <th scope="col">Execution</th>
              <th scope="col">State</th>
              <th scope="col">Began</th>
              <th scope="col" class="number">Waited</th>
              <th scope="col" class="number">Took</th>
              <th scope="col"><span class="visually-hidden">Actions</span></th>
            </tr>
          </thead>
          <tbody>
            {all.map((one) => (
              <Row key={one.id} place={place} one={one} isOpen={open === one.id} onError={setError} again={polled.again} />
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function Row({ place, one, isOpen, onError, again }: { place: Place; one: Outline; isOpen: boolean; onError: (error: Error) => void; again: () => void }) {
  return (
    <>
      <tr>
        <th scope="row">
          <button type="button" class="link mono" aria-expanded={isOpen} onClick={() => change({ execution: isOpen ? null : one.id })}>
            {one.id.slice(0, 8)}
          </button>
        </th>
        <td>{one.outcome ? <Outcome end={{ outcome: one.outcome, exitCode: one.exitCode ?? null }} /> : <Badge tone="accent">{one.state}</Badge>}</td>
        <td class="nowrap">{clock(one.createdAt)}</td>
        <td class="number">{span(one.queuedMilliseconds === null ? null : (one.queuedMilliseconds ?? 0) / 1000)}</td>
        <td class="number">{span(one.durationMilliseconds === null ? null : (one.durationMilliseconds ?? 0) / 1000)}</td>
        <td class="right">
          {one.state !== "ended" && (
            <button type="button" class="small" aria-label={`Stop ${one.id.slice(0, 8)}`} onClick={() => stop(place, one.id, "interrupt").then(again, onError)}>
              <Icon name="stop" /> Stop
            </button>
          )}
        </td>
      </tr>
      {isOpen && (
        <tr>
          <td colSpan={6}>
            <Output place={place} id={one.id} />
          </td>
        </tr>
      )}
    </>
  );
}

/** Its output: all that is kept, and what comes. */
function Output({ place, id }: { place: Place; id: string }) {
  const [run, setRun] = useState<Run | null>(null);
  useEffect(() => {
    const stopped = new AbortController();
    void follow(place, id, null, setRun, stopped.signal);
    return () => stopped.abort();
  }, [id]);
  if (!run) return <p class="muted">Loading …</p>;
  return (
    <div class="stack" style={{ gap: "10px" }}>
      {run.pieces.length === 0 && run.state === "ended" && <p class="muted">It said nothing.</p>}
      <Outputs run={run} label={`Output of ${id.slice(0, 8)}`} />
      <Foot run={run} />
    </div>
  );
}
