"""Mend a photo in memory, hole after hole: what the page of paint.py does. Nothing here touches the disk.

    photo = open_photo(data, seer)
    hole = begin(photo, strokes)
    fill = with_faces(photo, hole, model, seer)
    for number, state in find_answers(fill, model, stop): ...     # four, one after the other
    png = save(photo, onto(photo, fill, 0, 0.75, model))          # the first of them

The steps are those of `complete.py --photo`, by the same functions. All places are in pixels of the upright photo, from
its upper left corner.
"""

import contextlib
import io
import itertools
import threading
from typing import NamedTuple

import cli

import numpy as np
from PIL import Image

import utils
from completion import compositing, masks, prior
from photos import detection, geometry, occlusion, reading, restoring

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]
BYTES, PIXELS, SIDE, SLIM = 64 * 2**20, 50 * 10**6, 32, 20  # of a photo: at most, at least, and length by width
LOOK = 1600  # pixels of the longer side at which faces are looked for
CROP = 64  # pixels of the crops that are outlined, which have the same outline in all sizes
SURE = 0.15  # the detector's score from which a face is outlined: two false ones in 24 photos had less, no true one
ANSWERS = 4
INNER = "innerEyesAndBottomLip"
LOOKING = threading.Lock()  # dlib's detector serves one thread at a time


Seer = detection.FaceDetector


class Model(NamedTuple):
    """What completes: a DCGAN, and the encoder and the covariance beside it where there are some."""

    dcgan: object
    encoder: object
    covariance: object

    @classmethod
    def load(cls, directory):
        """The model in a directory; imports TensorFlow. Raises UserError if it cannot be used."""
        with cli.quiet_tensorflow():
            import ops

            ops.use_device()
            from completion.encoder import Encoder
            from model import DCGAN

            dcgan = DCGAN.load(directory)
        encoder, _ = Encoder.load(directory, dcgan)
        model = cls(dcgan, encoder, prior.load(directory, dcgan.image_shape))
        model.warm_up()
        return model

    def warm_up(self):
        """Compile the search on an empty picture, so that the first fill does not wait for it."""
        holes = masks.holes("alpha", [masks.make("center", self.dcgan.image_size)])
        images = np.zeros((1, *self.dcgan.image_shape), np.float32)
        fill = Fill(None, (), np.zeros((0, 0)), [], images, holes, [])
        for _ in find_answers(fill, self, threading.Event(), iterations=1):
            pass


class Seen(NamedTuple):
    """A face that was seen when a photo was opened."""

    box: object  # dlib.rectangle, pixels of the photo as it was looked at
    landmarks: np.ndarray  # (68, 2), pixels of the photo itself, as OpenCV counts


class Photo(NamedTuple):
    """A photo as it was opened."""

    pixels: np.ndarray  # uint8 (H, W, 1 or 3), upright
    alpha: np.ndarray | None  # uint8 (H, W), where a part is transparent
    kept: dict  # what a PNG file keeps of it, for Pillow
    seen: list  # of `Seen`


def open_photo(data, seer):
    """The `Photo` in the bytes of an image file; raises UserError for what is none, or too large."""
    try:
        image = utils.decode(io.BytesIO(data), FORMATS, PIXELS)
        if min(image.size) < SIDE or max(image.size) > SLIM * min(image.size):
            raise ValueError(f"{image.width}x{image.height} pixels are too small, or too slim")
        pixels = reading.to_pixels(image, image.mode in reading.GREY)
        alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
        kept, _ = reading.png_metadata(io.BytesIO(data), image)
    except Exception as error:  # Pillow raises anything on a damaged file
        why = "it is no image, or damaged" if isinstance(error, OSError | SyntaxError) else error
        raise cli.UserError(f"cannot be opened ({why}); choose a PNG, JPEG or WebP file") from error
    alpha = None if alpha is None or alpha.min() == 255 else alpha
    small, scale = looked_at(pixels if alpha is None else np.where(alpha[..., None] < 255, np.uint8(128), pixels))
    with LOOKING:
        boxes, _, _ = seer.frontal.run(small, 1, SURE)
        seen = [Seen(box, to_photo(seer.find_landmarks(small, box), scale)) for box in boxes]
    return Photo(pixels, alpha, kept, seen)


