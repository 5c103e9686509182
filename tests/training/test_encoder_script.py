"""train-encoder.py, export.py and what complete.py makes of an encoder and a covariance, as a user runs them."""

import json
import shutil

import numpy as np
import pytest
from conftest import one_line, run
from PIL import Image

import checkpoint
import utils
from completion import compositing, masks, prior, search
from completion.encoder import Encoder
from model import DCGAN
from training import runs
from training.dataset import ImageFolder

MINE = "checkpoints/mine"
FEW = ["--nIter", 5, "--outInterval", 5]


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """A folder of 24 smooth 16x16 images, of which there are few kinds."""
    folder, rng = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    patterns = rng.normal(size=(3, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    for i in range(24):
        utils.write_image(folder / f"{i:02d}.png", utils.to_uint8(0.4 * np.tensordot(rng.normal(size=3), patterns, 1)))
    return folder


@pytest.fixture(scope="session")
def learned(trained, faces, tmp_path_factory):
    """The folder of a trained tiny model whose encoder was trained for 4 epochs of 5 steps."""
    home = tmp_path_factory.mktemp("learned")
    shutil.copytree(trained / "checkpoints", home / "checkpoints")
    done = run("train-encoder.py", "--dataset", faces, "--batch_size", 4, "--epoch", 4, cwd=home)
    lines = done.stdout.splitlines()
    assert "images: 22 to learn from, 2 held out; steps an epoch: 5" in lines
    assert "covariance: 11 components, in checkpoints/mine/covariance.npz" in lines
    assert "a good encoder takes about 10000 steps, --epoch 2000" in lines
    assert lines[-1] == f"{MINE}/encoder: 4 of 4 epochs done, step 20; a higher --epoch trains longer"
    assert (home / "samples/mine-12-encoder_000020.png").exists()
    return home


def test_the_covariance_is_that_of_the_images(learned, faces):
    files = ImageFolder(faces, 16, 3)
    files.hold_out(2, 0)
    x = np.concatenate(list(files.blocks())).reshape(22, -1).astype(np.float64)
    found = prior.load(learned / MINE, (16, 16, 3))
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.variances[:3], np.linalg.eigvalsh(np.cov(x.T, bias=True))[:-4:-1], rtol=1e-3)


def test_the_same_command_resumes_and_settings_need_not_be_given_again(learned, faces, tmp_path):
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / MINE / "encoder/ckpt-99_temp").mkdir()  # of a killed save
    kept = (tmp_path / MINE / "covariance.npz").read_bytes()
    done = run("train-encoder.py", "--dataset", faces, "--epoch", 5, cwd=tmp_path)
    assert f"{MINE}/encoder: resumes from step 20" in done.stdout
    assert f"covariance: in {MINE}/covariance.npz; without that file it would be learned anew" in done.stdout
    assert f"{MINE}/encoder: 5 of 5 epochs done, step 25;" in done.stdout
    assert (tmp_path / MINE / "covariance.npz").read_bytes() == kept
    assert not (tmp_path / MINE / "encoder/ckpt-99_temp").exists()
    training = json.loads((tmp_path / MINE / "encoder/config.json").read_text())["training"]
    assert training["batch_size"] == 4 and training["learning_rate"] == 0.0005


@pytest.mark.parametrize("flags, epochs", [([], 400), (["--epoch", 3], 3), (["--batch_size", 2], 182)])
def test_few_faces_are_shown_often_enough(learned, faces, tmp_path, monkeypatch, flags, epochs):
    class Run:
        def __init__(self, *args, epoch, **options):
            asked.append(epoch)

        def finish(self):
            """Leaves out the training."""
            return 0

    asked = []
    monkeypatch.setattr(runs, "EncoderRun", Run)
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")
    run("train-encoder.py", "--dataset", faces, *flags, cwd=tmp_path)
    assert asked == [epochs]


