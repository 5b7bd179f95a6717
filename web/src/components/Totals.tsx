import type { JSX } from "preact";
import { bytes, count, rate } from "../format";
import { status } from "../store";

export function Totals(): JSX.Element | null {
  const view = status.value;
  if (!view) return null;
  const { requests, errors, bytes_sent, connections, spawned, deaths } = view.totals;
  const share = requests > 0 ? (100 * errors) / requests : 0;
  return (
    <section class="totals" aria-labelledby="totals">
      <h2 id="totals">Since the start</h2>
      <dl>
        <Total name="Requests" value={count(requests)} />
        <Total name="Errors" value={count(errors)} note={errors > 0 ? percent(share) : undefined} bad={share >= 1} />
        <Total name="Sent" value={bytes(bytes_sent)} />
        <Total name="Connections" value={count(connections)} />
        <Total name="Workers started" value={count(spawned)} />
        <Total name="Workers lost" value={count(deaths)} />
      </dl>
    </section>
  );
}

function percent(share: number): string {
  return share < 0.1 ? "< 0.1%" : `${rate(share)}%`;
}

function Total({ name, value, note, bad }: { name: string; value: string; note?: string | undefined; bad?: boolean }): JSX.Element {
  return (
    <div class={bad ? "bad" : undefined}>
      <dt>{name}</dt>
      <dd>
        {value}
        {note && <small> {note}</small>}
      </dd>
    </div>
  );
}
