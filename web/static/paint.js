// The page: its history is a list of steps that can be undone; the server searches what fills the paint.
//
// A step holds the strokes and the marked faces, three points each; the layers that were filled before, and `base`, which
// names the last of them to the server; and the result, once the hole is filled.

import { follow } from "/brush.js";
import * as canvas from "/canvas.js";
import { ask, askBitmap, listen } from "/server.js";

const $ = (id) => document.getElementById(id);
const EMPTY = { strokes: [], marked: [], layers: [], base: null, result: null };
const POINTS = ["the inner corner of the eye on the left", "the inner corner of the eye on the right",
  "the middle of the lower lip's lower edge"];

let model = { ready: false, failure: null, detail: true, bytes: 0 }; // bytes: a photo's, at most
let photo = null; // width, height, bitmap, faces, transparent, file
let steps = [EMPTY], at = 0;
let marking = null, pressed = null; // the points of the next face so far, and the one that is being set
let job = null; // the search that is running: its number, frame, losses
let stroke = null, cursor = null; // the one that is being painted; where the pointer is, or the cross
let original = false; // whether the original is shown
let waiting = []; // files that were given together with the one that is open
let sharpening = null; // the request for the chosen answer at full size: its name, timer, controller
let saved = null; // the name of the answer that was saved last

const step = () => steps[at];

const say = (text) => { $("status").textContent = text; };

function push(next) {
  steps = [...steps.slice(0, at + 1), next];
  at = steps.length - 1;
  show();
}

// the step that a new stroke starts from: on top of the result, where there is one
function onTop() {
  const { layers, result } = step();
  if (!result) return step();
  const chosen = result.answers[result.chosen];
  const layer = sharpOf(result) || { ...chosen, detail: result.detail };
  return { ...step(), strokes: [], layers: [...layers, layer], base: nameOf(result), result: null };
}

function nameOf(result) {
  return { fill: result.fill, answer: result.answers[result.chosen].answer, detail: result.detail };
}

// the chosen answer at full size, once it is there
function sharpOf(result) {
  return result?.sharp?.name === JSON.stringify(nameOf(result)) ? result.sharp : null;
}

// Ask for the chosen answer at full size, once nobody has chosen another for a moment; the server makes one at a time.
function sharpen() {
  const { result } = step(), name = result && !job && JSON.stringify(nameOf(result));
  if (!name || sharpening?.name === name) return;
  clearTimeout(sharpening?.timer);
  sharpening?.controller.abort();
  const controller = new AbortController();
  const timer = setTimeout(async () => {
    try {
      const bitmap = await askBitmap(`patch?${new URLSearchParams(nameOf(result))}`, controller.signal);
      const [[left, top], { width, height }] = [result.answers[result.chosen].place, bitmap];
      result.sharp = { name, fine: bitmap, detail: 1, left, top, width, height };
      draw();
    } catch (error) {
      if (!controller.signal.aborted) console.warn(error.message); // the page still has the smaller picture
    }
  }, 300);
  sharpening = { name, timer, controller };
}

// whether there is an answer that was not saved
function unsaved() {
  const name = step().result ? nameOf(step().result) : step().base;
  return Boolean(photo && name) && JSON.stringify(name) !== saved;
}

function size() {
  return Math.max(1, Math.min(photo.width, photo.height) * 0.004 * 100 ** ($("size").value / 100));
}

// drawing

let drawn = false;
function draw() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    const { strokes, layers, result, base } = step();
    const chosen = result && [sharpOf(result) || { ...result.answers[result.chosen], detail: result.detail }];
    const above = job?.frame ? [job.frame] : chosen || [];
    const split = result || base ? $("split").value / 100 : 0;
    canvas.drawPhoto(photo, original ? [] : [...layers, ...above], split);
    const hidden = original || result || job?.frame;
    const known = job ? job.outlines || [] : [...(photo?.faces || []), ...step().marked.map(canvas.roughOutline)];
    const outlines = original || result ? [] : known;
    canvas.drawOverlay(photo, {
      strokes: [...(hidden ? [] : strokes), ...(stroke ? [stroke] : [])],
      outlines, points: marking || [], split,
      cursor: cursor && { ...cursor, size: photo ? size() : 0, cross: Boolean(marking) },
    });
  });
}

