"""The landmarks of a face that is partly hidden: those that are seen tell where the others are.

A point distribution model (Cootes et al. 1995, "Active Shape Models - Their Training and Application", section 3), here
with the noise of a probabilistic PCA. The model that comes with the code is of 2,000 aligned faces:

    python -c "from photos import landmarks; landmarks.write(landmarks.fit(landmarks.of_faces('FACES', 2000)))"
"""

import functools
from pathlib import Path

import numpy as np

import utils
from completion import prior
from photos import detection, geometry, reading

FILE = Path(__file__).with_name("landmarks.npz")
MIRRORED = np.arange(68)  # which of the 68 landmarks is the other side's counterpart of each
MIRRORED[:17], MIRRORED[17:27] = range(16, -1, -1), range(26, 16, -1)
MIRRORED[31:36] = range(35, 30, -1)
MIRRORED[36:48] = 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40
MIRRORED[48:60] = 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55
MIRRORED[60:68] = 64, 63, 62, 61, 60, 67, 66, 65

SIZE, FACE = 256, 160  # pixels of the picture in which landmarks are read, and of the crop in it
BOX = np.array([[-0.03, -0.13], [1.0, 0.98]])  # the corners of what dlib detects as a face, in a crop of size 1
COMPONENTS = 20  # of the model
SPREAD = 0.6  # of all landmarks' distance from their middle, which those that are seen need to have
READING = 0.01  # of a face's width: how far a landmark is read from its place
SKEW, SHIFT = 0.1, 0.05  # by how much the model's faces are turned and stretched, and moved, at random


def of_faces(directory, count):
    """The landmarks of `count` aligned faces of a folder, drawn at random, in crops: float64 (count, 68, 2)."""
    predictor, paths = detection.installed_predictor(), utils.find_images(directory)
    found = []
    for number in np.random.default_rng(0).permutation(len(paths))[:count]:
        face = np.asarray(utils.open_image(paths[number]).convert("RGB"))
        known = np.ones(face.shape[:2], bool)
        found.append(find(face, known, face, np.eye(2, 3), predictor) / len(face))
    return np.array(found)


def fit(shapes):
    """The `prior.ProbabilisticPCA` of faces' landmarks, (N, 68, 2), and of their mirror images, around their middle.

    They are turned, stretched and moved a little: crops have two eyes and a lip in fixed places, and faces do not.
    """
    rng = np.random.default_rng(0)
    shapes = np.concatenate([shapes, shapes[:, MIRRORED] * [-1, 1]])
    shapes = np.repeat(shapes - shapes.mean(1, keepdims=True), 4, axis=0)
    shapes = shapes @ (np.eye(2) + SKEW * rng.standard_normal((len(shapes), 2, 2)))
    shapes += SHIFT * rng.standard_normal((len(shapes), 1, 2))
    return prior.fit(lambda: [shapes.astype(np.float32)], COMPONENTS)


def write(model, path=FILE):
    """Keep a model of landmarks."""
    utils.write_arrays(path, {name: np.float32(value) for name, value in model._asdict().items()})


@functools.cache
def shipped():
    """The model that comes with the code."""
    with np.load(FILE) as arrays:
        return prior.ProbabilisticPCA(*(arrays[name] for name in prior.ProbabilisticPCA._fields))


def infer(points, hidden, model=None):
    """Landmarks (68, 2), in pixels (x, y), of which those at `hidden` pixels, boolean (H, W), follow from the others.

    So do those beyond the photo's border. Theirs is the conditional mean (Bishop 2006, equation 2.81) in the frame in
    which, by a similarity, those that are seen lie nearest to the `model`'s mean. Where only a small part of the face
    is seen (`SPREAD`), the points stay as they are.
    """
    sides, complex_plane = np.array(hidden.shape[::-1]), np.array([1, 1j])
    pixels = np.round(points).astype(int)
    x, y = np.clip(pixels, 0, sides - 1).T
    seen = ~hidden[y, x] & ((pixels >= 0) & (pixels < sides)).all(1)
    if seen.all() or not seen.any():
        return np.float64(points)
    model = model or shipped()
    places, mean = points @ complex_plane, model.mean.reshape(68, 2) @ complex_plane
    middle, target = places[seen].mean(), mean[seen].mean()
    if np.abs(mean[seen] - target).mean() < SPREAD * np.abs(mean - mean.mean()).mean():
        return np.float64(points)
    zoom = np.vdot(places[seen] - middle, mean[seen] - target) / (np.abs(places[seen] - middle) ** 2).sum()
    error = zoom * (places - middle) - (mean - target)
    rows = np.repeat(seen, 2)
    components = model.components[rows]
    precision = components.T @ components + np.diag((model.noise_variance + READING**2) / model.variances)
    scores = np.linalg.solve(precision, components.T @ np.stack([error.real, error.imag], 1).ravel()[rows])
    found = mean + (model.components @ scores).reshape(68, 2) @ complex_plane
    found = np.where(seen, places, (found - target) / zoom + middle)
    return np.stack([found.real, found.imag], 1)


def find(photo, known, crop, matrix, predictor):
    """The 68 landmarks of a completed face in pixels of the photo, (68, 2), read in an upright picture of it.

    photo: uint8 (H, W, C), of which nothing counts but what is `known`, boolean (H, W); crop: the completed face, uint8
    (size, size, C); matrix: (2, 3), from the photo's pixels to the crop's; predictor: of dlib's 68 landmarks. Hidden
    ones are inferred.
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
    return infer(np.linalg.solve(to_picture[:, :2], (points - to_picture[:, 2]).T).T, ~known)


def upright(matrix, size):
    """The (2, 3) similarity from a photo to an upright picture with a face in its middle, by its crop's matrix."""
    u, _, v = np.linalg.svd(matrix[:, :2])
    similarity = FACE / size / geometry.pixels_of_photo(matrix) * (u @ v)
    middle = np.linalg.solve(matrix[:, :2], size / 2 - matrix[:, 2])
    return np.concatenate([similarity, (SIZE / 2 - similarity @ middle)[:, None]], 1)
