"""What joins the found face and the known pixels. Knows nothing of TensorFlow."""

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
EXACT = 2**16  # unknown pixels that `harmonic` solves for exactly
CORRECTIONS = 60
MARGIN = 32  # pixels of a photo that are looked at around its hole
INPAINTED = 2**14  # pixels of a hole that OpenCV inpaints at once
SQUARE, CLEAN = 8, 0.7  # pixels of a side, grey levels: where grain is measured, and what is too little to see


class Covariance(NamedTuple):
    """A normal distribution of images as vectors of D = H * W * C values in [-1, 1], by its principal axes."""

    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (D, K), orthonormal
    variances: np.ndarray  # (K,), along the axes, all above 0
    rest: float  # the variance that is left in each other direction, the mean over all
    __hash__, __eq__ = object.__hash__, object.__eq__  # a key of caches


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
    mean, result = covariance.mean.reshape(shape), []
    for image, face, mask in zip(images, generated, masks, strict=True):
        if pool == 1 and not mask.any():
            result.append(face)
            continue
        predict = predictor(covariance, (mask > 0).tobytes(), shape, pool, noise)
        unsure = 1 - surroundings(mask) if pool == 1 else 1
        probable = mean + predict(image - mean)
        beyond = face - mean - predict(face - mean)
        result.append(probable + detail * unsure * beyond)
    return np.stack(result).astype(np.float32)


@functools.lru_cache(2)
def predictor(covariance, mask, shape, pool, noise):
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
    known = mask > 0
    if not known.any():
        return generated.copy()
    error = np.where(known, image, generated).astype(np.float64) - generated
    return np.where(known, image, generated + harmonic(error, ~known[..., 0], known[..., 0])).astype(np.float32)


def harmonic(values, unknown, known, exact=EXACT):
    """The smoothest continuation of `values`, float64 (H, W, C), from where they are `known` to where `unknown`.

    Both are boolean (H, W); a pixel that is neither has no say. In the hole each pixel becomes the mean of its
    neighbours (Laplace's equation; Perez et al. 2003, equation 4), and 0 where nothing known can be reached. Up to
    `exact` unknown pixels are solved for exactly. More start from the solution at half the resolution, followed by
    `CORRECTIONS` steps of conjugate gradients (cascadic multigrid, Bornemann and Deuflhard 1996).
    """
    count, result = int(unknown.sum()), values.copy()
    if not count:
        return result
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
    matrix = scipy.sparse.diags_array(degree).tocsr() - links - links.T
    if count <= exact:
        result[unknown] = scipy.sparse.linalg.splu(matrix.tocsc()).solve(target)
        return result
    unknown_half, known_half = (shrunk(x[..., None], 2)[..., 0] for x in (unknown, known))
    means = shrunk(np.where(known[..., None], values, 0.0), 2) / np.where(known_half > 0, known_half, 1)[..., None]
    coarse = harmonic(means, (unknown_half > 0) & (known_half == 0), known_half > 0, exact)
    start = enlarge(coarse, unknown_half + known_half > 0, unknown.shape)[unknown]
    for channel in range(values.shape[-1]):
        found, _ = scipy.sparse.linalg.cg(matrix, target[:, channel], start[:, channel], rtol=0, maxiter=CORRECTIONS)
        result[unknown, channel] = found
    return result


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


def into_photo(photo, hidden, crops, matrices, seed=0):
    """Fill the hole of a whole photo from its completed faces, and what lies in none of them by inpainting.

    photo: uint8 (H, W, C); what it holds where boolean (H, W) `hidden` has no say, and nothing else changes. crops:
    completed faces, uint8 (size, size, C) each; matrices: (2, 3), from photo to crop pixels (x, y, 1). Where faces
    overlap, a pixel comes from the one in whose middle it lies most. Each is enlarged to the photo's resolution, joined
    without a seam (`harmonic`), and gets the grain of the photo (`seed` decides it). Returns the photo, and how
    many pixels of the hole lie in no face.
    """
    result = photo.copy()
    left = hidden.copy()
    if hidden.any():
        part = surrounding(hidden, MARGIN)  # all work is done in the part of the photo around the hole
        filled, rest = photo[part].astype(np.float64), hidden[part].copy()
        owners = owner_of_pixels(rest, [shifted(matrix, part) for matrix in matrices], [len(crop) for crop in crops])
        for number, (crop, matrix) in enumerate(zip(crops, matrices, strict=True)):
            own = rest & (owners == number)
            if not own.any():
                continue
            face = enlarged(crop, shifted(matrix, part), rest.shape)
            error = np.where(rest[..., None], 0.0, filled - face)
            filled[own] = (face + harmonic(error, own, ~rest))[own]
            rest &= ~own
        left[part] = rest
        filled = inpainted(filled, rest)
        filled[hidden[part]] += grain(photo[part], hidden[part], seed)[hidden[part]]
        result[part][hidden[part]] = np.clip(filled.round(), 0, 255).astype(np.uint8)[hidden[part]]
    return result, int(left.sum())


def surrounding(hidden, margin):
    """The slices of the smallest rectangle that holds all of boolean (H, W) `hidden` and `margin` pixels around it."""
    spans = [np.flatnonzero(hidden.any(axis)) for axis in (1, 0)]
    return tuple(slice(max(0, int(span[0]) - margin), int(span[-1]) + 1 + margin) for span in spans)


