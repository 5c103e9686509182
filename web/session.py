"""A photo edited in memory, hole after hole: what the page of paint.py does. Nothing here touches the disk.

    photo = open_photo(data)
    edit = with_faces(photo, start_edit(photo, strokes), find_faces(photo, detector), completer, detector)
    for number, state in find_answers(edit, completer, stop): ...     # four, one after the other
    png = save(photo, layers_up_to(edit, render(photo, edit, 0, 0.75, completer)))   # the photo with the first of them

The steps are those of `complete.py --photo`, by the same functions. Points are in pixels of the upright photo, from its
upper left corner; a part of a photo is a pair of slices.
"""

import contextlib
import dataclasses
import io
import itertools
import threading
from collections.abc import Callable
from typing import NamedTuple

import cli

import numpy as np
from PIL import Image

import utils
from completion import masks, prior
from photos import detection, filling, geometry, occlusion, reading, restoring, symmetry

FORMATS = ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF"]
# in which a photo is saved, and how; a mask in the first
KINDS = {"PNG": dict(compress_level=4), "JPEG": dict(quality=95, subsampling=0), "WEBP": dict(quality=95)}
# of a photo: bytes and pixels at most, pixels of a side at least, the longer side by the shorter at most
MAX_BYTES, MAX_PIXELS, MIN_SIDE, MAX_ASPECT = 64 * 2**20, 50 * 10**6, 32, 20
MIN_SCORE = 0.15  # of a face that is outlined: two false ones in 24 photos had less, no true one
OUTLINE_SIZE = 64  # pixels of the crops that are outlined; crops of all sizes have the same outline
ANSWERS = 4
WHOLE = np.s_[0 : 2**31, 0 : 2**31]  # the part that is all of a photo
DETECTING = threading.Lock()  # dlib's detector serves one thread at a time
INTERVAL = 4  # iterations between two looks at a search that starts from the encoder's z; each costs one and a half


def load_completer(directory):
    """The `Completer` of the model in a directory; imports TensorFlow. Raises UserError if it cannot be used.

    A first search on an empty image compiles all functions, so that the page does not wait for that.
    """
    with cli.quiet_tensorflow():
        import ops

        ops.use_device()
        from completion.completer import Completer
    completer = Completer.load(directory, photos=True)
    holes = masks.holes("alpha", [masks.make("center", completer.dcgan.image_size)])
    short = dataclasses.replace(completer, settings={"iterations": 1})
    for _ in short.complete(np.zeros((1, *completer.dcgan.image_shape), np.float32), holes):
        pass
    return completer


class DetectedFace(NamedTuple):
    """A face that was detected when a photo was opened."""

    box: object  # dlib.rectangle, pixels of the photo at the size of detection
    landmarks: np.ndarray  # (68, 2), pixels of the photo itself, as OpenCV counts


@contextlib.contextmanager
def report_unreadable(name=""):
    """Raise UserError, which begins with `name`, where a file that is decoded inside is no image, or damaged."""
    try:
        yield
    except cli.UserError:
        raise
    except Exception as error:  # Pillow raises anything on a damaged file
        why = "it is no image, or damaged" if isinstance(error, OSError | SyntaxError) else error
        raise cli.UserError(f"{name}cannot be opened ({why}); choose a PNG, JPEG or WebP file") from error


def open_photo(data):
    """The `reading.Photo` in the bytes of an image file; raises UserError if it is no image, or too large or slim."""
    with report_unreadable():
        image = utils.decode(io.BytesIO(data), FORMATS, MAX_PIXELS)
        if min(image.size) < MIN_SIDE or max(image.size) > MAX_ASPECT * min(image.size):
            raise ValueError(f"{image.width}x{image.height} pixels are too small, or too slim")
        return reading.to_photo(image, io.BytesIO(data))


def kind_of(data):
    """Which of `KINDS` a photo's file is, the first where it is none of them."""
    with Image.open(io.BytesIO(data)) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
    return kind if kind in KINDS else "PNG"


def open_mask(data, name, photo):
    """What the mask in the bytes of an image file hides of the photo, boolean (H, W), as complete.py reads --mask.

    Raises UserError, which begins with the file's `name`, if it is no image, or no mask of this photo.
    """
    with report_unreadable(f"{name}: "):
        return masks.hidden_by(name, photo.pixels.shape[:2], utils.decode(io.BytesIO(data), FORMATS, MAX_PIXELS))


