"""The encoder: its network, losses and step, and how it is kept with its generator."""

import cli

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import RNG, changed, images, values, zs

import checkpoint
import ops
from completion import masks
from completion.encoder import HIDDEN_UNITS, Encoder
from model import DCGAN


def holes(count, kind="center"):
    return masks.holes(kind, [masks.make(kind, 16, seed=(i,)) for i in range(count)])


@pytest.fixture(scope="module")
def encoder(tiny):
    return Encoder(tiny)


def test_shapes_and_parameters(tiny_dcgan):
    for channels in (1, 3):
        dcgan = tiny_dcgan(c_dim=channels)
        encoder = Encoder(dcgan)
        # 16 pixels: convolutions to 8 and 16 channels, the latter with batch normalisation, then 4 x 4 x 16 values
        expected = 25 * (channels + 1) * 8 + 8 + 25 * 8 * 16 + 16 + 4 * 16
        expected += 256 * HIDDEN_UNITS + HIDDEN_UNITS + HIDDEN_UNITS * 5 + 5
        assert encoder.network.count_params() == expected
        z = encoder.guess(*holes(70).masked(images(70, channels=channels)))
        assert z.shape == (70, 5) and z.dtype == np.float32 and abs(z).max() <= 1


@pytest.mark.parametrize("kind", ["center", "lowres", "full"])
def test_losses_against_numpy(encoder, kind):
    x = images(3)
    shown, known = holes(3, kind).masked(x)
    error = abs(encoder.dcgan.draw(encoder.guess(shown, known)) - x)
    hidden = np.broadcast_to(known == 0, x.shape)
    overall, hole = encoder.losses(x, shown, known, training=False)
    np.testing.assert_allclose(overall, error.mean((1, 2, 3)), rtol=1e-4)
    expected = [e[h].mean() if h.any() else 0 for e, h in zip(error, hidden, strict=True)]
    np.testing.assert_allclose(hole, expected, rtol=1e-4)


def test_a_step_moves_the_encoder_alone_and_it_learns(tiny):
    keras.utils.set_random_seed(1)
    encoder = Encoder(tiny)
    x = encoder.dcgan.draw(zs(4))
    shown, known = holes(4).masked(x)
    before = values(encoder.dcgan.generator.variables), values(encoder.network.trainable_variables)
    optimizers = encoder.make_optimizers(0.001, 0.5)
    step = tf.function(encoder.train_step)
    losses = [step(x, shown, known, tf.constant(i, tf.int64), **optimizers) for i in range(40)]
    assert not any(changed(before[0], encoder.dcgan.generator.variables))
    assert all(changed(before[1], encoder.network.trainable_variables))
    first, last = losses[0], losses[-1]
    assert float(first["e_loss"]) == pytest.approx(float(first["e_loss_all"] + first["e_loss_hole"]), rel=1e-5)
    assert float(last["e_loss"]) < 0.5 * float(first["e_loss"])


