"""The detail that a face, and the brow above its crop, get from the other side."""

import types

import cv2
import numpy as np
import pytest
import scipy.ndimage

from photos import filling, geometry, landmarks, symmetry

SYMMETRIC = (geometry.MINMAX_TEMPLATE + [1, 0] - geometry.MINMAX_TEMPLATE[landmarks.MIRRORED] * [1, -1]) / 2
SIZE = 64
# from `symmetric_photo` to its crop
MATRIX = np.array([[0.8, 0, 0.8 * (0.5 - 80)], [0, 0.8, 0.8 * (0.5 - 80)], [0, 0, 1]])


@pytest.fixture(autouse=True)
def where_it_is_read(monkeypatch):
    """A hidden landmark stays where `mean_face` has it: it is symmetric, and no face is."""
    monkeypatch.setattr(landmarks, "infer", lambda points, hidden: points)


def test_moving_least_squares_fits_an_affine_map_at_each_place():
    rng = np.random.default_rng(0)
    sources, targets, places = (rng.normal(size=(count, 2)) for count in (20, 20, 5))
    found, areas = symmetry.moving_least_squares(places, sources, targets, 0.8)
    for place, each, area in zip(places, found, areas, strict=True):
        weights = np.exp(-((sources - place) ** 2).sum(1) / 2 / 0.8**2)[:, None] ** 0.5
        rows = np.concatenate([sources, np.ones((20, 1))], 1)
        affine = np.linalg.lstsq(weights * rows, weights * targets, rcond=None)[0]
        np.testing.assert_allclose(each, [*place, 1] @ affine, atol=0.02)
        assert area == pytest.approx(np.linalg.det(affine[:2]), abs=0.02)
    matrix, shift = np.array([[-1.2, 0.1], [0.2, 0.9]]), np.array([3.0, -2.0])
    found, areas = symmetry.moving_least_squares(places, sources, sources @ matrix + shift, 1.0)
    np.testing.assert_allclose(found, places @ matrix + shift, atol=0.02)
    np.testing.assert_allclose(areas, np.linalg.det(matrix), rtol=0.02)


@pytest.mark.parametrize(("sigma", "tolerance"), [(1.5, 1e-4), (6.0, 0.03)])
def test_a_mean_around_a_place_is_of_what_lies_there(sigma, tolerance):
    rng, where = np.random.default_rng(0), np.zeros((60, 48), bool)
    where[12:48, 6:42] = rng.random((36, 36)) < 0.8
    values = np.where(where[..., None], rng.normal(5, 1, (60, 48, 3)), 0).astype(np.float32)
    sums, share = (scipy.ndimage.gaussian_filter(x, (sigma, sigma, 0)) for x in (values, where[..., None] * 1.0))
    found = symmetry.mean_around(values, where, sigma)[where]
    np.testing.assert_allclose(found, (sums / np.maximum(share, 1e-9))[where], rtol=tolerance)


def mean_face(*_):
    """Stands for dlib's predictor: it finds the mean face, made symmetric, wherever the crop lies in the picture."""
    margin = (landmarks.SIZE - landmarks.FACE) / 2
    points = landmarks.FACE * SYMMETRIC + margin
    return types.SimpleNamespace(parts=lambda: [types.SimpleNamespace(x=x, y=y) for x, y in points])


def symmetric_photo(channels, seed=0):
    """A photo with a symmetric pattern, one without its detail, and a hole at an eye: the crop is its middle third."""
    rng = np.random.default_rng(seed)
    pattern = scipy.ndimage.gaussian_filter(rng.normal(size=(240, 240, channels)), (1, 1, 0))
    pattern += pattern[:, ::-1]
    photo = np.clip(128 + 60 * pattern / pattern.std(), 0, 255).astype(np.uint8)
    coarse = scipy.ndimage.gaussian_filter(photo.astype(float), (1.9, 1.9, 0))
    hidden = np.zeros((240, 240), bool)
    hidden[85:115, 80:110] = True
    return photo, coarse, hidden


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turns", [0, 1])
def test_an_eye_gets_the_detail_of_the_other(channels, turns):
    photo, coarse, hidden = (np.rot90(x, turns) for x in symmetric_photo(channels))
    turn = np.linalg.inv([*geometry.turn_matrix(90 * turns, (240, 240))[0], [0, 0, 1]])
    matrix = (MATRIX @ turn)[:2]
    crop = np.uint8(cv2.warpAffine(coarse, matrix, (SIZE, SIZE)).reshape(SIZE, SIZE, channels))
    y, x = np.argwhere(hidden).min(0)
    box = np.s_[y : y + 30, x : x + 30]
    rest = crop, matrix, (x, y), mean_face
    added = symmetry.detail(coarse[box], photo, ~hidden, *rest)
    assert np.abs(coarse[box] + added - photo[box]).mean() < 0.35 * np.abs(coarse[box] - photo[box]).mean()

    other = np.where(hidden[..., None], np.random.default_rng(1).integers(0, 256, photo.shape), photo).astype(np.uint8)
    np.testing.assert_array_equal(symmetry.detail(coarse[box], other, ~hidden, *rest), added)
    both = hidden | np.rot90(np.rot90(hidden, -turns)[:, ::-1], turns)
    assert not symmetry.detail(coarse[box], photo, ~both, *rest).any()


