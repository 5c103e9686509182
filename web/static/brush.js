// Follows mouse, finger, pen and keys on the photo: one of them paints, two fingers or the space bar move it.

import * as canvas from "/canvas.js";

// `on` holds the callbacks: photo() returns the one that is open, point() where the cross is; start, extend, finish and
// cancel are those of a stroke, hover gets the pointer's place, or null; changed is called after each of them.
export function follow(overlay, on) {
  const pointers = new Map();
  let pinch = null, space = false;

  overlay.addEventListener("pointerdown", (event) => {
    if (!on.photo()) return;
    overlay.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, canvas.onCanvas(event));
    if (pointers.size === 2) {
      on.cancel();
      pinch = [...pointers.values()];
    } else if (pointers.size === 1 && event.button === 0 && !space) {
      on.start(canvas.toPhoto(canvas.onCanvas(event)));
    }
    event.preventDefault();
    overlay.focus({ preventScroll: true });
    on.changed();
  });

  overlay.addEventListener("pointermove", (event) => {
    if (!on.photo()) return;
    const place = canvas.onCanvas(event), before = pointers.get(event.pointerId);
    on.hover(canvas.toPhoto(place));
    if (before) {
      pointers.set(event.pointerId, place);
      if (pinch) zoomByTwo(on.photo());
      else if (space || event.buttons & 4) canvas.move(place[0] - before[0], place[1] - before[1]);
      else for (const each of event.getCoalescedEvents?.() || [event]) on.extend(canvas.toPhoto(canvas.onCanvas(each)));
    }
    on.changed();
  });

  function zoomByTwo(photo) {
    if (pointers.size !== 2) return;
    const [a, b] = pinch, [c, d] = [...pointers.values()];
    const middle = [(c[0] + d[0]) / 2, (c[1] + d[1]) / 2];
    canvas.move(middle[0] - (a[0] + b[0]) / 2, middle[1] - (a[1] + b[1]) / 2);
    canvas.zoom(photo, Math.hypot(c[0] - d[0], c[1] - d[1]) / Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1])), middle);
    pinch = [c, d];
  }

  function lift(event) {
    if (!pointers.delete(event.pointerId)) return;
    if (!pointers.size) pinch = null;
    if (event.type === "pointercancel") on.cancel();
    else on.finish();
    on.changed();
  }
  overlay.addEventListener("pointerup", lift);
  overlay.addEventListener("pointercancel", lift);
  overlay.addEventListener("pointerleave", () => {
    if (!pointers.size) on.hover(null);
    on.changed();
  });

  overlay.addEventListener("wheel", (event) => {
    if (!on.photo()) return;
    event.preventDefault();
    canvas.zoom(on.photo(), 1.0015 ** -event.deltaY, canvas.onCanvas(event));
    on.changed();
  }, { passive: false });

  overlay.addEventListener("keydown", (event) => {
    const photo = on.photo(), step = event.shiftKey ? 1 : 10;
    const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step], Enter: [0, 0] };
    if (event.key === " ") space = true;
    if (event.key === " " || ways[event.key]) event.preventDefault();
    if (!photo || !ways[event.key]) return;
    const place = on.point() || [photo.width / 2, photo.height / 2];
    const [x, y] = place.map((value, i) => value + ways[event.key][i] / canvas.view.scale);
    const inside = [Math.min(photo.width, Math.max(0, x)), Math.min(photo.height, Math.max(0, y))];
    on.hover(inside);
    if (event.key === "Enter") {
      on.start(inside);
      on.finish();
    }
    on.changed();
  });
  document.addEventListener("keyup", ({ key }) => { if (key === " ") space = false; });
  window.addEventListener("blur", () => { space = false; });
}
