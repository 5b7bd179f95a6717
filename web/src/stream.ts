// The connection: log in, open the stream, detect when it breaks, reconnect.
//
// At an end, error or silence (a tunnel may drop bytes) the stream is closed. Then `GET /v1/status` is sent until it
// is answered: 200 opens a new stream, 401 shows the login page, after anything else it is sent again.

import { api, Refused, type StreamEvents } from "./api";
import { accept, lastDataAt, link, loginError, session } from "./store";

// The supervisor sends a sample every second.
const SILENCE_MS = 5_000;
const RETRY_MS = [250, 1_000, 2_000, 3_000, 5_000];

/** Aborts the open stream. */
let source: AbortController | null = null;
let attempts = 0;
let retry: number | undefined;
/** Counts logins and probes, so that late answers are ignored. */
let epoch = 0;

export async function start(): Promise<void> {
  window.addEventListener("hashchange", () => void openPage());
  window.addEventListener("online", reconnectNow);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && reconnectNow());
  window.setInterval(watch, 1_000);
  await openPage();
}

/** The page was opened, perhaps by a login link. */
async function openPage(): Promise<void> {
  const code = codeIn(location.hash);
  if (code === null) {
    if (session.value === "unknown") await probe();
    return;
  }
  // First of all: the code must not stay in the address bar or the history.
  history.replaceState(null, "", location.pathname + location.search);
  await logIn(code);
}

/** Logs in with a code or a complete login link. */
export async function logIn(pasted: string): Promise<void> {
  const text = pasted.trim();
  const hash = text.indexOf("#");
  const code = (hash < 0 ? null : codeIn(text.slice(hash))) ?? text;
  try {
    await api.login(code);
    loginError.value = null;
  } catch (error) {
    loginError.value = (error as Error).message;
  }
  // An existing session stays valid, even if the link is too old.
  await probe();
}

function codeIn(hash: string): string | null {
  return new URLSearchParams(hash.replace(/^#/, "")).get("login");
}

/** Checks whether the supervisor answers and the session is valid. */
async function probe(): Promise<void> {
  const started = ++epoch;
  window.clearTimeout(retry);
  close();
  try {
    const view = await api.status();
    if (started !== epoch) return;
    session.value = "in";
    loginError.value = null;
    accept.status(view);
    open();
  } catch (error) {
    if (started !== epoch) return;
    if (error instanceof Refused && error.status === 401) {
      session.value = "out";
      return;
    }
    link.value = "gone";
    scheduleRetry();
  }
}

function open(): void {
  const opened = new AbortController();
  source = opened;
  const take = (name: string, data: string): void => {
    // A newer supervisor may send more kinds of events.
    if (opened !== source || !Object.hasOwn(accept, name)) return;
    (accept[name as keyof StreamEvents] as (view: unknown) => void)(JSON.parse(data));
    link.value = "live";
    attempts = 0;
  };
  const ended = (): void => {
    if (opened === source) connectionLost();
  };
  api.stream(opened.signal, take).then(ended, ended);
}

function close(): void {
  source?.abort();
  source = null;
}

function connectionLost(): void {
  close();
  if (link.value !== "gone") link.value = "lost";
  scheduleRetry();
}

function scheduleRetry(): void {
  window.clearTimeout(retry);
  retry = window.setTimeout(() => void probe(), RETRY_MS[Math.min(attempts, RETRY_MS.length - 1)]);
  attempts += 1;
}

/** Reconnects at once, when an attempt is likely to succeed. */
export function reconnectNow(): void {
  if (session.value === "out" || source) return;
  attempts = 0;
  void probe();
}

function watch(): void {
  if (source && Date.now() - lastDataAt.value > SILENCE_MS) connectionLost();
}

/** An action was answered with 401: the session has ended. */
export function loggedOut(): void {
  epoch += 1;
  window.clearTimeout(retry);
  close();
  session.value = "out";
}
