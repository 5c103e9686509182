"""The hole: which pixels are known, how much each counts, and how it is shown. Knows nothing of TensorFlow.

Masks and weights are float32 (size, size, 1); in a mask 1 = keep and 0 = fill.
"""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw

import utils

HALVES = ["left", "right", "top", "bottom"]
TYPES = ["center", "random", *HALVES, "grid", "lowres", "full"]
LOWRES = 8  # squares each way
MAX_GREYS = 32  # of a mask, away from its edges
MOST = 0.6  # of a photo, the share that a mask hides
GROW, MOST_GROWTH = 2, 100  # pixels by which a mask's hole grows
MASK = re.compile("[_-]mask$", re.IGNORECASE)  # at the end of a mask's name, without suffix
# how often `draw` draws what
PROBABILITIES = {
    "center": 0.2, "random": 0.15, "half": 0.25, "grid": 0.03, "boxes": 0.15, "strokes": 0.18, "lowres": 0.03,
    "full": 0.01,
}  # fmt: skip


def make(kind, size, center_scale=0.25, fraction=0.2, seed=(0,)):
    """The mask of one of the `TYPES`, as in Amos's code; a random one is decided by `seed`.

    center: a square hole that leaves `center_scale` of the side known beside it. random: each pixel is hidden with
    probability `fraction`. left, right, top, bottom: that half is hidden. grid: every 4th pixel each way is known.
    lowres, full: all is replaced, by what fits the means of `LOWRES` x `LOWRES` squares, or the whole image.
    Raises UserError if `center_scale` or `fraction` leave no hole or nothing known.
    """
    mask, half = np.ones((size, size, 1), np.float32), size // 2
    if kind == "center":
        lower, upper = int(size * center_scale), int(size * (1 - center_scale))
        mask[lower:upper, lower:upper] = 0
        return check(mask, f"--centerScale {center_scale}")
    if kind == "random":
        mask[np.random.default_rng(seed).random((size, size)) < fraction] = 0
        return check(mask, f"--fraction {fraction}")
    hole = {"left": np.s_[:, :half], "right": np.s_[:, half:], "top": np.s_[:half], "bottom": np.s_[half:]}
    mask[hole.get(kind, np.s_[:])] = 0
    if kind == "grid":
        mask[::4, ::4] = 1
    return mask


def draw(size, rng):
    """A random hole, by NumPy's generator `rng`: its kind and its mask. `train-encoder.py` hides images so.

    It is one of the `TYPES`, in any size, up to four "boxes", or up to six "strokes" of a brush.
    """
    kind = rng.choice(list(PROBABILITIES), p=list(PROBABILITIES.values()))
    if kind == "half":
        kind = rng.choice(HALVES)
    if kind not in ("boxes", "strokes"):
        try:
            return kind, make(kind, size, rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.95), rng.integers(2**32, size=2))
        except cli.UserError:  # none of few pixels is left
            return draw(size, rng)
    picture = Image.new("L", (size, size), 1)
    brush, count = ImageDraw.Draw(picture), rng.integers(1, 5 if kind == "boxes" else 7)
    for _ in range(count):
        if kind == "boxes":
            (left, top), (width, height) = rng.uniform(-0.1, 0.9, 2) * size, rng.uniform(0.1, 0.5, 2) * size
            brush.rectangle((left, top, left + width, top + height), 0)
        else:
            points = rng.uniform(-0.1, 1.1, (rng.integers(2, 6), 2)) * size
            brush.line([*map(tuple, points)], 0, max(1, round(size * rng.uniform(0.02, 0.15))), "curve")
    mask = np.asarray(picture, np.float32)[..., None]
    return (kind, mask) if mask.any() and not mask.all() else draw(size, rng)


def check(mask, source):
    """Return the mask; raise UserError, naming its source, if it has no hole or leaves nothing known."""
    if mask.all() or not mask.any():
        raise cli.UserError(f"{source}: leaves {'no hole' if mask.all() else 'nothing known'} in {len(mask)} pixels")
    return mask


def known_after_resize(hidden, size):
    """The mask of an image whose pixels are `hidden`, boolean (H, W), once it is cropped and resized to `size`.

    A pixel of it is known only if no hidden pixel contributes to it: the filter's weights are positive, so that
    contributions never cancel.
    """
    share = utils.fit(Image.fromarray(hidden.astype(np.float32)), size)
    return (np.asarray(share) == 0).astype(np.float32)[..., None]


