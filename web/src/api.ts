// The public API, as far as the dashboard uses it. The types mirror supervisor/ostler/control/views.py by name; units are
// its units: seconds for ages and durations, bytes for sizes, unix time for instants.

import { currentSecret, forgetSecret, keepSecret } from "./secret";
import { readEvents } from "./sse";

export type WorkerState = "booting" | "ready" | "draining" | "stopping";
export type FleetState = "starting" | "ready" | "degraded" | "reloading" | "paused" | "draining" | "stopping";
export type ReloadPhase = "loading" | "canary" | "rolling" | "done" | "failed" | "superseded" | "rolled back";

export interface RequestView {
  slot: number;
  pid: number;
  thread: number;
  method: string;
  path: string;
  age: number;
  deadline_in: number | null;
  upgraded: boolean;
}

export interface WorkerView {
  slot: number;
  pid: number | null;
  generation: number;
  state: WorkerState;
  leaving: string | null;
  age: number;
  threads: number;
  connections: number;
  requests: number;
  errors: number;
  in_flight: RequestView[];
  cpu_percent: number | null;
  rss: number | null;
  uss: number | null;
  deadline_in: number | null;
  upgraded: number;
  implausible: boolean;
}

export interface Totals {
  requests: number;
  errors: number;
  bytes_sent: number;
  connections: number;
  spawned: number;
  deaths: number;
}

export interface ChangeView {
  name: string;
  before: unknown;
  after: unknown;
  takes_effect: "live" | "generation" | "restart";
}

export interface ReloadView {
  generation: number;
  phase: ReloadPhase;
  replaced: number;
  of: number;
  seconds: number;
  asked_by: string;
  reason: string | null;
  traceback: string | null;
  changes: ChangeView[];
  environment: ChangeView[];
}

export interface StatusView {
  name: string;
  version: string;
  pid: number;
  app: string;
  python: string;
  state: FleetState;
  health: string;
  wanted: number;
  ready: number;
  booting: number;
  draining: number;
  generation: number;
  worker_class: string;
  threads: number;
  timeout: number;
  listeners: string[];
  started_at: number;
  uptime: number;
  in_flight: number;
  totals: Totals;
  reload: ReloadView | null;
  override: number | null;
  workers_range: [number, number] | null;
  program_since: number;
  core: string;
  upgraded: number;
}

export interface SampleView {
  at: number;
  requests_per_second: number;
  errors_per_second: number;
  p50: number | null;
  p95: number | null;
  p99: number | null;
  in_flight: number;
  ready: number;
  wanted: number;
}

export interface EventView {
  id: number;
  at: number;
  name: string;
  fields: Record<string, unknown>;
}

export interface ExitView {
  id: number;
  at: number;
  kind: "worker" | "fork server";
  slot: number | null;
  pid: number;
  generation: number;
  cause: string;
  status: string;
  code: number | null;
  signal: number | null;
  age: number;
  requests: number;
  last_requests: string[];
  peak_memory: number | null;
  stack: string | null;
  planned: boolean;
}

/** The request is in progress; events after this id report its outcome. */
export interface Asked {
  after: number;
}

export interface ErrorView {
  error: string;
  message: string;
}

/** The events of `GET /v1/stream`: name and type of the data. */
export interface StreamEvents {
  history: SampleView[];
  events: EventView[];
  exits: ExitView[];
  status: StatusView;
  workers: WorkerView[];
  sample: SampleView;
  event: EventView;
  exit: ExitView;
}

/** A session: `token` is its secret, `seconds` how long it lasts. */
export interface SessionView {
  token: string;
  seconds: number;
}

/** The supervisor refused a request. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly view: ErrorView,
  ) {
    super(view.message);
  }
}

/** No answer, or an answer that is not the supervisor's. */
export class Unreachable extends Error {
  constructor() {
    super("The supervisor does not answer.");
  }
}

const TIMEOUT_MS = 10_000;

/** Options of every request. Cookies are not sent: the supervisor uses none, and other ports may have many. */
function options(secret: string | null): RequestInit & { headers: Record<string, string> } {
  const headers: Record<string, string> = secret === null ? {} : { authorization: `Bearer ${secret}` };
  return { cache: "no-store", credentials: "omit", redirect: "error", headers };
}

async function call(method: "GET" | "POST", path: string, body?: object): Promise<unknown> {
  const secret = currentSecret();
  const init = options(secret);
  init.method = method;
  init.signal = AbortSignal.timeout(TIMEOUT_MS);
  if (body) {
    init.body = JSON.stringify(body);
    init.headers["content-type"] = "application/json";
  }
  let answer: Response;
  let text: string;
  try {
    answer = await fetch(path, init);
    text = await answer.text();
  } catch {
    throw new Unreachable();
  }
  const content = parse(text);
  if (answer.ok) return content;
  if (answer.status === 401 && secret !== null) forgetSecret(secret);
  if (isErrorView(content)) throw new Refused(answer.status, content);
  // Sent by a proxy or a tunnel whose supervisor is gone.
  if (answer.status >= 500) throw new Unreachable();
  throw new Refused(answer.status, { error: "unknown", message: `${method} ${path} was answered with ${answer.status}.` });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function isErrorView(content: unknown): content is ErrorView {
  return typeof content === "object" && content !== null && "error" in content && "message" in content;
}

/** Opens the stream; resolves when it ends. Rejects if there is no connection or `signal` aborts it. */
async function stream(signal: AbortSignal, take: (name: string, data: string) => void): Promise<void> {
  const answer = await fetch("/v1/stream", { ...options(currentSecret()), signal });
  if (answer.ok && answer.body) await readEvents(answer.body, take);
}

export const api = {
  stream,
  status: () => call("GET", "/v1/status") as Promise<StatusView>,
  login: async (code: string) => {
    const view = (await call("POST", "/v1/login", { code })) as SessionView;
    keepSecret(view.token);
  },
  scale: (delta: number) => call("POST", "/v1/scale", { delta }),
  reload: () => call("POST", "/v1/reload", {}) as Promise<ReloadView>,
  recycle: (slot: number) => call("POST", `/v1/workers/${slot}/recycle`),
  refork: () => call("POST", "/v1/refork", {}) as Promise<Asked>,
  events: (after: number) => call("GET", `/v1/events?after=${after}`) as Promise<EventView[]>,
};
