"""The formats that others load: each by its own runtime, against the networks they were made of."""

import argparse
import importlib.util
import re
import runpy
import subprocess
import sys

import cli

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from conftest import RNG, ROOT, images, run, zs
from tensorflow.lite.tools import flatbuffer_utils

import formats
from encoder import Encoder
from model import DCGAN


def from_saved_model(path):
    call = tf.saved_model.load(str(path)).signatures["serving_default"]
    return lambda **values: call(**{name: tf.constant(value) for name, value in values.items()})


def from_keras(path):
    model = keras.models.load_model(f"{path}.keras")
    return lambda **values: model(list(values.values()) if len(values) > 1 else next(iter(values.values())))


def from_onnx(path):
    session = onnxruntime.InferenceSession(f"{path}.onnx")
    names = [output.name for output in session.get_outputs()]
    return lambda **values: dict(zip(names, session.run(names, values), strict=True))


RUNTIMES = {
    "saved_model": from_saved_model,
    "keras": from_keras,
    "onnx": from_onnx,
    "litert": lambda path: Interpreter(f"{path}.tflite").get_signature_runner(),
}


@pytest.fixture
def dcgan(tiny_dcgan):
    return tiny_dcgan()


@pytest.fixture
def encoder(dcgan):
    encoder = Encoder(dcgan)
    for variable in encoder.network.variables:
        values = RNG.normal(0, 0.2, variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return encoder


@pytest.mark.parametrize("form", RUNTIMES)
def test_each_format_computes_what_the_networks_do(dcgan, encoder, form, tmp_path):
    known = RNG.integers(0, 2, (3, 16, 16, 1)).astype(np.float32)
    y, z = images(3), zs(3)
    expected = {
        "generator": ({"z": z}, "images", dcgan.sampler(z, training=False)),
        "discriminator": ({"images": y}, "logits", dcgan.discriminator(y, training=False)),
        "encoder": ({"shown": y * known, "known": known}, "z", encoder.guess(y * known, known)),
    }
    models = formats.models(dcgan, encoder)
    assert set(models) == set(expected)
    for name, (given, output, values) in expected.items():
        formats.WRITERS[form](models[name], tmp_path / name, formats.describe(models[name]))
        call = RUNTIMES[form](tmp_path / name)
        assert np.std(values) > 0.01
        for part in (slice(3), slice(1)):
            found = call(**{key: value[part] for key, value in given.items()})
            assert list(found) == [output]
            np.testing.assert_allclose(found[output], values[part], rtol=0, atol=1e-4)


def test_what_goes_in_and_out_is_told_in_the_file(dcgan, tmp_path):
    model = formats.models(dcgan)["generator"]
    text = "generator: z (N, 5), float32 in [-1, 1] -> images (N, 16, 16, 3), float32 in [-1, 1]"
    assert formats.describe(model) == text
    for form in ("onnx", "litert"):
        formats.WRITERS[form](model, tmp_path / "generator", text)
    stored = onnx.load(tmp_path / "generator.onnx")
    assert stored.doc_string == text
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in stored.graph.output]
    assert shapes == [["N", 16, 16, 3]]
    assert flatbuffer_utils.read_model(str(tmp_path / "generator.tflite")).description.decode() == text


def test_keras_needs_nothing_of_this_code(dcgan, tmp_path):
    formats.write_keras(formats.models(dcgan)["generator"], tmp_path / "generator", "")
    np.save(tmp_path / "z.npy", zs(2))
    code = "import sys, keras, numpy; model = keras.models.load_model('generator.keras'); "
    code += "numpy.save('images.npy', model(numpy.load('z.npy'))['images']); assert 'ops' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True)
    expected = dcgan.sampler(np.load(tmp_path / "z.npy"), training=False)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-4)


def test_the_script_tells_how_to_load_what_it_wrote(trained, tmp_path, monkeypatch):
    source = trained / "checkpoints/mine"
    done = run("export.py", "out", "--checkpointDir", source, "--format", "onnx", cwd=tmp_path)
    assert done.stdout == "out: generator, discriminator of step 12 as onnx; 0 MB\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "discriminator.onnx",
        "generator.onnx",
    ]
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    exec(snippet, names := {"z": zs(3)})
    np.testing.assert_allclose(names["images"], DCGAN.load(source).draw(names["z"]), atol=1e-4)


def test_a_package_that_is_not_there_is_named(trained, tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "export.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    flags = dict(out=str(tmp_path / "out"), checkpointDir=str(trained / "checkpoints/mine"), format="onnx")
    with pytest.raises(cli.UserError, match="--format onnx: needs the package tf2onnx; pip install tf2onnx"):
        script["export"](argparse.Namespace(**flags))
    assert not list(tmp_path.iterdir())
