// What a session may reach, and what was decided about what it tried.

import { type Place, Refusal, type Schema, get, sessionPath } from "./api";
import { bytes, clock, count } from "./format";
import { usePoll } from "./poll";
import { Badge, Empty, Stale, Wrong } from "./ui";

type Policy = Schema<"Egress">;

/** As the server tells it: /egress/decisions. */
interface Decision {
  sequence: number;
  time: string;
  host: string | null;
  port: number | null;
  via: string | null;
  decision: string;
  reason: string | null;
  sentBytes: number | null;
  receivedBytes: number | null;
}

const MODES: Record<string, string> = { none: "Nothing", "allow-list": "Named hosts", open: "All that is public" };

function Policies({ title, policy }: { title: string; policy: Policy | null }) {
  const id = `policy-${title.toLowerCase().replaceAll(" ", "-")}`;
  return (
    <section class="card" aria-labelledby={id}>
      <h2 id={id}>{title}</h2>
      {policy ? (
        <dl class="facts">
          <dt>Reaches</dt>
          <dd>{MODES[policy.mode ?? "none"]}</dd>
          {(policy.allow ?? []).length > 0 && (<><dt>Allowed</dt><dd class="mono">{policy.allow!.join(", ")}</dd></>)}
          {(policy.deny ?? []).length > 0 && (<><dt>Denied</dt><dd class="mono">{policy.deny!.join(", ")}</dd></>)}
          {(policy.allowAddresses ?? []).length > 0 && (<><dt>Addresses</dt><dd class="mono">{policy.allowAddresses!.join(", ")}</dd></>)}
        </dl>
      ) : (
        <p class="muted">Not narrowed: it may reach what its pool may.</p>
      )}
    </section>
  );
}

export function Egress({ place }: { place: Place }) {
  const key = JSON.stringify(place);
  const policy = usePoll(`egress ${key}`, (signal) => get<Schema<"SessionEgress">>(sessionPath(place, "/egress"), signal), 5000);
  const decisions = usePoll(`decisions ${key}`, async (signal) => (await get<{ decisions: Decision[] }>(sessionPath(place, "/egress/decisions"), signal)).decisions, 3000);
  const isNone = policy.error instanceof Refusal && policy.error.code === "SessionRequestNotSupported";
  if (isNone) {
    return (
      <div class="card">
        <Empty title="Nothing is reached from here">
          <p>Sessions of this pool have an empty network. Its egress, in the pool's settings, says what they may reach.</p>
        </Empty>
      </div>
    );
  }
  return (
    <div class="stack stale-able">
      <Wrong error={policy.error} />
      <div class="grid two">
        {policy.data && <Policies title="What the pool may reach" policy={policy.data.pool} />}
        {policy.data && <Policies title="What the session was narrowed to" policy={policy.data.session ?? null} />}
      </div>
      <section aria-labelledby="decisions" class="stack" style={{ gap: "12px" }}>
        <div class="card-head">
          <h2 id="decisions">Decisions</h2>
          <Stale of={decisions} />
        </div>
        <Decisions all={decisions.data} error={decisions.error} />
      </section>
    </div>
  );
}

function Decisions({ all, error }: { all: Decision[] | null; error: Error | null }) {
  if (!all) return error ? <Wrong error={error} /> : <p class="muted">Loading …</p>;
  if (all.length === 0) {
    return (
      <div class="card">
        <Empty title="Nothing was tried">
          <p>Each connection that code in the session tries is here, with what was decided and why.</p>
        </Empty>
      </div>
    );
  }
  const rows = [...all].sort((one, other) => other.sequence - one.sequence);
  return (
    <div class="table-box">
      <table>
        <thead>
          <tr>
            <th scope="col">Time</th>
            <th scope="col">Host</th>
            <th scope="col">Decision</th>
            <th scope="col">Why</th>
            <th scope="col">Via</th>
            <th scope="col" class="number">Sent</th>
            <th scope="col" class="number">Received</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((one) => (
            <tr key={one.sequence}>
              <td class="nowrap">{clock(one.time)}</td>
              <th scope="row" class="mono">
                {one.host ?? "–"}
                {one.port === null ? "" : `:${one.port}`}
              </th>
              <td>
                <Badge tone={/^allow/i.test(one.decision) ? "good" : "bad"}>{one.decision}</Badge>
              </td>
              <td>{one.reason ?? ""}</td>
              <td>{one.via ?? ""}</td>
              <td class="number">{bytes(one.sentBytes)}</td>
              <td class="number">{bytes(one.receivedBytes)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="visually-hidden">{count(rows.length)} decisions</p>
    </div>
  );
}
