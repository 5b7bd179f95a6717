import type { JSX } from "preact";
import { link, session, status, tone } from "../store";
import { reconnectNow } from "../stream";
import { Charts } from "./Charts";
import { Events } from "./Events";
import { Exits } from "./Exits";
import { Header } from "./Header";
import { Login } from "./Login";
import { Overview } from "./Overview";
import { Totals } from "./Totals";
import { Workers } from "./Workers";

export function App(): JSX.Element | null {
  if (session.value === "out") return <Login />;
  if (status.value) return <Dashboard />;
  return link.value === "gone" ? <NoAnswer /> : null;
}

function Dashboard(): JSX.Element {
  const fresh = link.value === "live" || link.value === "connecting";
  return (
    <div class="page" data-link={link.value} data-tone={fresh ? tone.value : "lost"}>
      <Header />
      <main>
        <Overview />
        <div class="data">
          <Totals />
          <Charts />
          <Workers />
          <Exits />
          <Events />
        </div>
      </main>
    </div>
  );
}

/** The page was loaded, but no data has arrived. */
function NoAnswer(): JSX.Element {
  return (
    <main class="alone">
      <h1>The supervisor does not answer</h1>
      <p>
        It may have ended, or the tunnel to it has. This page keeps trying; <code>ctl status</code> on the machine
        itself says more.
      </p>
      <button type="button" onClick={reconnectNow}>
        Try now
      </button>
    </main>
  );
}
