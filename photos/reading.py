"""Photos in memory: decoded once, upright, with what is missing of them and their metadata."""

import contextlib
import io
import struct
import textwrap
from typing import NamedTuple

import cli

import numpy as np
import scipy.ndimage
from PIL import Image, ImageCms, PngImagePlugin

import utils
from completion import masks

GREY = "1", "L", "LA", "La"  # modes of Pillow without colours
NO_TEXTS = "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"  # have chunks of their own
# tags of a TIFF file that say how it holds its pixels
TIFF_PIXELS = [*range(254, 267), 273, 274, *range(277, 282), 284, 292, 293, 317, *range(320, 331), *range(338, 348)]
SEGMENTS = {"COM", "APP0", "APP1", "APP2", "APP13", "APP14"}  # of a JPEG file: kept, of no use, or told of otherwise
NO_EXIF = 14  # bytes of EXIF data without any tag
IPTC = 0x0404  # among the resources of Photoshop in a JPEG file
# of what Pillow reads: a PNG file's chunk, its unit, and its format
COLOURS = {
    "gamma": (b"gAMA", 10**5, ">I"), "chromaticity": (b"cHRM", 10**5, ">8I"), "srgb": (b"sRGB", 1, "B"),
}  # fmt: skip


class Photo(NamedTuple):
    """A decoded photo."""

    pixels: np.ndarray  # uint8 (H, W, 1 or 3), upright
    alpha: np.ndarray | None  # uint8 (H, W): below 255 where something is missing; None where nothing is
    metadata: dict  # what a file keeps beside the pixels, for Pillow; see `png_metadata`
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


def read_photo(path, mask=None, grow=0):
    """The `Photo` in an image file; what `mask`, an image file of the same size, shows white is to be filled.

    grow: and so many pixels around it. Without a mask, it is what is transparent. Raises UserError where one cannot be
    read, or the mask does not fit or hides nothing.
    """
    return to_photo(utils.open_image(path), path, mask, grow)


def to_photo(image, file, mask=None, grow=0):
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
        alpha = np.where(masks.grown(white, grow, hidden), np.uint8(0), np.uint8(255) if alpha is None else alpha)
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

    JPEG and WebP files take the same dict, and from it some texts that PNG has as chunks. file: its path, or a binary
    file; image: the Pillow image that `utils.decode` made of it.
    """
    kept, lost = {name: image.info[name] for name in ("xmp", "comment") if isinstance(image.info.get(name), bytes)}, []
    with Image.open(file) as raw:
        kept["pnginfo"] = png_chunks(image.info, raw.format == "PNG")
        if ";16" in f"{raw.mode} {raw.tile}":
            lost.append("16 bits a channel became 8")
        if other := {name for name, _ in getattr(raw, "applist", ())} - SEGMENTS:
            lost.append(f"its data in {', '.join(sorted(other))} are left out")
        with contextlib.suppress(Exception):  # EOFError of most photos, and anything of damaged ones
            if raw.format != "MPO":  # whose second picture is a small one of the same
                raw.seek(1)
                lost.append("of its pictures only the first is there")
        try:
            exif = raw.getexif() if raw.format == "TIFF" else image.getexif()  # of a TIFF file, Pillow's copies lose it
            for tag in TIFF_PIXELS if raw.format == "TIFF" else ():
                exif.pop(tag, None)
            kept["exif"] = exif.tobytes()
            if not exif and len(image.info.get("exif", b"").removeprefix(b"Exif\0\0")) > NO_EXIF:
                raise ValueError("no tag can be read")
        except Exception:  # Pillow raises anything on damaged ones
            lost.append("its EXIF data cannot be read and are left out")
        dpi = image.info.get("dpi", ())[:: 1 if image.size == raw.size else -1]
    if len(dpi) == 2 and all(1 < number <= 10**6 for number in dpi):
        kept["dpi"] = tuple(map(float, dpi))
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


def png_chunks(info, from_png):
    """Texts, comment, XMP, IPTC and what the colours mean, of a Pillow image's `info`, as chunks of a PNG file.

    `from_png`: whether `info` is a PNG file's, in which all text is the photo's. IPTC data have no chunk of their own,
    and are written as ImageMagick does it.
    """
    chunks = PngImagePlugin.PngInfo()
    texts = {key: text for key, text in info.items() if from_png and isinstance(text, str) and key not in NO_TEXTS}
    if isinstance(comment := info.get("comment"), bytes):
        texts["Comment"] = comment.decode("utf-8", "replace").rstrip("\0")
    photoshop = info.get("photoshop")
    if iptc := isinstance(photoshop, dict) and photoshop.get(IPTC):
        texts["Raw profile type iptc"] = f"\niptc\n{len(iptc):8}\n" + "\n".join(textwrap.wrap(iptc.hex(), 72)) + "\n"
    for key, text in texts.items():
        chunks.add_text(key, text, zip=len(text) > 1024)
    if isinstance(xmp := info.get("xmp"), bytes):
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    for key, (name, unit, kind) in COLOURS.items():
        with contextlib.suppress(KeyError, TypeError, ValueError, struct.error):  # numbers that no file should hold
            chunks.add(name, struct.pack(kind, *(round(number * unit) for number in np.atleast_1d(info[key]).tolist())))
    return chunks
