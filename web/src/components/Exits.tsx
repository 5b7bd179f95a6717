// How processes ended, for an operator after an alarm.

import type { JSX } from "preact";
import type { ExitView } from "../api";
import { bytes, count, duration, moment } from "../format";
import { exits, now } from "../store";
import { Trace } from "./Reload";

const SHOWN = 12;
export function Exits(): JSX.Element {
  const newest = exits.value.slice(0, SHOWN);
  return (
    <section class="events exits" aria-labelledby="exits">
      <h2 id="exits">Exits</h2>
      {newest.length === 0 && <p class="empty">No process has ended yet.</p>}
      <ol>
        {newest.map((exit) => (
          <Row key={exit.id} exit={exit} />
        ))}
      </ol>
    </section>
  );
}

function Row({ exit }: { exit: ExitView }): JSX.Element {
  return (
    <li data-exit={exit.id} class={exit.planned ? undefined : "alarming"}>
      <time dateTime={new Date(exit.at * 1000).toISOString()}>{moment(exit.at, now.peek())}</time>
      <b>{exit.cause}</b>
      <span class="fields">
        <span>
          {exit.kind} {exit.slot}
        </span>
        <Field name="pid">{String(exit.pid)}</Field>
        <span>{exit.status}</span>
        <Field name="age">{duration(exit.age)}</Field>
        {exit.kind === "worker" && <Field name="requests">{count(exit.requests)}</Field>}
        {exit.peak_memory !== null && <Field name="peak memory">{bytes(exit.peak_memory)}</Field>}
        {exit.last_requests.length > 0 && <Field name="last">{exit.last_requests[0]}</Field>}
      </span>
      {exit.stack !== null && (
        <details>
          <summary>stack</summary>
          <Trace text={exit.stack} />
        </details>
      )}
    </li>
  );
}

function Field({ name, children }: { name: string; children: string | undefined }): JSX.Element {
  return (
    <span>
      <i>{name}</i> {children}
    </span>
  );
}
