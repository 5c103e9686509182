"""The images to complete, and their holes, as the flags of complete.py say."""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import cli

import align
import utils
from completion import masks
from photos import alignment, record


class Images(NamedTuple):
    """What is completed together."""

    numbers: range  # decide each image's random draws
    paths: list
    pixels: list  # uint8, (size, size, channels) each
    holes: masks.Holes

    def of(self, part):
        """Those of a slice."""
        return Images(self.numbers[part], self.paths[part], self.pixels[part], self.holes.of(part))


@contextlib.contextmanager
def removed_on_error(folder):
    """Remove a folder that was made inside this if it ends early, so that the same command can be tried again."""
    try:
        yield
    except (cli.UserError, SystemExit):
        shutil.rmtree(folder, ignore_errors=True)
        raise


def cut_faces(args, folder, size):
    """Align the photos among the IMAGE arguments to a new folder, crops of `size` pixels, as --photo asks for.

    Returns the arguments that complete these crops. Raises UserError if there are none, and SystemExit if align.py was
    stopped.
    """
    words = ["--size", str(size), "--faces", args.faces or "largest"]
    words += [f"--{flag}={getattr(args, flag)}" for flag in ("mask", "maskDir") if getattr(args, flag)]
    words += ["--points", *(f"{x},{y}" for x, y in args.points)] if args.points else []
    _, settings = align.parse_args([*words, "--", *args.imgs, str(folder)])
    if status := alignment.align(settings):
        sys.exit(status)
    damaged = any(utils.open_image(path).has_transparency_data for path in utils.find_images(folder))
    kind = args.maskType or ("alpha" if damaged else None)
    return argparse.Namespace(**vars(args) | dict(imgs=[folder], mask=None, maskDir=None, maskType=kind))


def read_images(args, size, channels):
    """The files among the IMAGE arguments, folders searched, that can be completed, as `Images`.

    The other files are reported, and those that are no aligned faces. Raises UserError if no file is left, or if they
    do not all get a hole.
    """
    paths, pixels, alphas, sides, unaligned, skipped = [], [], [], [], [], False
    chosen = args.maskType or (args.mask or args.maskDir) and "mask"
    for name in map(Path, args.imgs):
        found = utils.find_images(name) if name.is_dir() else [name]
        if not found and len(args.imgs) > 1:
            skipped = True
            print(f"skipped {name}: a folder without images", file=sys.stderr)
        for path in found:
            try:
                image = utils.open_image(path)
                alpha = masks.transparent(image, size)
                if chosen == "alpha" or not (chosen or alpha.any()):
                    masks.check(alpha, path)
            except cli.UserError as error:
                skipped = True
                print(f"skipped {error}", file=sys.stderr)
                continue
            paths.append(path)
            pixels.append(utils.as_pixels(image, size, channels))
            alphas.append(alpha)
            sides.append(min(image.size))
            if image.width != image.height or image.width > 2 * size:
                unaligned += [path] * (record.record_above(path) is None)
    if not paths:
        why = "see above" if skipped else f"it holds none ({', '.join(sorted(utils.IMAGE_SUFFIXES))})"
        raise cli.UserError(f"IMAGE {args.imgs[0]}{' ...' if args.imgs[1:] else ''}: no image to complete; {why}")
    kind = chosen or default_kind(alphas)
    made = alphas if kind == "alpha" else make_masks(args, kind, paths, sides, size)
    holes = masks.holes(kind, made, args.window if args.weighting == "neighbours" else None)
    if unaligned:
        which = f"{unaligned[0]}{f' and {len(unaligned) - 1} more' if unaligned[1:] else ''}"
        print(
            f"{which}: not an aligned face, as it seems; with --photo the faces of photos are completed",
            file=sys.stderr,
        )
    return Images(range(len(paths)), paths, pixels, holes)


def default_kind(alphas):
    """The kind of hole where no flag chooses it; raises UserError where some images have transparent parts."""
    transparent = sum(not alpha.all() for alpha in alphas)
    if 0 < transparent < len(alphas):
        raise cli.UserError(
            f"--maskType: {transparent} of {len(alphas)} images have transparent parts; alpha fills those and "
            "leaves out the other images, the other types take them as white"
        )
    return "alpha" if transparent else "center"


def make_masks(args, kind, paths, sides, size):
    """The mask of each image, by --mask, --maskDir or --maskType; raises UserError if one gives no hole."""
    if kind != "mask":
        seeds = [(args.seed, number) for number in range(len(paths))]
        return [masks.make(kind, size, args.centerScale, args.fraction, seed) for seed in seeds]
    if args.mask:
        hidden, source = masks.read_hidden(args.mask), f"--mask {args.mask}"
        fitted = {side: masks.check(masks.fit_hidden(hidden, size, side), source) for side in {*sides}}
        return [fitted[side] for side in sides]
    found, result = masks.by_name(args.maskDir), []
    for path, side in zip(paths, sides, strict=True):
        file = masks.named_as(path.name, found, args.maskDir)
        mask = masks.fit_hidden(masks.read_hidden(file), size, side)
        result.append(masks.check(mask, f"--maskDir {file}"))
    return result
