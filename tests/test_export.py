"""The formats that others load: each by its own runtime, against the networks they were made of."""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import cli

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx.convert  # noqa: F401, see below
from ai_edge_litert.interpreter import Interpreter
from conftest import RNG, images, one_line, run, zs
from tensorflow.lite.tools import flatbuffer_utils

import export
from completion import formats
from completion.encoder import Encoder
from model import DCGAN

os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which tf2onnx sets, for all tests of this process


def from_weights(folder, name):
    dcgan = DCGAN.load(folder)
    encoder, _ = Encoder.load(folder, dcgan)
    return {
        "generator": lambda z: {"images": dcgan.inference_generator(z, training=False)},
        "discriminator": lambda images: {"logits": dcgan.discriminator(images, training=False)},
        "encoder": lambda shown, known: {"z": encoder.guess(shown, known)},
    }[name]


def from_saved_model(folder, name):
    call = tf.saved_model.load(str(folder / name)).signatures["serving_default"]
    return lambda **values: call(**{key: tf.constant(value) for key, value in values.items()})


def from_keras(folder, name):
    model = keras.models.load_model(folder / f"{name}.keras")
    return lambda **values: model(
        [values[tensor.name] for tensor in model.inputs] if len(values) > 1 else [*values.values()][0]
    )


def from_onnx(folder, name):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    names = [output.name for output in session.get_outputs()]
    return lambda **values: dict(zip(names, session.run(names, values), strict=True))


def from_litert(folder, name):
    return Interpreter(str(folder / f"{name}.tflite")).get_signature_runner()  # it resizes its inputs as it is called


RUNTIMES = dict(
    weights=from_weights, saved_model=from_saved_model, keras=from_keras, onnx=from_onnx, litert=from_litert
)


def shake(network, rng, scale):
    """Random weights that half precision holds exactly."""
    for variable in network.variables:
        values = rng.normal(0, scale, variable.shape)
        values = np.abs(values) + 0.5 if "variance" in variable.path else values
        variable.assign(values.astype(np.float16).astype(np.float32))


@pytest.fixture(scope="module")
def dcgan(tiny_dcgan):
    dcgan, rng = tiny_dcgan(ema=0.9), np.random.default_rng(2)
    for network in dcgan.networks.values():
        shake(network, rng, 0.3)
    return dcgan


@pytest.fixture(scope="module")
def encoder(dcgan):
    encoder = Encoder(dcgan)
    shake(encoder.network, np.random.default_rng(3), 0.2)
    return encoder


@pytest.fixture(scope="module")
def exported(dcgan, encoder, tmp_path_factory):
    """A function that gives the folder with all networks in a format; each is written once."""

    @functools.cache
    def write(form):
        folder = tmp_path_factory.mktemp(form) / "model"
        if form == "weights":
            export.write_weights(folder, dcgan, encoder, None, folder)
        else:
            formats.write(folder, dcgan, encoder, form)
        return folder

    return write


def test_all_formats_are_tested():
    assert tuple(RUNTIMES) == export.FORMATS == ("weights", *formats.WRITERS)
    assert formats.LOADING.keys() == formats.WRITERS.keys()


