#!/usr/bin/env python3
"""Learn from faces how to fill holes with a trained DCGAN: their covariance, and an encoder that guesses z.

./train-encoder.py --checkpointDir checkpoints/mine --dataset data/mine/aligned
tensorboard --logdir logs

Both are kept with the model, and complete.py uses them. The same command goes on with a run that was stopped; when the
model has been trained further, it makes the encoder fit that.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import cli

from tqdm import tqdm

import checkpoint
import utils
from training import cluster

ENOUGH = 10_000  # steps of 64 images, until the encoder gets better slowly
HELD_OUT = 512  # images to measure on, at most a tenth of all


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_run_flags(parser, epochs=10, samples="pictures of completions", evaluated="the encoder")
    parser.add_argument("--checkpointDir", metavar="DIR", default="checkpoints/mine", help="the model (%(default)s)")
    group = parser.add_argument_group("settings kept with the encoder", "a resumed run goes on with them")
    checkpoint.add_settings(group, checkpoint.ENCODER_TRAINING)
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    return parser.run(train, args)


def settings(args, folder):
    """What the encoder in a folder, if there is one, was trained with, with the flags given."""
    if not Path(args.dataset).is_dir():
        raise cli.UserError(f"--dataset {args.dataset}: no such directory; give a folder of images")
    if not checkpoint.holds_model(args.checkpointDir):
        raise cli.UserError(f"--checkpointDir {args.checkpointDir}: holds no model; train one with train-dcgan.py")
    architecture, saved = checkpoint.read_config(args.checkpointDir)["architecture"], {}
    if checkpoint.find(folder):
        config = checkpoint.read_encoder_config(folder, architecture)
        saved = {"precision": "float32"} | config["training"]
        if config["weights"] != "float32":
            raise cli.UserError(
                f"{folder}: holds an encoder without the state of its training; copy the model without it to another "
                "--checkpointDir, and train one there"
            )
    training = checkpoint.settings(args, checkpoint.ENCODER_TRAINING, saved)
    checkpoint.check_precision(folder, saved.get("precision"), training["precision"], f"remove {folder}")
    return architecture, training


def train(args):
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line at once, and keeps it if we are killed
    place = cluster.place()
    folder = utils.inside(args.checkpointDir, checkpoint.ENCODER)
    architecture, options = settings(args, folder)
    if place.index == 0:
        for path, flag in ((folder, "--checkpointDir"), (args.sample_dir, "--sample_dir"), (args.log_dir, "--log_dir")):
            utils.make_directory(path, flag)
        lock = checkpoint.lock(folder, "--checkpointDir")  # noqa: F841, held until the process ends

    with cli.quiet_tensorflow():
        import ops
        from completion.encoder import Encoder
        from model import DCGAN
        from training.dataset import ImageFolder
        from training.runs import EncoderRun
        from training.workers import join

        team = join(place, args.join_timeout)
        device = ops.use_device(args.deterministic)
    trained = DCGAN.load(args.checkpointDir)
    print(f"{device}\n{checkpoint.describe(args.checkpointDir, trained.step)}")
    name = f"{Path(os.path.realpath(args.checkpointDir)).name}-{trained.step}-encoder"  # one for each generator
    if team.chief and not checkpoint.find(folder):
        utils.check_samples(args.sample_dir, name)
    images = ImageFolder(args.dataset, *trained.image_shape[1:], seed=options["seed"], cache_mb=args.cache_mb)
    if len(images) < 2:
        raise cli.UserError(f"--dataset {args.dataset}: holds one image; an encoder learns from thousands")
    held_out = images.hold_out(min(HELD_OUT, max(1, len(images) // 10)), options["seed"])
    per_epoch = len(images) // min(options["batch_size"], len(images))
    print(f"images: {len(images)} to learn from, {len(held_out)} held out; steps an epoch: {per_epoch}")
    if args.epoch * per_epoch < ENOUGH and team.chief:
        print(f"a good encoder takes about {ENOUGH} steps, --epoch {-(-ENOUGH // per_epoch)}")

    precision = options.pop("precision")
    if precision == "auto":
        precision = ops.fastest_precision()
    options |= {name: getattr(args, name) for name in ("epoch", "eval_every", "jit_compile")}
    with ops.memory_and_disk("--batch_size, --log_dir"), team.naming_the_lost(partial(checkpoint.go_on_from, folder)):
        same = architecture | options | {"precision": precision, "generator": trained.fingerprint()}
        team.compare(lambda: same | {"images": images.digest()})
        if team.chief:
            learn_covariance(args.checkpointDir, images)
        ops.keras.utils.set_random_seed(options["seed"])
        with team.strategy.scope():
            dcgan = DCGAN(**architecture | {"ema": 0.0}, precision=precision)
            dcgan.start_from(trained)
            encoder = Encoder(dcgan, precision)
        options |= dict(checkpoint_dir=folder, sample_dir=args.sample_dir, log_dir=args.log_dir)
        return EncoderRun(encoder, images, held_out, name, team=team, **options).finish()


def learn_covariance(directory, images):
    """Keep the covariance of images with the model in a directory, if there is none."""
    from completion import prior

    path = Path(directory, prior.FILE)
    if prior.load(directory, images.shape):
        print(f"covariance: in {path}; without that file it would be learned anew")
        return
    bar = tqdm(total=prior.PASSES * len(images), desc="covariance", unit="img", leave=False, dynamic_ncols=True)

    def blocks():
        for block in images.blocks():
            yield block
            bar.update(len(block))

    with bar:
        covariance = prior.fit(blocks)
    prior.save(directory, covariance)
    print(f"covariance: {len(covariance.variances)} axes, in {path}")


if __name__ == "__main__":
    sys.exit(main())
