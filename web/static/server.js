// The server of paint.py, which knows this page by the stream of events that it holds open.

let page = null, connect; // its name at the server
const connected = new Promise((resolve) => { connect = resolve; });

export async function ask(path, options = {}) {
  await connected;
  const response = await fetch(`/pages/${page}/${path}`, options).catch(() => {
    options.signal?.throwIfAborted();
    throw new Error("The server does not answer. Does paint.py still run?");
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: `The server answers ${response.status}.` }));
  throw new Error(error);
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
      connect();
    }
    before = before.then(() => onEvent(event)).catch((error) => console.error(error));
  };
  events.onerror = () => {
    events.close();
    onEvent({ lost: true });
    setTimeout(() => listen(onEvent), 1000);
  };
}

export async function askBitmap(path, signal) {
  return createImageBitmap(await (await ask(path, { signal })).blob());
}