// what can be done now, and the pictures
function show() {
  const { strokes, base, result } = step();
  $("empty").hidden = Boolean(photo);
  for (const id of ["painting", "filling"]) $(id).disabled = !photo;
  $("undo").disabled = Boolean(job) || at === 0;
  $("redo").disabled = Boolean(job) || at === steps.length - 1;
  $("clear").disabled = Boolean(job) || !strokes.length || Boolean(result);
  $("mark").disabled = $("another").disabled = Boolean(job);
  $("mark").setAttribute("aria-pressed", Boolean(marking));
  $("fill").disabled = Boolean(job) || !model.ready || !strokes.length || Boolean(result && !result.faces);
  $("fill").textContent = result?.faces ? "Four more like it" : "Fill";
  $("stop").disabled = !job;
  $("choosing").disabled = !result && !base;
  $("detail").disabled = !result;
  $("detailing").hidden = !model.detail;
  $("save").disabled = Boolean(job) || !(result || base);
  $("zoom").hidden = !photo;
  $("another").textContent = waiting.length ? `Next of ${waiting.length}` : "Open another";
  showAnswers();
  sharpen();
  draw();
}

function showAnswers() {
  const result = step().result, count = result?.answers.length || 0;
  if ($("answers").childElementCount !== count) {
    $("answers").replaceChildren(...Array.from({ length: count }, (_, i) => {
      const label = document.createElement("label"), input = document.createElement("input");
      label.title = `Answer ${i + 1} (${i + 1})`;
      Object.assign(input, { type: "radio", name: "answer", value: i, ariaLabel: `Answer ${i + 1}` });
      input.addEventListener("change", () => choose(i));
      label.append(input, Object.assign(document.createElement("canvas"), { width: 144, height: 144 }));
      return label;
    }));
  }
  if (!result) return;
  $("detail").value = Math.round(100 * result.detail);
  $("percent").value = `${$("detail").value} %`;
  [...$("answers").children].forEach((label, i) => {
    const layer = { ...result.answers[i], detail: result.detail };
    label.firstChild.checked = i === result.chosen;
    canvas.drawThumbnail(label.lastChild, photo, [...step().layers, layer], layer);
  });
}

function choose(i) {
  if (!step().result?.answers[i]) return;
  step().result.chosen = i;
  show();
}

// the server

async function onEvent(event) {
  if (event.page && job && (event.isNew || (job.fill && event.job !== job.fill))) job = null; // it ended without our hearing of it
  if (event.lost) say("The server does not answer. Does paint.py still run?");
  if ("ready" in event) {
    model = event;
    if (!job || event.failure) say(event.failure || (event.ready ? (photo ? "" : "Ready.") : "The model is loading."));
  }
  if (event.opened && job?.opening) say(`Looking for faces in ${job.opening}`);
  if (photo && (event.gone || (event.page && !event.photo))) photo.gone = true;
  if (event.fill && job && event.fill === (job.fill ??= event.fill)) await onSearch(event);
  show();
}

async function onSearch(event) {
  if (event.before) {
    say(`Other searches come first: ${event.before}.${event.seconds ? ` That may take ${event.seconds} seconds.` : ""}`);
  }
  if (event.look) say(`Looking for faces around the paint, picture ${event.look}`);
  if (event.failed) say(job.failed = event.failed);
  if (event.frame) {
    const bytes = Uint8Array.from(atob(event.frame), (letter) => letter.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes]));
    const [left, top, width, height] = event.box;
    if (!job.result) job.frame = { fine: bitmap, detail: 1, left, top, width, height };
    $("photo").dataset.frames = ++job.frames;
  }
  if (event.faces) {
    const under = !(photo.faces.length + step().marked.length);
    Object.assign(job, { faces: event.faces.length, outlines: event.faces, under });
    if (under) photo.faces = event.faces; // from now on outlined as the others
  }
  if ("iteration" in event) {
    job.losses.push(event);
    const found = event.iteration === event.iterations;
    say(`Answer ${event.number + 1} of 4, ${found ? "drawing it" : `step ${event.iteration} of ${event.iterations}`}`);
    canvas.drawPlot($("plot"), job.losses, 4 * (event.iterations + 1));
    const [contextual, perceptual] = [event.contextual.toFixed(0), event.perceptual.toFixed(2)];
    $("losses").textContent = `contextual loss ${contextual}, perceptual loss ${perceptual} (dashed)`;
  }
  if ("answer" in event) job.fetching = fetchAnswer(job, event, job.fetching);
  if (event.done) {
    await job.fetching;
    const { failed, result, under } = job, found = result?.answers.length;
    job = null;
    if (failed) return;
    if (!found) say("Stopped.");
    else if (!result.faces) say("No face was found there, so the hole is filled from the rest of the photo. If there is one, undo and mark it.");
    else say(`${found} answer${found > 1 ? "s" : ""}: choose one, and save.${under ?
      " A face was found under the paint; if it is not in its place, undo and mark it." : ""}`);
  }
}

