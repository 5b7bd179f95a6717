// A Preact component for uPlot. The plot is outside of Preact's tree: data is set in it, nothing is rendered again.

import { effect, type Signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { JSX } from "preact";
import uPlot from "uplot";
import type { SampleView } from "../api";
import { clock } from "../format";
import { events, samples } from "../store";
import { ALARMING } from "./Events";

export interface Line {
  of: (sample: SampleView) => number | null;
  /** A custom property of the style sheet. */
  colour: string;
  width: number;
  alpha?: number;
  /** Opacity of the area down to the axis. */
  fill?: number;
  /** Opacity of the area down to the next line. */
  down?: number;
  /** Bars instead of a line, so that rare and small values are visible. */
  bars?: boolean;
}

export interface Plot {
  scale: "linear" | "log";
  /** The smallest value for the top of the scale. */
  floor: number;
  label: (value: number) => string;
  series: Line[];
}

const SHORTEST_S = 120;
const LONGEST_S = 600;
/** Seconds between two samples above which the line is interrupted. */
const GAP_S = 3;
const HEIGHT = 168;

interface Props {
  plot: Plot;
  pointed: Signal<number | null>;
  label: string;
}

export function Chart({ plot, pointed, label }: Props): JSX.Element {
  const host = useRef<HTMLDivElement>(null);

  useEffect(() => {
    const element = host.current;
    if (!element) return;
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    let chart = draw(element, plot, pointed);
    const redraw = (): void => {
      chart.destroy();
      chart = draw(element, plot, pointed);
    };
    const resized = new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height: HEIGHT }));
    resized.observe(element);
    dark.addEventListener("change", redraw);
    const stop = effect(() => {
      events.value;
      chart.setData(columns(samples.value, plot));
    });
    return () => {
      stop();
      resized.disconnect();
      dark.removeEventListener("change", redraw);
      chart.destroy();
    };
  }, []);

  return <div class="plot" role="img" aria-label={label} ref={host} />;
}

function columns(views: SampleView[], plot: Plot): uPlot.AlignedData {
  return [views.map((view) => view.at), ...plot.series.map((line) => views.map(line.of))];
}

function draw(element: HTMLElement, plot: Plot, pointed: Signal<number | null>): uPlot {
  const style = getComputedStyle(element);
  const colour = (name: string, alpha = 1): string => {
    const opaque = style.getPropertyValue(name).trim();
    return alpha === 1 ? opaque : `color-mix(in srgb, ${opaque} ${alpha * 100}%, transparent)`;
  };
  const font = `11px ${style.fontFamily}`;
  const axis = { stroke: colour("--muted"), font, ticks: { show: false }, border: { show: false } };
  const grid = { stroke: colour("--grid"), width: 1 };

  return new uPlot(
    {
      width: element.clientWidth,
      height: HEIGHT,
      padding: [10, 2, 0, 0],
      legend: { show: false },
      cursor: {
        drag: { x: false, y: false },
        y: false,
        sync: { key: "ostler" },
        points: { show: false },
      },
      scales: {
        x: { time: true, range: () => xRange(samples.peek()) },
        y: {
          distr: plot.scale === "log" ? 3 : 1,
          range: (_, min, max) => (plot.scale === "log" ? logRange(min, max, plot.floor) : [0, linearTop(max, plot.floor)]),
        },
      },
      axes: [
        { ...axis, grid: { show: false }, space: 80, size: 22, gap: 4, values: (_, splits) => splits.map(wall) },
        {
          ...axis,
          grid,
          size: 52,
          gap: 6,
          space: 34,
          filter: (_, splits) => splits,
          values: (_, splits) => splits.map((value) => plot.label(value)),
          ...(plot.scale === "log" && { splits: (u: uPlot) => logSplits(u.scales["y"]?.min ?? 0.001, u.scales["y"]?.max ?? 1) }),
        },
      ],
      series: [
        {},
        ...plot.series.map((line) => ({
          scale: "y",
          stroke: colour(line.colour, line.alpha),
          width: line.width,
          ...(line.fill !== undefined && { fill: colour(line.colour, line.fill) }),
          points: { show: false },
          ...(line.bars && { paths: () => null }),
          gaps: (_: uPlot, __: number, from: number, to: number, known: uPlot.Series.Gaps) => breaks(_, from, to, known),
        })),
      ],
      bands: plot.series.flatMap((line, i) =>
        line.down === undefined ? [] : [{ series: [i + 1, i + 2] as [number, number], fill: colour(line.colour, line.down) }],
      ),
      hooks: {
        setCursor: [(u) => (pointed.value = u.cursor.idx ?? null)],
        drawAxes: [(u) => marks(u, colour("--mark"), colour("--bad"))],
        draw: [(u) => plot.series.forEach((line, i) => line.bars && bars(u, i + 1, colour(line.colour)))],
      },
    },
    columns(samples.peek(), plot),
    element,
  );
}

