import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { clock, count, latency, rate } from "../format";
import { samples } from "../store";
import { Chart, type Plot } from "./Chart";

/** The sample under the pointer, in either chart. */
const pointed = signal<number | null>(null);

const gap = (value: number | null): number | null => (value !== null && value > 0 ? value : null);

const TRAFFIC: Plot = {
  floor: 10,
  scale: "linear",
  label: (value) => rate(value),
  series: [
    { of: (s) => s.requests_per_second, colour: "--traffic", width: 1.5, fill: 0.1 },
    { of: (s) => s.errors_per_second, colour: "--bad", width: 0, bars: true },
  ],
};

const LATENCY: Plot = {
  floor: 0.001,
  scale: "log",
  label: (value) => latency(value).replace(/\.0+(?= )/, "").replace(/(\.\d)0 /, "$1 "),
  series: [
    { of: (s) => gap(s.p99), colour: "--latency", width: 1, alpha: 0.55, down: 0.1 },
    { of: (s) => gap(s.p95), colour: "--latency", width: 1, alpha: 0.75, down: 0.16 },
    { of: (s) => gap(s.p50), colour: "--latency", width: 1.8 },
  ],
};

export function Charts(): JSX.Element {
  const all = samples.value;
  const at = pointed.value;
  const sample = (at === null ? undefined : all[at]) ?? all.at(-1);
  const when = at === null || !sample ? null : clock(sample.at);
  const shown = { requests: sample?.requests_per_second ?? 0, errors: sample?.errors_per_second ?? 0 };
  return (
    <div class="charts">
      <section aria-labelledby="traffic">
        <header>
          <h2 id="traffic">Requests per second</h2>
          <p class="reading">
            {when && <span>at {when}</span>}
            <span class="key traffic"><b>{rate(shown.requests)}</b></span>
            <span class="key errors">errors <b>{rate(shown.errors)}</b></span>
            <span>in flight <b>{count(sample?.in_flight ?? 0)}</b></span>
          </p>
        </header>
        <Chart plot={TRAFFIC} pointed={pointed} label={`Requests per second over the last minutes, ${when ?? "now"} ${rate(shown.requests)}`} />
      </section>
      <section aria-labelledby="latency">
        <header>
          <h2 id="latency">Latency</h2>
          <p class="reading">
            {when && <span>at {when}</span>}
            <span class="key p50">p50 <b>{latency(sample?.p50 ?? null)}</b></span>
            <span class="key p95">p95 <b>{latency(sample?.p95 ?? null)}</b></span>
            <span class="key p99">p99 <b>{latency(sample?.p99 ?? null)}</b></span>
          </p>
        </header>
        <Chart plot={LATENCY} pointed={pointed} label={`Latency in the app over the last minutes, ${when ?? "now"} p99 ${latency(sample?.p99 ?? null)}`} />
      </section>
    </div>
  );
}
