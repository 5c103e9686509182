#!/usr/bin/env python3
"""Write what others need of a trained model to a new folder.

./export.py checkpoints/published --checkpointDir checkpoints/mine
./export.py onnx-of-mine --checkpointDir checkpoints/mine --format onnx

That is the generator that completes, the discriminator, and the encoder where there is one. As weights, at half
precision and with covariance and refiner, it completes images, and can be trained further with train-dcgan.py --init.
The other formats need nothing of this code; a README.md beside them describes inputs and outputs.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import sys
import tempfile

import cli

import checkpoint
import utils

FORMATS = "weights", "saved_model", "keras", "onnx", "litert"


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="a new or empty folder")
    parser.add_argument("--checkpointDir", metavar="DIR", default="checkpoints/mine", help="the model (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="weights", help="how (%(default)s)")
    return parser, parser.parse_args()


def export(args):
    if args.format == "onnx" and not importlib.util.find_spec("tf2onnx"):
        raise cli.UserError("--format onnx: needs the package tf2onnx; pip install tf2onnx")
    if args.format == "litert" and tuple(map(int, importlib.metadata.version("keras").split(".")[:2])) < (3, 13):
        raise cli.UserError("--format litert: needs Keras 3.13, which needs Python 3.11; pip install 'keras>=3.13'")
    checkpoint.choose(args.checkpointDir)
    out = utils.make_directory(args.out, "OUT", empty=True)
    with cli.quiet_tensorflow():
        import ops
        from completion.encoder import Encoder
        from completion.refiner import Refiner
        from model import DCGAN

        ops.use_device()
    dcgan = DCGAN.load(args.checkpointDir)
    encoder, outdated = Encoder.load(args.checkpointDir, dcgan)
    if outdated:
        print(f"{args.checkpointDir}: its encoder is left out, as it is for another generator", file=sys.stderr)

    with (
        utils.report_write_errors(out),
        ops.memory_and_disk(f"OUT {out}"),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as draft,  # all of it is there, or nothing
    ):
        if args.format == "weights":
            refiner = Refiner.load(args.checkpointDir, dcgan)
            parts = write_weights(f"{draft}/model", dcgan, encoder, refiner, args.checkpointDir)
        else:
            from completion import formats

            names = formats.write(f"{draft}/model", dcgan, encoder, args.format)
            parts = [f"{', '.join(names)} of step {dcgan.step} as {args.format}"]
        os.replace(f"{draft}/model", out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {', '.join(parts)}; {size / 1e6:.0f} MB")
    lacking = [] if encoder else ["encoder"]
    if args.format == "weights" and "covariance" not in parts:
        lacking.append("covariance")
    if lacking:
        remedy = f"./train-encoder.py --checkpointDir {args.checkpointDir} --dataset DIR"
        print(f"without {' and '.join(lacking)}, as the model has none; {remedy} learns both")


def write_weights(folder, dcgan, encoder, refiner, source):
    """Write what completes and can be trained further, with the covariance kept in `source`; returns what that is."""
    from completion import prior

    covariance = prior.load(source, dcgan.image_shape)
    dcgan.export(folder)
    parts = [f"generator and discriminator of step {dcgan.step}"]
    if covariance:
        prior.save(folder, covariance)
        parts.append("covariance")
    for name, part in {"encoder": encoder, "refiner": refiner}.items():
        if part:
            part.export(folder)
            parts.append(f"{name} of step {part.step}")
    return parts


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(export, args))
