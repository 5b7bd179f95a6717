// Moves `now`: briskly while a request's age is on screen, else once a second, and not at all in a hidden tab.

import { effect } from "@preact/signals";
import { link, now, workers } from "./store";

const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

function pace(): number {
  const requests = link.value === "live" && workers.value.some((worker) => worker.in_flight.length > 0);
  return requests && !calm.matches ? 200 : 1_000;
}

export function startTicker(): void {
  let current = 0;
  let timer: number | undefined;
  const tick = (): void => {
    if (document.visibilityState === "visible") now.value = Date.now();
  };
  effect(() => {
    const wanted = pace();
    if (wanted === current) return;
    current = wanted;
    window.clearInterval(timer);
    timer = window.setInterval(tick, wanted);
  });
  document.addEventListener("visibilitychange", tick);
}
