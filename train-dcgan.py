#!/usr/bin/env python3
"""Train a DCGAN on a folder of aligned faces, or resume a run that was stopped.

./train-dcgan.py --dataset data/mine/aligned --epoch 25
tensorboard --logdir logs
"""

import argparse
import sys

import cli

import checkpoint
import utils
from training import cluster, launch


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, tables = parser.add_argument, checkpoint.TRAINING | checkpoint.ARCHITECTURE
    launch.add_flags(parser, tables, "25", samples="sample grids", evaluated="the samples")
    parser.set_defaults(epoch=25)
    add("--train_size", type=cli.number(int, 1, 10**9), metavar="N", help="use N of the images, drawn by --seed (all)")
    add("--checkpoint_dir", metavar="DIR", default="checkpoints/mine", help="where the model is kept (%(default)s)")
    add("--init", metavar="DIR", help="start a new run from the weights of the model kept there")
    return parser, parser.parse_args()


def settings(args):
    """The settings of this run, a config, and whether it resumes one: the flags given, then what the model was trained
    with, then the defaults.

    A new run with --init has that model's architecture.
    """
    resumed, saved = bool(checkpoint.find(args.checkpoint_dir)), {"architecture": {}, "training": {}}
    unfit, model = None, f"--checkpoint_dir {args.checkpoint_dir}: holds"
    if resumed:
        saved = checkpoint.read_config(args.checkpoint_dir)
        checkpoint.check_size(args.checkpoint_dir, saved)
        saved["training"].setdefault("precision", "float32")
        unfit = saved["weights"] != "float32" and "weights without the state of their training"
    elif checkpoint.find_original(args.checkpoint_dir):
        unfit = "a model of the original code"
    elif args.init:
        if not checkpoint.holds_model(args.init):
            raise cli.UserError(f"--init {args.init}: holds no model; choose another directory")
        initial = checkpoint.read_config(args.init)
        checkpoint.check_size(args.init, initial)
        saved["architecture"] = initial["architecture"]
        del saved["architecture"]["ema"]  # no part of the networks
    if unfit:
        raise cli.UserError(f"{model} {unfit}; start from its weights with --init, in another --checkpoint_dir")
    architecture = checkpoint.settings(args, checkpoint.ARCHITECTURE, saved["architecture"])
    training = checkpoint.settings(args, checkpoint.TRAINING, saved["training"])
    flag = "checkpoint_dir" if resumed else "init"
    for name, value in saved["architecture"].items():
        if architecture[name] != value:
            raise cli.UserError(
                f"--{name} {architecture[name]}: the model in {getattr(args, flag)} has {name} {value}; "
                f"leave the flag out, or choose another --{flag}"
            )
    before = saved["training"].get("precision")
    checkpoint.check_precision(args.checkpoint_dir, before, training["precision"], "choose another --checkpoint_dir")
    # float32, with gradients and Adam's two moments
    checkpoint.check_memory(architecture, 16, "--", "choose smaller ones")
    return architecture, training, resumed


def train(args):
    place = cluster.place()
    architecture, options, resumed = settings(args)
    name = None if resumed else utils.folder_name(args.checkpoint_dir)
    with launch.workers(args, place, args.checkpoint_dir, "--checkpoint_dir", name) as team:
        import ops
        from model import DCGAN
        from training.dataset import ImageFolder
        from training.runs import GANRun

        shape, precision = (architecture["image_size"], architecture["c_dim"]), options.pop("precision")
        precision = ops.fastest_precision() if precision == "auto" else precision
        images = ImageFolder(args.dataset, *shape, args.train_size, options["seed"], args.cache_mb)
        steps = images.steps(options["batch_size"])
        where = "in memory" if images.images is not None else "read anew each epoch"
        print(f"images: {len(images)}, {where}; steps an epoch: {steps}")
        enough = -(-checkpoint.FACES_AFTER // steps)
        if args.epoch < enough and team.chief and not (resumed or args.init):
            print(
                f"recognisable faces take about {checkpoint.FACES_AFTER} steps, --epoch {enough}, "
                "and thousands of photos; with fewer, complete.py does better with checkpoints/faces-64"
            )
        options |= {name: getattr(args, name) for name in ("epoch", "eval_every", "jit_compile")}
        same = architecture | options | {"precision": precision, "init": bool(args.init)}
        team.compare(lambda: same | {"images": images.digest()})
        ops.keras.utils.set_random_seed(options["seed"])
        with team.strategy.scope():
            dcgan = DCGAN(**architecture, precision=precision)
        if resumed and args.init:
            print(f"{args.checkpoint_dir}: holds a run, --init is ignored; a new run needs another --checkpoint_dir")
        elif args.init:
            source = DCGAN.load(args.init)
            dcgan.start_from(source)
            dcgan.pretrained_steps = source.step + source.pretrained_steps
            print(f"{args.init}: starting from its weights after step {source.step}")
        options |= {name: getattr(args, name) for name in ("checkpoint_dir", "sample_dir", "log_dir")}
        return GANRun(dcgan, images, team=team, **options).finish()


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(train, args))
