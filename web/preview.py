"""The pictures of a photo that the page of paint.py shows: outlines of faces, a search on its way, and answers.

Pictures are Pillow images. Those of a hole are RGBA, opaque in the hole and empty beside it: the page lays them over
the photo.
"""

import io

import numpy as np
from PIL import Image

import utils
from photos import filling, geometry, reading
from web import session

MARGIN = 32  # pixels of the photo that are looked at around a hole
TEXTURE = 2**12  # pixels of it that are filled by PatchMatch at once, as the search waits for it
PREVIEW = 224  # pixels of the longer side of a hole while it is searched for


def corners(matrix, size):
    """The corners (4, 2) in a photo of a crop of `size` pixels, by the (2, 3) matrix from photo to crop, as lists."""
    points = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size - 0.5
    return (np.linalg.solve(matrix[:, :2], (points - matrix[:, 2]).T).T + 0.5).tolist()


def previewer(photo, edit):
    """What shows an edit on its way in at most `PREVIEW` pixels: its rectangle, and a function.

    The rectangle is left, top, width and height. The function takes the edit with its faces and what they were
    completed with, float (N, size, size, C), or None, and a refiner or None, and returns a picture; what is beside
    the faces it makes once.
    """
    import cv2

    part = tuple(slice(max(0, side.start - MARGIN), side.stop + MARGIN) for side in edit.part)
    pixels, hidden = session.before(photo, edit, part)
    hole = np.zeros(hidden.shape, np.float32)
    hole[session.overlap(part, edit.part)[0]] = edit.hole
    height, width = hole.shape
    left, top = part[1].start, part[0].start
    shrink = max(1, max(height, width) / PREVIEW)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    pixels, hidden, hole = (
        cv2.resize(values, size, interpolation=cv2.INTER_AREA) for values in (pixels, hidden.astype(np.float32), hole)
    )
    to_photo = geometry.resize_matrix(np.divide((width, height), size), (left, top))
    small, hidden = pixels.reshape(*size[::-1], -1), hidden > 0
    textures = {}

    def show(edit, completed=None, refiner=None):
        crops = [] if completed is None else session.to_crops(photo, completed)
        matrices = [matrix @ to_photo for matrix in edit.matrices[: len(crops)]]
        texture = textures.get(len(crops))
        filled, _, textures[len(crops)] = filling.into_photo(
            small, hidden, crops, matrices, texture=texture, at_once=TEXTURE, refiner=refiner
        )
        return cut_out(filled, hole > 0)

    return (left, top, width, height), show


def cut_out(pixels, shown):
    """uint8 (h, w, C) as a picture that is opaque where boolean (h, w) `shown` is true, and empty elsewhere."""
    return Image.fromarray(reading.with_alpha(pixels * shown[..., None], np.where(shown, 255, 0)))


def as_picture(photo):
    """The photo as it was opened."""
    return utils.to_picture(photo.pixels) if photo.alpha is None else Image.fromarray(photo.rgba)


def encode(picture, kind, photo, **options):
    """A picture of a part of a photo, in its colours, as an image file of some kind: bytes."""
    file = io.BytesIO()
    if "icc_profile" in photo.metadata and photo.pixels.shape[2] == 3:
        options["icc_profile"] = photo.metadata["icc_profile"]
    picture.save(file, kind, **options)
    return file.getvalue()
