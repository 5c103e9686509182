"""Faces in photos: where they lie, and the crop that has eyes and mouth where every crop has them.

dlib finds faces and landmarks, OpenFace's formula maps them, OpenCV crops. Both are imported when they are needed.
"""

import functools
import importlib.util
import itertools
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
from PIL import Image

import blend
import masks
import utils

# where the 68 landmarks (iBUG's order) lie in the mean face: published data of OpenFace (align_dlib.py, Carnegie
# Mellon University, Apache-2.0, https://github.com/cmusatyalab/openface)
TEMPLATE = np.array(
    """
    0.0792396913815 0.339223741112  0.0829219487236 0.456955367943  0.0967927109165 0.575648016728
    0.122141515615 0.691921601066   0.168687863544 0.800341263616   0.239789390707 0.895732504778
    0.325662452515 0.977068762493   0.422318282013 1.04329000149    0.531777802068 1.06080371126
    0.641296298053 1.03981924107    0.738105872266 0.972268833998   0.824444363295 0.889624082279
    0.894792677532 0.792494155836   0.939395486253 0.681546643421   0.96111933829 0.562238253072
    0.970579841181 0.441758925744   0.971193274221 0.322118743967   0.163846223133 0.249151738053
    0.21780354657 0.204255863861    0.291299351124 0.192367318323   0.367460241458 0.203582210627
    0.4392945113 0.233135599851     0.586445962425 0.228141644834   0.660152671635 0.195923841854
    0.737466449096 0.182360984545   0.813236546239 0.192828009114   0.8707571886 0.235293377042
    0.51534533827 0.31863546193     0.516221448289 0.396200446263   0.517118861835 0.473797687758
    0.51816430343 0.553157797772    0.433701156035 0.604054457668   0.475501237769 0.62076344024
    0.520712933176 0.634268222208   0.565874114041 0.618796581487   0.607054002672 0.60157671656
    0.252418718401 0.331052263829   0.298663015648 0.302646354002   0.355749724218 0.303020650651
    0.403718978315 0.33867711083    0.352507175597 0.349987615384   0.296791759886 0.350478978225
    0.631326076346 0.334136672344   0.679073381078 0.29645404267    0.73597236153 0.294721285802
    0.782865376271 0.321305281656   0.740312274764 0.341849376713   0.68499850091 0.343734332172
    0.353167761422 0.746189164237   0.414587777921 0.719053835073   0.477677654595 0.706835892494
    0.522732900812 0.717092275768   0.569832064287 0.705414478982   0.635195811927 0.71565572516
    0.69951672331 0.739419187253    0.639447159575 0.805236879972   0.576410514055 0.835436670169
    0.525398405766 0.841706377792   0.47641545769 0.837505914975    0.41379548902 0.810045601727
    0.380084785646 0.749979603086   0.477955996282 0.74513234612    0.523389793327 0.748924302636
    0.571057789237 0.74332894691    0.672409137852 0.744177032192   0.572539621444 0.776609286626
    0.5240106503 0.783370783245     0.477561227414 0.778476346951
    """.split(),
    np.float32,  # as OpenFace has it: the crops are to be the same to the last bit
).reshape(68, 2)
MINMAX_TEMPLATE = (TEMPLATE - TEMPLATE.min(0)) / (TEMPLATE.max(0) - TEMPLATE.min(0))

DOUBT = -0.6  # the detector's score from which a box may be a face, where a part of it is hidden
SAME = 0.4  # share of two boxes that makes them one face
KNOWN = 0.3  # share of a box, at least
INPAINTED = 256  # pixels of the longer side in which a hole is inpainted for the detector's eyes
CHIP, CHIP_FACE = 400, 160  # pixels: of a picture, and of the face in it, from which landmarks are read again
ROUNDS = 3
NOISE = 1, 3  # see `blend.NOISE`; less than there, as here the face is only meant for the predictor

LANDMARKS = {"innerEyesAndBottomLip": [39, 42, 57], "outerEyesAndNose": [36, 45, 33]}


