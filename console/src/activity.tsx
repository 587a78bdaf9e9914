// What a session uses, over the last minutes.

import { useEffect, useRef, useState } from "preact/hooks";
import { type Place, type Schema, ask, lostIt, sessionPath } from "./api";
import { bytes, clock, span } from "./format";
import { events } from "./sse";
import type { Detail } from "./session";
import { useValue } from "./store";
import { returns } from "./api";
import { Wrong } from "./ui";

/** As the server tells it: /samples. */
interface Sample {
  sequence: number;
  time: string;
  cpuSeconds: number;
  throttledSeconds: number | null;
  memoryBytes: number;
  memoryPeakBytes: number;
  memoryPressure: number | null;
  oomKills: number;
  readBytes: number | null;
  writtenBytes: number | null;
  processes: number;
  egressSentBytes: number | null;
  egressReceivedBytes: number | null;
}

const KEPT = 300;

function useSamples(place: Place): { samples: Sample[]; error: Error | null } {
  const [samples, setSamples] = useState<Sample[]>([]);
  const [error, setError] = useState<Error | null>(null);
  const last = useRef<string | null>(null);
  const back = useValue(returns);
  useEffect(() => {
    const stop = new AbortController();
    const listen = async () => {
      const headers = { Accept: "text/event-stream", ...(last.current ? { "Last-Event-ID": last.current } : {}) };
      const answer = await ask(sessionPath(place, "/samples"), { headers, signal: stop.signal });
      setError(null);
      for await (const event of events(answer.body!)) {
        if (event.id) last.current = event.id;
        if (event.event !== "sample") continue;
        const sample = JSON.parse(event.data) as Sample;
        setSamples((all) => (all.length > 0 && all.at(-1)!.sequence >= sample.sequence ? all : [...all, sample].slice(-KEPT)));
      }
      if (!stop.signal.aborted) lostIt("The way to it was cut.");
    };
    listen().catch((why: Error) => {
      if (!stop.signal.aborted) setError(why);
    });
    return () => stop.abort();
  }, [back]);
  return { samples, error };
}

interface Point {
  at: number;
  value: number;
}

/** From totals, how much of it in a second. */
function rates(samples: Sample[], of: (sample: Sample) => number | null): Point[] {
  const points: Point[] = [];
  for (let at = 1; at < samples.length; at += 1) {
    const [before, now] = [samples[at - 1]!, samples[at]!];
    const [from, to] = [of(before), of(now)];
    const seconds = (Date.parse(now.time) - Date.parse(before.time)) / 1000;
    if (from !== null && to !== null && seconds > 0) points.push({ at: Date.parse(now.time), value: Math.max(0, (to - from) / seconds) });
  }
  return points;
}

function values(samples: Sample[], of: (sample: Sample) => number | null): Point[] {
  return samples.flatMap((sample) => {
    const value = of(sample);
    return value === null ? [] : [{ at: Date.parse(sample.time), value }];
  });
}

function Chart({ title, points, say, limit }: { title: string; points: Point[]; say: (value: number) => string; limit?: number }) {
  const last = points.at(-1);
  const most = points.reduce((top, point) => Math.max(top, point.value), 0);
  const top = Math.max(most * 1.15, limit === undefined ? 0 : Math.min(limit, most * 4), 1e-9);
  const [from, to] = [points[0]?.at ?? 0, last?.at ?? 1];
  const place = (point: Point) => `${(((point.at - from) / Math.max(1, to - from)) * 600).toFixed(1)},${(120 - (point.value / top) * 116).toFixed(1)}`;
  const line = points.map(place).join(" ");
  const text = last
    ? `${title}: ${say(last.value)} now, ${say(most)} at most in the last ${span((to - from) / 1000)}${limit === undefined ? "" : `, of ${say(limit)}`}`
    : `${title}: no samples yet`;
  return (
    <section class="card" aria-label={title}>
      <div class="card-head">
        <h2>{title}</h2>
        <span class="grow" />
        <span class="bold">{last ? say(last.value) : "–"}</span>
        {limit !== undefined && <span class="muted">of {say(limit)}</span>}
      </div>
      <svg class="chart" viewBox="0 0 600 120" preserveAspectRatio="none" role="img" aria-label={text}>
        {[30, 60, 90, 120].map((y) => (
          <line key={y} class="rule" x1="0" x2="600" y1={y} y2={y} />
        ))}
        {points.length > 1 && <polygon class="area" points={`0,120 ${line} 600,120`} />}
        {points.length > 1 && <polyline class="line" points={line} />}
      </svg>
      <div class="chart-labels" aria-hidden="true">
        <span>{points.length > 1 ? clock(from) : ""}</span>
        <span>{points.length > 1 ? `at most ${say(most)}` : "waiting for samples"}</span>
        <span>{points.length > 1 ? clock(to) : ""}</span>
      </div>
    </section>
  );
}