// fetch an answer's pictures, one answer after the other
async function fetchAnswer(search, event, before) {
  await before;
  try {
    const query = `preview?fill=${event.fill}&answer=${event.answer}`, { signal } = search.controller;
    search.rough ??= askBitmap(`${query}&detail=0`, signal); // the most probable face is that of all answers
    const [rough, fine] = await Promise.all([search.rough, askBitmap(`${query}&detail=1`, signal)]);
    const [left, top, width, height] = event.box;
    const answer = { answer: event.answer, place: event.place, rough, fine, left, top, width, height };
    if (!search.result) {
      search.result = { fill: event.fill, answers: [answer], chosen: 0, detail: search.detail, faces: search.faces };
      search.frame = null;
      push({ ...search.step, result: search.result });
    } else {
      search.result.answers.push(answer);
    }
  } catch (error) {
    if (!search.controller.signal.aborted) say(error.message);
  }
  show();
}

async function upload(file) {
  const response = await ask("photo", { method: "PUT", body: file });
  const answer = await response.json();
  const transparent = answer.transparent && canvas.tinted(await askBitmap("transparent"));
  return { ...answer, bitmap: await askBitmap("photo"), file, transparent };
}

// open the first of some files, and keep the others
async function openAll(files, what) {
  const images = [...files].filter((file) => file.type.startsWith("image/") || /\.\w+$/.test(file.name));
  if (!images.length) return say(`${what} is no image file: save the picture first, then open that file.`);
  if (job) return say(`Not now: wait until this is done, then open ${images[0].name}.`);
  if (unsaved() && !window.confirm(`Open ${images[0].name} in place of this photo, whose answers are not saved?`)) return;
  waiting = images.slice(1);
  await open(images[0]);
  if (waiting.length) say(`${$("status").textContent} ${waiting.length} more can be opened next.`);
}

async function open(file) {
  if (!file || job) return;
  if (model.bytes && file.size > model.bytes) return say(`${file.name}: is too large: ${model.bytes >> 20} MB at most.`);
  say(`Opening ${file.name}${model.ready ? "" : ", once the model is loaded"}`);
  job = { opening: file.name }; // so that nothing else starts
  try {
    photo = await upload(file);
  } catch (error) {
    if (photo) photo.gone = true; // the server may have the other one
    return say(`${file.name}: ${error.message}`);
  } finally {
    job = null;
    show();
  }
  steps = [photo.transparent ? { ...EMPTY, strokes: [{ transparent: true }] } : EMPTY];
  [at, marking, cursor] = [0, null, null];
  canvas.fit(photo);
  canvas.drawPlot($("plot"), [], 2);
  const count = photo.faces.length;
  if (photo.transparent) say("Paint over what is to go, or fill: what is transparent is painted already.");
  else say(count ? `${count} face${count > 1 ? "s" : ""} found. Paint over what is to go.` :
    "No face found yet. Paint over all that is damaged: a face is searched for again under the paint.");
  show();
  $("overlay").focus();
}

// the server has dropped the photo, and what was filled in it: upload it again
async function reopen() {
  if (!photo.gone) return;
  photo = { ...(await upload(photo.file)), transparent: photo.transparent };
  const { base, result, strokes, marked } = step();
  [steps, at] = [[{ ...EMPTY, strokes, marked }], 0];
  if (base || result) {
    throw new Error("The photo was not used for long, and what was filled is lost; what was painted last is still there.");
  }
}

async function fill() {
  if ($("fill").disabled) return;
  if (stroke) endStroke();
  marking = null;
  const search = job = { losses: [], frames: 0, controller: new AbortController() };
  say("Searching");
  show();
  try {
    await reopen();
    const { strokes, marked, base, result } = step();
    Object.assign(search, { step: step(), detail: result ? result.detail : $("detail").value / 100 });
    const request = { strokes, base, marked, near: result && nameOf(result) };
    const response = await ask("fills", { method: "POST", body: JSON.stringify(request) });
    search.fill = (await response.json()).fill; // its first events may have come before
  } catch (error) {
    job = null;
    say(error.message);
  }
  show();
}

async function stop() {
  if (!job?.controller) return;
  if (job.result) job.controller.abort(); // the answers that are there are enough
  await ask("stop", { method: "POST" }).catch((error) => say(error.message));
}

async function save() {
  if ($("save").disabled) return;
  const { result, base } = step(), name = JSON.stringify(result ? nameOf(result) : base);
  say("Saving");
  try {
    const query = new URLSearchParams(result ? nameOf(result) : base);
    const blob = await (await ask(`mended?${query}`)).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${photo.file.name.replace(/\.\w+$/, "")}-mended.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    saved = name;
    say(`Saved as ${link.download}.`);
  } catch (error) {
    say(error.message);
  }
}

// painting

function mark(point) {
  marking = [...marking, point];
  if (marking.length < 3) return say(`Mark ${POINTS[marking.length]}.`);
  const below = onTop(), marked = [...below.marked, marking];
  marking = null;
  push({ ...below, marked });
  say("Marked. Paint over what is to go.");
}

