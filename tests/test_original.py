"""Models of the original code, which was TensorFlow 1's: they are made here as it made them, and loaded."""

import contextlib
import itertools
import json
import runpy

import cli

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, images, one_line, run, zs
from PIL import Image

import checkpoint
import utils
from model import DCGAN

V1 = tf.compat.v1


class Original:
    """The networks of the original code in a TensorFlow 1 session, in inference mode, with random weights."""

    def __init__(self, size=16, c_dim=3, z_dim=5, dim=8, scopes=("generator", "discriminator")):
        self.graph = tf.Graph()
        with self.graph.as_default():
            V1.set_random_seed(0)
            self.z = V1.placeholder(tf.float32, [None, z_dim])
            self.images = V1.placeholder(tf.float32, [None, size, size, c_dim])
            with V1.variable_scope(scopes[0]):
                self.generated = self.generator(size, c_dim, dim)
            with V1.variable_scope(scopes[1]):
                self.logits = self.discriminator(size, dim)
            loss = tf.reduce_sum(self.generated) + tf.reduce_sum(self.logits)
            V1.train.AdamOptimizer(0.1, beta1=0.5).minimize(loss)
            self.session = V1.Session()
            self.session.run(V1.global_variables_initializer())

    @staticmethod
    def variable(name, *shape):
        low, high = (0.3, 1.5) if name in ("gamma", "moving_variance") else (-0.15, 0.15)
        trainable = not name.startswith("moving")
        return V1.get_variable(name, shape, initializer=V1.random_uniform_initializer(low, high), trainable=trainable)

    def linear(self, x, units, name):
        with V1.variable_scope(name):
            return tf.matmul(x, self.variable("Matrix", x.shape[1], units)) + self.variable("bias", units)

    def batch_norm(self, x, name):
        with V1.variable_scope(name):
            beta, gamma, mean, variance = (
                self.variable(part, x.shape[-1]) for part in ("beta", "gamma", "moving_mean", "moving_variance")
            )
            return gamma * (x - mean) / tf.sqrt(variance + 1e-5) + beta

    def generator(self, size, c_dim, dim):
        channels = dim * size // 8
        x = tf.reshape(self.linear(self.z, 4 * 4 * channels, "g_h0_lin"), [-1, 4, 4, channels])
        i, side = 0, 4
        while side < size:
            x = tf.nn.relu(self.batch_norm(x, f"g_bn{i}"))
            i, side = i + 1, side * 2
            filters = c_dim if side == size else dim * size // (2 * side)
            with V1.variable_scope(f"g_h{i}"):
                w = self.variable("w", 5, 5, filters, x.shape[-1])
                shape = [tf.shape(x)[0], side, side, filters]
                x = V1.nn.conv2d_transpose(x, w, shape, strides=[1, 2, 2, 1], padding="SAME")
                x = tf.nn.bias_add(x, self.variable("biases", filters))
        return tf.nn.tanh(x)

    def discriminator(self, size, dim):
        x, i, side = self.images, 0, size
        while side > 4:
            filters, side = dim * size // side, side // 2
            with V1.variable_scope(f"d_h{i}_conv"):
                w = self.variable("w", 5, 5, x.shape[-1], filters)
                x = V1.nn.conv2d(x, w, strides=[1, 2, 2, 1], padding="SAME")
                x = tf.nn.bias_add(x, self.variable("biases", filters))
            x = self.batch_norm(x, f"d_bn{i}") if i else x
            x = tf.maximum(x, 0.2 * x)
            i += 1
        return self.linear(tf.reshape(x, [-1, 16 * filters]), 1, f"d_h{i - 1}_lin")

    def save(self, directory, step, version=V1.train.SaverDef.V2):
        with self.graph.as_default():
            V1.train.Saver(write_version=version).save(self.session, str(directory / "DCGAN.model"), global_step=step)
            return {v.op.name: value for v in V1.global_variables() for value in [self.session.run(v)]}

    def run(self, output, **inputs):
        return self.session.run(getattr(self, output), {getattr(self, name): x for name, x in inputs.items()})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a tiny model of step 500, its networks and its variables by name."""
    home = tmp_path_factory.mktemp("original")
    networks = Original()
    return home, networks, networks.save(home, 500)


@pytest.mark.parametrize(
    "sizes, scopes, version",
    [
        (dict(size=32, c_dim=3), ("generator", "discriminator"), V1.train.SaverDef.V2),
        (dict(size=16, c_dim=1), ("", ""), V1.train.SaverDef.V1),
    ],
)
def test_the_networks_compute_what_the_original_computed(tmp_path, sizes, scopes, version):
    networks = Original(**sizes, scopes=scopes)
    networks.save(tmp_path, 99)
    names = networks.save(tmp_path, 1002, version)
    assert any(name.endswith("g_h1/w/Adam") for name in names)
    assert (tmp_path / "DCGAN.model-1002").exists() == (version == V1.train.SaverDef.V1)
    (tmp_path / "checkpoint").unlink()  # it may name another machine's folder
    dcgan = DCGAN.load(tmp_path)
    size, c_dim = sizes["size"], sizes["c_dim"]
    assert dcgan.architecture == dict(image_size=size, c_dim=c_dim, z_dim=5, gf_dim=8, df_dim=8, ema=0.0)
    assert dcgan.step == 1002

    z, x = zs(4), images(4, size, c_dim)
    generated, logits = networks.run("generated", z=z), networks.run("logits", images=x)
    assert generated.std() > 0.05 and logits.std() > 0.05 and np.abs(generated).max() < 1
    np.testing.assert_allclose(dcgan.inference_generator(z, training=False), generated, atol=1e-5)
    np.testing.assert_allclose(dcgan.discriminator(x, training=False), logits, atol=1e-5)


def write(directory, shapes, step=60502):
    """Write variables of these shapes, the k-th of them full of k, under the name of the original's checkpoints."""
    tensors = [tf.fill(shape, float(k)) for k, shape in enumerate(shapes.values())]
    tf.raw_ops.SaveV2(
        prefix=str(directory / f"DCGAN.model-{step}"),
        tensor_names=list(shapes),
        shape_and_slices=[""] * len(shapes),
        tensors=tensors,
    )