def save_mask(hole, **options):
    """A hole, boolean (H, W), as a PNG file of a mask: bytes; options: for Pillow."""
    file = io.BytesIO()
    Image.fromarray(hole).save(file, "PNG", **options)
    return file.getvalue()


def find_faces(photo, detector):
    """The `DetectedFace`s in a photo, whose transparent parts are grey for that."""
    pixels = photo.pixels if photo.alpha is None else np.where(photo.hidden[..., None], np.uint8(128), photo.pixels)
    small, scale = detection.shrink(pixels)
    with DETECTING:
        boxes, _, _ = detector.frontal.run(small, 1, MIN_SCORE)
        return [DetectedFace(box, detection.enlarge(detector.find_landmarks(small, box), scale)) for box in boxes]


class Stroke(NamedTuple):
    """A stroke of the brush, or of the eraser; or all that a mask hides, as if it had been painted."""

    points: np.ndarray = np.zeros((0, 2))  # (N, 2), x and y
    size: float = 0  # the brush's diameter, pixels
    erases: bool = False
    mask: bytes = b""  # as `save_mask` writes it


def painted(strokes, photo):
    """The hole that strokes make, one after the other: boolean (H, W). Raises UserError if a mask is none of it."""
    import cv2

    hole = np.zeros(photo.pixels.shape[:2], np.uint8)
    for stroke in strokes:
        if stroke.mask:
            with report_unreadable():
                image = utils.decode(io.BytesIO(stroke.mask), ["PNG"], hole.size)
                hole[np.asarray(image.convert("L")) >= 128] = 1
            continue
        fixed = np.round((np.clip(stroke.points, -1e6, 1e6) - 0.5) * 8).astype(np.int32)  # eighths of a pixel
        cv2.circle(hole, fixed[0].tolist(), round(stroke.size * 4), int(not stroke.erases), cv2.FILLED, shift=3)
        if len(fixed) > 1:
            cv2.polylines(hole, [fixed], False, int(not stroke.erases), max(1, round(stroke.size)), shift=3)
    return hole > 0


class Layer(NamedTuple):
    """A part of a photo as an edit has filled it."""

    part: tuple  # slices
    pixels: np.ndarray  # uint8 (h, w, C)
    filled: np.ndarray  # boolean (h, w): the hole


class Edit(NamedTuple):
    """A hole in a photo, what is known of the faces around it, and the answers as far as they are found."""

    layers: list  # of `Layer`: what was filled before, the latest at the end
    part: tuple  # of the photo: the smallest that holds the hole
    surroundings: tuple  # of the photo: all that is hidden, and what `filling.into_photo` reads around it
    hole: np.ndarray  # boolean (h, w), of `part`
    answers: list  # of pairs z (N, z_dim) and G(z), or None where no face is
    matrices: list = []  # (2, 3) for each face, from the photo's pixels to the crop's
    images: np.ndarray = np.zeros(0)  # (N, size, size, C) in [-1, 1]
    holes: masks.Holes | None = None  # of these
    texture: list = []  # once an answer was rendered: what is beside the faces, see `filling.into_photo`


def overlap(one, other):
    """What two parts of a photo share: slices of the one, and of the other."""
    starts = [max(a.start, b.start) for a, b in zip(one, other, strict=True)]
    stops = [max(start, min(a.stop, b.stop)) for start, a, b in zip(starts, one, other, strict=True)]
    spans = list(zip(starts, stops, strict=True))
    return [
        tuple(slice(start - side.start, stop - side.start) for (start, stop), side in zip(spans, part, strict=True))
        for part in (one, other)
    ]


def composite(photo, layers, part):
    """A part of the photo under layers: uint8 (h, w, C), and where that is transparent, boolean (h, w)."""
    pixels, transparent = photo.pixels[part].copy(), photo.hidden[part]
    for layer in layers:
        here, there = overlap(part, layer.part)
        pixels[here] = layer.pixels[there]
        transparent[here] &= ~layer.filled[there]
    return pixels, transparent


def before(photo, edit, part):
    """A part of the photo before an edit: uint8 (h, w, C), and what is hidden, the hole included, boolean (h, w)."""
    pixels, hidden = composite(photo, edit.layers, part)
    here, there = overlap(part, edit.part)
    hidden[here] |= edit.hole[there]
    return pixels, hidden


