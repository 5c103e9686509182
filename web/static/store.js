// Keeps this tab's photo and its paint in the browser, so that a reload finds them. Where the browser keeps nothing, as in
// some private windows, nothing is found.

const HOURS = 1; // after which what a closed tab has left goes, once a page opens
let tab = null; // when its photo was opened
let database = null; // stays open, so that what is kept in the last moment before a reload gets there

function openDatabase() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("paint", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("kept");
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      opening.result.onversionchange = () => opening.result.close(); // another page deletes it, or is of a later version
      resolve(opening.result);
    };
  });
}

async function access(mode, use) {
  try {
    database ??= openDatabase();
    const transaction = (await database).transaction("kept", mode);
    const request = use(transaction.objectStore("kept"));
    transaction.commit(); // or a reload aborts it
    return await new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  } catch {
    database = null; // the next one tries again
    return null;
  }
}

export async function keepPhoto(file) {
  await forget();
  try {
    tab = sessionStorage.tab = Date.now();
  } catch {
    return; // of a reload this tab would not know
  }
  await access("readwrite", (kept) => kept.put(file, [tab, "photo"]));
}

export async function keepPaint(paint) {
  if (tab) await access("readwrite", (kept) => kept.put(JSON.stringify(paint), [tab, "paint"]));
}

// This page's name at the server, which a reload takes up; between two loads alone it is there, as a tab that is
// duplicated must not have it as well.
export function takeName() {
  try {
    const name = sessionStorage.page;
    sessionStorage.removeItem("page");
    return name || null;
  } catch {
    return null;
  }
}

export function leaveName(name) {
  try {
    sessionStorage.page = name;
  } catch {
    // the reloaded page will be a new one
  }
}

// the photo, a File, and the paint that were kept before a reload
export async function findKept() {
  try {
    tab = Number(sessionStorage.tab) || null;
  } catch {
    return [];
  }
  const old = Date.now() - HOURS * 3600000;
  if (!tab) await access("readwrite", (kept) => kept.delete(IDBKeyRange.upperBound([old])));
  const found = tab ? await access("readonly", (kept) => kept.getAll(IDBKeyRange.bound([tab], [tab, []]))) : null;
  const [file, paint] = found?.reverse() || [];
  return file instanceof Blob ? [file, paint && JSON.parse(paint)] : []; // there may be no room for a large photo
}

export async function forget() {
  if (tab) await access("readwrite", (kept) => kept.delete(IDBKeyRange.bound([tab], [tab, []])));
  tab = null;
}
