#!/usr/bin/env python3
"""Train a DCGAN on a folder of aligned faces, or go on with a run that was stopped.

./train-dcgan.py --dataset data/mine/aligned --epoch 25
tensorboard --logdir logs
"""

import argparse
import re
import sys
from pathlib import Path

import utils

DEFAULTS = {
    "architecture": dict(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64, ema=0.999),
    "training": dict(batch_size=64, learning_rate=0.0002, beta1=0.5, seed=0, flip=False, precision="auto"),
}


def parse_args():
    parser = utils.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = utils.number(int, 1, 10**9)
    add = parser.add_argument
    add("--dataset", metavar="DIR", required=True, help="folder of images, searched in all subfolders")
    add("--epoch", type=count, default=25, help="epochs in all, those before a resume included (%(default)s)")
    add("--train_size", type=count, metavar="N", help="use N of the images, drawn by --seed (all)")
    add("--checkpoint_dir", metavar="DIR", default="checkpoints/mine", help="where the model is kept (%(default)s)")
    add("--init", metavar="DIR", help="start a new run from the weights of the model kept there")
    add("--sample_dir", metavar="DIR", default="samples", help="where sample grids go (%(default)s)")
    add("--log_dir", metavar="DIR", default="logs", help="where TensorBoard's record goes (%(default)s)")
    add("--cache_mb", type=utils.number(int, 0), metavar="MB", default=1024, help="memory for images (%(default)s)")
    add("--eval_every", type=count, metavar="N", help="measure the samples every N steps too (at epochs' ends)")
    add("--jit_compile", action="store_true", help="compile the step with XLA: for one GPU; slows a CPU down tenfold")
    add("--deterministic", action="store_true", help="the same bits in every run, where TensorFlow can; slower")

    group = parser.add_argument_group("settings kept with the model", "a resumed run goes on with them")
    add = group.add_argument
    defaults = DEFAULTS["architecture"] | DEFAULTS["training"]

    def setting(name, text, **options):
        add(f"--{name}", help=f"{text} ({defaults[name]})", **options)

    setting("batch_size", "images per step", type=count)
    setting("learning_rate", "step size of Adam", type=utils.number(float, 0, above=True))
    setting("beta1", "momentum of Adam", type=utils.number(float, 0, 0.9999))
    setting("seed", "decides data order, flips, z and first weights", type=utils.number(int, 0, 2**32 - 1))
    setting("flip", "mirror half of the images at random", action=argparse.BooleanOptionalAction)
    kinds = ["auto", "float32", "mixed_bfloat16", "mixed_float16"]
    setting("precision", "what layers compute in; auto: what is fastest without harm", choices=kinds)
    setting("image_size", "side of the images in pixels", type=int, choices=[16, 32, 64, 128, 256])
    setting("c_dim", "colour channels", type=int, choices=[1, 3])
    setting("z_dim", "dimensions of z", type=count)
    setting("gf_dim", "the generator's channels at half the image size", type=count)
    setting("df_dim", "the discriminator's channels at half the image size", type=count)
    setting("ema", "decay of the generator's moving average, 0: none", type=utils.number(float, 0, 0.999999))
    return parser, parser.parse_args()


def settings(args):
    """The settings of this run: the flags given, then what the model was trained with, then the defaults.

    A new run with --init has that model's architecture.
    """
    resumed, saved = bool(utils.find_checkpoints(args.checkpoint_dir)), {"architecture": {}, "training": {}}
    if resumed:
        saved = utils.read_config(args.checkpoint_dir)
        saved["training"].setdefault("precision", "float32")
        if saved["weights"] != "float32":
            raise utils.UserError(
                f"--checkpoint_dir {args.checkpoint_dir}: holds weights without the state of their training; "
                "start from them with --init, in another --checkpoint_dir"
            )
    elif utils.find_original(args.checkpoint_dir):
        raise utils.UserError(
            f"--checkpoint_dir {args.checkpoint_dir}: holds a model of the original code; "
            "start from its weights with --init, in another --checkpoint_dir"
        )
    elif args.init:
        saved["architecture"] = read_architecture(args.init)
        del saved["architecture"]["ema"]  # no part of the networks
    config = {}
    for part, defaults in DEFAULTS.items():
        given = {name: getattr(args, name) for name in defaults if getattr(args, name) is not None}
        config[part] = defaults | {name: saved[part][name] for name in defaults if name in saved[part]} | given
    flag = "checkpoint_dir" if resumed else "init"
    for name, value in saved["architecture"].items():
        if config["architecture"][name] != value:
            raise utils.UserError(
                f"--{name} {config['architecture'][name]}: the model in {getattr(args, flag)} has {name} {value}; "
                f"leave the flag out, or choose another --{flag}"
            )
    precisions = saved["training"].get("precision"), config["training"]["precision"]
    if resumed and precisions[0] != precisions[1] and "mixed_float16" in precisions:
        raise utils.UserError(
            f"--precision {precisions[1]}: the run in {args.checkpoint_dir} has {precisions[0]}, and mixed_float16 "
            "cannot follow or be followed by another; leave the flag out, or choose another --checkpoint_dir"
        )
    return config, resumed