def start_edit(photo, strokes, layers=()):
    """The `Edit` of what is painted, as yet without faces; raises UserError if nothing is painted, or everything."""
    hole = painted(strokes, photo)
    if not hole.any():
        raise cli.UserError("Nothing is painted yet: paint over what is to go.")
    hole = masks.grown(hole, masks.GROW, photo.hidden)
    hidden = hole | composite(photo, layers, WHOLE)[1]
    if hidden.all():
        raise cli.UserError("All of the photo is painted over: leave something of it.")
    part = filling.surrounding(hole, 0)
    return Edit(list(layers), part, filling.around(hidden), hole[part].copy(), [], texture=[])


def shows_a_rim(photo, edit):
    """Whether the damage seems to reach beyond the hole, see `restoring.shows_a_rim`."""
    return bool(restoring.shows_a_rim(*before(photo, edit, edit.surroundings)))


def with_faces(photo, edit, faces, completer, detector, marked=()):
    """The `Edit` with the faces that its hole touches.

    faces: the `DetectedFace`s of the photo. marked: the three landmarks (3, 2) of each face that was marked by hand,
    which replaces one detected there. Raises UserError if they are not those of a face.
    """
    size, channels, found = completer.dcgan.image_size, completer.dcgan.c_dim, []
    pixels, hidden = before(photo, edit, WHOLE)
    rgba = reading.with_alpha(pixels, np.where(hidden, 0, 255))
    for landmarks in find_landmarks(pixels, hidden, faces, detector, marked):
        matrix = geometry.affine(landmarks, size)
        crop = Image.fromarray(geometry.warp(rgba, matrix, size))
        mask = masks.transparent(crop, size)
        if not mask.all():
            found.append((matrix, utils.as_pixels(crop, size, channels), mask))
    if not found:
        return edit
    matrices, images, known = map(list, zip(*found, strict=True))
    looked_at = [edit.surroundings, *(symmetry.around(matrix, size, hidden.shape) for matrix in matrices)]
    surroundings = tuple(
        slice(min(x.start for x in axis), max(x.stop for x in axis)) for axis in zip(*looked_at, strict=True)
    )
    holes = masks.holes("alpha", known)
    return edit._replace(matrices=matrices, images=utils.to_float(images), holes=holes, surroundings=surroundings)


def find_landmarks(pixels, hidden, faces, detector, marked):
    """The landmarks (68, 2) of faces that may have a hole: marked by hand, detected before, else under the hole."""
    import cv2

    try:
        by_hand = [
            geometry.landmarks_by_hand(np.subtract(points, 0.5), "innerEyesAndBottomLip", hidden.shape)
            for points in marked
        ]
    except cli.UserError as error:
        raise cli.UserError("The three points do not make a face: mark both eyes, then the lower lip.") from error
    small, scale = detection.shrink(pixels)
    hole = cv2.resize(hidden.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA) > 0
    points = detection.enlarge(np.argwhere(hole)[:, ::-1], scale)
    others = [face for face in faces if not any(crop_holds(each, face.landmarks[33:34]) for each in by_hand)]
    touched = [face for face in others if crop_holds(face.landmarks, points)]
    by_hand = [each for each in by_hand if crop_holds(each, points)]
    with DETECTING:
        if touched or by_hand:
            return by_hand + [landmarks_beside(small, hole, face, scale, detector) for face in touched]
        found = occlusion.find_faces_under(small, hole, detector)
        found = [detections for detections in found if occlusion.in_box(hole, detections[0].box).any()]
        return [detection.enlarge(occlusion.landmarks_under(hole, detections, detector), scale) for detections in found]


def crop_holds(landmarks, points):
    """Whether the crop of a face with these landmarks (68, 2) holds one of some points (N, 2), as OpenCV counts."""
    matrix = geometry.affine(landmarks, OUTLINE_SIZE)
    points = points @ matrix[:, :2].T + matrix[:, 2]
    return bool(((points > -0.5) & (points < OUTLINE_SIZE - 0.5)).all(1).any())


def landmarks_beside(small, hole, face, scale, detector):
    """A detected face's landmarks without what the hole hides; those of before if too little of it is visible."""
    if (~occlusion.in_box(hole, face.box)).mean() <= occlusion.MIN_VISIBLE:
        return face.landmarks
    copies = itertools.islice(occlusion.fillings(small, hole), 2)  # inpainted and grey; a mirrored face is not needed
    detections = [occlusion.Detection(filling, copy, face.box) for filling, copy in copies]
    return detection.enlarge(occlusion.landmarks_under(hole, detections, detector), scale)


