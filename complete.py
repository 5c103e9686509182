#!/usr/bin/env python3
"""Fill the missing part of images with a trained DCGAN.

./complete.py data/test/aligned --outDir completions
./complete.py photo.jpg --photo --mask scratches.png
./complete.py faces/*.png --maskType left --samples 4
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
from tqdm import tqdm

import checkpoint
import utils
from completion import inputs, masks, metrics
from photos import alignment, restoring

# flags that are handed to search.complete, where their defaults are, under its own names
SEARCH = {
    "approach": "approach",
    "nIter": "iterations",
    "lr": "lr",
    "schedule": "schedule",
    "momentum": "momentum",
    "lam": "lam",
    "candidates": "candidates",
    "prior": "prior",
    "hmcBeta": "hmc_beta",
    "hmcEps": "hmc_eps",
    "hmcL": "hmc_l",
    "hmcAnneal": "hmc_anneal",
    "outInterval": "interval",
}


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = cli.number(int, 1, 10**9)
    share, step = cli.number(float, 0, 1), cli.number(float, 0, 10**6, above=True)
    add = parser.add_argument
    add("imgs", metavar="IMAGE", nargs="+", help="image file or folder; cropped and resized as the model needs")
    add("--checkpointDir", metavar="DIR", help="the model (checkpoints/mine, else the one that came with this code)")
    add("--outDir", metavar="DIR", default="completions", help="a new or empty folder for all pictures (%(default)s)")
    add("--log_dir", metavar="DIR", default="logs", help="where TensorBoard's record goes (%(default)s)")
    add("--batchSize", type=count, default=64, metavar="N", help="images searched together (%(default)s)")
    add(
        "--seed",
        type=cli.number(int, 0, 2**31 - 1),
        default=0,
        help="decides masks and searches (%(default)s)",
    )

    add = parser.add_argument_group("whole photos").add_argument
    add("--photo", action="store_true", help="IMAGE are photos, and --mask theirs: align, complete and put back")
    add("--faces", choices=alignment.FACES, help="which faces of a photo (largest)")
    add("--points", type=alignment.point, nargs=3, metavar="X,Y", help="where the landmarks are, see align.py --help")

    kinds = [*masks.TYPES, "alpha"]
    hole = parser.add_argument_group("the hole")
    add = hole.add_mutually_exclusive_group().add_argument
    text = f"{', '.join(kinds)}; alpha fills what is transparent (center; alpha if all images have such parts)"
    add("--maskType", choices=kinds, metavar="TYPE", help=text)
    add("--mask", metavar="FILE", help="mask image for all images, white = fill")
    add("--maskDir", metavar="DIR", help="folder that holds a mask image of the same name for each image")
    add = hole.add_argument
    add("--centerScale", type=share, default=0.25, help="share of the side known beside a centre hole (%(default)s)")
    add("--fraction", type=share, default=0.2, help="share hidden by random (%(default)s)")

    add = parser.add_argument_group("the search for z").add_argument
    add("--approach", choices=["momentum", "adam", "hmc"], help="update rule (momentum)")
    add("--start", choices=["encoder", "candidates"], help="first z (encoder where there is one, but for hmc)")
    add("--prior", type=cli.number(float, 0, 10**6), metavar="MU", help="cost of leaving the encoder's guess (100)")
    add("--nIter", type=cli.number(int, 0, 10**9), metavar="N", help="iterations (from the encoder's z 20, else 200)")
    add("--lr", type=step, help="first step size (momentum: 3 / sum of weights, adam: 0.1; less from an encoder's z)")
    add("--schedule", choices=["cosine", "constant"], help="how the step size goes on (cosine, to 0)")
    add("--momentum", type=cli.number(float, 0, 0.9999), help="momentum (0.9)")
    add("--lam", type=cli.number(float, 0, 10**6), help="weight of the perceptual loss (0.1)")
    add("--candidates", type=count, metavar="K", help="start from the best of K random z (2048)")
    add("--weighting", choices=["none", "neighbours"], default="none", help="what known pixels count (%(default)s)")
    add("--window", type=cli.number(int, 3, 511), default=7, help="side of the neighbourhood, odd (%(default)s)")
    add("--hmcBeta", type=step, help="inverse temperature of hmc (0.2)")
    add("--hmcEps", type=step, help="length of a leapfrog step of hmc (0.001)")
    add("--hmcL", type=count, help="leapfrog steps per iteration of hmc (100)")
    add("--hmcAnneal", type=step, help="factor on hmcBeta per iteration (1)")

    add = parser.add_argument_group("the result").add_argument
    add(
        "--blend",
        choices=["gaussian", "poisson", "none"],
        help="how G(z) is fitted to the image (gaussian where the model has a covariance, else poisson)",
    )
    add("--detail", type=share, help="how much gaussian keeps of what G drew beyond the most probable face (0.75)")
    add("--samples", type=count, default=1, metavar="S", help="different completions of each image (%(default)s)")
    add("--outInterval", type=count, metavar="N", help="iterations between pictures (a quarter, 20 at most)")
    return parser, parser.parse_args()


class Model(NamedTuple):
    """What completes: a DCGAN, and what was learned beside it as far as it is used."""

    dcgan: object
    encoder: object  # or None: the search starts from candidates
    covariance: object  # or None
    blend: str  # "gaussian", "poisson" or "none"


def main():
    parser, args = parse_args()
    return parser.run(complete, args)


def prepare(args):
    """What is completed, `Images`, and by what, `Model`; the folders of its pictures and of TensorBoard's record."""
    if args.window % 2 == 0:
        raise cli.UserError(f"--window {args.window}: give an odd number")
    for flag in ("faces", "points"):
        if getattr(args, flag) and not args.photo:
            raise cli.UserError(f"--{flag}: is for --photo; leave it out")
    directory = checkpoint.choose(args.checkpointDir)
    architecture = checkpoint.read_config(directory)["architecture"]
    size, channels = architecture["image_size"], architecture["c_dim"]
    out_dir = make_out_dir(args) if args.photo else None
    with inputs.removed_on_error(out_dir / "aligned") if args.photo else contextlib.nullcontext():
        if args.photo:
            args = inputs.cut_faces(args, out_dir / "aligned", size)
        faces = inputs.read_images(args, size, channels)
        out_dir = out_dir or make_out_dir(args)
        log_dir = utils.make_directory(args.log_dir, "--log_dir")
        log_dir /= f"{os.path.basename(os.path.realpath(out_dir))}-{time.strftime('%Y%m%d-%H%M%S')}"
        with cli.quiet_tensorflow():
            import ops

            device = ops.use_device()
        model = load(args, directory)
    print(f"{device}\n{checkpoint.describe(directory, model.dcgan.step)}")
    start = f"an encoder of step {model.encoder.step}" if model.encoder else "candidates"
    print(f"start: {start}; blending: {model.blend}")
    return faces, model, out_dir, log_dir


