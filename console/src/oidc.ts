// Signing in at an issuer that the server trusts: the authorization code flow with PKCE (RFC 6749, RFC 7636), for a public client.

import { ask } from "./api";
import { go } from "./router";

/** What the server says of an issuer: /console/sign-in.json. */
export interface Issuer {
  /** How people call it. */
  name: string;
  issuer: string;
  clientId: string;
  scope: string;
  authorizationEndpoint: string;
  tokenEndpoint: string;
  /** Which of the tokens that it gives is good here. */
  token: "access_token" | "id_token";
}

interface Begun {
  issuer: Issuer;
  verifier: string;
  state: string;
  back: string;
}

const KEY = "sandpool.sign-in";

export async function issuers(): Promise<Issuer[]> {
  const answer = await ask("/console/sign-in.json");
  return ((await answer.json()) as { issuers: Issuer[] }).issuers;
}

const redirect = () => `${location.origin}/console/`;

function random(): string {
  return text(crypto.getRandomValues(new Uint8Array(32)));
}

/** Base64url without padding. */
function text(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** Goes to the issuer. It comes back with a code. */
export async function begin(issuer: Issuer): Promise<void> {
  if (!crypto.subtle) throw new Error("A browser signs in this way over HTTPS only, or on the machine itself.");
  const begun: Begun = { issuer, verifier: random(), state: random(), back: location.pathname + location.search };
  sessionStorage.setItem(KEY, JSON.stringify(begun));
  const challenge = text(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(begun.verifier))));
  const query = new URLSearchParams({
    response_type: "code",
    client_id: issuer.clientId,
    redirect_uri: redirect(),
    scope: issuer.scope,
    state: begun.state,
    code_challenge: challenge,
    code_challenge_method: "S256",
  });
  const to = new URL(issuer.authorizationEndpoint);
  for (const [name, value] of query) to.searchParams.set(name, value);
  location.assign(to);
}

/** Having come back, gets the token for the code. Null when we do not come from an issuer. */
export async function finish(): Promise<string | null> {
  const query = new URLSearchParams(location.search);
  const [code, state, error] = [query.get("code"), query.get("state"), query.get("error")];
  if (!state || !(code || error)) return null;
  const kept = sessionStorage.getItem(KEY);
  sessionStorage.removeItem(KEY);
  const begun = kept ? (JSON.parse(kept) as Begun) : null;
  go(begun?.back ?? "/console/", "replace");
  if (!begun || begun.state !== state) throw new Error("This sign-in was not begun here. Begin again.");
  if (error) throw new Error(`${begun.issuer.name} refused: ${query.get("error_description") ?? error}.`);
  const form = new URLSearchParams({
    grant_type: "authorization_code",
    code: code!,
    redirect_uri: redirect(),
    client_id: begun.issuer.clientId,
    code_verifier: begun.verifier,
  });
  const refusal = new Error(`${begun.issuer.name} gave no token for its code.`);
  const answer = await fetch(begun.issuer.tokenEndpoint, { method: "POST", body: form, credentials: "omit" }).catch(() => {
    throw refusal;
  });
  if (!answer.ok) throw refusal;
  const given = (await answer.json()) as Record<string, unknown>;
  const token = given[begun.issuer.token];
  if (typeof token !== "string") throw refusal;
  return token;
}
