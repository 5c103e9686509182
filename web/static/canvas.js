// The view of the photo: two canvases, one above the other. Points are in pixels of the photo, from its upper left
// corner.

const INK = "#d81b60";
const photoCanvas = document.getElementById("photo");
const overlay = document.getElementById("overlay");
const ink = document.createElement("canvas");
export const view = { scale: 1, x: 0, y: 0, fitted: true };

export function tinted(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = INK;
  context.fillRect(0, 0, canvas.width, canvas.height);
  return canvas;
}

export function resize() {
  const ratio = window.devicePixelRatio || 1;
  for (const canvas of [photoCanvas, overlay, ink]) {
    canvas.width = Math.max(1, Math.round(overlay.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(overlay.clientHeight * ratio));
  }
}

export function fit(photo) {
  const margin = 0.96;
  view.scale = margin * Math.min(overlay.width / photo.width, overlay.height / photo.height);
  view.x = (overlay.width - view.scale * photo.width) / 2;
  view.y = (overlay.height - view.scale * photo.height) / 2;
  view.fitted = true;
}

export function zoom(photo, factor, place) {
  const least = 0.5 * Math.min(overlay.width / photo.width, overlay.height / photo.height, 1);
  const [x, y] = place || [overlay.width / 2, overlay.height / 2];
  const scale = Math.min(64, Math.max(least, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  view.fitted = false;
}

export function move(x, y) {
  view.x += x;
  view.y += y;
  view.fitted = false;
}

// where on the overlay a pointer is, in the canvas' own pixels
export function onCanvas(event) {
  const box = overlay.getBoundingClientRect();
  return [(event.clientX - box.left) * overlay.width / box.width, (event.clientY - box.top) * overlay.height / box.height];
}

export function toPhoto([x, y]) {
  return [(x - view.x) / view.scale, (y - view.y) / view.scale];
}

function clear(canvas) {
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
  return context;
}

// A layer is a hole that was filled: `rough` is it at detail 0, `fine` at detail 1, and a mixture of them at any other, as
// blending is linear in the detail, and a refiner nearly so.
function drawLayer(context, layer) {
  for (const [bitmap, alpha] of [[layer.rough, 1], [layer.fine, layer.detail]]) {
    if (bitmap) {
      context.globalAlpha = alpha;
      context.drawImage(bitmap, layer.left, layer.top, layer.width, layer.height);
    }
  }
  context.globalAlpha = 1;
}

// split: the share of the photo's width that shows it as it was
export function drawPhoto(photo, layers, split) {
  const context = clear(photoCanvas);
  if (!photo) return;
  context.imageSmoothingEnabled = view.scale < 3;
  context.imageSmoothingQuality = "high";
  context.drawImage(photo.bitmap, 0, 0);
  context.save();
  context.beginPath();
  context.rect(split * photo.width, 0, photo.width, photo.height);
  context.clip();
  for (const layer of layers) drawLayer(context, layer);
  context.restore();
}

function drawStrokes(strokes) {
  const context = clear(ink);
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = INK;
  for (const stroke of strokes) {
    context.globalCompositeOperation = stroke.erases ? "destination-out" : "source-over";
    if (stroke.mask) {
      context.drawImage(stroke.picture, 0, 0);
      continue;
    }
    context.lineWidth = stroke.size;
    context.beginPath();
    const [x, y] = stroke.points[0];
    context.moveTo(x - 0.01, y); // a tap is a dot, but browsers need not draw a line of no length
    for (const point of stroke.points) context.lineTo(...point);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

// the paint, which lets the photo through, and around it a rim of what is filled as well, `grow` pixels of the photo wide
function drawPaint(context, grow) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  for (let i = 0; i < 16; i += 1) {
    const angle = i * Math.PI / 8;
    context.drawImage(ink, grow * view.scale * Math.cos(angle), grow * view.scale * Math.sin(angle));
  }
  context.globalCompositeOperation = "destination-out";
  context.drawImage(ink, 0, 0);
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 0.6;
  context.drawImage(ink, 0, 0);
  context.globalAlpha = 1;
}

// light over dark, so that it shows on every photo
function outline(context, width, dash, draw) {
  for (const [color, wider] of [["#000c", 2], ["#fff", 1]]) {
    context.strokeStyle = color;
    context.lineWidth = wider * width / view.scale;
    context.setLineDash(wider === 1 ? dash.map((length) => length / view.scale) : []);
    context.beginPath();
    draw();
    context.stroke();
  }
  context.setLineDash([]);
}

// the outline of a face that is marked by hand, from its three points, until the server sends one
export function roughOutline([[x1, y1], [x2, y2], [x3, y3]]) {
  const across = 4 * Math.hypot(x2 - x1, y2 - y1), x = (x1 + x2 + x3) / 3, y = (y1 + y2 + y3) / 3;
  const down = 1.9 * Math.hypot(x3 - (x1 + x2) / 2, y3 - (y1 + y2) / 2);
  return [[x - across / 2, y - down / 2], [x + across / 2, y - down / 2], [x + across / 2, y + down / 2],
    [x - across / 2, y + down / 2]];
}

// strokes to show, and by how much their hole grows; outlines of faces; points that are marked; a cursor: {place, size}
// or {place, cross: true}; where the photo as it was ends
export function drawOverlay(photo, { strokes, grow, outlines, points, cursor, split }) {
  const context = clear(overlay);
  if (!photo) return;
  const ratio = window.devicePixelRatio || 1;
  drawStrokes(strokes);
  if (strokes.length) drawPaint(context, grow);
  context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
  for (const corners of outlines) {
    outline(context, 1.5 * ratio, [6 * ratio, 6 * ratio], () => {
      context.moveTo(...corners[3]);
      for (const corner of corners) context.lineTo(...corner);
    });
  }
  if (split) {
    outline(context, 1.5 * ratio, [], () => {
      context.moveTo(split * photo.width, 0);
      context.lineTo(split * photo.width, photo.height);
    });
  }
  const arm = 7 * ratio / view.scale;
  for (const [x, y] of cursor?.cross ? [...points, cursor.place] : points) {
    outline(context, 1.5 * ratio, [], () => {
      context.moveTo(x - arm, y);
      context.lineTo(x + arm, y);
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
    });
  }
  if (cursor && !cursor.cross) {
    outline(context, 1.5 * ratio, [], () => context.arc(...cursor.place, cursor.size / 2, 0, 2 * Math.PI));
  }
}

// a small picture of the middle of a layer, no larger than that shows
export function drawThumbnail(canvas, photo, layers, around) {
  const side = Math.max(Math.min(around.width, around.height, photo.width, photo.height), 0.6 * Math.max(around.width, around.height), 32);
  const scale = canvas.width / side;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, scale, -scale * (around.left + around.width / 2 - side / 2),
    -scale * (around.top + around.height / 2 - side / 2));
  context.imageSmoothingQuality = "high";
  context.drawImage(photo.bitmap, 0, 0);
  for (const layer of layers) drawLayer(context, layer);
}

// the curves of both losses, each relative to its own largest value, over the steps of `count` answers
export function drawPlot(canvas, losses, count) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  context.strokeStyle = style.getPropertyValue("--line");
  context.strokeRect(0.5, -1, width, height + 0.5); // the axes: the other two sides lie outside
  context.lineWidth = 1.5 * ratio;
  for (const [kind, color, dash] of [["contextual", "--main", []], ["perceptual", "--text", [4 * ratio, 3 * ratio]]]) {
    const most = Math.max(...losses.map((event) => event[kind]), 1e-9);
    context.strokeStyle = style.getPropertyValue(color);
    context.setLineDash(dash);
    context.beginPath();
    for (const event of losses) {
      const share = (event.number + event.iteration / event.iterations) / count;
      context.lineTo(2 + (width - 4) * share, height - 2 - (height - 4) * event[kind] / most);
    }
    context.stroke();
  }
}
