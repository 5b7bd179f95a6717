// The secret of a session, returned by the login and sent in a header of each request.
//
// Not a cookie: browsers send those to every port of a host, so the supervised app would receive it. The
// storage belongs to the page's origin, which includes the port. All tabs share it, and it outlives a reload.

const KEY = "ostler-session";
/** Used if the browser refuses storage; then a reload of the page needs another login. */
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

/** Remove `secret`, which is not valid any more. A newer one, stored by another tab, stays. */
export function forgetSecret(secret: string): void {
  if (currentSecret() !== secret) return;
  inMemory = null;
  try {
    localStorage.removeItem(KEY);
  } catch {
    // There is no storage, so nothing is stored.
  }
}
