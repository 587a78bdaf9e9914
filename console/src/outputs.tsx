// What an execution has said and shown.

import { useEffect, useRef, useState } from "preact/hooks";
import { pieces as coloured } from "./ansi";
import { bytes, span } from "./format";
import type { End, Piece, Rich, Run } from "./run";
import { Badge } from "./ui";

export function Text({ text, look }: { text: string; look: string }) {
  return (
    <pre class={`text ${look}`} tabIndex={text.length > 4000 ? 0 : undefined}>
      {coloured(text).map((piece, at) => (piece.look ? <span key={at} class={piece.look}>{piece.text}</span> : piece.text))}
    </pre>
  );
}

const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml"];

/** A value in the best of its forms. */
export function Shown({ value }: { value: Rich }) {
  const image = value.forms.find((form) => IMAGES.includes(form.type) && form.base64);
  if (image) return <img class="output-image" src={`data:${image.type};base64,${image.base64}`} alt={value.text ? `Figure: ${value.text}` : "Figure"} />;
  const html = value.forms.find((form) => form.type === "text/html" && form.text);
  if (html?.text) return <Html html={html.text} text={value.text} />;
  const json = value.forms.find((form) => form.type === "application/json" && form.text);
  return (
    <>
      <Text text={json?.text ?? value.text} look="result" />
      {value.dropped.map((form) => (
        <p key={form.type} class="muted">
          {form.type} of {bytes(form.bytes)} was too large to keep.
        </p>
      ))}
    </>
  );
}

/** It has scripts, or might have. */
const SCRIPTED = /<script|\son\w+\s*=/i;

/** HTML of a sandbox, in a document that has no rights and reaches nothing (SECURITY.md). Its scripts run when somebody wants them to. */
function Html({ html, text }: { html: string; text: string }) {
  const frame = useRef<HTMLIFrameElement>(null);
  const [height, setHeight] = useState(60);
  const [hasScripts, setScripts] = useState(false);
  useEffect(() => {
    const heard = (event: MessageEvent) => {
      const window = frame.current?.contentWindow;
      if (!window || event.source !== window) return;
      const said = event.data as { isReady?: boolean; height?: unknown };
      if (said?.isReady) {
        const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset["theme"] && matchMedia("(prefers-color-scheme: dark)").matches);
        window.postMessage({ html, isDark }, "*");
      } else if (typeof said?.height === "number") setHeight(Math.max(24, Math.min(640, Math.ceil(said.height) + 2)));
    };
    addEventListener("message", heard);
    return () => removeEventListener("message", heard);
  }, [html, hasScripts]);
  return (
    <>
      <iframe key={String(hasScripts)} ref={frame} class="output-frame" sandbox="allow-scripts" src={`/console/${hasScripts ? "output-scripts" : "output"}.html`}
        title={`Output: ${text.slice(0, 80) || "HTML"}`} style={{ height: `${height}px` }} />
      {!hasScripts && SCRIPTED.test(html) && (
        <div>
          <button type="button" class="small" onClick={() => setScripts(true)} title="They have no rights here and reach nothing, but they are the sandbox's">
            Run its scripts
          </button>
        </div>
      )}
    </>
  );
}

function One({ piece }: { piece: Piece }) {
  switch (piece.kind) {
    case "stdout":
    case "stderr":
      return <Text text={piece.text} look={piece.kind} />;
    case "rich":
      return <Shown value={piece.value} />;
    case "error":
      return <Text text={piece.traceback || `${piece.name}: ${piece.message}`} look="error" />;
    case "refused":
      return <p class="note bad">{piece.message}</p>;
  }
}

export function Outputs({ run, label }: { run: Run; label: string }) {
  return (
    <div class="outputs" role="log" aria-live="polite" aria-label={label}>
      {run.cut > 0 && <p class="muted">{bytes(run.cut)} of text before this are not shown here.</p>}
      {run.pieces.map((piece, at) => (
        <One key={at} piece={piece} />
      ))}
    </div>
  );
}

const TONES: Record<string, string> = { succeeded: "good", raised: "bad", timedOut: "bad", died: "bad", notStarted: "bad", cancelled: "warn" };
const WORDS: Record<string, string> = { succeeded: "done", raised: "raised", timedOut: "timed out", died: "died", notStarted: "not started", cancelled: "stopped", exited: "exited" };

export function Outcome({ end }: { end: Pick<End, "outcome" | "exitCode"> }) {
  const tone = end.outcome === "exited" ? (end.exitCode === 0 ? "good" : "bad") : (TONES[end.outcome] ?? "");
  return (
    <Badge tone={tone}>
      {WORDS[end.outcome] ?? end.outcome}
      {end.outcome === "exited" ? ` ${end.exitCode}` : ""}
    </Badge>
  );
}

export function Foot({ run }: { run: Run }) {
  const { end } = run;
  if (!end) return null;
  const dropped = (end.truncated?.stdout ?? 0) + (end.truncated?.stderr ?? 0);
  return (
    <div class="foot">
      <Outcome end={end} />
      {end.durationMilliseconds !== null && <span>{span(end.durationMilliseconds / 1000)}</span>}
      {end.detail && <span>{end.detail}</span>}
      {dropped > 0 && <span>{bytes(dropped)} of output were dropped over the limit</span>}
      {end.stateLost && <Badge tone="warn">variables are gone: the interpreter was replaced</Badge>}
    </div>
  );
}
