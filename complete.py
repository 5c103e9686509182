#!/usr/bin/env python3
"""Fill the missing part of images with a trained DCGAN.

./complete.py data/test/aligned/*.png --outDir completions
"""

import argparse
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from tqdm import tqdm

import masks
import utils

SHIPPED = Path(__file__).resolve().parent / "checkpoints" / "faces-64"


def parse_args():
    parser = utils.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count, amount = utils.number(int, 1), utils.number(float, 0)
    add = parser.add_argument
    add(
        "imgs",
        metavar="IMAGE",
        nargs="+",
        help="image file or folder; cropped and resized as the model needs",
    )
    add("--checkpointDir", metavar="DIR", help="the model (checkpoints/mine, else the one that came with this code)")
    add("--outDir", metavar="DIR", default="completions", help="a new or empty folder for all pictures (%(default)s)")
    add("--outInterval", type=count, default=50, metavar="N", help="iterations between pictures (%(default)s)")
    add("--nIter", type=count, default=1000, metavar="N", help="iterations of the search for z (%(default)s)")
    add("--lr", type=utils.number(float, 0, above=True), default=0.01, help="step size of the search (%(default)s)")
    add("--momentum", type=utils.number(float, 0, 0.9999), default=0.9, help="momentum of the search (%(default)s)")
    add("--lam", type=amount, default=0.1, help="weight of the perceptual loss (%(default)s)")
    add("--maskType", choices=["center"], default="center", help="where the hole is (%(default)s)")
    add(
        "--centerScale",
        type=amount,
        default=0.25,
        help="share of the side known beside a centre hole (%(default)s)",
    )
    add("--batchSize", type=count, default=64, metavar="N", help="images searched together (%(default)s)")
    add("--seed", type=utils.number(int, 0), default=0, help="decides where each search starts (%(default)s)")
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    try:
        complete(args)
    except utils.UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130


def find_model(checkpoint_dir):
    """The checkpoint directory to use: the one asked for, else the user's own, else the shipped one."""
    candidates = [Path(checkpoint_dir)] if checkpoint_dir else [Path("checkpoints/mine"), SHIPPED]
    for candidate in candidates:
        if (candidate / "checkpoint").is_file():
            return candidate
    raise utils.UserError(f"--checkpointDir {candidates[0]}: holds no model; train one with train-dcgan.py")


def find_inputs(names, size, channels):
    """The files among `names`, folders searched, that are images; the others are reported."""
    files = []
    for name in map(Path, names):
        found = utils.find_images(name) if name.is_dir() else [name]
        for path in found:
            try:
                utils.read_image(path, size, channels)
                files.append(path)
            except utils.UserError as error:
                print(f"skipped {error}", file=sys.stderr)
        if not found:
            print(f"skipped {name}: a folder without images", file=sys.stderr)
    if not files:
        raise utils.UserError(f"IMAGE {names[0]}{' ...' if names[1:] else ''}: no image to complete; see above")
    return files


def complete(args):
    checkpoint_dir = find_model(args.checkpointDir)
    config = checkpoint_dir / "config.json"
    try:
        architecture = utils.read_json(config)["architecture"]
        size, channels, z_dim = (architecture[name] for name in ("image_size", "c_dim", "z_dim"))
    except KeyError as error:
        raise utils.UserError(f"{config}: lacks {error}; is {checkpoint_dir} a folder of train-dcgan.py's?") from error
    mask = masks.center(size, args.centerScale)
    files = find_inputs(args.imgs, size, channels)
    out_dir = utils.make_directory(args.outDir, "--outDir")
    if any(out_dir.iterdir()):
        raise utils.UserError(f"--outDir {out_dir}: is not empty; choose another directory, or remove it first")

    with utils.quiet_tensorflow():
        import ops
        from model import DCGAN

        device = ops.use_device()
    dcgan = DCGAN.load(checkpoint_dir)
    print(f"{device}\nmodel: {checkpoint_dir}, step {int(dcgan.step)}")

    results = []
    starts = range(0, len(files), args.batchSize)
    for batch, start in enumerate(starts):
        numbers = range(start, min(start + args.batchSize, len(files)))
        images = utils.to_float([utils.read_image(files[i], size, channels) for i in numbers])
        search = dcgan.complete(
            images,
            np.broadcast_to(mask, (len(images), *mask.shape)),
            # by its own number, so that no image's start depends on the batch it falls in
            np.stack([ops.random_z(z_dim, args.seed, i) for i in numbers]),
            iterations=args.nIter,
            lr=args.lr,
            momentum=args.momentum,
            lam=args.lam,
            interval=args.outInterval,
        )
        grid_dir = out_dir if len(starts) == 1 else out_dir / f"batch_{batch:02d}"
        bar = tqdm(total=args.nIter, unit="it", desc=f"batch {batch + 1}/{len(starts)}", dynamic_ncols=True)
        last = write_search(search, images, mask, numbers, out_dir, grid_dir, bar)
        for number, image in zip(numbers, last.completed, strict=True):
            utils.write_image(out_dir / "final" / f"{number:04d}_{files[number].stem}.png", utils.to_uint8(image))
        results.append(last)

    np.save(out_dir / "z.npy", np.concatenate([last.z for last in results]))
    contextual = np.concatenate([last.contextual for last in results]).mean()
    perceptual = np.concatenate([last.perceptual for last in results]).mean()
    print(f"{out_dir}: {len(files)} images, mean contextual loss {contextual:.1f}, perceptual {perceptual:.3f}")


def write_search(search, images, mask, numbers, out_dir, grid_dir, bar):
    """Follow the search of one batch, write its pictures and logs as it goes, and return the last state.

    Grids of the whole batch go to `grid_dir`, a log for each image, by its number, to `out_dir`.
    """
    for directory in (out_dir / "logs", out_dir / "final", grid_dir / "hats_imgs", grid_dir / "completed"):
        directory.mkdir(parents=True, exist_ok=True)
    utils.write_image(grid_dir / "before.png", utils.image_grid(images))
    utils.write_image(grid_dir / "masked.png", utils.image_grid(images * mask))
    frames = []
    with bar:
        for state in search:
            frames.append(utils.image_grid(state.completed))
            utils.write_image(grid_dir / "completed" / f"{state.iteration:04d}.png", frames[-1])
            utils.write_image(grid_dir / "hats_imgs" / f"{state.iteration:04d}.png", utils.image_grid(state.generated))
            for number, contextual, perceptual in zip(numbers, state.contextual, state.perceptual, strict=True):
                with open(out_dir / "logs" / f"hats_{number:02d}.log", "a") as log:
                    log.write(f"{state.iteration} {contextual:.6g} {perceptual:.6g}\n")
            bar.update(state.iteration - bar.n)
            bar.set_postfix(contextual=f"{state.contextual.mean():.1f}", perceptual=f"{state.perceptual.mean():.3f}")
    durations = [100] * (len(frames) - 1) + [2000]  # ms, so that the result stays to be looked at
    iio.imwrite(grid_dir / "completion.gif", frames, duration=durations, loop=0)
    return state


if __name__ == "__main__":
    sys.exit(main())
