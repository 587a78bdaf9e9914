// Where we are: the path and the query, which say all of a page's state that is worth a bookmark.

import { Value, useValue } from "./store";

export interface Here {
  /** Below /console: `sessions`. */
  page: string;
  query: URLSearchParams;
}

function here(): Here {
  const page = location.pathname.replace(/^\/console\/?/, "").replace(/\/$/, "");
  return { page, query: new URLSearchParams(location.search) };
}

export const place = new Value<Here>(here());

addEventListener("popstate", () => place.set(here()));

export function address(page: string, query: Record<string, string | null | undefined> = {}): string {
  const given = Object.entries(query).filter((pair): pair is [string, string] => Boolean(pair[1]));
  const parameters = new URLSearchParams(given).toString();
  return `/console/${page}${parameters ? `?${parameters}` : ""}`;
}

export function go(to: string, how: "push" | "replace" = "push"): void {
  if (how === "push") history.pushState(null, "", to);
  else history.replaceState(null, "", to);
  place.set(here());
}

/** Changes the query of this page. */
export function change(values: Record<string, string | null>): void {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  const text = query.toString();
  go(`${location.pathname}${text ? `?${text}` : ""}`, "replace");
}

export const useHere = () => useValue(place);

/** Follows a link to another page of ours without loading all again. */
export function followed(event: MouseEvent): void {
  const link = (event.target as Element).closest("a");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  if (link.target || link.hasAttribute("download") || link.origin !== location.origin || !link.pathname.startsWith("/console")) return;
  if (link.hash) return;
  event.preventDefault();
  go(link.pathname + link.search);
}