def variables(channels, z_dim, g="", d=""):
    """The shapes, by name, of a model of colour images: G's layers have these channels, and D's in reverse order."""
    norms = {f"{g}g_bn{i}": count for i, count in enumerate(channels)}
    values = 4 * 4 * channels[0]
    shapes = {f"{g}g_h0_lin/Matrix": (z_dim, values), f"{g}g_h0_lin/bias": (values,)}
    for i, (inputs, outputs) in enumerate(itertools.pairwise([*channels, 3]), 1):
        shapes |= {f"{g}g_h{i}/w": (5, 5, outputs, inputs), f"{g}g_h{i}/biases": (outputs,)}
    for i, (inputs, outputs) in enumerate(itertools.pairwise([3, *reversed(channels)])):
        shapes |= {f"{d}d_h{i}_conv/w": (5, 5, inputs, outputs), f"{d}d_h{i}_conv/biases": (outputs,)}
        norms |= {f"{d}d_bn{i}": outputs} if i else {}
    for name, count in norms.items():
        shapes |= {f"{name}/{part}": (count,) for part in ("beta", "gamma", "moving_mean", "moving_variance")}
    return shapes | {f"{d}d_h{i}_lin/Matrix": (values, 1), f"{d}d_h{i}_lin/bias": (1,)}


def test_the_published_model_fits(tmp_path):
    """That is the face model that came with the original code."""
    shapes = variables([512, 256, 128, 64], 100, "generator/", "discriminator/")
    write(tmp_path, shapes)
    dcgan = DCGAN.load(tmp_path)
    assert dcgan.architecture == dict(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64, ema=0.0)
    assert dcgan.step == 60502
    values = [float(np.unique(v).item()) for v in dcgan.generator.variables + dcgan.discriminator.variables]
    assert sorted(values) == list(range(len(shapes)))