def read_hidden(path, tell=False, image=None):
    """What a mask image hides, where it is white (128 and above): boolean (H, W).

    It is what is transparent instead where nothing is white, or where the rest shows a photo: its damage was erased.
    That is reported if it is to `tell`. image: the Pillow image in it, where it is decoded already.
    Raises UserError if it is no mask.
    """
    image = image or utils.open_image(path)
    try:
        grey = np.asarray(utils.flatten(image, "black").convert("L"))
    except ValueError as error:  # of rare modes such as LAB
        raise cli.UserError(f"{path}: not a mask ({error}); save it as a grey PNG file") from error
    white, erased, greys = grey >= 128, missing(image), count_greys(grey)
    if erased.any() and (greys > MAX_GREYS or not white.any()):
        if tell:
            line = f"{path}: is transparent in parts, as a photo whose damage was erased; they are what is filled"
            print(line, file=sys.stderr)
        return erased
    if greys > MAX_GREYS:
        what = f"looks like a photo, not like its mask, as it has {greys} greys"
        raise cli.UserError(f"{path}: {what}; give an image that is white where the photo is damaged, and else black")
    return white


def count_greys(picture):
    """How many greys uint8 (H, W) has away from edges between black and white; 0 where that is a tenth of it or less.

    A mask has none: its greys are edges, soft or blurred by JPEG, and they are few.
    """
    step = 1 + max(picture.shape) // 1024
    picture = picture[::step, ::step]
    grey = (picture >= 32) & (picture < 224)
    if grey.mean() < 0.4:
        edges = (scipy.ndimage.minimum_filter(picture, 17) < 32) & (scipy.ndimage.maximum_filter(picture, 17) >= 224)
        grey &= ~edges
    return len(np.unique(picture[grey])) if grey.mean() > 0.1 else 0


