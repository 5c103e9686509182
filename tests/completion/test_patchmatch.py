"""PatchMatch: texture goes on, at any size of the hole, and what is under it never counts."""

import numpy as np
import pytest

from completion import patchmatch


def stripes(channels, side=160, period=8):
    """A photo of diagonal stripes with noise, uint8 (side, side, channels), whose stripes a hole must not break."""
    y, x = np.indices((side, side))
    noise = np.random.default_rng(0).normal(0, 4, (side, side, channels))
    return (np.where((x + y) % period < period // 2, 60, 190)[..., None] + noise).round().astype(np.uint8)


@pytest.mark.parametrize("channels, at_once", [(3, patchmatch.HOLE), (1, patchmatch.HOLE), (3, 400)])
def test_a_pattern_goes_on_through_the_hole(channels, at_once):
    photo, hidden, void = stripes(channels), *np.zeros((2, 160, 160), bool)
    hidden[60:100, 50:100], void[:, 120:] = True, True
    known = ~(hidden | void)
    results = []
    for seed in range(2):  # what is hidden, and what is transparent, may be anything
        other = np.random.default_rng(seed).integers(0, 256, photo.shape, np.uint8)
        given = np.where(known[..., None], photo, other)
        results.append(patchmatch.fill(given, hidden, known, at_once))
        np.testing.assert_array_equal(results[-1][~hidden], given[~hidden])
    np.testing.assert_array_equal(results[0][hidden], results[1][hidden])
    error = np.abs(results[0].astype(float) - photo)[hidden]
    assert error.mean() < 8  # a plain colour has 65
    assert results[0][hidden].std() == pytest.approx(photo[hidden].std(), rel=0.1)


def test_where_no_patch_is_whole_the_hole_is_filled_smoothly():
    photo = np.full((3, 200, 3), 90, np.uint8)
    hidden = np.zeros((3, 200), bool)
    hidden[:, 50:150] = True
    photo[hidden] = 7
    assert (patchmatch.fill(photo, hidden, ~hidden) == 90).all()
    everything = np.ones((3, 200), bool)
    np.testing.assert_array_equal(patchmatch.fill(photo, everything, ~everything), photo)


@pytest.mark.parametrize(
    "shape, hole, at_once, shrink",
    [
        ((600, 800), (300, 300), patchmatch.HOLE, 1),  # such as text all over a photo
        ((600, 800), (300, 300), 2500, 6),
        ((1000, 1400), (30, 30), patchmatch.HOLE, 2),
        ((2000, 2500), (300, 300), patchmatch.HOLE, 4),
        ((2000, 2500), (1200, 1500), patchmatch.HOLE, 10),
    ],
)
def test_large_holes_and_photos_are_filled_at_a_lower_resolution(monkeypatch, shape, hole, at_once, shrink):
    shapes, hidden = [], np.zeros(shape, bool)
    hidden[: hole[0], : hole[1]] = True
    monkeypatch.setattr(patchmatch, "fill_at_once", lambda photo, *_: shapes.append(photo.shape) or photo)
    monkeypatch.setattr(patchmatch, "with_detail", lambda small, shown, *_: shown)
    patchmatch.fill(np.zeros((*shape, 1), np.uint8), hidden, ~hidden, at_once)
    assert shapes == [(-(-shape[0] // shrink), -(-shape[1] // shrink), 1)]