SMALL = variables([16, 8], 5)  # those of TINY


@pytest.mark.parametrize(
    "changes, message",
    [
        # the wider generator of the original's later code
        ({"g_h1/w": (5, 5, 16, 16), "g_h2/w": (5, 5, 3, 16)}, r"g_h0_lin/Matrix should .*512\), but has .*5, 256"),
        ({"g_h0_lin/Matrix": (5, 1024)}, r"g_h0_lin/Matrix should .*5, 256\), but has .*5, 1024"),
        ({"g_h2/w": (5, 5, 4, 8)}, r"g_h2/w should .*3, 8\), but has .*4, 8"),
        ({"g_h3/w": (5, 5, 3, 8)}, r"g_h0_lin/Matrix should .*512\), but has .*5, 256"),
        ({"d_h1_lin/Matrix": None, "d_h2_lin/Matrix": (256, 1)}, "d_h1_lin/Matrix should .*, but is missing"),
        ({"g_h1/w": (), "g_h2/w": None, "d_h0_conv/w": (8,)}, r"g_h0_lin/Matrix should .*, but has .*5, 256"),
        (dict.fromkeys(SMALL) | {"dense/kernel": (3, 3), "step": ()}, "g_h0_lin/Matrix should .*, but is missing"),
    ],
)
def test_other_networks_are_told_by_the_first_variable_that_does_not_fit(tmp_path, changes, message):
    write(tmp_path, SMALL)
    assert DCGAN.load(tmp_path).architecture == dict(**TINY, ema=0.0)
    write(tmp_path, {name: shape for name, shape in (SMALL | changes).items() if shape is not None})
    with pytest.raises(cli.UserError, match=f"DCGAN.model-60502: {message}"):
        DCGAN.load(tmp_path)


def test_a_damaged_file_is_named(original, tmp_path):
    _, networks, _ = original
    for version, name in (("V1", "DCGAN.model-7"), ("V2", "DCGAN.model-8.data-00000-of-00001")):
        path = tmp_path / name
        networks.save(tmp_path, int(name[12]), getattr(V1.train.SaverDef, version))
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(cli.UserError, match=f"{name[:13]}: damaged"):
            DCGAN.load(tmp_path)


def test_a_new_run_starts_from_what_the_samples_are_drawn_with(tiny_dcgan):
    source = tiny_dcgan(ema=0.9)
    source.generator_ema.set_weights([w + 0.1 for w in source.generator.get_weights()])
    z, x = zs(3), images(3)
    for ema in (0.0, 0.5):
        dcgan = DCGAN(**TINY, ema=ema)
        dcgan.start_from(source)
        for network in (dcgan.generator, dcgan.inference_generator):
            np.testing.assert_array_equal(network(z, training=False), source.generator_ema(z, training=False))
        np.testing.assert_array_equal(dcgan.discriminator(x), source.discriminator(x))
        assert (dcgan.generator_ema is None) == (ema == 0) and dcgan.step == 0


# the scripts


def test_complete_with_an_original_model(original, folder, tmp_path):
    home, networks, _ = original
    flags = ["--checkpointDir", home, "--nIter", 3, "--candidates", 50, "--outDir", tmp_path / "out"]
    done = run("complete.py", folder, *flags, cwd=tmp_path)
    assert f"model: {home}, step 500" in done.stdout
    generated = networks.run("generated", z=np.load(tmp_path / "out/z.npy"))
    with Image.open(tmp_path / "out/hats_imgs/0003.png") as grid:
        assert np.abs(np.asarray(grid, int) - utils.image_grid(generated)).max() <= 1


