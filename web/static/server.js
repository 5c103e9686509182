// The server of paint.py, which knows this page by the stream of events that it holds open.

let page = null; // what the server calls it

export async function ask(path, options = {}) {
  const response = await fetch(`/pages/${page}/${path}`, options).catch(() => {
    throw new Error("The server does not answer. Does paint.py still run?");
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: `The server answers ${response.status}.` }));
  throw new Error(error);
}

// Calls `heard` with each event, one after the other. The first says whether the server knows the page `anew`, which
// has lost its photo then; one that holds but `lost` says that the stream broke.
export function listen(heard) {
  const events = new EventSource(`/events${page ? `?page=${page}` : ""}`);
  let before = Promise.resolve();
  events.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.page) {
      event.anew = event.page !== page;
      page = event.page;
    }
    before = before.then(() => heard(event)).catch((error) => console.error(error));
  };
  events.onerror = () => {
    events.close();
    heard({ lost: true });
    setTimeout(() => listen(heard), 1000);
  };
}

export async function askBitmap(path) {
  return createImageBitmap(await (await ask(path)).blob());
}
