"""Files of weights: a directory with a config.json and TensorFlow's checkpoints, or with one of the original code.

config.json says how the networks are built and what they were trained with; whatever stands in it is checked before it
is used. TensorFlow is imported where weights are read or written, so that all else answers at once.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import cli

import original
import utils

OTHER_NETWORKS = "its networks are not those of the config.json beside it; restore that, or use another model"
FACES_AFTER = 1200  # steps of 64 images, until a model draws recognisable faces
SHIPPED = Path(__file__).resolve().parent / "checkpoints" / "faces-64"
# in config.json and as flags: what parses a value, the default, and what it is
ARCHITECTURE = {
    "image_size": (cli.one_of(16, 32, 64, 128, 256), 64, "side of the images in pixels"),
    "c_dim": (cli.one_of(1, 3), 3, "colour channels"),
    "z_dim": (cli.number(int, 1, 10**5), 100, "dimensions of z"),
    "gf_dim": (cli.number(int, 1, 10**4), 64, "the generator's channels at half the image size"),
    "df_dim": (cli.number(int, 1, 10**4), 64, "the discriminator's channels at half the image size"),
    "ema": (cli.number(float, 0, 0.999999), 0.999, "decay of the generator's moving average, 0: none"),
}
PRECISIONS = "float32", "mixed_bfloat16", "mixed_float16"
TRAINING = {
    "batch_size": (cli.number(int, 1, 10**6), 64, "images per step"),
    "learning_rate": (cli.number(float, 0, 1, above=True), 0.0002, "learning rate of Adam"),
    "beta1": (cli.number(float, 0, 0.9999), 0.5, "momentum of Adam"),
    "seed": (cli.number(int, 0, 2**32 - 1), 0, "decides data order, flips, z and first weights"),
    "flip": (cli.one_of(False, True), False, "mirror half of the images at random"),
    "precision": (cli.one_of("auto", *PRECISIONS), "auto", "what layers compute in; auto: the fastest without harm"),
}
COUNTS = {  # of steps, in config.json only
    "evaluated": (cli.number(int, 0, 2**31), 0, "the last step that was evaluated"),
    "pretrained_steps": (cli.number(int, 0, 2**31), 0, "steps behind the weights that the run started from"),
}
ENCODER, REFINER = "encoder", "refiner"  # folders beside a model
REFINER_TRAINING = TRAINING | {
    "batch_size": (TRAINING["batch_size"][0], 32, "images per step"),
    "learning_rate": (TRAINING["learning_rate"][0], 0.0004, "initial learning rate of Adam"),
}
ENCODER_TRAINING = TRAINING | {"learning_rate": (TRAINING["learning_rate"][0], 0.0005, "initial learning rate of Adam")}


def add_settings(group, table):
    """Give a parser a flag for each entry of a table; one that is not given is None."""
    shown = {"image_size": "SIZE", "c_dim": "{1,3}", "precision": f"{{auto,{','.join(PRECISIONS)}}}"}
    for name, (parse, default, text) in table.items():
        options = dict(action=argparse.BooleanOptionalAction) if name == "flip" else dict(type=parse)
        options |= dict(metavar=shown[name]) if name in shown else {}
        group.add_argument(f"--{name}", help=f"{text} ({default})", **options)


def settings(args, table, saved):
    """The value of each entry of a table: the flag given, else what is `saved` with the model, else the default."""
    given = {name: getattr(args, name) for name in table if getattr(args, name) is not None}
    return {name: default for name, (_, default, _) in table.items()} | saved | given


def check_precision(directory, saved, wanted, remedy):
    """Raise UserError if a run with one precision, `saved` or None, cannot resume with the one that is wanted."""
    if saved and saved != wanted and "mixed_float16" in (saved, wanted):
        why = f"the run in {directory} has {saved}, and none can change to or from mixed_float16"
        raise cli.UserError(f"--precision {wanted}: {why}; leave the flag out, or {remedy}")


def read_part_config(folder, architecture, script):
    """`read_config` of what `script` learned for a model; raises UserError if that has another architecture now."""
    config = read_config(folder)
    for name, value in config["architecture"].items():
        if name not in ("gf_dim", "ema") and value != architecture[name]:  # which it does not depend on
            why = f"{name} {value} is not the model's, {architecture[name]}"
            raise cli.UserError(f"{folder / 'config.json'}: {why}; remove the folder, and run {script}")
    return config


def read_parts(folder, dcgan, script, make, names=("step",)):
    """Yield what `script` learned for a model into a folder, at full precision, and its numbers of those `names`.

    First comes the best that a run has measured, then an exported one. `make` builds one of a precision, without its
    weights. One that cannot be read is reported on standard error.
    """
    for place in filter(find, (folder / "best", folder)):
        try:
            precision = read_part_config(place, dcgan.architecture, script)["weights"]
            if place == folder and precision == "float32":  # a run that has not measured it yet
                continue
            part = make(precision)
            numbers = restore(place, part.networks, names)
        except cli.UserError as error:
            print(f"skipped {error}", file=sys.stderr)
            continue
        part.step = numbers["step"]
        yield part if precision == "float32" else part.converted("float32"), numbers


def find(directory):
    """The checkpoints in a directory, as TensorFlow names them (".../ckpt-STEP"), the newest first."""
    found = [path.with_suffix("") for path in Path(directory).glob("ckpt-*.index") if path.is_file()]
    found = [path for path in found if re.fullmatch("ckpt-[0-9]+", path.name)]
    return [str(path) for path in sorted(found, key=lambda path: int(path.name[5:]), reverse=True)]


def newest(directory):
    """What a message calls the newest checkpoint in a directory, which may be another machine's."""
    return (find(directory) or ["the newest checkpoint"])[0]


