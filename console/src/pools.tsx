// The pools, and how they are.

import { useState } from "preact/hooks";
import { type Schema, ask, get } from "./api";
import { bytes, count, span } from "./format";
import { State } from "./overview";
import { usePoll } from "./poll";
import { address } from "./router";
import { Badge, Bar, Confirm, Empty, Head, Icon, Stale, Wrong } from "./ui";

export const listPools = async (signal: AbortSignal) => (await get<Schema<"Pools">>("/pools", signal)).value;

export function Pools() {
  const polled = usePoll("pools", listPools, 3000);
  const pools = polled.data;
  return (
    <>
      <Head title="Pools">
        <Stale of={polled} />
        <span class="grow" />
        <a class="button primary" href={address("pools/new")}>
          <Icon name="plus" /> New pool
        </a>
      </Head>
      <Wrong error={polled.error} />
      {!pools ? (
        !polled.error && <p class="muted">Loading …</p>
      ) : pools.length === 0 ? (
        <div class="card">
          <Empty title="No pools yet">
            <p>A pool keeps sandboxes ready. Make one, and its sessions begin in milliseconds.</p>
          </Empty>
        </div>
      ) : (
        <div class="grid two stale-able">
          {pools.map((pool) => (
            <Pool key={pool.name} pool={pool} again={polled.again} />
          ))}
        </div>
      )}
    </>
  );
}

const ORIGIN: Record<string, string> = {
  file: "declared in the configuration file, and changed there",
  default: "one that the server comes with",
  applied: "applied while the server runs",
};

function Pool({ pool, again }: { pool: Schema<"Pool">; again: () => void }) {
  const [isAsking, setAsking] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const remove = async () => {
    setBusy(true);
    try {
      await ask(`/pools/${encodeURIComponent(pool.name)}`, { method: "DELETE" });
      setAsking(false);
      again();
    } catch (why) {
      setError(why as Error);
    }
    setBusy(false);
  };
  const id = `pool-${pool.name}`;
  return (
    <section class="card" aria-labelledby={id}>
      <div class="card-head">
        <h2 id={id}>{pool.name}</h2>
        <State pool={pool} />
        <Badge>{pool.containerType ?? "?"}</Badge>
        <span class="grow" />
        <a class="button small" href={address("sessions", { pool: pool.name })}>
          Sessions
        </a>
        {pool.origin !== "file" && (
          <a class="button small" href={address("pools/edit", { pool: pool.name })} aria-label={`Edit the pool ${pool.name}`}>
            Edit
          </a>
        )}
        {pool.origin === "applied" && (
          <button type="button" class="small danger" onClick={() => setAsking(true)} aria-label={`Remove the pool ${pool.name}`}>
            <Icon name="trash" />
          </button>
        )}
      </div>
      {pool.trouble && <p class="note bad">{pool.trouble}</p>}
      <dl class="facts">
        <dt>Ready</dt>
        <dd>
          {pool.ready} of {pool.readyTarget} wanted{pool.booting ? `, ${pool.booting} being made` : ""}
        </dd>
        <dt>Sessions</dt>
        <dd>
          {count(pool.sessions)} of {count(pool.maxSessions)}
          <Bar share={pool.maxSessions ? pool.sessions / pool.maxSessions : 0} label="Places in use" />
        </dd>
        <dt>Waited</dt>
        <dd>{count(pool.waited)} new sessions found nothing ready</dd>
        <dt>Queue</dt>
        <dd>{pool.queue} executions may wait in a session</dd>
        <dt>Limits</dt>
        <dd>
          {pool.limits.cpuMilli / 1000} CPU, {bytes(pool.limits.memoryBytes)} memory, {bytes(pool.limits.dataBytes)} of it on /mnt/data, {pool.limits.pids}{" "}
          processes
        </dd>
        <dt>Time</dt>
        <dd>
          ends when unused for {span(pool.cooldownSeconds)}
          {pool.maxAliveSeconds ? `, and after ${span(pool.maxAliveSeconds)} in any case` : ""}; an execution takes {span(pool.maxTimeoutSeconds)} at most
        </dd>
        <dt>Runs</dt>
        <dd>
          {[pool.runtime?.name, pool.runtime?.version].filter(Boolean).join(" ") || "–"}, {pool.interpreterStart} start
        </dd>
        <dt>Wall</dt>
        <dd>
          {pool.level}
          {pool.weaker.length > 0 && <span class="muted"> (weaker here: {pool.weaker.join("; ")})</span>}
        </dd>
        <dt>Origin</dt>
        <dd>{pool.origin ? ORIGIN[pool.origin] : "–"}</dd>
      </dl>
      {isAsking && (
        <Confirm
          title={`Remove the pool ${pool.name}?`}
          text={`Its ${pool.sessions} sessions end, with all that is in them. This cannot be undone.`}
          word="Remove the pool"
          isBusy={isBusy}
          error={error}
          onYes={remove}
          onNo={() => setAsking(false)}
        />
      )}
    </section>
  );
}
