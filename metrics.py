"""How close a completion is to the true pixels. Images are uint8 (H, W, C). Knows nothing of TensorFlow."""

import csv

import numpy as np
import scipy.ndimage


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


def compare(name, image, truth, hole):
    """PSNR and SSIM of `image` inside the boolean `hole` (H, W) and over all, as {"NAME_psnr_hole": ...}."""
    values = psnr(image, truth, hole), ssim(image, truth, hole), psnr(image, truth), ssim(image, truth)
    return dict(zip([f"{name}_{key}" for key in ("psnr_hole", "ssim_hole", "psnr", "ssim")], values, strict=True))


def write(path, rows):
    """Write rows, dicts of a name and numbers, as a CSV file that ends in a row of means; returns the means."""
    label, *names = rows[0]
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in [*rows, {label: "mean", **means}]:
            writer.writerow({name: value if name == label else f"{value:.6g}" for name, value in row.items()})
    return means
