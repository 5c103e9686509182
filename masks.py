"""The hole: which pixels are known, how much each counts, and blending what fills it. Knows nothing of TensorFlow.

Masks and weights are float32 (size, size, 1); in a mask 1 = keep and 0 = fill.
"""

import numpy as np
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
from PIL import Image

import utils

TYPES = ["center", "random", "left", "right", "top", "bottom", "grid", "lowres", "full"]
LOWRES = 8  # squares each way


def make(kind, size, center_scale=0.25, fraction=0.2, seed=(0,)):
    """The mask of one of the `TYPES`, as in Amos's code; one that is drawn at random is decided by `seed`.

    center: a square hole that leaves `center_scale` of the side known beside it. random: each pixel is hidden with
    probability `fraction`. left, right, top, bottom: that half is hidden. grid: every 4th pixel each way is known.
    lowres, full: all is replaced, by what fits the means of `LOWRES` x `LOWRES` squares, or the whole image.
    Raises utils.UserError if `center_scale` or `fraction` leave no hole or nothing known.
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


def check(mask, source):
    """Return the mask; raise utils.UserError, naming its source, if it has no hole or leaves nothing known."""
    if mask.all() or not mask.any():
        raise utils.UserError(f"{source}: leaves {'no hole' if mask.all() else 'nothing known'} in {len(mask)} pixels")
    return mask


def known_after_resize(hidden, size):
    """The mask of an image of which the boolean `hidden` (H, W) was missing, once it is cropped and resized to `size`.

    A pixel of it is known only if no hidden pixel contributes to it: the filter's weights are positive, so that
    contributions never cancel.
    """
    share = utils.fit(Image.fromarray(hidden.astype(np.float32)), size)
    return (np.asarray(share) == 0).astype(np.float32)[..., None]


def read_mask(path, size, side):
    """Read a mask image, where white (128 and above) = fill, cropped and resized as `utils.read_image` does it.

    It first becomes as large as the image that it is for, whose shorter side is `side` pixels: no pixel of that of
    which the mask hides a part is to contribute when the image is resized.
    """
    hidden = np.asarray(utils.flatten(utils.open_image(path), "black").convert("L")) >= 128
    zoom = -(-side // min(hidden.shape))
    hidden = hidden.repeat(zoom, 0).repeat(zoom, 1)
    if min(hidden.shape) > side:
        hidden = known_after_resize(hidden, side)[..., 0] == 0
    return known_after_resize(hidden, size)


def read_alpha(path, size):
    """The mask of an image file that is missing where it is not quite opaque."""
    image = utils.open_image(path)
    if not image.has_transparency_data:
        return np.ones((size, size, 1), np.float32)
    return known_after_resize(np.asarray(image.convert("RGBA"))[..., 3] < 255, size)


def pixelate(images):
    """What "lowres" knows of images (N, H, W, C): the means of `LOWRES` x `LOWRES` squares, at full size."""
    count, size, _, channels = images.shape
    side = size // LOWRES
    means = images.reshape(count, LOWRES, side, LOWRES, side, channels).mean((2, 4))
    return means.repeat(side, 1).repeat(side, 2)


def neighbour_weights(mask, window=7):
    """How much each known pixel counts: the share of its `window` x `window` neighbourhood that is missing.

    Yeh et al. 2017, section 3.1: what is near the hole says most about it. Hidden pixels count 0. Neighbours beyond
    the border are neither missing nor there.
    """
    kernel = np.ones((window, window))
    missing = scipy.ndimage.convolve(1.0 - mask[..., 0], kernel, mode="constant")
    there = scipy.ndimage.convolve(np.ones(mask.shape[:2]), kernel, mode="constant") - 1  # but for itself
    return (mask * (missing / there)[..., None]).astype(np.float32)


def poisson_blend(image, generated, mask):
    """Fill the hole of `image` with the gradients of `generated`, so that no seam shows (Perez et al. 2003).

    Both are float (H, W, C). Inside the hole the result has, as nearly as it can (least squares), the differences
    between neighbours that `generated` has; known pixels stay as they are, and what `image` holds under the hole is
    not read. Where nothing is known the result is `generated`.
    """
    hidden = mask[..., 0] == 0
    if hidden.all() or not hidden.any():
        return generated.copy() if hidden.all() else image.copy()
    index = np.full(hidden.shape, -1)
    index[hidden] = np.arange(hidden.sum())
    result = np.where(hidden[..., None], generated, image).astype(np.float64)
    generated = generated.astype(np.float64)
    # one row for each pair of neighbours, p and q, of which at least one is hidden
    rows, columns, values, differences = [], [], [], []
    count = 0
    for p, q in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        pair = hidden[p] | hidden[q]
        difference = (generated[p] - generated[q])[pair]
        number = count + np.arange(pair.sum())
        count += pair.sum()
        for side, sign in ((p, 1.0), (q, -1.0)):
            inside = hidden[side][pair]
            rows.append(number[inside])
            columns.append(index[side][pair][inside])
            values.append(np.full(inside.sum(), sign))
            difference[~inside] -= sign * result[side][pair][~inside]
        differences.append(difference)
    shape = count, int(hidden.sum())
    gradient = scipy.sparse.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape
    )
    target = gradient.T @ np.concatenate(differences)
    result[hidden] = scipy.sparse.linalg.splu((gradient.T @ gradient).tocsc()).solve(target)
    return result.astype(np.float32)
