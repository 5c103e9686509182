"""What faces look like: a probabilistic PCA, by which the known part of an image predicts the rest.

    faces = prior.fit(images.blocks)
    filled = prior.gaussian_blend(images, generated, masks, faces)

Probabilistic PCA (Tipping and Bishop 1999): a normal distribution whose covariance is A diag(variances) A' along the
principal components A, and small elsewhere.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
import scipy.linalg
import scipy.ndimage

import utils
from completion.settings import DETAIL

FILE = "covariance.npz"  # beside a model
COMPONENTS = 512
MIN_VARIANCE = 1e-9
PASSES = 4
# the noise of a known pixel, in units of the noise variance: from the first number, with nothing known around it, to
# the second, with all of its neighbourhood known, where errors are correlated and many pixels count as few
NOISE = 1, 20
NEIGHBOURHOOD = 7  # pixels; chosen, as are all numbers here, with faces of 64 pixels


class ProbabilisticPCA(NamedTuple):
    """A normal distribution of images as vectors of D = H * W * C values in [-1, 1]."""

    mean: np.ndarray  # (D,)
    components: np.ndarray  # (D, K), orthonormal
    variances: np.ndarray  # (K,), along the components, all above 0
    noise_variance: float  # in each other direction, the mean over all
    __hash__, __eq__ = object.__hash__, object.__eq__  # a key of caches


def fit(blocks, components=COMPONENTS):
    """The `ProbabilisticPCA` of images, which are read `PASSES` times.

    blocks: a function that returns an iterable over all images in parts, float32 (N, H, W, C) each, always the same.
    At most half as many components as images are taken: what a few images say of more would be chance. Randomized
    subspace iteration (Halko et al. 2011, algorithm 4.4): no matrix of D x D is made.
    """
    count, squares, total, product, basis = 0, 0.0, 0.0, 0.0, None
    for k in range(PASSES):
        if k:
            basis, product = scipy.linalg.qr(product, mode="economic", overwrite_a=True)[0], 0.0
        for images in blocks():
            x = images.reshape(len(images), -1)
            if basis is None:
                components, shift = min(components, x.shape[1]), x.mean(0)  # the shift keeps rounding small
                size = x.shape[1], min(components + 64, x.shape[1])
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
    components = max(1, min(components, count // 2))
    variances, rotation = variances[: -components - 1 : -1], rotation[:, : -components - 1 : -1]
    rest = squares / count - float(mean @ mean) - float(variances.sum())
    noise_variance = max(rest, 0.0) / max(1, mean.size - components)
    return ProbabilisticPCA(shift + mean, basis @ rotation, np.maximum(variances, MIN_VARIANCE), noise_variance)


def save(directory, pca):
    """Keep a prior beside the model in a directory, its components at half precision; raises UserError on failure."""
    values = {"mean": pca.mean, "axes": pca.components, "variances": pca.variances, "rest": pca.noise_variance}
    arrays = {name: np.asarray(value, np.float32) for name, value in values.items()}
    utils.write_arrays(Path(directory) / FILE, arrays | {"axes": arrays["axes"].astype(np.float16)})


def load(directory, image_shape):
    """The prior beside the model in a directory, or None; raises UserError if it cannot be that of its images."""
    path, size = Path(directory) / FILE, int(np.prod(image_shape))
    arrays = utils.read_arrays(path, {"mean": (size,), "axes": (size, None), "variances": (None,), "rest": ()})
    if arrays is None:
        return None
    pca = ProbabilisticPCA(*(arrays[name] for name in ("mean", "axes", "variances", "rest")))
    # as those of images in [-1, 1] can be, but for rounding
    fits = pca.components.shape[1:] == pca.variances.shape != (0,) and np.abs(pca.components).max() < 1.01
    fits = fits and MIN_VARIANCE / 2 < pca.variances.min() <= pca.variances.max() < 2 * size
    if not fits or np.abs(pca.mean).max() > 1.01 or not 0 <= pca.noise_variance < 2:
        raise cli.UserError(f"{path}: holds no covariance of images; remove it and run train-encoder.py")
    return pca


def gaussian_blend(images, generated, masks, pca, detail=DETAIL, pool=1, noise=NOISE):
    """Correct in the hole what `generated` has wrong, by what it has wrong at the known pixels.

    Images and their error y - G(z) are both taken as normal with the covariance of faces, so that the known part has a
    conditional mean of the hidden part (Bishop 2006, section 12.2):
    x_h = A_h (A_k' A_k / s + diag(1/v))^-1 A_k' x_k / s.
    With P that of the image itself, and r that of its error, the result is
    P + detail * (1 - share) * (G(z) + r - P): `detail` 1 keeps what the generator drew beyond the most probable face,
    0 is the most probable face. On that line lies the best compromise between least error and most natural (Freirich,
    Michaeli and Meir 2021). `share` is how much of a pixel's neighbourhood is known: the more, the surer is P.

    images, generated: (N, H, W, C) in [-1, 1]; what `images` hold under the hole is never used. masks: (N, H, W, 1).
    With `pool` above 1 the means of `pool` x `pool` pixels are known instead. noise: see `NOISE`. Returns float32
    (N, H, W, C), to be joined with the known pixels; where nothing is known it is `generated`.
    """
    shape = generated.shape[1:]
    mean, result = pca.mean.reshape(shape), []
    for image, face, mask in zip(images, generated, masks, strict=True):
        if pool == 1 and not mask.any():
            result.append(face)
            continue
        posterior_mean = posterior_mean_fn(pca, (mask > 0).tobytes(), shape, pool, noise)
        unsure = 1 - known_share(mask) if pool == 1 else 1
        probable = mean + posterior_mean(image - mean)
        beyond = face - mean - posterior_mean(face - mean)
        result.append(probable + detail * unsure * beyond)
    return np.stack(result).astype(np.float32)


@functools.lru_cache(2)
def posterior_mean_fn(pca, mask, shape, pool, noise):
    """A function from a deviation (H, W, C) from the mean, of which a part is known, to its conditional mean.

    mask: boolean (H, W, 1), true = known, as bytes.
    """
    alone, surrounded = np.array(noise) * max(pca.noise_variance, 1e-4 * float(pca.variances.min()))
    components = pca.components.astype(np.float32)
    if pool > 1:
        known = ...  # all of the means
        rows = utils.block_means(components.T.reshape(-1, *shape), pool).reshape(components.shape[1], -1).T
        weighted = rows / np.float32(surrounded / pool**2)
        squares = rows.T @ weighted
    else:
        mask = np.frombuffer(mask, bool).reshape(*shape[:2], 1)
        known = np.broadcast_to(mask, shape)
        precision = (known / (alone + (surrounded - alone) * known_share(mask))).astype(np.float32).reshape(-1, 1)
        weighted = (components * precision)[known.ravel()]
        usual = precision[known.ravel()].min()  # of most pixels: the others are a correction to a product kept for all
        other = precision[:, 0] != usual
        start, rows = (usual, other) if other.sum() < known.sum() else (0, known.ravel())
        squares = start * gram(pca) + components[rows].T @ (components[rows] * (precision[rows] - start))
    factor = scipy.linalg.cho_factor(squares + np.diag(1 / pca.variances))

    def posterior_mean(deviation):
        x = (deviation if pool == 1 else utils.block_means(deviation[None], pool))[known].ravel()
        return (components @ scipy.linalg.cho_solve(factor, weighted.T @ x)).reshape(shape)

    return posterior_mean


@functools.lru_cache(2)
def gram(pca):
    """A' A of all components, (K, K): a unit matrix, but for rounding."""
    components = pca.components.astype(np.float32)
    return components.T @ components


def known_share(mask):
    """The share of known pixels in the neighbourhood of each, (H, W, 1)."""
    return scipy.ndimage.uniform_filter(mask.astype(np.float32), (NEIGHBOURHOOD, NEIGHBOURHOOD, 1), mode="nearest")
