"""The other side of a face, where the photo shows it: the detail of an eye for the missing one, and a shoulder."""

import numpy as np

import utils
from photos import geometry, reading

MIRRORED = np.arange(68)  # which of the 68 landmarks is the other side's counterpart of each
MIRRORED[:17], MIRRORED[17:27] = range(16, -1, -1), range(26, 16, -1)
MIRRORED[31:36] = range(35, 30, -1)
MIRRORED[36:48] = 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40
MIRRORED[48:60] = 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55
MIRRORED[60:68] = 64, 63, 62, 61, 60, 67, 66, 65

SIZE, FACE = 256, 160  # pixels of the picture in which landmarks are read, and of the crop in it
BOX = np.array([[-0.03, -0.13], [1.0, 0.98]])  # the corners of what dlib detects as a face, in a crop of size 1
NODES, NEAR = 24, 0.1  # of the map to the other side, in each direction; how far landmarks pull at it, in crops
DETAIL, STRENGTH = 1.5, 0.9  # 64ths of a crop, below which size it is detail; how much of it is taken
STRETCH = 1.4, 2.0  # how many times as large the other side may be seen: all of its detail is taken, and none


def around(matrix, size, shape):
    """The part of a photo of `shape` (H, W) that is looked at for a face, by its crop's (2, 3) matrix: slices."""
    box = geometry.bounds(matrix, size)
    margin = max(box.width(), box.height()) // 3
    return (
        slice(max(0, box.top() - margin), min(shape[0], box.bottom() + margin + 1)),
        slice(max(0, box.left() - margin), min(shape[1], box.right() + margin + 1)),
    )