def test_complete_with_what_was_learned(learned, faces, tmp_path):
    files = sorted(faces.iterdir())[:3]
    flags = ["--checkpointDir", learned / MINE, *FEW, "--prior", 3, "--detail", 0.3, "--samples", 2, "--seed", 4]
    done = run("complete.py", *files, *flags, cwd=tmp_path)
    assert "start: an encoder of step 20; blending: gaussian" in done.stdout
    assert "sharpness" in done.stdout.splitlines()[-1]
    dcgan = DCGAN.load(learned / MINE)
    encoder, _ = Encoder.load(learned / MINE, dcgan)
    covariance = prior.load(learned / MINE, (16, 16, 3))
    images = utils.to_float([utils.read_image(file, 16, 3) for file in files])
    holes = masks.holes("center", [masks.make("center", 16)] * 3)
    start = encoder.guess(*holes.masked(images))
    for sample, begin in enumerate((start, search.near(start, 5, range(3)))):
        options = dict(start=begin, prior=3.0, iterations=5, seed=4 + sample)
        *_, last = search.complete(dcgan, images, holes.masks, **options)
        fitted = prior.gaussian_blend(images, last.generated, holes.masks, covariance, 0.3)
        for i in range(3):
            kriged = compositing.kriging(images[i], fitted[i], holes.masks[i])
            final = compositing.poisson(images[i], kriged, holes.masks[i])
            written = np.asarray(Image.open(tmp_path / f"completions/final/{i:04d}_{i:02d}_{sample}.png"))
            np.testing.assert_allclose(written, utils.to_uint8(final), atol=1)


def test_hmc_starts_from_candidates(learned, faces, tmp_path):
    flags = "--approach hmc --nIter 1 --hmcL 1 --outDir hmc".split()
    done = run("complete.py", faces / "00.png", *flags, "--checkpointDir", learned / MINE, cwd=tmp_path)
    assert "start: candidates" in done.stdout


def test_hidden_pixels_change_nothing_from_end_to_end(learned, faces, tmp_path):
    truth = utils.read_image(faces / "00.png", 16, 3)
    hidden = masks.make("center", 16)[..., 0] == 0
    utils.write_image(tmp_path / "a.png", truth)
    utils.write_image(tmp_path / "b.png", np.where(hidden[..., None], 255 - truth, truth))
    flags = ["--checkpointDir", learned / MINE, *FEW, "--batchSize", 1]
    run("complete.py", "a.png", "b.png", *flags, cwd=tmp_path)
    finals = [np.asarray(Image.open(path)) for path in (tmp_path / "completions/final").iterdir()]
    np.testing.assert_array_equal(*finals)


@pytest.mark.parametrize("kind", ["lowres", "full", "grid", "random"])
def test_complete_other_holes_with_what_was_learned(learned, faces, tmp_path, kind):
    flags = ["--checkpointDir", learned / MINE, *FEW, "--maskType", kind, "--weighting", "neighbours"]
    run("complete.py", *sorted(faces.iterdir())[:2], *flags, cwd=tmp_path)
    first = np.asarray(Image.open(tmp_path / "completions/final/0000_00.png"))
    truth = utils.read_image(faces / "00.png", 16, 3)
    known = masks.make(kind, 16, seed=(0, 0))[..., 0] == 1
    np.testing.assert_array_equal(first[known], truth[known])


def test_an_encoder_of_another_generator_is_reported_and_renewed(learned, faces, tmp_path):
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")
    dcgan = DCGAN(**checkpoint.read_config(tmp_path / MINE)["architecture"])
    optimizers = dcgan.make_optimizers(0.01, 0.5)
    checkpoint.save(tmp_path / MINE, dcgan.networks, {"step": 14, "epoch": 7, "seen": 0}, optimizers)
    face = faces / "00.png"
    done = run("complete.py", face, *FEW, "--candidates", 10, cwd=tmp_path)
    assert "encoder" not in done.stderr.splitlines()[0]  # --candidates asks for others
    done = run("complete.py", face, *FEW, "--outDir", "older", cwd=tmp_path)
    reported = f"{MINE}: its encoder is for another generator, so candidates are the start; ./train-encoder.py"
    assert reported in done.stderr
    flags = ["--start", "encoder", "--outDir", "no"]
    one_line(run("complete.py", face, *flags, cwd=tmp_path, status=2), "--start encoder")
    done = run("export.py", "published", cwd=tmp_path)
    assert "is left out" in done.stderr and not (tmp_path / "published/encoder").exists()
    assert "without encoder, as the model has none; ./train-encoder.py --checkpointDir checkpoints/mine" in done.stdout
    done = run("train-encoder.py", "--dataset", faces, "--epoch", 1, cwd=tmp_path)
    assert "is for another generator; a new run starts from its weights" in done.stdout and "step 5;" in done.stdout
    done = run("complete.py", face, "--start", "encoder", *FEW, "--outDir", "renewed", cwd=tmp_path)
    assert "another generator" not in done.stderr


