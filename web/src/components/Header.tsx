import type { JSX } from "preact";
import { duration } from "../format";
import { lastDataAt, link, now, status } from "../store";
import { reconnectNow } from "../stream";
import { Mark } from "./Icon";

export function Header(): JSX.Element | null {
  const view = status.value;
  if (!view) return null;
  return (
    <header class="top">
      <p class="instance">
        <Mark />
        <b>{view.name}</b>
        <code>{view.app}</code>
      </p>
      <p class="versions">
        Ostler {view.version} · Python {view.python} · pid {view.pid}
      </p>
      <Connection />
    </header>
  );
}

function Connection(): JSX.Element {
  const age = duration((now.value - lastDataAt.value) / 1000);
  switch (link.value) {
    case "live":
      return <p class="link live">Live</p>;
    case "connecting":
      return <p class="link">Connecting</p>;
    case "lost":
      return <p class="link lost">Connection lost, last data {age} ago</p>;
    case "gone":
      return (
        <p class="link lost">
          Connection lost, last data {age} ago
          <button type="button" class="small" onClick={reconnectNow}>
            Try now
          </button>
        </p>
      );
  }
}
