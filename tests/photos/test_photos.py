"""Whole photos: the completed crops back where they came from."""

import csv
import functools
import io
import os
import re
import struct

import cli

import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
from conftest import one_line, run
from PIL import Image, ImageCms, PngImagePlugin

from completion import compositing, masks
from model import DCGAN
from photos import filling, geometry, reading, record, restoring, symmetry

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def smooth(shape, sigma=12, rng=RNG):
    """A random photo without fine detail, uint8."""
    noise = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), sigma).reshape(shape)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def hole(part, shape=(200, 220)):
    """A hole that is one part, slices, of a photo: boolean (H, W)."""
    hidden = np.zeros(shape, bool)
    hidden[part] = True
    return hidden


def test_harmonic_at_several_resolutions_agrees_with_the_exact_solution():
    unknown = np.zeros((150, 140), bool)
    unknown[10:135, 15:120] = True
    unknown[50:70, 50:65] = False  # an island
    values = np.where(unknown[..., None], 0, smooth((150, 140, 3), 6)).astype(float)
    exact = compositing.harmonic(values, unknown, ~unknown, exact=10**6)
    coarse = compositing.harmonic(values, unknown, ~unknown, exact=2500)
    assert np.abs(exact - coarse).max() < 2
    inner = unknown[1:-1, 1:-1]
    mean = (exact[:-2, 1:-1] + exact[2:, 1:-1] + exact[1:-1, :-2] + exact[1:-1, 2:]) / 4
    np.testing.assert_allclose(exact[1:-1, 1:-1][inner], mean[inner], atol=1e-4)


def test_large_holes_are_harmonic_at_half_the_resolution(monkeypatch):
    monkeypatch.setattr(compositing, "COARSE", 9000)
    y, x = np.indices((150, 140))
    unknown = np.hypot(y - 70, x - 70) < 60
    values = smooth((150, 140, 3), 12, np.random.default_rng(3)).astype(float)
    exact = compositing.harmonic(values, unknown, ~unknown)
    coarse = compositing.harmonic(values, unknown, ~unknown, exact=3000)
    assert np.abs(exact - coarse).mean() < 0.5 and np.abs(exact - coarse).max() < 15
    np.testing.assert_array_equal(coarse[~unknown], values[~unknown])


def test_harmonic_ignores_what_is_neither_known_nor_unknown():
    unknown, known = np.zeros((2, 6, 8), bool)
    unknown[:, 2:5], known[:, 0:2] = True, True
    values = np.where(known[..., None], 7.0, np.nan)
    np.testing.assert_allclose(compositing.harmonic(values, unknown, known)[unknown], 7, atol=1e-6)


KNOWN = masks.make("center", 64)
MATRIX = np.array([[0.4, 0.06, -12.0], [-0.05, 0.42, -9.0]])


