#!/usr/bin/env python3
"""Fill the missing part of images with a trained DCGAN.

./complete.py data/test/aligned --outDir completions
./complete.py photo.jpg --photo --mask scratches.png
./complete.py faces/*.png --maskType left --samples 4
"""

import argparse
import sys
import time

import cli

from PIL import Image

import checkpoint
import utils
from completion import inputs, masks
from completion.settings import DETAIL, SEARCH
from photos import alignment, record, restoring


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count, share = cli.number(int, 1, 10**9), cli.number(float, 0, 1)
    add = parser.add_argument
    add("imgs", metavar="IMAGE", nargs="+", help="image file or folder; cropped and resized as the model needs")
    add("--checkpointDir", metavar="DIR", help="the model (checkpoints/mine, else the pretrained one)")
    add("--outDir", metavar="DIR", help="a new or empty folder for all pictures (completions, or completions-2 ...)")
    add("--log_dir", metavar="DIR", default="logs", help="where TensorBoard's record goes (%(default)s)")
    add("--batchSize", type=count, default=64, metavar="N", help="images searched together (%(default)s)")
    add("--seed", type=cli.number(int, 0, 2**31 - 1), default=0, help="of masks and searches (%(default)s)")

    add = parser.add_argument_group("whole photos").add_argument
    add("--photo", action="store_true", help="IMAGE are photos, and --mask theirs: align, complete and put back")
    add("--put_back", action="store_true", help="IMAGE are faces of align.py's: put them back into their photos, too")
    add("--faces", choices=alignment.FACES, help="which faces of a photo (largest)")
    add("--points", type=alignment.point, nargs=3, metavar="X,Y", help="where the landmarks are, see align.py --help")

    hole = parser.add_argument_group("the hole")
    add = hole.add_mutually_exclusive_group().add_argument
    text = "alpha fills what is transparent (center; alpha if all images have such parts)"
    add("--maskType", choices=[*masks.TYPES, "alpha"], help=text)
    add("--mask", metavar="FILE", help="mask image for all images, white = fill")
    add("--maskDir", metavar="DIR", help="folder that holds a mask image of the same name for each image")
    add = hole.add_argument
    add("--grow", type=alignment.growth, metavar="N", help=f"pixels by which a photo's mask grows ({masks.GROW})")
    add("--centerScale", type=share, default=0.25, help="share of the side known beside a centre hole (%(default)s)")
    add("--fraction", type=share, default=0.2, help="share hidden by random (%(default)s)")

    add = parser.add_argument_group("the search for z").add_argument
    add("--start", choices=["encoder", "candidates"], help="initial z (encoder where there is one, but for hmc)")
    for flag, kind, default, text in SEARCH.values():
        options = {"choices": kind} if isinstance(kind, list) else {"type": kind}
        add(f"--{flag}", help=text if default is None else f"{text} ({default})", **options)
    add("--weighting", choices=["none", "neighbours"], default="none", help="what known pixels count (%(default)s)")
    add("--window", type=cli.number(int, 3, 511), default=7, help="side of the neighbourhood, odd (%(default)s)")

    add = parser.add_argument_group("the result").add_argument
    add("--blend", choices=["gaussian", "poisson", "none"], help="gaussian where there is a covariance, else poisson")
    add("--detail", type=share, help=f"how much gaussian keeps of what G drew beyond the most probable face ({DETAIL})")
    add("--samples", type=count, default=1, metavar="S", help="different completions of each image (%(default)s)")
    return parser, parser.parse_args()


