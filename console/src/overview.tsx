// At a glance: is it healthy, what is it doing, who is using it, how fast is it.

import type { ComponentChildren } from "preact";
import { type Schema, ask, get, Refusal, sessionsOf } from "./api";
import { count, span } from "./format";
import { type Sample, between, buckets, parse, quantile, sum } from "./metrics";
import { usePoll } from "./poll";
import { address } from "./router";
import { useNow } from "./store";
import { Badge, Bar, Empty, Head, Stale, Wrong } from "./ui";

interface Seen {
  /** Why it is not ready; null when it is. */
  unready: string | null;
  pools: Schema<"Pool">[];
  sessions: Schema<"ListedSession">[];
  /** Null for a token that may not read them. */
  metrics: Sample[] | null;
}

async function look(signal: AbortSignal): Promise<Seen> {
  const readiness = ask("/readyz", { signal, patience: 6000 }).then(
    () => null,
    (error: unknown) => {
      if (error instanceof Refusal) return error.message;
      throw error;
    },
  );
  const metrics = ask("/metrics", { signal, patience: 6000 }).then(
    async (answer) => parse(await answer.text()),
    (error: unknown) => {
      if (error instanceof Refusal && error.status === 403) return null;
      throw error;
    },
  );
  const pools = (await get<Schema<"Pools">>("/pools", signal)).value;
  const lists = Promise.all(pools.map((pool) => sessionsOf(pool.name, signal)));
  const [unready, counted, sessions] = await Promise.all([readiness, metrics, lists]);
  const seen = { unready, pools, sessions: sessions.flat(), metrics: counted };
  if (counted) keep(counted);
  return seen;
}

/** Readings of the last five minutes, oldest first, of this tab. */
const readings: { at: number; samples: Sample[] }[] = [];

function keep(samples: Sample[]): void {
  const now = Date.now();
  readings.push({ at: now, samples });
  while (readings.length > 1 && readings[0]!.at < now - 300_000) readings.shift();
}

/** Of a histogram: how many, and two quantiles; of the last minutes where something was counted in them, else since the start. */
function times(name: string): { when: string; median: number | null; high: number | null } {
  const [first, last] = [readings[0], readings.at(-1)];
  if (!first || !last) return { when: "", median: null, high: null };
  const all = buckets(last.samples, name);
  const recent = between(buckets(first.samples, name), all);
  const isRecent = (recent.get(Infinity) ?? 0) > 0;
  const of = isRecent ? recent : all;
  const when = isRecent ? `last ${span((last.at - first.at) / 1000)}` : "since the start";
  return { when, median: quantile(of, 0.5), high: quantile(of, 0.99) };
}

/** How often something happens, in a minute. */
function rate(name: string): number | null {
  const [first, last] = [readings[0], readings.at(-1)];
  if (!first || !last || last.at - first.at < 1000) return null;
  const [before, now] = [sum(first.samples, name), sum(last.samples, name)];
  return ((now >= before ? now - before : now) / (last.at - first.at)) * 60_000;
}

function Figure({ name, value, more, children }: { name: string; value: ComponentChildren; more?: string; children?: ComponentChildren }) {
  return (
    <div class="card figure">
      <span class="name">{name}</span>
      <span class="value">{value}</span>
      {more && <span class="more">{more}</span>}
      {children}
    </div>
  );
}

function Health({ seen }: { seen: Seen }) {
  const troubled = seen.pools.filter((pool) => pool.trouble);
  const isStoreBad = seen.metrics ? sum(seen.metrics, "sandpool_store_trouble") > 0 : false;
  const problems = [
    ...(isStoreBad ? ["The state on disk cannot be written: nothing new is taken."] : []),
    ...troubled.map((pool) => `${pool.name}: ${pool.trouble}`),
  ];
  const isBad = problems.length > 0;
  const tone = isBad ? "bad" : seen.unready ? "warn" : "good";
  const title = isBad ? "Something is wrong" : seen.unready ? "Not ready yet" : "Healthy";
  return (
    <section class={`card health ${tone}`} aria-label="Health">
      <span class="dot" aria-hidden="true" />
      <div>
        <h2>{title}</h2>
        {isBad ? (
          <ul>
            {problems.map((problem) => (
              <li key={problem}>{problem}</li>
            ))}
          </ul>
        ) : (
          <p class="muted">{seen.unready ?? "Every pool has its ready sandboxes, and what happens is written down."}</p>
        )}
      </div>
    </section>
  );
}

function Users({ sessions }: { sessions: Schema<"ListedSession">[] }) {
  const users = new Map<string, { tenant: string; owner: string; sessions: number; busy: number; cpu: number }>();
  for (const session of sessions) {
    const key = `${session.tenant}\n${session.owner}`;
    const user = users.get(key) ?? { tenant: session.tenant, owner: session.owner, sessions: 0, busy: 0, cpu: 0 };
    user.sessions += 1;
    user.busy += session.busy > 0 ? 1 : 0;
    user.cpu += session.usage?.cpuSeconds ?? 0;
    users.set(key, user);
  }
  const most = [...users.values()].sort((one, other) => other.sessions - one.sessions).slice(0, 8);
  return (
    <section class="card" aria-labelledby="users">
      <h2 id="users">Who is using it</h2>
      {most.length === 0 ? (
        <p class="muted">Nobody: there are no sessions.</p>
      ) : (
        <div class="scroll-x" tabIndex={0} role="group" aria-label="Table"><table>
          <thead>
            <tr>
              <th scope="col">Tenant</th>
              <th scope="col">Caller</th>
              <th scope="col" class="number">Sessions</th>
              <th scope="col" class="number">Busy</th>
              <th scope="col" class="number">Processor</th>
            </tr>
          </thead>
          <tbody>
            {most.map((user) => (
              <tr key={`${user.tenant}\n${user.owner}`}>
                <th scope="row">{user.tenant}</th>
                <td>{user.owner}</td>
                <td class="number">{user.sessions}</td>
                <td class="number">{user.busy}</td>
                <td class="number">{span(user.cpu)}</td>
              </tr>
            ))}
          </tbody>
        </table></div>
      )}
    </section>
  );
}