def cut(photo, matrix, size=64):
    return cv2.warpAffine(photo, matrix, (size, size)).reshape(size, size, -1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_true_crop_makes_the_photo_whole(channels):
    photo = smooth((200, 220, channels))
    hidden = hole(np.s_[60:120, 70:130])
    damaged = np.where(hidden[..., None], 255, photo).astype(np.uint8)
    filled, outside, _ = filling.into_photo(damaged, hidden, [cut(photo, MATRIX)], [MATRIX])
    assert outside == 0 and filled.shape == photo.shape
    np.testing.assert_array_equal(filled[~hidden], photo[~hidden])
    assert np.abs(filled.astype(int) - photo)[hidden].mean() < 1.5
    other = np.where(hidden[..., None], RNG.integers(0, 256, photo.shape), photo).astype(np.uint8)
    np.testing.assert_array_equal(filling.into_photo(other, hidden, [cut(photo, MATRIX)], [MATRIX])[0], filled)


def test_light_of_another_strength_is_joined_without_a_seam():
    photo = smooth((200, 220, 3))
    hidden = hole(np.s_[60:120, 70:130])
    darker = np.clip(cut(photo, MATRIX).astype(int) - 25, 0, 255).astype(np.uint8)
    filled, *_ = filling.into_photo(photo, hidden, [darker], [MATRIX])
    assert np.abs(filled.astype(int) - photo)[hidden].mean() < 2.5


def test_what_lies_in_no_face_is_copied_and_counted():
    photo = np.full((200, 220, 3), 90, np.uint8)
    hidden = hole(np.s_[60:120, 70:130])
    hidden[150:190, 195:215] = True  # MATRIX leads it beyond the crop
    filled, outside, _ = filling.into_photo(photo, hidden, [np.full((64, 64, 3), 10, np.uint8)], [MATRIX])
    assert outside == 40 * 20
    np.testing.assert_array_equal(filled[150:190, 195:215], 90)
    filled, outside, _ = filling.into_photo(photo, hidden, [], [])
    assert outside == hidden.sum() and (filled == photo).all()


def test_what_is_beside_the_faces_is_the_same_for_all_samples():
    photo, rng = smooth((200, 220, 3), 4, np.random.default_rng(1)), np.random.default_rng(2)
    hidden = hole(np.s_[90:120, 120:215])  # the crop ends at about x = 175
    crops = [cut(photo, MATRIX), np.clip(cut(photo, MATRIX) + rng.normal(0, 20, (64, 64, 3)), 0, 255).astype(np.uint8)]
    first, _, texture = filling.into_photo(photo, hidden, crops[:1], [MATRIX])
    second, *_ = filling.into_photo(photo, hidden, crops[1:], [MATRIX], seed=1, texture=texture)
    beside = hidden & (np.indices(hidden.shape)[1] > 185)
    np.testing.assert_array_equal(first[beside], second[beside])
    assert (first != second)[:, :160].any()
    np.testing.assert_array_equal(first[~hidden], photo[~hidden])


def test_there_and_back_within_a_tenth_of_a_pixel():
    y, x = np.indices((200, 220))
    for place in RNG.uniform([70, 75], [130, 130], (20, 2)):  # well inside of the crop
        blob = np.exp(-((np.stack([x, y], -1) - place) ** 2).sum(-1) / 2 / 6**2)
        crop = cut((255 * blob).astype(np.float32)[..., None], MATRIX)
        back = np.clip(filling.enlarged(crop, MATRIX, (200, 220))[..., 0], 0, None)
        found = [(back * axis).sum() / back.sum() for axis in (x, y)]
        np.testing.assert_allclose(found, place, atol=0.1)


def test_a_hole_across_the_crops_border_has_no_seam_there():
    photo = smooth((200, 220, 3), 25)
    hidden = hole(np.s_[90:120, 120:215])  # the crop ends at about x = 175
    filled, outside, _ = filling.into_photo(photo, hidden, [cut(photo, MATRIX)], [MATRIX])
    assert 0 < outside < hidden.sum()
    np.testing.assert_array_equal(filled[~hidden], photo[~hidden])
    steps = np.abs(np.diff(filled.astype(int), axis=1))
    inside = hidden[:, 1:] | hidden[:, :-1]
    assert np.quantile(steps[inside], 0.99) <= 6
    assert steps[inside].mean() < 2 * np.abs(np.diff(photo.astype(int), axis=1)).mean()


def test_a_face_at_the_photos_border_gets_no_black_edge():
    photo = np.full((200, 220, 3), 150, np.uint8)
    shift = MATRIX + [[0, 0, 20], [0, 0, 20]]  # a third of the crop lies outside
    crop = np.dstack([cut(photo, shift), np.uint8(255) * (cut(photo, shift)[..., :1] == 150)])
    completed = np.where(crop[..., 3:] == 255, crop[..., :3], 150).astype(np.uint8)
    hidden = hole(np.s_[:60, :60])
    filled, outside, _ = filling.into_photo(photo, hidden, [completed], [shift])
    assert outside == 0
    np.testing.assert_allclose(filled, photo, atol=1)


def test_depth_in_a_face_is_counted_from_its_jaw():
    """It is the distance, in 64ths, to the nearest of the mean face's jaw, the border and what rises above the jaw."""
    jaw = 128 * geometry.MINMAX_TEMPLATE[:17]
    depth = filling.outline(128)
    assert depth.shape == (128, 128, 1)
    y, x = np.indices((128, 128))
    corners = np.stack([x, y], -1)[..., None, :]
    line = np.concatenate([[[jaw[0, 0], -128]], jaw, [[jaw[-1, 0], -128]]])
    start, along = line[:-1], np.diff(line, axis=0)
    share = np.clip(((corners - start) * along).sum(-1) / (along**2).sum(-1), 0, 1)[..., None]
    distance = np.linalg.norm(corners - start - share * along, axis=-1).min(-1)
    inside = skimage.measure.points_in_poly(np.stack([x.ravel(), y.ravel()], 1), line).reshape(128, 128)
    border = np.minimum(np.minimum(x, 127 - x), np.minimum(y, 127 - y)) + 0.5 - filling.BEYOND * 2
    wanted = np.minimum(np.where(inside, distance, -distance), border) / 2
    np.testing.assert_allclose(depth[..., 0], wanted, atol=1e-3)


def test_of_two_faces_the_nearer_one_fills():
    shift = MATRIX + [[0, 0, -20], [0, 0, 0]]
    hidden = np.ones((200, 220), bool)
    owners = filling.owner_of_pixels(hidden, [MATRIX, shift], [64, 64])
    y, x = np.indices(hidden.shape)
    for (i, j), owner in {(100, 90): 0, (100, 160): 1}.items():
        assert owners[i, j] == owner
    places = [np.stack([x, y], -1) @ m[:, :2].T + m[:, 2] for m in (MATRIX, shift)]
    reached = [(np.abs(place - 31.5) < 32).all(-1) for place in places]
    np.testing.assert_array_equal(owners >= 0, reached[0] | reached[1])


@pytest.mark.parametrize("reach, told", [(0, False), (2, False), (3, True), (5, True)])
def test_damage_beyond_its_mask_is_told(reach, told):
    texture = scipy.ndimage.gaussian_filter(RNG.normal(0, 60, (200, 240, 3)), (2, 2, 0)) + 120
    hidden = hole(np.s_[80:120, 100:160], (200, 240))
    damage = scipy.ndimage.distance_transform_edt(~hidden) <= reach
    photo = np.where(damage[..., None], 250, texture).astype(np.uint8)
    grown = masks.grown(hidden, 2)
    assert restoring.shows_a_rim(photo, grown) == told
    assert not restoring.shows_a_rim(photo, masks.grown(hidden, 8))


def test_grain_is_that_of_the_photo():
    clean = smooth((160, 160, 3), 20).astype(float)
    noise = RNG.normal(size=(160, 160, 3)) @ np.linalg.cholesky([[9, 4, 4], [4, 9, 4], [4, 4, 9.0]]).T
    hidden = hole(np.s_[50:110, 50:110], (160, 160))
    photo = np.clip(clean + noise, 0, 255).round().astype(np.uint8)
    drawn = filling.grain(photo, hidden, 0)
    np.testing.assert_allclose(np.cov(drawn.reshape(-1, 3).T), [[9, 4, 4], [4, 9, 4], [4, 4, 9]], atol=2.5)
    np.testing.assert_array_equal(drawn, filling.grain(photo, hidden, 0))
    assert not filling.grain(clean.round().astype(np.uint8), hidden, 0).any()


def test_grain_of_a_large_photo_is_repeated_and_as_strong(monkeypatch):
    monkeypatch.setattr(filling, "TILE", 100)
    monkeypatch.setattr(filling, "SQUARES", 200)
    rng = np.random.default_rng(1)
    photo = np.clip(128 + rng.normal(0, 4, (300, 320, 1)), 0, 255).round().astype(np.uint8)
    hidden = hole(np.s_[40:260, 40:280], (300, 320))
    assert filling.grain(photo, hidden, 0).shape == (100, 100, 1)
    filled, *_ = filling.into_photo(photo, hidden, [np.full((64, 64, 1), 128, np.uint8)], [MATRIX / 2])
    assert 2 < filled[100:200, 100:200].std() < 6
    np.testing.assert_array_equal(filled[~hidden], photo[~hidden])


def write_row(folder, source, size=64, matrix=MATRIX, output="face.png", mask=""):
    """Write the align.csv of one crop."""
    row = dict.fromkeys(record.COLUMNS, "") | dict(zip(record.MATRIX, matrix.ravel(), strict=True))
    row |= dict(source=source, output=output, status="aligned", face=0, size=size, mask=mask)
    row |= dict(faces="largest", landmarks="innerEyesAndBottomLip")
    with open(folder / record.RECORD, "w", newline="") as file:
        writer = csv.DictWriter(file, record.COLUMNS)
        writer.writeheader()
        writer.writerow(row)


def mend(folder, holes, pixels, completed, name="face.png"):
    """Put the one crop in a folder back into its photo, in `folder`/out: how many are mended, and the share beside."""
    parts = zip(record.find_crops([folder / name]), holes.masks, pixels, [completed], strict=True)
    parts = [restoring.Part(*each) for each in parts if each[0]]
    (line,) = restoring.restore([folder / "out"], parts, holes.kind)
    count, share = re.fullmatch(rf"{folder}/out: (\d+) mended[^;]*(?:; (\d+)% .*)?", line).groups()
    return int(count), int(share or 0) / 100


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_only_the_hole_of_a_photo_changes(tmp_path, mode):
    photo = smooth((200, 220, 1 if mode in ("L", "I;16") else 3))
    hidden = hole(np.s_[60:120, 70:130])
    image = Image.fromarray(photo.squeeze())
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    elif mode == "I;16":
        image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        image = image.quantize(200)
    before = np.asarray(image.convert("RGB")) if mode not in ("L", "I;16") else photo
    exif = Image.Exif()
    exif[0x010E] = "a title"
    image.save(tmp_path / "photo.png", exif=exif, icc_profile=SRGB)
    write_row(tmp_path, tmp_path / "photo.png")
    crop = np.full((64, 64, 3), 77, np.uint8)
    holes, shown = masks.holes("center", [KNOWN]), cut(before, MATRIX)
    if mode == "RGBA":
        holes = masks.holes("alpha", [geometry.warp(np.asarray(image), MATRIX, 64)[..., 3:] == 255])
    assert mend(tmp_path, holes, [shown], [crop]) == (1, 0)
    with Image.open(tmp_path / "out/photo.png") as result:
        assert result.mode == ("L" if mode in ("L", "I;16") else "RGB") and result.size == (220, 200)
        assert result.info["icc_profile"] == SRGB and result.getexif()[0x010E] == "a title"
        after = np.asarray(result).reshape(before.shape)
    if mode != "RGBA":
        y, x = np.indices(hidden.shape)
        place = np.stack([x, y], -1) @ MATRIX[:, :2].T + MATRIX[:, 2]
        inside = (np.abs(place - 31.5) < 16.1).all(-1)
        surely = (np.abs(place - 31.5) < 15.9).all(-1)
    else:
        inside = surely = hidden
    changed = (after != before).any(-1)
    assert not changed[~inside].any() and changed[surely].mean() > 0.9


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cut_out_keeps_its_transparency(tmp_path, channels):
    """Only what the mask shows is filled, and nothing of what is transparent shines through."""
    results, photo = [], smooth((200, 220, channels)).squeeze()
    mask, own = np.zeros((2, 200, 220), bool)
    mask[60:120, 40:130] = True
    own[:, :50] = own[70:80, 100:110] = True  # the second is damage that was erased
    alpha = np.where(own, 40, 255).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for colour in (0, 255):
        image = Image.fromarray(np.where(own[..., None] if channels == 3 else own, np.uint8(colour), photo))
        image.putalpha(Image.fromarray(alpha))
        image.save(tmp_path / "photo.png")
        write_row(tmp_path, tmp_path / "photo.png", mask=tmp_path / "mask.png")
        opened = reading.read_photo(tmp_path / "photo.png", tmp_path / "mask.png")
        pixels = geometry.warp(opened.rgba, MATRIX, 64)
        holes = masks.holes("alpha", [pixels[..., 3:] == 255])
        assert mend(tmp_path, holes, [pixels[..., :3]], [np.full((64, 64, 3), 77, np.uint8)])[0] == 1
        with Image.open(tmp_path / "out/photo.png") as result:
            assert result.mode == ("LA" if channels == 1 else "RGBA")
            after = np.asarray(result)
        stays = np.zeros_like(own)
        stays[:, :50] = True
        np.testing.assert_array_equal(after[..., -1], np.where(stays, 40, 255))
        np.testing.assert_array_equal(after[~mask | stays], np.asarray(image)[~mask | stays])
        with pytest.raises(cli.UserError, match="rest.png: hides nothing but what is transparent in the photo"):
            Image.fromarray(mask & stays).save(tmp_path / "rest.png")
            reading.read_photo(tmp_path / "photo.png", tmp_path / "rest.png")
        results.append(after[mask & ~stays])
        assert (results[-1] != np.asarray(image)[mask & ~stays]).any(-1).mean() > 0.9
    np.testing.assert_array_equal(*results)


def test_only_files_are_copied(tmp_path):
    (tmp_path / "photo").write_text("as it is")
    os.mkfifo(tmp_path / "pipe")
    for name in ("photo", "pipe", "nothing"):
        restoring.copy(tmp_path / name, tmp_path / f"{name}.copy")
    assert [(path.name, path.read_text()) for path in tmp_path.glob("*.copy")] == [("photo.copy", "as it is")]
    with pytest.raises(cli.UserError, match="nowhere/x: cannot be written"):
        restoring.copy(tmp_path / "photo", tmp_path / "nowhere/x")


def test_no_face_grows_beside_a_face():
    """Nothing is copied from a head to beyond it, if there is anything else; all in the head is red, the rest not."""
    y, x = np.indices((160, 160))
    face = [np.array([[1.0, 0, -50], [0, 1, -40]])], [np.zeros((64, 64, 3))]
    heads = filling.pixels_within((160, 160), *face, filling.HEAD)
    assert heads[60, 82] and heads[50, 40] and not heads[130, 82] and not heads[60, 20]
    rng = np.random.default_rng(0)
    photo = np.where(heads[..., None], np.uint8([250, 0, 0]), np.uint8([0, 90, 0])) + rng.integers(0, 5, (160, 160, 3))
    hidden = (x > 60) & (y > 90) & (y < 130)
    damaged = np.where(hidden[..., None], 0, photo).astype(np.uint8)
    filled = filling.copied(damaged, hidden, ~hidden, *face)
    assert (filled[hidden & ~heads][:, 0] < 10).all()
    alone = filling.copied(damaged, hidden, ~hidden & heads, *face)
    assert (alone[hidden & ~heads][:, 0] > 240).all()


def test_a_body_is_no_background():
    """Under a chin nothing is copied from beside the body, which is red here; the head is blue."""
    y, x = np.indices((200, 200))
    face = [np.array([[1.0, 0, -70], [0, 1, -10]])], [np.zeros((64, 64, 3))]
    body, head = (filling.pixels_within((200, 200), *face, each) for each in (filling.BODY, filling.HEAD))
    assert body[180, 102] and body[130, 140] and not body[130, 20] and not body[40, 102]
    photo = np.where(body[..., None], np.uint8([250, 0, 0]), np.uint8([0, 90, 0]))
    photo[head & ~body] = 0, 0, 250
    hidden = (x > 40) & (x < 110) & (y > 140) & (y < 160)
    filled = filling.copied(np.where(hidden[..., None], np.uint8(0), photo), hidden, ~hidden, *face)
    np.testing.assert_array_equal(filled[hidden & body], photo[hidden & body])


def test_a_shoulder_is_like_the_other():
    rng = np.random.default_rng(4)
    half = smooth((240, 120, 3), 8, rng)
    photo = np.concatenate([half, half[:, ::-1]], 1)
    face = [np.array([[0.8, 0, 32 - 0.8 * 119.5], [0, 0.8, -20]])], [np.zeros((64, 64, 3))]
    hidden = hole(np.s_[150:, :100], (240, 240))
    filled, other = (
        filling.copied(np.where(hidden[..., None], value, photo).astype(np.uint8), hidden, ~hidden, *face)
        for value in (0, rng.integers(0, 256, photo.shape))
    )
    np.testing.assert_array_equal(filled, other)
    np.testing.assert_array_equal(filled[~hidden], photo[~hidden])
    deep = np.s_[160:, :90]
    assert np.abs(filled[deep] - photo[deep].astype(float)).mean() < 2
    for faces in ([], []), (2 * face[0], 2 * face[1]):  # there is no telling which one's it is
        copied = filling.copied(np.where(hidden[..., None], 0, photo).astype(np.uint8), hidden, ~hidden, *faces)
        assert np.abs(copied[deep] - photo[deep].astype(float)).mean() > 10


def test_an_upright_photo_of_a_rotated_file(tmp_path, monkeypatch):
    monkeypatch.setattr(symmetry, "STRENGTH", 0)  # this is no face, and has no other side
    photo = smooth((200, 220, 3), rng=np.random.default_rng(0))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees counter-clockwise
    Image.fromarray(np.rot90(photo)).save(tmp_path / "photo.png", exif=exif)
    write_row(tmp_path, tmp_path / "photo.png")
    crop = [cut(photo, MATRIX)]
    mend(tmp_path, masks.holes("center", [KNOWN]), crop, crop)
    with Image.open(tmp_path / "out/photo.png") as result:
        assert result.getexif().get(0x0112, 1) == 1
        error = np.abs(np.asarray(result, float) - photo)
        assert error.mean() < 0.1 and error.max() < 20


def test_a_crop_of_another_size_lands_in_the_same_place():
    points, crop = RNG.uniform(0, 200, (50, 2)), record.Crop("a.png", "a", None, MATRIX, 64)
    place = restoring.Part(crop, KNOWN, None, []).matrix(32)
    crop = points @ MATRIX[:, :2].T + MATRIX[:, 2]
    np.testing.assert_allclose(points @ place[:, :2].T + place[:, 2], (crop + 0.5) / 2 - 0.5)


def test_photos_that_are_gone_are_reported_and_other_images_have_none(tmp_path, capsys):
    write_row(tmp_path, tmp_path / "gone.jpg")
    black = [np.zeros((64, 64, 3), np.uint8)]
    arguments = masks.holes("center", [KNOWN]), black, black
    assert mend(tmp_path, *arguments) == (0, 0)
    assert capsys.readouterr().err == f"skipped {tmp_path / 'gone.jpg'}: no such file\n"
    assert mend(tmp_path, *arguments, name="other.png") == (0, 0)
    write_row(tmp_path, tmp_path / "gone.jpg", matrix=np.full((2, 3), np.nan))
    assert record.find_crops([tmp_path / "face.png"]) == [None]
    assert "align.csv: the row of" in (told := capsys.readouterr().err) and "run align.py again" in told
    (tmp_path / record.RECORD).write_text("something else")
    assert record.find_crops([tmp_path / "face.png"] * 2) == [None] * 2
    assert capsys.readouterr().err.count("not a record of align.py's") == 1


def test_what_a_png_file_cannot_keep_is_reported(tmp_path, capsys):
    photo, holes = smooth((200, 220, 3)), masks.holes("center", [KNOWN])
    write_row(tmp_path, tmp_path / "photo.jpg")
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "photo.jpg", quality=95)
    with Image.open(tmp_path / "photo.jpg") as image:
        before = np.asarray(image.convert("RGB"))
    crop = [cut(before, MATRIX)]
    assert mend(tmp_path, holes, crop, crop) == (1, 0)
    assert capsys.readouterr().err == f"{tmp_path / 'out/photo.png'}: CMYK became RGB\n"
    Image.fromarray(photo).save(tmp_path / "photo.jpg", icc_profile=b"none", exif=b"Exif\0\0none")
    mend(tmp_path, holes, crop, crop)
    assert "its colour profile cannot be read and is left out" in capsys.readouterr().err
    deep = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257
    write_row(tmp_path, tmp_path / "deep.png")
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert mend(tmp_path, holes, crop, crop) == (1, 0)
    assert capsys.readouterr().err == f"{tmp_path / 'out/deep.png'}: 16 bits a channel became 8\n"


