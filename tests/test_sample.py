import numpy as np
import pytest
from conftest import one_line, run
from PIL import Image

import checkpoint
import ops
import sample
import utils


@pytest.fixture(params=[3, 1])
def dcgan(request, tiny_dcgan, tmp_path):
    """A tiny DCGAN of coloured or grey images that is kept in checkpoints/mine."""
    dcgan = tiny_dcgan(c_dim=request.param)
    directory = tmp_path / "checkpoints/mine"
    checkpoint.save(directory, dcgan.networks, {"step": 7}, dcgan.make_optimizers(0.01, 0.5))
    checkpoint.write_config(directory, {"architecture": dcgan.architecture})
    return dcgan


def assert_shows(picture, left, top, dcgan, z, side=64):
    """Check that a picture shows G(z), enlarged from 16 to `side` pixels, with its corner there."""
    expected = utils.to_uint8(dcgan.generator(np.float32(z)[None], training=False)[0])
    expected = np.broadcast_to(expected.repeat(side // 16, 0).repeat(side // 16, 1), (side, side, 3))
    np.testing.assert_allclose(picture[top : top + side, left : left + side].astype(int), expected, atol=1)
    assert expected.std() > 20


def test_pictures_show_what_the_model_makes_of_the_z(dcgan, tmp_path):
    flags = ["--count", 11, "--seed", 3, "--arithmetic", "0,5", "1", "2,3,10"]
    done = run("sample.py", *flags, cwd=tmp_path)
    assert "model: checkpoints/mine, step 7" in done.stdout
    names = ("samples", "interpolations", "arithmetic")
    pictures = [np.asarray(Image.open(tmp_path / f"samples-of-model/{name}.png")) for name in names]
    samples, interpolations, arithmetic = pictures
    z = ops.random_z((11, 5), 3, "samples")

    assert samples.shape == (2 * (64 + 18), 8 * (64 + 4), 3)
    for i in range(11):
        left, top = i % 8 * 68, i // 8 * 82
        assert_shows(samples, left, top, dcgan, z[i])
        assert samples[top + 64 : top + 82, left : left + 64].any()  # its number
    assert not samples[82:, 3 * 68 :].any()

    assert interpolations.shape == (5 * 128 + 8, 96 + 10 * 128, 3)
    for row in range(5):
        start, end = z[2 * row], z[2 * row + 1]
        for step in range(10):
            assert_shows(interpolations, 96 + 128 * step, 128 * row, dcgan, start + step / 9 * (end - start), 128)

    # 3 samples, sign, mean, sign, 3 results
    assert arithmetic.shape == (3 * 82, 9 * 68, 3)
    for row, group in enumerate(([0, 5], [1], [2, 3, 10])):
        for i, number in enumerate(reversed(group)):
            assert_shows(arithmetic, (2 - i) * 68, row * 82, dcgan, z[number])
        assert_shows(arithmetic, 4 * 68, row * 82, dcgan, sum(z[i] for i in group) / len(group))
        captions = arithmetic[row * 82 + 64 : row * 82 + 82].any((0, 2)).reshape(9, 68).any(1)
        assert list(captions) == [len(group) > 2, len(group) > 1, True, False, True, False, False, row == 1, False]
    result = (z[0] + z[5]) / 2 - z[1] + (z[2] + z[3] + z[10]) / 3
    assert np.abs(result).max() > 1
    assert_shows(arithmetic, 7 * 68, 82, dcgan, np.clip(result, -1, 1))


def test_arithmetic_with_z():
    rng = np.random.default_rng(0)
    z, noise = rng.uniform(-1, 1, (6, 100)), rng.uniform(-0.25, 0.25, (9, 100))
    means, results = sample.arithmetic(z, [[0, 4], [1, 2, 5], [3]], noise)
    a, b, c = (z[0] + z[4]) / 2, (z[1] + z[2] + z[5]) / 3, z[3]
    np.testing.assert_allclose(means, [a, b, c], atol=1e-12)
    expected = np.minimum(np.maximum(a - b + c + noise, -1), 1)
    assert 0 < (np.abs(expected) == 1).mean() < 0.5
    np.testing.assert_allclose(results, expected, atol=1e-12)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--arithmetic", "0,64", "1", "2"], ["--arithmetic 64", "0 to 63"]),
        (["--count", "5", "--arithmetic", "0", "1", "2,5"], ["--arithmetic 5", "0 to 4"]),
        (["--arithmetic", "0,", "1", "2"], ["--arithmetic", "''", "whole number"]),
    ],
)
def test_sample_errors(tmp_path, flags, words):
    one_line(run("sample.py", *flags, cwd=tmp_path, status=2), *words)