class Stopped(Exception):
    """A search was stopped."""


class WatchedDetector(NamedTuple):
    """dlib's detector of faces that calls a function before each look at a picture, which may raise `Stopped`."""

    detector: object  # dlib.fhog_object_detector
    before_look: Callable

    def run(self, *args):
        self.before_look()
        return self.detector.run(*args)


def find_answers(edit, completer, stop, near=None):
    """Search `ANSWERS` answers for the faces of an edit, which are added to `edit.answers`; yields all on the way.

    Yields pairs of an answer's number and `search.Completion`, None once it is found. Once the event `stop` is set, the
    best so far of the answer at hand is the last one. near: z (N, z_dim) near which all answers lie; else the first is
    the one that `complete.py` finds.
    """

    def progress(done, total):
        if stop.is_set():
            raise Stopped

    if not edit.matrices:  # all of it is filled from the photo
        edit.answers.append((None, None))
        yield 0, None
        return
    settings = {"interval": INTERVAL} | completer.settings
    completer = dataclasses.replace(completer, blending="none", settings=settings)  # `render` blends what is looked at
    for number in range(ANSWERS):
        state = None
        with contextlib.suppress(Stopped):
            for state in completer.complete(edit.images, edit.holes, number, progress, near=near):
                yield number, state
        if state:
            edit.answers.append((state.z, state.generated))
            yield number, None
        if stop.is_set():
            return


def quick_blend(edit, generated, completer):
    """What was generated for an edit's faces, blended as far as that takes no time: for a look at it on the way."""
    if completer.prior is None:
        return generated
    return prior.gaussian_blend(
        edit.images, generated, edit.holes.masks, completer.prior, completer.detail, edit.holes.pool
    )


def to_crops(photo, images):
    """Completed faces, float (N, size, size, C), in the photo's colours: uint8 (size, size, C) each."""
    grey = photo.pixels.shape[2] == 1
    return [reading.to_pixels(utils.to_picture(crop), grey) for crop in utils.to_uint8(images)]


def render(photo, edit, answer, detail, completer, check=lambda *_: None):
    """The part of the photo that holds the hole, uint8 (h, w, C), filled with one of the answers at some detail.

    One at a time for each edit: the first makes the texture that serves them all, as with --samples. check: a function
    that is called now and then, and may raise to end the work.
    """
    pixels, hidden = before(photo, edit, edit.surroundings)
    to_photo = geometry.resize_matrix(1, [side.start for side in edit.surroundings[::-1]])
    matrices = [matrix @ to_photo for matrix in edit.matrices]

    def fill(number, detail, texture):
        crops = []
        if matrices:
            crops = to_crops(photo, completer.blend(edit.images, edit.answers[number][1], edit.holes, detail))
        check()
        predictor = detection.installed_predictor() if crops else None
        options = dict(texture=texture, refiner=completer.refiner, predictor=predictor, check=check)
        return filling.into_photo(pixels, hidden, crops, matrices, number, **options)

    texture = edit.texture[0] if edit.texture else None
    if texture is None and (answer, detail) != (0, completer.detail):
        texture = fill(0, completer.detail, None)[-1]
    filled, _, texture = fill(answer, detail, texture)
    edit.texture[:] = [texture]
    here, _ = overlap(edit.surroundings, edit.part)
    return np.where(edit.hole[..., None], filled[here], pixels[here])


def layers_up_to(edit, rendered):
    """The layers on which a later edit starts: all that was filled before, and what `render` made of an answer."""
    return [*edit.layers, Layer(edit.part, rendered, edit.hole)]


class CheckedFile(io.BytesIO):
    """A file in memory that calls a function, which may raise, before each piece is written."""

    def __init__(self, check):
        super().__init__()
        self.check = check

    def write(self, data):
        self.check()
        return super().write(data)


def save(photo, layers=(), kind="PNG", check=lambda *_: None):
    """The photo under layers as a file of its own size, of one of `KINDS`, that keeps its metadata: bytes.

    check: see `render`.
    """
    pixels, transparent = composite(photo, layers, WHOLE)
    picture = utils.to_picture(pixels)
    if transparent.any() and kind != "JPEG":
        picture.putalpha(Image.fromarray(np.where(transparent, photo.alpha, np.uint8(255))))
    file = CheckedFile(check)
    picture.save(file, kind, **KINDS[kind], **photo.metadata)
    return file.getvalue()