def looked_at(pixels):
    """A photo, uint8 (H, W, 1 or 3), as faces are looked for in it, RGB (h, w, 3), and its scale, at most 1."""
    import cv2

    height, width = pixels.shape[:2]
    scale = min(1, LOOK / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C"), scale


def to_photo(pixels, scale):
    """Centres of pixels of a photo as it was looked at, (N, 2), in pixels of the photo itself, as OpenCV counts."""
    return ((pixels + 0.5) / scale - 0.5).astype(np.float32)


class Stroke(NamedTuple):
    """A stroke of the brush, or of the eraser; or what is transparent in the photo, as if it had been painted."""

    points: np.ndarray = np.zeros((0, 2))  # (N, 2), x and y
    size: float = 0  # the brush's diameter, pixels
    erases: bool = False
    transparent: bool = False


def painted(strokes, photo):
    """What strokes, one after the other, make of the hole: boolean (H, W)."""
    import cv2

    hole = np.zeros(photo.pixels.shape[:2], np.uint8)
    for stroke in strokes:
        if stroke.transparent:
            hole[(np.uint8(255) if photo.alpha is None else photo.alpha) < 255] = 1
            continue
        fixed = np.round((np.clip(stroke.points, -1e6, 1e6) - 0.5) * 8).astype(np.int32)  # eighths of a pixel
        cv2.circle(hole, fixed[0].tolist(), round(stroke.size * 4), int(not stroke.erases), cv2.FILLED, shift=3)
        if len(fixed) > 1:
            cv2.polylines(hole, [fixed], False, int(not stroke.erases), max(1, round(stroke.size)), shift=3)
    return hole > 0


class Base(NamedTuple):
    """What was filled of a photo before."""

    part: tuple  # slices of the photo
    pixels: np.ndarray  # uint8 (h, w, C), of that part
    filled: np.ndarray  # boolean (h, w): where they are not the photo's own


class Fill(NamedTuple):
    """A hole in a photo, what is known of the faces around it, and the answers as far as they are found."""

    base: Base | None
    part: tuple  # slices of the photo: the smallest rectangle that holds the hole
    hidden: np.ndarray  # boolean (h, w), of that part: the hole
    matrices: list  # (2, 3) for each face, from the photo's pixels to the crop's
    images: np.ndarray  # (N, size, size, C) in [-1, 1]
    holes: masks.Holes | None  # of these
    answers: list  # of pairs z (N, z_dim) and G(z)


def current(photo, base):
    """The photo with what was filled before: uint8 (H, W, C), and what of it is transparent, boolean (H, W)."""
    pixels = photo.pixels.copy()
    transparent = np.zeros(pixels.shape[:2], bool) if photo.alpha is None else photo.alpha < 255
    if base:
        pixels[base.part] = base.pixels
        transparent[base.part] &= ~base.filled
    return pixels, transparent


def known_of(photo, fill):
    """What a fill starts from: the pixels, uint8 (H, W, C), and what must not be looked at, boolean (H, W)."""
    pixels, hidden = current(photo, fill.base)
    hidden[fill.part] |= fill.hidden
    return pixels, hidden


def begin(photo, strokes, base=None):
    """The `Fill` of what is painted, as yet without faces; raises UserError if nothing is painted, or everything."""
    hole = painted(strokes, photo)
    if not hole.any():
        raise cli.UserError("Nothing is painted yet: paint over what is to go.")
    part = restoring.surrounding(hole, 0)
    fill = Fill(base, part, hole[part], [], np.zeros(0), None, [])
    if known_of(photo, fill)[1].all():
        raise cli.UserError("All of the photo is painted over: leave something of it.")
    return fill


def with_faces(photo, fill, model, seer, marked=()):
    """The `Fill` with the faces that its hole touches.

    marked: the three landmarks (3, 2) of each face that was marked by hand; it takes the place of one seen there.
    Raises UserError if they are not those of a face.
    """
    size, channels = model.dcgan.image_size, model.dcgan.c_dim
    pixels, hidden = known_of(photo, fill)
    layers = np.dstack([np.broadcast_to(pixels, (*hidden.shape, 3)), np.where(hidden, 0, 255).astype(np.uint8)])
    matrices, images, known = [], [], []
    for landmarks in landmarks_of(photo, pixels, hidden, seer, marked):
        matrix = geometry.affine(landmarks, size)
        crop = Image.fromarray(geometry.warp(layers, matrix, size))
        mask = masks.transparent(crop, size)
        if not mask.all():
            matrices.append(matrix)
            images.append(utils.as_pixels(crop, size, channels))
            known.append(mask)
    holes = masks.holes("alpha", known) if known else None
    return fill._replace(matrices=matrices, images=utils.to_float(images), holes=holes)


def landmarks_of(photo, pixels, hidden, seer, marked):
    """The landmarks (68, 2) of the faces that may have a hole: marked by hand, seen at first, else under the hole."""
    import cv2

    try:
        by_hand = [geometry.landmarks_by_hand(np.subtract(points, 0.5), INNER, hidden.shape) for points in marked]
    except cli.UserError as error:
        raise cli.UserError(
            "The three points do not make a face: mark the eye on the left, the one on the right, then the lower lip."
        ) from error
    small, scale = looked_at(pixels)
    hole = cv2.resize(hidden.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA) > 0
    places = to_photo(np.argwhere(hole)[:, ::-1], scale)
    others = [seen for seen in photo.seen if not any(holds(each, seen.landmarks[33:34]) for each in by_hand)]
    touched = [seen for seen in others if holds(seen.landmarks, places)]
    by_hand = [each for each in by_hand if holds(each, places)]
    with LOOKING:
        if touched or by_hand:
            return by_hand + [read_again(small, hole, seen, scale, seer) for seen in touched]
        found = occlusion.find_faces_under(small, hole, seer)
        found = [sightings for sightings in found if occlusion.in_box(hole, sightings[0].box).any()]
        read = [occlusion.landmarks_under(hole, sightings, seer) for sightings in found]
        return [to_photo(landmarks, scale) for landmarks in read]


def holds(landmarks, points):
    """Whether one of some points (N, 2), as OpenCV counts, lies in what is cut out for a face's landmarks (68, 2)."""
    matrix = geometry.affine(landmarks, CROP)
    places = points @ matrix[:, :2].T + matrix[:, 2]
    return bool(((places > -0.5) & (places < CROP - 0.5)).all(1).any())


def read_again(small, hole, seen, scale, seer):
    """The landmarks of a face without what the hole shows; if that is most of it, as they were seen at first."""
    if (~occlusion.in_box(hole, seen.box)).mean() <= occlusion.MIN_VISIBLE:
        return seen.landmarks
    copies = itertools.islice(occlusion.fillings(small, hole), 2)  # inpainted and grey; a mirrored face is not needed
    sightings = [occlusion.Detection(how, copy, seen.box) for how, copy in copies]
    return to_photo(occlusion.landmarks_under(hole, sightings, seer), scale)


class Stopped(Exception):
    """A search was told to stop."""


def find_answers(fill, model, stop, seed=0, near=None, **settings):
    """Search `ANSWERS` answers for the faces of a fill, which are added to `fill.answers`; yields all on the way.

    Yields pairs of an answer's number and `search.Completion`, None once it is there. Once the event `stop` is set, the
    best that was found of the answer at hand is the last one. near: z (N, z_dim) near which all answers are to lie;
    else the first is the one that `complete.py` finds. seed, settings: see `search.complete`.
    """
    from completion import search

    def progress(done, total):
        if stop.is_set():
            raise Stopped

    if not len(fill.images):  # all of it is inpainted
        fill.answers.append((None, None))
        yield 0, None
        return
    start = near
    if near is None and model.encoder:
        start = model.encoder.guess(*fill.holes.masked(fill.images))
    settings |= dict(progress=progress, interval=5 if start is None else 1)
    for number in range(ANSWERS):
        first, state = start, None
        if start is not None and (number or near is not None):
            first = search.near(start, seed + number, range(len(start)))
        states = search.complete(
            model.dcgan, fill.images, fill.holes.masks, start=first, seed=seed + number, **settings
        )
        with contextlib.suppress(Stopped):
            for state in states:
                yield number, state
        if state:
            fill.answers.append((state.z, state.generated))
            yield number, None
        if stop.is_set():
            return


def crops(photo, fill, generated, detail, model):
    """The completed crops of a fill's faces, in the photo's colours: uint8 (size, size, C) each."""
    joined = compositing.blend(fill.images, generated, fill.holes.masks, model.covariance, detail)
    grey = photo.pixels.shape[2] == 1
    return [reading.to_pixels(utils.to_picture(crop), grey) for crop in utils.to_uint8(joined)]


def render(photo, fill, answer, detail, model):
    """The part of the photo that holds the hole, uint8 (h, w, C), filled with one of the answers at some detail."""
    pixels, hidden = known_of(photo, fill)
    found = crops(photo, fill, fill.answers[answer][1], detail, model) if fill.matrices else []
    filled, _ = restoring.into_photo(pixels, hidden, found, fill.matrices, answer)
    return np.where(fill.hidden[..., None], filled[fill.part], pixels[fill.part])


def onto(photo, fill, answer, detail, model):
    """The `Base` of a later fill: this one, filled with one of its answers, and all that was before it."""
    parts = [fill.part, fill.base.part] if fill.base else [fill.part]
    part = tuple(slice(min(x.start for x in both), max(x.stop for x in both)) for both in zip(*parts, strict=True))
    pixels, filled = current(photo, fill.base)[0], np.zeros(photo.pixels.shape[:2], bool)
    pixels[fill.part] = render(photo, fill, answer, detail, model)
    filled[fill.part] = fill.hidden
    if fill.base:
        filled[fill.base.part] |= fill.base.filled
    return Base(part, pixels[part].copy(), filled[part].copy())


def save(photo, base):
    """The photo with what was filled, as a PNG file of its own size that keeps what it can of the photo's: bytes."""
    pixels, transparent = current(photo, base)
    picture = utils.to_picture(pixels)
    if transparent.any():
        picture.putalpha(Image.fromarray(np.where(transparent, photo.alpha, np.uint8(255))))
    file = io.BytesIO()
    picture.save(file, "PNG", **photo.kept)
    return file.getvalue()