def test_a_run_from_an_original_model(original, folder, tmp_path):
    home, _, variables = original
    flags = ["--dataset", folder, "--init", home, "--batch_size", 4, "--seed", 3, "--ema", 0.9]
    done = run("train-dcgan.py", *flags, "--epoch", 1, cwd=tmp_path)
    assert f"{home}: starting from its weights after step 500" in done.stdout
    assert "1 of 1 epochs done, step 2;" in done.stdout
    config = json.loads((tmp_path / "checkpoints/mine/config.json").read_text())
    assert config["architecture"] == dict(**TINY, ema=0.9) and config["training"]["seed"] == 3
    first, last = DCGAN(**TINY, ema=0.9), DCGAN(**TINY, ema=0.9)
    for dcgan, step in ((first, 0), (last, 2)):
        state, _ = checkpoint.make_state(dcgan.networks, {"step": 0}, {})
        state.restore(str(tmp_path / f"checkpoints/mine/ckpt-{step}")).expect_partial()
    for network, layer, ours, theirs in (
        ("generator", "g_h1", "kernel", "generator/g_h1/w"),
        ("generator_ema", "g_h1", "kernel", "generator/g_h1/w"),
        ("generator_ema", "g_bn1", "moving_mean", "generator/g_bn1/moving_mean"),
        ("discriminator", "d_h1_lin", "bias", "discriminator/d_h1_lin/bias"),
    ):
        before, after = (getattr(getattr(d, network).get_layer(layer), ours).numpy() for d in (first, last))
        np.testing.assert_array_equal(before, variables[theirs])
        assert (after != before).any()
    done = run("train-dcgan.py", *flags, "--epoch", 1, cwd=tmp_path)
    assert "holds a run, --init is ignored" in done.stdout and "step 2" in done.stdout


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A function that returns what train-dcgan.py makes of its flags, in a folder where `ours` holds a model."""
    architecture, training = dict(**TINY, ema=0.9), dict(batch_size=4, seed=7)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/ckpt-3.index").touch()
    (tmp_path / "ours/DCGAN.model-9.index").touch()  # ours go first
    checkpoint.write_config(tmp_path / "ours", dict(architecture=architecture, training=training))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "quiet_tensorflow", contextlib.nullcontext)  # it would tell later scripts to be loud
    script = runpy.run_path(str(ROOT / "train-dcgan.py"))

    def make(*flags):
        monkeypatch.setattr("sys.argv", ["train-dcgan.py", "--dataset", "images", *map(str, flags)])
        return script["settings"](script["parse_args"]()[1])

    return make


def test_settings_of_a_run_that_starts_from_another(settings, original):
    home, *_ = original
    _, training, _ = settings()
    assert settings("--init", "ours") == (dict(**TINY, ema=0.999), training, False)
    assert settings("--init", "ours", "--ema", 0, "--seed", 2) == (dict(**TINY, ema=0.0), training | {"seed": 2}, False)
    assert settings("--init", home, "--gf_dim", 8) == (dict(**TINY, ema=0.999), training, False)
    # a run that is older than --precision was in float32
    resumed = dict(**TINY, ema=0.9), training | dict(batch_size=4, seed=7, precision="float32"), True
    assert settings("--checkpoint_dir", "ours", "--init", "nowhere") == resumed


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--init", "nowhere"], "--init nowhere: holds no model"),
        (
            ["--init", "original", "--image_size", 32],
            "--image_size 32: the model in original has image_size 16.*--init",
        ),
        (["--init", "ours", "--z_dim", 7], "--z_dim 7: the model in ours has z_dim 5.*--init"),
        (["--checkpoint_dir", "original"], "--checkpoint_dir original: .* --init"),
    ],
)
def test_settings_that_contradict(settings, original, tmp_path, flags, message):
    (tmp_path / "original").symlink_to(original[0])
    with pytest.raises(cli.UserError, match=message):
        settings(*flags)


def test_other_networks_are_one_line_for_both_scripts(folder, tmp_path):
    write(tmp_path, SMALL | {"g_h1/w": (5, 5, 16, 16)})
    for flags in (["train-dcgan.py", "--init", tmp_path, "--dataset"], ["complete.py", "--checkpointDir", tmp_path]):
        one_line(run(*flags, folder, cwd=tmp_path, status=2), "DCGAN.model-60502", "g_h1/w")