def shifted(matrix, part):
    """A (2, 3) matrix from pixels of a photo as one from pixels of a `part` of it, two slices."""
    offset = np.array([part[1].start, part[0].start])
    return np.column_stack([matrix[:, :2], matrix[:, :2] @ offset + matrix[:, 2]])


def owner_of_pixels(hidden, matrices, sizes):
    """Which face each hidden pixel is filled from, (H, W): a number, or -1 where none reaches."""
    y, x = np.nonzero(hidden)
    owner, nearest = np.full(len(x), -1), np.full(len(x), 1.0)
    for number, (matrix, size) in enumerate(zip(matrices, sizes, strict=True)):
        place = np.stack([x, y], -1) @ matrix[:, :2].T + matrix[:, 2]
        distance = np.abs((place + 0.5) / size - 0.5).max(1) * 2  # 1 at the crop's border
        owner[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    owners = np.full(hidden.shape, -1)
    owners[y, x] = owner
    return owners


def enlarged(crop, matrix, shape):
    """A crop (size, size, C) where it lies in a photo of `shape` (H, W): float64 (H, W, C), repeated at its borders."""
    import cv2

    shrink = abs(np.linalg.det(matrix[:, :2])) ** 0.5  # crop pixels for each of the photo's
    crop = crop.astype(np.float32)
    if shrink > 1:
        crop = scipy.ndimage.gaussian_filter(crop, (shrink / 2, shrink / 2, 0))
    options = dict(flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    return cv2.warpAffine(crop, matrix, shape[::-1], **options).reshape(*shape, -1).astype(np.float64)


def inpainted(pixels, hidden):
    """float64 (H, W, C) with what is `hidden` inpainted after Telea, at a lower resolution where it is large."""
    import cv2

    if not hidden.any() or hidden.all():
        return pixels
    shrink = max(1, round((hidden.sum() / INPAINTED) ** 0.5))
    shares, sums = (shrunk(values, shrink) for values in (~hidden[..., None], pixels * ~hidden[..., None]))
    small = np.clip(sums / np.maximum(shares, 1e-6), 0, 255).round().astype(np.uint8)
    filled = cv2.inpaint(small, (shares[..., 0] < 0.5).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    large = cv2.resize(filled, hidden.shape[::-1], interpolation=cv2.INTER_LINEAR).reshape(*hidden.shape, -1)
    large = large + harmonic(np.where(hidden[..., None], 0.0, pixels - large), hidden, ~hidden)
    return np.where(hidden[..., None], large, pixels)


def grain(photo, hidden, seed):
    """Noise like that of a photo around its hole: float64 (H, W, C), zeros where the photo is clean.

    What is beyond a curve of light is measured in squares of 8 x 8 known pixels; the flattest quarter of them shows
    noise and little else. Noise of that strength, and as alike between neighbours and channels, is drawn.
    """
    height, width = (side - side % SQUARE for side in hidden.shape)
    squares = photo[:height, :width].astype(np.float64)
    squares = squares.reshape(height // SQUARE, SQUARE, width // SQUARE, SQUARE, photo.shape[2]).swapaxes(1, 2)
    squares = squares.reshape(height * width // SQUARE**2, SQUARE, SQUARE, photo.shape[2])
    whole = ~hidden[:height, :width].reshape(height // SQUARE, SQUARE, width // SQUARE, SQUARE).any((1, 3)).ravel()
    clipped = ((squares <= 2) | (squares >= 253)).any((1, 2, 3))
    squares = squares[whole & ~clipped]
    if len(squares) < 4:
        return np.zeros(photo.shape)
    y, x = np.indices((SQUARE, SQUARE)).reshape(2, -1)
    curves = np.linalg.qr(np.stack([x**0, x, y, x * x, x * y, y * y], 1).astype(np.float64))[0]
    noise = squares.reshape(len(squares), -1, photo.shape[2])
    noise = noise - curves @ (curves.T @ noise)
    strengths = (noise**2).mean((1, 2))
    noise = noise[strengths <= np.quantile(strengths, 0.25)]
    covariance = np.einsum("npc,npd->cd", noise, noise) / len(noise) / (SQUARE**2 - 6)
    if np.trace(covariance) / len(covariance) < CLEAN**2:
        return np.zeros(photo.shape)
    noise = noise.reshape(-1, SQUARE, SQUARE, photo.shape[2])
    alike = [(noise[:, 1:] * noise[:, :-1]).mean(), (noise[:, :, 1:] * noise[:, :, :-1]).mean()]
    alike = np.clip(np.mean(alike) / (noise**2).mean(), 0, 0.6)  # of neighbours; those of white noise are not
    side = (1 - np.sqrt(1 - 2 * alike**2)) / (2 * alike) if alike > 1e-3 else 0  # [side, 1, side] makes it so
    drawn = np.random.default_rng(seed).standard_normal(photo.shape)
    for axis in (0, 1):
        drawn = scipy.ndimage.convolve1d(drawn, np.array([side, 1, side]) / np.sqrt(1 + 2 * side**2), axis)
    return drawn @ np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance))).T
