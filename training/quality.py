"""Sample quality: the sliced Wasserstein distance to real images, and MS-SSIM between samples.

Images are uint8, (N, H, W, C).
"""

import cv2
import numpy as np
import tensorflow as tf


def sliced_wasserstein(real, generated, seed=0, patches=128, directions=512):
    """The distance between generated and real images at each scale: yields pairs (side in pixels, distance).

    Karras et al. 2018, section 5: of Laplacian pyramids down to 16 pixels, `patches` patches of 7x7 pixels of each
    image and level, normalised in each colour channel; the Wasserstein distance of both sets of patches is averaged
    over random directions, times 1,000. Both hold equally many images; distances of other numbers do not compare.
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
    """Yield what each halving of images loses, down to 16 pixels, and what is left: float32 (N, H, W, C)."""
    n, size, _, channels = images.shape
    images = images.astype(np.float32)
    while size > 16:
        size //= 2
        halves = np.stack([cv2.pyrDown(image) for image in images]).reshape(n, size, size, channels)
        yield images - np.stack([cv2.pyrUp(half) for half in halves]).reshape(images.shape)
        images = halves
    yield images


def _patches(images, count, rng):
    """`count` random 7x7 patches of each image, normalised over all of them in each channel: (N * count, 49 C)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (7, 7), axis=(1, 2))
    n, height, width, *_ = windows.shape
    rows, columns = (rng.integers(limit, size=n * count) for limit in (height, width))
    patches = windows[np.repeat(np.arange(n), count), rows, columns]  # (N * count, C, 7, 7)
    patches -= patches.mean((0, 2, 3), keepdims=True)
    patches /= patches.std((0, 2, 3), keepdims=True) + 1e-8
    return patches.reshape(n * count, -1)


def ms_ssim(first, second):
    """Multi-scale structural similarity of pairs of images, (N,); 1 = equal (Wang et al. 2003).

    Of the five scales, those that leave 16 pixels or more, with weights rescaled to sum to 1. Its mean over pairs of
    samples rises as modes collapse (Odena et al. 2017, section 4.2).
    """
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[: int(first.shape[1]).bit_length() - 4]
    return tf.image.ssim_multiscale(first, second, 255, power_factors=weights / weights.sum())


def mean_ms_ssim(images):
    """The mean `ms_ssim` of each of uint8 images (N, H, W, C) with the one before it, a number."""
    others = np.roll(images, 1, axis=0)
    parts = [slice(i, i + 64) for i in range(0, len(images), 64)]
    return float(np.mean(np.concatenate([ms_ssim(images[part], others[part]) for part in parts])))