function startStroke(point) {
  stroke = { points: [point], size: size(), erases: $("eraser").checked };
  draw();
}

function endStroke() {
  const done = stroke;
  stroke = null;
  const below = onTop();
  if (done && !(done.erases && !below.strokes.length)) push({ ...below, strokes: [...below.strokes, done] });
  draw();
}

follow($("overlay"), {
  photo: () => photo,
  start(point) {
    if (marking) pressed = point;
    else if (!job) startStroke(point);
  },
  extend(point) {
    const last = stroke?.points.at(-1);
    if (last && Math.hypot(point[0] - last[0], point[1] - last[1]) >= Math.max(0.5, stroke.size / 12)) stroke.points.push(point);
  },
  finish() {
    if (pressed) mark(pressed);
    if (stroke) endStroke();
    pressed = null;
  },
  cancel: () => { pressed = stroke = null; },
  point: () => cursor?.place,
  hover: (place) => { cursor = place && { place }; },
  changed: draw,
});

// controls

function toggleMarking() {
  marking = marking ? null : [];
  say(marking ? `Mark ${POINTS[0]}.` : "Paint over what is to go.");
  show();
  if (marking) $("overlay").focus();
}

function go(by) {
  if (job || !steps[at + by]) return;
  at += by;
  say(step().result ? "Choose an answer, and save." : "Paint over what is to go.");
  show();
}

function zoomBy(factor) {
  if (photo) canvas.zoom(photo, factor);
  draw();
}

const showOriginal = (on) => { original = on; draw(); };

$("undo").onclick = () => go(-1);
$("redo").onclick = () => go(1);
$("clear").onclick = () => push({ ...step(), strokes: [] });
for (const [id, action] of [["mark", toggleMarking], ["fill", fill], ["stop", stop], ["save", save]]) $(id).onclick = action;
$("choose").onclick = () => $("file").click();
$("another").onclick = () => waiting.length ? openAll(waiting) : $("file").click();
$("file").onchange = ({ target }) => { openAll([...target.files], "This"); target.value = ""; };
[$("smaller").onclick, $("larger").onclick] = [() => zoomBy(1 / 1.4), () => zoomBy(1.4)];
$("fit").onclick = () => { if (photo) canvas.fit(photo); draw(); };
$("size").oninput = $("split").oninput = draw;
$("help").onclick = () => $("keys").showModal();
$("detail").oninput = ({ target }) => { step().result.detail = target.value / 100; show(); };
for (const kind of ["pointerdown", "keydown"]) {
  $("original").addEventListener(kind, ({ key }) => { if (!key || key === " " || key === "Enter") showOriginal(true); });
}
for (const kind of ["pointerup", "pointerleave", "keyup", "blur"]) $("original").addEventListener(kind, () => showOriginal(false));
for (const button of document.querySelectorAll("[data-demo]")) {
  button.onclick = async () => {
    const response = await fetch(`/${button.dataset.demo}.jpg`);
    await open(new File([await response.blob()], `${button.dataset.demo}.jpg`));
  };
}

const KEYS = {
  b: () => $("brush").click(), e: () => $("eraser").click(), m: () => photo && !job && toggleMarking(), f: fill,
  s: save, Escape: () => marking ? toggleMarking() : stop(), 0: () => $("fit").click(), "+": () => zoomBy(1.4), "-": () => zoomBy(1 / 1.4),
  "[": () => { $("size").value -= 4; draw(); }, "]": () => { $("size").value -= -4; draw(); },
  "?": () => $("keys").showModal(), 1: () => choose(0), 2: () => choose(1), 3: () => choose(2), 4: () => choose(3), o: () => showOriginal(true),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey) {
    const by = { z: event.shiftKey ? 1 : -1, Z: 1, y: 1 }[event.key];
    if (by) {
      event.preventDefault();
      go(by);
    }
  } else if (KEYS[event.key] && !event.altKey && !$("keys").open) {
    KEYS[event.key]();
  }
});
document.addEventListener("keyup", ({ key }) => { if (key === "o") showOriginal(false); });

document.addEventListener("paste", ({ clipboardData }) => openAll(clipboardData.files, "What was pasted"));
document.addEventListener("dragover", (event) => { event.preventDefault(); $("stage").classList.add("over"); });
document.addEventListener("dragleave", () => $("stage").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  openAll(event.dataTransfer.files, "What was dropped");
});
window.addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });
new ResizeObserver(() => {
  canvas.resize();
  if (photo && canvas.view.fitted) canvas.fit(photo);
  draw();
}).observe($("stage"));

show();
listen(onEvent);
