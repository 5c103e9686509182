// The page: its history is a list of steps that can be undone; the server searches what fills the paint.
//
// A step holds the strokes and the marked faces, three points each; the layers that were filled before, with their strokes
// (`filled`), and `base`, which names the last of them to the server; and the result, once the hole is filled. A mask that
// was opened is a stroke: `mask` is its PNG file in base64, and `picture` shows it.

import { follow } from "/brush.js";
import * as canvas from "/canvas.js";
import { SILENT, ask, askBitmap, connected, listen, send } from "/server.js";
import { findKept, forget, keepPaint, keepPhoto } from "/store.js";

const $ = (id) => document.getElementById(id);
const EMPTY = { strokes: [], marked: [], layers: [], filled: [], base: null, result: null };
const ENDINGS = { PNG: "png", JPEG: "jpg", WEBP: "webp" };
const MASK = /[_-]mask$/i; // ends a mask's name, as for complete.py --maskDir
const POINTS = ["the inner corner of the eye on the left", "the inner corner of the eye on the right",
  "the middle of the lower lip's lower edge"];

let model = { ready: false, failure: null, detail: true, bytes: 0, grow: 0 }; // bytes: a photo's, at most
let photo = null; // width, height, bitmap, faces, kind, file
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
  keep();
  show();
}

// all that is painted, and was
const allStrokes = () => [...step().filled, ...step().strokes];

// what a reload needs; pictures are fetched again
const keep = () => keepPaint({ step: { ...step(), layers: [] }, photo, saved });

// the step that a new stroke starts from: on top of the result, where there is one
function onTop() {
  const { layers, result } = step();
  if (!result) return step();
  const chosen = result.answers[result.chosen];
  const layer = sharpOf(result) || { ...chosen, detail: result.detail };
  return { ...step(), strokes: [], filled: allStrokes(), layers: [...layers, layer], base: nameOf(result), result: null };
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
      strokes: [...(hidden ? [] : strokes), ...(stroke ? [stroke] : [])], grow: model.grow,
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
  for (const id of ["mark", "openMask", "another", "close"]) $(id).disabled = Boolean(job);
  $("saveMask").disabled = !photo || !allStrokes().length;
  $("mark").setAttribute("aria-pressed", Boolean(marking));
  $("fill").disabled = Boolean(job) || !model.ready || !strokes.length || Boolean(result && !result.faces);
  $("fill").textContent = result?.faces ? "Four more like it" : "Fill";
  $("stop").disabled = !job;
  $("choosing").disabled = !result && !base;
  $("detail").disabled = !result;
  $("detailing").hidden = !model.detail;
  $("save").disabled = Boolean(job) || !(result || base);
  $("zoom").hidden = !photo;
  $("kind").hidden = !photo || photo.kind === "PNG";
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
  keep();
  show();
}

// the server

async function onEvent(event) {
  if (event.page && job && (event.isNew || (job.fill && event.job !== job.fill))) job = null; // it ended without our hearing of it
  if (event.lost) say(SILENT);
  if ("ready" in event) {
    model = event;
    if (!job || event.failure) say(event.failure || (event.ready ? (photo ? "" : "Ready.") : "The model is loading."));
  }
  if (event.opened && job?.opening) say(`Looking for faces in ${job.opening}`);
  if (photo && (event.gone || (event.page && !event.photo))) photo.gone = true;
  if (event.fill && job && event.fill === (job.fill ??= event.fill)) await onSearch(event);
  show();
}

function toBitmap(base64) {
  return createImageBitmap(new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))]));
}

async function onSearch(event) {
  if (event.before) {
    say(`Other searches come first: ${event.before}.${event.seconds ? ` That may take ${event.seconds} seconds.` : ""}`);
  }
  if (event.look) say(`Looking for faces around the paint, picture ${event.look}`);
  if (event.failed) say(job.failed = event.failed);
  if (event.frame) {
    const bitmap = await toBitmap(event.frame);
    const [left, top, width, height] = event.box;
    if (!job.result) job.frame = { fine: bitmap, detail: 1, left, top, width, height };
    $("photo").dataset.frames = ++job.frames;
  }
  if (event.faces) {
    const under = !(photo.faces.length + step().marked.length);
    Object.assign(job, { faces: event.faces.length, outlines: event.faces, under, rim: event.rim });
    if (under) photo.faces = event.faces; // from now on outlined as the others
  }
  if ("iteration" in event) {
    job.losses.push(event);
    const found = event.iteration === event.iterations;
    say(`Answer ${event.number + 1} of 4, ${found ? "drawing it" : `step ${event.iteration} of ${event.iterations}`}`);
    canvas.drawPlot($("plot"), job.losses, 4);
    const [contextual, perceptual] = [event.contextual.toFixed(0), event.perceptual.toFixed(2)];
    $("losses").textContent = `contextual loss ${contextual}, perceptual loss ${perceptual} (dashed)`;
  }
  if ("answer" in event) job.fetching = fetchAnswer(job, event, job.fetching);
  if (event.done) {
    await job.fetching;
    const { failed, result, under } = job, found = result?.answers.length;
    const rim = job.rim ? " The damage seems to reach beyond the paint; if its edge shows, undo and paint more." : "";
    job = null;
    if (failed) return;
    if (!found) say("Stopped.");
    else if (!result.faces) say(`No face was found there, so the hole is filled from the rest of the photo. If there is one, undo and mark it.${rim}`);
    else say(`${found} answer${found > 1 ? "s" : ""}: choose one, and save.${under ?
      " A face was found under the paint; if it is not in its place, undo and mark it." : ""}${rim}`);
  }
}

