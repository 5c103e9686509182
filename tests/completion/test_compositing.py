import contextlib

import cli

import numpy as np
import pytest
from conftest import RNG

from completion import compositing, masks, prior


def dense_poisson(image, generated, mask):
    """Least squares over all pairs of neighbours that are not both known, written out in full."""
    height, width = mask.shape[:2]
    rows, targets = [], []
    for y in range(height):
        for x in range(width):
            for j, i in ((y + 1, x), (y, x + 1)):
                if j < height and i < width and not (mask[y, x, 0] and mask[j, i, 0]):
                    row = np.zeros((height, width))
                    row[y, x], row[j, i] = 1, -1
                    rows.append(row.ravel())
                    targets.append(generated[y, x] - generated[j, i])
    known = mask.ravel() == 1
    matrix, target = np.array(rows), np.array(targets)
    target = target - matrix[:, known] @ image.reshape(-1, image.shape[2])[known]
    result = image.copy().reshape(-1, image.shape[2])
    result[~known] = np.linalg.lstsq(matrix[:, ~known], target, rcond=None)[0]
    return result.reshape(image.shape)


@pytest.mark.parametrize("kind", ["center", "left", "grid", "random"])
def test_poisson_against_a_dense_solve(kind):
    mask = masks.make(kind, 12, fraction=0.7)
    image, generated = RNG.uniform(-1, 1, (2, 12, 12, 3)).astype(np.float32)
    blended = compositing.poisson(image, generated, mask)
    np.testing.assert_allclose(blended, dense_poisson(image, generated, mask), atol=1e-5)
    np.testing.assert_array_equal(blended[mask[..., 0] == 1], image[mask[..., 0] == 1])


def test_poisson_recovers_the_image_from_its_gradients_without_looking_under_the_hole():
    mask = masks.make("random", 16, fraction=0.6)
    image = RNG.uniform(-1, 1, (16, 16, 1)).astype(np.float32)
    damaged = np.where(mask, image, np.nan)
    np.testing.assert_allclose(compositing.poisson(damaged, image + 0.7, mask), image, atol=1e-5)


def test_poisson_without_anything_known():
    image, generated = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(compositing.poisson(image, generated, np.zeros((16, 16, 1))), generated)
    np.testing.assert_array_equal(compositing.poisson(image, generated, np.ones((16, 16, 1))), image)


def faces(count, size=6, channels=3):
    """Random images in which some directions vary more than others: float32 (count, size, size, channels)."""
    length = size * size * channels
    directions = np.linalg.qr(RNG.normal(size=(length, length)))[0]
    draws = RNG.normal(size=(count, length)) * np.geomspace(1, 0.01, length)
    return (0.1 + 0.3 * draws @ directions.T).reshape(count, size, size, channels).astype(np.float32)


def fit(images, **options):
    return prior.fit(lambda: (images[i : i + 64] for i in range(0, len(images), 64)), **options)


def test_the_covariance_against_a_dense_decomposition():
    images = faces(500)
    x = images.reshape(500, -1).astype(np.float64)
    variances, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    found = fit(images, components=20)
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.variances, variances[:-21:-1], rtol=1e-3)
    np.testing.assert_allclose(abs((found.components * axes[:, :-21:-1]).sum(0)), 1, atol=1e-3)
    np.testing.assert_allclose(found.components.T @ found.components, np.eye(20), atol=1e-5)
    assert found.noise_variance == pytest.approx(variances[:-20].mean(), rel=1e-3)


def test_few_images_have_few_axes():
    found = fit(faces(21), components=50)
    assert found.components.shape == (108, 10) and (found.variances > 0).all() and found.noise_variance > 0
    one = fit(faces(1), components=50)
    assert one.components.shape == (108, 1) and (one.variances > 0).all() and one.noise_variance >= 0


