// Updates `now`: five times a second while ages of requests are shown, else once a second; never in a hidden tab.

import { effect } from "@preact/signals";
import { link, now, workers } from "./store";

const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

function pace(): number {
  const requests = link.value === "live" && workers.value.some((worker) => worker.in_flight.length > 0);
  return requests && !reducedMotion.matches ? 200 : 1_000;
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
