// The server of paint.py, which knows this page by the stream of events that it holds open.

import { leaveName, takeName } from "/store.js";

export const SILENT = "The server does not answer. Does paint.py still run?";
let page = takeName(), connect; // its name at the server
export const connected = new Promise((resolve) => { connect = resolve; });

export async function ask(path, options = {}) {
  await connected;
  const response = await fetch(`/pages/${page}/${path}`, options).catch(() => {
    options.signal?.throwIfAborted();
    throw new Error(SILENT);
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: `The server answers ${response.status}.` }));
  throw new Error(error);
}

// Send a file, which may take long: `onShare` gets the percentage that is there. Returns what the server answers.
export async function send(path, file, onShare) {
  await connected;
  const request = new XMLHttpRequest();
  request.open("PUT", `/pages/${page}/${path}`);
  request.responseType = "json";
  request.upload.onprogress = ({ loaded, total }) => onShare(Math.floor(100 * loaded / total));
  await new Promise((resolve) => {
    request.onloadend = resolve;
    request.send(file);
  });
  if (request.status === 200) return request.response;
  const none = request.status ? `The server answers ${request.status}.` : SILENT;
  throw new Error(request.response?.error || none);
}

// Calls `onEvent` with each event, one after the other. In the first, `isNew` tells that the server does not know the page
// from before, and has no photo of it; one that holds only `lost` tells that the stream broke.
export function listen(onEvent) {
  const events = new EventSource(`/events${page ? `?page=${page}` : ""}`);
  let before = Promise.resolve();
  events.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.page) {
      event.isNew = event.page !== page;
      page = event.page;
      connect(event);
    }
    before = before.then(() => onEvent(event)).catch((error) => console.error(error));
  };
  events.onerror = () => {
    events.close();
    onEvent({ lost: true });
    setTimeout(() => listen(onEvent), 1000);
  };
}

window.addEventListener("pagehide", () => { if (page) leaveName(page); });

export async function askBitmap(path, signal) {
  return createImageBitmap(await (await ask(path, { signal })).blob());
}