def dense_gaussian(image, mask, mean, covariance, noise, shape=None):
    """E[y | what is known of it] of a normal y, with noise on what is known, by the whole covariance matrix.

    What is known is y where the mask is 1, or, with the shape of a pooling, the means of blocks.
    """
    observe = np.eye(mean.size)[np.broadcast_to(mask > 0, image.shape).ravel()] if shape is None else shape
    gain = covariance @ observe.T @ np.linalg.inv(observe @ covariance @ observe.T + noise * np.eye(len(observe)))
    seen = np.where(np.broadcast_to(mask > 0, image.shape), image, 0) if shape is None else image
    return (mean + gain @ (observe @ (seen.ravel() - mean))).reshape(image.shape)


def known_shares(mask):
    """How much is known of the 7 x 7 pixels around each (H, W); what lies beyond a border is as that."""
    padded = np.pad(mask[..., 0], 3, mode="edge")
    return np.array([[padded[y : y + 7, x : x + 7].mean() for x in range(len(mask))] for y in range(len(mask))])


@pytest.mark.parametrize("kind, channels", [("center", 3), ("left", 3), ("grid", 1), ("random", 3), ("lowres", 1)])
def test_gaussian_against_a_dense_computation(kind, channels):
    size, pool = (16, 2) if kind == "lowres" else (8, 1)
    training = faces(300, size, channels)
    images, generated = faces(2, size, channels), faces(2, size, channels)
    found = fit(training, components=30)
    holes = np.stack([masks.make(kind, size, fraction=0.6, seed=(i,)) for i in range(2)])
    covariance = (found.components * found.variances) @ found.components.T
    observe = None
    if pool == 2:  # the mean of each square of four pixels
        observe = np.eye(size**2).reshape(size // 2, 2, size // 2, 2, -1).mean((1, 3)).reshape(-1, size**2)
    damaged = images if pool == 2 else np.where(holes > 0, images, np.nan)
    result = {d: prior.gaussian_blend(damaged, generated, holes, found, d, pool) for d in (0, 0.4, 1)}
    for i in range(2):
        shares = known_shares(holes[i])
        noise = 20 / 4 if pool == 2 else (1 + 19 * shares)[holes[i][..., 0] > 0].repeat(channels)
        noise = noise * found.noise_variance
        most_probable = dense_gaussian(images[i], holes[i], found.mean, covariance, noise, observe)
        residual = dense_gaussian(images[i] - generated[i], holes[i], 0 * found.mean, covariance, noise, observe)
        np.testing.assert_allclose(result[0][i], most_probable, atol=1e-4)
        kept = 1 if pool == 2 else (1 - shares)[..., None]
        whole = most_probable + kept * (generated[i] + residual - most_probable)
        np.testing.assert_allclose(result[1][i], whole, atol=1e-4)
    np.testing.assert_allclose(result[0.4], 0.6 * result[0] + 0.4 * result[1], atol=1e-5)


@pytest.mark.parametrize("kind, channels", [("center", 3), ("random", 1)])
def test_kriging_against_a_dense_computation(kind, channels):
    mask = masks.make(kind, 12, fraction=0.6)
    image, generated = RNG.uniform(-1, 1, (2, 12, 12, channels)).astype(np.float32)
    known = mask.ravel() > 0
    places = np.stack(np.indices((12, 12)), -1).reshape(-1, 2)
    near = np.exp(-((places[:, None] - places[known]) ** 2).sum(-1) / 2.5**2)
    error = (image - generated).reshape(-1, channels)[known]
    expected = generated.reshape(-1, channels) + near @ np.linalg.solve(near[known] + 0.1 * np.eye(known.sum()), error)
    found = compositing.kriging(np.where(mask > 0, image, np.nan), generated, mask)
    np.testing.assert_allclose(found, expected.reshape(image.shape), atol=0.01)


def test_kriging_where_nothing_is_known_is_what_was_generated():
    generated = RNG.uniform(-1, 1, (6, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(compositing.kriging(generated + 1, generated, np.zeros((6, 6, 1))), generated)


def test_gaussian_recovers_what_lies_in_the_span_of_the_axes():
    found = fit(faces(300), components=10)._replace(noise_variance=0.0)
    draws = RNG.normal(size=(3, 10)) * np.sqrt(found.variances)
    images = (found.mean + draws @ found.components.T).reshape(3, 6, 6, 3)
    holes = np.stack([masks.make("center", 6)] * 3)
    damaged, generated = np.where(holes > 0, images, np.nan), faces(3)
    np.testing.assert_allclose(prior.gaussian_blend(damaged, generated, holes, found, 0), images, atol=0.01)


def test_gaussian_where_nothing_is_known_is_what_was_generated():
    found, (images, generated) = fit(faces(100), components=10), np.split(faces(2), 2)
    np.testing.assert_array_equal(prior.gaussian_blend(images, generated, np.zeros((1, 6, 6, 1)), found), generated)


def test_a_covariance_is_kept_at_half_precision(tmp_path):
    found = fit(faces(100), components=10)
    assert prior.load(tmp_path, (6, 6, 3)) is None
    prior.save(tmp_path, found)
    kept = prior.load(tmp_path, (6, 6, 3))
    assert kept.components.dtype == np.float16
    np.testing.assert_allclose(kept.components, found.components, atol=1e-3)
    for name in ("mean", "variances", "noise_variance"):
        np.testing.assert_array_equal(getattr(kept, name), np.float32(getattr(found, name)))


def test_a_damaged_covariance_is_one_line(tmp_path):
    path = tmp_path / prior.FILE
    prior.save(tmp_path, fit(faces(100), components=10))
    with np.load(path) as file:
        good = {name: file[name].astype(np.float32) for name in file}
    bad = {
        "of another size": {"mean": np.zeros(5, np.float32)},
        "not finite": {"mean": good["mean"] * np.nan},
        "no number": {"rest": np.float32([1, 2])},
        "whole numbers": {"variances": np.ones(10, int)},
        "too few variances": {"variances": good["variances"][:5]},
        "negative": {"variances": -good["variances"]},
        "an object": {"rest": np.array({}, object)},
        "more": {"more": np.zeros(1)},
        "far too much": {"rest": np.zeros(10**6, np.float32)},
        "too long": {"axes": good["axes"] * 30},
        "far too large": {"variances": good["variances"] + 1e30},
        "far too small": {"variances": good["variances"] * 1e-30},
        "no pixels": {"mean": good["mean"] + 5},
        "too many axes": {"axes": np.zeros((108, 4097), np.float16), "variances": np.ones(4097, np.float32)},
        "no axes": {"axes": np.zeros((108, 0), np.float32), "variances": np.zeros(0, np.float32)},
    }
    for what, change in bad.items():
        np.savez(path, **good | change)
        with pytest.raises(cli.UserError, match=f"{path}.*train-encoder.py"):
            prior.load(tmp_path, (6, 6, 3))
            pytest.fail(what)
    np.savez(path, **good)
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):  # a bit turned here and there: either it is told of, or did not matter
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with contextlib.suppress(cli.UserError):
            assert prior.load(tmp_path, (6, 6, 3)).components.shape == (108, 10)
    for content in (b"", b"no archive", whole[:500]):
        path.write_bytes(content)
        with pytest.raises(cli.UserError, match=f"{path}.*train-encoder.py"):
            prior.load(tmp_path, (6, 6, 3))
    path.unlink()
    path.mkdir()
    with pytest.raises(cli.UserError, match="it is no file"):
        prior.load(tmp_path, (6, 6, 3))


def test_what_is_known_in_grey_is_filled_in_grey():
    found, (images, generated) = fit(faces(100), components=10), np.split(faces(4), 2)
    images[0] = images[0].mean(-1, keepdims=True)
    holes = np.stack([masks.make("center", 6)] * 2)
    damaged = np.where(holes > 0, images, RNG.uniform(-1, 1, images.shape)).astype(np.float32)
    for covariance in (None, found):
        grey, coloured = compositing.blend(damaged, generated, holes, covariance)
        assert np.ptp(grey, -1).max() < 1e-6 and np.ptp(coloured, -1)[2:4, 2:4].min() > 1e-3


def tinted(light, stops):
    """Colours (H, W, 3) that follow from light (H, W) in [-1, 1], by three of them at -1, 0 and 1."""
    tones = np.stack([np.interp(light, [-1, 0, 1], channel) for channel in np.transpose(stops)], -1)
    return tones.astype(np.float32)


GREYS = [(-0.9,) * 3, (0,) * 3, (0.9,) * 3]
SEPIA = [(-0.8, -0.9, -1), (0.15, 0, -0.25), (1, 0.95, 0.7)]
CYANOTYPE = [(-0.95, -0.9, -0.6), (-0.5, 0, 0.35), (0.9, 0.92, 0.9)]


@pytest.mark.parametrize("tone", [GREYS, SEPIA, CYANOTYPE])
@pytest.mark.parametrize("noise, off", [(0, 0.025), (2 / 127.5, 0.07)])
def test_a_fill_keeps_the_one_tone_of_its_surroundings(tone, noise, off):
    """Also beside noise and a coloured stamp; what lies under the hole is not read, and the light stays."""
    mask = masks.make("center", 32)
    hole = mask[..., 0] == 0
    light = np.clip(np.linspace(-0.8, 0.8, 32) + 0.1 * RNG.standard_normal((32, 32)), -1, 1)
    true = tinted(light, tone)
    image = true + noise * RNG.standard_normal(true.shape).astype(np.float32)
    image[:4, :4] = 0.6, -0.7, -0.6  # the stamp
    pink = true + np.float32([0.12, -0.06, -0.06])
    filled = compositing.keep_tone(np.where(mask > 0, image, np.nan), pink, mask)
    assert np.linalg.norm(filled - true, axis=-1)[hole].max() < off  # of pink, 0.15
    np.testing.assert_allclose(filled.mean(-1), pink.mean(-1), atol=1e-6)
    np.testing.assert_array_equal(filled[~hole], pink[~hole])


def test_a_fill_beside_exact_grey_is_exactly_grey():
    mask = masks.make("center", 32)
    image, filled = RNG.uniform(-1, 1, (32, 32, 1)).repeat(3, -1), RNG.uniform(-1, 1, (32, 32, 3))
    grey = compositing.keep_tone(image, filled, mask)[8:24, 8:24]
    np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, -1))


