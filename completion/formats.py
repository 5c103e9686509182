"""A trained model in formats that need nothing of this code: Keras, SavedModel, ONNX and LiteRT.

    write("OUT", dcgan, encoder, "onnx")

Batches are of any size; inputs and outputs have the names and ranges in `MEANINGS`.
"""

from pathlib import Path

import keras
import tensorflow as tf

import ops

MEANINGS = {
    "z": "float32 in [-1, 1]",
    "images": "float32 in [-1, 1]",
    "logits": "float32; the sigmoid of one is the probability that the image is real",
    "shown": "float32, images in [-1, 1] with 0 where they are unknown",
    "known": "float32, 1 where a pixel is known and 0 where it is not",
}
USE = "N is any number. Draw z uniformly from its range; grey levels are (images + 1) * 127.5."
LOADING = {
    "saved_model": """import tensorflow as tf
generator = tf.saved_model.load("generator").signatures["serving_default"]
images = generator(z=tf.constant(z))["images"]""",
    "keras": """import keras
generator = keras.models.load_model("generator.keras")
images = generator(z)["images"]""",
    "onnx": """import onnxruntime
generator = onnxruntime.InferenceSession("generator.onnx")
(images,) = generator.run(["images"], {"z": z})""",
    "litert": """from ai_edge_litert.interpreter import Interpreter
generator = Interpreter("generator.tflite").get_signature_runner()
images = generator(z=z)["images"]""",
}


def models(dcgan, encoder=None):
    """The inference generator, the discriminator and the encoder, if there is one, as Keras models by name."""
    pixels, side = dcgan.image_shape, dcgan.image_size
    found = {
        "generator": plain(dcgan.inference_generator, {"z": (dcgan.z_dim,)}, "images"),
        "discriminator": plain(dcgan.discriminator, {"images": pixels}, "logits"),
    }
    if encoder:
        found["encoder"] = plain(encoder.network, {"shown": pixels, "known": (side, side, 1)}, "z")
    return found


def plain(network, inputs, output):
    """The same network of Keras' own layers alone, from `inputs`, shapes by name, to a dict with `output`."""
    given = [keras.Input(shape, name=name) for name, shape in inputs.items()]
    values = keras.layers.Concatenate()(given) if len(given) > 1 else given[0]
    for layer in network.layers:
        kind = keras.layers.BatchNormalization if isinstance(layer, ops.BatchNormalization) else type(layer)
        values = kind.from_config(layer.get_config())(values)
    model = keras.Model(given if len(given) > 1 else given[0], {output: values}, name=network.name)
    model.set_weights(network.get_weights())
    return model


def describe(model):
    """A line on a model's inputs and output: names, shapes and ranges."""
    shapes = {tensor.name: tensor.shape for tensor in model.inputs} | {k: v.shape for k, v in model.output.items()}
    *inputs, output = (
        f"{name} ({', '.join(map(str, ('N', *shape[1:])))}), {MEANINGS[name]}" for name, shape in shapes.items()
    )  # fmt: skip
    return f"{model.name}: {'; and '.join(inputs)} -> {output}"


def write(folder, dcgan, encoder, form):
    """Write each network in a format, and a README.md on how they are used, to a new folder; returns their names."""
    found, texts = models(dcgan, encoder), []
    Path(folder).mkdir()
    for name, model in found.items():
        texts.append(describe(model))
        WRITERS[form](model, f"{folder}/{name}", texts[-1])
    listed = "\n".join(f"- {text}" for text in texts)
    Path(folder, "README.md").write_text(f"{listed}\n\n{USE}\n\n```python\n{LOADING[form]}\n```\n")
    return list(found)


def function(model):
    """A model as a `tf.function`, and the specs of its arguments."""
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in model.inputs]
    return tf.function(lambda *values: model(values if len(values) > 1 else values[0], training=False)), specs


def write_saved_model(model, path, text):
    """Write a folder, with `text` in a file among its assets."""
    module = tf.Module()  # Keras' own export would write all weights twice
    module.weights = [variable.value for variable in model.variables]
    module.serve, specs = function(model)
    tf.saved_model.save(module, path, signatures=module.serve.get_concrete_function(*specs))
    extra = Path(path, "assets.extra")
    extra.mkdir()
    (extra / "README.txt").write_text(f"{text}\n")


def write_keras(model, path, text):
    """Write path.keras, in which there is no place for `text`."""
    model.save(f"{path}.keras")


def write_onnx(model, path, text):
    """Write path.onnx, with `text` as its documentation; needs the package tf2onnx."""
    import tf2onnx

    proto, _ = tf2onnx.convert.from_function(*function(model), opset=17)
    proto.doc_string = proto.graph.doc_string = text
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
        proto.metadata_props.add(key=value.name, value=MEANINGS[value.name])
    Path(f"{path}.onnx").write_bytes(proto.SerializeToString())


def write_litert(model, path, text):
    """Write path.tflite, with `text` as its description."""
    from tensorflow.lite.tools import flatbuffer_utils

    model.export(f"{path}.tflite", format="litert", verbose=False)
    stored = flatbuffer_utils.read_model(f"{path}.tflite")
    stored.description = text
    flatbuffer_utils.write_model(stored, f"{path}.tflite")


WRITERS = {"saved_model": write_saved_model, "keras": write_keras, "onnx": write_onnx, "litert": write_litert}