def test_the_other_side_is_not_trusted_where_it_is_much_smaller(monkeypatch):
    photo, coarse, hidden = symmetric_photo(3)
    arguments = coarse[85:115, 80:110], photo, ~hidden, np.zeros((SIZE, SIZE, 3), np.uint8), MATRIX[:2], (80, 85)
    trusted = np.abs(symmetry.detail(*arguments, mean_face)).mean()
    squeezed = np.where(SYMMETRIC > [0.5, 2], 0.5 + (SYMMETRIC - 0.5) / 4, SYMMETRIC)
    monkeypatch.setattr("test_symmetry.SYMMETRIC", squeezed)
    assert np.abs(symmetry.detail(*arguments, mean_face))[:, :15].mean() < 0.1 * trusted  # the nose is as it was


def with_brow(photo, coarse, hidden, void=None):
    """`filling.with_brows` of the part of a photo around a hole that holds `coarse`, put into all of it."""
    crop = geometry.warp(np.uint8(coarse), MATRIX[:2], SIZE)
    known = ~hidden if void is None else ~(hidden | void)
    result = np.where(hidden[..., None], np.uint8(coarse), photo)
    part = filling.surrounding(hidden, 5)
    matrix = MATRIX[:2] @ geometry.resize_matrix(1, (part[1].start, part[0].start))
    owners = filling.owner_of_pixels(hidden[part], [matrix], [SIZE])
    arguments = result[part], hidden[part], owners, part, photo, known, [crop], [matrix], mean_face
    result[part] = filling.with_brows(*arguments)
    return result


def test_a_brow_goes_on_beyond_the_crop_as_the_other():
    photo, coarse, _ = symmetric_photo(3)
    hidden = np.zeros((240, 240), bool)
    hidden[60:100, 84:110] = True  # the crop begins at y = 80
    filled = np.where(hidden[..., None], np.uint8(coarse), photo)
    result = with_brow(photo, coarse, hidden)
    np.testing.assert_array_equal(result[~hidden], photo[~hidden])
    np.testing.assert_array_equal(result[60:66, 84:110], filled[60:66, 84:110])
    above = np.s_[70:80, 86:108]
    before, after = (np.abs(x.astype(float) - photo)[above].mean() for x in (filled, result))
    assert after < 0.4 * before
    both = hidden | hidden[:, ::-1]
    np.testing.assert_array_equal(with_brow(photo, coarse, both), np.where(both[..., None], np.uint8(coarse), photo))
    within = hidden & (np.indices((240, 240))[0] > 85)
    filled = np.where(within[..., None], np.uint8(coarse), photo)
    np.testing.assert_array_equal(with_brow(photo, coarse, within), filled)


def test_what_is_transparent_beside_a_brow_leaves_no_trace():
    photo, hidden = np.full((240, 240, 3), 200, np.uint8), np.zeros((240, 240), bool)
    hidden[60:100, 84:110] = True
    y, x = np.indices(hidden.shape)
    void = (y - 60) + (x - 84) < 22
    for value in (0, 255):
        given = np.where(void[..., None], np.uint8(value), photo)
        result = with_brow(given, photo.astype(float), hidden & ~void, void)
        np.testing.assert_allclose(result[hidden & ~void], 200, atol=1)
        np.testing.assert_array_equal(result[void], value)