def find_predictor():
    """The path of dlib's 68-point predictor in the installed face_recognition_models, which is not imported.

    Importing it needs pkg_resources, which newer Pythons lack. Raises UserError if it is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None:
        raise cli.UserError("the face predictor is missing: pip install face_recognition_models, or use --predictor")
    return Path(spec.submodule_search_locations[0]) / "models" / "shape_predictor_68_face_landmarks.dat"


@functools.cache
def load_models(predictor):
    """dlib's frontal face detector and the 68-point predictor in the file `predictor`, as (detector, predictor).

    Raises UserError, saying how to get a good one, if that file is missing, damaged or another kind of model.
    """
    import dlib

    try:
        model = dlib.shape_predictor(str(predictor))
        if model(np.zeros((8, 8), np.uint8), dlib.rectangle(0, 0, 7, 7)).num_parts != len(TEMPLATE):
            raise RuntimeError(f"it does not have {len(TEMPLATE)} points")
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise cli.UserError(
            f"--predictor {predictor}: not a 68-point predictor of dlib's ({why}); "
            "pip install --force-reinstall face_recognition_models brings a good one"
        ) from error
    return dlib.get_frontal_face_detector(), model


def find_faces(pixels, detector, faces="largest", upsample=1):
    """The boxes (dlib.rectangle, photo pixels, right and bottom included) of the faces in uint8 RGB (H, W, 3).

    "largest" doubles the photo, up to `upsample` times, only while nothing is found: faster, and with fewer false
    faces; the largest is the first. "only" and "all" double it at once, and give the surest first.
    """
    pixels = np.ascontiguousarray(pixels)  # of a strided array dlib reads whatever is in memory
    boxes = []
    for times in range(upsample + 1) if faces == "largest" else [upsample]:
        if boxes := list(detector(pixels, times)):
            break
    return sorted(boxes, key=lambda box: -box.area()) if faces == "largest" else boxes


def find_landmarks(pixels, box, predictor):
    """The 68 landmarks of the face in `box`, as float32 (68, 2) x, y in pixels of the photo."""
    points = predictor(np.ascontiguousarray(pixels), box).parts()
    return np.float32([(point.x, point.y) for point in points])


def affine(landmarks, size, which="innerEyesAndBottomLip"):
    """The 2x3 matrix from photo pixels (x, y, 1) to pixels of a crop of `size`: OpenFace's align_dlib.py.

    It takes three of the 68 landmarks (68, 2) to their places in the mean face, which is scaled so that its own
    bounding box fills the crop. Raises ValueError if the three lie on one line.
    """
    import cv2

    three = LANDMARKS[which]
    matrix = cv2.getAffineTransform(np.float32(landmarks)[three], size * MINMAX_TEMPLATE[three])
    if not cv2.determinant(matrix[:, :2]):
        raise ValueError("three landmarks on one line")
    return matrix


def warp(pixels, matrix, size):
    """Crop uint8 (H, W, 3 or 4), RGB or RGBA, by a 2x3 matrix from photo to crop pixels: uint8 (size, size, 3 or 4).

    Bilinear, as OpenFace does it; where that would skip pixels, as the map shrinks the photo by more than two, the
    photo is averaged down first. Outside the photo an RGB crop is black, an RGBA one transparent. A transparent pixel
    gives no colour to any other, and a pixel of the crop is opaque only if all that contribute to it are.
    """
    import cv2

    shrink = abs(cv2.determinant(matrix[:, :2])) ** -0.5
    factor = int(shrink) if shrink > 2 else 1
    # pixel i of the reduced photo has its centre at factor * i + (factor - 1) / 2 of the photo
    enlarge = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])

    def reduce(pixels):
        return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels

    def crop(pixels, border=0):
        return cv2.warpAffine(pixels, matrix @ enlarge, (size, size), flags=cv2.INTER_LINEAR, borderValue=border)

    if pixels.shape[2] == 3:
        return crop(reduce(pixels))
    # "RGBa" is RGBA whose colours are multiplied by alpha, so that they count as much as they show
    shown = crop(np.asarray(Image.fromarray(pixels).convert("RGBa").reduce(factor)))
    result = np.array(Image.frombytes("RGBa", (size, size), shown.tobytes()).convert("RGBA"))
    hidden = crop(reduce(np.float32(pixels[..., 3] < 255)), border=1) > 0
    result[..., 3] -= hidden & (result[..., 3] == 255)  # where alpha was rounded up
    return result


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

    With a `blend.Covariance` of aligned faces, they are read again, `ROUNDS` times, from pictures in which the hole
    shows the most probable face; without, from the fillings alone.
    """
    box = seen[0].box
    left, top = max(0, box.left() - box.width()), max(0, box.top() - box.height())
    around = np.s_[top : box.bottom() + box.height(), left : box.right() + box.width()]
    firsts, shapes = [find_landmarks(one.photo, one.box, predictor) for one in seen], []
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
        matrix = affine(landmarks, size)
    except ValueError:
        return None
    hole = hidden.astype(np.float32)
    known = cv2.warpAffine(hole, matrix, (size, size), borderValue=1) == 0
    image = utils.to_float(warp(photo, matrix, size))[None]
    face = blend.gaussian(image, image, known[None, ..., None].astype(np.float32), covariance, 0, noise=NOISE)[0]
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    zoom, middle = CHIP_FACE / width, (back @ [size / 2, 0.4 * size, 1])[:2]
    to_chip = np.column_stack([zoom * np.eye(2), CHIP / 2 - zoom * middle])

    def to_chip_size(picture, matrix, **options):
        return cv2.warpAffine(picture, matrix, (CHIP, CHIP), **options)

    filled = to_chip_size(utils.to_uint8(face), to_chip @ back, borderMode=cv2.BORDER_REPLICATE)
    reached = to_chip_size(np.ones((size, size), np.float32), to_chip @ back) > 0.99
    reached &= to_chip_size(hole, to_chip) > 0
    chip = np.where(reached[..., None], filled, warp(photo, to_chip, CHIP))
    boxes, _, _ = detector.run(chip, 0, -1.0)
    return (find_landmarks(chip, boxes[0], predictor) - CHIP / 2) / zoom + middle if boxes else None


