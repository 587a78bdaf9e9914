// Values that components follow.

import { useEffect, useState } from "preact/hooks";

export class Value<T> {
  #value: T;
  readonly #followers = new Set<() => void>();

  constructor(value: T) {
    this.#value = value;
  }

  get(): T {
    return this.#value;
  }

  set(value: T): void {
    if (Object.is(value, this.#value)) return;
    this.#value = value;
    for (const follower of [...this.#followers]) follower();
  }

  follow(follower: () => void): () => void {
    this.#followers.add(follower);
    return () => this.#followers.delete(follower);
  }
}

/** The value now; the component is drawn again when it changes. */
export function useValue<T>(value: Value<T>): T {
  const [, draw] = useState({});
  useEffect(() => value.follow(() => draw({})), [value]);
  return value.get();
}

/** The time, every so many milliseconds. */
export function useNow(every = 1000): number {
  const [now, set] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => set(Date.now()), every);
    return () => clearInterval(timer);
  }, [every]);
  return now;
}
