#!/usr/bin/env python3
"""Draw what a trained DCGAN has learned: samples, interpolations between them, and arithmetic with them.

./sample.py
./sample.py --arithmetic 26,35,50 2,42,55 7,25,63 --outDir samples-smile
"""

import argparse
import math
import sys

import cli

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import checkpoint
import utils

STEPS = 10  # images of an interpolation, both samples included
JITTER = 0.25  # of z, in Radford et al. 2016, figure 7


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, text = parser.add_argument, "a new or empty folder for the pictures (%(default)s)"
    add("--checkpointDir", metavar="DIR", help="the model (checkpoints/mine, else the pretrained one)")
    add("--outDir", metavar="DIR", default="samples-of-model", help=text)
    add("--count", type=cli.number(int, 2, 10**4), default=64, metavar="N", help="samples (%(default)s)")
    add("--seed", type=cli.number(int, 0, 2**31 - 1), default=0, help="decides the samples (%(default)s)")
    text = "draw A - B + C, each the mean of samples, by their numbers in samples.png, such as 5,12,48"
    add("--arithmetic", nargs=3, type=sample_numbers, metavar=("A", "B", "C"), help=text)
    return parser, parser.parse_args()


def sample_numbers(text):
    """An argparse `type`: "5,12,48" to a list of whole numbers."""
    return [cli.number(int, 0)(part) for part in text.split(",")]


def arithmetic(z, groups, noise):
    """Vector arithmetic with z (N, z_dim), as in figure 7 of Radford et al. 2016.

    `groups` are three lists of samples' numbers. Returns the means A, B and C of their z, (3, z_dim), and A - B + C +
    `noise` (K, z_dim), clipped to the generator's range [-1, 1].
    """
    means = np.stack([z[group].mean(0) for group in groups])
    return means, np.clip(means[0] - means[1] + means[2] + noise, -1, 1)


def sample(args):
    wrong = [number for group in args.arithmetic or [] for number in group if number >= args.count]
    if wrong:
        raise cli.UserError(f"--arithmetic {wrong[0]}: the samples are numbered 0 to {args.count - 1}; see --count")
    checkpoint_dir = checkpoint.choose(args.checkpointDir)
    out_dir = utils.make_directory(args.outDir, "--outDir", empty=True)

    with cli.quiet_tensorflow():
        import ops
        from model import DCGAN

        device = ops.use_device()
    dcgan = DCGAN.load(checkpoint_dir)
    print(f"{device}\n{checkpoint.describe(checkpoint_dir, dcgan)}")

    z = ops.random_z((args.count, dcgan.z_dim), args.seed, "samples")  # with the same seed, those of training's grids
    images = dcgan.draw(z)
    columns = max(8, math.isqrt(args.count))  # a picture far higher than wide is hard to look at
    utils.write_image(out_dir / "samples.png", utils.captioned_grid(images, map(str, range(len(z))), columns))

    # a straight line stays in the cube that z is drawn from; the arc that is usual for normal z would leave it
    pairs = [(i, i + 1) for i in range(0, min(args.count - 1, 16), 2)]
    views = {f"{i} to {j}": dcgan.draw(np.linspace(z[i], z[j], STEPS)) for i, j in pairs}
    utils.write_image(out_dir / "interpolations.png", utils.labelled_rows(views))

    if args.arithmetic:
        noise = JITTER * ops.random_z((9, dcgan.z_dim), args.seed, "jitter")
        noise[4] = 0
        means, results = arithmetic(z, args.arithmetic, noise)
        picture = draw_arithmetic(images, args.arithmetic, dcgan.draw(means), dcgan.draw(results))
        utils.write_image(out_dir / "arithmetic.png", picture)
    print(f"{out_dir}: {', '.join(sorted(path.name for path in out_dir.iterdir()))}")


def draw_arithmetic(images, groups, means, results):
    """A row for each of A, B and C: its samples, and the image of their mean z; at the right the nine results."""
    blank = np.full_like(images[0], -1)
    width = max(map(len, groups))
    cells, captions = [], []
    for row, (name, group) in enumerate(zip("ABC", groups, strict=True)):
        blanks = width - len(group)
        cells += [blank] * blanks + [*images[group], blank, means[row], blank, *results[3 * row : 3 * row + 3]]
        captions += [""] * blanks + [*map(str, group), "", f"mean {name}", "", "", "A - B + C" if row == 1 else "", ""]
    picture = Image.fromarray(utils.captioned_grid(np.stack(cells), captions, width + 6))
    cell = picture.width / (width + 6), picture.height / 3
    for sign, column, row in (("-", width, 1), ("+", width, 2), ("=", width + 2, 1)):
        place = (column + 0.5) * cell[0], (row + 0.4) * cell[1]
        ImageDraw.Draw(picture).text(place, sign, "white", ImageFont.load_default(48), anchor="mm")
    return np.asarray(picture)


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(sample, args))