def check(args):
    """Raise UserError for flags that do not go together; returns the model's directory, image size and channels."""
    if args.window % 2 == 0:
        raise cli.UserError(f"--window {args.window}: give an odd number")
    for flag in ("faces", "points", "grow"):
        if getattr(args, flag) is not None and not args.photo:
            raise cli.UserError(f"--{flag}: is for --photo; leave it out")
    if (args.photo or args.put_back) and args.maskType in ("lowres", "full"):
        raise cli.UserError(f"--maskType {args.maskType}: leaves no hole in a photo; is for faces without --put_back")
    args.outDir = args.outDir or str(utils.unused_directory("completions"))
    utils.check_outside(args.outDir, "--outDir", args.imgs)
    directory = checkpoint.choose(args.checkpointDir)
    architecture = checkpoint.read_config(directory)["architecture"]
    return directory, architecture["image_size"], architecture["c_dim"]


def read_images(args, size, channels):
    """The images of IMAGE and their holes; says which do not look like aligned faces."""
    images = inputs.prepare(inputs.open_images(args.imgs, args.maskDir), size, channels, args)
    odd = [path for path, (w, h) in zip(images.paths, images.sizes, strict=True) if w != h or w > 2 * size]
    if odd := [path for path in odd if not record.record_above(path)]:
        print(f"{utils.some(odd)}: not an aligned face, it seems; --photo completes whole photos", file=sys.stderr)
    return images


def load_completer(args, directory):
    """What completes, as the flags choose it; says on what and from where it searches."""
    with cli.quiet_tensorflow():
        import ops
        from completion.completer import Completer

        device = ops.use_device()
    settings = {name: getattr(args, flag) for name, (flag, *_) in SEARCH.items() if getattr(args, flag) is not None}
    photos = args.photo or args.put_back
    completer = Completer.load(directory, args.start, args.blend, args.detail, args.seed, photos, **settings)
    start = f"an encoder of step {completer.encoder.step}" if completer.encoder else "candidates"
    print(f"{device}\n{checkpoint.describe(directory, completer.dcgan)}")
    print(f"start: {start}; blending: {completer.blending}")
    return completer


def read_photos(args, size, channels, folder):
    """The photos of IMAGE, as `restoring.restore` takes them; the `record.Crop`s of faces with holes; and these."""
    given = dict(faces=args.faces, mask=args.mask, mask_dir=args.maskDir, grow=args.grow, points=args.points)
    settings = alignment.Settings(size, **{name: value for name, value in given.items() if value is not None})
    aligned, kind = alignment.align_photos(args.imgs, folder, settings, keep=True), args.maskType or "alpha"
    photos, crops = restoring.choose_faces(aligned, kind, size)
    flags = argparse.Namespace(**vars(args) | dict(mask=None, maskDir=None, maskType=kind))
    pictures = ((crop.path, Image.fromarray(crop.pixels)) for crop in crops)
    return photos, crops, inputs.prepare(pictures, size, channels, flags) if crops else None


def complete(args):
    (directory, size, channels), photos, completed, summary = check(args), None, [], []
    out_dir = utils.make_directory(args.outDir, "--outDir", empty=True)
    print(f"results: {out_dir}", flush=True)
    with utils.removed_on_error(out_dir / "aligned"):
        if args.photo:
            photos, crops, images = read_photos(args, size, channels, out_dir / "aligned")
        else:
            images = read_images(args, size, channels)
            crops = restoring.find_crops(images.paths, not args.maskType and images.holes.kind) if args.put_back else []
        log_dir = utils.make_directory(args.log_dir, "--log_dir")
        completer = load_completer(args, directory) if images else None
    if images:
        from completion import output

        log_dir /= f"{utils.folder_name(out_dir)}-{time.strftime('%Y%m%d-%H%M%S')}"
        completed, *summary = output.complete(completer, images, args.samples, args.batchSize, out_dir, log_dir)
    if args.photo or args.put_back:
        folders = [out_dir / (f"photos_{sample}" if args.samples > 1 else "photos") for sample in range(args.samples)]
        parts = restoring.make_parts(crops, images, completed) if images else []
        kind, refiner = (images.holes.kind, completer.refiner) if images else ("alpha", None)
        summary = restoring.restore(folders, parts, kind, args.seed, photos, refiner) + summary
    print(*summary, sep="\n")


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(complete, args))
