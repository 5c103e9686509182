import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.metrics
import tensorflow as tf
from conftest import RNG

from completion import metrics
from training import quality


def smooth(count, size, channels=3):
    """Random images with structure at several scales, uint8."""
    noise = RNG.normal(size=(count, size, size, channels))
    images = sum(s * scipy.ndimage.gaussian_filter(noise, (0, s, s, 0)) for s in (0, 1, 4))
    return np.clip(128 + 60 * images / images.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_against_scikit_image(channels):
    truth = np.kron(RNG.integers(0, 256, (8, 8, channels)), np.ones((4, 4, 1))).astype(np.uint8)
    image = np.clip(truth + RNG.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    inside = RNG.random((32, 32)) < 0.3
    expected, similarity = skimage.metrics.structural_similarity(
        image, truth, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert metrics.ssim(image, truth) == pytest.approx(expected, abs=1e-6)
    assert metrics.ssim(image, truth, inside) == pytest.approx(similarity[inside].mean(), abs=1e-6)
    psnr = skimage.metrics.peak_signal_noise_ratio
    assert metrics.psnr(image, truth) == pytest.approx(psnr(truth, image))
    assert metrics.psnr(image, truth, inside) == pytest.approx(psnr(truth[inside], image[inside]))
    assert metrics.psnr(truth, truth) == np.inf and metrics.ssim(truth, truth) == pytest.approx(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_sharpness_against_a_loop_over_pairs(channels):
    truth, image = smooth(2, 12, channels)
    inside = RNG.random((12, 12)) < 0.6
    grey = [np.dot(x, [0.299, 0.587, 0.114]) if channels == 3 else x[..., 0].astype(float) for x in (image, truth)]
    differences = [
        [abs(x[a] - x[b]) for a in np.ndindex(12, 12) for b in ((a[0] + 1, a[1]), (a[0], a[1] + 1))
         if max(b) < 12 and inside[a] and inside[b]]
        for x in grey
    ]  # fmt: skip
    expected = np.mean(differences[0]) / np.mean(differences[1])
    assert metrics.sharpness(image, truth, inside) == pytest.approx(expected)
    assert metrics.sharpness(truth, truth, inside) == 1
    assert metrics.sharpness(0 * truth, truth, inside) == 0
    single = np.zeros((12, 12), bool)
    single[5, 5] = True
    assert np.isnan(metrics.sharpness(image, truth, single)) and np.isnan(metrics.sharpness(image, 0 * truth, inside))


def test_means_leave_out_what_is_not_a_number(tmp_path):
    rows = [
        {"image": "a", "x": 1.0, "y": np.nan},
        {"image": "b", "x": np.nan, "y": np.nan},
        {"image": "c", "x": 4, "y": np.nan},
    ]
    means = metrics.write(tmp_path / "m.csv", rows)
    assert means["x"] == 2.5 and np.isnan(means["y"])


def blur(images, gain=1):
    kernel = gain * np.array([1, 4, 6, 4, 1]) / 16
    for axis in (1, 2):
        images = scipy.ndimage.convolve1d(images, kernel, axis=axis, mode="mirror")
    return images


def pyramid(images):
    """Burt and Adelson 1983, written with SciPy."""
    images = images.astype(np.float64)
    while images.shape[1] > 16:
        half = blur(images)[:, ::2, ::2]
        expanded = np.zeros_like(images)
        expanded[:, ::2, ::2] = half
        yield images - blur(expanded, gain=2)
        images = half
    yield images


@pytest.mark.parametrize("channels", [1, 3])
def test_sliced_wasserstein_against_scipy(channels):
    """The same random draws, the rest by other means: one patch, one direction after the other."""
    real, generated = smooth(3, 32, channels), smooth(3, 32, channels)[:, ::-1]
    rng = np.random.default_rng(5)
    expected = {}
    for levels in zip(pyramid(real), pyramid(generated), strict=True):
        clouds = []
        for level in levels:
            limit = level.shape[1] - 6
            rows, columns = rng.integers(limit, size=12), rng.integers(limit, size=12)
            corners = enumerate(zip(rows, columns, strict=True))
            cloud = np.stack([level[i // 4, y : y + 7, x : x + 7].transpose(2, 0, 1) for i, (y, x) in corners])
            for c in range(channels):
                cloud[:, c] = scipy.stats.zscore(cloud[:, c], axis=None)
            clouds.append(cloud.reshape(12, -1))
        axes = rng.normal(size=(16, 49 * channels))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        distances = [scipy.stats.wasserstein_distance(*(cloud @ axis for cloud in clouds)) for axis in axes]
        expected[levels[0].shape[1]] = 1000 * np.mean(distances)
    result = dict(quality.sliced_wasserstein(real, generated, seed=5, patches=4, directions=16))
    assert list(result) == [32, 16]
    assert result == pytest.approx(expected, rel=1e-4)


def test_sliced_wasserstein_of_known_cases():
    images, others = smooth(200, 32), smooth(200, 32)
    noise = RNG.integers(0, 256, images.shape, np.uint8)
    same, alike, far = (dict(quality.sliced_wasserstein(images, x, directions=64)) for x in (images, others, noise))
    for side in (32, 16):
        assert same[side] < alike[side] < far[side] / 3 and same[side] < far[side] / 5
    # flat images have no patches to normalise, which must not end in NaN
    assert np.isfinite([d for _, d in quality.sliced_wasserstein(images * 0, images * 0, directions=8)]).all()


@pytest.mark.parametrize("size, scales", [(16, 1), (32, 2), (64, 3)])
def test_ms_ssim_against_scikit_image(size, scales):
    """Wang et al. 2003, equation 7: contrast and structure at each scale, luminance at the last."""
    a = smooth(2, size)
    b = np.clip(a + RNG.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    weights = np.array([0.0448, 0.2856, 0.3001])[:scales] / sum([0.0448, 0.2856, 0.3001][:scales])
    window = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True, data_range=255)
    expected = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        product = np.ones(3)
        for scale, weight in enumerate(weights):
            for c in range(3):
                ssim = skimage.metrics.structural_similarity(x[..., c], y[..., c], **window)[1]
                means = [scipy.ndimage.gaussian_filter(v[..., c], 1.5, truncate=3.5) for v in (x, y)]
                c1 = (0.01 * 255) ** 2
                luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
                value = (ssim if scale == scales - 1 else ssim / luminance)[5:-5, 5:-5].mean()
                product[c] *= max(value, 0) ** weight
            x, y = (v.reshape(len(v) // 2, 2, len(v) // 2, 2, 3).mean((1, 3)) for v in (x, y))
        expected.append(product.mean())
    np.testing.assert_allclose(quality.ms_ssim(a, b), expected, rtol=1e-3)
    np.testing.assert_allclose(quality.ms_ssim(a, a), 1, atol=1e-5)
    assert tf.reduce_max(quality.ms_ssim(a, a[::-1])) < 0.9
