"""What joins a generated image and the known pixels without a seam: kriging, and Poisson blending."""

import numpy as np
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg

import utils
from completion import prior

# of what the principal components leave: errors of pixels that far apart correlate by 1/e, and a share of the variance
# that is each pixel's own
RANGE, NUGGET = 2.5, 0.1
# how far the known pixels of a photo in colour stray from one tone, and steps of light in which that is measured, both
# in [-1, 1], from so many pixels each
COLOUR, LIGHTS, LEAST = 5 / 127.5, 1 / 8, 8
EXACT = 2**17  # unknown pixels up to which these equations are solved exactly
CORRECTIONS = 60  # steps of conjugate gradients beyond that
TENSION = 0.1  # of `biharmonic`: the weight of slopes beside bends, so that it does not overshoot
COARSE = 2**19  # unknown pixels beyond which the solution at half the resolution is good enough


def kriging(image, generated, mask):
    """Correct what is still wrong in the hole by what is still wrong at the known pixels nearby.

    Simple kriging (Rasmussen and Williams 2006, equation 2.23) of the error y - G(z), float (H, W, C), whose covariance
    between two pixels is exp(-(distance / `RANGE`)^2), plus `NUGGET` for a pixel with itself. What the principal
    components leave is like that: without the structure of faces, but correlated between neighbours. Where nothing is
    known the result is `generated`; what `image` holds under the hole is not read.
    """
    known = np.broadcast_to(mask > 0, image.shape)
    sigma = RANGE / 2**0.5

    def spread(weights):
        weights = np.where(known, weights.reshape(known.shape), 0.0)
        return np.pi * RANGE**2 * scipy.ndimage.gaussian_filter(weights, (sigma, sigma, 0), mode="constant")

    def covariance(weights):
        return np.where(known, spread(weights), 0.0).ravel() + NUGGET * weights

    system = scipy.sparse.linalg.LinearOperator((known.size, known.size), covariance, dtype=np.float64)
    error = np.where(known, image - generated, 0.0).astype(np.float64)
    weights, _ = scipy.sparse.linalg.cg(system, error.ravel(), rtol=1e-3, maxiter=200)
    return (generated + spread(weights)).astype(np.float32)


