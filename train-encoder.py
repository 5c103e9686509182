#!/usr/bin/env python3
"""Learn from faces how to fill holes with a trained DCGAN: their covariance, and an encoder that predicts z.

./train-encoder.py --checkpointDir checkpoints/mine --dataset data/mine/aligned
tensorboard --logdir logs

Both are kept with the model, and complete.py uses them. The same command resumes a run that was stopped; when the model
has been trained further, it makes the encoder fit that.
"""

import argparse
import sys
from pathlib import Path

import cli

from tqdm import tqdm

import checkpoint
import utils
from training import cluster, launch

EPOCHS, LEAST_STEPS = 10, 2000  # by default, whichever is more
ENOUGH = 10_000  # steps of 64 images, until the encoder improves slowly
HELD_OUT = 512  # images to evaluate on, at most a tenth of all


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts = dict(samples="pictures of completions", evaluated="the encoder")
    launch.add_flags(parser, checkpoint.ENCODER_TRAINING, f"{EPOCHS}, or those of {LEAST_STEPS} steps", **texts)
    parser.add_argument("--checkpointDir", metavar="DIR", default="checkpoints/mine", help="the model (%(default)s)")
    return parser, parser.parse_args()


def train(args):
    place, folder = cluster.place(), utils.inside(args.checkpointDir, checkpoint.ENCODER)
    architecture, options = launch.part_settings(args, folder, checkpoint.ENCODER_TRAINING, "train-encoder.py")
    with launch.workers(args, place, folder, "--checkpointDir") as team:
        import ops
        from completion.encoder import Encoder
        from model import DCGAN
        from training.dataset import ImageFolder
        from training.runs import EncoderRun

        trained, seed = DCGAN.load(args.checkpointDir), options["seed"]
        print(checkpoint.describe(args.checkpointDir, trained))
        name = f"{utils.folder_name(args.checkpointDir)}-{trained.step}-encoder"  # one for each generator
        if team.chief and not checkpoint.find(folder):
            utils.check_samples(args.sample_dir, name)
        images = ImageFolder(args.dataset, *trained.image_shape[1:], seed=seed, cache_mb=args.cache_mb)
        if len(images) < 2:
            raise cli.UserError(f"--dataset {args.dataset}: holds one image; an encoder learns from thousands")
        held_out = images.hold_out(min(HELD_OUT, max(1, len(images) // 10)), seed)
        steps = images.steps(options["batch_size"])
        print(f"images: {len(images)} to learn from, {len(held_out)} held out; steps an epoch: {steps}")
        args.epoch = args.epoch or max(EPOCHS, -(-LEAST_STEPS // steps))
        if args.epoch * steps < ENOUGH and team.chief:
            print(f"a good encoder takes about {ENOUGH} steps, --epoch {-(-ENOUGH // steps)}")

        precision = options.pop("precision")
        precision = ops.fastest_precision() if precision == "auto" else precision
        options |= {name: getattr(args, name) for name in ("epoch", "eval_every", "jit_compile")}
        same = architecture | options | {"precision": precision, "generator": trained.fingerprint()}
        team.compare(lambda: same | {"images": images.digest()})
        if team.chief:
            learn_covariance(args.checkpointDir, images)
        ops.keras.utils.set_random_seed(seed)
        with team.strategy.scope():
            dcgan = DCGAN(**architecture | {"ema": 0.0}, precision=precision)
            dcgan.start_from(trained)
            encoder = Encoder(dcgan, precision)
        options |= dict(checkpoint_dir=folder, sample_dir=args.sample_dir, log_dir=args.log_dir)
        return EncoderRun(encoder, images, held_out, name, team=team, **options).finish()


def learn_covariance(directory, images):
    """Keep the covariance of images, a probabilistic PCA, with the model in a directory, if there is none."""
    from completion import prior

    path = Path(directory, prior.FILE)
    if prior.load(directory, images.shape):
        print(f"covariance: in {path}; without that file it would be learned anew")
        return
    total, text = prior.PASSES * len(images), f"covariance, in {prior.PASSES} passes"
    with tqdm(total=total, desc=text, unit="img", leave=False, dynamic_ncols=True) as bar:

        def blocks():
            for block in images.blocks():
                yield block
                bar.update(len(block))

        covariance = prior.fit(blocks)
    prior.save(directory, covariance)
    print(f"covariance: {len(covariance.variances)} components, in {path}")


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(train, args))
