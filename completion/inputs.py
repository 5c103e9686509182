"""The images to complete, and their holes: what the flags of complete.py choose, decided once."""

import sys
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np

import utils
from completion import masks


class Images(NamedTuple):
    """What is completed together."""

    numbers: range  # decide each image's random draws
    paths: list
    sizes: list  # of the files' pixels, pairs of width and height
    pixels: np.ndarray  # uint8, (N, size, size, channels)
    holes: masks.Holes

    def of(self, part):
        """Those of a slice."""
        return Images(*(values[part] for values in self[:4]), self.holes.of(part))


def open_images(names, mask_dir=None):
    """Yield the path and the Pillow image of all files among `names`, folders searched; reports those that are none.

    Masks that lie among them, in `mask_dir`, are left out.
    """
    paths = []
    for name in map(Path, names):
        found = utils.find_images(name, report=True) if name.is_dir() else [name]
        if not found and len(names) > 1:
            print(f"skipped {name}: a folder without images", file=sys.stderr)
        paths += found
    for path in masks.without_masks(paths, mask_dir):
        try:
            yield path, utils.open_image(path)
        except cli.UserError as error:
            print(f"skipped {error}", file=sys.stderr)


def prepare(pictures, size, channels, args):
    """What can be completed of `pictures`, an iterable of paths and Pillow images, as `Images`.

    args: the flags of complete.py on the hole; without any, it is what is transparent, or else a centre square. Those
    that get no hole from their transparency are reported. Raises UserError if no image is left, or if some are
    transparent and others not, or if a mask gives no hole.
    """
    found = []
    chosen = args.maskType or (args.mask or args.maskDir) and "mask"
    for path, image in pictures:
        alpha = masks.transparent(image, size)
        if chosen == "alpha" or not (chosen or alpha.any()):
            try:
                masks.check(alpha, path)
            except cli.UserError as error:
                print(f"skipped {error}", file=sys.stderr)
                continue
        found.append((path, image.size, utils.as_pixels(image, size, channels), alpha))
    if not found:
        first = f"{args.imgs[0]}{' ...' if args.imgs[1:] else ''}"
        empty = len(args.imgs) == 1 and Path(first).is_dir() and not utils.find_images(first)
        why = f"it {utils.NO_IMAGES}" if empty else "see above"
        raise cli.UserError(f"IMAGE {first}: no image to complete; {why}")
    paths, sizes, pixels, alphas = map(list, zip(*found, strict=True))
    kind = chosen or default_kind(alphas)
    made = alphas if kind == "alpha" else make_masks(args, kind, paths, [min(pair) for pair in sizes], size)
    holes = masks.holes(kind, made, args.window if args.weighting == "neighbours" else None)
    return Images(range(len(paths)), paths, sizes, np.stack(pixels), holes)


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
        with cli.named("--mask"):
            hidden = masks.read_hidden(args.mask, tell=True)
        fitted = {side: masks.check(masks.fit_hidden(hidden, size, side), f"--mask {args.mask}") for side in {*sides}}
        result = [fitted[side] for side in sides]
    else:
        found, result = masks.by_name(args.maskDir, paths), []
        for path, side in zip(paths, sides, strict=True):
            file = masks.named_as(path.name, found, args.maskDir)
            with cli.named("--maskDir"):
                mask = masks.fit_hidden(masks.read_hidden(file, tell=True), size, side)
            result.append(masks.check(mask, f"--maskDir {file}"))
    if (share := 1 - np.mean(result)) > masks.MOST:
        print(f"the masks hide {share:.0%} of the images; white is what is filled, black what stays", file=sys.stderr)
    return result
