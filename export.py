#!/usr/bin/env python3
"""Write what others need of a trained model to a new folder, at half precision.

./export.py checkpoints/published --checkpointDir checkpoints/mine

That is the generator that completes, the discriminator, and the covariance and the encoder where there are some. It can
be completed with, and be trained further with train-dcgan.py --init.
"""

import argparse
import os
import sys
import tempfile

import cli

import checkpoint
import utils


def main():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="a new or empty folder")
    parser.add_argument("--checkpointDir", metavar="DIR", default="checkpoints/mine", help="the model (%(default)s)")
    return parser.run(export, parser.parse_args())


def export(args):
    if not checkpoint.holds_model(args.checkpointDir):
        raise cli.UserError(f"--checkpointDir {args.checkpointDir}: holds no model; train one with train-dcgan.py")
    out = utils.make_directory(args.out, "OUT", empty=True)
    with cli.quiet_tensorflow():
        import blend
        import ops
        from encoder import Encoder
        from model import DCGAN

        ops.use_device()
    dcgan = DCGAN.load(args.checkpointDir)
    encoder, other = Encoder.load(args.checkpointDir, dcgan)
    covariance = blend.load_covariance(args.checkpointDir, dcgan.image_shape)
    if other:
        print(f"{args.checkpointDir}: its encoder is left out, as it is for another generator", file=sys.stderr)

    parts = [f"generator and discriminator of step {dcgan.step}"]
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as draft:  # all of it is there, or nothing
        dcgan.export(f"{draft}/model")
        if covariance:
            blend.save_covariance(f"{draft}/model", covariance)
            parts.append("covariance")
        if encoder:
            encoder.export(f"{draft}/model")
            parts.append(f"encoder of step {encoder.step}")
        with utils.naming(out):
            os.replace(f"{draft}/model", out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {', '.join(parts)}; {size / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
