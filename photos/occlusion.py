"""Faces of which a part is missing: found and landmarked without a look at what lies under the hole."""

import itertools
from typing import NamedTuple

import numpy as np

import utils
from completion import prior
from photos import geometry, landmarks

MIN_SCORE = -0.6  # of the detector, from which a box may be a face where a part of it is hidden
CONFIRMED, TRIES = 0.5, 3  # the score from which a doubtful face is one where its hole shows the most probable face
IOU_THRESHOLD = 0.4  # from which two boxes are one face
MIN_VISIBLE, MOSTLY = 0.3, 0.5  # share of a box; of a doubtful face's beside another one that is sure
INPAINTED = 256  # pixels of the longer side at which a hole is inpainted for the detector
CHIP_SIZE, FACE_SIZE = 400, 160  # pixels: of a picture, and of the face in it, from which landmarks are read again
ROUNDS, WORSE = 3, 1  # how much less than the best a picture may score in which landmarks are read again
INFERRED = 0.75  # of a hidden landmark, how much follows from those that are seen; the rest is read
NOISE = 1, 3  # see `prior.NOISE`; less than there, as here the face is only meant for the predictor


class Detection(NamedTuple):
    """A face that was found in a photo whose hole was filled in some way."""

    filling: str  # "inpainted", "grey" or "mirrored"
    photo: np.ndarray  # so filled, uint8 (H, W, 3)
    box: object  # dlib.rectangle
    score: float = 0.0  # of the detector


def fillings(pixels, hidden):
    """Copies of uint8 RGB (H, W, 3) in which a detector may find a face that is partly `hidden`, boolean (H, W).

    Yields (filling, copy): the hole is inpainted, grey, or the mirrored image of what is beside it, to the left and to
    the right. What lies under it is ignored.
    """
    inpainted = inpaint(pixels, hidden)
    yield "inpainted", np.where(hidden[..., None], inpainted, pixels)
    yield "grey", np.where(hidden[..., None], np.uint8(128), pixels)
    columns = np.flatnonzero(hidden.any(0))
    for axis in (columns[0] - 1, columns[-1] + 1):  # the known column beside all that is hidden
        source = 2 * axis - np.arange(hidden.shape[1])
        inside = (source >= 0) & (source < hidden.shape[1])
        source = np.where(inside, source, 0)
        mirrored = np.where((inside & ~hidden[:, source])[..., None], pixels[:, source], inpainted)
        yield "mirrored", np.where(hidden[..., None], mirrored, pixels)


