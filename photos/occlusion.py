"""Faces of which a part is missing: found and landmarked without a look at what lies under the hole."""

import itertools
from typing import NamedTuple

import numpy as np

import utils
from completion import prior
from photos import detection, geometry

DOUBT = -0.6  # the detector's score from which a box may be a face, where a part of it is hidden


SAME = 0.4  # share of two boxes that makes them one face


KNOWN = 0.3  # share of a box, at least


INPAINTED = 256  # pixels of the longer side in which a hole is inpainted for the detector's eyes


CHIP, CHIP_FACE = 400, 160  # pixels: of a picture, and of the face in it, from which landmarks are read again


ROUNDS = 3


NOISE = 1, 3  # see `prior.NOISE`; less than there, as here the face is only meant for the predictor


def fillings(pixels, hidden):
    """Copies of uint8 RGB (H, W, 3) in which a detector may find a face that is partly `hidden`, boolean (H, W).

    Yields (how, copy): the hole is inpainted, grey, or the mirrored image of what is beside it, to the left and to the
    right. What lies under it has no say.
    """
    import cv2

    shrink = min(1, INPAINTED / max(hidden.shape))
    size = [max(1, round(side * shrink)) for side in hidden.shape[::-1]]
    known = cv2.resize((~hidden).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    sums = cv2.resize(pixels * (~hidden[..., None]).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    small = (sums / np.maximum(known, 1e-6)[..., None]).round().astype(np.uint8)
    inpainted = cv2.inpaint(small, (known < 0.5).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    inpainted = cv2.resize(inpainted, hidden.shape[::-1], interpolation=cv2.INTER_LINEAR)
    yield "inpainted", np.where(hidden[..., None], inpainted, pixels)
    yield "grey", np.where(hidden[..., None], np.uint8(128), pixels)
    columns = np.flatnonzero(hidden.any(0))
    for axis in (columns[0] - 1, columns[-1] + 1):  # the known column beside all that is hidden
        source = 2 * axis - np.arange(hidden.shape[1])
        inside = (source >= 0) & (source < hidden.shape[1])
        source = np.where(inside, source, 0)
        mirrored = np.where((inside & ~hidden[:, source])[..., None], pixels[:, source], inpainted)
        yield "mirrored", np.where(hidden[..., None], mirrored, pixels)


def overlap(one, other):
    """The area that two boxes share, as a part of what they cover together."""
    shared = one.intersect(other).area()
    return shared / (one.area() + other.area() - shared)


class Sighting(NamedTuple):
    """Where a face was seen in a photo whose hole was filled in some way."""

    how: str
    photo: np.ndarray  # filled
    box: object  # dlib.rectangle


def part_of(hidden, box):
    """What of boolean (H, W) lies in a dlib.rectangle."""
    return hidden[max(0, box.top()) : box.bottom() + 1, max(0, box.left()) : box.right() + 1]


def find_faces_under(pixels, hidden, detector, faces="largest", upsample=1):
    """The faces in a photo of which a part is `hidden`: a list of lists of `Sighting`s, the surest first in each.

    Faces that the hole touches come first. Mirrored fillings count only where the others show none of these, as there
    are false faces among theirs; and what the detector doubts only where there is no face else. A face of which little
    is known is none: it may be another one's mirror image.
    """

    def detect(how, photo):
        pairs = []
        for times in range(upsample + 1) if faces == "largest" else [upsample]:
            boxes, scores, _ = detector.run(photo, times, DOUBT)
            pairs += [(score, Sighting(how, photo, box)) for box, score in zip(boxes, scores, strict=True)]
            if any(score >= 0 for score in scores):
                break
        return [(score, one) for score, one in pairs if (~part_of(hidden, one.box)).mean() > KNOWN]

    def touched(one):
        return part_of(hidden, one.box).any()

    looked, found = [detect(*filling) for filling in fillings(pixels, hidden)], []
    for several in looked[:2], looked[2:]:
        for score, one in sorted(itertools.chain(*several), key=lambda pair: -pair[0]):
            if score >= 0 and all(overlap(one.box, other.box) < SAME for other in found):
                found.append(one)
        if any(map(touched, found)):
            break
    every = sorted(itertools.chain(*looked), key=lambda pair: -pair[0])
    found = found or [one for _, one in every[:1]]
    found.sort(key=lambda one: (not touched(one), -one.box.area() if faces == "largest" else 0))
    return [
        [one, *(other for _, other in every if other is not one and overlap(one.box, other.box) >= SAME)]
        for one in found
    ]


def landmarks_under(hidden, seen, covariance, detector, predictor):
    """The 68 landmarks (68, 2) of a face of which a part is `hidden`, from its `Sighting`s: what they agree on.

    With a prior of aligned faces they are read again, `ROUNDS` times, from pictures in which the hole
    shows the most probable face; without, from the fillings alone.
    """
    box = seen[0].box
    left, top = max(0, box.left() - box.width()), max(0, box.top() - box.height())
    around = np.s_[top : box.bottom() + box.height(), left : box.right() + box.width()]
    firsts, shapes = [detection.find_landmarks(one.photo, one.box, predictor) for one in seen], []
    again = covariance is not None and part_of(hidden, box).any()
    for one, shape in zip(seen, firsts, strict=True) if again else ():
        shape = shape - [left, top]
        for _ in range(ROUNDS):
            shape = reread(one.photo[around], hidden[around], shape, box.width(), covariance, detector, predictor)
            if shape is None:
                break
            shapes.append(shape + [left, top])
    return np.median(shapes or firsts, axis=0).astype(np.float32)


def reread(photo, hidden, landmarks, width, covariance, detector, predictor):
    """Read the landmarks (68, 2) again, of a picture in which the hole shows the most probable face; or None.

    photo: uint8 RGB (H, W, 3), its hole filled in some way that counts at the hole's very edge alone. The former
    `landmarks` say where that face lies. width: pixels of the detector's box.
    """
    import cv2

    size = round((len(covariance.mean) / 3) ** 0.5)
    try:
        matrix = geometry.affine(landmarks, size)
    except ValueError:
        return None
    hole = hidden.astype(np.float32)
    known = cv2.warpAffine(hole, matrix, (size, size), borderValue=1) == 0
    image = utils.to_float(geometry.warp(photo, matrix, size))[None]
    face = prior.gaussian_blend(image, image, known[None, ..., None].astype(np.float32), covariance, 0, noise=NOISE)[0]
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    zoom, middle = CHIP_FACE / width, (back @ [size / 2, 0.4 * size, 1])[:2]
    to_chip = np.column_stack([zoom * np.eye(2), CHIP / 2 - zoom * middle])

    def to_chip_size(picture, matrix, **options):
        return cv2.warpAffine(picture, matrix, (CHIP, CHIP), **options)

    filled = to_chip_size(utils.to_uint8(face), to_chip @ back, borderMode=cv2.BORDER_REPLICATE)
    reached = to_chip_size(np.ones((size, size), np.float32), to_chip @ back) > 0.99
    reached &= to_chip_size(hole, to_chip) > 0
    chip = np.where(reached[..., None], filled, geometry.warp(photo, to_chip, CHIP))
    boxes, _, _ = detector.run(chip, 0, -1.0)
    return (detection.find_landmarks(chip, boxes[0], predictor) - CHIP / 2) / zoom + middle if boxes else None
