"""Faces, their landmarks and crops, on the portrait of Eileen Collins (NASA, public domain) in scikit-image."""

import csv
import functools
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cli

import cv2
import dlib
import numpy as np
import pytest
import skimage.data
from conftest import ROOT, one_line, run
from PIL import Image

import utils
from photos import alignment, detection, geometry, reading, record

ASTRONAUT = skimage.data.astronaut()  # (512, 512, 3); her face, and below it what dlib takes for a second one
PORTRAIT = ASTRONAUT[:240, 100:340].copy()  # her face alone
PAIR = np.hstack([np.pad(PORTRAIT, [(0, 240), (0, 0), (0, 0)]), cv2.resize(PORTRAIT, (480, 480))])  # twice as large
NOISE = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)

run = functools.partial(run, "align.py")
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # `utils` ignores them


def one_process(tasks, output, settings):
    """As `alignment.in_parallel`, in this process, where dlib's models are loaded once for all tests."""
    return (alignment.align_file(output, settings, *task) for task in tasks)


@pytest.fixture
def in_process(monkeypatch):
    """Photos are aligned in this process."""
    monkeypatch.setattr(alignment, "in_parallel", one_process)


@pytest.fixture(scope="module")
def models():
    return detection.FaceDetector.load()


def align(photo, models, **options):
    """`alignment.align_photo` of an array or a Pillow image."""
    image = photo if isinstance(photo, Image.Image) else Image.fromarray(photo)
    image.save(file := io.BytesIO(), "PNG")
    return alignment.align_photo(reading.to_photo(image, file), models, alignment.Settings(**options))


def rows_of(output):
    with open(output / "align.csv", newline="") as file:
        return list(csv.DictReader(file))


def matrix_of(row):
    return np.array([float(row[name]) for name in record.MATRIX]).reshape(2, 3)


def crops(output):
    return sorted(
        str(path.relative_to(output)) for path in output.rglob("*") if path.is_file() and path.suffix != ".csv"
    )


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def apply(matrix, points):
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def rotation(degrees, shape, zoom=1.0):
    """The 2x3 matrix that turns a photo about its centre and moves it into the middle of one `zoom` times as large."""
    height, width = shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    matrix[:, 2] += (zoom - 1) / 2 * np.array([width, height])
    return matrix, (round(width * zoom), round(height * zoom))