def test_two_replicas_take_the_same_step_as_one_where_batch_norm_does_not_matter(tiny_dcgan, two_replicas):
    """Both halves of the batch are equal, so that the statistics of each share are those of the whole."""
    x = np.tile(images(2), (2, 1, 1, 1))
    shown, known = holes(4).masked(x)
    weights, results = None, []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            encoder = Encoder(tiny_dcgan())
        weights = weights or encoder.network.get_weights()
        encoder.network.set_weights(weights)
        optimizers = encoder.make_optimizers(0.01, 0.5)
        outputs = tf.function(encoder.train_step)(x, shown, known, tf.constant(0, tf.int64), **optimizers)
        results.append((float(outputs["e_loss"]), encoder.guess(shown, known)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-4)


@pytest.mark.parametrize("kind", ["center", "random", "grid"])
def test_what_lies_under_a_hole_has_no_say(encoder, kind):
    x, hole = images(3), holes(3, kind)
    hidden = np.broadcast_to(hole.masks == 0, x.shape)
    guesses = [encoder.guess(*hole.masked(np.where(hidden, other, x))) for other in (x, -x, np.nan)]
    np.testing.assert_array_equal(guesses[0], guesses[1])
    np.testing.assert_array_equal(guesses[0], guesses[2])


def keep(directory, dcgan, encoder, step, fingerprint):
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.write_config(directory, {"architecture": dcgan.architecture, "training": {}})
    checkpoint.save(directory, encoder.networks, {"step": step, "fingerprint": fingerprint}, {}, keep=1)


def test_the_best_encoder_of_this_generator_is_loaded(tiny_dcgan, tmp_path):
    dcgan = tiny_dcgan()
    assert Encoder.load(tmp_path, dcgan) == (None, False)
    encoders = [Encoder(dcgan) for _ in range(2)]
    keep(tmp_path / "encoder", dcgan, encoders[0], 7, dcgan.fingerprint())
    assert Encoder.load(tmp_path, dcgan) == (None, False)  # for it was not measured
    keep(tmp_path / "encoder/best", dcgan, encoders[1], 5, dcgan.fingerprint())
    loaded, other = Encoder.load(tmp_path, dcgan)
    assert loaded.step == 5 and not other
    shown = holes(2).masked(images(2))
    np.testing.assert_array_equal(loaded.guess(*shown), encoders[1].guess(*shown))
    # the generator was trained on
    dcgan.generator.trainable_variables[0].assign_add(0.01 * dcgan.generator.trainable_variables[0])
    assert Encoder.load(tmp_path, dcgan) == (None, True)
    keep(tmp_path / "encoder/best", dcgan, encoders[0], 3, dcgan.fingerprint())
    assert Encoder.load(tmp_path, dcgan)[0].step == 3


def test_an_encoder_that_cannot_be_used_is_named(tiny_dcgan, tmp_path, capsys):
    dcgan, other = tiny_dcgan(gf_dim=4), tiny_dcgan(z_dim=6)
    keep(tmp_path / "encoder/best", dcgan, Encoder(dcgan), 1, dcgan.fingerprint())
    assert Encoder.load(tmp_path, dcgan)[0].step == 1
    (weights,) = (tmp_path / "encoder/best").glob("*.data*")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert Encoder.load(tmp_path, dcgan) == (None, False)
    assert f"skipped {tmp_path}/encoder/best: holds no readable checkpoint" in capsys.readouterr().err
    keep(tmp_path / "encoder/best", other, Encoder(other), 2, 1)
    assert Encoder.load(tmp_path, dcgan) == (None, False)
    assert "encoder/best/config.json: z_dim 6 is not the model's, 5" in capsys.readouterr().err
    # an exported one is still there
    Encoder(dcgan).export(tmp_path / "small")
    (tmp_path / "encoder/best").rename(tmp_path / "small/encoder/best")
    assert Encoder.load(tmp_path / "small", dcgan)[0].step == 0


def test_an_exported_encoder_belongs_to_the_exported_generator(tiny_dcgan, tmp_path):
    dcgan = tiny_dcgan(ema=0.9)
    dcgan.generator_ema.set_weights(dcgan.generator.get_weights())
    dcgan.generator.trainable_variables[0].assign_add(np.ones(dcgan.generator.trainable_variables[0].shape))
    # values that half precision rounds, some to nothing
    kernel = dcgan.generator_ema.trainable_variables[0]
    kernel.assign(kernel * RNG.choice([1, 1e-6, 1e-9], kernel.shape))
    encoder = Encoder(dcgan)
    encoder.step = 9
    dcgan.export(tmp_path / "small")
    encoder.export(tmp_path / "small")
    exported = DCGAN.load(tmp_path / "small")
    assert exported.fingerprint() == dcgan.fingerprint() != tiny_dcgan().fingerprint()
    loaded, other = Encoder.load(tmp_path / "small", exported)
    assert loaded.step == 9 and not other
    shown = holes(2).masked(images(2))
    np.testing.assert_allclose(loaded.guess(*shown), encoder.guess(*shown), atol=0.01)
    with pytest.raises(cli.UserError, match="not empty"):
        encoder.export(tmp_path / "small")
    encoder.network.trainable_variables[0].assign_add(1e5 * tf.ones_like(encoder.network.trainable_variables[0]))
    with pytest.raises(cli.UserError, match="does not fit into half precision"):
        encoder.export(tmp_path / "large")
    assert not (tmp_path / "large").exists()


def test_the_fingerprint_sees_each_weight_that_counts(tiny_dcgan):
    dcgan = tiny_dcgan(ema=0.9)
    first = dcgan.fingerprint()
    assert 0 < first < 2**56
    dcgan.generator.trainable_variables[0].assign_add(dcgan.generator.trainable_variables[0])
    dcgan.discriminator.trainable_variables[0].assign_add(dcgan.discriminator.trainable_variables[0])
    assert dcgan.fingerprint() == first
    for variable in dcgan.generator_ema.trainable_variables:
        before = variable.numpy()
        after = before.copy()
        after.flat[-1] += 0.01
        variable.assign(after)
        assert dcgan.fingerprint() != first
        variable.assign(before)
    assert dcgan.fingerprint() == first
    ops.reestimate_batch_norm(dcgan.generator_ema, [np.ones((4, 5), np.float32)])
    assert dcgan.fingerprint() == first
