// One session: its playground, terminals, files, executions, egress and activity.

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { type Place, Refusal, type Schema, ask, get, sessionPath } from "./api";
import { Activity } from "./activity";
import { Egress } from "./egress";
import { Executions } from "./executions";
import { Files } from "./files";
import { since, span } from "./format";
import { type Language, Playground } from "./playground";
import { type Polled, usePoll } from "./poll";
import { address, go, useHere } from "./router";
import { sessionAddress } from "./sessions";
import { useNow } from "./store";
import { Terminals } from "./terminals";
import { Badge, Confirm, Empty, Head, Icon, Stale, Wrong } from "./ui";

export type Detail = Schema<"SessionDetail">;

interface Seen {
  session: Detail;
  pool: Schema<"Pool">;
}

const TABS: { tab: string; name: string }[] = [
  { tab: "playground", name: "Playground" },
  { tab: "terminal", name: "Terminal" },
  { tab: "files", name: "Files" },
  { tab: "executions", name: "Executions" },
  { tab: "egress", name: "Egress" },
  { tab: "activity", name: "Activity" },
];

export function languageOf(pool: Schema<"Pool">): Language {
  return pool.containerType === "PythonLTS" ? "python" : pool.containerType === "NodeLTS" ? "node" : "shell";
}

export function SessionPage({ tab }: { tab: string }) {
  const { query } = useHere();
  const [pool, session, tenant] = [query.get("pool") ?? "", query.get("session") ?? "", query.get("tenant")];
  const place: Place = { pool, session, tenant };
  const key = JSON.stringify(place);
  // Another session is another page, with nothing of the one before.
  return <One key={key} place={place} tab={tab} />;
}

function One({ place, tab }: { place: Place; tab: string }) {
  const polled = usePoll(
    `session ${JSON.stringify(place)}`,
    async (signal): Promise<Seen> => {
      const [session, pool] = await Promise.all([get<Detail>(sessionPath(place), signal), get<Schema<"Pool">>(`/pools/${encodeURIComponent(place.pool)}`, signal)]);
      return { session, pool };
    },
    2000,
  );
  const [isAsking, setAsking] = useState(false);
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const seen = polled.data;

  const remove = async () => {
    setBusy(true);
    try {
      await ask(sessionPath(place), { method: "DELETE" });
      go(address("sessions"));
    } catch (why) {
      setError(why as Error);
      setBusy(false);
    }
  };

  return (
    <>
      <Head title={place.session} crumbs={<><a href={address("sessions")}>Sessions</a> / <a href={address("sessions", { pool: place.pool })}>{place.pool}</a></>}>
        <Facts polled={polled} />
        <span class="grow" />
        <button type="button" class="danger" disabled={!seen} onClick={() => setAsking(true)}>
          <Icon name="trash" /> Delete
        </button>
      </Head>
      {polled.error && !seen ? (
        <Gone error={polled.error} place={place} again={polled.again} />
      ) : (
        <>
          <nav class="tabs" aria-label="Parts of the session">
            {TABS.map((one) => (
              <a key={one.tab} href={sessionAddress(place, one.tab)} aria-current={one.tab === tab ? "page" : undefined}>
                {one.name}
              </a>
            ))}
          </nav>
          <Wrong error={polled.error} />
          {seen ? <Part tab={tab} place={place} seen={seen} polled={polled} /> : !polled.error && <p class="muted">Loading …</p>}
        </>
      )}
      {isAsking && (
        <Confirm
          title="Delete the session?"
          text={`${place.session} ends, with its variables, files and whatever runs in it. This cannot be undone.`}
          word="Delete the session"
          isBusy={isBusy}
          error={error}
          onYes={remove}
          onNo={() => setAsking(false)}
        />
      )}
    </>
  );
}

function Part({ tab, place, seen, polled }: { tab: string; place: Place; seen: Seen; polled: Polled<Seen> }): ComponentChildren {
  switch (tab) {
    case "playground":
      return <Playground place={place} language={languageOf(seen.pool)} />;
    case "terminal":
      return <Terminals place={place} />;
    case "files":
      return <Files place={place} />;
    case "executions":
      return <Executions place={place} />;
    case "egress":
      return <Egress place={place} />;
    case "activity":
      return <Activity place={place} session={seen.session} pool={seen.pool} at={polled.at} />;
    default:
      return <Empty title="No such part of a session" />;
  }
}

function Facts({ polled }: { polled: Polled<Seen> }) {
  const now = useNow(1000);
  const seen = polled.data;
  if (!seen) return <Stale of={polled} />;
  const { session } = seen;
  return (
    <>
      {session.suspended ? <Badge>suspended</Badge> : session.busy > 0 ? <Badge tone="accent">busy</Badge> : <Badge tone="good">idle</Badge>}
      <Badge>tenant {session.tenant}</Badge>
      <span class="muted">
        {session.level} · {span(Math.floor(since(session.createdAt, now)))} old
        {session.busy > 0 ? "" : ` · ends in ${span(Math.max(0, Math.ceil(-since(session.expiresAt, now))))} unless it is used`}
      </span>
      <Stale of={polled} />
    </>
  );
}

function Gone({ error, place, again }: { error: Error; place: Place; again: () => void }) {
  const isMissing = error instanceof Refusal && error.status === 404;
  const isLost = error instanceof Refusal && error.status === 410;
  const [wrong, setWrong] = useState<Error | null>(null);
  const make = async () => {
    try {
      await ask(sessionPath(place), { method: "PUT" });
      again();
    } catch (why) {
      setWrong(why as Error);
    }
  };
  return (
    <div class="card">
      <Empty title={isMissing ? "There is no such session" : isLost ? "The session was lost" : "It cannot be shown"}>
        <p>{error.message}</p>
        <Wrong error={wrong} />
        {(isMissing || isLost) && (
          <div class="actions">
            <button type="button" onClick={make}>
              Begin a new one of this name
            </button>
            <a class="button" href={address("sessions")}>
              To the sessions
            </a>
          </div>
        )}
      </Empty>
    </div>
  );
}
