// The operator's actions. Each is busy until its answer comes; the reason for a refusal is shown.

import { api, Refused } from "./api";
import { accept, acceptReload, busy, notice } from "./store";
import { loggedOut } from "./stream";

async function act(name: string, work: () => Promise<void>): Promise<void> {
  if (busy.value.has(name)) return;
  busy.value = new Set(busy.value).add(name);
  notice.value = null;
  try {
    await work();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) loggedOut();
    else notice.value = (error as Error).message;
  } finally {
    const rest = new Set(busy.value);
    rest.delete(name);
    busy.value = rest;
  }
}

export const scale = (delta: number): Promise<void> =>
  act("scale", async () => {
    await api.scale(delta);
    accept.status(await api.status());
  });

export const reload = (): Promise<void> =>
  act("reload", async () => {
    acceptReload(await api.reload());
  });

const POLL_MS = 250;
const TIMEOUT_MS = 60_000;

/** Waits for the outcome: the audit of a worker decides whether it can be forked from. */
export const refork = (): Promise<void> =>
  act("refork", async () => {
    let { after } = await api.refork();
    const end = Date.now() + TIMEOUT_MS;
    while (Date.now() < end) {
      for (const event of await api.events(after)) {
        after = event.id;
        if (event.name === "refork_done") return;
        if (event.name === "refork_refused") throw new Error(`No refork: ${event.fields.problem}`);
      }
      await new Promise((wake) => window.setTimeout(wake, POLL_MS));
    }
  });

export const recycle = (slot: number): Promise<void> =>
  act(`recycle ${slot}`, async () => {
    await api.recycle(slot);
  });
