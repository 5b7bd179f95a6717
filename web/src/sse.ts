// Server-sent events (WHATWG HTML, section 9.2.6) from the body of a response. Not EventSource: that can't send the
// header with the session's secret.

/** Calls `take` for each event; resolves when the stream ends. The supervisor ends lines with \n and sends one
 * `data` line per event; ids and comments are ignored. */
export async function readEvents(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
  take: (name: string, data: string) => void,
): Promise<void> {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let name = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) take(name, line.slice(6));
    }
  }
}