def read_architecture(init):
    """How the networks of the model to start from are built."""
    if original := utils.find_original(init):
        with utils.quiet_tensorflow():
            from model import read_original
        return read_original(original)[0]
    if not utils.find_checkpoints(init):
        raise utils.UserError(f"--init {init}: holds no model; choose another directory")
    return utils.read_config(init)["architecture"]


def main():
    parser, args = parse_args()
    return parser.run(train, args)


def train(args):
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows each line at once, and keeps it if we are killed
    if not Path(args.dataset).is_dir():
        raise utils.UserError(f"--dataset {args.dataset}: no such directory; give a folder of images")
    config, resumed = settings(args)
    for flag in ("checkpoint_dir", "sample_dir", "log_dir"):
        utils.make_directory(getattr(args, flag), f"--{flag}")
    lock = utils.lock(args.checkpoint_dir, "--checkpoint_dir")  # noqa: F841, held until the process ends
    name = Path(args.checkpoint_dir).resolve().name
    grids = [path.name for path in Path(args.sample_dir).iterdir()]
    if not resumed and any(re.fullmatch(rf"{re.escape(name)}_\d{{6,}}\.png", grid) for grid in grids):
        raise utils.UserError(f"--sample_dir {args.sample_dir}: holds another run's {name}_*.png; choose another")

    with utils.quiet_tensorflow():
        import ops
        from dataset import ImageFolder
        from model import DCGAN

        device = ops.use_device(args.deterministic)
    print(device)
    architecture, training = config["architecture"], config["training"]
    precision = training.pop("precision")
    if precision == "auto":
        precision = ops.fastest_precision()
    size, channels, seed = architecture["image_size"], architecture["c_dim"], training["seed"]
    images = ImageFolder(args.dataset, size, channels, args.train_size, seed, args.cache_mb)
    per_epoch = len(images) // min(training["batch_size"], len(images))
    place = "in memory" if images.images is not None else "read anew each epoch"
    print(f"images: {len(images)}, {place}; steps an epoch: {per_epoch}")
    if args.epoch * per_epoch < utils.FACES_AFTER and not (resumed or args.init):
        print(
            f"recognisable faces take about {utils.FACES_AFTER} steps, --epoch {-(-utils.FACES_AFTER // per_epoch)}, "
            "and thousands of photos; with fewer, complete.py does better with checkpoints/faces-64"
        )

    ops.keras.utils.set_random_seed(seed)
    with ops.memory_and_disk("--batch_size, --log_dir"):
        with ops.strategy().scope():
            dcgan = DCGAN(**architecture, precision=precision)
        if resumed and args.init:
            print(f"{args.checkpoint_dir}: holds a run, --init is ignored; a new run needs another --checkpoint_dir")
        elif args.init:
            source = DCGAN.load(args.init)
            dcgan.start_from(source)
            print(f"{args.init}: starting from its weights after step {int(source.step)}")
        signal = dcgan.train(
            images,
            epoch=args.epoch,
            checkpoint_dir=args.checkpoint_dir,
            sample_dir=args.sample_dir,
            log_dir=args.log_dir,
            eval_every=args.eval_every,
            jit_compile=args.jit_compile,
            **training,
        )
    following = "stopped; the same command goes on from there" if signal else "a higher --epoch trains longer"
    print(f"{args.checkpoint_dir}: {int(dcgan.epoch)} of {args.epoch} epochs done, step {int(dcgan.step)}; {following}")
    return 128 + signal if signal else 0


if __name__ == "__main__":
    sys.exit(main())
