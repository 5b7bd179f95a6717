// The state of the page. `stream` and `actions` write it, components read it; nothing else is shared.

import { batch, computed, signal } from "@preact/signals";
import type {
  EventView,
  ExitView,
  FleetState,
  ReloadView,
  SampleView,
  StatusView,
  StreamEvents,
  WorkerView,
} from "./api";

/** `live`: data arrives. `lost`: the stream broke or is silent. `gone`: a new request got no answer. */
export type Link = "connecting" | "live" | "lost" | "gone";
export type Session = "unknown" | "in" | "out";
export type Tone = "ok" | "busy" | "warn" | "bad" | "idle";

const SAMPLES_KEPT = 600;
const EVENTS_KEPT = 200;
const EXITS_KEPT = 50;

export const session = signal<Session>("unknown");
export const link = signal<Link>("connecting");
export const loginError = signal<string | null>(null);

export const status = signal<StatusView | null>(null);
export const statusAt = signal(0);
export const workers = signal<WorkerView[]>([]);
export const workersAt = signal(0);
export const samples = signal<SampleView[]>([]);
/** Newest first. */
export const events = signal<EventView[]>([]);
/** Newest first. */
export const exits = signal<ExitView[]>([]);
export const lastDataAt = signal(0);

/** Wall clock in milliseconds; updated by `ticker`. */
export const now = signal(Date.now());
/** The clock for ages: it stops when no data arrives. */
export const dataNow = computed(() => (link.value === "live" ? now.value : lastDataAt.value));

/** Names of the actions that wait for their answer. */
export const busy = signal<ReadonlySet<string>>(new Set());
/** Why the newest action failed. */
export const notice = signal<string | null>(null);

export const operable = computed(
  () => link.value === "live" && status.value !== null && status.value.state !== "stopping",
);

export const reloading = computed(() => {
  const phase = status.value?.reload?.phase;
  return phase === "loading" || phase === "canary" || phase === "rolling";
});

const TONES: Record<FleetState, Tone> = {
  starting: "busy",
  ready: "ok",
  degraded: "warn",
  reloading: "busy",
  paused: "idle",
  draining: "idle",
  stopping: "idle",
};

/** The fleet's state as a tone; degraded without a ready worker is an outage. */
export const tone = computed<Tone>(() => {
  const view = status.value;
  if (!view) return "idle";
  return view.state === "degraded" && view.ready === 0 ? "bad" : TONES[view.state];
});

function noteArrival(): number {
  const at = Date.now();
  lastDataAt.value = at;
  now.value = at;
  return at;
}

/** One function per server-sent event. */
export const accept: { [Name in keyof StreamEvents]: (data: StreamEvents[Name]) => void } = {
  history(views: SampleView[]): void {
    noteArrival();
    samples.value = views.slice(-SAMPLES_KEPT);
  },
  sample(view: SampleView): void {
    noteArrival();
    const last = samples.value.at(-1);
    // A sample may arrive twice around a reconnection.
    if (last && view.at <= last.at) return;
    samples.value = [...samples.value.slice(1 - SAMPLES_KEPT), view];
  },
  events(views: EventView[]): void {
    noteArrival();
    events.value = views.slice(-EVENTS_KEPT).reverse();
  },
  event(view: EventView): void {
    noteArrival();
    const newest = events.value[0];
    if (newest && view.id <= newest.id) return;
    events.value = [view, ...events.value.slice(0, EVENTS_KEPT - 1)];
  },
  exits(views: ExitView[]): void {
    noteArrival();
    exits.value = views.slice(0, EXITS_KEPT);
  },
  exit(view: ExitView): void {
    noteArrival();
    exits.value = [view, ...exits.value.slice(0, EXITS_KEPT - 1)];
  },
  status(view: StatusView): void {
    batch(() => {
      statusAt.value = noteArrival();
      status.value = view;
    });
  },
  workers(views: WorkerView[]): void {
    batch(() => {
      workersAt.value = noteArrival();
      workers.value = views;
    });
  },
};

export function acceptReload(view: ReloadView): void {
  if (status.value) status.value = { ...status.value, reload: view };
}
