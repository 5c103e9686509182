"""Photos in memory: decoded once, upright, with what is missing of them and their metadata."""

import contextlib
import io
from typing import NamedTuple

import cli

import numpy as np
import scipy.ndimage
from PIL import Image, ImageCms

import utils
from completion import masks

GREY = "1", "L", "LA", "La"  # modes of Pillow without colours


class Photo(NamedTuple):
    """A decoded photo."""

    pixels: np.ndarray  # uint8 (H, W, 1 or 3), upright
    alpha: np.ndarray | None  # uint8 (H, W): below 255 where something is missing; None where nothing is
    metadata: dict  # what a PNG file keeps beside the pixels, for Pillow
    lost: list  # what it cannot keep, in words
    cut_out: np.ndarray | None = None  # uint8 (H, W): the transparency that stays, as a mask tells what is to be filled

    @property
    def hidden(self):
        """What is missing, boolean (H, W)."""
        return np.zeros(self.pixels.shape[:2], bool) if self.alpha is None else self.alpha < 255

    @property
    def hole(self):
        """What is to be filled, boolean (H, W)."""
        return self.hidden if self.cut_out is None else self.hidden & (self.cut_out == 255)

    @property
    def rgba(self):
        """The photo as uint8 RGBA (H, W, 4)."""
        return with_alpha(self.pixels, 255 if self.alpha is None else self.alpha)


def read_photo(path, mask=None):
    """The `Photo` in an image file; what `mask`, an image file of the same size, shows white is to be filled.

    Without it, that is what is transparent.

    Raises UserError where one cannot be read, or the mask does not fit or hides nothing.
    """
    return to_photo(utils.open_image(path), path, mask)


def to_photo(image, file, mask=None):
    """The `Photo` of a Pillow image, see `read_photo`; file: the path or binary file it was decoded from."""
    hidden, alpha, cut_out = masks.missing(image), None, None
    if hidden.any():
        alpha = np.array(image.convert("RGBA"))[..., 3]
    if mask:
        white = masks.hidden_by(mask, hidden.shape)
        if hidden.any():
            cut_out = erased(alpha, white)
            if not (white & (cut_out == 255)).any():
                raise cli.UserError(f"{mask}: hides nothing but what is transparent in the photo, and stays so")
        alpha = np.where(white, np.uint8(0), np.uint8(255) if alpha is None else alpha)
    return Photo(to_pixels(image, image.mode in GREY), alpha, *png_metadata(file, image), cut_out)


def erased(alpha, white):
    """The transparency uint8 (H, W) of a photo without what is damage: whose connected parts lie in `white` wholly."""
    parts, count = scipy.ndimage.label(alpha < 255)
    stays = np.zeros(count + 1, bool)
    stays[parts[~white]] = True
    return np.where(stays[parts], alpha, np.uint8(255))


def to_pixels(image, grey):
    """A Pillow image as uint8 (H, W, 1) if it is to be `grey`, else (H, W, 3)."""
    return np.asarray(image.convert("L" if grey else "RGB")).reshape(image.height, image.width, -1)


def with_alpha(pixels, alpha):
    """uint8 (H, W, 1 or 3) and its alpha, uint8 (H, W) or a number, as RGBA (H, W, 4)."""
    shape = pixels.shape[:2]
    return np.dstack([np.broadcast_to(pixels, (*shape, 3)), np.broadcast_to(np.uint8(alpha), shape)])


def png_metadata(file, image):
    """What a PNG file keeps of a photo beside its pixels, a dict for Pillow, and a list of what is lost, in words.

    file: its path, or a binary file; image: the Pillow image that `utils.decode` made of it.
    """
    kept, lost = {}, []
    with Image.open(file) as raw:
        if ";16" in f"{raw.mode} {raw.tile}":
            lost.append("16 bits a channel became 8")
        with contextlib.suppress(Exception):  # EOFError of most photos, and anything of damaged ones
            if raw.format != "MPO":  # whose second picture is a small one of the same
                raw.seek(1)
                lost.append("of its pictures only the first is there")
    try:
        kept["exif"] = image.getexif().tobytes()
    except Exception:  # Pillow raises anything on damaged ones
        lost.append("its EXIF data cannot be read and are left out")
    profile = image.info.get("icc_profile")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        lost.append(f"{image.mode} became RGB")
    elif profile:
        try:
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
            kept["icc_profile"] = profile
        except OSError:
            lost.append("its colour profile cannot be read and is left out")
    return kept, lost
