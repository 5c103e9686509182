"""How close a completion is to the true pixels: PSNR, SSIM and sharpness of uint8 images (H, W, C)."""

import csv

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
    for p, q in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        inside = where[p] & where[q]
        total += [np.abs(x[q] - x[p])[inside].sum() for x in (image, truth)]
    return float(total[0] / total[1]) if total[1] else float("nan")


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
    with utils.atomic_write(path, "x", **utils.TABLE) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in [*rows, {label: "mean", **means}]:
            writer.writerow({name: value if name == label else f"{value:.6g}" for name, value in row.items()})
    return means