def complete(args):
    faces, model, out_dir, log_dir = prepare(args)
    import ops  # TensorFlow is imported by now

    zs, rows, completed = [], [], [[] for _ in range(args.samples)]
    with ops.memory_and_disk("--batchSize, --log_dir"):
        for start in range(0, len(faces.paths), args.batchSize):
            part = slice(start, start + args.batchSize)
            batch = faces.of(part)
            folder = f"batch_{start // args.batchSize:02d}" if len(faces.paths) > args.batchSize else ""
            finals = []
            for sample in range(args.samples):
                place = Path(folder, f"sample_{sample:02d}" if args.samples > 1 else "")
                last, final = complete_batch(args, model, batch, sample, out_dir / place, log_dir / place)
                suffix = f"_{sample}" if args.samples > 1 else ""
                rows += write_results(batch, suffix, last, final, out_dir, model.blend != "none")
                finals.append(final)
                completed[sample] += list(utils.to_uint8(final))
                zs.append(last.z)
            if args.samples > 1:
                views = {"masked": batch.holes.show(utils.to_float(batch.pixels))}
                views |= {f"sample {i}": final for i, final in enumerate(finals)}
                utils.write_image(out_dir / folder / "samples.png", utils.labelled_rows(views))

    with utils.atomic_write(out_dir / "z.npy") as file:
        np.save(file, np.concatenate(zs))
    mend_photos(faces, completed, out_dir, args.seed)
    means = metrics.write(out_dir / "metrics.csv", rows)
    result = "plain" if model.blend == "none" else "blended"
    quality = f"contextual loss {means['contextual']:.0f}"
    if f"{result}_psnr_hole" in means:
        psnr, ssim, sharpness = (means[f"{result}_{name}_hole"] for name in ("psnr", "ssim", "sharpness"))
        quality = f"in the hole PSNR {psnr:.2f} dB, SSIM {ssim:.3f}, sharpness {sharpness:.2f}"
    print(f"{out_dir / 'final'}: {len(rows)} completed; mean {quality}; each in {out_dir / 'metrics.csv'}")


