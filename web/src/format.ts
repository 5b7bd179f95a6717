// Formats of numbers: short, and of a steady width.

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const NONE = "–";

export function count(n: number): string {
  return grouped.format(n);
}

/** A rate or percentage: one decimal while it is small. */
export function rate(n: number): string {
  return n > 0 && n < 9.95 ? n.toFixed(1) : grouped.format(n);
}

/** `0.82 ms`, `12.3 ms`, `412 ms`, `1.23 s`. */
export function latency(seconds: number | null): string {
  if (seconds === null) return NONE;
  return seconds < 0.9995 ? `${threeDigits(seconds * 1000)} ms` : `${threeDigits(seconds)} s`;
}

function threeDigits(n: number): string {
  if (n < 9.995) return n.toFixed(2);
  return n < 99.95 ? n.toFixed(1) : grouped.format(n);
}

/** `59.8 MiB`. */
export function bytes(n: number | null): string {
  if (n === null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1023.5 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 99.95 ? grouped.format(n) : n.toFixed(1)} ${units[unit]}`;
}

/** `42s`, `3m 07s`, `4h 12m`, `12d 3h`. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  if (s < 86_400) return `${Math.floor(s / 3600)}h ${two(Math.floor((s % 3600) / 60))}m`;
  return `${Math.floor(s / 86_400)}d ${Math.floor((s % 86_400) / 3600)}h`;
}

/** Like `duration`, with tenths of a second while they matter. */
export function elapsed(seconds: number): string {
  return seconds < 59.95 ? `${Math.max(0, seconds).toFixed(1)}s` : duration(seconds);
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}

function two(n: number): string {
  return String(n).padStart(2, "0");
}

/** Local time of day. */
export function clock(unix: number): string {
  const t = new Date(unix * 1000);
  return `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
}

/** Local time of day, with the date unless it is today's. */
export function moment(unix: number, now: number): string {
  const t = new Date(unix * 1000);
  if (t.toDateString() === new Date(now).toDateString()) return clock(unix);
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())} ${clock(unix)}`;
}
