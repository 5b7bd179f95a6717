// The session's secret, which the login gives and each request carries in a header.
//
// No cookie: browsers send those to every port of a host, so the app that is supervised would receive it. The
// storage belongs to the page's origin, which includes the port. All tabs share it, and it outlives a reload.

const KEY = "ostler-session";
/** Used where the browser refuses storage; then a reload of the page needs another login. */
let inMemory: string | null = null;

export function currentSecret(): string | null {
  try {
    return localStorage.getItem(KEY) ?? inMemory;
  } catch {
    return inMemory;
  }
}

export function keepSecret(secret: string): void {
  try {
    localStorage.setItem(KEY, secret);
  } catch {
    inMemory = secret;
  }
}

/** The supervisor does not know `secret` any more. Another tab may have stored a newer one, which stays. */
export function forgetSecret(secret: string): void {
  if (currentSecret() !== secret) return;
  inMemory = null;
  try {
    localStorage.removeItem(KEY);
  } catch {
    // There is no storage, so there is nothing in it.
  }
}
