// Shapes that distinguish states without colour. Decoration only: each state is also written as text.

import type { JSX } from "preact";
import type { FleetState, WorkerState } from "../api";

export type Shape = FleetState | WorkerState | "outage" | "lost";

const disc = <circle cx="8" cy="8" r="7" fill="currentColor" />;
const cut = { fill: "none", stroke: "var(--cut)", "stroke-width": "1.8", "stroke-linecap": "round", "stroke-linejoin": "round" } as const;
const line = { fill: "none", stroke: "currentColor", "stroke-width": "1.8", "stroke-linecap": "round" } as const;

const pending = (
  <g class="spin">
    <circle cx="8" cy="8" r="6.1" {...line} opacity="0.28" />
    <path d="M8 1.9A6.1 6.1 0 0 1 14.1 8" {...line} />
  </g>
);
const square = <rect x="2.5" y="2.5" width="11" height="11" rx="1.5" fill="currentColor" />;

const SHAPES: Record<Shape, JSX.Element> = {
  starting: pending,
  booting: pending,
  reloading: pending,
  ready: (
    <>
      {disc}
      <path d="m4.8 8.2 2.2 2.2 4.2-4.6" {...cut} />
    </>
  ),
  degraded: (
    <>
      <path d="M8 1.2 15.2 14H.8Z" fill="currentColor" stroke="currentColor" stroke-width="1.2" stroke-linejoin="round" />
      <path d="M8 6v3.6M8 12v.05" {...cut} />
    </>
  ),
  outage: (
    <>
      <path d="M5.1 1h5.8L15 5.1v5.8L10.9 15H5.1L1 10.9V5.1Z" fill="currentColor" />
      <path d="m5.4 5.4 5.2 5.2m0-5.2-5.2 5.2" {...cut} />
    </>
  ),
  paused: <path d="M5 3v10M11 3v10" {...line} stroke-width="3.4" />,
  draining: (
    <>
      <circle cx="8" cy="8" r="6.1" {...line} />
      <path d="M1.9 8a6.1 6.1 0 0 0 12.2 0Z" fill="currentColor" />
    </>
  ),
  stopping: square,
  lost: (
    <>
      <circle cx="8" cy="8" r="6.1" {...line} stroke-dasharray="3.1 3.3" />
      <path d="m5.8 5.8 4.4 4.4m0-4.4-4.4 4.4" {...line} />
    </>
  ),
};

export function Icon({ shape, size = 16 }: { shape: Shape; size?: number }): JSX.Element {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 16 16" aria-hidden="true">
      {SHAPES[shape]}
    </svg>
  );
}

/** The logo: the arch of a stable over slots. */
export function Mark(): JSX.Element {
  return (
    <svg class="mark" width="18" height="18" viewBox="0 0 18 18" aria-hidden="true">
      <path d="M2.5 16V8.5a6.5 6.5 0 0 1 13 0V16" fill="none" stroke="currentColor" stroke-width="2.2" stroke-linecap="round" />
      <path d="M7 10.5V16M11 10.5V16" fill="none" stroke="currentColor" stroke-width="2.2" stroke-linecap="round" />
    </svg>
  );
}
