#!/usr/bin/env python3
"""Learn to draw completed faces at twice their size, for whole photos.

./align.py photos data/mine/larger --size 128
./train-refiner.py --checkpointDir checkpoints/mine --dataset data/mine/larger
tensorboard --logdir logs

The model first completes each face with a hole in it, which is kept for the next time. The refiner is kept with the
model, and complete.py --photo and paint.py use it. The same command resumes a run that was stopped.
"""

import argparse
import sys

import cli

import checkpoint
import utils
from training import cluster, launch

STEPS = 40_000
HELD_OUT = 512  # faces to evaluate on, at most a tenth of all


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts = dict(samples="pictures of refined faces", evaluated="the refiner")
    launch.add_flags(parser, checkpoint.REFINER_TRAINING, f"those of {STEPS:,} steps", **texts)
    parser.add_argument("--checkpointDir", metavar="DIR", default="checkpoints/mine", help="the model (%(default)s)")
    parser.add_argument("--train_size", type=cli.number(int, 2), metavar="N", default=8192, help="faces (%(default)s)")
    return parser, parser.parse_args()


def train(args):
    place, folder = cluster.place(), utils.inside(args.checkpointDir, checkpoint.REFINER)
    if place.count > 1:
        raise cli.UserError("TF_CONFIG: names several machines, and a refiner trains on one; unset it")
    _, options = launch.part_settings(args, folder, checkpoint.REFINER_TRAINING, "train-refiner.py")
    with launch.workers(args, place, folder, "--checkpointDir") as team:
        import ops
        from completion.completer import Completer
        from completion.refiner import Refiner
        from training.completions import CompletedFaces
        from training.runs import RefinerRun

        completer, seed = Completer.load(args.checkpointDir, seed=options["seed"]), options["seed"]
        print(checkpoint.describe(args.checkpointDir, completer.dcgan))
        name = f"{utils.folder_name(args.checkpointDir)}-refiner"
        if not checkpoint.find(folder):
            utils.check_samples(args.sample_dir, name)
        images = CompletedFaces(args.dataset, completer, folder / "completed", seed, args.train_size, args.cache_mb)
        if len(images) < 2:
            raise cli.UserError(f"--dataset {args.dataset}: holds one image; a refiner learns from thousands")
        held_out = images.hold_out(min(HELD_OUT, max(1, len(images) // 10)), seed)
        steps = images.steps(options["batch_size"])
        print(f"images: {len(images)} to learn from, {len(held_out)} held out; steps an epoch: {steps}")
        args.epoch = args.epoch or -(-STEPS // steps)

        precision = options.pop("precision")
        precision = ops.fastest_precision() if precision == "auto" else precision
        options |= {name: getattr(args, name) for name in ("epoch", "eval_every", "jit_compile")}
        ops.keras.utils.set_random_seed(seed)
        with team.strategy.scope():
            refiner = Refiner(completer.dcgan, precision)
        options |= dict(checkpoint_dir=folder, sample_dir=args.sample_dir, log_dir=args.log_dir)
        return RefinerRun(refiner, images, held_out, name, team=team, **options).finish()


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(train, args))
