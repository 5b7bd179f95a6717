import type { JSX } from "preact";
import type { EventView } from "../api";
import { moment } from "../format";
import { events, now } from "../store";
import { Trace } from "./Reload";

const SHOWN = 50;
/** Events that need attention, by parts of their names. */
export const ALARMING = /fail|died|death|crash|overdue|abort|kill|degraded|error|lost|exhaust|refused|rolled_back|stalled/;

export function Events(): JSX.Element {
  const newest = events.value.slice(0, SHOWN);
  return (
    <section class="events" aria-labelledby="events">
      <h2 id="events">Events</h2>
      {newest.length === 0 && <p class="empty">Nothing has happened yet.</p>}
      <ol>
        {newest.map((event) => (
          <Row key={event.id} event={event} />
        ))}
      </ol>
    </section>
  );
}

function Row({ event }: { event: EventView }): JSX.Element {
  const fields = Object.entries(event.fields).filter(([, value]) => value !== null);
  const short = fields.filter(([, value]) => !isLong(value));
  const long = fields.filter(([, value]) => isLong(value));
  return (
    <li class={ALARMING.test(event.name) ? "alarming" : undefined}>
      <time dateTime={new Date(event.at * 1000).toISOString()}>{moment(event.at, now.peek())}</time>
      <b>{event.name}</b>
      <span class="fields">
        {short.map(([key, value]) => (
          <span key={key}>
            <i>{key}</i> {text(value)}
          </span>
        ))}
      </span>
      {long.map(([key, value]) => (
        <details key={key}>
          <summary>{key}</summary>
          <Trace text={text(value)} />
        </details>
      ))}
    </li>
  );
}

function isLong(value: unknown): boolean {
  return typeof value === "string" && value.includes("\n");
}

function text(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}
