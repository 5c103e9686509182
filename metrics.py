"""How close a completion is to the true pixels, and generated images to real ones. Knows nothing of TensorFlow.

Images are uint8, (H, W, C), or (N, H, W, C) where there are many.
"""

import csv

import cv2
import numpy as np
import scipy.ndimage

import utils

GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601


def psnr(image, truth, where=None):
    """Peak signal-to-noise ratio in dB over the pixels of the boolean `where` (H, W), or all; inf if they are equal."""
    error = (image.astype(np.float64) - truth) ** 2
    mean = error.mean() if where is None else error[where].mean()
    return float(10 * np.log10(255**2 / mean)) if mean else float("inf")


def ssim(image, truth, where=None):
    """Structural similarity (Wang et al. 2004), 1 for equal images, over the pixels of `where`, or all.

    Gaussian windows of 11 pixels and standard deviation 1.5; K1 0.01, K2 0.03; the mean over the colour channels.
    Over all pixels those count whose window lies in the image; over `where`, all, the image mirrored at its border.
    """

    def blur(x):
        return scipy.ndimage.gaussian_filter(x, (1.5, 1.5, 0), truncate=3.5)

    x, y = image.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    covariance = blur(x * y) - mean_x * mean_y
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    return float(similarity[5:-5, 5:-5].mean() if where is None else similarity[where].mean())


def sharpness(image, truth, where):
    """How much neighbouring grey values differ inside the boolean `where` (H, W), on average, relative to the truth.

    1 is as sharp, below it is a blur. Pairs count of which both pixels are inside; nan where the truth has none that
    differ.
    """
    image, truth = (x @ GREY if x.shape[-1] == 3 else x[..., 0].astype(float) for x in (image, truth))
    total = np.zeros(2)
    for axis in (0, 1):
        inside = np.diff(where.astype(int), axis=axis) == 0
        inside &= where[1:] if axis == 0 else where[:, 1:]
        total += [np.abs(np.diff(x, axis=axis))[inside].sum() for x in (image, truth)]
    return float(total[0] / total[1]) if total[1] else float("nan")


def sliced_wasserstein(real, generated, seed=0, patches=128, directions=512):
    """How far generated images are from real ones at each scale: yields pairs (side in pixels, distance), 0 = alike.

    Karras et al. 2018, section 5: both sets become Laplacian pyramids down to 16 pixels; at each level `patches`
    patches of 7x7 pixels are drawn from each image and normalised to mean 0 and standard deviation 1 in each colour
    channel, and the Wasserstein distance of both clouds of patches is averaged over random directions; times 1,000,
    as there. Both sets hold equally many images, at least one; what differs in their number is not comparable.
    """
    rng = np.random.default_rng(seed)
    for levels in zip(_laplacian_pyramid(real), _laplacian_pyramid(generated), strict=True):
        a, b = (_patches(level, patches, rng) for level in levels)
        axes = rng.normal(size=(directions, a.shape[1])).astype(np.float32)
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        # an eighth of the directions at a time: all at once would take a gigabyte
        distances = [np.abs(np.sort(some @ a.T) - np.sort(some @ b.T)).mean() for some in np.split(axes, 8)]
        yield levels[0].shape[1], 1000 * float(np.mean(distances))


def _laplacian_pyramid(images):
    """Float images (N, H, W, C): what each halving loses, down to 16 pixels, and what is then left."""
    n, size, _, channels = images.shape
    images = images.astype(np.float32)
    while size > 16:
        size //= 2
        halves = np.stack([cv2.pyrDown(image) for image in images]).reshape(n, size, size, channels)
        yield images - np.stack([cv2.pyrUp(half) for half in halves]).reshape(images.shape)
        images = halves
    yield images


def _patches(images, count, rng):
    """`count` random patches of 7x7 pixels of each image, normalised over all in each channel: (N * count, 49 C)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (7, 7), axis=(1, 2))
    n, height, width, *_ = windows.shape
    rows, columns = (rng.integers(limit, size=n * count) for limit in (height, width))
    patches = windows[np.repeat(np.arange(n), count), rows, columns]  # (N * count, C, 7, 7)
    patches -= patches.mean((0, 2, 3), keepdims=True)
    patches /= patches.std((0, 2, 3), keepdims=True) + 1e-8
    return patches.reshape(n * count, -1)


def compare(name, image, truth, hole):
    """PSNR and SSIM of `image` inside the boolean `hole` (H, W) and over all, and its sharpness in the hole.

    A dict, {"NAME_psnr_hole": ...}.
    """
    values = psnr(image, truth, hole), ssim(image, truth, hole), sharpness(image, truth, hole)
    keys = [f"{name}_{key}" for key in ("psnr_hole", "ssim_hole", "sharpness_hole", "psnr", "ssim")]
    return dict(zip(keys, (*values, psnr(image, truth), ssim(image, truth)), strict=True))


def write(path, rows):
    """Write rows, dicts of a name and numbers, as a CSV file that ends in a row of means; returns the means.

    What is nan in a row has no part in its mean.
    Raises UserError, naming the file, if that fails.
    """
    label, *names = rows[0]
    columns = {name: np.array([row[name] for row in rows], float) for name in names}
    means = {name: float(np.mean(x[~np.isnan(x)])) if (x == x).any() else float("nan") for name, x in columns.items()}
    with utils.writing(path, "x", **utils.TABLE) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in [*rows, {label: "mean", **means}]:
            writer.writerow({name: value if name == label else f"{value:.6g}" for name, value in row.items()})
    return means
