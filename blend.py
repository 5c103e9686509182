"""What joins the found face and the known pixels. Knows nothing of TensorFlow."""

from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg

import utils

COVARIANCE = "covariance.npz"  # beside a model
AXES = 512
SMALLEST = 1e-9  # variance along an axis
DETAIL = 0.75
PASSES = 4
# the noise of a known pixel, in units of the variance that the axes leave: from the first number, with nothing known
# around it, to the second, with all of its neighbourhood known, where pixels err alike and many count as few
NOISE = 1, 20
NEIGHBOURHOOD = 7  # pixels each way, chosen, as are all numbers here, with faces of 64 pixels
# what the axes leave: errors of pixels that far apart correlate by 1/e, and so much of their variance is of one alone
RANGE, NUGGET = 2.5, 0.1


class Covariance(NamedTuple):
    """A normal distribution of images as vectors of D = H * W * C values in [-1, 1], by its principal axes."""

    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (D, K), orthonormal
    variances: np.ndarray  # (K,), along the axes, all above 0
    rest: float  # the variance that is left in each other direction, the mean over all


def fit_covariance(blocks, axes=AXES):
    """The mean and the `axes` main principal axes of images, which are read `PASSES` times.

    blocks: a function that returns an iterable over all images in parts, float32 (N, H, W, C) each, always the same.
    At most half as many axes as images are taken: what a few images say of more would be chance. Randomized subspace
    iteration (Halko et al. 2011, algorithm 4.4): no matrix of D x D is made. Returns a `Covariance`.
    """
    count, squares, total, shift, basis, product = 0, 0.0, 0.0, None, None, None
    for k in range(PASSES):
        if k:
            basis, product = scipy.linalg.qr(product, mode="economic", overwrite_a=True)[0], 0.0
        for images in blocks():
            x = images.reshape(len(images), -1)
            if basis is None:
                axes, shift, product = min(axes, x.shape[1]), x.mean(0), 0.0  # the shift keeps rounding small
                size = x.shape[1], min(axes + 64, x.shape[1])
                basis = np.random.default_rng(0).standard_normal(size, np.float32)
            x = x - shift
            product += x.T @ (x @ basis)
            if not k:
                count, total, squares = count + len(x), total + x.sum(0, np.float64), squares + float(np.vdot(x, x))
        mean = (total / count).astype(np.float32)
        product /= count
        product -= np.outer(mean, mean @ basis)  # it is the covariance times the basis
    inner = basis.T @ product
    variances, rotation = scipy.linalg.eigh((inner + inner.T) / 2)
    axes = max(1, min(axes, count // 2))
    variances, rotation = variances[: -axes - 1 : -1], rotation[:, : -axes - 1 : -1]
    rest = squares / count - float(mean @ mean) - float(variances.sum())
    variances = np.maximum(variances, SMALLEST)
    return Covariance(shift + mean, basis @ rotation, variances, max(rest, 0.0) / max(1, mean.size - axes))


def save_covariance(directory, covariance):
    """Keep a `Covariance` with the model in a directory, its axes at half precision; raises UserError if that fails."""
    arrays = {name: np.asarray(value, np.float32) for name, value in covariance._asdict().items()}
    utils.write_arrays(Path(directory) / COVARIANCE, arrays | {"axes": arrays["axes"].astype(np.float16)})


def load_covariance(directory, image_shape):
    """The `Covariance` kept with the model in a directory, or None; raises UserError if it is not one of its images."""
    path, size = Path(directory) / COVARIANCE, int(np.prod(image_shape))
    arrays = utils.read_arrays(path, {"mean": (size,), "axes": (size, None), "variances": (None,), "rest": ()})
    if arrays is None:
        return None
    covariance = Covariance(**arrays)
    # as those of images in [-1, 1] can be; the rest are roundings
    fits = covariance.axes.shape[1:] == covariance.variances.shape != (0,) and np.abs(covariance.axes).max() < 1.01
    fits = fits and SMALLEST / 2 < covariance.variances.min() <= covariance.variances.max() < 2 * size
    if not fits or np.abs(covariance.mean).max() > 1.01 or not 0 <= covariance.rest < 2:
        raise cli.UserError(f"{path}: holds no covariance of images; remove it and run train-encoder.py")
    return covariance


def gaussian(images, generated, masks, covariance, detail=DETAIL, pool=1, noise=NOISE):
    """Mend what `generated` has wrong in the hole by what it has wrong at the known pixels.

    Images and their error G(z) - y are both taken as normal with the covariance of faces, so that the known part tells
    the most probable hidden part (Bishop 2006, section 12.2): x_h = A_h (A_k' A_k / s + diag(1/v))^-1 A_k' x_k / s.
    With P that prediction of the image itself, and r that of y - G(z), the result is
    P + detail * (1 - share) * (G(z) + r - P): `detail` 1 keeps what the generator drew beyond what is most probable, 0
    is the most probable face. On that line lies the best between least error and most natural (Freirich, Michaeli and
    Meir 2021). `share` is how much of a pixel's surroundings is known: the more, the surer is P.

    images, generated: (N, H, W, C) in [-1, 1]; what `images` hold under the hole is never used. masks: (N, H, W, 1).
    With `pool` above 1 the means of `pool` x `pool` pixels are known instead. noise: see `NOISE`. Returns float32
    (N, H, W, C), to be joined with the known pixels; where nothing is known it is `generated`.
    """
    shape = generated.shape[1:]
    mean, axes = covariance.mean.reshape(shape), covariance.axes.astype(np.float32)
    result, last, predict = [], None, None
    for image, face, mask in zip(images, generated, masks, strict=True):
        if pool == 1 and not mask.any():
            result.append(face)
            continue
        if last is None or not np.array_equal(mask, last):
            last, predict = mask, predictor(axes, covariance, mask, shape, pool, noise)
        probable = mean + predict(image - mean)
        beyond = face - mean - predict(face - mean)
        unsure = 1 - surroundings(mask) if pool == 1 else 1
        result.append(probable + detail * unsure * beyond)
    return np.stack(result).astype(np.float32)


def predictor(axes, covariance, mask, shape, pool, noise):
    """A function from a deviation (H, W, C) from the mean, of which a part is known, to what it most probably is."""
    alone, surrounded = np.array(noise) * max(covariance.rest, 1e-4 * float(covariance.variances.min()))
    if pool > 1:
        known = ...  # all of the means
        seen, spread = (
            utils.block_means(axes.T.reshape(-1, *shape), pool).reshape(axes.shape[1], -1).T,
            surrounded / pool**2,
        )
    else:
        known = np.broadcast_to(mask > 0, shape)
        seen = axes[known.ravel()]
        spread = np.broadcast_to(alone + (surrounded - alone) * surroundings(mask), shape)[known][:, None]
    precise = (seen / spread).astype(np.float32)
    factor = scipy.linalg.cho_factor(seen.T @ precise + np.diag(1 / covariance.variances))

    def predict(deviation):
        x = (deviation if pool == 1 else utils.block_means(deviation[None], pool))[known].ravel()
        return (axes @ scipy.linalg.cho_solve(factor, precise.T @ x)).reshape(shape)

    return predict


def surroundings(mask):
    """The share of known pixels in the neighbourhood of each, (H, W, 1)."""
    return scipy.ndimage.uniform_filter(mask.astype(np.float32), (NEIGHBOURHOOD, NEIGHBOURHOOD, 1), mode="nearest")


def kriging(image, generated, mask):
    """Mend what is still wrong in the hole by what is still wrong at the known pixels nearby.

    Simple kriging (Rasmussen and Williams 2006, equation 2.23) of the error y - G(z), float (H, W, C), whose covariance
    between two pixels is exp(-(distance / `RANGE`)^2), plus `NUGGET` for a pixel with itself. What the principal axes
    leave is like that: it has no structure of faces, but pixels side by side err alike. Where nothing is known the
    result is `generated`; what `image` holds under the hole is not read.
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


def as_grey_as(image, generated, mask):
    """`generated`, (H, W, C), without its colours if what is known of `image` has none."""
    known = image[mask[..., 0] > 0]
    if not len(known) or np.ptp(known, axis=1).any():
        return generated
    return np.broadcast_to(generated.mean(-1, keepdims=True), generated.shape)


def join(images, generated, masks, covariance=None, detail=DETAIL, pool=1):
    """Fill the holes of images with what was generated: `gaussian` and `kriging` with a covariance, then `poisson`.

    Where all that is known of an image is grey, so is its hole. With `pool` above 1 there is no kriging. Shapes as for
    `gaussian`.
    """

    def each(function, generated):
        return np.stack([function(*triple) for triple in zip(images, generated, masks, strict=True)])

    if covariance is not None:
        generated = gaussian(images, generated, masks, covariance, detail, pool)
        if pool == 1:
            generated = each(kriging, generated)
    return each(poisson, each(as_grey_as, generated))


def poisson(image, generated, mask):
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
