import shutil

import cli

import numpy as np
import pytest
from PIL import Image, ImageSequence

import utils

RGB = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_lossless_image_is_read_exactly(save_image, suffix):
    path = save_image(f"x.{suffix}", RGB, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(utils.read_image(path, 16, 3), RGB)


def test_jpeg_is_read(save_image):
    ramp = np.broadcast_to(np.arange(0, 256, 16, dtype=np.uint8)[:, None, None], (16, 16, 3))
    image = utils.read_image(save_image("x.jpg", ramp, quality=100), 16, 3)
    assert np.abs(image.astype(int) - ramp).max() <= 2


def test_grey_image_serves_as_rgb_and_the_reverse(save_image):
    grey = RGB[..., 0]
    np.testing.assert_array_equal(utils.read_image(save_image("g.png", grey), 16, 3), np.stack([grey] * 3, -1))
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(utils.read_image(save_image("c.png", RGB), 16, 1)[..., 0] - luma).max() <= 1


def test_sixteen_bits_are_scaled_not_clipped(save_image):
    deep = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    np.testing.assert_array_equal(utils.read_image(save_image("deep.png", deep), 16, 1)[..., 0], deep // 257)


def test_transparent_pixels_show_white(save_image):
    alpha = np.full((16, 16, 1), 255, np.uint8)
    alpha[:8] = 0
    image = utils.read_image(save_image("a.png", np.concatenate([RGB, alpha], -1)), 16, 3)
    assert (image[:8] == 255).all()
    np.testing.assert_array_equal(image[8:], RGB[8:])


def test_cmyk_is_read(save_image):
    image = utils.read_image(save_image("c.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0))), 16, 3)
    assert image[8, 8, 0] > 200 and image[8, 8, 1:].max() < 60


def test_exif_rotation_is_undone(save_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees counter-clockwise
    path = save_image("r.png", np.rot90(RGB), exif=exif)
    np.testing.assert_array_equal(utils.read_image(path, 16, 3), RGB)


def test_other_size_is_centre_cropped_then_averaged_down(save_image):
    # left and right of the centre square: white; inside: a one-pixel checkerboard, grey to the eye
    wide = np.full((64, 128, 3), 255, np.uint8)
    wide[:, 32:96] = 255 * (np.indices((64, 64)).sum(0) % 2)[..., None]
    image = utils.read_image(save_image("w.png", wide), 16, 3)
    assert image.shape == (16, 16, 3)
    assert np.abs(image[:, 2:-2].astype(int) - 127).max() <= 3


def test_unreadable_image_is_named(broken, tmp_path, save_image):
    truncated = save_image("t.png", RGB)
    truncated.write_bytes(truncated.read_bytes()[:200])
    for path in (broken, truncated, tmp_path / "missing.png"):
        with pytest.raises(cli.UserError, match=path.name):
            utils.read_image(path, 16, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [100, 200])  # Pillow itself raises from twice the limit, and warns below
def test_decompression_bombs_are_refused(save_image, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(cli.UserError, match=f"big.png.*more than {limit} "):
        utils.open_image(save_image("big.png", RGB))


def test_find_images_in_subfolders_by_suffix(folder):
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "a" / "LOUD.JPG").write_bytes(b"")
    found = [str(p.relative_to(folder)) for p in utils.find_images(folder)]
    assert found == [*(f"a/{i}.png" for i in "02468"), "a/LOUD.JPG", *(f"b/{i}.png" for i in "13579")]


def test_linked_folders_are_searched_once_and_none_above(folder, tmp_path):
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    shutil.copy(folder / "a/0.png", tmp_path / "elsewhere/deep/x.png")
    shutil.copy(folder / "a/0.png", tmp_path / "above.png")
    links = {"a/link": tmp_path / "elsewhere", "again": tmp_path / "elsewhere", "b/self": "..", "up": tmp_path}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (tmp_path / "elsewhere/loop").symlink_to(folder)
    found = {str(p.relative_to(folder)) for p in utils.find_images(folder)}
    assert found == {f"{'ab'[i % 2]}/{i}.png" for i in range(10)} | {"again/deep/x.png"}


@pytest.mark.parametrize("suffix", utils.IMAGE_SUFFIXES)
def test_photos_of_all_formats_are_found_and_read(tmp_path, suffix):
    flat = np.full((32, 32, 3), 99, np.uint8)
    Image.fromarray(flat).convert("L" if suffix == ".pgm" else "RGB").save(tmp_path / f"photo{suffix.upper()}")
    (path,) = utils.find_images(tmp_path)
    assert np.abs(utils.read_image(path, 32, 3).astype(int) - 99).max() <= 2


def test_what_a_folder_holds_beside_images_is_told(folder, capsys, monkeypatch):
    monkeypatch.setattr(utils, "IMAGE_SUFFIXES", [".png"])
    for name in ("a/1.HEIC", "b/2.heic", "notes.txt", "LICENSE", ".hidden", "align.csv"):
        (folder / name).touch()
    assert len(utils.find_images(folder, report=True)) == 10
    told = "1 .txt, 1 without a suffix, 2 .heic (needs pip install pillow-heif)"
    assert capsys.readouterr().err == f"skipped in {folder}: {told}\n"
    with pytest.raises(cli.UserError, match="1.HEIC: not a readable image .needs pip install pillow-heif"):
        utils.open_image(folder / "a/1.HEIC")


def test_pixels_survive_the_float_range():
    pixels = np.arange(256, dtype=np.uint8)
    floats = utils.to_float(pixels)
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(utils.to_uint8(floats), pixels)
    np.testing.assert_array_equal(utils.to_uint8([-3.0, 3.0]), [0, 255])


def test_grid_places_images_row_by_row():
    images = np.linspace(-1, 1, 5).reshape(5, 1, 1, 1) * np.ones((1, 2, 3, 1))
    grid = utils.image_grid(images, columns=2)
    assert grid.shape == (6, 6, 1)
    np.testing.assert_array_equal(grid[::2, ::3, 0], [[0, 64], [128, 191], [255, 0]])


def test_labelled_rows_stand_below_each_other_in_blocks():
    views = {"one": np.full((5, 64, 64, 3), -1.0), "two": np.full((5, 64, 64, 3), 1.0)}
    picture = utils.labelled_rows(views, columns=4)  # twice as large, as 64 pixels are little to look at
    assert picture.shape == (2 * (2 * 128 + 8), 96 + 4 * 128, 3)
    assert (picture[128:256, 96:] == 255).all() and not picture[:128, 96:].any()
    assert picture[:128, :96].any()  # the label
    second = picture[264:]
    assert (second[128:256, 96:224] == 255).all() and not second[:, 224:].any()


def test_a_film_shows_every_frame_the_first_and_last_for_longer(tmp_path):
    frames = [np.full((64, 128, 1), value, np.uint8) for value in (0, 90, 180, 255)]
    utils.write_film(tmp_path / "film.gif", frames)
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.size == (256, 128)
        shown = [(frame.info["duration"], frame.convert("L").getextrema()) for frame in ImageSequence.Iterator(gif)]
    assert shown == [(1000, (0, 0)), (100, (90, 90)), (100, (180, 180)), (2000, (255, 255))]


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    for write, value in ((utils.write_image, pixels), (utils.write_film, [pixels] * 3)):
        with pytest.raises(cli.UserError, match="nowhere/a.gif: cannot be written"):
            write(tmp_path / "nowhere/a.gif", value)


def test_a_damaged_tiff_file_is_one_line(save_image, capfd):
    path = save_image("a.tif", RGB, compression="tiff_lzw")
    data = bytearray(path.read_bytes())
    data[8:700] = bytes(255 - value for value in data[8:700])
    path.write_bytes(data)
    with pytest.raises(cli.UserError, match="a.tif: not a readable image"):
        utils.open_image(path)
    assert not capfd.readouterr().err
