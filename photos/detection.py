"""Faces in photos: dlib's detector and its 68 landmarks. dlib is imported when it is needed."""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np

import checkpoint
from completion import prior
from photos import geometry

DETECTION_SIZE = 1600  # pixels of the longer side at which faces are detected


def find_predictor():
    """The path of dlib's 68-point predictor in the installed face_recognition_models, which is not imported.

    Importing it needs pkg_resources, which newer Pythons lack. Raises UserError if it is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None:
        raise cli.UserError("the face predictor is missing: pip install face_recognition_models, or use --predictor")
    return Path(spec.submodule_search_locations[0]) / "models" / "shape_predictor_68_face_landmarks.dat"


def shrink(pixels):
    """A photo, uint8 (H, W, 1 or 3), at the size of detection, RGB (h, w, 3), and its scale, at most 1."""
    import cv2

    height, width = pixels.shape[:2]
    scale = min(1, DETECTION_SIZE / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C"), scale


def enlarge(points, scale):
    """Points (N, 2) of a shrunk photo, as OpenCV counts, in pixels of the photo itself: undoes `shrink`."""
    return ((points + 0.5) / scale - 0.5).astype(np.float32) if scale < 1 else points


@functools.cache
def load_models(predictor):
    """dlib's frontal face detector and the 68-point predictor in the file `predictor`, as (frontal, predictor).

    Raises UserError, saying how to get a good one, if that file is missing, damaged or another kind of model.
    """
    import dlib

    try:
        model = dlib.shape_predictor(str(predictor))
        if model(np.zeros((8, 8), np.uint8), dlib.rectangle(0, 0, 7, 7)).num_parts != len(geometry.TEMPLATE):
            raise RuntimeError(f"it does not have {len(geometry.TEMPLATE)} points")
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise cli.UserError(
            f"--predictor {predictor}: not a 68-point predictor of dlib's ({why}); "
            "pip install --force-reinstall face_recognition_models brings a good one"
        ) from error
    return dlib.get_frontal_face_detector(), model


def installed_predictor():
    """The installed 68-point predictor; raises UserError as `find_predictor` and `load_models` do."""
    return load_models(find_predictor())[1]


@functools.cache
def pretrained_prior():
    """The prior of the pretrained model, which tells where hidden landmarks are, or None without such a model."""
    if not checkpoint.holds_model(checkpoint.SHIPPED):
        return None
    size = checkpoint.read_config(checkpoint.SHIPPED)["architecture"]["image_size"]
    return prior.load(checkpoint.SHIPPED, (size, size, 3))


class FaceDetector(NamedTuple):
    """Finds faces and their landmarks; a copy of dlib's detector serves one thread at a time."""

    frontal: object  # dlib.fhog_object_detector
    predictor: object  # dlib.shape_predictor
    prior: prior.ProbabilisticPCA | None  # of faces, for those that are partly hidden

    @classmethod
    def load(cls):
        """With the installed predictor and the pretrained prior; raises UserError as these do."""
        return cls(*load_models(find_predictor()), pretrained_prior())

    def find_faces(self, pixels, faces="largest", upsample=1):
        """The boxes (dlib.rectangle, photo pixels, right and bottom included) of the faces in uint8 RGB (H, W, 3).

        "largest" doubles the photo, up to `upsample` times, only while nothing is found: faster, and with fewer false
        faces; the largest is the first. "only" and "all" double it at once, and give the surest first.
        """
        return [box for box, _ in self.find_scored_faces(pixels, faces, upsample)]

    def find_scored_faces(self, pixels, faces="largest", upsample=1, least=0.0):
        """As `find_faces`, but pairs of a box and its score, at least `least`: 1 to 3 for most upright faces."""
        pixels = np.ascontiguousarray(pixels)  # of a strided array dlib reads whatever is in memory
        found = []
        for times in range(upsample + 1) if faces == "largest" else [upsample]:
            boxes, scores, _ = self.frontal.run(pixels, times, least)
            found += zip(boxes, scores, strict=True)
            if any(score >= 0 for score in scores):  # those below are doubtful
                break
        return sorted(found, key=lambda pair: -pair[0].area()) if faces == "largest" else found

    def find_landmarks(self, pixels, box):
        """The 68 landmarks of the face in `box`, as float32 (68, 2) x, y in pixels of the photo."""
        points = self.predictor(np.ascontiguousarray(pixels), box).parts()
        return np.float32([(point.x, point.y) for point in points])