// fetch an answer's pictures, one answer after the other
async function fetchAnswer(search, event, before) {
  await before;
  try {
    const [left, top, width, height] = event.box;
    const answer = { answer: event.answer, place: event.place, left, top, width, height };
    await fetchPictures(search, event.fill, answer);
    if (!search.result) {
      search.result = { fill: event.fill, answers: [answer], chosen: 0, detail: search.detail, faces: search.faces };
      search.frame = null;
      push({ ...search.step, result: search.result });
      $("answers").scrollIntoView({ block: "nearest" });
    } else {
      search.result.answers.push(answer);
      keep();
    }
  } catch (error) {
    if (!search.controller.signal.aborted) say(error.message);
  }
  show();
}

async function fetchPictures(search, fill, answer) {
  const query = `preview?fill=${fill}&answer=${answer.answer}`, { signal } = search.controller;
  search.rough ??= askBitmap(`${query}&detail=0`, signal); // the most probable face is that of all answers
  [answer.rough, answer.fine] = await Promise.all([search.rough, askBitmap(`${query}&detail=1`, signal)]);
}

async function upload(file) {
  const onShare = (share) => { if (share < 100 && model.ready) say(`Opening ${file.name}, ${share} %`); };
  const answer = await send("photo", file, onShare);
  return { ...answer, bitmap: await askBitmap("photo"), file };
}

// a mask that the server answers as the stroke that paints it
async function maskStroke(response) {
  const blob = await response.blob(), reader = new FileReader();
  reader.readAsDataURL(blob);
  await new Promise((resolve) => { reader.onload = resolve; });
  return { mask: reader.result.split(",")[1], picture: canvas.tinted(await createImageBitmap(blob)) };
}

const stem = (file) => file.name.replace(/\.\w+$/, "");
const isMaskOf = (file, other) => MASK.test(stem(file)) && stem(file).replace(MASK, "").toLowerCase() === stem(other).toLowerCase();

// open the first photo of some files, with its mask if that is there, and keep the others; or the mask of what is open
async function openAll(files, what) {
  const images = files.filter((file) => file.type.startsWith("image/") || /\.\w+$/.test(file.name));
  if (!images.length) return say(`${what} is no image file: save the picture first, then open that file.`);
  if (job) return say(`Not now: wait until this is done, then open ${images[0].name}.`);
  if (photo && images.length === 1 && isMaskOf(images[0], photo.file)) return openMask(images[0]);
  const first = images.find((file) => !images.some((other) => isMaskOf(file, other))), mask = images.find((file) => isMaskOf(file, first));
  if (unsaved() && !window.confirm(`Open ${first.name} in place of this photo, whose answers are not saved?`)) return;
  waiting = images.filter((file) => file !== first && file !== mask);
  if (await open(first) && mask) await openMask(mask);
  if (waiting.length) say(`${$("status").textContent} ${waiting.length} more can be opened next.`);
}

async function openMask(file) {
  if (!file || !photo || job) return;
  say(`Opening ${file.name}`);
  job = { opening: file.name };
  try {
    await reopen();
    const mask = await maskStroke(await ask(`mask?name=${encodeURIComponent(file.name)}`, { method: "PUT", body: file }));
    const below = onTop();
    push({ ...below, strokes: [...below.strokes, mask] });
    say(`${file.name} is painted. Paint more, or erase some of it, or fill.`);
  } catch (error) {
    say(error.message);
  } finally {
    job = null;
    show();
  }
}

async function open(file) {
  if (!file || job) return;
  if (model.bytes && file.size > model.bytes) return say(`${file.name}: is too large: ${model.bytes >> 20} MB at most.`);
  say(`Opening ${file.name}${model.ready ? "" : ", once the model is loaded"}`);
  job = { opening: file.name }; // so that nothing else starts
  let transparent = null;
  try {
    photo = await upload(file);
    if (photo.transparent) transparent = await maskStroke(await ask("transparent"));
  } catch (error) {
    if (photo) photo.gone = true; // the server may have the other one
    return say(`${file.name}: ${error.message}`);
  } finally {
    job = null;
    show();
  }
  await keepPhoto(file);
  steps = [transparent ? { ...EMPTY, strokes: [transparent] } : EMPTY];
  [at, marking, cursor] = [0, null, null];
  showOpened();
  const count = photo.faces.length;
  if (transparent) say("Paint over what is to go, or fill: what is transparent is painted already.");
  else say(count ? `${count} face${count > 1 ? "s" : ""} found. Paint over what is to go.` :
    "No face found yet. Paint over all that is damaged: a face is searched for again under the paint.");
  show();
  $("overlay").focus();
  return true;
}

