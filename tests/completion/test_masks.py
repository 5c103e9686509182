import collections

import cli

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
from conftest import RNG

import utils
from completion import masks


def hole(mask):
    """Count of hidden pixels, and the first and last row and column that hold one."""
    assert mask.dtype == np.float32 and mask.shape[2] == 1 and set(np.unique(mask)) <= {0, 1}
    rows, columns = np.nonzero(mask[..., 0] == 0)
    return len(rows), (rows.min(), rows.max(), columns.min(), columns.max())


@pytest.mark.parametrize("size, scale, lower, upper", [(64, 0.25, 16, 48), (16, 0.3, 4, 11), (64, 0.49, 31, 32)])
def test_centre_mask(size, scale, lower, upper):
    mask = masks.make("center", size, center_scale=scale)
    assert hole(mask) == ((upper - lower) ** 2, (lower, upper - 1, lower, upper - 1))


@pytest.mark.parametrize(
    "kind, place",
    [
        ("left", (0, 63, 0, 31)),
        ("right", (0, 63, 32, 63)),
        ("top", (0, 31, 0, 63)),
        ("bottom", (32, 63, 0, 63)),
        ("lowres", (0, 63, 0, 63)),
        ("full", (0, 63, 0, 63)),
    ],
)
def test_rectangular_masks(kind, place):
    top, bottom, left, right = place
    assert hole(masks.make(kind, 64)) == ((bottom - top + 1) * (right - left + 1), place)


def test_grid_mask_knows_every_fourth_pixel():
    mask = masks.make("grid", 16)[..., 0]
    assert [tuple(p) for p in np.argwhere(mask)] == [(y, x) for y in range(0, 16, 4) for x in range(0, 16, 4)]


def test_random_mask_hides_its_fraction_differently_for_each_seed():
    drawn = [masks.make("random", 64, fraction=0.8, seed=(0, i)) for i in range(20)]
    # 20 * 4096 draws: the standard deviation of their mean is 0.0014
    assert 1 - np.mean(drawn) == pytest.approx(0.8, abs=0.006)
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], masks.make("random", 64, fraction=0.8, seed=(0, 0)))


@pytest.mark.parametrize(
    "options, problem",
    [
        (dict(kind="center", center_scale=0.5), "--centerScale 0.5.*no hole"),
        (dict(kind="center", center_scale=0.7), "--centerScale 0.7.*no hole"),
        (dict(kind="center", center_scale=0), "--centerScale 0.*nothing known"),
        (dict(kind="random", fraction=0), "--fraction 0.*no hole"),
        (dict(kind="random", fraction=1), "--fraction 1.*nothing known"),
    ],
)
def test_mask_of_nothing(options, problem):
    with pytest.raises(cli.UserError, match=problem):
        masks.make(size=64, **options)


@pytest.mark.parametrize("shape", [(16, 16), (40, 40), (37, 61), (9, 12)])
def test_known_after_resize_are_the_pixels_that_no_hidden_one_reaches(shape):
    hidden = RNG.random(shape) < 0.03
    mask = masks.known_after_resize(hidden, 16)

    def resize(values):
        return np.asarray(utils.fit(utils.Image.fromarray(values.astype(np.float32)), 16))

    reached = np.zeros((16, 16), bool)
    for y, x in np.argwhere(hidden):
        alone = np.zeros(shape)
        alone[y, x] = 1
        reached |= resize(alone) != 0
    np.testing.assert_array_equal(mask[..., 0] == 0, reached)
    assert 0 < reached.mean() < 1


@pytest.mark.parametrize("pixels", [0, 1, 2, 5])
def test_a_hole_grows_to_all_sides(pixels):
    hidden = np.zeros((40, 50), bool)
    hidden[[3, 20, 21, 39], [49, 20, 25, 0]] = True
    y, x = np.indices(hidden.shape)
    near = np.array([np.hypot(y - a, x - b) for a, b in np.argwhere(hidden)]).min(0) <= pixels
    np.testing.assert_array_equal(masks.grown(hidden, pixels), near)


