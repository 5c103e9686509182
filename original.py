"""Checkpoints of the original code, DCGAN.model-STEP, which was TensorFlow 1's and kept no config.json."""

import itertools
import re
from pathlib import Path

import cli

import utils


def find(directory):
    """The newest checkpoint of the original code in a directory, ".../DCGAN.model-STEP", or None."""
    names = [path.name.removesuffix(".index") for path in Path(directory).glob("DCGAN.model-*") if path.is_file()]
    names = [name for name in names if re.fullmatch("DCGAN.model-[0-9]+", name)]
    return str(Path(directory, max(names, key=lambda name: int(name[12:])))) if names else None


def read(path):
    """The networks' variables in a checkpoint: arrays by "layer/variable", as the scopes before that changed over time.

    Raises UserError, naming the file, if it is damaged.
    """
    with cli.quiet_tensorflow():
        import tensorflow as tf
    try:
        utils.check_files(path)
        reader = tf.train.load_checkpoint(path)
        names = {"/".join(name.split("/")[-2:]): name for name in reader.get_variable_to_shape_map()}
        return {name: reader.get_tensor(full) for name, full in names.items() if name.startswith(("g_", "d_"))}
    except (tf.errors.OpError, IndexError, OSError) as error:
        raise cli.UserError(f"{path}: damaged ({cli.reason(error)})") from error


def architecture(path):
    """How the networks in a checkpoint are built, as in config.json: what the shapes of its variables tell."""
    variables = read(path)

    def size(name, axis, usual):  # for what is missing the usual will do: `restore` names it
        shape = variables[name].shape if name in variables else ()
        return max(1, shape[axis]) if axis < len(shape) else usual

    layers = max(2, sum(f"g_h{i}/w" in variables for i in range(1, 7)))
    return dict(
        image_size=4 * 2**layers,
        c_dim=1 if size(f"g_h{layers}/w", 2, 3) == 1 else 3,
        z_dim=size("g_h0_lin/Matrix", 0, 100),
        gf_dim=size(f"g_h{layers}/w", 3, 64),
        df_dim=size("d_h0_conv/w", 3, 64),
        ema=0.0,
    )


def restore(path, networks):
    """Give networks, a dict by name, the weights of a checkpoint; returns the training steps behind them.

    Raises UserError, naming the file, if it is damaged, and at the first variable that does not fit.
    """
    values = read(path)
    for variable in itertools.chain.from_iterable(network.variables for network in networks.values()):
        layer, name = variable.path.split("/")[-2:]
        linear = layer.endswith("_lin")
        name = {"kernel": "Matrix" if linear else "w", "bias": "bias" if linear else "biases"}.get(name, name)
        value = values.get(f"{layer}/{name}")
        if value is None or value.shape != tuple(variable.shape):
            found = "is missing" if value is None else f"has {value.shape}"
            why = f"should have shape {tuple(variable.shape)}, but {found}"
            raise cli.UserError(f"{path}: {layer}/{name} {why}; these are other networks, choose another model")
        variable.assign(value)
    return int(path.rpartition("-")[2])