def fit_hidden(hidden, size, side):
    """The mask of an image of which boolean (H, W) is hidden, cropped and resized as `utils.as_pixels` does it.

    `hidden` is first made as large as the image, whose shorter side is `side` pixels: a pixel that is partly hidden
    must not contribute when the image is resized.
    """
    shorter = min(hidden.shape)
    top, left = (max(0, length // 2 - 4 * shorter) for length in hidden.shape)  # a slim mask has no limit of length
    hidden = hidden[top : len(hidden) - top, left : hidden.shape[1] - left]
    zoom = -(-side // shorter)
    hidden = hidden.repeat(zoom, 0).repeat(zoom, 1)
    if min(hidden.shape) > side:
        hidden = known_after_resize(hidden, side)[..., 0] == 0
    return known_after_resize(hidden, size)


def by_name(directory, images=()):
    """The mask images in a folder, for --maskDir, but for `images`, which lie there too: what `named_as` looks into.

    Raises UserError if there is no such folder.
    """
    if not os.path.isdir(directory):
        raise cli.UserError(f"--maskDir {directory}: no such directory; give a folder of mask images")
    found, images = {}, set(map(os.path.abspath, images))
    for path in utils.find_images(directory):
        if os.path.abspath(path) not in images:
            place = path.relative_to(directory).with_suffix("").as_posix()
            for key in (f"./{place}", path.stem):
                for form in {key, key.casefold(), MASK.sub("", key).casefold() + " mask"}:
                    found.setdefault(form, []).append(path)
    return found


def named_as(image, found, directory):
    """The mask of an image among those that `by_name` found: at the same path, or else of the same name.

    image: its path in the folder it was found in. The mask of a.jpg is a.png, A.png, a_mask.png or a-mask.png, the
    first of them that is there. Raises UserError if there is none, or several.
    """
    place = Path(image).with_suffix("")
    for key in (f"./{place.as_posix()}", place.name):
        for form in (key, key.casefold(), key.casefold() + " mask"):
            paths = found.get(form, [])
            if len(paths) == 1:
                return paths[0]
            if paths:
                break
    count = f"{len(paths)} masks" if paths else "no mask"
    raise cli.UserError(f"--maskDir {directory}: holds {count} named {place.name}, for {image}")


def without_masks(images, directory):
    """Those of some paths of images that are not, by their names, the masks of others in `directory`, a folder or None.

    Masks may lie among the images.
    """
    if not directory:
        return images
    names, folder = {Path(image).stem.casefold() for image in images}, os.path.realpath(directory)

    def is_mask(path):
        return MASK.search(path.stem) and MASK.sub("", path.stem).casefold() in names

    return [
        image for image in images
        if not (is_mask(Path(image)) and Path(os.path.realpath(image)).is_relative_to(folder))
    ]  # fmt: skip


def missing(image):
    """What is missing of a Pillow image, boolean (H, W): what is not opaque."""
    if not image.has_transparency_data:
        return np.zeros(image.size[::-1], bool)
    return np.asarray(image.convert("RGBA"))[..., 3] < 255


def hidden_by(path, shape, image=None):
    """What the mask image `path` hides of a photo of `shape`, boolean (H, W).

    image: see `read_hidden`.
    Raises UserError if it is of another size, or no mask, or hides nothing, or most.
    """
    white = read_hidden(path, tell=not image, image=image)
    if white.shape != shape:
        sizes = ["x".join(map(str, each[::-1])) for each in (white.shape, shape)]
        raise cli.UserError(f"{path}: a mask of {sizes[0]} pixels, for a photo of {sizes[1]}; make it as large")
    if not white.any():
        raise cli.UserError(f"{path}: hides nothing; make white what is missing")
    if white.mean() > MOST:
        raise cli.UserError(
            f"{path}: hides {white.mean():.0%} of the photo; white is what is missing, black what stays"
        )
    return white


def grown(hidden, pixels, transparent=False):
    """Boolean (H, W) `hidden`, and all that is no further than so many `pixels` from it.

    What is `transparent`, boolean (H, W), does not grow, and is not grown into.
    """
    import cv2

    opaque = np.logical_not(transparent)
    beside = np.logical_not(hidden & opaque).astype(np.uint8)
    return hidden | (cv2.distanceTransform(beside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= pixels) & opaque


def transparent(image, size):
    """The mask, at `size`, of a Pillow image whose transparent pixels are missing."""
    return known_after_resize(missing(image), size)


def pixelate(images):
    """What "lowres" knows of images (N, H, W, C): the means of `LOWRES` x `LOWRES` squares, at full size."""
    side = images.shape[1] // LOWRES
    return utils.block_means(images, side).repeat(side, 1).repeat(side, 2)


def neighbour_weights(mask, window=7):
    """How much each known pixel counts: the share of its `window` x `window` neighbourhood that is missing.

    Yeh et al. 2017, section 3.1: what is near the hole says most about it. Hidden pixels count 0. Neighbours beyond
    the border are not counted.
    """
    kernel = np.ones((window, window))
    missing = scipy.ndimage.convolve(1.0 - mask[..., 0], kernel, mode="constant")
    neighbours = scipy.ndimage.convolve(np.ones(mask.shape[:2]), kernel, mode="constant") - 1
    return (mask * (missing / neighbours)[..., None]).astype(np.float32)


class Holes(NamedTuple):
    """The holes of some images, all of one kind: one of `TYPES`, "alpha" or "mask"."""

    kind: str
    masks: np.ndarray  # (N, size, size, 1)
    weights: np.ndarray  # (N, size / pool, size / pool, 1): how much each pixel counts in the search
    pool: int  # the search compares the means of pool x pool pixels

    @property
    def truth_known(self):
        """Whether the images hold the true pixels under the hole."""
        return self.kind != "alpha"

    def of(self, numbers):
        """The holes of the images of these numbers, a slice."""
        return self._replace(masks=self.masks[numbers], weights=self.weights[numbers])

    def masked(self, images):
        """What an encoder sees of images (N, size, size, C): the masked images, 0 in the hole, and their masks.

        Of "lowres" it is the means, known nowhere. What lies under a hole is ignored, whatever it is.
        """
        if self.kind == "full":
            return images, np.ones_like(self.masks)
        return pixelate(images) if self.kind == "lowres" else np.where(self.masks > 0, images, 0), self.masks

    def show(self, images):
        """What is known of images (N, size, size, C), as pictures: all but the hole, in grey; or all, or means."""
        return self.masked(images)[0]


def holes(kind, masks, window=None):
    """The `Holes` of these masks; `window` weights known pixels by their neighbourhood of so many pixels."""
    masks, pool = np.stack(masks), 1
    weights = masks
    if kind == "lowres":
        weights, pool = np.ones((len(masks), LOWRES, LOWRES, 1), np.float32), masks.shape[1] // LOWRES
    elif kind == "full":
        weights = np.ones_like(masks)
    elif window:
        weights = np.stack([neighbour_weights(mask, window) for mask in masks])
    return Holes(kind, masks, weights, pool)


def mask_each(images, drawn):
    """What an encoder sees of images (N, H, W, C) that each have a hole of their own, pairs as `draw` returns."""
    pairs = [holes(kind, [mask]).masked(image[None]) for image, (kind, mask) in zip(images, drawn, strict=True)]
    return tuple(map(np.concatenate, zip(*pairs, strict=True)))
