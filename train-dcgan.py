#!/usr/bin/env python3
"""Train a DCGAN on a folder of aligned faces, or go on with a run that was stopped.

./train-dcgan.py --dataset data/mine/aligned --epoch 25
tensorboard --logdir logs
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import cli

import checkpoint
import utils
from training import cluster


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_run_flags(parser, epochs=25, samples="sample grids", evaluated="the samples")
    add = parser.add_argument
    add("--train_size", type=cli.number(int, 1, 10**9), metavar="N", help="use N of the images, drawn by --seed (all)")
    add("--checkpoint_dir", metavar="DIR", default="checkpoints/mine", help="where the model is kept (%(default)s)")
    add("--init", metavar="DIR", help="start a new run from the weights of the model kept there")

    group = parser.add_argument_group("settings kept with the model", "a resumed run goes on with them")
    checkpoint.add_settings(group, checkpoint.TRAINING | checkpoint.ARCHITECTURE)
    return parser, parser.parse_args()


def settings(args):
    """The settings of this run: the flags given, then what the model was trained with, then the defaults.

    A new run with --init has that model's architecture.
    """
    resumed, saved = bool(checkpoint.find(args.checkpoint_dir)), {"architecture": {}, "training": {}}
    if resumed:
        saved = checkpoint.read_config(args.checkpoint_dir)
        saved["training"].setdefault("precision", "float32")
        if saved["weights"] != "float32":
            raise cli.UserError(
                f"--checkpoint_dir {args.checkpoint_dir}: holds weights without the state of their training; "
                "start from them with --init, in another --checkpoint_dir"
            )
    elif checkpoint.find_original(args.checkpoint_dir):
        raise cli.UserError(
            f"--checkpoint_dir {args.checkpoint_dir}: holds a model of the original code; "
            "start from its weights with --init, in another --checkpoint_dir"
        )
    elif args.init:
        if not checkpoint.holds_model(args.init):
            raise cli.UserError(f"--init {args.init}: holds no model; choose another directory")
        saved["architecture"] = checkpoint.read_config(args.init)["architecture"]
        del saved["architecture"]["ema"]  # no part of the networks
    tables = {"architecture": checkpoint.ARCHITECTURE, "training": checkpoint.TRAINING}
    config = {part: checkpoint.settings(args, table, saved[part]) for part, table in tables.items()}
    flag = "checkpoint_dir" if resumed else "init"
    for name, value in saved["architecture"].items():
        if config["architecture"][name] != value:
            raise cli.UserError(
                f"--{name} {config['architecture'][name]}: the model in {getattr(args, flag)} has {name} {value}; "
                f"leave the flag out, or choose another --{flag}"
            )
    precision = config["training"]["precision"]
    before = saved["training"].get("precision")
    checkpoint.check_precision(args.checkpoint_dir, before, precision, "choose another --checkpoint_dir")
    try:
        checkpoint.check_memory(config["architecture"], 16)  # float32, with gradients and Adam's two moments
    except MemoryError as error:
        raise cli.UserError(f"--{error}; choose smaller ones") from error
    return config, resumed


def main():
    parser, args = parse_args()
    return parser.run(train, args)


def train(args):
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line at once, and keeps it if we are killed
    if not Path(args.dataset).is_dir():
        raise cli.UserError(f"--dataset {args.dataset}: no such directory; give a folder of images")
    place = cluster.place()
    config, resumed = settings(args)
    if place.index == 0:
        for flag in ("checkpoint_dir", "sample_dir", "log_dir"):
            utils.make_directory(getattr(args, flag), f"--{flag}")
        lock = checkpoint.lock(args.checkpoint_dir, "--checkpoint_dir")  # noqa: F841, held until the process ends
        if not resumed:
            utils.check_samples(args.sample_dir, os.path.basename(os.path.realpath(args.checkpoint_dir)))

    with cli.quiet_tensorflow():
        import ops
        from model import DCGAN
        from training.dataset import ImageFolder
        from training.runs import GANRun
        from training.workers import join

        team = join(place, args.join_timeout)
        device = ops.use_device(args.deterministic)
    print(device)
    options, seed = config["training"], config["training"]["seed"]
    precision = options.pop("precision")
    if precision == "auto":
        precision = ops.fastest_precision()
    size, channels = config["architecture"]["image_size"], config["architecture"]["c_dim"]
    images = ImageFolder(args.dataset, size, channels, args.train_size, seed, args.cache_mb)
    per_epoch = len(images) // min(options["batch_size"], len(images))
    where = "in memory" if images.images is not None else "read anew each epoch"
    print(f"images: {len(images)}, {where}; steps an epoch: {per_epoch}")
    enough = -(-checkpoint.FACES_AFTER // per_epoch)
    if args.epoch < enough and team.chief and not (resumed or args.init):
        print(
            f"recognisable faces take about {checkpoint.FACES_AFTER} steps, --epoch {enough}, "
            "and thousands of photos; with fewer, complete.py does better with checkpoints/faces-64"
        )

    options |= {name: getattr(args, name) for name in ("epoch", "eval_every", "jit_compile")}
    remedy = partial(checkpoint.go_on_from, args.checkpoint_dir)
    with ops.memory_and_disk("--batch_size, --log_dir"), team.naming_the_lost(remedy):
        same = config["architecture"] | options | {"precision": precision, "init": bool(args.init)}
        team.compare(lambda: same | {"images": images.digest()})
        ops.keras.utils.set_random_seed(seed)
        with team.strategy.scope():
            dcgan = DCGAN(**config["architecture"], precision=precision)
        if resumed and args.init:
            print(f"{args.checkpoint_dir}: holds a run, --init is ignored; a new run needs another --checkpoint_dir")
        elif args.init:
            source = DCGAN.load(args.init)
            dcgan.start_from(source)
            print(f"{args.init}: starting from its weights after step {source.step}")
        options |= {name: getattr(args, name) for name in ("checkpoint_dir", "sample_dir", "log_dir")}
        return GANRun(dcgan, images, team=team, **options).finish()


if __name__ == "__main__":
    sys.exit(main())