def test_export_all_that_completion_needs(learned, faces, tmp_path):
    done = run("export.py", tmp_path / "published", "--checkpointDir", learned / MINE, cwd=tmp_path)
    assert "generator and discriminator of step 12, covariance, encoder of step 20; " in done.stdout
    assert "without" not in done.stdout
    names = {str(path.relative_to(tmp_path / "published")) for path in (tmp_path / "published").rglob("*.*")}
    assert {"config.json", "covariance.npz", "ckpt-12.index", "encoder/config.json", "encoder/ckpt-20.index"} <= names
    faces_and_flags = [*sorted(faces.iterdir())[:2], *FEW, "--start", "encoder", "--blend", "gaussian"]
    finals = []
    for name, model in (("ours", learned / MINE), ("theirs", "published")):
        run("complete.py", *faces_and_flags, "--checkpointDir", model, "--outDir", name, cwd=tmp_path)
        finals.append(np.asarray(Image.open(tmp_path / name / "final/0001_01.png"), float))
    np.testing.assert_allclose(*finals, atol=6)
    done = run("train-encoder.py", "--dataset", faces, "--checkpointDir", "published", cwd=tmp_path, status=2)
    one_line(done, "published/encoder: holds an encoder without the state of its training")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dataset", "nowhere"], ["--dataset nowhere", "no such directory"]),
        (["--dataset", "empty"], ["--dataset empty", "holds no images"]),
        (["--dataset", "few"], ["--dataset few", "holds one image"]),
        (["--dataset", "few", "--checkpointDir", "nowhere"], ["--checkpointDir nowhere", "train-dcgan.py"]),
        (["--dataset", "few", "--log_dir", "file/logs"], ["--log_dir file/logs", "cannot be written"]),
    ],
)
def test_train_encoder_errors(learned, faces, tmp_path, broken, flags, words):
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")
    for name in ("empty", "few"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    shutil.copy(faces / "00.png", tmp_path / "few/a.png")
    shutil.copy(broken, tmp_path / "few/broken.png")
    one_line(run("train-encoder.py", *flags, cwd=tmp_path, status=2), *words)


def test_neither_a_link_nor_another_models_encoder_is_written_to(learned, faces, tmp_path):
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / MINE / "encoder").rename(tmp_path / "elsewhere")
    (tmp_path / MINE / "encoder").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    flags = ["--dataset", faces, "--epoch", 9]
    one_line(run("train-encoder.py", *flags, cwd=tmp_path, status=2), f"{MINE}/encoder", "is a link")
    (tmp_path / MINE / "encoder").unlink()
    shutil.copytree(tmp_path / "elsewhere", tmp_path / MINE / "encoder")
    config = json.loads((tmp_path / MINE / "encoder/config.json").read_text())
    config["architecture"]["z_dim"] = 7
    (tmp_path / MINE / "encoder/config.json").write_text(json.dumps(config))
    one_line(run("train-encoder.py", *flags, cwd=tmp_path, status=2), f"{MINE}/encoder/config.json: z_dim 7", "remove")
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_pictures_of_another_run_are_not_replaced(learned, faces, tmp_path):
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / MINE / "encoder")
    flags = ["--dataset", faces, "--sample_dir", learned / "samples"]
    one_line(run("train-encoder.py", *flags, cwd=tmp_path, status=2), "--sample_dir", "mine-12-encoder_*.png")


def test_a_damaged_covariance_is_one_line(learned, faces, tmp_path):
    shutil.copytree(learned / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / MINE / "covariance.npz").write_text("no archive")
    for script, *flags in (["complete.py", faces, *FEW], ["train-encoder.py", "--dataset", faces, "--epoch", 9]):
        one_line(run(script, *flags, cwd=tmp_path, status=2), f"{MINE}/covariance.npz", "train-encoder.py")