def detail(face, photo, known, crop, matrix, start, predictor):
    """What gives a completed face the detail of its other side, to be added to it: float64 (h, w, C).

    face: (h, w, C), the crop where it lies in a photo, uint8 (H, W, C), of which nothing counts but what is `known`,
    boolean (H, W); start: (x, y) of its first pixel there; matrix: (2, 3), from the photo's pixels to the crop's;
    predictor: of dlib's 68 landmarks. It is zero where the other side is hidden as well, or is seen much larger or
    smaller.
    """
    import cv2

    part = around(matrix, len(crop), known.shape)
    corner = part[1].start, part[0].start
    known, matrix = known[part], matrix @ geometry.resize_matrix(1, corner)
    photo = np.where(known[..., None], photo[part], np.uint8(0))
    height, width = face.shape[:2]
    unit = geometry.pixels_of_photo(matrix)
    landmarks = find_landmarks(photo, known, crop, matrix, predictor)
    across, down = np.linspace(0, width - 1, NODES), np.linspace(0, height - 1, NODES)
    nodes = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2) + np.subtract(start, corner)
    places, areas = moving_least_squares(nodes, landmarks, landmarks[MIRRORED], NEAR * unit * len(crop))
    full, none = np.log(STRETCH)
    trust = np.clip((none - np.abs(np.log(np.maximum(-areas, 1e-6)))) / (none - full), 0, 1)
    values = np.concatenate([places, trust[:, None]], 1).reshape(NODES, NODES, 3)
    x, y, trust = np.einsum("yn,nmc,xm->cyx", between(height), values, between(width), optimize=True).astype(np.float32)
    other = cv2.remap(photo, x, y, cv2.INTER_LINEAR).reshape(face.shape)
    shown = cv2.remap(np.where(known, np.uint8(255), np.uint8(0)), x, y, cv2.INTER_LINEAR) == 255
    unit *= len(crop) / 64
    distance = cv2.distanceTransform(shown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    error = np.where(shown[..., None], other - face, 0).astype(np.float32)
    weight = trust * utils.smoothstep(distance / unit)
    return STRENGTH * weight[..., None] * (error - mean_around(error, shown, DETAIL * unit)).astype(np.float64)


def upright(matrix, size):
    """The (2, 3) similarity from a photo to an upright picture with a face in its middle, by its crop's matrix."""
    u, _, v = np.linalg.svd(matrix[:, :2])
    similarity = FACE / size / geometry.pixels_of_photo(matrix) * (u @ v)
    middle = np.linalg.solve(matrix[:, :2], size / 2 - matrix[:, 2])
    return np.concatenate([similarity, (SIZE / 2 - similarity @ middle)[:, None]], 1)


def mirrored(photo, known, size, matrix):
    """A photo turned from left to right about a face, uint8 (H, W, C), and where it shows what is `known`, (H, W).

    size, matrix: of the face's crop, see `detail`.
    """
    import cv2

    to_picture = np.array([*upright(matrix, size), [0, 0, 1]])
    flip = np.array([[-1, 0, SIZE], [0, 1, 0], [0, 0, 1]])
    turn = (np.linalg.inv(to_picture) @ flip @ to_picture)[:2]
    shape, flags = known.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shown = cv2.warpAffine(np.where(known, np.uint8(255), np.uint8(0)), turn, shape, flags=flags) == 255
    masked = np.where(known[..., None], photo, np.uint8(0))
    return cv2.warpAffine(masked, turn, shape, flags=flags).reshape(photo.shape), shown


def find_landmarks(photo, known, crop, matrix, predictor):
    """The 68 landmarks of a completed face in pixels of the photo, (68, 2), read in an upright picture of it.

    For the arguments see `detail`.
    """
    import cv2
    import dlib

    to_picture = upright(matrix, len(crop))
    to_crop = matrix @ np.linalg.inv([*to_picture, [0, 0, 1]])
    shown = geometry.warp(reading.with_alpha(photo, np.where(known, 255, 0)), to_picture, SIZE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    drawn = cv2.warpAffine(crop, to_crop, (SIZE, SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    picture = np.where(shown[..., 3:] == 255, shown[..., :3], drawn.reshape(SIZE, SIZE, -1))
    corners = np.linalg.solve(to_crop[:, :2], (len(crop) * BOX - to_crop[:, 2]).T)
    center, half = corners.mean(1), np.abs(np.diff(corners)).mean() / 2
    points = predictor(picture, dlib.rectangle(*map(int, [*(center - half), *(center + half)]))).parts()
    points = np.array([(point.x, point.y) for point in points])
    return np.linalg.solve(to_picture[:, :2], (points - to_picture[:, 2]).T).T


def moving_least_squares(places, sources, targets, scale):
    """Where an affine map that follows pairs of points takes `places`, (N, 2), and the determinant of each map, (N,).

    At each place it fits all pairs, each weighted by a Gaussian of `scale` of its distance (Schaefer et al. 2006,
    "Image Deformation Using Moving Least Squares", section 2.1). sources, targets: (M, 2).
    """
    distances = ((places[:, None] - sources) ** 2).sum(-1)
    weights = np.exp(-distances / (2 * scale**2)) + 1e-4  # so that one far from all follows all
    weights /= weights.sum(1, keepdims=True)
    source, target = weights @ sources, weights @ targets
    sources, targets = sources - source[:, None], targets - target[:, None]
    squares = np.einsum("nm,nmi,nmj->nij", weights, sources, sources) + 1e-3 * scale**2 * np.eye(2)
    maps = np.linalg.solve(squares, np.einsum("nm,nmi,nmj->nij", weights, sources, targets))
    return target + np.einsum("ni,nij->nj", places - source, maps), np.linalg.det(maps)


def between(count):
    """Linear interpolation from `NODES` values to `count`, the first and last of which are the same: (count, NODES)."""
    return np.maximum(1 - np.abs(np.linspace(0, NODES - 1, count)[:, None] - np.arange(NODES)), 0)


def mean_around(values, where, sigma):
    """The mean of float32 (H, W, C), which is 0 outside of boolean `where`, by Gaussian weights, of what lies in it."""
    import cv2

    shrink = max(1, int(sigma / 2))  # the mean is as smooth
    size = [-(-side // shrink) for side in where.shape[::-1]]
    layers = np.concatenate([values, where[..., None].astype(np.float32)], 2)
    small = cv2.GaussianBlur(cv2.resize(layers, size, interpolation=cv2.INTER_AREA), (0, 0), sigma / shrink)
    small = small[..., :-1] / np.maximum(small[..., -1:], 1e-3)
    return cv2.resize(small, where.shape[::-1]).reshape(values.shape)
