// Shows the state in the title and icon of the browser tab.

import { effect } from "@preact/signals";
import badIcon from "./icons/bad.svg";
import idleIcon from "./icons/idle.svg";
import okIcon from "./icons/ok.svg";
import warnIcon from "./icons/warn.svg";
import { link, session, status, tone, type Tone } from "./store";

const ICONS: Record<Tone, string> = { ok: okIcon, busy: okIcon, warn: warnIcon, bad: badIcon, idle: idleIcon };

export function startTab(): void {
  const icon = document.querySelector<HTMLLinkElement>("link[rel=icon]");
  effect(() => {
    const view = session.value === "in" ? status.value : null;
    const connected = link.value === "live" || link.value === "connecting";
    const state = !view ? null : connected ? view.state : "no connection";
    document.title = !view ? "Ostler" : state === "ready" ? `${view.name} · Ostler` : `${view.name}: ${state} · Ostler`;
    const href = ICONS[!view ? "idle" : connected ? tone.value : "bad"];
    if (icon && icon.getAttribute("href") !== href) icon.href = href;
  });
}
