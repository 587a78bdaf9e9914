// What is asked again and again, and how old it is.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Away, Refusal, link, returns } from "./api";
import { useValue } from "./store";

export interface Polled<T> {
  /** What was answered last; it stays while the server is away. */
  data: T | null;
  /** When that was. */
  at: number | null;
  /** Why the last attempt gave nothing. */
  error: Error | null;
  /** The server is away: what is shown is of before. */
  isStale: boolean;
  /** Asks now. */
  again: () => void;
}

/** Asks every so many milliseconds while the page is seen, never twice at once. `key` says what is asked: another one begins anew. */
export function usePoll<T>(key: string, load: (signal: AbortSignal) => Promise<T>, every: number): Polled<T> {
  const [state, set] = useState<{ key: string; data: T | null; at: number | null; error: Error | null }>({ key, data: null, at: null, error: null });
  const { awaySince } = useValue(link);
  const back = useValue(returns);
  const loading = useRef(load);
  loading.current = load;
  const now = useRef<() => void>(() => undefined);

  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    let isAsking = false;
    const turn = async () => {
      clearTimeout(timer);
      if (isAsking || stop.signal.aborted) return;
      isAsking = true;
      try {
        const data = await loading.current(stop.signal);
        if (!stop.signal.aborted) set({ key, data, at: Date.now(), error: null });
      } catch (error) {
        if (!stop.signal.aborted) {
          // What is not there any more is not shown as if it were.
          const isGone = error instanceof Refusal && [403, 404, 410].includes(error.status);
          set((before) => ({
            key,
            data: isGone || before.key !== key ? null : before.data,
            at: before.key === key ? before.at : null,
            error: error instanceof Error ? error : new Error(String(error)),
          }));
        }
      } finally {
        isAsking = false;
        if (!stop.signal.aborted && !document.hidden && link.get().awaySince === null) timer = window.setTimeout(turn, every);
      }
    };
    const seen = () => void (document.hidden ? clearTimeout(timer) : turn());
    now.current = turn;
    document.addEventListener("visibilitychange", seen);
    void turn();
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [key, every, back]);

  const again = useCallback(() => now.current(), []);
  const { data, at, error } = state.key === key ? state : { data: null, at: null, error: null };
  return { data, at, error: error instanceof Away ? null : error, isStale: awaySince !== null && data !== null, again };
}
