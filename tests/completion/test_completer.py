"""Completer: the parts of a model brought together, from masked images to blended ones."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import center_hole, images, zs

from completion import compositing, masks, prior, search
from completion.completer import Completer
from completion.encoder import Encoder

HOLES = masks.holes("mask", center_hole(3))


@pytest.fixture(scope="module")
def completer(tiny):
    faces = prior.fit(lambda: [np.random.default_rng(0).uniform(-1, 1, (40, 16, 16, 3)).astype(np.float32)])
    settings = dict(iterations=4, interval=2, candidates=10)
    return Completer(tiny, Encoder(tiny), faces, "gaussian", seed=5, settings=settings)


def test_the_first_sample_starts_at_the_encoders_z_and_others_near_it(completer):
    x = images(3)
    z = completer.encoder.guess(np.where(HOLES.masks, x, 0), HOLES.masks)
    for sample, expected in ((0, z), (2, search.near(z, 7, range(3)))):
        states = list(completer.complete(x, HOLES, sample))
        np.testing.assert_array_equal(states[0].z, expected)
        assert [state.iteration for state in states] == [0, 2, 4] and all(s.result is None for s in states[:-1])
    near = zs(3)
    np.testing.assert_array_equal(next(completer.complete(x, HOLES, 0, near=near)).z, search.near(near, 5, range(3)))


def test_without_an_encoder_the_seed_decides(completer):
    x, plain = images(3), replace(completer, encoder=None)
    a, b, c = (next(plain.complete(x, HOLES, sample, numbers=numbers)).z for sample, numbers in
               ((0, None), (0, range(3)), (1, None)))  # fmt: skip
    np.testing.assert_array_equal(a, b)
    assert (a != c).any(1).all()


@pytest.mark.parametrize("hidden", [1.0, np.nan])
def test_hidden_pixels_never_matter(completer, hidden):
    x = images(3)
    *_, a = completer.complete(x, HOLES)
    *_, b = completer.complete(np.where(HOLES.masks, x, np.float32(hidden)), HOLES)
    np.testing.assert_array_equal(a.result, b.result)
    np.testing.assert_array_equal(np.where(HOLES.masks, a.result, 0), np.where(HOLES.masks, x, 0))


def test_the_result_is_blended_as_asked(completer):
    x = images(3)
    *_, last = completer.complete(x, HOLES)
    expected = compositing.blend(x, last.generated, HOLES.masks, completer.prior, 0.75)
    np.testing.assert_array_equal(last.result, expected)
    expected = compositing.blend(x, last.generated, HOLES.masks, completer.prior, 0.2)
    np.testing.assert_array_equal(completer.blend(x, last.generated, HOLES, 0.2), expected)
    expected = [compositing.poisson(*three) for three in zip(x, last.generated, HOLES.masks, strict=True)]
    np.testing.assert_array_equal(replace(completer, blending="poisson").blend(x, last.generated, HOLES), expected)
    plain = HOLES.masks * x + (1 - HOLES.masks) * last.generated
    np.testing.assert_array_equal(replace(completer, blending="none").blend(x, last.generated, HOLES), plain)