function showOpened() {
  canvas.fit(photo);
  canvas.drawPlot($("plot"), [], 4);
  $("kind").replaceChildren(...["PNG", photo.kind].map((kind) => new Option(kind)));
}

// after a reload: the photo that was open, its paint, and its answers where the server still has them
async function restore() {
  const [file, kept] = await findKept(), { isNew, photo: there } = await connected;
  if (!file || photo || job) return;
  job = { opening: file.name }; // so that nothing else starts
  const known = kept && !isNew && there && await restoreAnswers(kept).catch(() => null);
  job = null;
  if (known) photo = { ...kept.photo, bitmap: known.bitmap, file };
  else if (!(await open(file)) || !kept) return;
  const { filled, strokes, marked } = kept.step;
  for (const stroke of [...filled, ...strokes]) {
    if (stroke.mask) stroke.picture = canvas.tinted(await toBitmap(stroke.mask));
  }
  if (known) showOpened();
  push(known ? { ...kept.step, layers: known.layers } : { ...EMPTY, strokes: [...filled, ...strokes], marked });
  const filledBefore = known && (kept.step.result || kept.step.base);
  say(`This is the photo from before, with its ${filledBefore ? "answers. Choose one, and save" : "paint. Paint more, or fill"}.`);
}

// the pictures of what was kept, from the server that has it
async function restoreAnswers({ photo: { width, height, transparent }, step: { base, result }, saved: name }) {
  const search = { controller: new AbortController() }, layers = [];
  for (const answer of result?.answers || []) await fetchPictures(search, result.fill, answer);
  if (result) result.sharp = null;
  if (base) {
    const whole = new URLSearchParams({ ...base, kind: transparent ? "PNG" : "JPEG" });
    layers.push({ fine: await askBitmap(`mended?${whole}`), detail: 1, left: 0, top: 0, width, height });
  }
  saved = name;
  return { bitmap: await askBitmap("photo"), layers };
}

// close the photo: nobody keeps it
async function close() {
  if (job || !photo || (unsaved() && !window.confirm("Close this photo, whose answers are not saved?"))) return;
  [photo, steps, at, marking, cursor, waiting] = [null, [EMPTY], 0, null, null, []];
  await Promise.all([forget(), ask("photo", { method: "DELETE" }).catch(() => null)]);
  say("The photo is forgotten.");
  show();
}

// the server has dropped the photo, and what was filled in it: upload it again
async function reopen() {
  if (!photo.gone) return;
  photo = await upload(photo.file);
  const { base, result, marked } = step();
  [steps, at] = [[{ ...EMPTY, strokes: allStrokes(), marked }], 0];
  if (base || result) throw new Error("The photo was not used for long, and what was filled is lost; all paint is still there.");
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

// save what the server answers under a name
async function download(name, path, options) {
  say("Saving");
  try {
    const blob = await (await ask(path, options)).blob();
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`Saved as ${name}.`);
    return true;
  } catch (error) {
    say(error.message);
  }
}

async function save() {
  if ($("save").disabled) return;
  const { result, base } = step(), answer = result ? nameOf(result) : base, kind = $("kind").value;
  const path = `mended?${new URLSearchParams({ ...answer, kind })}`;
  if (await download(`${stem(photo.file)}-mended.${ENDINGS[kind]}`, path)) {
    saved = JSON.stringify(answer);
    keep();
  }
}

async function saveMask() {
  const body = JSON.stringify({ strokes: allStrokes() });
  await download(`${stem(photo.file)}-mask.png`, "mask", { method: "POST", body });
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
  keep();
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
const ACTIONS = { mark: toggleMarking, fill, stop, save, saveMask, close };
for (const [id, action] of Object.entries(ACTIONS)) $(id).onclick = action;
$("choose").onclick = () => $("file").click();
$("another").onclick = () => waiting.length ? openAll(waiting) : $("file").click();
$("openMask").onclick = () => $("maskFile").click();
$("file").onchange = ({ target }) => { openAll([...target.files], "This"); target.value = ""; };
$("maskFile").onchange = ({ target }) => { openMask(target.files[0]); target.value = ""; };
$("kind").onchange = ({ target }) => say(target.value === "PNG" ? "PNG keeps all pixels beside the hole as they are." :
  `As ${target.value}, all pixels are encoded again, with a quality of 95; PNG keeps those beside the hole as they are.`);
[$("smaller").onclick, $("larger").onclick] = [() => zoomBy(1 / 1.4), () => zoomBy(1.4)];
$("fit").onclick = () => { if (photo) canvas.fit(photo); draw(); };
$("size").oninput = $("split").oninput = draw;
$("help").onclick = () => $("keys").showModal();
$("detail").onchange = keep;
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

window.addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });
new ResizeObserver(() => {
  canvas.resize();
  if (photo && canvas.view.fitted) canvas.fit(photo);
  draw();
}).observe($("stage"));

show();
listen(onEvent);
given.take = openAll; // of early.js
if (given.first) openAll(...given.first);
else restore();
