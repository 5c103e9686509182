"""train-refiner.py, and what complete.py --photo makes of a refiner, as a user runs them."""

import json
import shutil

import numpy as np
import pytest
from conftest import RNG, run
from PIL import Image

import utils
from completion import masks
from completion.completer import Completer
from completion.refiner import Refiner
from model import DCGAN
from training import completions

MINE = "checkpoints/mine"


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A folder of 20 images of 32x32 pixels."""
    folder = tmp_path_factory.mktemp("larger")
    for i in range(20):
        utils.write_image(folder / f"{i:02d}.png", RNG.integers(0, 256, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1))
    return folder


def test_a_refiner_is_trained_and_the_same_command_resumes(trained, larger, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    done = run("train-refiner.py", "--dataset", larger, "--batch_size", 9, "--epoch", 2, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert "images: 18 to learn from, 2 held out; steps an epoch: 2" in lines
    assert lines[-1] == f"{MINE}/refiner: 2 of 2 epochs done, step 4; a higher --epoch trains longer"
    picture = np.asarray(Image.open(tmp_path / "samples/mine-refiner_000004.png"))
    originals = [utils.read_image(path, 32, 3).repeat(4, 0).repeat(4, 1) for path in larger.iterdir()]
    assert any((picture[:128, 96:224] == original).all() for original in originals)
    assert picture.shape == (4 * 128 + 8, 96 + 2 * 128, 3) and (picture[3 * 128 : 4 * 128, 96:] < 255).mean() > 0.9
    (kept,) = (tmp_path / MINE / "refiner/completed").iterdir()
    time = kept.stat().st_mtime_ns

    done = run("train-refiner.py", "--dataset", larger, "--epoch", 3, cwd=tmp_path)
    assert f"{MINE}/refiner: resumes from step 4" in done.stdout and "step 6;" in done.stdout
    assert [kept] == list(kept.parent.iterdir()) and kept.stat().st_mtime_ns == time
    assert json.loads((tmp_path / MINE / "refiner/best/config.json").read_text())["swd"] > 0
    assert Completer.load(tmp_path / MINE, photos=True).refiner.step in (4, 6)


def test_faces_are_completed_where_their_holes_are(tiny, larger, tmp_path):
    completer = Completer(tiny, settings={"candidates": 8, "iterations": 1})
    faces = completions.CompletedFaces(larger, completer, tmp_path, 0)
    parts = completions.split(utils.to_float([faces.read(i) for i in range(20)]))
    assert parts["images"].shape == (20, 32, 32, 3) and parts["completed"].shape == (20, 16, 16, 3)
    assert set(np.unique(parts["masks"])) == {0, 1}
    for i, face in enumerate(parts["images"]):
        np.testing.assert_array_equal(utils.to_uint8(face), utils.read_image(faces.paths[i], 32, 3))
    known = parts["masks"].reshape(20, 16, 2, 16, 2).min((2, 4)) == 1
    half = parts["images"].reshape(20, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(parts["completed"] - half)[known].max() < 0.01 and 0.1 < known.mean() < 0.9
    assert np.abs(parts["completed"] - half)[~known].mean() > 0.1
    again = completions.CompletedFaces(larger, completer, tmp_path, 0)
    np.testing.assert_array_equal(again.read(7), faces.read(7))
    kept = faces.hold_out(5, 0)
    assert len(faces) == 15 and kept.shape == (5, 32, 32, 7)
    rest = [*kept, *(faces.read(i) for i in range(15))]
    assert sorted(x.tobytes() for x in rest) == sorted(again.read(i).tobytes() for i in range(20))


def test_holes_are_such_as_photos_have():
    drawn = [completions.draw_hole(32, np.random.default_rng(i)) for i in range(50)]
    assert all(0 < completions.known_at_half(mask).mean() < 1 for mask in drawn)
    mask = masks.make("left", 32)
    mask[5, 20] = 0
    half = completions.known_at_half(mask)[..., 0]
    assert half[2, 10] == 0 and half.sum() == 16 * 8 - 1


def test_what_is_wrong_is_one_line(trained, larger, tmp_path, monkeypatch):
    def error(*flags):
        line = run("train-refiner.py", *flags, cwd=tmp_path, status=2).stderr.splitlines()[-1]
        assert line.startswith("train-refiner.py: error: ")
        return line

    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    few, empty = tmp_path / "few", tmp_path / "empty"
    few.mkdir()
    empty.mkdir()
    shutil.copy(next(larger.iterdir()), few)
    assert "no images" in error("--dataset", empty)
    assert "holds one image" in error("--dataset", few)
    assert "holds no model" in error("--dataset", larger, "--checkpointDir", few)
    shutil.rmtree(tmp_path / MINE / "refiner")
    Refiner(DCGAN.load(tmp_path / MINE)).export(tmp_path / MINE)
    assert "without the state of its training" in error("--dataset", larger)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # which several machines set, for all that run after
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}')
    assert "TF_CONFIG: names several machines" in error("--dataset", larger)