@pytest.mark.parametrize("form", RUNTIMES)
def test_each_format_computes_what_the_networks_do(dcgan, encoder, exported, form):
    known = RNG.integers(0, 2, (3, 16, 16, 1)).astype(np.float32)
    y, z = images(3), zs(3)
    expected = {
        "generator": ({"z": z}, "images", dcgan.generator_ema(z, training=False)),
        "discriminator": ({"images": y}, "logits", dcgan.discriminator(y, training=False)),
        "encoder": ({"shown": y * known, "known": known}, "z", encoder.guess(y * known, known)),
    }
    assert np.abs(expected["generator"][2] - dcgan.generator(z, training=False)).max() > 0.1
    for name, (given, output, values) in expected.items():
        call = RUNTIMES[form](exported(form), name)
        assert np.std(values) > 0.01
        for part in (slice(3), slice(1)):
            found = call(**{key: value[part] for key, value in given.items()})
            assert list(found) == [output]
            np.testing.assert_allclose(found[output], values[part], rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", formats.LOADING)
def test_the_code_beside_a_model_loads_it(dcgan, exported, form, monkeypatch):
    monkeypatch.chdir(exported(form))
    text = Path("README.md").read_text()
    assert "- generator: z (N, 5), " in text and "- encoder: shown (N, 16, 16, 3), " in text
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(snippet, names := {"z": zs(2)})
    np.testing.assert_allclose(names["images"], dcgan.draw(names["z"]), atol=1e-4)


def test_what_goes_in_and_out_is_told_in_the_file(exported):
    text = "generator: z (N, 5), float32 in [-1, 1] -> images (N, 16, 16, 3), float32 in [-1, 1]"
    assert (exported("saved_model") / "generator/assets.extra/README.txt").read_text() == f"{text}\n"
    stored = onnx.load(exported("onnx") / "generator.onnx")
    onnx.checker.check_model(stored)
    assert stored.doc_string == text
    told = {prop.key: prop.value for prop in stored.metadata_props}
    assert told == dict.fromkeys(("z", "images"), "float32 in [-1, 1]")
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in stored.graph.output]
    assert shapes == [["N", 16, 16, 3]]
    assert flatbuffer_utils.read_model(str(exported("litert") / "generator.tflite")).description.decode() == text


@pytest.mark.slow
def test_keras_needs_nothing_of_this_code(dcgan, exported, tmp_path):
    np.save(tmp_path / "z.npy", zs(2))
    code = """if True:
        import pathlib, sys, keras, numpy
        models = {path.stem: keras.models.load_model(path) for path in pathlib.Path(sys.argv[1]).glob("*.keras")}
        assert set(models) == {"generator", "discriminator", "encoder"} and "ops" not in sys.modules
        numpy.save("images.npy", models["generator"](numpy.load("z.npy"))["images"])"""
    subprocess.run([sys.executable, "-I", "-c", code, exported("keras")], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), dcgan.draw(np.load(tmp_path / "z.npy")), atol=1e-4)


def test_the_script_writes_a_new_folder(trained, tmp_path):
    source = trained / "checkpoints/mine"
    done = run("export.py", "out", "--checkpointDir", source, "--format", "onnx", cwd=tmp_path)
    lacking = f"without encoder, as the model has none; ./train-encoder.py --checkpointDir {source} --dataset DIR"
    assert done.stdout == f"out: generator, discriminator of step 12 as onnx; 0 MB\n{lacking} learns both\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "discriminator.onnx", "generator.onnx"}
    for flags, word in (
        (["out", "--checkpointDir", source], "OUT out: is not empty"),
        (["new", "--checkpointDir", "nowhere"], "--checkpointDir nowhere: holds no model"),
        (["new", "--checkpointDir", source, "--format", "torch"], "--format: invalid choice: 'torch'"),
    ):
        one_line(run("export.py", "--format", "onnx", *flags, cwd=tmp_path, status=2), word)
    assert not (tmp_path / "new").exists()


def flags(trained, tmp_path, form):
    return argparse.Namespace(out=str(tmp_path / "out"), checkpointDir=str(trained / "checkpoints/mine"), format=form)


def test_a_package_that_is_not_there_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cli.UserError, match="--format onnx: needs the package tf2onnx; pip install tf2onnx"):
        export.export(flags(trained, tmp_path, "onnx"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.12.4")
    with pytest.raises(cli.UserError, match="--format litert: needs Keras 3.13, .*; pip install 'keras>=3.13'"):
        export.export(flags(trained, tmp_path, "litert"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), tf.errors.ResourceExhaustedError(None, None, "No space left")]
)
def test_a_full_disk_leaves_nothing(trained, tmp_path, monkeypatch, error):
    def fail(model, path, text):
        Path(path).write_text("half of it")
        raise error

    monkeypatch.setitem(formats.WRITERS, "keras", fail)
    with pytest.raises(cli.UserError, match=r"out: .*\(No space left\)"):
        export.export(flags(trained, tmp_path, "keras"))
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "out"])
