"""Photos of which a part is missing: faces are found under it, and it alone is filled."""

import csv
import functools
import re
import shutil
import subprocess
import sys
import types

import cv2
import dlib
import numpy as np
import pytest
import scipy.ndimage
import test_align
import test_faces
from conftest import ROOT, one_line
from conftest import run as run_script
from PIL import Image
from test_faces import PAIR, PORTRAIT, align, apply, crops, matrix_of, read, rows_of, run

from model import DCGAN
from photos import alignment, detection, geometry, occlusion, reading, record

models, in_process = test_faces.models, test_faces.in_process
run_here, refused = test_align.run_here, test_align.refused
BESIDE = np.zeros(PORTRAIT.shape[:2], bool)  # a hole that does not reach the face
BESIDE[-20:, -20:] = True
load_once = functools.cache(DCGAN.load)  # with the model stays what TensorFlow compiled for its search


@pytest.fixture(scope="module")
def landmarks(models):
    """The 68 landmarks of the portrait."""
    (box,) = models.find_faces(PORTRAIT)
    return models.find_landmarks(PORTRAIT, box)


@pytest.fixture
def quick(models, monkeypatch):
    """The models, for tests of other things than the landmarks: with a part of the prior, and read again only once."""
    monkeypatch.setattr(occlusion, "ROUNDS", 1)
    prior = models.prior
    return models._replace(prior=prior._replace(components=prior.components[:, :128], variances=prior.variances[:128]))