@pytest.mark.parametrize("suffix, told", [("tif", True), ("gif", True), ("webp", True), ("mpo", False)])
def test_of_several_pictures_in_a_file_the_first_counts(tmp_path, suffix, told):
    pages = [Image.new("RGB", (40, 30), colour) for colour in ("navy", "red")]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    photo = reading.read_photo(tmp_path / f"a.{suffix}")
    assert photo.lost == ["of its pictures only the first is there"] * told
    assert np.abs(photo.pixels - np.int16([0, 0, 128])).max() <= 9


def test_a_photo_that_has_changed_is_left_alone(tmp_path, capsys):
    photo, holes = smooth((200, 220, 3)), masks.holes("center", [KNOWN])
    write_row(tmp_path, tmp_path / "photo.png")
    Image.fromarray(np.rot90(photo, 2)).save(tmp_path / "photo.png")
    crop = [cut(photo, MATRIX)]
    assert mend(tmp_path, holes, crop, crop) == (0, 0)
    assert "photo.png: has changed since its faces were cut out; run align.py again" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    # what is hidden may be anything
    Image.fromarray(photo).save(tmp_path / "photo.png")
    crop[0][16:48, 16:48] = 255 - crop[0][16:48, 16:48]
    assert mend(tmp_path, holes, crop, crop) == (1, 0)