def mend_photos(faces, completed, out_dir, seed):
    """Put the completed crops of each sample, lists of uint8 pictures, back into the photos that they come from."""
    for sample, crops in enumerate(completed if faces.holes.kind not in ("lowres", "full") else ()):
        folder = out_dir / (f"photos_{sample}" if completed[1:] else "photos")
        count, outside = restoring.mend(folder, faces.paths, faces.holes, faces.pixels, crops, seed + sample)
        if count:
            print(f"{folder}: {count} mended; {outside:.0%} of the holes lie beside the faces, and are inpainted")


def load(args, directory):
    """The `Model` in a directory, and how it is used here; says so where its encoder is of an older generator.

    Raises UserError where a flag needs what the model does not have.
    """
    from completion import prior
    from completion.encoder import Encoder
    from model import DCGAN

    dcgan = DCGAN.load(directory)
    renew = f"./train-encoder.py --checkpointDir {directory} --dataset DIR"
    start, encoder = args.start or (args.candidates or args.approach == "hmc") and "candidates", None
    if start == "encoder" and args.candidates:
        raise cli.UserError("--candidates: are another start than --start encoder; leave one of them out")
    if start != "candidates":
        encoder, other = Encoder.load(directory, dcgan)
        what = "its encoder is for another generator" if other else "it has no encoder that was measured"
        if start == "encoder" and not encoder:
            raise cli.UserError(f"--start encoder: {directory}: {what}; {renew} makes one")
        if other:
            print(f"{directory}: {what}, so candidates are the start; {renew} renews it", file=sys.stderr)
    if args.prior is not None and not encoder:
        raise cli.UserError("--prior: is for --start encoder, and with that a model that has one; leave it out")
    covariance = None
    if args.blend in (None, "gaussian"):
        covariance = prior.load(directory, dcgan.image_shape)
        if args.blend and covariance is None:
            raise cli.UserError(f"--blend gaussian: {directory} has no {prior.FILE}; {renew} makes one")
    if args.detail is not None and covariance is None:
        raise cli.UserError(f"--detail: is for --blend gaussian, and with that a model that has {prior.FILE}")
    return Model(dcgan, encoder, covariance, args.blend or ("gaussian" if covariance else "poisson"))


def make_out_dir(args):
    """The folder for all pictures; raises UserError if it is not empty, or lies where images are searched."""
    place = Path(os.path.realpath(args.outDir))
    for name in map(Path, args.imgs):
        if name.is_dir() and Path(os.path.realpath(name)) in (place, *place.parents):
            raise cli.UserError(
                f"--outDir {args.outDir}: lies in {name}, where the next run would complete its pictures; "
                "choose a folder outside"
            )
    return utils.make_directory(args.outDir, "--outDir", empty=True)