def find_original(directory):
    """The newest checkpoint of the original code in a directory, or None; ours go first where both are there."""
    return None if find(directory) else original.find(directory)


def holds_model(directory):
    """Whether there is a checkpoint, ours or one of the original code, in a directory."""
    return bool(find(directory) or find_original(directory))


def choose(directory):
    """The checkpoint directory to use: the one asked for, else the user's own, else that of the pretrained model.

    Raises UserError if it holds no model.
    """
    candidates = [Path(directory)] if directory else [Path("checkpoints/mine"), SHIPPED]
    for candidate in candidates:
        if holds_model(candidate):
            return candidate
    flag = f" {directory}: holds no model" if directory else ": no model found in checkpoints/mine"
    raise cli.UserError(f"--checkpointDir{flag}; train one with train-dcgan.py, or name another folder")


def describe(directory, dcgan):
    """A line that names the model in use, and where few steps are behind it the pretrained one."""
    advice = f" (faces take about {FACES_AFTER}; --checkpointDir checkpoints/faces-64 is the pretrained model)"
    few = dcgan.step + dcgan.pretrained_steps < FACES_AFTER
    return f"model: {directory}, step {dcgan.step}{advice if few else ''}"


def channels(image_size, dim):
    """A network's channels at spatial sizes 4, 8, ... image_size / 2: dim at the widest, doubling up to 8 dim."""
    return [dim * min(8, image_size // (2 * size)) for size in (4, 8, 16, 32, 64, 128) if size < image_size]


def count_weights(architecture):
    """The weights of both networks but biases and the like, a dict by the setting that decides how many they are."""
    weights = {}
    for name in ("df_dim", "gf_dim"):
        widths = [*channels(architecture["image_size"], architecture[name]), architecture["c_dim"]]
        weights[name] = sum(25 * a * b for a, b in itertools.pairwise(widths))
    return weights | {"z_dim": 16 * widths[0] * architecture["z_dim"]}  # of gf_dim's


def check_size(directory, config):
    """Raise UserError if the checkpoints in a directory are all too small for its config, before networks are built.

    Networks of this size are built in no time, and larger ones could take all memory.
    """
    needed = {"float32": 4, "float16": 2}[config["weights"]] * sum(count_weights(config["architecture"]).values())
    sizes = [
        sum(p.stat().st_size for p in Path(directory).glob(f"{Path(path).name}.data-*")) for path in find(directory)
    ]
    if sizes and needed > max(2**24, *sizes):
        raise cli.UserError(f"{newest(directory)}: is too small, so {OTHER_NETWORKS}")


def check_memory(architecture, each, place, remedy):
    """Raise UserError, naming a setting after `place`, if networks of `each` bytes a weight do not fit in."""
    weights = count_weights(architecture)
    needed = each * sum(weights.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        name = max(weights, key=weights.get)
        why = f"such networks need {needed / 2**30:,.0f} GB of memory, and this machine has {memory / 2**30:,.0f}"
        raise cli.UserError(f"{place}{name} {architecture[name]}: {why}; {remedy}")


def read_config(directory):
    """The config of a checkpoint directory: "architecture" and "training", dicts, the type of its "weights", and those
    of `COUNTS` that are there.

    Raises UserError, naming the file, if it is missing or damaged, or holds an impossible value.
    """
    if path := find_original(directory):
        return {"architecture": original.architecture(path), "training": {}, "weights": "float32"}
    utils.check_name(directory)
    path = Path(directory) / "config.json"
    try:
        config = read_json(path)
        architecture = {name: checked(name, config["architecture"][name], ARCHITECTURE) for name in ARCHITECTURE}
        given = config.get("training", {})
        training = {name: checked(name, given[name], TRAINING) for name in TRAINING if name in given}
        counts = {name: checked(name, config[name], COUNTS) for name in COUNTS if name in config}
        weights = config.get("weights", "float32")
        if weights not in ("float32", "float16"):
            raise ValueError(f"weights {str(weights)[:40]!r} are neither float32 nor float16")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reasons = {ValueError: str(error), KeyError: f"{error} is missing"}
        why = getattr(error, "strerror", reasons.get(type(error), "it is no such JSON"))
        why = f"is not as train-dcgan.py writes it ({why})"
        raise cli.UserError(f"{path}: {why}; restore it, or use another model") from error
    check_memory(architecture, 4, f"{path}: ", "use a larger machine, or another model")
    return {"architecture": architecture, "training": training, "weights": weights} | counts


def read_json(path):
    """What a config.json holds; raises OSError or ValueError, among others."""
    if path.is_fifo():  # which would wait for ever
        raise ValueError("it is no file")
    with open(path, "rb") as file:
        return json.loads(file.read(2**16))  # more is no config


def checked(name, value, settings):
    """A value from a JSON file, if the flag of that name would take it; else ValueError."""
    parse, default, _ = settings[name]
    with contextlib.suppress(argparse.ArgumentTypeError):
        if type(value) in ((int, float) if type(default) is float else (type(default),)):
            return parse(str(value))
    raise ValueError(f"{name} {str(value)[:40]!r} is not a possible value")


def write_config(directory, config):
    """Write config.json; raises UserError, naming it, if that fails."""
    with utils.atomic_write(Path(directory) / "config.json", "x") as file:
        file.write(json.dumps(config, indent=2) + "\n")


def make_state(networks, numbers, optimizers):
    """What a checkpoint file holds: weights under their layers' names, whole numbers, optimizers; and the numbers."""
    import tensorflow as tf

    layers = {
        name: tf.train.Checkpoint(**{layer.name: layer for layer in network.layers if layer.weights})
        for name, network in networks.items()
    }
    numbers = {name: tf.Variable(value, dtype=tf.int64, trainable=False) for name, value in numbers.items()}
    return tf.train.Checkpoint(networks=tf.train.Checkpoint(**layers), **numbers, **optimizers), numbers


def save(directory, networks, numbers, optimizers, keep=3):
    """Write a checkpoint, numbered by the "step" of its `numbers`, and remove all but the last `keep` of them.

    networks, optimizers, numbers: dicts by name, the last of whole numbers. Raises UserError, leaving nothing
    half-written, if that fails.
    """
    import tensorflow as tf

    state, _ = make_state(networks, numbers, optimizers)
    check_list(directory)
    manager = tf.train.CheckpointManager(state, str(directory), max_to_keep=keep)
    try:
        manager.save(checkpoint_number=numbers["step"])
    except tf.errors.OpError as error:
        remove_unfinished(directory)
        why = f"step {numbers['step']} could not be saved ({cli.reason(error)}); is the disk full?"
        raise cli.UserError(f"{directory}: {why} With more room the same command resumes") from error
    # what a killed run wrote but did not list; a short list may itself have been lost, and then all is kept
    listed = {Path(path).name for path in manager.checkpoints}
    unlisted = [path for path in find(directory) if Path(path).name not in listed] if len(listed) == keep else []
    for path in unlisted:  # its index first: without it the rest is no checkpoint
        for file in sorted(Path(directory).glob(f"{Path(path).name}.*"), reverse=True):
            file.unlink()


def check_list(directory):
    """Remove TensorFlow's list of checkpoints if it is not as TensorFlow writes it.

    It would delete the files that are named there, wherever they are, once there are newer checkpoints.
    """
    path, number = Path(directory, "checkpoint"), r"[0-9.e+]+"
    line = rf'(all_)?model_checkpoint_paths?: "ckpt-[0-9]+"|(all_model_checkpoint|last_preserved)_timestamps?: {number}'
    with contextlib.suppress(OSError):
        text = path.read_text(errors="replace") if path.is_file() and path.stat().st_size < 2**16 else "?"
        if not all(re.fullmatch(line, part) for part in text.splitlines()):
            path.unlink()


def publish(directory, config, networks, numbers):
    """Write networks at half precision, with their config but not the state of their training, to a new directory.

    Raises UserError if it is not empty, or, before it is made, if a weight is too large for half precision.
    """
    for variable in itertools.chain.from_iterable(network.variables for network in networks.values()):
        if not math.isfinite(float(abs(variable.numpy().astype("float32")).max())):
            raise cli.UserError(f"export: {variable.path} does not fit into half precision")
    directory = utils.make_directory(directory, "export", empty=True)
    write_config(directory, config | {"weights": "float16"})
    save(directory, networks, numbers, {}, keep=1)


def restore(directory, networks, names=("step",), optimizers=None):
    """Read the newest good checkpoint, ours or one of the original code, into networks, and optimizers if any.

    A damaged one is reported on standard error. Returns the checkpoint's numbers of those `names`, a dict. Raises
    UserError if there is none, or if it holds other networks than config.json says.
    """
    import tensorflow as tf

    if path := find_original(directory):
        return {"step": original.restore(path, networks)}
    state, numbers = make_state(networks, dict.fromkeys(names, 0), optimizers or {})
    for path in find(directory):
        try:
            utils.check_files(f"{path}.")
            status = state.restore(path)
            status.assert_existing_objects_matched()
            if optimizers:
                status.assert_consumed()
            status.expect_partial()
            return {name: int(value.numpy()) for name, value in numbers.items()}
        except (AssertionError, ValueError) as error:
            raise cli.UserError(f"{path}: {OTHER_NETWORKS}") from error
        except (tf.errors.OpError, IndexError, OSError) as error:
            print(f"skipped {path}: damaged ({cli.reason(error)})", file=sys.stderr)
    raise cli.UserError(f"{directory}: holds no readable checkpoint; choose another directory, or train anew")


def keep_best(directory, config, measure, value, networks, numbers, optimizers):
    """Write a checkpoint to `directory`, in place of the one there, if the `value` of its `measure` is smaller.

    Values are comparable between runs with the same seed, number of images and networks; else the new one is kept.
    """
    try:
        best = read_json(directory / "config.json")
        comparable = all(best.get(name) == config.get(name) for name in ("architecture", "images", "fingerprint"))
        comparable &= best["training"]["seed"] == config["training"]["seed"]
        comparable &= find(directory) == [str(directory / f"ckpt-{best['step']}")]
        smallest = best[measure] + 0.0 if comparable else math.inf
    except (OSError, KeyError, TypeError, ValueError, RecursionError):  # there is none, or a killed run left half of it
        smallest = math.inf
    if value < smallest:
        save(directory, networks, numbers, optimizers, keep=1)
        write_config(directory, {**config, "step": numbers["step"], measure: value})


def lock(directory, flag):
    """Keep other processes out of a directory until the file that is returned is closed, or this process ends.

    Raises UserError, naming `flag`, if another one is in it, or naming the file if that is a link.
    """
    path = utils.inside(directory, ".lock")
    with utils.report_write_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    utils.lock(descriptor, f"{flag} {directory}: another process trains in it; wait for it, or choose another")
    return os.fdopen(descriptor, "w")


def remove_unfinished(directory):
    """Remove what a killed or failed save left: a checkpoint's index is the last of its files to be written."""
    for path in [*Path(directory).glob("ckpt-*"), *Path(directory).glob(".*.draft")]:
        if path.suffix == ".draft":
            path.unlink()
        elif re.fullmatch(r"ckpt-\d+_temp", path.name):
            path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(r"ckpt-\d+\.data-\d+-of-\d+", path.name) and not path.with_suffix(".index").exists():
            path.unlink()
