import numpy as np
import pytest

import blend
import masks

RNG = np.random.default_rng(0)


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
    blended = blend.poisson(image, generated, mask)
    np.testing.assert_allclose(blended, dense_poisson(image, generated, mask), atol=1e-5)
    np.testing.assert_array_equal(blended[mask[..., 0] == 1], image[mask[..., 0] == 1])


def test_poisson_recovers_the_image_from_its_gradients_without_looking_under_the_hole():
    mask = masks.make("random", 16, fraction=0.6)
    image = RNG.uniform(-1, 1, (16, 16, 1)).astype(np.float32)
    damaged = np.where(mask, image, np.nan)
    np.testing.assert_allclose(blend.poisson(damaged, image + 0.7, mask), image, atol=1e-5)


def test_poisson_without_anything_known():
    image, generated = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(blend.poisson(image, generated, np.zeros((16, 16, 1))), generated)
    np.testing.assert_array_equal(blend.poisson(image, generated, np.ones((16, 16, 1))), image)
