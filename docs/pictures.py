#!/usr/bin/env python3
"""Draw the README's pictures of the model that ships with it: mended photos, completions of portraits, and samples.

make demo
.venv/bin/python docs/pictures.py demo/TIME
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import checkpoint
import ops
import utils
from completion import compositing, masks, prior, search
from completion.encoder import Encoder
from model import DCGAN

HOME = Path(__file__).resolve().parent
HEIGHT = 512  # of photos
HOLES = {"center": {}, "left": {}, "random": {"fraction": 0.8}, "grid": {}}


def photos(demo):
    """Show each photo before and after, all equally high, beside each other."""
    pictures = []
    for path in utils.find_images(demo / "damaged"):
        for photo in map(utils.open_image, (path, demo / "mended/photos" / path.name)):
            pictures.append(np.asarray(photo.resize((round(HEIGHT * photo.width / photo.height), HEIGHT))))
            pictures.append(np.full((HEIGHT, 8, 3), 255, np.uint8))
    utils.write_image(HOME / "photos.jpg", np.hstack(pictures[:-1]))


def main(demo):
    """Show the photos of a demo; complete each of its faces with every hole, and draw samples."""
    photos(Path(demo))
    dcgan = DCGAN.load(checkpoint.SHIPPED)
    paths = utils.find_images(Path(demo) / "aligned")
    faces = utils.to_float([utils.read_image(path, dcgan.image_size, dcgan.c_dim) for path in paths])
    x, y = np.meshgrid(*[range(dcgan.image_size)] * 2)
    holes = [((2 * x + y) % 40 > 8).astype(np.float32)[..., None]]  # scratches
    holes += [masks.make(kind, dcgan.image_size, seed=(0, 0), **options) for kind, options in HOLES.items()]
    images = np.repeat(faces, len(holes), axis=0)
    holes = np.tile(holes, (len(faces), 1, 1, 1))
    encoder, _ = Encoder.load(checkpoint.SHIPPED, dcgan)
    covariance = prior.load(checkpoint.SHIPPED, dcgan.image_shape)
    start = encoder.guess(*masks.holes("mask", holes).masked(images)) if encoder else None
    *_, last = search.complete(dcgan, images, holes, start=start)
    blended = compositing.blend(images, last.generated, holes, covariance)
    views = {"original": images, "masked": images * holes, "generated": last.generated, "blended": blended}
    utils.write_image(HOME / "completions.png", utils.labelled_rows(views))

    samples = dcgan.inference_generator(ops.random_z((48, dcgan.z_dim), 0, "samples"), training=False)
    utils.write_image(HOME / "samples.png", utils.image_grid(samples, columns=12))


if __name__ == "__main__":
    main(*sys.argv[1:])
