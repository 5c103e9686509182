"""What the page of paint.py sees of a photo: outlines of faces, a fill while it is searched for, and answers.

Pictures are Pillow images. Those of a hole are RGBA, opaque in the hole and empty beside it, so that the page lays them
upon the photo.
"""

import io

import numpy as np
from PIL import Image

import utils
from completion import prior
from photos import geometry, restoring
from web import session

PREVIEW = 384  # pixels of the longer side of a hole while the search goes on


def outline(landmarks):
    """The corners (4, 2) of what is cut out of a photo for a face with these landmarks (68, 2), as lists."""
    return corners(geometry.affine(landmarks, session.CROP), session.CROP)


def corners(matrix, size):
    """The corners (4, 2) of a crop of `size` pixels in its photo, by the (2, 3) matrix from that, as lists."""
    places = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size - 0.5
    return (np.linalg.solve(matrix[:, :2], (places - matrix[:, 2]).T).T + 0.5).tolist()


def previewer(photo, fill):
    """What shows a fill while it is searched for, in no more than `PREVIEW` pixels: a rectangle, and a function.

    The rectangle is left, top, width and height. The function makes its picture, of the fill with its faces, of what
    was generated for them, None while nothing is, and of the model.
    """
    import cv2

    own = np.zeros(photo.pixels.shape[:2], bool)
    own[fill.part] = fill.hidden
    around = restoring.surrounding(own, restoring.MARGIN)
    pixels, hidden = session.known_of(photo, fill)
    layers = [pixels, hidden.astype(np.float32), own.astype(np.float32)]
    height, width = layers[0][around].shape[:2]
    shrink = max(1, max(height, width) / PREVIEW)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    pixels, hidden, own = (cv2.resize(layer[around], size, interpolation=cv2.INTER_AREA) for layer in layers)
    grow = np.divide((width, height), size)

    def show(fill, generated, model):
        found = [] if generated is None else session.crops(photo, fill, generated, prior.DETAIL, model)
        to_photo = geometry.resize_matrix(grow, (around[1].start, around[0].start))
        matrices = [matrix @ to_photo for matrix in fill.matrices]
        filled, _ = restoring.into_photo(pixels.reshape(*size[::-1], -1), hidden > 0, found, matrices[: len(found)])
        return cut_out(filled, own > 0)

    return (around[1].start, around[0].start, width, height), show


def cut_out(pixels, shown):
    """uint8 (h, w, C) as a picture that is opaque where boolean (h, w) `shown` is true, and empty else."""
    picture = utils.to_picture(np.where(shown[..., None], pixels, np.uint8(0))).convert("RGB")
    picture.putalpha(Image.fromarray(np.where(shown, np.uint8(255), np.uint8(0))))
    return picture


def patch(photo, fill, answer, detail, model):
    """The hole as an answer fills it, as large as `fill.part`."""
    return cut_out(session.render(photo, fill, answer, detail, model), fill.hidden)


def as_picture(photo):
    """The photo, as it was opened."""
    picture = utils.to_picture(photo.pixels)
    if photo.alpha is not None:
        picture.putalpha(Image.fromarray(photo.alpha))
    return picture if picture.mode == "L" else picture.convert("RGB" if photo.alpha is None else "RGBA")


def transparency(photo):
    """What is transparent in the photo."""
    shown = np.zeros(photo.pixels.shape[:2], bool) if photo.alpha is None else photo.alpha < 255
    return cut_out(np.full((*shown.shape, 1), 255, np.uint8), shown)


def encoded(picture, kind, photo, **options):
    """A picture of a part of a photo, in its colours, as an image file of some kind: bytes."""
    file = io.BytesIO()
    if "icc_profile" in photo.kept and photo.pixels.shape[2] == 3:
        options["icc_profile"] = photo.kept["icc_profile"]
    picture.save(file, kind, **options)
    return file.getvalue()