export function Overview() {
  const polled = usePoll("overview", look, 3000);
  const now = useNow(5000);
  const seen = polled.data;
  if (!seen) {
    return (
      <>
        <Head title="Overview" />
        {polled.error ? <Wrong error={polled.error} /> : <p class="muted">Loading …</p>}
      </>
    );
  }
  const busy = seen.sessions.filter((session) => session.busy > 0).length;
  const ready = seen.pools.reduce((total, pool) => total + pool.ready, 0);
  const room = seen.pools.reduce((total, pool) => total + pool.maxSessions, 0);
  const [allocation, execution] = [times("sandpool_pool_allocation_seconds"), times("sandpool_pool_execution_seconds")];
  const executions = rate("sandpool_pool_executions_total");
  const refusals = rate("sandpool_http_refusals_total");
  const started = seen.metrics ? sum(seen.metrics, "sandpool_start_time_seconds") : 0;
  const version = seen.metrics?.find((sample) => sample.name === "sandpool_build_info")?.labels["version"];
  return (
    <>
      <Head title="Overview">
        <Stale of={polled} />
        <span class="grow" />
        {version && (
          <span class="muted">
            Version {version}, up for {span(now / 1000 - started)}
          </span>
        )}
      </Head>
      <div class="stack stale-able">
        <Wrong error={polled.error} />
        <Health seen={seen} />
        <div class="grid three">
          <Figure name="Sessions" value={<>{count(seen.sessions.length)} <small>of {count(room)}</small></>} more={`${busy} busy now`}>
            <Bar wide share={room ? seen.sessions.length / room : 0} label="Places in use" />
          </Figure>
          <Figure
            name="Ready sandboxes"
            value={<>{count(ready)} <small>of {count(seen.pools.reduce((total, pool) => total + pool.readyTarget, 0))} wanted</small></>}
            more={`${seen.pools.reduce((total, pool) => total + pool.booting, 0)} being made`}
          />
          <Figure
            name="A new session"
            value={allocation.median === null ? "–" : span(allocation.median)}
            more={allocation.high === null ? "Nothing counted yet" : `99 % within ${span(allocation.high)}, ${allocation.when}`}
          />
          <Figure
            name="An execution"
            value={execution.median === null ? "–" : span(execution.median)}
            more={execution.high === null ? "Nothing counted yet" : `99 % within ${span(execution.high)}, ${execution.when}`}
          />
          <Figure
            name="Executions"
            value={executions === null ? "–" : <>{executions.toFixed(executions < 10 ? 1 : 0)} <small>a minute</small></>}
            more={seen.metrics ? `${count(sum(seen.metrics, "sandpool_pool_executions_total"))} since the start` : "Not for this token"}
          />
          <Figure
            name="Refused requests"
            value={refusals === null ? "–" : <>{refusals.toFixed(refusals < 10 ? 1 : 0)} <small>a minute</small></>}
            more={seen.metrics ? `Requests under way: ${count(sum(seen.metrics, "sandpool_http_requests_underway"))}` : "Not for this token"}
          />
        </div>
        {!seen.metrics && (
          <p class="note">Figures over all tenants need a token of the tenant default that is not bound to pools or a session.</p>
        )}
        <div class="grid two">
          <section class="card" aria-labelledby="what">
            <h2 id="what">What it is doing</h2>
            {seen.pools.length === 0 ? (
              <Empty title="No pools">
                <p>This token is good for no pool.</p>
              </Empty>
            ) : (
              <div class="scroll-x" tabIndex={0} role="group" aria-label="Table"><table>
                <thead>
                  <tr>
                    <th scope="col">Pool</th>
                    <th scope="col">State</th>
                    <th scope="col" class="number">Ready</th>
                    <th scope="col" class="number">Sessions</th>
                    <th scope="col" class="number">Busy</th>
                  </tr>
                </thead>
                <tbody>
                  {seen.pools.map((pool) => (
                    <tr key={pool.name}>
                      <th scope="row">
                        <a href={address("sessions", { pool: pool.name })}>{pool.name}</a>
                      </th>
                      <td>
                        <State pool={pool} />
                      </td>
                      <td class="number">{pool.ready}</td>
                      <td class="number">{pool.sessions}</td>
                      <td class="number">{seen.sessions.filter((session) => session.pool === pool.name && session.busy > 0).length}</td>
                    </tr>
                  ))}
                </tbody>
              </table></div>
            )}
          </section>
          <Users sessions={seen.sessions} />
        </div>
      </div>
    </>
  );
}

/** How a pool is, in a word. */
export function State({ pool }: { pool: Schema<"Pool"> }) {
  if (pool.trouble) return <Badge tone="bad">trouble</Badge>;
  if (pool.isReady) return <Badge tone="good">ready</Badge>;
  return <Badge tone="warn">filling</Badge>;
}