def test_complete_mends_the_photos_of_its_images(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(DCGAN, "load", functools.cache(DCGAN.load))  # and its search is compiled only once
    photo = smooth((200, 220, 3))
    (tmp_path / "aligned").mkdir()
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=95)
    with Image.open(tmp_path / "photo.jpg") as image:
        before = np.asarray(image)
    matrix = np.array([[0.1, 0, -2.0], [0, 0.1, -3.0]])
    Image.fromarray(cut(before, matrix, 16)).save(tmp_path / "aligned/face.png")
    write_row(tmp_path / "aligned", tmp_path / "photo.jpg", 16, matrix)
    flags = "aligned --nIter 5 --candidates 20 --checkpointDir".split() + [trained / "checkpoints/mine"]
    run("complete.py", *flags, cwd=tmp_path)
    assert not list((tmp_path / "completions").glob("photos*"))  # it was not asked for
    done = run("complete.py", *flags, "--put_back", "--samples", 2, cwd=tmp_path)
    assert done.stdout.startswith("results: completions-2\n")
    assert "completions-2/photos_1: 1 mended; 0% of the holes" in done.stdout
    hidden = hole(np.s_[65:145, 55:135])  # where the crop's pixels 4 to 12 lie
    results = [np.asarray(Image.open(tmp_path / f"completions-2/photos_{i}/photo.png")) for i in range(2)]
    for after in results:
        changed = (after != before).any(-1)
        assert not changed[~hidden].any() and changed[hidden].mean() > 0.9
    assert (results[0] != results[1]).any()
    done = run("complete.py", *flags, "--put_back", "--maskType", "full", cwd=tmp_path, status=2)
    one_line(done, "--maskType full: leaves no hole in a photo")
    (tmp_path / "aligned/align.csv").unlink()
    done = run("complete.py", *flags, "--put_back", cwd=tmp_path, status=2)
    one_line(done, "--put_back: aligned/face.png: of no photo")


