// The newest reload: one line if it is in order, and the complete reason if it failed.

import { useState } from "preact/hooks";
import type { JSX } from "preact";
import type { ChangeView, ReloadPhase, ReloadView } from "../api";
import { elapsed } from "../format";
import { dataNow, reloading, status, statusAt } from "../store";

const PHASE_TEXTS: Record<ReloadPhase, (view: ReloadView) => string> = {
  loading: () => "loading configuration and app",
  canary: () => "booting the first worker",
  rolling: (view) => `${view.replaced} of ${view.of} workers replaced`,
  done: (view) => `${view.replaced} of ${view.of} workers replaced`,
  failed: () => "failed",
  superseded: () => "superseded by a newer one",
  "rolled back": () => "rolled back",
};

export function Reload(): JSX.Element | null {
  const view = status.value?.reload;
  if (!view) return null;
  const running = reloading.value;
  const failed = view.phase === "failed" || view.phase === "rolled back";
  const seconds = view.seconds + (running ? (dataNow.value - statusAt.value) / 1000 : 0);
  return (
    <div class="reload" data-phase={view.phase}>
      <p class="line">
        <b>
          {running ? "Reloading to" : failed ? "Reload to" : "Last reload:"} generation {view.generation}
        </b>
        <span role="status">{PHASE_TEXTS[view.phase](view)}</span>
        <span class="quiet">
          {running ? elapsed(seconds) : `in ${elapsed(seconds)}`}, asked by {view.asked_by}
        </span>
      </p>
      {view.environment.length > 0 && <p class="environment">{view.environment.map(change).join(", ")}</p>}
      {running && <Progress view={view} />}
      {failed && <Failure key={view.generation} view={view} />}
    </div>
  );
}

function change({ name, before, after }: ChangeView): string {
  return `${name} ${String(before)} → ${String(after)}`;
}

function Progress({ view }: { view: ReloadView }): JSX.Element {
  // Loading and canary are one step each, and so is every worker.
  const steps = 2 + Math.max(view.of, 1);
  const done = view.phase === "loading" ? 0 : view.phase === "canary" ? 1 : 2 + view.replaced;
  return (
    <div class="progress" role="progressbar" aria-label="Reload" aria-valuemin={0} aria-valuemax={steps} aria-valuenow={done}>
      {steps <= 42 ? (
        Array.from({ length: steps }, (_, i) => <i key={i} class={i < done ? "done" : i === done ? "now" : undefined} />)
      ) : (
        <i class="done" style={{ flexGrow: done / steps, flexBasis: 0 }} />
      )}
    </div>
  );
}

const REMEMBERED = "ostler.closed-traceback";

function Failure({ view }: { view: ReloadView }): JSX.Element {
  const id = `${status.value?.started_at}/${view.generation}`;
  const [open] = useState(() => localStorage.getItem(REMEMBERED) !== id);
  const remember = (event: { currentTarget: HTMLDetailsElement }): void => {
    if (event.currentTarget.open) localStorage.removeItem(REMEMBERED);
    else localStorage.setItem(REMEMBERED, id);
  };
  return (
    <div class="failure">
      <p>
        <b>{view.reason ?? "No reason is known."}</b>{" "}
        {status.value && status.value.ready > 0 && <span>{view.phase === "failed" ? "The old generation continues to serve." : "The old generation serves again."}</span>}
      </p>
      {view.traceback !== null && (
        <details open={open} onToggle={remember}>
          <summary>Traceback</summary>
          <Trace text={view.traceback} />
        </details>
      )}
    </div>
  );
}

export function Trace({ text }: { text: string }): JSX.Element {
  const [copied, setCopied] = useState(false);
  const copy = async (): Promise<void> => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
  };
  return (
    <div class="trace">
      <pre tabIndex={0} aria-label="Traceback">
        {text.trimEnd()}
      </pre>
      {"clipboard" in navigator && (
        <button type="button" class="small" onClick={() => void copy()}>
          {copied ? "Copied" : "Copy"}
        </button>
      )}
    </div>
  );
}
