// The sessions of all pools: one poll a pool, and only the rows that are seen are drawn.

import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Place, type Schema, ask, sessionPath, sessionsOf } from "./api";
import { bytes, count, since, span } from "./format";
import { listPools } from "./pools";
import { usePoll } from "./poll";
import { address, change, go, useHere } from "./router";
import { useNow } from "./store";
import { Badge, Dialog, Empty, Field, Head, Icon, Stale, Wrong } from "./ui";

type Session = Schema<"ListedSession">;

interface Row extends Session {
  /** In whose room it is, if that must be said; the sessions of a shared pool are in everybody's. */
  room: string | null;
  /** Share of a processor since the poll before; null until there were two. */
  cpu: number | null;
}

interface Looked {
  at: number;
  pools: string[];
  rows: Row[];
}

let before: { at: number; cpu: Map<string, number> } | null = null;

async function look(signal: AbortSignal): Promise<Looked> {
  const known = await listPools(signal);
  const pools = known.map((pool) => pool.name);
  const shared = new Set(known.filter((pool) => pool.sessionScope === "pool").map((pool) => pool.name));
  const lists = await Promise.all(pools.map((pool) => sessionsOf(pool, signal)));
  const at = performance.now();
  const last = before;
  const cpu = new Map<string, number>();
  const rows = lists.flat().map((session): Row => {
    const used = session.usage?.cpuSeconds;
    if (used !== undefined) cpu.set(session.sandbox, used);
    const then = last?.cpu.get(session.sandbox);
    const isKnown = used !== undefined && then !== undefined && last !== null && at - last.at > 500;
    const room = session.tenant === "default" || shared.has(session.pool) ? null : session.tenant;
    return { ...session, room, cpu: isKnown ? Math.max(0, (used - then) / ((at - last.at) / 1000)) : null };
  });
  before = { at, cpu };
  return { at, pools, rows };
}

const ORDERS: Record<string, (row: Row) => string | number> = {
  identifier: (row) => row.identifier,
  pool: (row) => row.pool,
  tenant: (row) => row.tenant,
  age: (row) => -Date.parse(row.createdAt),
  expiry: (row) => Date.parse(row.expiresAt),
  cpu: (row) => row.cpu ?? -1,
  memory: (row) => row.usage?.memoryBytes ?? -1,
  egress: (row) => (row.usage ? row.usage.sentBytes + row.usage.receivedBytes : -1),
};

export const sessionAddress = (at: Place, tab = "playground") => address(`session/${tab}`, { pool: at.pool, session: at.session, tenant: at.tenant });

const HEIGHT = 41;
const SPARE = 12;

