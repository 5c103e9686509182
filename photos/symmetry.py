"""The other side of a face, where the photo shows it: the detail of an eye for the missing one, and a shoulder."""

import numpy as np

import utils
from photos import geometry, landmarks

NODES, NEAR = 24, 0.1  # of the map to the other side, in each direction; how far landmarks pull at it, in crops
DETAIL, STRENGTH = 3, 0.85  # 64ths of a crop, below which size it is detail; how much of it is taken
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
    points = landmarks.find(photo, known, crop, matrix, predictor)
    across, down = np.linspace(0, width - 1, NODES), np.linspace(0, height - 1, NODES)
    nodes = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2) + np.subtract(start, corner)
    places, areas = moving_least_squares(nodes, points, points[landmarks.MIRRORED], NEAR * unit * len(crop))
    full, none = np.log(STRETCH)
    trust = np.clip((none - np.abs(np.log(np.maximum(-areas, 1e-6)))) / (none - full), 0, 1)
    values = np.concatenate([places, trust[:, None]], 1).reshape(NODES, NODES, 3)
    x, y, trust = np.einsum("yn,nmc,xm->cyx", between(height), values, between(width), optimize=True).astype(np.float32)
    other = cv2.remap(photo, x, y, cv2.INTER_CUBIC).reshape(face.shape)
    shown = cv2.remap(np.where(known, np.uint8(255), np.uint8(0)), x, y, cv2.INTER_LINEAR) == 255
    unit *= len(crop) / 64
    distance = cv2.distanceTransform(shown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    error = np.where(shown[..., None], other - face, 0).astype(np.float32)
    weight = trust * utils.smoothstep(distance / unit)
    return STRENGTH * weight[..., None] * (error - mean_around(error, shown, DETAIL * unit)).astype(np.float64)


def mirrored(photo, known, size, matrix):
    """A photo turned from left to right about a face, uint8 (H, W, C), and where it shows what is `known`, (H, W).

    size, matrix: of the face's crop, see `detail`.
    """
    import cv2

    to_picture = np.array([*landmarks.upright(matrix, size), [0, 0, 1]])
    flip = np.array([[-1, 0, landmarks.SIZE], [0, 1, 0], [0, 0, 1]])
    turn = (np.linalg.inv(to_picture) @ flip @ to_picture)[:2]
    shape, flags = known.shape[::-1], cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shown = cv2.warpAffine(np.where(known, np.uint8(255), np.uint8(0)), turn, shape, flags=flags) == 255
    masked = np.where(known[..., None], photo, np.uint8(0))
    return cv2.warpAffine(masked, turn, shape, flags=flags).reshape(photo.shape), shown


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