def read_mask(path, size, side):
    return masks.fit_hidden(masks.read_hidden(path), size, side)


def test_mask_files(save_image):
    def transparent(path):
        return masks.transparent(utils.open_image(path), 32)

    white = np.zeros((32, 32), np.uint8)
    white[8:16, 4:8] = 200
    np.testing.assert_array_equal(read_mask(save_image("m.png", white), 32, 32)[..., 0], white == 0)
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[..., 3] -= white // 100
    np.testing.assert_array_equal(transparent(save_image("a.png", rgba))[..., 0], white == 0)
    assert transparent(save_image("rgb.png", rgba[..., :3])).all()


@pytest.mark.parametrize(
    "photo, mask", [((256, 320), (32, 40)), ((100, 100), (64, 64)), ((90, 80), (200, 180)), ((8, 10), (64, 80))]
)
def test_a_mask_of_another_size_than_the_photo_hides_all_it_covers(save_image, photo, mask):
    """What is under the mask, laid over the photo, reaches no pixel that counts as known."""
    white = np.zeros(mask, np.uint8)
    white[mask[0] // 4 : mask[0] // 2, mask[1] // 8 : mask[1] // 2] = 255
    known = read_mask(save_image("m.png", white), 32, min(photo))[..., 0] == 1
    covered = np.zeros(photo, bool)
    part = (np.array(photo) / mask)[:, None] * [[mask[0] // 4, mask[0] // 2], [mask[1] // 8, mask[1] // 2]]
    (top, left), (bottom, right) = np.floor(part[:, 0]).astype(int), np.ceil(part[:, 1]).astype(int)
    covered[top:bottom, left:right] = True
    first = RNG.integers(0, 256, (*photo, 3), np.uint8)
    second = np.where(covered[..., None], 255 - first, first)
    first, second = (utils.read_image(save_image("p.png", x), 32, 3) for x in (first, second))
    np.testing.assert_array_equal(first[known], second[known])
    assert (first != second).any() and known.mean() > 0.5

    layer = np.dstack([np.full((*mask, 3), 255, np.uint8), white])  # white on a transparent layer
    np.testing.assert_array_equal(read_mask(save_image("l.png", layer), 32, min(photo))[..., 0] == 1, known)


def test_what_is_no_mask_is_refused(save_image, capfd):
    photo = skimage.data.astronaut()
    damage = np.zeros((512, 512), bool)
    damage[100:200, 150:300] = True
    for image, words in (
        (photo, r"p.png: looks like a photo, not like its mask, as it has 19\d greys; give"),
        (np.where(damage[..., None], np.uint8(255), photo), "looks like a photo"),
        (RNG.integers(0, 256, (99, 99), np.uint8), "looks like a photo"),
    ):
        with pytest.raises(cli.UserError, match=words):
            masks.read_hidden(save_image("p.png", image))
    # where its damage was erased that is the hole, as what is erased of a black image; not what is opaque and white
    for colours in (photo, np.zeros_like(photo)):
        alpha = np.where(damage, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(masks.read_hidden(save_image("e.png", np.dstack([colours, alpha]))), damage)
    white = np.dstack([np.full_like(photo, 255), 255 - alpha])
    np.testing.assert_array_equal(masks.read_hidden(save_image("e.png", white)), damage)
    assert not capfd.readouterr().err
    erased = save_image("erased.png", np.dstack([photo, alpha]))
    np.testing.assert_array_equal(masks.hidden_by(erased, (512, 512)), damage)
    assert "erased.png: is transparent in parts, as a photo whose damage was erased" in capfd.readouterr().err
    # soft edges and JPEG are no greys
    soft = scipy.ndimage.gaussian_filter(np.where(damage, 255.0, 0), 3).astype(np.uint8)
    assert (masks.read_hidden(save_image("soft.jpg", soft, quality=60)) ^ damage).mean() < 0.01
    assert (masks.hidden_by(save_image("soft.jpg", soft), (512, 512)) ^ damage).mean() < 0.01
    for path, words in (
        (save_image("inverted.png", ~damage), "inverted.png: hides 94% of the photo; white is what is missing"),
        (save_image("none.png", damage & False), "none.png: hides nothing; make white what is missing"),
        (save_image("small.png", damage[1:]), "small.png: a mask of 512x511 pixels, for a photo of 512x512; make it"),
    ):
        with pytest.raises(cli.UserError, match=words):
            masks.hidden_by(path, (512, 512))


@pytest.mark.parametrize("mask", ["a.png", "a.TIF", "A.png", "a_mask.png", "a-mask.gif", "A_MASK.PNG"])
def test_masks_by_name(tmp_path, mask):
    for name in ("x", "x/a.jpg", "x/b.jpg", "x/c.jpg", f"x/{mask}"):
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    photos = [tmp_path / "x/a.jpg", tmp_path / "x/b.jpg", tmp_path / "x" / mask, tmp_path / "b_mask.png"]
    photos = masks.without_masks(photos, tmp_path / "x")
    own = [tmp_path / "x" / mask] if "mask" not in mask.lower() else []
    assert photos == [tmp_path / "x/a.jpg", tmp_path / "x/b.jpg", *own, tmp_path / "b_mask.png"]
    found = masks.by_name(tmp_path, {*photos} - {*own})
    for place in ("x/a.jpg", "a.jpg"):
        assert masks.named_as(place, found, tmp_path) == tmp_path / "x" / mask
    with pytest.raises(cli.UserError, match="no mask named b, for x/b.jpg"):
        masks.named_as("x/b.jpg", found, tmp_path)


def test_pixelate_is_what_the_loss_compares():
    from ops import mean_pool

    images = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    known = masks.pixelate(images)
    assert known.shape == images.shape and len(np.unique(known[0, ..., 0])) == 64
    np.testing.assert_allclose(mean_pool(known, 2), mean_pool(images, 2), atol=1e-6)


def test_weights_against_a_direct_double_loop():
    mask = (RNG.random((12, 12, 1)) < 0.6).astype(np.float32)
    expected = np.zeros((12, 12))
    for y, x in np.argwhere(mask[..., 0]):
        near = [(j, i) for j in range(y - 2, y + 3) for i in range(x - 2, x + 3)]
        near = [(j, i) for j, i in near if (j, i) != (y, x) and 0 <= j < 12 and 0 <= i < 12]
        expected[y, x] = np.mean([1 - mask[j, i, 0] for j, i in near])
    np.testing.assert_allclose(masks.neighbour_weights(mask, window=5)[..., 0], expected, atol=1e-6)


def test_drawn_holes_are_of_all_kinds_and_decided_by_the_generator():
    first, second = ([masks.draw(32, rng) for _ in range(600)] for rng in map(np.random.default_rng, (1, 1)))
    for (kind, mask), (same, again) in zip(first, second, strict=True):
        assert kind == same and mask.shape == (32, 32, 1) and set(np.unique(mask)) <= {0, 1}
        np.testing.assert_array_equal(mask, again)
        assert kind in ("lowres", "full") or 0 < mask.mean() < 1
    counts = collections.Counter(kind for kind, _ in first)
    assert set(counts) == {*masks.TYPES, "boxes", "strokes"}
    assert counts["center"] == pytest.approx(120, abs=40) and counts["strokes"] == pytest.approx(108, abs=40)
    sizes = {mask.sum() for kind, mask in first if kind in ("center", "boxes", "strokes", "random")}
    assert len(sizes) > 100


@pytest.mark.parametrize("kind", ["center", "lowres", "full", "alpha"])
def test_what_an_encoder_sees(kind):
    images = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    mask = masks.make("center" if kind == "alpha" else kind, 16)
    shown, known = masks.holes(kind, [mask] * 2).masked(np.where(mask > 0, images, np.nan) if mask.any() else images)
    expected = {"lowres": masks.pixelate(images), "full": images}.get(kind, images * mask)
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(known[1], {"full": np.ones_like(mask)}.get(kind, mask))
