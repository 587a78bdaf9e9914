// The door: a token or an API key, or an issuer that the server trusts.

import { useEffect, useState } from "preact/hooks";
import { Refusal, ask, signIn, signOut, signedOut, token } from "./api";
import { type Issuer, begin, finish, issuers } from "./oidc";
import { useValue } from "./store";
import { Field, Logo } from "./ui";

export function SignIn() {
  const why = useValue(signedOut);
  const [given, setGiven] = useState("");
  const [wrong, setWrong] = useState<string | null>(why);
  const [isBusy, setBusy] = useState(false);
  const [known, setKnown] = useState<Issuer[]>([]);

  useEffect(() => {
    document.title = "Sign in · Sandpool";
    issuers().then(setKnown, () => undefined);
    finish().then(
      (got) => (got ? enter(got) : undefined),
      (error: Error) => setWrong(error.message),
    );
  }, []);

  /** Tried once before it is kept, so that a wrong one is told here. */
  const enter = async (value: string) => {
    setBusy(true);
    setWrong(null);
    token.set(null);
    try {
      await ask("/pools", { headers: { Authorization: `Bearer ${value}` } });
      signIn(value);
    } catch (error) {
      signOut(null);
      setWrong(error instanceof Refusal ? error.message : "The server does not answer.");
      setBusy(false);
    }
  };

  return (
    <main class="door">
      <div class="card">
        <h1 class="brand">
          <Logo /> Sandpool
        </h1>
        <form class="stack" onSubmit={(event) => { event.preventDefault(); void enter(given.trim()); }}>
          <Field label="Token or API key" hint="sandpool console prints an address that signs you in; sandpool token, a token." wrong={wrong ?? undefined}>
            {(attributes) => (
              <input {...attributes} type="password" autocomplete="off" spellcheck={false} autofocus value={given} onInput={(event) => setGiven(event.currentTarget.value)} />
            )}
          </Field>
          <button type="submit" class="primary" disabled={isBusy || !given.trim()}>
            Sign in
          </button>
        </form>
        {known.length > 0 && (
          <>
            <span class="or">or</span>
            {known.map((issuer) => (
              <button key={issuer.issuer} type="button" disabled={isBusy} onClick={() => begin(issuer).catch((error: Error) => setWrong(error.message))}>
                Sign in with {issuer.name}
              </button>
            ))}
          </>
        )}
      </div>
    </main>
  );
}
