// Small parts that pages share.

import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import type { Polled } from "./poll";
import { clock } from "./format";

export function Badge({ tone = "", children }: { tone?: string; children: ComponentChildren }) {
  return <span class={`badge ${tone}`}>{children}</span>;
}

/** What is read is of before: the server is away. */
export function Stale({ of }: { of: Polled<unknown> }) {
  return of.isStale && of.at ? <span class="stale">as of {clock(of.at)}</span> : null;
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

/** Something went wrong, in the server's words. */
export function Wrong({ error }: { error: Error | null }) {
  return error ? (
    <p class="note bad" role="alert">
      {error.message}
    </p>
  ) : null;
}

export function Head({ title, crumbs, children }: { title: string; crumbs?: ComponentChildren; children?: ComponentChildren }) {
  useEffect(() => {
    document.title = `${title} · Sandpool`;
  }, [title]);
  return (
    <>
      {crumbs && (
        <nav class="crumbs" aria-label="Breadcrumbs">
          {crumbs}
        </nav>
      )}
      <div class="head">
        <h1 tabIndex={-1}>{title}</h1>
        {children}
      </div>
    </>
  );
}

/** A share of a whole; what is nearly used up looks so. */
export function Bar({ share, label, wide }: { share: number; label: string; wide?: boolean }) {
  const percent = Math.max(0, Math.min(100, share * 100));
  return (
    <span class={`bar ${wide ? "wide" : ""}`} role="img" aria-label={`${label}: ${percent.toFixed(0)} %`}>
      <i class={percent >= 85 ? "high" : ""} style={{ width: `${percent}%` }} />
    </span>
  );
}

interface DialogProps {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
}

/** A dialog over the page. Escape closes it, and the focus goes back to where it was. */
export function Dialog({ title, onClose, children }: DialogProps) {
  const box = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    box.current?.showModal();
    return () => {
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  return (
    <dialog ref={box} aria-labelledby={id} onClose={onClose} onClick={(event) => event.target === box.current && onClose()}>
      <h2 id={id}>{title}</h2>
      {children}
    </dialog>
  );
}

/** Asks before something that cannot be undone. */
export function Confirm(props: { title: string; text: string; word: string; isBusy?: boolean; error?: Error | null; onYes: () => void; onNo: () => void }) {
  return (
    <Dialog title={props.title} onClose={props.onNo}>
      <p>{props.text}</p>
      <Wrong error={props.error ?? null} />
      <div class="actions">
        <button type="button" onClick={props.onNo} autofocus>
          Cancel
        </button>
        <button type="button" class="danger" disabled={props.isBusy} onClick={props.onYes}>
          {props.word}
        </button>
      </div>
    </Dialog>
  );
}

interface FieldProps {
  label: string;
  hint?: string | undefined;
  wrong?: string | undefined;
  children: (given: { id: string; "aria-describedby"?: string; "aria-invalid"?: "true" }) => ComponentChildren;
}

/** A field with its label, what it is for, and what is wrong with it. */
export function Field({ label, hint, wrong, children }: FieldProps) {
  const id = useId();
  const about = [hint ? `${id}-hint` : "", wrong ? `${id}-wrong` : ""].filter(Boolean).join(" ");
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children({ id, ...(about ? { "aria-describedby": about } : {}), ...(wrong ? { "aria-invalid": "true" as const } : {}) })}
      {hint && (
        <span class="hint" id={`${id}-hint`}>
          {hint}
        </span>
      )}
      {wrong && (
        <span class="wrong" id={`${id}-wrong`} role="alert">
          {wrong}
        </span>
      )}
    </div>
  );
}

const ICONS = {
  overview: "M3 12h4l3-8 4 16 3-8h4",
  pools: "M4 7c0-2 3.600-3 8-3s8 1 8 3-3.600 3-8 3-8-1-8-3Zm0 0v10c0 2 3.600 3 8 3s8-1 8-3V7M4 12c0 2 3.600 3 8 3s8-1 8-3",
  sessions: "M4 5h16v11H4zM9 20h6M12 16v4",
  play: "M7 4.500v15l12-7.500z",
  stop: "M6 6h12v12H6z",
  trash: "M4 7h16M10 3h4M6 7l1 14h10l1-14M10 11v6M14 11v6",
  plus: "M12 5v14M5 12h14",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  keyboard: "M3 6h18v12H3zM7 10h.01M11 10h.01M15 10h.01M8 14h8",
} as const;

export function Icon({ name }: { name: keyof typeof ICONS }) {
  return (
    <svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">
      <path d={ICONS[name]} />
    </svg>
  );
}

export function Logo() {
  return (
    <svg viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" fill="#3159c8" />
      <path d="M7 12.500q4.500-4 9 0t9 0M7 20.500q4.500-4 9 0t9 0" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round" />
    </svg>
  );
}
