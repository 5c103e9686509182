"""What faces look like, by a probabilistic PCA: what is known of an image tells the most probable rest of it."""

import functools
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg

import utils

FILE = "covariance.npz"  # beside a model


AXES = 512


SMALLEST = 1e-9  # variance along an axis


DETAIL = 0.75


PASSES = 4


# the noise of a known pixel, in units of the variance that the axes leave: from the first number, with nothing known
# around it, to the second, with all of its neighbourhood known, where pixels err alike and many count as few
NOISE = 1, 20


NEIGHBOURHOOD = 7  # pixels each way, chosen, as are all numbers here, with faces of 64 pixels


class ProbabilisticPCA(NamedTuple):
    """A normal distribution of images as vectors of D = H * W * C values in [-1, 1], by its principal axes."""

    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (D, K), orthonormal
    variances: np.ndarray  # (K,), along the axes, all above 0
    rest: float  # the variance that is left in each other direction, the mean over all
    __hash__, __eq__ = object.__hash__, object.__eq__  # a key of caches


def fit(blocks, axes=AXES):
    """The mean and the `axes` main principal axes of images, which are read `PASSES` times.

    blocks: a function that returns an iterable over all images in parts, float32 (N, H, W, C) each, always the same.
    At most half as many axes as images are taken: what a few images say of more would be chance. Randomized subspace
    iteration (Halko et al. 2011, algorithm 4.4): no matrix of D x D is made. Returns a `ProbabilisticPCA`.
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
    return ProbabilisticPCA(shift + mean, basis @ rotation, variances, max(rest, 0.0) / max(1, mean.size - axes))


def save(directory, covariance):
    """Keep a model's prior beside it, its axes at half precision; raises UserError if that fails."""
    arrays = {name: np.asarray(value, np.float32) for name, value in covariance._asdict().items()}
    utils.write_arrays(Path(directory) / FILE, arrays | {"axes": arrays["axes"].astype(np.float16)})


def load(directory, image_shape):
    """The prior kept beside the model in a directory, or None; raises UserError if it is not one of its images."""
    path, size = Path(directory) / FILE, int(np.prod(image_shape))
    arrays = utils.read_arrays(path, {"mean": (size,), "axes": (size, None), "variances": (None,), "rest": ()})
    if arrays is None:
        return None
    covariance = ProbabilisticPCA(**arrays)
    # as those of images in [-1, 1] can be; the rest are roundings
    fits = covariance.axes.shape[1:] == covariance.variances.shape != (0,) and np.abs(covariance.axes).max() < 1.01
    fits = fits and SMALLEST / 2 < covariance.variances.min() <= covariance.variances.max() < 2 * size
    if not fits or np.abs(covariance.mean).max() > 1.01 or not 0 <= covariance.rest < 2:
        raise cli.UserError(f"{path}: holds no covariance of images; remove it and run train-encoder.py")
    return covariance


def gaussian_blend(images, generated, masks, covariance, detail=DETAIL, pool=1, noise=NOISE):
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
    mean, result = covariance.mean.reshape(shape), []
    for image, face, mask in zip(images, generated, masks, strict=True):
        if pool == 1 and not mask.any():
            result.append(face)
            continue
        predict = posterior_mean_fn(covariance, (mask > 0).tobytes(), shape, pool, noise)
        unsure = 1 - surroundings(mask) if pool == 1 else 1
        probable = mean + predict(image - mean)
        beyond = face - mean - predict(face - mean)
        result.append(probable + detail * unsure * beyond)
    return np.stack(result).astype(np.float32)


@functools.lru_cache(2)
def posterior_mean_fn(covariance, mask, shape, pool, noise):
    """A function from a deviation (H, W, C) from the mean, of which a part is known, to what it most probably is.

    mask: boolean (H, W, 1), true = known, as bytes.
    """
    alone, surrounded = np.array(noise) * max(covariance.rest, 1e-4 * float(covariance.variances.min()))
    axes = covariance.axes.astype(np.float32)
    if pool > 1:
        known = ...  # all of the means
        seen = utils.block_means(axes.T.reshape(-1, *shape), pool).reshape(axes.shape[1], -1).T
        precise = seen / np.float32(surrounded / pool**2)
        squares = seen.T @ precise
    else:
        mask = np.frombuffer(mask, bool).reshape(*shape[:2], 1)
        known = np.broadcast_to(mask, shape)
        precision = (known / (alone + (surrounded - alone) * surroundings(mask))).astype(np.float32).reshape(-1, 1)
        precise = (axes * precision)[known.ravel()]
        usual = precision[known.ravel()].min()  # that of most pixels, as a rule: the others correct what all had by it
        other = precision[:, 0] != usual
        start, summed = (usual, other) if other.sum() < known.sum() else (0, known.ravel())
        squares = start * gram(covariance) + axes[summed].T @ (axes[summed] * (precision[summed] - start))
    factor = scipy.linalg.cho_factor(squares + np.diag(1 / covariance.variances))

    def predict(deviation):
        x = (deviation if pool == 1 else utils.block_means(deviation[None], pool))[known].ravel()
        return (axes @ scipy.linalg.cho_solve(factor, precise.T @ x)).reshape(shape)

    return predict


@functools.lru_cache(2)
def gram(covariance):
    """The products of all pairs of axes, (K, K): those of a unit matrix, but for rounding."""
    axes = covariance.axes.astype(np.float32)
    return axes.T @ axes


def surroundings(mask):
    """The share of known pixels in the neighbourhood of each, (H, W, 1)."""
    return scipy.ndimage.uniform_filter(mask.astype(np.float32), (NEIGHBOURHOOD, NEIGHBOURHOOD, 1), mode="nearest")