def kept(path, **options):
    """A photo saved to a file with these options, as the PNG file that `put_back` would write: a Pillow image."""
    if options:
        Image.fromarray(smooth((20, 30, 3))).save(path, **options)
    photo = reading.read_photo(path)
    Image.fromarray(photo.pixels).save(file := io.BytesIO(), "PNG", **photo.metadata)
    (image := Image.open(file)).load()
    return image, photo.lost


def test_what_a_file_says_of_its_photo_stays(tmp_path):
    iptc, xmp = b"\x1c\x02\x78\x00\x0cGrandma 1944", b"<x:xmpmeta>\xc3\xa9</x:xmpmeta>"
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a title"
    image, lost = kept(tmp_path / "a.jpg", dpi=(600, 300), xmp=xmp, comment="box 3, é", exif=exif)
    assert not lost and image.size == (20, 30)
    np.testing.assert_allclose(image.info["dpi"], (300, 600), atol=0.01)  # as it was turned
    assert image.info["xmp"] == xmp and image.info["Comment"] == "box 3, é"
    assert dict(image.getexif()) == {270: "a title"}
    resources = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0"
    segment = b"Photoshop 3.0\0" + resources
    data = (tmp_path / "a.jpg").read_bytes()
    other = b"\xff\xeb" + struct.pack(">H", 6) + b"JUMB"
    segment = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + other + data[2:])
    image, lost = kept(tmp_path / "a.jpg")
    name, size, *lines = image.info["Raw profile type iptc"].split()
    assert (name, int(size), bytes.fromhex("".join(lines))) == ("iptc", len(iptc), iptc)
    assert lost == ["its data in APP11 are left out"]

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Title", "old")
    chunks.add_itxt("Author", "日本", "ja")
    for name, values in {b"gAMA": [10**5], b"cHRM": range(31000, 39000, 1000)}.items():
        chunks.add(name, struct.pack(f">{len(values)}I", *values))
    image, lost = kept(tmp_path / "a.png", pnginfo=chunks)
    assert not lost and image.text == {"Title": "old", "Author": "日本"} and image.info["gamma"] == 1
    np.testing.assert_allclose(image.info["chromaticity"], np.arange(0.31, 0.385, 0.01))
    image, lost = kept(tmp_path / "a.tif", description="a scan", compression="tiff_lzw", dpi=(1200, 1200))
    assert image.getexif()[270] == "a scan" and 273 not in image.getexif() and round(image.info["dpi"][0]) == 1200


