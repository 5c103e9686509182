"""The refiner: what it draws, its losses, its files, and how whole photos use it."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import RNG, images, values
from scipy import ndimage

import checkpoint
import ops
from completion import refiner
from completion.refiner import Refiner
from photos import filling


@pytest.fixture(scope="module")
def untrained(tiny):
    return Refiner(tiny)


def inputs(count=2):
    masks = np.ones((count, 32, 32, 1), np.float32)
    masks[:, 8:20, 10:26] = 0
    return images(count, 32), images(count), masks


def test_squares_of_pixels_become_channels_and_come_back():
    x = RNG.normal(size=(2, 8, 4, 3)).astype(np.float32)
    folded = ops.SpaceToDepth(2)(x).numpy()
    expected = x.reshape(2, 4, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 2, 12)
    np.testing.assert_array_equal(folded, expected)
    np.testing.assert_array_equal(ops.DepthToSpace(2)(folded), x)


def test_a_new_refiner_enlarges(untrained):
    truth, completed, masks = inputs()
    drawn = untrained.refine(completed, truth, masks)
    assert drawn.shape == (2, 32, 32, 3) and drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, np.clip(refiner.enlarge(completed, 32), -1, 1), atol=0.05)
    smooth = ndimage.gaussian_filter(RNG.normal(size=(16, 16)), 3)[None, ..., None]
    expected = ndimage.zoom(smooth, (1, 2, 2, 1), order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(refiner.enlarge(smooth, 32)[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=0.01)


def test_what_lies_under_the_hole_is_ignored(untrained):
    truth, completed, masks = inputs()
    drawn = untrained.refine(completed, truth, masks)
    np.testing.assert_array_equal(untrained.refine(completed, np.where(masks > 0, truth, np.nan), masks), drawn)
    assert (untrained.refine(completed, -truth, masks) != drawn).any()


def test_the_losses_are_those_of_the_papers():
    truth, _, masks = inputs()
    drawn, hidden = images(2, 32), masks[..., 0] == 0
    expected = [np.abs(drawn - truth)[i][hidden[i]].mean() for i in range(2)]
    np.testing.assert_allclose(ops.hole_error(drawn, truth, masks), expected, rtol=1e-5)
    masks[0] = 1  # no hole, nothing to judge
    masks[1, 16:] = 1  # the hole reaches the upper patches alone
    real, fake = (np.float32(RNG.normal(size=(2, 2, 2, 1))) for _ in range(2))
    losses = np.maximum(1 - real[1, :1], 0) + np.maximum(1 + fake[1, :1], 0)
    np.testing.assert_allclose(refiner.hinge_loss(real, fake, masks), [0, losses.mean()], rtol=1e-5)
    a, b = [images(2), images(2, 8)], [images(2), images(2, 8)]
    means = [np.abs(x - y).mean((1, 2, 3)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(refiner.feature_distance(a, b), np.mean(means, 0), rtol=1e-5)


def test_training_comes_nearer_to_the_truth_and_an_export_draws_the_same(tiny, tmp_path):
    ops.keras.utils.set_random_seed(0)
    trained = Refiner(tiny)
    truth, _, masks = inputs(4)
    truth = np.asarray(refiner.enlarge(images(4, 8), 32))
    parts = truth, images(4) * 0, masks
    optimizers, step = trained.make_optimizers(4e-4, 0.5), tf.function(trained.train_step)
    errors = [step(*map(tf.constant, parts), tf.constant(i, tf.int64), **optimizers) for i in range(40)]
    assert errors[-1]["r_loss_l1"] < 0.7 * errors[0]["r_loss_l1"]
    assert errors[0]["r_loss"] == errors[0]["r_loss_l1"]  # the first steps by L1 alone
    before = values(trained.discriminator.trainable_variables), values(trained.average.trainable_variables)
    late = step(*map(tf.constant, parts), tf.constant(refiner.WARM_UP, tf.int64), **optimizers)
    assert late["r_loss"] != late["r_loss_l1"]
    after = values(trained.discriminator.trainable_variables), values(trained.average.trainable_variables)
    assert all((a != b).any() for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))

    trained.step = 41
    trained.export(tmp_path)
    read = Refiner.load(tmp_path, tiny)
    assert read.step == 41
    np.testing.assert_allclose(read.refine(parts[1], truth, masks), trained.refine(parts[1], truth, masks), atol=0.01)


def test_one_that_cannot_be_read_is_reported(tiny, tmp_path, capsys):
    assert Refiner.load(tmp_path, tiny) is None and not capsys.readouterr().err
    Refiner(tiny).export(tmp_path)
    checkpoint.write_config(tmp_path / "refiner", {"architecture": tiny.architecture | {"c_dim": 1}})
    assert Refiner.load(tmp_path, tiny) is None
    assert "c_dim 1 is not the model's, 3" in capsys.readouterr().err


class Truth:
    """A refiner that draws what is known, and 0 elsewhere."""

    c_dim = 3

    def refine(self, completed, images, masks):
        return np.where(masks, images, 0).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_photo_is_shown_to_the_refiner_where_it_is_known(channels):
    photo = ndimage.gaussian_filter(RNG.integers(0, 256, (90, 100, channels)).astype(float), (4, 4, 0))
    photo = np.uint8(255 * (photo - photo.min()) / np.ptp(photo))
    known, matrix = np.ones((90, 100), bool), np.array([[0.5, 0, -10], [0, 0.5, -8]])
    known[40:50, 40:60] = False
    crops = [np.zeros((32, 32, channels), np.uint8)]
    (larger,), (finer,) = filling.refined(photo, known, crops, [matrix], Truth())
    # at twice the size a pixel of the crop is one of the photo's, half a pixel beside it
    np.testing.assert_allclose(finer, [[1, 0, -19.5], [0, 1, -15.5]])
    y, x = np.indices((64, 64)) + [[[15.5]], [[19.5]]]
    expected = np.stack(
        [ndimage.map_coordinates(plane.astype(float), [y, x], order=1) for plane in photo.T.swapaxes(1, 2)], -1
    )
    shown = ndimage.map_coordinates(known.astype(float), [y, x], order=1) == 1
    assert larger.shape == (64, 64, channels) and larger.dtype == np.uint8
    np.testing.assert_allclose(larger[shown], expected[shown], atol=1)
    assert (np.abs(larger[~shown].astype(int) - 128) <= 1).all()
