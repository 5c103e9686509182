#!/usr/bin/env python3
"""Draw the pictures of the pretrained model that the README shows: repaired photos, completed portraits, samples.

make demo
.venv/bin/python benchmarks/damaged_photos.py .venv/photos OUT
.venv/bin/python docs/pictures.py demo/TIME OUT
"""

import csv
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import checkpoint
import ops
import utils
from completion import masks
from completion.completer import Completer

HOME = Path(__file__).resolve().parent
HEIGHT = 512  # of photos
DAMAGE, SMALL = ["fold", "stamp", "text", "stain", "half", "torn-corner"], 256
HOLES = {"center": {}, "left": {}, "random": {"fraction": 0.8}, "grid": {}}


def photos(demo):
    """Each photo before and after, all of the same height, side by side."""
    pictures = []
    for path in utils.find_images(demo / "damaged"):
        for photo in map(utils.open_image, (path, demo / "mended/photos" / path.name)):
            pictures.append(np.asarray(photo.resize((round(HEIGHT * photo.width / photo.height), HEIGHT))))
            pictures.append(np.full((HEIGHT, 8, 3), 255, np.uint8))
    utils.write_image(HOME / "photos.jpg", np.hstack(pictures[:-1]))


def damage(out):
    """Six kinds of damage, and below it repaired, on one photo after the other, from the sheets of the benchmark."""
    with open(out / "sheets/key.csv", newline="") as file:
        key = dict(csv.reader(file))
    columns = []
    for kind, turn in zip(DAMAGE, itertools.cycle([0, 1]), strict=False):
        path = sorted((out / "sheets").glob(f"{kind}-*.png"))[turn]
        above, below = np.split(np.asarray(utils.open_image(path).convert("RGB")), 2)
        mended = np.split(below, 2, 1)["AB".index(key[path.name])]
        columns.append(np.vstack([np.split(above, 2, 1)[1], mended]))
    columns = [utils.to_picture(column).resize((SMALL, 2 * SMALL)) for column in columns]
    utils.write_image(HOME / "damage.jpg", np.hstack(columns))


def main(demo, out):
    """Draw the photos of a demo, and with other damage, each of its faces with every hole, and samples."""
    photos(Path(demo))
    damage(Path(out))
    completer = Completer.load(checkpoint.SHIPPED)
    size, channels = completer.dcgan.image_size, completer.dcgan.c_dim
    faces = utils.to_float(
        [utils.read_image(path, size, channels) for path in utils.find_images(Path(demo, "aligned"))]
    )
    x, y = np.meshgrid(*[range(size)] * 2)
    hidden = [((2 * x + y) % 40 > 8).astype(np.float32)[..., None]]  # scratches
    hidden += [masks.make(kind, size, seed=(0, 0), **options) for kind, options in HOLES.items()]
    images, holes = np.repeat(faces, len(hidden), axis=0), masks.holes("mask", hidden * len(faces))
    *_, last = completer.complete(images, holes)
    views = {"original": images, "masked": holes.show(images), "generated": last.generated, "blended": last.result}
    utils.write_image(HOME / "completions.png", utils.labelled_rows(views))

    samples = completer.dcgan.draw(ops.random_z((48, completer.dcgan.z_dim), 0, "samples"))
    utils.write_image(HOME / "samples.png", utils.image_grid(samples, columns=12))


if __name__ == "__main__":
    main(*sys.argv[1:])
