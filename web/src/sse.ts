// Server-sent events (WHATWG HTML, section 9.2.6) from a response's body. Not EventSource: that can send no header,
// and the session's secret is sent in one.

/** Calls `take` for each event; resolves when the stream ends. Our supervisor ends lines with \n and sends one
 * `data` line an event; ids and comments are ignored. */
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