def inpaint(pixels, hidden):
    """uint8 RGB (H, W, 3), reduced, inpainted after Telea where most of a pixel is `hidden`, and enlarged again."""
    import cv2

    shrink = min(1, INPAINTED / max(hidden.shape))
    size = [max(1, round(side * shrink)) for side in hidden.shape[::-1]]
    shares, sums = (
        cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for values in (~hidden, pixels * ~hidden[..., None])
    )
    small = utils.to_bytes(sums / np.maximum(shares, 1e-6)[..., None])
    filled = cv2.inpaint(small, (shares < 0.5).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return cv2.resize(filled, hidden.shape[::-1], interpolation=cv2.INTER_LINEAR)


def iou(one, other):
    """The intersection over union of two boxes, dlib.rectangle."""
    shared = one.intersect(other).area()
    return shared / (one.area() + other.area() - shared)


def in_box(hidden, box):
    """What of boolean (H, W) lies in a dlib.rectangle."""
    return hidden[max(0, box.top()) : box.bottom() + 1, max(0, box.left()) : box.right() + 1]


def visible(hidden, one):
    """The share of a `Detection`'s box that is not `hidden`, boolean (H, W)."""
    return (~in_box(hidden, one.box)).mean()


def around(box):
    """The part of a photo, slices, that reaches beyond a dlib.rectangle by its own width and height."""
    left, top = max(0, box.left() - box.width()), max(0, box.top() - box.height())
    return np.s_[top : box.bottom() + box.height(), left : box.right() + box.width()]


def find_faces_under(pixels, hidden, detector, faces="largest", upsample=1, hole=None):
    """The faces in a photo of which a part is `hidden`: a list of lists of `Detection`s, the surest first in each.

    Faces that the hole touches come first; it is what is hidden, or that part of it in boolean (H, W) `hole`. Mirrored
    fillings count only where the others show none of these, as there are false faces among theirs. Detections with
    scores below 0 are doubtful: where no other face is touched, the first counts that the hole touches, or else, where
    there is no other face at all, the surest. With a prior it has to confirm them (`is_face`), and beside another face
    half of one must be visible, as of less the most probable face makes one anywhere. A face of which little is visible
    is none: it may be another one's mirror image.
    """

    def detect(filling, photo):
        pairs = detector.find_scored_faces(photo, faces, upsample, MIN_SCORE)
        found = [Detection(filling, photo, *pair) for pair in pairs]
        return [one for one in found if visible(hidden, one) > MIN_VISIBLE]

    hole = hidden if hole is None else hole

    def touched(one):
        return in_box(hole, one.box).any()

    def first(doubtful):
        confirmed = (one for one in doubtful[:TRIES] if detector.prior is None or is_face(hidden, one, detector))
        return [*itertools.islice(confirmed, 1)]

    detected, found = [detect(*filling) for filling in fillings(pixels, hidden)], []
    for several in detected[:2], detected[2:]:
        for one in sorted(itertools.chain(*several), key=lambda one: -one.score):
            if one.score >= 0 and all(iou(one.box, other.box) < IOU_THRESHOLD for other in found):
                found.append(one)
        if any(map(touched, found)):
            break
    every = sorted(itertools.chain(*detected), key=lambda one: -one.score)
    if not any(map(touched, found)):
        under = [one for one in every if touched(one) and (not found or visible(hidden, one) > MOSTLY)]
        beside = [one for one in every if not touched(one)]
        found = [*first(under), *found] or first(beside)
    found.sort(key=lambda one: (not touched(one), -one.box.area() if faces == "largest" else 0))
    return [
        [one, *(other for other in every if other is not one and iou(one.box, other.box) >= IOU_THRESHOLD)]
        for one in found
    ]


def is_face(hidden, one, detector):
    """Whether a doubtful `Detection` is clearly a face in a picture in which the hole shows the most probable face."""
    part = around(one.box)
    shape = detector.find_landmarks(one.photo, one.box) - [part[1].start, part[0].start]
    read = refine(one.photo[part], hidden[part], shape, one.box.width(), detector)
    return read is not None and read[1] >= CONFIRMED


def landmarks_under(hidden, detections, detector):
    """The 68 landmarks (68, 2) of a face of which a part is `hidden`: the median of those of its `Detection`s.

    With a prior they are read again, `ROUNDS` times, from pictures in which the hole shows the most probable face, and
    those count that look like one; without, they are read from the fillings alone. What is hidden then follows mostly
    from what is seen.
    """
    box = detections[0].box
    part = around(box)
    start = [part[1].start, part[0].start]
    firsts, again = [detector.find_landmarks(one.photo, one.box) for one in detections], []
    reads_again = detector.prior is not None and in_box(hidden, box).any()
    for one, shape in zip(detections, firsts, strict=True) if reads_again else ():
        shape = shape - start
        for _ in range(ROUNDS):
            read = refine(one.photo[part], hidden[part], shape, box.width(), detector)
            if read is None:
                break
            shape, score = read
            again.append((score, shape + start))
    least = max((score for score, _ in again), default=0) - WORSE
    points = np.median([shape for score, shape in again if score >= least] or firsts, axis=0)
    return (INFERRED * landmarks.infer(points, hidden) + (1 - INFERRED) * points).astype(np.float32)


def refine(photo, hidden, points, width, detector):
    """Read the landmarks, (68, 2) points, again, of a picture in which the hole shows the most probable face.

    photo: uint8 RGB (H, W, 3), its hole filled in some way that counts at the hole's very edge alone. The former
    `points` say where that face lies. width: pixels of the detector's box. Returns the detector's score, too, after
    them; or None where it finds no face.
    """
    import cv2

    size = round((len(detector.prior.mean) / 3) ** 0.5)
    try:
        matrix = geometry.affine(points, size)
    except ValueError:
        return None
    hole = hidden.astype(np.float32)
    known = (cv2.warpAffine(hole, matrix, (size, size), borderValue=1) == 0).astype(np.float32)[None, ..., None]
    image = utils.to_float(geometry.warp(photo, matrix, size))[None]
    face = prior.gaussian_blend(image, image, known, detector.prior, 0, noise=NOISE)[0]
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    zoom, middle = FACE_SIZE / width, (back @ [size / 2, 0.4 * size, 1])[:2]
    to_chip = np.column_stack([zoom * np.eye(2), CHIP_SIZE / 2 - zoom * middle])

    def warp_to_chip(picture, matrix, **options):
        return cv2.warpAffine(picture, matrix, (CHIP_SIZE, CHIP_SIZE), **options)

    filled = warp_to_chip(utils.to_uint8(face), to_chip @ back, borderMode=cv2.BORDER_REPLICATE)
    reached = warp_to_chip(np.ones((size, size), np.float32), to_chip @ back) > 0.99
    reached &= warp_to_chip(hole, to_chip) > 0
    chip = np.where(reached[..., None], filled, geometry.warp(photo, to_chip, CHIP_SIZE))
    boxes, scores, _ = detector.frontal.run(chip, 0, -1.0)
    if not boxes:
        return None
    return (detector.find_landmarks(chip, boxes[0]) - CHIP_SIZE / 2) / zoom + middle, scores[0]
