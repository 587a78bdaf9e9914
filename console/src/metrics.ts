// Prometheus's text form, as much of it as the overview needs.

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

const LINE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/g;

/** The samples of a text. Lines that are none are skipped. */
export function parse(text: string): Sample[] {
  const samples: Sample[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const found = LINE.exec(line);
    if (!found) continue;
    const labels: Record<string, string> = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[name!] = value!.replace(/\\(.)/g, (_, sign: string) => (sign === "n" ? "\n" : sign));
    }
    const value = found[3]!.replace("Inf", "Infinity");
    samples.push({ name: found[1]!, labels, value: Number(value) });
  }
  return samples;
}

/** The sum of what has this name, and these labels. */
export function sum(samples: Sample[], name: string, labels: Record<string, string | RegExp> = {}): number {
  const wanted = Object.entries(labels);
  const fits = (sample: Sample) =>
    wanted.every(([label, value]) => {
      const own = sample.labels[label] ?? "";
      return typeof value === "string" ? own === value : value.test(own);
    });
  return samples.filter((sample) => sample.name === name && fits(sample)).reduce((total, sample) => total + sample.value, 0);
}

/** Counts below each bound, added up over all series of a histogram. */
export function buckets(samples: Sample[], name: string): Map<number, number> {
  const found = new Map<number, number>();
  for (const sample of samples) {
    if (sample.name !== `${name}_bucket`) continue;
    const bound = Number((sample.labels["le"] ?? "").replace("+Inf", "Infinity"));
    found.set(bound, (found.get(bound) ?? 0) + sample.value);
  }
  return found;
}

/** A quantile of a histogram, interpolated as Prometheus does it; null when nothing was counted. */
export function quantile(of: Map<number, number>, share: number): number | null {
  const bounds = [...of.entries()].sort(([one], [other]) => one - other);
  const total = bounds.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const rank = share * total;
  let [below, counted] = [0, 0];
  for (const [bound, upTo] of bounds) {
    if (upTo >= rank && upTo > counted) {
      if (!Number.isFinite(bound)) return below;
      return below + ((bound - below) * (rank - counted)) / (upTo - counted);
    }
    [below, counted] = [bound, upTo];
  }
  return below;
}

/** What was counted between two readings; after a restart, what was counted since. */
export function between(before: Map<number, number>, now: Map<number, number>): Map<number, number> {
  const isRestart = [...now].some(([bound, value]) => value < (before.get(bound) ?? 0));
  return isRestart ? now : new Map([...now].map(([bound, value]) => [bound, value - (before.get(bound) ?? 0)]));
}
