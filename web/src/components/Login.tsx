import { useState } from "preact/hooks";
import type { JSX } from "preact";
import { loginError } from "../store";
import { logIn } from "../stream";
import { Mark } from "./Icon";

export function Login(): JSX.Element {
  const [pasted, setPasted] = useState("");
  const [waiting, setWaiting] = useState(false);

  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    if (!pasted.trim() || waiting) return;
    setWaiting(true);
    await logIn(pasted);
    setWaiting(false);
  };

  return (
    <main class="alone">
      <p class="brand">
        <Mark /> Ostler
      </p>
      <h1>Log in to the dashboard</h1>
      <p>
        On the machine that runs the supervisor, run <code>ctl open</code> for a login link. It works once, within ten
        minutes.
      </p>
      <form onSubmit={submit}>
        <label for="code">Login link or code</label>
        <div class="field">
          <input
            id="code"
            name="code"
            type="text"
            autocomplete="off"
            autocapitalize="off"
            spellcheck={false}
            value={pasted}
            aria-invalid={loginError.value !== null}
            aria-describedby="login-error"
            onInput={(event) => setPasted(event.currentTarget.value)}
          />
          <button type="submit" class="primary" aria-disabled={waiting || !pasted.trim()}>
            Log in
          </button>
        </div>
        <p id="login-error" class="refusal" role="alert">
          {loginError.value}
        </p>
      </form>
    </main>
  );
}