def test_template_is_a_face_that_fills_its_box():
    # the points of one half against those of the other, in iBUG's order: chin, brows, nose, eyes, mouth
    mirror = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    mirror += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    mirror += [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    # its own axis leans a little; sixty of the numbers have a partner, and none is far from it
    points = geometry.MINMAX_TEMPLATE.astype(float)
    assert points.shape == (68, 2) and points.min(0).tolist() == [0, 0] and points.max(0).tolist() == [1, 1]
    middle = np.polyfit(points[:, 1], (points[:, 0] + points[mirror, 0]) / 2, 1)
    axis = np.polyval(middle, (points[:, 1] + points[mirror, 1]) / 2)
    assert np.abs((points[:, 0] + points[mirror, 0]) / 2 - axis).max() < 0.025
    assert np.abs(points[:, 1] - points[mirror, 1]).max() < 0.035
    # from OpenFace's published numbers of the inner corner of an eye, and of the outermost points
    x = (0.403718978315 - 0.0792396913815) / (0.971193274221 - 0.0792396913815)
    y = (0.33867711083 - 0.182360984545) / (1.06080371126 - 0.182360984545)
    np.testing.assert_allclose(points[39], [x, y], atol=1e-6)


@pytest.mark.parametrize("which, three", [("innerEyesAndBottomLip", [39, 42, 57]), ("outerEyesAndNose", [36, 45, 33])])
@pytest.mark.parametrize("size", [64, 96])
def test_affine_is_the_solution_of_its_equations(which, three, size):
    landmarks = np.random.default_rng(1).uniform(0, 500, (68, 2)).astype(np.float32)
    template = geometry.TEMPLATE.astype(float)
    low, high = template.min(0), template.max(0)
    wanted = [[size * (template[i, k] - low[k]) / (high[k] - low[k]) for k in (0, 1)] for i in three]
    equations = [[landmarks[i, 0], landmarks[i, 1], 1] for i in three]
    solution = np.linalg.solve(np.float64(equations), np.float64(wanted)).T
    np.testing.assert_allclose(geometry.affine(landmarks, size, which), solution, rtol=1e-4, atol=1e-5)


def test_landmarks_on_one_line_have_no_map():
    with pytest.raises(ValueError, match="one line"):
        geometry.affine(np.stack([np.arange(68), np.arange(68)], -1), 64)


def bilinear(pixels, matrix, size):
    """The crop in plain float64 numpy, 0 outside, and whether each pixel of it needs only pixels with `pixels` > 0."""
    inverse = np.linalg.inv(matrix[:, :2])
    y, x = np.indices((size, size))
    position = (np.stack([x, y], -1) - matrix[:, 2]) @ inverse.T
    corner = np.floor(position).astype(int)
    share = position - corner
    padded = np.pad(pixels.astype(float), [(1, 1), (1, 1)] + [(0, 0)] * (pixels.ndim - 2))
    total, whole = 0, np.ones((size, size), bool)
    for dx, dy in np.ndindex(2, 2):
        weight = np.abs(1 - dx - share[..., 0]) * np.abs(1 - dy - share[..., 1])
        column = np.clip(corner[..., 0] + dx + 1, 0, padded.shape[1] - 1)
        row = np.clip(corner[..., 1] + dy + 1, 0, padded.shape[0] - 1)
        values = padded[row, column]
        total = total + weight.reshape(weight.shape + (1,) * (pixels.ndim - 2)) * values
        whole &= (weight == 0) | (values.reshape(size, size, -1) > 0).all(-1)
    return total, whole


MAPS = {
    "larger": np.array([[1.31, 0.2, -11.3], [-0.17, 1.43, -20.7]]),
    "smaller": np.array([[0.52, 0.05, 9.213], [-0.06, 0.53, 7.437]]),
}


@pytest.mark.parametrize("matrix", MAPS.values(), ids=MAPS)
def test_warp_is_openfaces(matrix):
    crop = geometry.warp(NOISE, matrix, 64)
    np.testing.assert_array_equal(crop, cv2.warpAffine(NOISE, matrix, (64, 64)))
    assert np.abs(crop - bilinear(NOISE, matrix, 64)[0]).mean() < 1  # OpenCV 4 rounds positions to 1/32 pixel


@pytest.mark.parametrize("shrink", [2.2, 3.7, 8.1])
def test_a_large_photo_is_averaged_down_in_place(shrink):
    matrix = cv2.getRotationMatrix2D((0, 0), 20, 1 / shrink)
    matrix[:, 2] = 32 - matrix[:, :2] @ [300, 300]
    y, x = np.indices((600, 600))
    ramp = np.stack([x * 0.4, y * 0.4, 255 - x * 0.4], -1).round().astype(np.uint8)
    # averages of a ramp lie on the ramp, if each is taken to be at the middle of its box
    crop = geometry.warp(ramp, matrix, 64)
    position = (np.stack(np.indices((64, 64))[::-1], -1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    inside = ((position > 10) & (position < 590)).all(-1)
    assert inside.mean() > 0.5
    expected = np.concatenate([position * 0.4, 255 - position[..., :1] * 0.4], -1)
    error = (crop - expected)[inside]
    # a quarter pixel off would be 0.1; that averages are rounded upwards is the same in a rising and a falling ramp
    assert np.abs(error).max() < 1.01 and abs((error[:, 0] - error[:, 2]).mean() / 2) < 0.02
    assert abs((error[:, 0] - error[:, 1]).mean()) < 0.02

    board = np.repeat(255 * ((x + y) % 2)[..., None], 3, -1).astype(np.uint8)
    assert geometry.warp(board, matrix, 64)[inside].std() < 15
    assert cv2.warpAffine(board, matrix, (64, 64))[inside].std() > 40


def transparent(pixels, hole, colour):
    return np.dstack([np.where(hole[..., None], colour, pixels), np.where(hole, 0, 255)]).astype(np.uint8)


@pytest.mark.parametrize("matrix", MAPS.values(), ids=MAPS)
def test_no_colour_leaks_from_under_transparency(matrix):
    hole = np.zeros(NOISE.shape[:2], bool)
    hole[20:50, 30:60] = True
    hole[60, 40] = True
    white, red = (geometry.warp(transparent(NOISE, hole, c), matrix, 64) for c in ([255, 255, 255], [255, 0, 0]))
    np.testing.assert_array_equal(white, red)
    opaque = white[..., 3] == 255
    np.testing.assert_array_equal(opaque, bilinear(~hole, matrix, 64)[1])
    assert 0.3 < opaque.mean() < 0.95
    plain = geometry.warp(NOISE, matrix, 64)
    np.testing.assert_array_equal(white[opaque][:, :3], plain[opaque])
    assert (white[..., 3] == 0).any()


def test_no_colour_leaks_where_a_large_photo_is_averaged_down():
    photo = np.full((700, 700, 3), 90, np.uint8)
    hole = np.zeros((700, 700), bool)
    hole[333, 333] = True
    matrix = np.array([[1 / 35, 0, 0], [0, 1 / 35, 0]])
    crop = geometry.warp(transparent(photo, hole, [255, 255, 255]), matrix, 18)
    inside = crop[1:-1, 1:-1]  # what lies partly outside of the photo is not opaque either
    assert (crop[0, :, 3] < 255).all()
    # one of the 1,225 pixels of a box: alpha rounds to 255 of itself
    rows, columns = np.nonzero(inside[..., 3] == 254)
    centres = np.stack([columns, rows], -1) * 35 + 35
    assert 1 <= len(rows) <= 4 and np.abs(centres - 333).max() < 53
    assert (inside[..., 3] >= 254).all() and (inside[..., :3] == 90).all()


def test_half_transparency_stays_half():
    photo = np.full((90, 80, 4), 128, np.uint8)
    crop = geometry.warp(photo, np.array([[1.3, 0, -20], [0, 1.3, -20]]), 64)
    assert np.abs(crop.astype(int) - 128).max() <= 1


def test_crop_equals_openfaces_formula_on_the_same_landmarks(models):
    ((box, matrix, crop, seen),), count = align(PORTRAIT, models, size=96)
    assert seen == "" and count == 1
    assert box.contains(dlib.point(120, 120))
    points = np.float32([(p.x, p.y) for p in models.predictor(PORTRAIT, box).parts()])
    three = np.array([39, 42, 57])
    expected = cv2.getAffineTransform(points[three], 96 * geometry.MINMAX_TEMPLATE[three])
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal(crop, cv2.warpAffine(PORTRAIT, expected, (96, 96)))


def test_rotated_photo_and_landmarks_give_the_upright_crop(models):
    (box,) = models.find_faces(PORTRAIT)
    landmarks = models.find_landmarks(PORTRAIT, box)
    upright = geometry.warp(PORTRAIT, geometry.affine(landmarks, 64), 64)
    for degrees in (10, 35, 90, 180):
        turn, size = rotation(degrees, PORTRAIT.shape, 1.5)
        photo = cv2.warpAffine(PORTRAIT, turn, size, flags=cv2.INTER_CUBIC)
        crop = geometry.warp(photo, geometry.affine(apply(turn, landmarks), 64), 64)
        assert np.abs(crop.astype(int) - upright).mean() < 2.5
    # what another crop would differ by
    assert np.abs(np.roll(upright, 1, 1).astype(int) - upright).mean() > 5


@pytest.mark.parametrize("degrees", [10, -10])
def test_a_rotated_photo_is_found_again(models, degrees):
    turn, size = rotation(degrees, PORTRAIT.shape)
    turned = cv2.warpAffine(PORTRAIT, turn, size)
    for which, three in geometry.LANDMARKS.items():
        (face,), _ = align(PORTRAIT, models, landmarks=which)
        landmarks = models.find_landmarks(PORTRAIT, face.box)
        (face,), _ = align(turned, models, landmarks=which)
        places = apply(face.matrix, apply(turn, landmarks))[three]
        assert np.linalg.norm(places - 64 * geometry.MINMAX_TEMPLATE[three], axis=-1).max() < 3


def test_which_faces(models):
    assert len(models.find_faces(ASTRONAUT, "largest", 1)) == 1
    every = models.find_faces(ASTRONAUT, "all", 1)
    assert len(every) == 2 and every == models.find_faces(ASTRONAUT, "only", 1)
    assert every[0].contains(dlib.point(220, 120))

    small = cv2.resize(PORTRAIT, (120, 120), interpolation=cv2.INTER_AREA)  # a face of 45 pixels
    assert not models.find_faces(small, "largest", 0) and not models.find_faces(small, "all", 0)
    (box,) = models.find_faces(small, "largest", 1)
    assert 30 < box.width() < 70  # in pixels of the photo itself
    # of two faces the larger, though the smaller is found first or surer
    box, other = models.find_faces(PAIR)
    assert box.left() > 240 and box.width() > 130 and other.right() < 240
    assert len(models.find_faces(PAIR, "all", 0)) == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (7, 7)])
def test_tiny_photos_show_no_face(models, shape):
    assert align(Image.new("RGB", shape), models) == ([], 0)


def test_a_missing_predictor_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(cli.UserError, match="pip install face_recognition_models"):
        detection.find_predictor()


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """A folder of all kinds of photos, and what align.py makes of it with --faces only: (folder, output, process)."""
    folder = tmp_path_factory.mktemp("photos")
    portrait = Image.fromarray(PORTRAIT)
    for name in ("sub/deep/portrait.png", "portrait.webp", "sub/portrait.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        portrait.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees counter-clockwise
    Image.fromarray(np.rot90(PORTRAIT)).save(folder / "rotated.png", exif=exif)
    portrait.convert("L").save(folder / "grey.png")
    Image.fromarray(np.asarray(portrait.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    portrait.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    hole = np.zeros(PORTRAIT.shape[:2], bool)
    hole[:, 160:] = True
    Image.fromarray(transparent(PORTRAIT, hole, [0, 255, 0])).save(folder / "damaged.png")

    Image.fromarray(ASTRONAUT).save(folder / "two.png")
    Image.fromarray(NOISE).save(folder / "none.png")
    portrait.save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:3000])
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    Image.new("1", (9, 9)).save(folder / "bomb.png")
    data, header = (folder / "bomb.png").read_bytes(), b"IHDR" + struct.pack(">II5B", 20000, 12501, 1, 0, 0, 0, 0)
    (folder / "bomb.png").write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    output = folder / "aligned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "in_parallel", one_process)
        return folder, output, run(folder, output, "--faces", "only")


def test_every_kind_of_photo_has_its_row(aligned):
    folder, output, done = aligned
    good = ["cmyk", "damaged", "deep", "grey", "portrait", "rotated", "sub/deep/portrait", "sub/portrait"]
    assert crops(output) == [f"{name}.png" for name in good]
    rows = {str((output / row["source"]).resolve().relative_to(folder.resolve())): row for row in rows_of(output)}
    assert {row["output"] for row in rows.values() if row["status"] == "aligned"} == set(crops(output))
    status = {name: row["status"] for name, row in rows.items() if row["status"] != "aligned"}
    assert status.pop("two.png") == "several faces" and status.pop("none.png") == "no face"
    why = {
        "truncated.jpg": "truncated",
        "text.png": "cannot identify",
        "empty.jpg": "cannot",
        "bomb.png": "20000x12501 pixels are more than 250,000,000",
    }
    assert status.keys() == why.keys() and len(rows) == 8 + 2 + 4
    for name in why:
        assert status[name].startswith("unreadable: ") and why[name] in status[name]
        assert f"skipped {folder / name}: {status[name]}" in done.stderr
        assert rows[name]["output"] == "" == rows[name]["m00"]
    assert done.stdout.splitlines() == [
        f"{output}: 8 faces aligned in 8 of 14 photos, 0 already done, 1 no face, 1 several faces, 4 unreadable"
    ]


def test_one_face_in_every_format_is_one_crop(aligned):
    folder, output, _ = aligned
    portrait = read(output / "portrait.png")
    assert portrait.shape == (64, 64, 3)
    for name in ("rotated.png", "sub/portrait.png", "sub/deep/portrait.png"):
        np.testing.assert_array_equal(read(output / name), portrait)
    np.testing.assert_array_equal(read(output / "deep.png"), read(output / "grey.png"))
    matrices = {row["output"]: matrix_of(row) for row in rows_of(output) if row["output"]}
    for name in ("grey.png", "cmyk.png"):  # the landmarks may be a pixel off
        assert np.abs(apply(matrices[name], [[120, 120]]) - apply(matrices["portrait.png"], [[120, 120]])).max() < 3
    luma = PORTRAIT @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    grey, cmyk = (cv2.warpAffine(p, matrices[n], (64, 64)) for p, n in ((luma, "grey.png"), (PORTRAIT, "cmyk.png")))
    assert np.abs(read(output / "grey.png") - grey[..., None]).max() < 2
    assert np.abs(read(output / "cmyk.png").astype(int) - cmyk).mean() < 4
    damaged = read(output / "damaged.png")
    assert damaged.shape == (64, 64, 4) and set(np.unique(damaged[..., 3])) >= {0, 255}
    # training reads what is made here
    assert all(utils.read_image(path, 64, 3).shape == (64, 64, 3) for path in utils.find_images(output))


def test_the_record_leads_back_into_the_photo(aligned, models):
    folder, output, _ = aligned
    rows = {Path(row["source"]).name: row for row in rows_of(output) if row["status"] == "aligned"}
    for name in ("portrait.webp", "rotated.png"):
        row = rows[name]
        crop = cv2.warpAffine(PORTRAIT, matrix_of(row), (64, 64))  # of the upright photo
        np.testing.assert_array_equal(crop, read(output / row["output"]))
        settings = [row[name] for name in ("size", "faces", "landmarks", "face")]
        assert settings == ["64", "only", "innerEyesAndBottomLip", "0"]
    (box,) = models.find_faces(PORTRAIT, "only")
    sides = [int(rows["portrait.webp"][name]) for name in record.BOX]
    assert sides == [box.left(), box.top(), box.right(), box.bottom()]


def test_a_second_run_does_what_is_missing_and_no_more(aligned, in_process):
    folder, output, _ = aligned
    expected, before, deep = crops(output), rows_of(output), (output / "deep.png").read_bytes()
    (output / "grey.png").unlink()
    (output / "deep.png").write_bytes(b"kept as it is")
    out = run(folder, output, "--faces", "only").stdout
    assert "1 faces aligned in 1 of 14 photos, 7 already done, 1 no face, 1 several faces, 4 unreadable" in out
    assert (output / "deep.png").read_bytes() == b"kept as it is"
    assert rows_of(output) == before
    # what another command would add to it has to be of the same kind
    others = ("size", 32, 64), ("landmarks", "outerEyesAndNose", "innerEyes"), ("faces", "all", "only")
    for flag, value, kept in others:
        flags = {"faces": "only"} | {flag: value}
        done = run(folder, output, *(f"--{name}={flags[name]}" for name in flags), status=2)
        one_line(done, f"--{flag} {value}", str(kept), "another OUTPUT")
    assert rows_of(output) == before
    out = run(folder / "sub", output, "--faces", "only", "--overwrite").stdout
    assert "2 faces aligned in 2 of 2 photos, 0 already done" in out
    # the same sources are the same crops, however they are reached
    assert rows_of(output) == before and crops(output) == expected
    (output / "deep.png").write_bytes(deep)  # for the other tests


def test_slow_modules_wait_for_work():
    code = f"""if True:
        import runpy, sys
        sys.argv = ["align.py", "--help"]
        try:
            runpy.run_path(r"{ROOT / "align.py"}", run_name="__main__")
        finally:
            assert not {{"tensorflow", "cv2", "dlib"}} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout


@pytest.mark.parametrize("degrees", [45, 90, 180, 225, 270])
def test_a_sideways_photo_is_cropped_upright(models, degrees):
    photo = ASTRONAUT[:300, 60:360]
    (upright,), _ = align(photo, models)
    turn, size = geometry.turn_matrix(degrees, photo.shape[:2])
    (face,), count = align(cv2.warpAffine(photo, turn, size), models)
    three = 64 * geometry.MINMAX_TEMPLATE[[39, 42, 57]]
    places, expected = (apply(cv2.invertAffineTransform(one.matrix), three) for one in (face, upright))
    error = np.linalg.norm(places - apply(turn, expected), axis=1).mean()
    assert count == 1 and error < (0.01 if degrees % 90 == 0 else 0.1 * np.linalg.norm(expected[0] - expected[1]))


def test_a_large_photo_is_looked_at_in_the_size_of_detection(models, monkeypatch):
    expected = apply(align(PORTRAIT, models)[0][0].matrix, [[100.0, 90], [140, 90], [120, 150]])
    monkeypatch.setattr(detection, "DETECTION_SIZE", 240)
    large = cv2.resize(PORTRAIT, (960, 960), interpolation=cv2.INTER_CUBIC)
    (face,), count = align(large, models)
    places = apply(face.matrix, 4 * np.array([[100.0, 90], [140, 90], [120, 150]]) + 1.5)
    assert count == 1 and np.abs(places - expected).max() < 1