def landmarks_by_hand(points, which, shape):
    """68 landmarks (68, 2) that have `points` (3, 2), pixels of a photo, where `affine` looks; the others are NaN.

    Raises UserError for points outside a photo of `shape` (H, W), and for such as no face has.
    """
    landmarks = np.full(TEMPLATE.shape, np.nan, np.float32)
    landmarks[LANDMARKS[which]] = points
    if np.min(points) < 0 or (np.max(points, 0) > np.array(shape[::-1])).any():
        raise cli.UserError(f"--points: lie outside of the photo's {shape[1]}x{shape[0]} pixels")
    turn = np.linalg.det(np.subtract(points[1:], points[0]))
    if turn <= 0:
        raise cli.UserError(
            "--points: give the point on the left of the picture first, then the right one, then the lower"
        )
    return landmarks


def bounds(matrix, size):
    """The dlib.rectangle of a photo that holds all of a crop of `size` pixels, by the crop's (2, 3) matrix."""
    import dlib

    corners = np.array([[0, 0], [0, size - 1], [size - 1, 0], [size - 1, size - 1]])
    places = np.linalg.solve(matrix[:, :2], (corners - matrix[:, 2]).T)
    return dlib.rectangle(*map(int, [*np.floor(places.min(1)), *np.ceil(places.max(1))]))


class Face(NamedTuple):
    """A face in a photo."""

    box: object  # dlib.rectangle, pixels of the photo, right and bottom included
    matrix: np.ndarray  # (2, 3), see `affine`
    crop: np.ndarray  # uint8 (size, size, 3), or 4 if any of the photo is missing
    seen: (
        str  # how, if any is missing: "inpainted", "grey", "mirrored", or some of them; "points": it was not looked for
    )


def align_photo(
    photo,
    detector,
    predictor,
    size=64,
    landmarks="innerEyesAndBottomLip",
    faces="largest",
    upsample=1,
    mask=None,
    points=None,
    covariance=None,
):
    """Find the faces in a Pillow image and crop them: a list of `Face`, and how many faces there are.

    mask: an image file that hides a part of the photo; what is transparent is hidden, too. points: the places (3, 2) of
    the three landmarks of the one face; none is looked for then. For the rest see the functions above. With `faces`
    "only" several are all returned. Raises UserError as `masks.missing` does, and ValueError for points on one line.
    """
    hidden = masks.missing(photo, mask)
    pixels = layers = np.asarray(utils.flatten(photo, "grey").convert("RGB"))
    if hidden.any():
        layers = np.array(photo.convert("RGBA"))
        layers[hidden & (layers[..., 3] == 255), 3] = 0
    if points is not None:
        found = [landmarks_by_hand(points, landmarks, hidden.shape)]
    elif hidden.any():
        found = find_faces_under(pixels, hidden, detector, faces, upsample)
    else:
        found = find_faces(pixels, detector, faces, upsample)
    results = []
    for one in found[:1] if faces == "largest" else found:
        if points is not None:
            box, places, how = None, one, "points"
        elif hidden.any():
            box, places = one[0].box, landmarks_under(hidden, one, covariance, detector, predictor)
            how = "+".join(dict.fromkeys(sighting.how for sighting in one))
        else:
            box, places, how = one, find_landmarks(pixels, one, predictor), ""
        matrix = affine(places, size, landmarks)
        results.append(Face(box or bounds(matrix, size), matrix, warp(layers, matrix, size), how))
    return results, len(found)