export function Sessions() {
  const { query } = useHere();
  const polled = usePoll("sessions", look, 3000);
  const [isMaking, setMaking] = useState(false);
  const [pool, words, sort] = [query.get("pool") ?? "", query.get("q") ?? "", query.get("sort") ?? "-age"];
  const data = polled.data;
  const rows = useMemo(() => {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (row: Row) => {
      const text = `${row.identifier} ${row.pool} ${row.tenant} ${row.owner}`.toLowerCase();
      return (!pool || row.pool === pool) && wanted.every((word) => text.includes(word));
    };
    const by = ORDERS[sort.replace(/^-/, "")] ?? ORDERS["age"]!;
    const sign = sort.startsWith("-") ? -1 : 1;
    const compare = (one: Row, other: Row) => {
      const [a, b] = [by(one), by(other)];
      return a < b ? -sign : a > b ? sign : one.identifier < other.identifier ? -1 : 1;
    };
    return (data?.rows ?? []).filter(fits).sort(compare);
  }, [data, pool, words, sort]);

  return (
    <>
      <Head title="Sessions">
        <Badge>{data ? (rows.length === data.rows.length ? count(rows.length) : `${count(rows.length)} of ${count(data.rows.length)}`) : "…"}</Badge>
        <Stale of={polled} />
        <span class="grow" />
        <button type="button" class="primary" onClick={() => setMaking(true)} disabled={!data}>
          <Icon name="plus" /> New session
        </button>
      </Head>
      <div class="toolbar" role="search">
        <input type="search" id="search" aria-label="Find sessions" placeholder="Find by name, pool, tenant, caller" value={words} onInput={(event) => change({ q: event.currentTarget.value })} />
        <select aria-label="Pool" value={pool} onChange={(event) => change({ pool: event.currentTarget.value })}>
          <option value="">All pools</option>
          {[...new Set([...(data?.pools ?? []), ...(pool ? [pool] : [])])].map((name) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      </div>
      <Wrong error={polled.error} />
      {!data ? (
        !polled.error && <p class="muted">Loading …</p>
      ) : rows.length === 0 ? (
        <div class="card">
          <Empty title={data.rows.length === 0 ? "No sessions" : "None of them fits"}>
            <p>
              {data.rows.length === 0
                ? "A session begins with the first request that names it, or here."
                : `There are ${data.rows.length} sessions, and none has these words in its name, pool, tenant or caller.`}
            </p>
            {data.rows.length === 0 && (
              <button type="button" onClick={() => setMaking(true)}>
                New session
              </button>
            )}
          </Empty>
        </div>
      ) : (
        <Table rows={rows} sort={sort} />
      )}
      {isMaking && data && <NewSession pools={data.pools} start={pool} onClose={() => setMaking(false)} />}
    </>
  );
}

function Table({ rows, sort }: { rows: Row[]; sort: string }) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(720);
  const now = useNow(1000);
  useEffect(() => {
    const seen = new ResizeObserver(() => setHeight(box.current?.clientHeight ?? 720));
    if (box.current) seen.observe(box.current);
    return () => seen.disconnect();
  }, []);
  const first = Math.max(0, Math.min(Math.floor(top / HEIGHT) - SPARE, rows.length - 1));
  const last = Math.min(rows.length, Math.ceil((top + height) / HEIGHT) + SPARE);
  const head = (name: string, text: string, isNumber = false) => {
    const direction = sort.replace(/^-/, "") === name ? (sort.startsWith("-") ? "descending" : "ascending") : undefined;
    return (
      <th scope="col" class={isNumber ? "number" : ""} aria-sort={direction ?? "none"}>
        <button type="button" onClick={() => change({ sort: direction === "ascending" ? `-${name}` : name })}>
          {text}
          {direction && <span aria-hidden="true">{direction === "ascending" ? " ↑" : " ↓"}</span>}
        </button>
      </th>
    );
  };
  return (
    <div class="table-box tall stale-able" ref={box} onScroll={(event) => setTop(event.currentTarget.scrollTop)} tabIndex={0} role="region" aria-label="Sessions">
      <table class="rows" aria-rowcount={rows.length + 1}>
        <thead>
          <tr aria-rowindex={1}>
            {head("identifier", "Session")}
            {head("pool", "Pool")}
            {head("tenant", "Tenant")}
            <th scope="col">Wall</th>
            {head("age", "Age", true)}
            {head("expiry", "Ends in", true)}
            {head("cpu", "CPU", true)}
            {head("memory", "Memory", true)}
            {head("egress", "Egress", true)}
          </tr>
        </thead>
        <tbody>
          {first > 0 && <Gap rows={first} />}
          {rows.slice(first, last).map((row, at) => (
            <tr key={row.sandbox} aria-rowindex={first + at + 2}>
              <th scope="row" title={row.identifier}>
                <a href={sessionAddress({ pool: row.pool, session: row.identifier, tenant: row.room })}>{row.identifier}</a> {row.busy > 0 && <Badge tone="accent">busy</Badge>} {row.suspended && <Badge>suspended</Badge>}
              </th>
              <td>{row.pool}</td>
              <td>{row.tenant}</td>
              <td>{row.level}</td>
              <td class="number">{span(Math.floor(since(row.createdAt, now)))}</td>
              <td class="number">{row.busy > 0 ? "in use" : span(Math.max(0, Math.ceil(-since(row.expiresAt, now))))}</td>
              <td class="number">{row.cpu === null ? "–" : `${(row.cpu * 100).toFixed(0)} %`}</td>
              <td class="number">{bytes(row.usage?.memoryBytes)}</td>
              <td class="number">{row.usage ? (row.usage.sentBytes + row.usage.receivedBytes === 0 ? "none" : `↑ ${bytes(row.usage.sentBytes)} ↓ ${bytes(row.usage.receivedBytes)}`) : "–"}</td>
            </tr>
          ))}
          {last < rows.length && <Gap rows={rows.length - last} />}
        </tbody>
      </table>
    </div>
  );
}

/** Rows that are not drawn. */
function Gap({ rows }: { rows: number }): ComponentChildren {
  return (
    <tr class="gap" aria-hidden="true">
      <td colSpan={9} style={{ height: `${rows * HEIGHT}px` }} />
    </tr>
  );
}

const LETTERS = "abcdefghijkmnpqrstuvwxyz23456789";

function aName(): string {
  return `console-${[...crypto.getRandomValues(new Uint8Array(6))].map((one) => LETTERS[one % LETTERS.length]).join("")}`;
}

function NewSession({ pools, start, onClose }: { pools: string[]; start: string; onClose: () => void }) {
  const [pool, setPool] = useState(start || pools[0] || "");
  const [name, setName] = useState(aName);
  const [error, setError] = useState<Error | null>(null);
  const [isBusy, setBusy] = useState(false);
  const make = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    const place: Place = { pool, session: name, tenant: null };
    try {
      await ask(sessionPath(place), { method: "PUT" });
      go(sessionAddress(place));
    } catch (why) {
      setError(why as Error);
      setBusy(false);
    }
  };
  return (
    <Dialog title="New session" onClose={onClose}>
      <form onSubmit={make} class="stack">
        <Field label="Pool">
          {(given) => (
            <select {...given} value={pool} onChange={(event) => setPool(event.currentTarget.value)}>
              {pools.map((one) => (
                <option key={one}>{one}</option>
              ))}
            </select>
          )}
        </Field>
        <Field label="Name" hint="4 to 128 characters. Whoever names it again finds it again." wrong={error?.message}>
          {(given) => <input {...given} value={name} autofocus spellcheck={false} autocomplete="off" onInput={(event) => setName(event.currentTarget.value)} />}
        </Field>
        <div class="actions">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="primary" disabled={isBusy}>
            Begin
          </button>
        </div>
      </form>
    </Dialog>
  );
}