export function Activity({ place, session, pool, at }: { place: Place; session: Detail; pool: Schema<"Pool">; at: number | null }) {
  const { samples, error } = useSamples(place);
  const { usage } = session;
  const last = samples.at(-1);
  const percent = (value: number) => `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %`;
  const aSecond = (value: number) => `${bytes(value)}/s`;
  const hasEgress = last?.egressSentBytes !== null && last?.egressSentBytes !== undefined;
  return (
    <div class="stack stale-able">
      <Wrong error={error} />
      <div class="grid two">
        <Chart title="Processor" points={rates(samples, (one) => one.cpuSeconds)} say={percent} limit={pool.limits.cpuMilli / 1000} />
        <Chart title="Memory" points={values(samples, (one) => one.memoryBytes)} say={bytes} limit={pool.limits.memoryBytes} />
        {hasEgress && <Chart title="Sent" points={rates(samples, (one) => one.egressSentBytes)} say={aSecond} />}
        {hasEgress && <Chart title="Received" points={rates(samples, (one) => one.egressReceivedBytes)} say={aSecond} />}
      </div>
      <section class="card" aria-labelledby="used">
        <h2 id="used">In all</h2>
        <dl class="facts">
          {usage && <><dt>Processor time</dt><dd>{span(usage.cpuSeconds)}</dd></>}
          {last && <><dt>Held back</dt><dd>{last.throttledSeconds === null ? "this kernel does not tell" : span(last.throttledSeconds)}</dd></>}
          {usage && <><dt>Memory</dt><dd>{bytes(usage.memoryBytes)} now, {bytes(usage.memoryPeakBytes)} at most so far, of {bytes(pool.limits.memoryBytes)}</dd></>}
          {last && <><dt>Stalled for memory</dt><dd>{last.memoryPressure === null ? "this kernel does not tell" : `${percent(last.memoryPressure)} of the last ten seconds`}</dd></>}
          {usage && (
            <>
              <dt>Killed for memory</dt><dd>{usage.oomKills} processes</dd>
              <dt>Files</dt><dd>{bytes(usage.storedBytes)}</dd>
              <dt>Processes</dt><dd>{usage.pids} of {pool.limits.pids}</dd>
              <dt>Egress</dt><dd>{bytes(usage.sentBytes)} sent, {bytes(usage.receivedBytes)} received</dd>
            </>
          )}
          {session.suspended && <><dt>On disk</dt><dd>{bytes(session.suspended.bytes)}, kept: {session.suspended.keeps}</dd></>}
          <dt>Wall</dt><dd>{session.wall.join(", ")}</dd>
          {session.weaker.length > 0 && <><dt>Weaker here</dt><dd>{session.weaker.join("; ")}</dd></>}
          <dt>Sandbox</dt><dd class="mono">{session.sandbox}</dd>
          <dt>Made by</dt><dd>{session.owner}, at {new Date(session.createdAt).toLocaleString()}</dd>
        </dl>
        {at !== null && <p class="muted">As of {clock(at)}.</p>}
      </section>
    </div>
  );
}