/** The range of the time axis in seconds: all samples, within bounds. */
function span(views: SampleView[]): number {
  const first = views[0];
  const last = views.at(-1);
  return first && last ? Math.min(LONGEST_S, Math.max(SHORTEST_S, last.at - first.at)) : SHORTEST_S;
}

function xRange(views: SampleView[]): [number, number] {
  const end = views.at(-1)?.at ?? Date.now() / 1000;
  return [end - span(views), end];
}

function wall(unix: number): string {
  return unix % 60 === 0 ? clock(unix).slice(0, 5) : clock(unix);
}

/** Interrupts the line where samples are missing. */
function breaks(u: uPlot, from: number, to: number, known: uPlot.Series.Gaps): uPlot.Series.Gaps {
  const at = u.data[0];
  const missing: uPlot.Series.Gaps = [];
  for (let i = Math.max(from, 1); i <= to; i++) {
    const before = at[i - 1] ?? 0;
    const after = at[i] ?? 0;
    if (after - before > GAP_S) {
      missing.push([Math.round(u.valToPos(before, "x", true)), Math.round(u.valToPos(after, "x", true))]);
    }
  }
  return missing.length === 0 ? known : [...known, ...missing].sort((a, b) => a[0] - b[0]);
}

const LEAST_BAR_PX = 5;

function bars(u: uPlot, series: number, colour: string): void {
  const floor = u.bbox.top + u.bbox.height;
  const width = Math.max(1.5 * devicePixelRatio, u.bbox.width / span(samples.peek()) - devicePixelRatio);
  u.ctx.fillStyle = colour;
  u.data[series]?.forEach((value, i) => {
    const x = u.valToPos(u.data[0][i] ?? 0, "x", true);
    if (!value || x < u.bbox.left) return;
    const height = Math.max(floor - u.valToPos(value, "y", true), LEAST_BAR_PX * devicePixelRatio);
    u.ctx.fillRect(Math.round(x - width / 2), floor - height, width, height);
  });
}

/** Faint lines at reloads and failures. */
function marks(u: uPlot, plain: string, alarming: string): void {
  const { left, top, width, height } = u.bbox;
  u.ctx.save();
  u.ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  u.ctx.lineWidth = devicePixelRatio;
  for (const event of events.peek()) {
    const alarm = ALARMING.test(event.name);
    if (!alarm && !event.name.includes("reload")) continue;
    const x = Math.round(u.valToPos(event.at, "x", true));
    if (x < left || x > left + width) continue;
    u.ctx.strokeStyle = alarm ? alarming : plain;
    u.ctx.beginPath();
    u.ctx.moveTo(x, top);
    u.ctx.lineTo(x, top + height);
    u.ctx.stroke();
  }
  u.ctx.restore();
}

/** The next round number. */
function nice(value: number, steps = [1, 2, 5]): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return (steps.find((step) => step * power >= value * 0.999) ?? 10) * power;
}

function linearTop(max: number | null, floor: number): number {
  return nice(Math.max((max ?? 0) * 1.05, floor), [1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8]);
}

function logRange(min: number | null, max: number | null, floor: number): [number, number] {
  if (min === null || max === null) return [floor, 100 * floor];
  const top = nice(Math.max(max, floor));
  const low = 1 / nice(1.15 / min);
  return [Math.min(low, top / 10), top];
}

function logSplits(min: number, max: number): number[] {
  const decades = Math.log10(max / min);
  const steps = decades > 4 ? [1] : decades > 1.5 ? [1, 5] : [1, 2, 5];
  const splits: number[] = [];
  for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++) {
    for (const step of steps) {
      const value = Number((step * 10 ** power).toPrecision(1));
      if (value >= min * 0.999 && value <= max * 1.001) splits.push(value);
    }
  }
  return splits;
}