def test_a_fill_in_a_coloured_image_keeps_its_colours():
    mask = masks.make("center", 32)
    image = 0.3 * RNG.standard_normal((4, 4, 3)).repeat(8, 0).repeat(8, 1).astype(np.float32)
    pink = image + np.float32([0.12, -0.06, -0.06])
    np.testing.assert_array_equal(compositing.keep_tone(image, pink, mask), pink)
    np.testing.assert_array_equal(compositing.keep_tone(image, pink, 0 * mask), pink)


def test_biharmonic_against_a_dense_least_squares_solution():
    state = RNG.choice(3, (9, 8), p=[0.4, 0.5, 0.1])  # unknown, known, neither
    values, unknown, known = RNG.standard_normal((9, 8, 2)), state == 0, state == 1
    used = unknown | known
    bends, slopes = [], []
    for y, x in np.argwhere(used):
        neighbours = [(y + dy, x + dx) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        neighbours = [(i, j) for i, j in neighbours if 0 <= i < 9 and 0 <= j < 8 and used[i, j]]
        bend = np.zeros(used.shape)
        for place in neighbours:
            bend[y, x] += 1
            bend[place] -= 1
            slope = np.zeros(used.shape)
            slope[y, x], slope[place] = 0.5**0.5, -(0.5**0.5)  # each pair of neighbours comes twice
            slopes.append(slope)
        bends.append(bend)
    rows = np.concatenate([bends, compositing.TENSION**0.5 * np.array(slopes)])
    solution = np.linalg.lstsq(rows[:, unknown], -rows[:, known] @ values[known], rcond=None)[0]
    poisoned = np.where(known[..., None], values, np.nan)
    result = compositing.biharmonic(poisoned, unknown, known)
    np.testing.assert_allclose(result[unknown], solution, atol=1e-8)
    np.testing.assert_array_equal(result[known], values[known])


def test_an_edge_goes_on_across_a_gap():
    y, x = np.indices((40, 40))
    edge = np.tanh((x - y) / 4)[..., None]
    gap = np.abs(y - 20) < 4
    smooth, flat = (f(edge, gap, ~gap) - edge for f in (compositing.biharmonic, compositing.harmonic))
    assert (smooth**2).mean() < 0.5 * (flat**2).mean()