@pytest.mark.parametrize("exif", [b"Exif\0\0none", b"II*\0\x08\0\0\0\x88\x13" + bytes(range(1, 13)) * 5000])
def test_a_broken_exif_chunk_is_left_out(tmp_path, exif, recwarn):
    image, lost = kept(tmp_path / "a.png", exif=exif)
    assert lost == ["its EXIF data cannot be read and are left out"] and not image.getexif()


def test_what_goes_on_from_known_pixels_is_half_of_the_shapes():
    ramp = np.linspace(20, 200, 40)[:, None, None] * np.ones((1, 30, 3))
    weight = np.zeros((40, 30, 1), np.float32)
    weight[15:20] = 1
    valid = np.arange(30) < 25
    photos = [np.where(valid[:, None] | (weight > 0), ramp + 10 * weight, ignored) for ignored in (0, 255)]
    valid = np.broadcast_to(valid, (40, 30))
    drawn = [filling.continued(photo, ramp + 5 * weight, weight, valid, unit=3) for photo in photos]
    np.testing.assert_array_equal(drawn[0][:, :25], drawn[1][:, :25])
    np.testing.assert_allclose(drawn[0][:, :10], (ramp + 5 * weight)[:, :10], atol=0.02)


def test_detail_near_known_pixels_is_the_textures():
    photo, weight = np.full((40, 60, 3), 90.0), np.zeros((40, 60, 1), np.float32)
    weight[16:24] = 1
    texture = photo + np.where(np.indices((40, 60)).sum(0) % 2, 8, -8)[..., None]
    drawn = filling.continued(photo, texture, weight, np.ones((40, 60), bool), unit=3)
    np.testing.assert_allclose(drawn[18:22, 5:-5], 90 + filling.GAIN * (texture - 90)[18:22, 5:-5], atol=0.3)


