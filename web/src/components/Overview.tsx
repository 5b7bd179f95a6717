// The top of the page: the state of the fleet, and the actions.

import type { ComponentChildren, JSX } from "preact";
import type { StatusView } from "../api";
import { refork, reload, scale } from "../actions";
import { duration, plural } from "../format";
import { busy, dataNow, link, notice, operable, reloading, status, statusAt, tone } from "../store";
import { Icon, type Shape } from "./Icon";
import { Reload } from "./Reload";

export function Overview(): JSX.Element | null {
  const view = status.value;
  if (!view) return null;
  return (
    <section class="overview" aria-label="Overview">
      <div class="headline">
        <Health view={view} />
        <Controls view={view} />
      </div>
      <Notice />
      <Details view={view} />
      <Reload />
    </section>
  );
}

function Health({ view }: { view: StatusView }): JSX.Element {
  const state = link.value;
  let shape: Shape = tone.value === "bad" ? "outage" : view.state;
  let sentence = view.health;
  let before: string | null = null;
  if (state === "lost" || state === "gone") {
    shape = "lost";
    before = view.health;
    sentence =
      state === "lost"
        ? "Connection to the supervisor lost. Trying again."
        : view.state === "stopping"
          ? "The supervisor has stopped."
          : "The supervisor does not answer.";
  }
  return (
    <div class="health">
      <Icon shape={shape} size={26} />
      <div>
        <h1 aria-live="polite" aria-atomic="true">
          <span class="sr">{before === null ? `${view.state}: ` : ""}</span>
          {sentence}
        </h1>
        {before !== null && <p class="before">Before that: {before}</p>}
      </div>
    </div>
  );
}

function Controls({ view }: { view: StatusView }): JSX.Element {
  const still = !operable.value || busy.value.has("scale");
  return (
    <div class="controls">
      <div class="stepper" role="group" aria-label="Number of workers">
        <Action label="Remove a worker" off={still || view.wanted <= 1} run={() => scale(-1)}>
          −
        </Action>
        <p>
          <b>{view.ready}</b> of <b>{view.wanted}</b> ready
        </p>
        <Action label="Add a worker" off={still} run={() => scale(1)}>
          +
        </Action>
      </div>
      <Action off={!operable.value || reloading.value || busy.value.has("reload")} run={reload}>
        {reloading.value ? "Reloading…" : "Reload"}
      </Action>
      <Action
        title="Fork new workers from the one that has served most: they share what it has loaded"
        off={!operable.value || reloading.value || busy.value.has("refork")}
        run={refork}
      >
        {busy.value.has("refork") ? "Reforking…" : "Refork"}
      </Action>
    </div>
  );
}

interface ActionProps {
  run: () => unknown;
  off: boolean;
  label?: string;
  title?: string;
  small?: boolean;
  children: ComponentChildren;
}

/** A button that keeps the keyboard focus while it is off, unlike with `disabled`. */
export function Action({ run, off, label, title = label, small, children }: ActionProps): JSX.Element {
  return (
    <button
      type="button"
      class={small ? "small" : undefined}
      aria-label={label}
      title={title}
      aria-disabled={off}
      onClick={() => !off && run()}
    >
      {children}
    </button>
  );
}

function Notice(): JSX.Element {
  return (
    <div role="alert">
      {notice.value !== null && (
        <p class="notice">
          <span>{notice.value}</span>
          <button type="button" class="small" onClick={() => (notice.value = null)}>
            Dismiss
          </button>
        </p>
      )}
    </div>
  );
}

function Details({ view }: { view: StatusView }): JSX.Element {
  const uptime = view.uptime + (dataNow.value - statusAt.value) / 1000;
  return (
    <dl class="instance-details">
      <Detail name="Listening on">
        {view.listeners.map((address) => (
          <code key={address}>{address}</code>
        ))}
      </Detail>
      <Detail name="Workers">
        {view.worker_class}, {plural(view.threads, "thread")} each
        {view.override !== null && ", their number set by hand"}
        {view.override === null && view.workers_range && `, ${view.workers_range.join(" to ")} by load`}
        {view.booting > 0 && `, ${view.booting} booting`}
        {view.draining > 0 && `, ${view.draining} draining`}
      </Detail>
      <Detail name="Timeout">{view.timeout > 0 ? duration(view.timeout) : "never"}</Detail>
      <Detail name="Generation">{view.generation}</Detail>
      <Detail name="Up for">
        <time dateTime={new Date(view.started_at * 1000).toISOString()} title={`since ${new Date(view.started_at * 1000).toLocaleString()}`}>
          {duration(uptime)}
        </time>
      </Detail>
    </dl>
  );
}

function Detail({ name, children }: { name: string; children: ComponentChildren }): JSX.Element {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
