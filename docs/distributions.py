#!/usr/bin/env python3
"""Draw distributions.png: densities, samples of them, and the most probable y where x is known.

pip install -r requirements-demo.txt
docs/distributions.py [FILE]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import stats

PICTURE = Path(__file__).with_name("distributions.png")
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])  # of (x, y), whose means are 0
KNOWN_X = 1.0
DENSITY, SAMPLE, ANSWER = "#1f5a99", "#e07b1a", "#b3122f"
LEVELS = [0.005, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25]


def most_probable_y(x, covariance):
    """The y at which the density of a normal (x, y) around 0 is greatest for this x: cov(x, y) / var(x) * x."""
    return covariance[1, 0] / covariance[0, 0] * x


def main(path=PICTURE):
    plt.switch_backend("agg")  # needs no screen
    rng = np.random.default_rng(0)
    style = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 2, figsize=(9, 7.2), dpi=200, layout="constrained", height_ratios=[2, 3])
        draw_density(axes[0, 0])
        draw_samples(axes[0, 1], stats.norm.rvs(size=300, random_state=rng))
        draw_plane(axes[1, 0], "(c) The density of a normal (x, y) and 300 samples")
        points = stats.multivariate_normal(cov=COVARIANCE).rvs(300, random_state=rng)
        axes[1, 0].scatter(*points.T, s=9, color=SAMPLE, linewidths=0)
        draw_completion(axes[1, 1])
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)  # a third of the bytes of full colour
    print(path)


def draw_density(axis):
    x = np.linspace(-4, 4, 401)
    axis.plot(x, stats.norm.pdf(x), color=DENSITY)
    axis.fill_between(x, stats.norm.pdf(x), color=DENSITY, alpha=0.15, linewidth=0)
    axis.set(title="(a) The density of a normal x", xlabel="x", ylabel="p(x)", xlim=(-4, 4), ylim=(0, 0.45))


def draw_samples(axis, samples):
    draw_density(axis)
    axis.hist(samples, bins=np.arange(-4, 4.1, 0.4), density=True, color=SAMPLE, alpha=0.35)
    axis.plot(samples, np.full(len(samples), 0.012), "|", color=SAMPLE, markersize=9, markeredgewidth=0.7)
    axis.set_title(f"(b) {len(samples)} samples of it and their histogram")


def draw_plane(axis, title):
    """The density of (x, y) as contour lines over filled bands."""
    x, y = np.meshgrid(*2 * [np.linspace(-3.5, 3.5, 281)])
    density = stats.multivariate_normal(cov=COVARIANCE).pdf(np.dstack([x, y]))
    axis.contourf(x, y, density, LEVELS, cmap="Blues", extend="max", alpha=0.6)
    axis.contour(x, y, density, LEVELS, colors=DENSITY, linewidths=0.7)
    axis.set(title=title, xlabel="x", ylabel="y", aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))


def draw_completion(axis):
    """The known x as a line, the density along it as a curve beside it, and the y where that is greatest."""
    best = most_probable_y(KNOWN_X, COVARIANCE)
    draw_plane(axis, f"(d) Where x = {KNOWN_X:g}, the most probable y is {best:g}")
    y = np.linspace(-3.5, 3.5, 281)
    density = stats.multivariate_normal(cov=COVARIANCE).pdf(np.column_stack([np.full_like(y, KNOWN_X), y]))
    axis.axvline(KNOWN_X, color=ANSWER)
    axis.fill_betweenx(y, KNOWN_X, KNOWN_X + 8 * density, color=ANSWER, alpha=0.25, linewidth=0)
    axis.plot([-3.5, KNOWN_X], [best, best], ":", color=ANSWER)
    axis.plot(KNOWN_X, best, "o", color=ANSWER)
    axis.annotate(f"p({KNOWN_X:g}, y)", (2.45, best), color=ANSWER, va="center")


if __name__ == "__main__":
    main(*sys.argv[1:])