def hole(kind, landmarks):
    """A hole over the portrait's face: three strokes, a stain over an eye, the lower third, or a half."""
    hidden = np.zeros(PORTRAIT.shape[:2], np.uint8)
    (left, top), (right, bottom) = landmarks.min(0).astype(int), landmarks.max(0).astype(int)
    if kind == "strokes":
        lines = [(left, top), (right, bottom)], [(left, bottom), (right, top)], [(left, top), (left + 40, bottom)]
        for line in lines:
            cv2.line(hidden, *line, 1, 7)
    elif kind == "stain":
        cv2.circle(hidden, landmarks[36:42].mean(0).astype(int).tolist(), 25, 1, -1)
    elif kind == "lower":
        hidden[bottom - (bottom - top) // 3 : bottom, left:right] = 1
    else:
        hidden[top:bottom, (left + right) // 2 : right] = 1
    return hidden > 0


def grown(hidden, pixels=2):
    return scipy.ndimage.distance_transform_edt(~hidden) <= pixels


def transparent(hidden, colour=255):
    return Image.fromarray(test_faces.transparent(PORTRAIT, hidden, colour))


@pytest.mark.parametrize("kind", ["strokes", "stain", "lower", "half"])
def test_landmarks_are_found_under_a_hole(models, landmarks, kind):
    photo = transparent(hole(kind, landmarks))
    (face,), count = align(photo, models)
    three = geometry.LANDMARKS["innerEyesAndBottomLip"]
    places = apply(cv2.invertAffineTransform(face.matrix), 64 * geometry.MINMAX_TEMPLATE[three])
    eyes = np.linalg.norm(landmarks[36:42].mean(0) - landmarks[42:48].mean(0))
    assert count == 1 and np.linalg.norm(places - landmarks[three], axis=1).mean() < 0.1 * eyes
    assert {"inpainted", "grey", "mirrored"} >= set(face.seen.split("+")) > set()


def test_what_lies_under_a_hole_is_ignored(quick, landmarks):
    hidden, noise = hole("strokes", landmarks), np.random.default_rng(0).integers(0, 256, PORTRAIT.shape)
    ((one,), _), ((other,), _) = (align(transparent(hidden, colour), quick) for colour in (255, noise))
    np.testing.assert_array_equal(one.matrix, other.matrix)
    np.testing.assert_array_equal(one.crop, other.crop)
    assert one.crop.shape == (64, 64, 4) and 0.05 < (one.crop[..., 3] == 0).mean() < 0.6
    # alpha without any transparency is none
    (face,), _ = align(Image.fromarray(PORTRAIT).convert("RGBA"), quick)
    assert face.crop.shape == (64, 64, 3)


def test_a_sideways_photo_with_a_hole_is_cropped_upright(quick, landmarks):
    photo = transparent(hole("strokes", landmarks))
    (upright,), _ = align(photo, quick)
    (face,), count = align(photo.transpose(Image.Transpose.ROTATE_90), quick)
    turn, _ = geometry.turn_matrix(90, PORTRAIT.shape[:2])
    expected = upright.matrix @ np.linalg.inv(np.vstack([turn, [0, 0, 1]]))
    assert count == 1 and face.seen == upright.seen
    np.testing.assert_allclose(face.matrix, expected, atol=1e-3)


def test_without_a_prior_the_fillings_decide(models, landmarks):
    (face,), _ = align(transparent(hole("strokes", landmarks)), models._replace(prior=None))
    (whole,), _ = align(PORTRAIT, models)
    np.testing.assert_allclose(face.matrix, whole.matrix, atol=0.1, rtol=0.1)


def test_fillings_keep_what_is_known(landmarks):
    hidden = hole("half", landmarks)
    other = np.where(hidden[..., None], 7, PORTRAIT).astype(np.uint8)
    pairs = zip(occlusion.fillings(PORTRAIT, hidden), occlusion.fillings(other, hidden), strict=True)
    for (how, filled), (_, same) in pairs:
        np.testing.assert_array_equal(filled, same)
        np.testing.assert_array_equal(filled[~hidden], PORTRAIT[~hidden])
        if how == "grey":
            assert (filled[hidden] == 128).all()
    # the last one mirrors about the column to the right of the hole, the one before about the column to its left
    left, right = [filled for how, filled in occlusion.fillings(PORTRAIT, hidden) if how == "mirrored"]
    y, first = np.argwhere(hidden)[0]
    np.testing.assert_array_equal(left[y, first + 3], PORTRAIT[y, first - 5])
    last = np.flatnonzero(hidden[y])[-1]
    np.testing.assert_array_equal(right[y, last - 3], PORTRAIT[y, last + 5])


def test_the_face_with_the_hole_is_taken(models, landmarks):
    alpha = np.full(PAIR.shape[:2], 255, np.uint8)
    alpha[:240, :240][hole("stain", landmarks)] = 0
    (face,), count = align(np.dstack([PAIR, alpha]), models._replace(prior=None))
    assert count == 2 and face.box.right() < 240 and (face.crop[..., 3] == 0).mean() > 0.05
    # also beside a larger one that is cut out: what stays transparent is no hole
    cut_out = np.full(PAIR.shape[:2], 255, np.uint8)
    cut_out[:, 550:] = 0
    photo = reading.Photo(PAIR, np.minimum(alpha, cut_out), {}, [], cut_out)
    (face,), _ = alignment.align_photo(photo, models._replace(prior=None), alignment.Settings())
    assert face.box.right() < 240


def test_a_doubtful_face_needs_to_be_confirmed_and_beside_another_to_be_visible(monkeypatch):
    box = dlib.rectangle(10, 10, 49, 49)
    sure, far = (dlib.rectangle(x, 10, x + 39, 49) for x in (60, 110))
    hidden = np.zeros((60, 160), bool)
    hidden[10:50, 10:36] = True
    confirmed, pairs = [box, sure, far], []
    detector = types.SimpleNamespace(find_scored_faces=lambda *_: pairs, prior="prior")
    monkeypatch.setattr(occlusion, "is_face", lambda hidden, one, detector: one.box in confirmed)

    def found(*boxes):
        pairs[:] = boxes
        under = occlusion.find_faces_under(np.zeros((60, 160, 3), np.uint8), hidden, detector)
        return [one[0].box for one in under]

    assert found((box, -0.5)) == [box]
    assert found((box, -0.5), (sure, 1.0)) == [sure]  # a third of the first is visible
    hidden[10:50, 28:36] = False
    assert found((box, -0.5), (sure, 1.0)) == [box, sure]
    assert found((far, -0.5)) == [far]
    confirmed.clear()
    assert found((box, -0.5), (sure, 1.0)) == [sure]
    assert found((far, -0.5)) == found((box, -0.5)) == []


@pytest.fixture
def damaged(tmp_path, landmarks, in_process, quick, monkeypatch):
    """in/a.png and its mask masks/a.png, in the working directory; returns what is hidden."""
    hidden = hole("strokes", landmarks)
    for name in ("in", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(PORTRAIT).save(tmp_path / "in/a.png")
    Image.fromarray(hidden).save(tmp_path / "masks/a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detection, "pretrained_prior", lambda: quick.prior)
    return hidden


@pytest.fixture
def complete(damaged, trained, monkeypatch):
    """A function that runs complete.py with a tiny model."""
    monkeypatch.setattr(DCGAN, "load", load_once)
    flags = "--nIter 5 --candidates 20 --checkpointDir".split()
    return functools.partial(run_script, "complete.py", *flags, trained / "checkpoints/mine")


def test_masks_are_transparency(tmp_path, damaged, run_here):
    run_here("in", "out", "--mask", "masks/a.png")
    run_here("in", "by-name", "--maskDir", "masks")
    transparent(grown(damaged), 90).save(tmp_path / "in/a.png")
    run_here("in", "alpha")
    expected = read(tmp_path / "alpha/a.png")
    assert 0.05 < (expected[..., 3] == 0).mean() < 0.6
    np.testing.assert_array_equal(read(tmp_path / "out/a.png"), expected)
    np.testing.assert_array_equal(read(tmp_path / "by-name/a.png"), expected)
    (row,), (other,) = rows_of(tmp_path / "out"), rows_of(tmp_path / "alpha")
    assert row["mask"] == "../masks/a.png" and other["mask"] == ""
    assert row["seen"] == other["seen"] != "" and (row["grow"], other["grow"]) == ("2", "")


def test_the_hole_of_a_mask_grows_as_asked(tmp_path, damaged, run_here, complete):
    scratched = np.where(grown(damaged, 4)[..., None], [250, 10, 200], PORTRAIT).astype(np.uint8)
    Image.fromarray(scratched).save("in/a.png")
    for more, reached, told in ([], 2, True), (["--grow", 5], 5, False):
        out = tmp_path / f"out{reached}"
        done = complete("in/a.png", "--photo", "--mask", "masks/a.png", "--outDir", out, *more)
        changed = (read(out / "photos/a.png") != scratched).any(-1)
        assert not changed[~grown(damaged, reached)].any()
        assert changed[grown(damaged, reached)].mean() > 0.8
        assert (f"reach beyond its mask; paint more, or give more than --grow {reached}" in done.stderr) == told
    # the record knows it, and another growth is another hole
    Image.fromarray(PORTRAIT).save("in/a.png")
    holes = []
    for number, done in (5, "1 faces aligned"), (5, "1 already done"), (0, "1 faces aligned"):
        assert done in run_here("in", "crops", "--mask", "masks/a.png", "--grow", number)
        holes.append((read(tmp_path / "crops/a.png")[..., 3] == 0).mean())
    assert holes[0] == holes[1] > 1.5 * holes[2]
    assert "--grow: is for --photo" in complete("in", "--grow", 1, status=2).stderr


def test_bad_masks_are_reported_and_the_other_photos_aligned(tmp_path, damaged, run_here, refused):
    for name in ("b", "c", "d"):
        shutil.copy("in/a.png", f"in/{name}.png")
    Image.fromarray(damaged[:-1]).save(tmp_path / "masks/b.png")
    (tmp_path / "masks/c.png").write_text("no picture")
    assert "1 faces aligned in 1 of 4 photos" in run_here("in", "out", "--maskDir", "masks")
    assert "in/b.png: no fitting mask: " in run_here.err
    assert "masks/b.png: a mask of 240x239 pixels, for a photo of 240x240" in run_here.err
    assert "masks/c.png: not a readable image" in run_here.err
    assert "in/d.png: no fitting mask: --maskDir masks: holds no mask, or several, named d" in run_here.err
    assert crops(tmp_path / "out") == ["a.png"]
    for flags, words in (
        (["--mask", "masks/a.png"], "--mask: is for one photo, and INPUT holds 4; --maskDir"),
        (["--points", "1,1", "9,1", "5,9"], "--points: is for one photo, and INPUT holds 4"),
        (["--maskDir", "nowhere"], "--maskDir nowhere: no such directory"),
    ):
        assert words in refused("in", "new", *flags)
    assert "masks/c.png: not a readable image" in refused("in/a.png", "new", "--mask", "masks/c.png")
    assert not (tmp_path / "new").exists()


def test_two_files_of_one_name_share_a_mask_beside_each_other(tmp_path, damaged, run_here):
    Image.fromarray(PORTRAIT).save("in/a.bmp")
    assert "2 faces aligned in 2 of 2 photos" in run_here("in", "out", "--maskDir", "masks")
    assert [row["mask"] for row in rows_of(tmp_path / "out")] == ["../masks/a.png"] * 2


def test_masks_in_subfolders(tmp_path, damaged, run_here, refused):
    for name in ("x", "y"):
        (tmp_path / "in" / name).mkdir()
        shutil.copy("in/a.png", f"in/{name}/a.png")
    line = refused("in", "out", "--maskDir", "masks")
    assert "masks/a.png: would be the mask of" in line and "same subfolders" in line
    (tmp_path / "masks/x").mkdir()
    (tmp_path / "masks/y").mkdir()
    Image.fromarray(damaged).save(tmp_path / "masks/x/a.png")
    Image.fromarray(damaged.T).save(tmp_path / "masks/y/a.png")
    assert "3 faces aligned in 3 of 3 photos" in run_here("in", "out", "--maskDir", "masks")
    assert [row["mask"] for row in rows_of(tmp_path / "out")] == [f"../masks/{n}a.png" for n in ("", "x/", "y/")]


def test_a_mask_without_white_is_reported(tmp_path, damaged, complete):
    Image.new("RGB", (240, 240), "red").save(tmp_path / "red.png")
    flags = ["in/a.png", "--photo", "--mask", "red.png"]
    done = complete(*flags, status=2)
    assert "red.png: hides nothing; make white what is missing" in done.stderr
    # the same command may be tried again
    Image.fromarray(damaged).save(tmp_path / "red.png")
    complete(*flags)


def test_a_hole_that_has_grown_is_reported(tmp_path, damaged, run_here, complete):
    run_here("in", "out", "--mask", "masks/a.png", "--size", 16)
    grown = damaged.copy()
    grown[60:160, 70:170] = True
    Image.fromarray(grown).save(tmp_path / "masks/a.png")
    done = complete("out", "--put_back")
    assert "in/a.png: has changed since its faces were cut out; run align.py again" in done.stderr
    assert not list((tmp_path / "completions/photos").iterdir())


def test_what_is_transparent_is_not_taken_for_a_change(tmp_path, damaged, complete):
    transparent(damaged, 3).save(tmp_path / "in/a.png")
    assert "photos: 1 mended" in complete("in", "--photo", "--maskType", "top").stdout


def test_a_doubtful_face_does_not_hide_a_small_one():
    class Detector:
        """Doubts one place at the photo's own size, and is sure of another in the doubled one."""

        @staticmethod
        def run(photo, times, threshold):
            box = dlib.rectangle(100, 100, 140, 140) if times else dlib.rectangle(0, 0, 80, 80)
            return [box], [1.0 if times else -0.5], [0]

    hidden = np.zeros((240, 240), bool)
    hidden[120, 110:130] = True
    found = occlusion.find_faces_under(PORTRAIT, hidden, detection.FaceDetector(Detector, None, None))
    assert len(found) == 1 and found[0][0].box.left() == 100


@pytest.mark.parametrize("read, left", [((None, 0.6), 100), ((None, 0.4), 10), (None, 10)])
def test_a_doubtful_face_under_the_hole_is_to_be_confirmed(monkeypatch, read, left):
    """Where the detector, surer of another face, is sure of it only in the picture with the most probable face."""

    class Detector:
        prior = "a prior"

        def find_scored_faces(self, *_):
            return [(dlib.rectangle(10, 10, 50, 50), 0.9), (dlib.rectangle(100, 100, 140, 140), -0.3)]

        def find_landmarks(self, photo, box):
            return np.zeros((68, 2))

    monkeypatch.setattr(occlusion, "refine", lambda *_: read)
    hidden = np.zeros((240, 240), bool)
    hidden[120, 110:130] = True
    found = occlusion.find_faces_under(PORTRAIT, hidden, Detector())
    assert found[0][0].box.left() == left and len(found) == (2 if left == 100 else 1)


def test_another_mask_is_not_silently_ignored(tmp_path, damaged, run_here, refused):
    run_here("in", "out")
    line = refused("in", "out", "--mask", "masks/a.png")
    assert f"--mask {tmp_path}/masks/a.png: OUTPUT out holds the crop of {tmp_path}/in/a.png with --mask none" in line
    assert "choose another OUTPUT, or --overwrite" in line
    run_here("in", "out", "--mask", "masks/a.png", "--overwrite")
    assert read(tmp_path / "out/a.png").shape == (64, 64, 4)
    assert "1 already done" in run_here("in", "out", "--mask", "masks/a.png")


def test_photos_with_masks_join_one_after_the_other(tmp_path, damaged, run_here):
    shutil.copy("in/a.png", "in/b.png")
    Image.fromarray(damaged.T).save(tmp_path / "masks/b.png")
    run_here("in/a.png", "out", "--mask", "masks/a.png")
    assert "1 faces aligned" in run_here("in/b.png", "out", "--mask", "masks/b.png")
    assert "1 faces aligned" in run_here("in/b.png", "out", "--mask", "masks/b.png", "--overwrite")
    assert "1 already done" in run_here("in/a.png", "out", "--mask", "masks/a.png")
    hidden = [(read(tmp_path / f"out/{name}.png")[..., 3] < 255).mean() for name in "ab"]
    Image.fromarray(damaged | damaged.T).save(tmp_path / "masks/a.png")  # a little more is painted
    assert "1 faces aligned" in run_here("in/a.png", "out", "--mask", "masks/a.png")
    assert (read(tmp_path / "out/a.png")[..., 3] < 255).mean() > 1.2 * hidden[0]
    assert crops(tmp_path / "out") == ["a.png", "b.png"] and len(rows_of(tmp_path / "out")) == 2


def test_a_record_without_masks_is_resumed(tmp_path, damaged, run_here):
    run_here("in", "out")
    rows = rows_of(tmp_path / "out")
    with open(tmp_path / "out/align.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [n for n in record.COLUMNS if n not in record.HOLE], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    shutil.copy("in/a.png", "in/b.png")
    assert "1 faces aligned in 1 of 2 photos, 1 already done" in run_here("in", "out")
    assert [row["output"] for row in rows_of(tmp_path / "out")] == ["a.png", "b.png"]
    assert rows_of(tmp_path / "out")[0] == rows[0]


@pytest.mark.parametrize("points", [["60,80.5", "120,90", "80,200"], ["120,90", "60,80.5", "80,200"]])
def test_landmarks_by_hand(tmp_path, damaged, run_here, points):
    grey = np.full((300, 200, 3), 128, np.uint8)  # no face to be found
    Image.fromarray(grey).save(tmp_path / "in/a.png")
    run_here("--points", *points, "in", "out", "--size", "32")
    (row,) = rows_of(tmp_path / "out")
    places = apply(matrix_of(row), [[60, 80.5], [120, 90], [80, 200]])
    expected = 32 * geometry.MINMAX_TEMPLATE[geometry.LANDMARKS["innerEyesAndBottomLip"]]
    np.testing.assert_allclose(places, expected, atol=1e-3)
    assert row["seen"] == "points"
    box = [int(row[name]) for name in record.BOX]
    corners = apply(cv2.invertAffineTransform(matrix_of(row)), [[0, 0], [31, 0], [0, 31], [31, 31]])
    np.testing.assert_allclose(box, [*corners.min(0), *corners.max(0)], atol=1)


@pytest.mark.parametrize(
    "points, words",
    [
        ("60,80 120,90 180,100", "lie on one line; give the two at the eyes, then the lower one"),
        ("60,80 120,90 80,300", "lie outside of the photo's 240x240 pixels"),
        ("60,80 120 80,200", "'120' is not X,Y"),
        ("60,80 120,x 80,200", "'x' is not a number"),
        ("60,80 120,90", "expected 3 arguments"),
    ],
)
def test_bad_points_are_one_line(damaged, points, words):
    done = run("in", "out", "--points", *points.split(), status=2)
    assert words in done.stderr and "Traceback" not in done.stderr


def test_one_command_mends_a_photo_with_the_same_bits_as_two(tmp_path, damaged, complete):
    done = complete("in/a.png", "--photo", "--mask", "masks/a.png")
    assert "completions/photos: 1 mended" in done.stdout
    result = read(tmp_path / "completions/photos/a.png")
    changed = (result != PORTRAIT).any(-1)
    hidden = grown(damaged)
    assert not changed[~hidden].any() and changed[hidden].mean() > 0.9
    run("in", "aligned", "--mask", "masks/a.png", "--size", 16)
    complete("aligned", "--put_back", "--outDir", "two")
    np.testing.assert_array_equal(read(tmp_path / "two/photos/a.png"), result)
    # what lies under the hole has no say, wherever it is said to be one
    transparent(hidden, 3).save(tmp_path / "in/a.png")
    complete("in", "--photo", "--outDir", "three")
    np.testing.assert_array_equal(read(tmp_path / "three/photos/a.png"), result)


def test_crops_go_back_into_photos_that_moved_with_them_and_into_no_others(tmp_path, damaged, run_here, complete):
    shutil.copytree("in", "here/in")
    run_here("here/in", "here/out", "--mask", "masks/a.png", "--size", 16)
    shutil.move("here", "there")
    done = complete("there/out", "--put_back")
    assert "completions/photos: 1 mended" in done.stdout and not done.stderr.count("skipped")
    changed = (read(tmp_path / "completions/photos/a.png") != PORTRAIT).any(-1)
    assert not changed[~grown(damaged)].any() and changed[damaged].mean() > 0.9
    shutil.move("there/out", "alone/out")
    line = one_line(complete("alone/out", "--put_back", status=2), "run align.py again")
    assert f"--put_back: {tmp_path}/alone/in/a.png: no such file" in line
    assert not list((tmp_path / "completions-2").iterdir())


def test_a_face_that_its_mask_does_not_touch_is_not_replaced(tmp_path, damaged, run_here, complete):
    Image.fromarray(BESIDE).save(tmp_path / "masks/a.png")
    run_here("in", "out", "--mask", "masks/a.png", "--size", 16)
    line = one_line(complete("out", "--put_back", status=2), "--photo fills what is beside it")
    assert "in/a.png: its mask hides nothing of its face" in line


def test_every_photo_comes_out(tmp_path, damaged, complete):
    for name, hidden in {"b_mask": BESIDE, "c": damaged, "d": damaged, "e": ~BESIDE}.items():
        Image.fromarray(hidden).save(tmp_path / f"masks/{name}.png")
    Image.fromarray(PORTRAIT).save(tmp_path / "in/b.tif")  # its damage is beside the face
    flat = np.full(PORTRAIT.shape, 9, np.uint8)  # without a face
    Image.fromarray(np.where(damaged[..., None], 200, flat).astype(np.uint8)).save(tmp_path / "in/c.png")
    (tmp_path / "in/d.png").write_text("no picture")
    for name in ("e", "f"):  # an inverted mask, and none
        shutil.copy("in/a.png", f"in/{name}.png")
    done = complete("in", "--photo", "--maskDir", "masks")
    counts = "1 mended, 2 filled without a face, 3 unchanged (1 unreadable, 2 no fitting mask); "
    assert f"completions/photos: {counts}" in done.stdout
    for line in (
        "in/b.tif: filled without a face",
        "in/c.png: filled without a face",
        "in/d.png: unreadable",
        "in/e.png: no fitting mask: /",
        "in/f.png: no fitting mask: --maskDir masks: holds no mask",
    ):
        assert line in done.stderr
    photos = tmp_path / "completions/photos"
    assert sorted(path.name for path in photos.iterdir()) == [f"{name}.png" for name in "abcdef"]
    for name in "def":
        assert (photos / f"{name}.png").read_bytes() == (tmp_path / f"in/{name}.png").read_bytes()
    filled = read(photos / "b.png")
    assert (filled == PORTRAIT)[~grown(BESIDE)].all() and (filled != PORTRAIT)[BESIDE].any()
    np.testing.assert_allclose(read(photos / "c.png"), flat, atol=8)


@pytest.mark.parametrize(
    "photo, flags, words",
    [
        ("in/a.png", [], "{}/in/a.png: no hole: nothing in it is transparent; give --mask, --maskDir or --maskType"),
        ("in/c.png", [], "{}/in/c.png: no hole: nothing in it is transparent"),
        ("in/c.png", ["--maskType", "left"], "{}/in/c.png: no face: --points tells"),
        (
            "in/c.png",
            ["--mask", "masks/a.png"],
            "{0}/in/c.png: no fitting mask: {0}/masks/a.png: a mask of 240x240 pixels",
        ),
        ("in/a.png", ["--mask", "nope.png"], "--mask nope.png: no such file"),
        ("in/a.png", ["--mask", "in/c.png"], "--mask in/c.png: looks like a photo, not like its mask, as it has"),
    ],
)
def test_a_photo_whose_hole_cannot_be_seen_is_an_error(tmp_path, complete, photo, flags, words):
    Image.fromarray(cv2.resize(PORTRAIT[100:], (300, 300)), "RGB").save(tmp_path / "in/c.png")
    *_, line = complete(photo, "--photo", *flags, status=2).stderr.splitlines()
    assert line.startswith(f"complete.py: error: {words.format(tmp_path)}")
    assert not list((tmp_path / "completions").iterdir())  # so that the same command can be tried with another flag


def test_all_faces_of_a_photo_are_filled(tmp_path, damaged, landmarks, complete):
    pair = np.hstack([PORTRAIT, PORTRAIT])
    Image.fromarray(pair).save(tmp_path / "in/a.png")
    hidden = np.hstack([damaged, hole("lower", landmarks)])
    Image.fromarray(hidden).save(tmp_path / "masks/a.png")
    flags = ["in", "--photo", "--mask", "masks/a.png"]
    all_faces = complete(*flags, "--faces", "all")
    assert "photos: 1 mended; " in all_faces.stdout and "2 completed" in all_faces.stdout
    result = read(tmp_path / "completions/photos/a.png")
    assert not (result != pair).any(-1)[~grown(hidden)].any()
    done = complete(*flags, "--outDir", "one")
    assert "took one with a hole, or the largest, of 2 faces; --faces all takes them all" in done.stderr
    one, both = (float(re.search(r"mended; (\d+)%", text)[1]) for text in (done.stdout, all_faces.stdout))
    assert both < 25 < one  # percent of the holes that lie in no face taken


LARGE = """
import resource, numpy as np
from photos import filling
photo = np.full((3000, 4000, 3), 90, np.uint8)
hidden = np.zeros(photo.shape[:2], bool)
hidden[1200:1800, 1700:2300] = True
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
crop = np.full((64, 64, 3), 120, np.uint8)
matrix = np.array([[0.08, 0, -128.0], [0, 0.08, -88.0]])
filled, outside, _ = filling.into_photo(photo, hidden, [crop], [matrix])
print(outside, abs(filled.astype(int) - 90).max(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_large_photo_takes_little_memory():
    done = subprocess.run([sys.executable, "-c", LARGE], cwd=ROOT, capture_output=True, text=True)
    outside, error, kilobytes = map(int, done.stdout.split())
    assert outside == 0 and error <= 1 and kilobytes < 1.2e6
