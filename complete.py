#!/usr/bin/env python3
"""Fill the missing part of images with a trained DCGAN.

./complete.py data/test/aligned --outDir completions
./complete.py photo.png --mask scratches.png
./complete.py damaged/*.png --maskType alpha --refine 10
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import masks
import metrics
import utils

# flags that are handed to DCGAN.complete, where their defaults are, under its own names
SEARCH = {
    "approach": "approach",
    "nIter": "iterations",
    "lr": "lr",
    "schedule": "schedule",
    "momentum": "momentum",
    "lam": "lam",
    "candidates": "candidates",
    "hmcBeta": "hmc_beta",
    "hmcEps": "hmc_eps",
    "hmcL": "hmc_l",
    "hmcAnneal": "hmc_anneal",
    "outInterval": "interval",
}


def parse_args():
    parser = utils.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count, amount, step = utils.number(int, 1, 10**9), utils.number(float, 0), utils.number(float, 0, above=True)
    add = parser.add_argument
    add("imgs", metavar="IMAGE", nargs="+", help="image file or folder; cropped and resized as the model needs")
    add("--checkpointDir", metavar="DIR", help="the model (checkpoints/mine, else the one that came with this code)")
    add("--outDir", metavar="DIR", default="completions", help="a new or empty folder for all pictures (%(default)s)")
    add("--log_dir", metavar="DIR", default="logs", help="where TensorBoard's record goes (%(default)s)")
    add("--batchSize", type=count, default=64, metavar="N", help="images searched together (%(default)s)")
    add(
        "--seed",
        type=utils.number(int, 0, 2**31 - 1),
        default=0,
        help="decides masks and searches (%(default)s)",
    )

    kinds = [*masks.TYPES, "alpha"]
    hole = parser.add_argument_group("the hole")
    add = hole.add_mutually_exclusive_group().add_argument
    text = f"{', '.join(kinds)}; alpha fills what is transparent (center; alpha if all images have such parts)"
    add("--maskType", choices=kinds, metavar="TYPE", help=text)
    add("--mask", metavar="FILE", help="mask image for all images, white = fill")
    add("--maskDir", metavar="DIR", help="folder that holds a mask image of the same name for each image")
    add = hole.add_argument
    add("--centerScale", type=amount, default=0.25, help="share of the side known beside a centre hole (%(default)s)")
    add("--fraction", type=utils.number(float, 0, 1), default=0.2, help="share hidden by random (%(default)s)")

    add = parser.add_argument_group("the search for z").add_argument
    add("--approach", choices=["momentum", "adam", "hmc"], help="update rule (momentum)")
    add("--nIter", type=count, metavar="N", help="iterations (200)")
    add("--lr", type=step, help="first step size (adam: 0.1; momentum: 3 / sum of the weights)")
    add("--schedule", choices=["cosine", "constant"], help="how the step size goes on (cosine, to 0)")
    add("--momentum", type=utils.number(float, 0, 0.9999), help="momentum (0.9)")
    add("--lam", type=amount, help="weight of the perceptual loss (0.1)")
    add("--candidates", type=count, metavar="K", help="start from the best of K random z (2048)")
    add("--weighting", choices=["none", "neighbours"], default="none", help="what known pixels count (%(default)s)")
    add("--window", type=utils.number(int, 3, 511), default=7, help="side of the neighbourhood, odd (%(default)s)")
    add("--hmcBeta", type=step, help="inverse temperature of hmc (0.2)")
    add("--hmcEps", type=step, help="length of a leapfrog step of hmc (0.001)")
    add("--hmcL", type=count, help="leapfrog steps per iteration of hmc (100)")
    add("--hmcAnneal", type=step, help="factor on hmcBeta per iteration (1)")

    add = parser.add_argument_group("the result").add_argument
    add("--refine", type=utils.number(int, 0), default=0, metavar="N", help="fine-tune G to each image for N steps (0)")
    add("--blend", choices=["poisson", "none"], default="poisson", help="how the seam is hidden (%(default)s)")
    add("--samples", type=count, default=1, metavar="S", help="different completions of each image (%(default)s)")
    add("--outInterval", type=count, metavar="N", help="iterations between pictures (20)")
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    return parser.run(complete, args)


def find_inputs(args, size):
    """The files among the IMAGE arguments, folders searched, that can be completed, and their masks; two lists.

    The other files are reported. Where no mask flag was given, it sets --maskType. Raises utils.UserError if no file
    is left, or if they do not all get a hole.
    """
    files, opaque, skipped = [], [], False
    chosen = args.mask or args.maskDir or args.maskType
    for name in map(Path, args.imgs):
        found = utils.find_images(name) if name.is_dir() else [name]
        if not found and len(args.imgs) > 1:
            skipped = True
            print(f"skipped {name}: a folder without images", file=sys.stderr)
        for path in found:
            try:
                alpha = masks.read_alpha(path, size)
                if args.maskType == "alpha" or not (chosen or alpha.any()):
                    masks.check(alpha, path)
                files.append(path)
                opaque.append(alpha)
            except utils.UserError as error:
                skipped = True
                print(f"skipped {error}", file=sys.stderr)
    if not files:
        why = "see above" if skipped else f"it holds none ({', '.join(sorted(utils.IMAGE_SUFFIXES))})"
        raise utils.UserError(f"IMAGE {args.imgs[0]}{' ...' if args.imgs[1:] else ''}: no image to complete; {why}")
    if not chosen:
        transparent = sum(not alpha.all() for alpha in opaque)
        if 0 < transparent < len(files):
            raise utils.UserError(
                f"--maskType: {transparent} of {len(files)} images have transparent parts; alpha fills those and "
                "leaves out the other images, the other types take them as white"
            )
        args.maskType = "alpha" if transparent else "center"
    if args.maskType == "alpha":
        return files, opaque
    return files, [find_mask(args, path, number, size) for number, path in enumerate(files)]


def find_mask(args, path, number, size):
    """The mask of one image, by --mask, --maskDir or --maskType; raises utils.UserError if that gives no hole."""
    if args.mask or args.maskDir:
        file, flag = args.mask, "--mask"
        if args.maskDir:
            found = [mask for mask in utils.find_images(args.maskDir) if mask.stem == path.stem]
            if len(found) != 1:
                count = f"{len(found)} masks" if found else "no mask"
                raise utils.UserError(f"--maskDir {args.maskDir}: holds {count} named {path.stem}, for {path}")
            file, flag = found[0], "--maskDir"
        side = min(utils.open_image(path).size)
        return masks.check(masks.read_mask(file, size, side), f"{flag} {file}")
    return masks.make(args.maskType, size, args.centerScale, args.fraction, (args.seed, number))


def search_settings(args, batch_masks):
    """What the flags ask of DCGAN.complete."""
    settings = {name: getattr(args, flag) for flag, name in SEARCH.items() if getattr(args, flag) is not None}
    size = batch_masks.shape[1]
    if args.maskType == "lowres":
        settings |= dict(pool=size // masks.LOWRES, weights=np.ones((len(batch_masks), masks.LOWRES, masks.LOWRES, 1)))
    elif args.maskType == "full":
        settings["weights"] = np.ones_like(batch_masks)
    elif args.weighting == "neighbours":
        settings["weights"] = np.stack([masks.neighbour_weights(mask, args.window) for mask in batch_masks])
    return settings


def show_known(args, images, batch_masks):
    """What the search knows of the images, as pictures: they themselves, their means, or all but the hole, in grey."""
    if args.maskType == "full":
        return images
    if args.maskType == "lowres":
        return masks.pixelate(images)
    return images * batch_masks


def complete(args):
    if args.window % 2 == 0:
        raise utils.UserError(f"--window {args.window}: give an odd number")
    checkpoint_dir = utils.find_model(args.checkpointDir)
    if original := utils.find_original(checkpoint_dir):
        with utils.quiet_tensorflow():
            from model import read_original
        architecture, _ = read_original(original)
    else:
        architecture = utils.read_config(checkpoint_dir)["architecture"]
    size, channels = architecture["image_size"], architecture["c_dim"]
    files, hole_masks = find_inputs(args, size)
    out_dir = make_out_dir(args)
    log_dir = utils.make_directory(args.log_dir, "--log_dir")
    log_dir /= f"{out_dir.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"

    with utils.quiet_tensorflow():
        import ops
        from model import DCGAN

        device = ops.use_device()
    dcgan = DCGAN.load(checkpoint_dir)
    print(f"{device}\n{utils.describe_model(checkpoint_dir, int(dcgan.step))}")

    zs, rows = [], []
    starts = range(0, len(files), args.batchSize)
    for batch, start in enumerate(starts):
        numbers = range(start, min(start + args.batchSize, len(files)))
        images = utils.to_float([utils.read_image(files[i], size, channels) for i in numbers])
        batch_masks = np.stack([hole_masks[i] for i in numbers])
        known, settings = show_known(args, images, batch_masks), search_settings(args, batch_masks)
        finals = []
        for sample in range(args.samples):
            parts = [f"batch_{batch:02d}"] * (len(starts) > 1) + [f"sample_{sample:02d}"] * (args.samples > 1)
            search_dir = out_dir.joinpath(*parts)
            with ops.memory_and_disk("--batchSize, --log_dir"):
                states = dcgan.complete(images, batch_masks, numbers, seed=args.seed + sample, **settings)
                found, frames = follow(states, images, known, numbers, search_dir, log_dir.joinpath(*parts))
                last, blended = finish(args, dcgan, images, batch_masks, found, settings)
            utils.write_film(search_dir / "completion.gif", [*frames, utils.image_grid(blended)])
            names = [f"{i:04d}_{files[i].stem}" + f"_{sample}" * (args.samples > 1) for i in numbers]
            views = show_steps(args, images, known, found, last, blended)
            utils.write_image(search_dir / "summary.png", utils.labelled_rows(views))
            rows += write_results(args, names, images, batch_masks, last, blended, out_dir)
            finals.append(blended)
            zs.append(last.z)
        if args.samples > 1:
            views = {"masked": known, **{f"sample {i}": final for i, final in enumerate(finals)}}
            utils.write_image(search_dir.parent / "samples.png", utils.labelled_rows(views))

    np.save(out_dir / "z.npy", np.concatenate(zs))
    means = metrics.write(out_dir / "metrics.csv", rows)
    result = "plain" if args.blend == "none" else "blended"
    quality = f"contextual loss {means['contextual']:.0f}"
    if f"{result}_psnr_hole" in means:
        quality = f"in the hole PSNR {means[f'{result}_psnr_hole']:.2f} dB, SSIM {means[f'{result}_ssim_hole']:.3f}"
    print(f"{out_dir / 'final'}: {len(rows)} completed; mean {quality}; each in {out_dir / 'metrics.csv'}")


def make_out_dir(args):
    """The folder for all pictures; raises utils.UserError if it is not empty, or lies where images are searched."""
    for name in map(Path, args.imgs):
        if name.is_dir() and name.resolve() in (place := Path(args.outDir).resolve(), *place.parents):
            raise utils.UserError(
                f"--outDir {args.outDir}: lies in {name}, where the next run would complete its pictures; "
                "choose a folder outside"
            )
    return utils.make_directory(args.outDir, "--outDir", empty=True)


def follow(states, images, known, numbers, search_dir, log_dir):
    """Write what the search of one batch comes to as it goes on; return its last state, and the frames of a film.

    Grids of the batch, and a log for each image, by its number, go to `search_dir`, means to `log_dir` for
    TensorBoard.
    """
    import tensorflow as tf

    for folder in ("logs", "hats_imgs", "completed"):
        (search_dir / folder).mkdir(parents=True)
    utils.write_image(search_dir / "before.png", utils.image_grid(images))
    frames = [utils.image_grid(known)]
    utils.write_image(search_dir / "masked.png", frames[0])
    bar = tqdm(unit="it", desc=search_dir.name, dynamic_ncols=True)
    with bar, tf.summary.create_file_writer(str(log_dir)).as_default():
        for state in states:
            name = f"{state.iteration:04d}.png"
            frames.append(utils.image_grid(state.completed))
            utils.write_image(search_dir / "completed" / name, frames[-1])
            utils.write_image(search_dir / "hats_imgs" / name, utils.image_grid(state.generated))
            losses = {name: getattr(state, name) for name in ("contextual", "perceptual", "total", "current")}
            for number, *values in zip(numbers, *losses.values(), strict=True):
                with open(search_dir / "logs" / f"hats_{number:02d}.log", "a") as log:
                    log.write(" ".join(f"{value:.6g}" for value in (state.iteration, *values)) + "\n")
            for name, values in losses.items():
                tf.summary.scalar(name, values.mean(), state.iteration)
            tf.summary.image("completed", frames[-1][None], state.iteration)
            bar.total = state.iterations
            bar.set_postfix({name: f"{values.mean():.4g}" for name, values in losses.items()}, refresh=False)
            bar.update(state.iteration - bar.n)
    return state, frames


def finish(args, dcgan, images, batch_masks, last, settings):
    """What comes of the last state of a search: it, refined, and the blended images, as the flags ask."""
    if args.refine:
        options = {name: settings[name] for name in ("weights", "pool") if name in settings}
        generated = dcgan.refine(images, batch_masks, last.z, args.refine, **options)
        last = last._replace(generated=generated, completed=dcgan.composite(images, batch_masks, generated).numpy())
    if args.blend == "none":
        return last, last.completed
    return last, np.stack(list(map(masks.poisson_blend, images, last.generated, batch_masks)))


def show_steps(args, images, known, found, last, blended):
    """The rows of summary.png, as `utils.labelled_rows` wants them."""
    views = {"original": images, "masked": known, "generated": found.generated, "refined": last.generated}
    views |= {"composite": last.completed, "blended": blended}
    left_out = {"original": args.maskType == "alpha", "refined": not args.refine, "blended": args.blend == "none"}
    return {name: view for name, view in views.items() if not left_out.get(name)}


def write_results(args, names, images, batch_masks, last, blended, out_dir):
    """Write the pictures of each image; returns their rows of metrics.csv."""
    rows = []
    for folder in ("final", "plain"):
        (out_dir / folder).mkdir(exist_ok=True)
    for i, name in enumerate(names):
        final, plain = utils.to_uint8(blended[i]), utils.to_uint8(last.completed[i])
        utils.write_image(out_dir / "final" / f"{name}.png", final)
        utils.write_image(out_dir / "plain" / f"{name}.png", plain)
        row = {"image": name, **{loss: getattr(last, loss)[i] for loss in ("contextual", "perceptual", "total")}}
        if args.maskType != "alpha":  # else the truth is not known
            truth, hole = utils.to_uint8(images[i]), batch_masks[i, ..., 0] == 0
            row |= metrics.compare("plain", plain, truth, hole)
            row |= metrics.compare("blended", final, truth, hole) if args.blend != "none" else {}
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