def one_tone(known, filled):
    """What is filled, (..., C), in the tone of `known`, (N, C), where that has one; all in [-1, 1].

    In a photo that is grey, sepia or a duotone the chroma, what colours have beside their light (the mean of the
    channels), follows from the light: it is the median of what is known of about that light, to which a coloured stamp
    is an outlier, and black and white have none. What is filled may stray from it as far as three quarters of `known`
    do: not at all in a grey photo, as far as noise where there is some; and the more freely, the farther that is above
    `COLOUR`. Its light stays.
    """
    if not len(known):
        return filled
    light = known.mean(-1)
    points = np.c_[light, known - light[:, None]].astype(np.float64)
    groups = [points[light // LIGHTS == number] for number in np.unique(light // LIGHTS)]
    ends = [[sign] + [0.0] * known.shape[1] for sign in (-1, 1)]
    curve = np.array([ends[0], *(np.median(group, 0) for group in groups if len(group) >= LEAST), ends[1]])

    def chroma(light):
        values = np.stack([np.interp(light, curve[:, 0], values) for values in curve.T[1:]], -1)
        return values - values.mean(-1, keepdims=True)  # medians may have some light

    limit = np.quantile(np.linalg.norm(points[:, 1:] - chroma(points[:, 0]), axis=-1), 0.75)
    limit *= 1 + (limit / COLOUR) ** 4
    light = filled.mean(-1)
    tone = light[..., None] + chroma(light)
    strays = np.linalg.norm(filled - tone, axis=-1, keepdims=True)
    nearer = tone + limit / np.maximum(strays, 1e-9) * (filled - tone)
    return np.where(strays > limit, nearer, filled).astype(filled.dtype)


def blend(images, generated, masks, pca=None, detail=prior.DETAIL, pool=1):
    """Fill the holes of images with what was generated: with a prior `gaussian_blend` and `kriging`, then `poisson`.

    Where what is known of an image has one tone, so has its hole. With `pool` above 1 there is no kriging. Shapes as
    for `gaussian_blend`.
    """

    def each(function, generated):
        return np.stack([function(*triple) for triple in zip(images, generated, masks, strict=True)])

    if pca is not None:
        generated = prior.gaussian_blend(images, generated, masks, pca, detail, pool)
        if pool == 1:
            generated = each(kriging, generated)
    return each(keep_tone, each(poisson, generated))


def keep_tone(image, filled, mask):
    """`filled`, an image (H, W, C), with its hole in the tone of what is known of it (`one_tone`)."""
    return np.where(mask > 0, filled, one_tone(image[mask[..., 0] > 0], filled))


def poisson(image, generated, mask):
    """Fill the hole of `image` with the gradients of `generated`, so that no seam shows (Perez et al. 2003).

    Both are float (H, W, C). Inside the hole the result has, as nearly as it can (least squares), the differences
    between neighbours that `generated` has; known pixels stay as they are, and what `image` holds under the hole is
    not read. Where nothing is known the result is `generated`.
    """
    known = mask > 0
    if not known.any():
        return generated.copy()
    error = np.where(known, image, generated).astype(np.float64) - generated
    return np.where(known, image, generated + harmonic(error, ~known[..., 0], known[..., 0])).astype(np.float32)


def harmonic(values, unknown, known, exact=EXACT, check=lambda *_: None):
    """The smoothest continuation of `values`, float64 (H, W, C), from where they are `known` to where `unknown`.

    Both are boolean (H, W); a pixel that is neither is ignored. In the hole each pixel becomes the mean of its
    neighbours (Laplace's equation; Perez et al. 2003, equation 4), and 0 where nothing known can be reached. Up to
    `exact` unknown pixels are solved for exactly. More start from the solution at half the resolution, followed by
    `CORRECTIONS` steps of conjugate gradients (cascadic multigrid, Bornemann and Deuflhard 1996), and by none where
    there are more than `COARSE`. check: a function that is called before all this and after each step, and may raise to
    end the work.
    """
    count, result = int(unknown.sum()), values.copy()
    check()
    if not count:
        return result
    if count > exact:
        unknown_half, known_half = (shrunk(x[..., None], 2)[..., 0] for x in (unknown, known))
        means = shrunk(np.where(known[..., None], values, 0.0), 2) / np.where(known_half > 0, known_half, 1)[..., None]
        coarse = harmonic(means, (unknown_half > 0) & (known_half == 0), known_half > 0, exact, check)
        result[unknown] = enlarge(coarse, unknown_half + known_half > 0, unknown.shape)[unknown]
    if count > max(exact, COARSE):
        return result
    matrix, target = laplacian(values, unknown, known)
    if count <= exact:
        result[unknown] = scipy.sparse.linalg.splu(matrix.tocsc()).solve(target)
        return result
    options = dict(rtol=0, maxiter=CORRECTIONS, callback=check)
    for channel in range(values.shape[-1]):
        found, _ = scipy.sparse.linalg.cg(matrix, target[:, channel], result[unknown, channel], **options)
        result[unknown, channel] = found
    return result


def biharmonic(values, unknown, known):
    """The continuation of `values` that bends least, so that lines go on across a narrow hole; see `harmonic`.

    Over the hole and its border the squared Laplacian, and `TENSION` times the squared differences between neighbours,
    have the least sum (Smith and Wessel 1990, "Gridding with continuous curvature splines in tension", equation 3;
    Damelin and Hoang 2018, "On Surface Completion and Image Inpainting by Biharmonic Functions"). It is solved
    exactly.
    """
    result = values.copy()
    if not unknown.any():
        return result
    border = (unknown | known) & scipy.ndimage.binary_dilation(unknown)
    used = (unknown | known) & scipy.ndimage.binary_dilation(border)
    matrix, _ = laplacian(values, used, np.zeros_like(used))
    inner, matrix = unknown[used], matrix.tocsr()
    bends, slopes = matrix[border[used]], matrix[inner]
    system = bends[:, inner].T @ bends + TENSION * slopes
    solve = scipy.sparse.linalg.splu(system[:, inner].tocsc()).solve
    result[unknown] = solve(-system[:, ~inner] @ values[used & ~unknown])
    return result


def laplacian(values, unknown, known):
    """Laplace's equation in the unknown pixels, see `harmonic`: the sparse matrix (N, N) and its right side (N, C)."""
    count = int(unknown.sum())
    index = np.full(unknown.shape, -1)
    index[unknown] = np.arange(count)
    degree, target, pairs = np.full(count, 1e-9), np.zeros((count, values.shape[-1])), []
    for p, q in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        both = unknown[p] & unknown[q]
        pairs.append((index[p][both], index[q][both]))
        for here, there in ((p, q), (q, p)):
            degree += np.bincount(index[here][unknown[here] & (unknown | known)[there]], minlength=count)
            border = unknown[here] & known[there]
            np.add.at(target, index[here][border], values[there][border])
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    links = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), (count, count)).tocsr()
    return scipy.sparse.diags_array(degree).tocsr() - links - links.T, target


def shrunk(values, side):
    """The means of blocks of `side` x `side` pixels of (H, W, C), zeros where the last ones are not whole: float64."""
    padded = np.pad(values.astype(np.float64), [(0, -length % side) for length in values.shape[:2]] + [(0, 0)])
    return utils.block_means(padded[None], side)[0]


def enlarge(values, valid, shape):
    """(H, W, C) to twice the size, cut to `shape` (H, W), by linear interpolation among what is `valid` alone."""
    import cv2

    size = 2 * values.shape[1], 2 * values.shape[0]
    weights = cv2.resize(valid.astype(np.float64), size)[..., None]
    sums = cv2.resize(np.where(valid[..., None], values, 0.0), size).reshape(*weights.shape[:2], -1)
    return (sums / np.maximum(weights, 1e-12))[: shape[0], : shape[1]]
