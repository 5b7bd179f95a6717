import type { JSX } from "preact";
import type { RequestView, WorkerView } from "../api";
import { recycle } from "../actions";
import { bytes, count, duration, elapsed, NONE, rate } from "../format";
import { busy, dataNow, operable, workers, workersAt } from "../store";
import { Icon } from "./Icon";
import { Action } from "./Overview";

const SHOWN = 3;

export function Workers(): JSX.Element {
  const rows = workers.value;
  return (
    <section class="workers" aria-labelledby="workers">
      <h2 id="workers">Workers</h2>
      {/* Roles, because on a phone the rows are cards and browsers then forget that this is a table. */}
      <table role="table" aria-labelledby="workers">
        <thead role="rowgroup">
          <tr role="row">
            <th role="columnheader" class="n">Slot</th>
            <th role="columnheader">State</th>
            <th role="columnheader" class="n">PID</th>
            <th role="columnheader" class="n" title="Generation">Gen</th>
            <th role="columnheader" class="n">Age</th>
            <th role="columnheader" class="n">Requests</th>
            <th role="columnheader" class="n">Errors</th>
            <th role="columnheader" class="wide">In flight</th>
            <th role="columnheader" class="n">Deadline</th>
            <th role="columnheader" class="n">CPU</th>
            <th role="columnheader" class="n" title="Resident memory">RSS</th>
            <th role="columnheader" class="n" title="Memory that only this worker uses">USS</th>
            <th role="columnheader"><span class="sr">Action</span></th>
          </tr>
        </thead>
        <tbody role="rowgroup">
          {rows.map((worker, i) => (
            <Row
              key={`${worker.slot}/${worker.generation}/${worker.pid ?? i}`}
              worker={worker}
              again={rows[i - 1]?.slot === worker.slot}
            />
          ))}
        </tbody>
      </table>
      {rows.length === 0 && <p class="empty">No worker is running.</p>}
    </section>
  );
}

function Row({ worker, again }: { worker: WorkerView; again: boolean }): JSX.Element {
  const leaving = worker.leaving !== null;
  const off = !operable.value || leaving || worker.state !== "ready" || busy.value.has(`recycle ${worker.slot}`);
  return (
    <tr role="row" class={again ? "again" : undefined} data-state={worker.state} data-slot={worker.slot}>
      <td role="cell" class="n slot">{worker.slot}</td>
      <td role="cell" class="state">
        <Icon shape={worker.state} size={12} />
        {worker.state}
        {leaving && <small> {worker.leaving}</small>}
      </td>
      <Cell label="PID" class="mono">{worker.pid ?? NONE}</Cell>
      <Cell label="Gen">{worker.generation}</Cell>
      <Cell label="Age"><Age seconds={worker.age} /></Cell>
      <Cell label="Requests">{count(worker.requests)}</Cell>
      <Cell label="Errors" class={worker.errors === 0 ? "zero" : worker.errors >= 0.01 * worker.requests ? "bad" : ""}>{count(worker.errors)}</Cell>
      <td role="cell" class="wide flights">
        {worker.in_flight.length > 0 ? <Flights requests={worker.in_flight} /> : <span class="zero">idle</span>}
      </td>
      <Cell label="Deadline" class="deadline"><Deadline seconds={worker.deadline_in} /></Cell>
      <Cell label="CPU">{worker.cpu_percent === null ? NONE : `${rate(worker.cpu_percent)}%`}</Cell>
      <Cell label="RSS">{bytes(worker.rss)}</Cell>
      <Cell label="USS">{bytes(worker.uss)}</Cell>
      <td role="cell" class="act">
        <Action small off={off} label={`Recycle worker ${worker.slot}`} run={() => recycle(worker.slot)}>
          Recycle
        </Action>
      </td>
    </tr>
  );
}

function Cell(props: { label: string; class?: string; children: JSX.Element | string | number }): JSX.Element {
  return (
    <td role="cell" class={`n ${props.class ?? ""}`} data-label={props.label}>
      {props.children}
    </td>
  );
}

function sinceArrival(): number {
  return Math.max(0, dataNow.value - workersAt.value) / 1000;
}

function Age({ seconds }: { seconds: number }): JSX.Element {
  return <>{duration(seconds + sinceArrival())}</>;
}

function Flights({ requests }: { requests: RequestView[] }): JSX.Element {
  // Websockets and their like stay for hours: they must not hide what takes too long.
  const oldestFirst = [...requests].sort((a, b) => Number(a.upgraded) - Number(b.upgraded) || b.age - a.age);
  const more = oldestFirst.length - SHOWN;
  return (
    <ul>
      {oldestFirst.slice(0, SHOWN).map((request) => (
        <Flight key={request.thread} request={request} />
      ))}
      {more > 0 && <li class="quiet">and {more} more</li>}
    </ul>
  );
}

function Flight({ request }: { request: RequestView }): JSX.Element {
  const age = request.age + sinceArrival();
  const left = request.deadline_in === null ? null : request.deadline_in - sinceArrival();
  // The used part of the request's time; shown above a minimum.
  const used = left === null ? 0 : Math.min(1, age / Math.max(age, age + left));
  return (
    <li class={left !== null && left < 0 ? "overdue" : used > 0.7 ? "late" : undefined}>
      <code title={`${request.method} ${request.path}`}>
        <b>{request.method}</b> {request.path}
        {request.upgraded && <small> upgraded</small>}
      </code>
      <span class="n">{elapsed(age)}</span>
      {used > 0.02 && <i style={{ width: `${(100 * used).toFixed(1)}%` }} />}
    </li>
  );
}

function Deadline({ seconds }: { seconds: number | null }): JSX.Element {
  if (seconds === null) return <span class="zero">{NONE}</span>;
  const left = seconds - sinceArrival();
  return left < 0 ? <b class="bad">{elapsed(-left)} over</b> : <>in {elapsed(left)}</>;
}
