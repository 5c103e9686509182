"""train-refiner.py, and what complete.py --photo makes of a refiner, as a user runs them."""

import json
import shutil

import numpy as np
import pytest
from conftest import RNG, run

import utils
from completion import masks
from completion.completer import Completer
from completion.refiner import Refiner
from model import DCGAN
from training import completions

MINE = "checkpoints/mine"


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A folder of 70 smooth 32x32 images."""
    folder = tmp_path_factory.mktemp("larger")
    for i in range(70):
        utils.write_image(folder / f"{i:02d}.png", RNG.integers(0, 256, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1))
    return folder


@pytest.fixture(scope="module")
def refined(trained, larger, tmp_path_factory):
    """The folder of a trained tiny model whose refiner was trained for 2 epochs of 7 steps."""
    home = tmp_path_factory.mktemp("refined")
    shutil.copytree(trained / "checkpoints", home / "checkpoints")
    flags = ["--dataset", larger, "--batch_size", 9, "--epoch", 2]
    done = run("train-refiner.py", *flags, cwd=home)
    lines = done.stdout.splitlines()
    assert "images: 63 to learn from, 7 held out; steps an epoch: 7" in lines
    assert lines[-1] == f"{MINE}/refiner: 2 of 2 epochs done, step 14; a higher --epoch trains longer"
    assert (home / "samples/mine-refiner_000014.png").exists()
    return home


def test_the_same_command_resumes_with_the_completions_of_before(refined, larger, tmp_path):
    shutil.copytree(refined, tmp_path, dirs_exist_ok=True)
    kept = sorted((tmp_path / MINE / "refiner/completed").iterdir())
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    done = run("train-refiner.py", "--dataset", larger, "--epoch", 3, cwd=tmp_path)
    assert f"{MINE}/refiner: resumes from step 14" in done.stdout and "step 21;" in done.stdout
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert json.loads((tmp_path / MINE / "refiner/best/config.json").read_text())["swd"] > 0
    assert Completer.load(tmp_path / MINE, photos=True).refiner.step in (14, 21)


def test_faces_are_completed_where_their_holes_are(refined, larger):
    completer = Completer.load(refined / MINE, candidates=8, iterations=1)
    folder = refined / MINE / "refiner/completed"
    faces = completions.CompletedFaces(larger, completer, folder, 0)
    parts = completions.split(utils.to_float([faces.read(i) for i in range(70)]))
    assert parts["images"].shape == (70, 32, 32, 3) and parts["completed"].shape == (70, 16, 16, 3)
    assert set(np.unique(parts["masks"])) == {0, 1}
    for i, face in enumerate(parts["images"]):
        np.testing.assert_array_equal(utils.to_uint8(face), utils.read_image(faces.paths[i], 32, 3))
    known = parts["masks"].reshape(70, 16, 2, 16, 2).min((2, 4)) == 1
    half = parts["images"].reshape(70, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(parts["completed"] - half)[known].max() < 0.01 and 0.1 < known.mean() < 0.9
    assert np.abs(parts["completed"] - half)[~known].mean() > 0.1
    kept = faces.hold_out(10, 0)
    assert len(faces) == 60 and kept.shape == (10, 32, 32, 7)
    held = completions.split(utils.to_float(kept))
    assert sorted(
        x.tobytes()
        for x in [*held["completed"]]
        + [completions.split(utils.to_float(faces.read(i)[None]))["completed"][0] for i in range(60)]
    ) == sorted(x.tobytes() for x in parts["completed"])


def test_holes_are_such_as_photos_have():
    drawn = [completions.draw_hole(32, np.random.default_rng(i)) for i in range(50)]
    assert all(0 < completions.known_at_half(mask).mean() < 1 for mask in drawn)
    mask = masks.make("left", 32)
    mask[5, 20] = 0
    half = completions.known_at_half(mask)[..., 0]
    assert half[2, 10] == 0 and half.sum() == 16 * 8 - 1


def test_what_is_wrong_is_one_line(refined, larger, tmp_path, monkeypatch):
    def error(cwd, *flags):
        line = run("train-refiner.py", *flags, cwd=cwd, status=2).stderr.splitlines()[-1]
        assert line.startswith("train-refiner.py: error: ")
        return line

    assert "no images" in error(refined, "--dataset", tmp_path)
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(next(larger.iterdir()), few)
    shutil.copytree(refined / "checkpoints", tmp_path / "checkpoints", ignore=shutil.ignore_patterns("refiner"))
    assert "holds one image" in error(tmp_path, "--dataset", few)
    assert "holds no model" in error(tmp_path, "--dataset", larger, "--checkpointDir", few)
    shutil.rmtree(tmp_path / MINE / "refiner")
    Refiner.load(refined / MINE, DCGAN.load(refined / MINE)).export(tmp_path / MINE)
    assert "without the state of its training" in error(tmp_path, "--dataset", larger)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # which several machines set, for all that run after
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}')
    assert "TF_CONFIG: names several machines" in error(tmp_path, "--dataset", larger)