def test_nothing_goes_on_where_nothing_known_is_reached():
    values = np.full((60, 80, 1), 200, np.float32)
    unknown, known = np.zeros((2, 60, 80), bool)
    unknown[20:40, :30], unknown[20:40, 50:], known[:20, :30] = True, True, True
    for sigma in (1, 7):  # the rest is void
        drawn = filling.going_on(np.where((known | unknown)[..., None], values, 0), unknown, known, sigma)
        np.testing.assert_allclose(drawn[unknown], 200, atol=0.01)


def test_what_goes_on_in_a_large_photo_is_worked_out_in_a_smaller_one(monkeypatch):
    y, x = np.indices((90, 121))
    values = np.stack([128 + 60 * np.sin(x / 17 + y / 23), 0.9 * x + 0.3 * y, 200.0 - y], -1).astype(np.float32)
    unknown = np.abs(y - 45 - x / 6) < 9
    damaged = np.where(unknown[..., None], 0, values)
    exact = filling.going_on(damaged, unknown, ~unknown, 1)
    np.testing.assert_allclose(exact[unknown], compositing.biharmonic(damaged, unknown, ~unknown)[unknown], rtol=1e-4)
    coarse = [filling.going_on(damaged, unknown, ~unknown, 7)]
    monkeypatch.setattr(compositing, "EXACT", unknown.sum() / 8)
    coarse.append(filling.going_on(damaged, unknown, ~unknown, 1))
    np.testing.assert_array_equal(*coarse)  # at a third of the resolution, both
    assert np.abs(coarse[0] - values)[unknown].mean() < 2 * np.abs(exact - values)[unknown].mean() + 1


def test_an_edge_goes_on_through_a_scratch():
    y, x = np.indices((120, 120))
    truth = np.repeat(128 + 90 * np.tanh((x - 0.7 * y - 15) / 3), 3).reshape(120, 120, 3).astype(np.uint8)
    hidden = np.abs(y - 60 + 0.1 * x) < 3
    mended, _, copied = filling.into_photo(truth, hidden, [], [])
    error, of_patchmatch = (np.abs(each.astype(float) - truth)[hidden].mean() for each in (mended, copied))
    assert error < 3 and error < of_patchmatch