def complete_batch(args, model, batch, sample, search_dir, log_dir):
    """Search and blend, and write the pictures of the way; returns the last state and the blended images."""
    from completion import compositing, prior, search

    images, holes = utils.to_float(batch.pixels), batch.holes
    settings = {name: getattr(args, flag) for flag, name in SEARCH.items() if getattr(args, flag) is not None}
    settings |= dict(weights=holes.weights, pool=holes.pool, seed=args.seed + sample)
    if model.encoder:
        settings["start"] = model.encoder.guess(*holes.masked(images))
        if sample:
            settings["start"] = search.others_near(settings["start"], settings["seed"], batch.numbers)
    bar = tqdm(unit="step", desc=search_dir.name, dynamic_ncols=True)

    def progress(done, total):
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        states = search.complete(model.dcgan, images, holes.masks, batch.numbers, progress=progress, **settings)
        last, frames = follow(states, images, batch, search_dir, log_dir, bar)
    final = last.completed
    if model.blend != "none":
        detail = prior.DETAIL if args.detail is None else args.detail
        final = compositing.blend(images, last.generated, holes.masks, model.covariance, detail, holes.pool)
    utils.write_film(search_dir / "completion.gif", [*frames, utils.image_grid(final)])
    views = {"original": images} if holes.truth_known else {}
    views |= {"masked": holes.show(images), "generated": last.generated, "composite": last.completed}
    views |= {"blended": final} if model.blend != "none" else {}
    utils.write_image(search_dir / "summary.png", utils.labelled_rows(views))
    return last, final


def follow(states, images, batch, search_dir, log_dir, bar):
    """Write what the search of one batch comes to as it goes on; return its last state, and the frames of a film.

    Grids of the batch, and a log for each image, by its number, go to `search_dir`, means to `log_dir` for
    TensorBoard.
    """
    import tensorflow as tf

    for folder in ("logs", "hats_imgs", "completed"):
        with utils.report_write_errors(search_dir / folder):
            try:
                (search_dir / folder).mkdir(parents=True)
            except FileExistsError as error:
                message = f"--outDir {search_dir}: another run writes there; choose another directory"
                raise cli.UserError(message) from error
    utils.write_image(search_dir / "before.png", utils.image_grid(images))
    frames = [utils.image_grid(batch.holes.show(images))]
    utils.write_image(search_dir / "masked.png", frames[0])
    with tf.summary.create_file_writer(str(log_dir)).as_default():
        for state in states:
            name = f"{state.iteration:04d}.png"
            frames.append(utils.image_grid(state.completed))
            utils.write_image(search_dir / "completed" / name, frames[-1])
            utils.write_image(search_dir / "hats_imgs" / name, utils.image_grid(state.generated))
            losses = {name: getattr(state, name) for name in ("contextual", "perceptual", "total", "current")}
            for number, *values in zip(batch.numbers, *losses.values(), strict=True):
                path = search_dir / "logs" / f"hats_{number:02d}.log"
                utils.append(path, " ".join(f"{value:.6g}" for value in (state.iteration, *values)) + "\n")
            for name, values in losses.items():
                tf.summary.scalar(name, values.mean(), state.iteration)
            tf.summary.image("completed", frames[-1][None], state.iteration)
            bar.set_postfix({name: f"{values.mean():.4g}" for name, values in losses.items()})
    return state, frames


def write_results(batch, suffix, last, final, out_dir, blended):
    """Write the pictures of each image, `final` and without blending; returns their rows of metrics.csv."""
    rows = []
    for folder in ("final", "plain"):
        with utils.report_write_errors(out_dir / folder):
            (out_dir / folder).mkdir(exist_ok=True)
    for i, (number, path, truth) in enumerate(zip(batch.numbers, batch.paths, batch.pixels, strict=True)):
        name = f"{number:04d}_{utils.shorten(path.stem)}{suffix}"
        result, plain = utils.to_uint8(final[i]), utils.to_uint8(last.completed[i])
        utils.write_image(out_dir / "final" / f"{name}.png", result)
        utils.write_image(out_dir / "plain" / f"{name}.png", plain)
        row = {"image": name, **{loss: getattr(last, loss)[i] for loss in ("contextual", "perceptual", "total")}}
        if batch.holes.truth_known:
            hole = batch.holes.masks[i, ..., 0] == 0
            row |= metrics.compare("plain", plain, truth, hole)
            row |= metrics.compare("blended", result, truth, hole) if blended else {}
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
