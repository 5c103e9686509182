"""Each script as a user runs it: a process of its own, on a tiny network."""

import csv
import inspect
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, command, heed_sigint, one_line, run
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import masks
import metrics
import ops
import utils
from model import DCGAN

TINY_FLAGS = "--image_size 16 --z_dim 5 --gf_dim 8 --df_dim 8 --batch_size 4".split()


def checkpoint_step(directory):
    return int((directory / "checkpoint").read_text().split('"')[1].removeprefix("ckpt-"))


def events(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which a tiny model was trained: 10 images in batches of 4, for 6 epochs."""
    home = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    (home / "images").mkdir()
    for i in range(10):
        utils.write_image(home / "images" / f"{i}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
    out = run("train-dcgan.py", "--dataset", "images", *TINY_FLAGS, "--epoch", 6, "--ema", 0.9, cwd=home)
    assert (
        out.stdout.splitlines()[-1] == "checkpoints/mine: 6 of 6 epochs done, step 12; a higher --epoch trains longer"
    )
    assert "device: " in out.stdout and "images: 10, in memory; steps an epoch: 2" in out.stdout
    assert "about 1200 steps, --epoch 600, and" in out.stdout
    return home


def test_training_leaves_a_model_samples_and_a_record(trained):
    config = json.loads((trained / "checkpoints/mine/config.json").read_text())
    assert config["architecture"] == dict(image_size=16, c_dim=3, z_dim=5, gf_dim=8, df_dim=8, ema=0.9)
    assert checkpoint_step(trained / "checkpoints/mine") == 12
    samples = sorted((trained / "samples").iterdir())
    assert [p.name for p in samples] == ["mine_000001.png", "mine_000012.png"]
    with Image.open(samples[0]) as image:
        assert image.size == (8 * 16, 8 * 16)

    (log,) = (trained / "logs").glob("mine-*")
    record = events(log)
    scalars = {"d_loss", "d_loss_real", "d_loss_fake", "g_loss", "images_per_second"}
    scalars |= {f"{name}/{net}" for name in ("swd", "ms_ssim") for net in ("generator", "averaged")}
    scalars |= {"swd/generator_16", "swd/averaged_16"}
    assert scalars | {"z", "d", "d_", "G"} <= set(record.Tags()["tensors"])
    assert record.Tags()["graph"]
    plugins = {tag: record.SummaryMetadata(tag).plugin_data.plugin_name for tag in ("g_loss", "d", "G")}
    assert plugins == {"g_loss": "scalars", "d": "histograms", "G": "images"}
    assert [e.step for e in record.Tensors("g_loss")] == [10]
    (event,) = record.Tensors("swd/averaged")
    best = json.loads((trained / "checkpoints/mine/best/config.json").read_text())
    assert best["swd"] == pytest.approx(tf.make_ndarray(event.tensor_proto)) and best["step"] == event.step == 12
    assert int(DCGAN.load(trained / "checkpoints/mine/best").step) == 12


def test_resume_goes_on_with_what_the_model_was_trained_with(trained, tmp_path):
    flags = ["--dataset", trained / "images", "--sample_dir", tmp_path / "s", "--log_dir", tmp_path / "l"]
    flags += ["--checkpoint_dir", tmp_path / "ck"]
    done = run("train-dcgan.py", *flags, *TINY_FLAGS, "--epoch", 1, "--learning_rate", 0.001)
    assert "1 of 1 epochs done, step 2;" in done.stdout
    done = run("train-dcgan.py", *flags, "--epoch", 3)
    assert "3 of 3 epochs done, step 6;" in done.stdout and "recognisable faces" not in done.stdout
    training = json.loads((tmp_path / "ck/config.json").read_text())["training"]
    assert training["batch_size"] == 4 and training["learning_rate"] == 0.001
    assert len(list((tmp_path / "l").iterdir())) == 2
    # nothing is left to do, and nothing is done
    done = run("train-dcgan.py", *flags, "--epoch", 3)
    assert "3 of 3 epochs done, step 6;" in done.stdout and len(list((tmp_path / "l").iterdir())) == 2
    # all ten images are one batch where 64 are asked for
    done = run("train-dcgan.py", *flags, "--epoch", 5, "--batch_size", 64)
    assert "5 of 5 epochs done, step 8;" in done.stdout


def test_a_full_disk_stops_the_run_in_one_line(trained, tmp_path):
    """A limit on the size of files stands for it: the system refuses to write on in the same way."""
    shutil.copytree(trained / "checkpoints/mine", tmp_path / "ck")
    files = sorted((tmp_path / "ck").glob("ckpt-*"))
    done = subprocess.run(
        command("train-dcgan.py", "--dataset", trained / "images", "--epoch", 7, "--checkpoint_dir", "ck"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: ck: step 14 could not be saved (" in done.stderr.splitlines()[-1]
    assert sorted((tmp_path / "ck").glob("ckpt-*")) == files
    assert int(DCGAN.load(tmp_path / "ck").step) == 12


def test_what_a_killed_save_left_is_cleared_away(trained, tmp_path):
    shutil.copytree(trained / "checkpoints/mine", tmp_path / "ck")
    (tmp_path / "ck/ckpt-14_temp").mkdir()
    (tmp_path / "ck/ckpt-14_temp/part-00000-of-00001.data-00000-of-00001").write_text("half")
    (tmp_path / "ck/ckpt-13.data-00000-of-00001").write_text("moved, but the index was not")
    done = run("train-dcgan.py", "--dataset", trained / "images", "--epoch", 7, "--checkpoint_dir", "ck", cwd=tmp_path)
    assert "ck: goes on from step 12" in done.stdout
    names = {path.name.split(".")[0] for path in (tmp_path / "ck").glob("ckpt-*")}
    assert names == {"ckpt-0", "ckpt-12", "ckpt-14"}
    (log,) = (tmp_path / "logs").iterdir()
    (event,) = events(log).Tensors("run")
    assert event.step == 12 and b"goes on from step 12" in tf.make_ndarray(event.tensor_proto).item()


def test_two_runs_keep_out_of_each_others_way(trained, tmp_path):
    with utils.lock(tmp_path, "--checkpoint_dir"):
        flags = ["--dataset", trained / "images", "--checkpoint_dir", tmp_path]
        one_line(run("train-dcgan.py", *flags, cwd=tmp_path, status=2), f"--checkpoint_dir {tmp_path}: another process")


def test_deterministic_runs_end_with_the_same_bits(trained, tmp_path):
    flags = ["--dataset", trained / "images", *TINY_FLAGS, "--ema", 0.9, "--flip", "--deterministic"]
    flags += ["--eval_every", 2]
    for name, epochs in (("whole", [4]), ("parts", [3, 4])):
        for epoch in epochs:
            run("train-dcgan.py", *flags, "--epoch", epoch, "--checkpoint_dir", name, cwd=tmp_path)
    whole, parts = (tf.train.load_checkpoint(str(tmp_path / name / "ckpt-8")) for name in ("whole", "parts"))
    names = set(whole.get_variable_to_shape_map()) - {"save_counter/.ATTRIBUTES/VARIABLE_VALUE"}
    assert len(names) > 50
    for name in names - {"_CHECKPOINTABLE_OBJECT_GRAPH"}:
        np.testing.assert_array_equal(whole.get_tensor(name), parts.get_tensor(name), err_msg=name)


def test_ctrl_c_saves_and_leaves(trained, tmp_path):
    flags = ["--dataset", trained / "images", "--sample_dir", "s", "--log_dir", "l", "--checkpoint_dir", "ck"]
    process = subprocess.Popen(
        command("train-dcgan.py", *flags, *TINY_FLAGS, "--epoch", 100000),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_sigint,
    )
    while not (tmp_path / "s/ck_000001.png").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and time.monotonic() - asked < 15
    step = checkpoint_step(tmp_path / "ck")
    assert f"epochs done, step {step}; stopped" in out
    done = run("train-dcgan.py", *flags, "--epoch", step // 2 + 2, cwd=tmp_path)
    assert f"epochs done, step {(step // 2 + 2) * 2}; a higher" in done.stdout


FEW = ["--nIter", 25, "--outInterval", 10, "--candidates", 50]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def metrics_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_complete_in_several_batches(trained, broken, tmp_path):
    files = sorted((trained / "images").iterdir())[:5]
    out, logs = tmp_path / "out", tmp_path / "logs"
    flags = [*FEW, "--batchSize", 3, "--outDir", out, "--log_dir", logs]
    done = run("complete.py", *files[:2], broken, *files[2:], *flags, cwd=trained)
    assert "model: checkpoints/mine, step 12 (from nothing" in done.stdout
    assert f"skipped {broken}" in done.stderr

    assert np.load(out / "z.npy").shape == (5, 5)
    hole = masks.make("center", 16)[..., 0] == 0
    rows = metrics_rows(out / "metrics.csv")
    assert [row["image"] for row in rows] == [f"{i:04d}_{i}" for i in range(5)] + ["mean"]
    for i, file in enumerate(files):
        truth = pixels(file)
        for folder, name in (("plain", "plain"), ("final", "blended")):
            image = pixels(out / f"{folder}/{i:04d}_{i}.png")
            np.testing.assert_array_equal(image[~hole], truth[~hole])
            assert (image[hole] == truth[hole]).all(-1).mean() < 0.1
            expected = metrics.compare(name, image, truth, hole)
            assert {key: float(rows[i][key]) for key in expected} == pytest.approx(expected, rel=1e-4)
        log = np.loadtxt(out / f"batch_{i // 3:02d}/logs/hats_{i:02d}.log")
        np.testing.assert_array_equal(log[:, 0], [0, 10, 20, 25])
        assert float(rows[i]["total"]) == pytest.approx(log[-1, 3], rel=1e-4)
    for batch, count in (("batch_00", 3), ("batch_01", 2)):
        for folder in ("hats_imgs", "completed"):
            assert sorted(p.stem for p in (out / batch / folder).iterdir()) == ["0000", "0010", "0020", "0025"]
        row = slice(3 * (batch == "batch_01"), None)
        paths = (sorted(out.glob(f"{folder}/*"))[row][:count] for folder in ("final", "plain"))
        final, plain = (np.hstack([pixels(path) for path in some]) for some in paths)
        before, masked = (pixels(out / batch / f"{name}.png") for name in ("before", "masked"))
        assert np.abs(masked.reshape(16, -1, 16, 3).swapaxes(1, 2)[hole] - 128.0).max() < 2
        with Image.open(out / batch / "completion.gif") as gif:  # equal frames become one that lasts longer
            film = ImageSequence.Iterator(gif)
            frames = [np.asarray(frame.convert("RGB").resize((16 * count, 16), 0), float) for frame in film]
            for frame, shown, other in ((frames[0], masked, before), (frames[-1], final, plain)):
                assert np.abs(frame - shown).mean() < np.abs(frame - other).mean()  # 256 colours are not all
            assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif)) == 1000 + 4 * 100 + 2000
        assert pixels(out / batch / "masked.png").shape == (16, 16 * count, 3)
        assert pixels(out / batch / "summary.png").shape[1] == 96 + 128 * count
        (record,) = logs.glob(f"out-*/{batch}")
        assert [e.step for e in events(record).Tensors("contextual")] == [0, 10, 20, 25]


def test_complete_does_what_its_flags_say(trained, tmp_path):
    """The files hold what the same calls in Python give."""
    files = sorted((trained / "images").iterdir())[:3]
    flags = "--maskType random --fraction 0.4 --weighting neighbours --window 5 --lam 0.3 --seed 7 --samples 2".split()
    flags += ["--refine", 3, *FEW, "--checkpointDir", trained / "checkpoints/mine"]
    run("complete.py", *files, *flags, cwd=tmp_path)
    dcgan = DCGAN.load(trained / "checkpoints/mine")
    images = utils.to_float([pixels(file) for file in files])
    holes = np.stack([masks.make("random", 16, fraction=0.4, seed=(7, i)) for i in range(3)])
    weights = np.stack([masks.neighbour_weights(hole, 5) for hole in holes])
    zs = []
    for sample in range(2):
        settings = dict(weights=weights, lam=0.3, iterations=25, candidates=50, interval=10, seed=7 + sample)
        *_, last = dcgan.complete(images, holes, range(3), **settings)
        refined = dcgan.refine(images, holes, last.z, 3, weights=weights)
        zs.append(last.z)
        for i, hole in enumerate(holes):
            name = f"{i:04d}_{i}_{sample}.png"
            blended = masks.poisson_blend(images[i], refined[i], hole)
            np.testing.assert_allclose(pixels(tmp_path / "completions/final" / name), utils.to_uint8(blended), atol=1)
            plain = np.where(hole > 0, images[i], refined[i])
            np.testing.assert_allclose(pixels(tmp_path / "completions/plain" / name), utils.to_uint8(plain), atol=1)
    np.testing.assert_allclose(np.load(tmp_path / "completions/z.npy"), np.concatenate(zs), atol=1e-3)


def test_complete_each_image_with_the_mask_of_its_name(trained, tmp_path):
    for i in range(3):
        white = np.zeros((16, 16, 1), np.uint8)
        white[4 * i : 4 * i + 4] = 255
        (tmp_path / "holes").mkdir(exist_ok=True)
        utils.write_image(tmp_path / f"holes/{i}.png", white)
    files = sorted((trained / "images").iterdir())[:3]
    flags = ["--maskDir", "holes", "--blend", "none", *FEW, "--checkpointDir", trained / "checkpoints/mine"]
    run("complete.py", *files, *flags, cwd=tmp_path)
    for i, file in enumerate(files):
        same = (pixels(tmp_path / f"completions/final/000{i}_{i}.png") == pixels(file)).all(-1)
        hidden = np.arange(16) // 4 == i
        assert same[~hidden].all() and same[hidden].mean() < 0.1


@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")  # the lock's file stays open
def test_training_does_what_its_flags_say(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")  # which the script sets; it is not to stay
    flags = "--epoch 9 --train_size 6 --cache_mb 0 --eval_every 5 --jit_compile --precision mixed_bfloat16".split()
    flags += "--learning_rate 0.1 --beta1 0.2 --seed 3 --flip --sample_dir s --log_dir l".split()
    monkeypatch.setattr(sys, "argv", ["train-dcgan.py", "--dataset", str(trained / "images"), *TINY_FLAGS, *flags])
    (tmp_path / "s").mkdir()
    (tmp_path / "s/mine_2_000001.png").touch()  # of another run, and not in the way of mine_000001.png
    given = {}

    def train(self, images, **options):
        given.update(options, dcgan=self, images=images)

    monkeypatch.setattr(DCGAN, "train", train)
    assert runpy.run_path(str(ROOT / "train-dcgan.py"))["main"]() == 0
    dcgan, images = given.pop("dcgan"), given.pop("images")
    assert given == dict(
        epoch=9, batch_size=4, learning_rate=0.1, beta1=0.2, seed=3, flip=True, eval_every=5, jit_compile=True,
        checkpoint_dir="checkpoints/mine", sample_dir="s", log_dir="l",
    )  # fmt: skip
    assert dcgan.precision == "mixed_bfloat16" and dcgan.ema == 0.999 and len(images) == 6 and images.images is None


def test_complete_one_grey_image_of_another_size_in_several_ways(trained, tmp_path, save_image):
    grey = save_image("grey.jpg", np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8))
    latin = tmp_path / os.fsdecode("gr\xfcn.jpg".encode("latin-1"))  # no UTF-8
    shutil.copy(grey, latin)
    run("complete.py", latin, *FEW, "--outDir", tmp_path / "latin", cwd=trained)
    assert (tmp_path / "latin/final" / f"0000_{latin.stem}.png").exists()
    out = tmp_path / "out"
    run("complete.py", grey, *FEW, "--samples", 2, "--refine", 2, "--outDir", out, cwd=trained)
    names = {p.name for p in out.iterdir()}
    assert names == {"sample_00", "sample_01", "samples.png", "final", "plain", "z.npy", "metrics.csv"}
    first, second = (pixels(out / f"final/0000_grey_{i}.png") for i in range(2))
    assert first.shape == (16, 16, 3) and not np.array_equal(first, second)
    assert {p.name for p in (out / "sample_01").iterdir()} >= {
        "before.png",
        "masked.png",
        "hats_imgs",
        "completion.gif",
    }


def test_a_model_of_grey_images_from_training_to_film(trained, tmp_path):
    flags = ["--dataset", trained / "images", *TINY_FLAGS, "--c_dim", 1, "--epoch", 1]
    run("train-dcgan.py", *flags, cwd=tmp_path)
    run("complete.py", trained / "images", *FEW, cwd=tmp_path)
    assert pixels(tmp_path / "completions/final/0000_0.png").shape == (16, 16)
    with Image.open(tmp_path / "completions/completion.gif") as gif:
        assert gif.size == (2 * 8 * 16, 2 * 2 * 16)


def test_complete_what_is_transparent_whatever_is_there(trained, tmp_path, save_image):
    """Nothing under the hole matters, also where the photo is made smaller, and no truth is invented."""
    rgba = np.random.default_rng(0).integers(0, 256, (128, 128, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[40:90, 30:60, 3] = 0
    other = np.where(rgba[..., 3:] == 0, 255 - rgba, rgba)
    other[..., 3] = rgba[..., 3]
    paths = [save_image(f"{name}.png", x) for name, x in (("a", rgba), ("b", other), ("whole", rgba[..., :3]))]
    results = []
    for path in paths[:2]:
        out = tmp_path / path.stem
        flags = ["--maskType", "alpha", *FEW, "--outDir", out]
        done = run("complete.py", path, paths[2], *flags, cwd=trained)
        assert "whole.png: leaves no hole" in done.stderr
        results.append(pixels(out / f"final/0000_{path.stem}.png"))
        assert "plain_psnr" not in metrics_rows(out / "metrics.csv")[0]
    np.testing.assert_array_equal(*results)
    # where nothing else is asked for, what is transparent is filled; but all must have such parts
    run("complete.py", *paths[:2], *FEW, "--outDir", tmp_path / "default", cwd=trained)
    np.testing.assert_array_equal(pixels(tmp_path / "default/final/0000_a.png"), results[0])
    done = run("complete.py", *paths, *FEW, "--outDir", tmp_path / "mixed", cwd=trained, status=2)
    one_line(done, "--maskType", "2 of 3 images have transparent parts")
    nothing = save_image("nothing.png", np.zeros((16, 16, 4), np.uint8))
    done = run("complete.py", nothing, *FEW, "--outDir", tmp_path / "nothing", cwd=trained, status=2)
    one_line(done, "no image to complete; see above")
    assert "nothing.png: leaves nothing known" in done.stderr


@pytest.mark.parametrize("flags", [["--maskType", "lowres"], ["--maskType", "full"], ["--mask", "hole.png"]])
def test_complete_with_other_masks(trained, tmp_path, save_image, flags):
    white = np.zeros((16, 16), np.uint8)
    white[:4] = 255
    save_image("hole.png", white)
    (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
    image = trained / "images/0.png"
    run(
        "complete.py",
        image,
        *flags,
        *FEW,
        "--weighting",
        "neighbours",
        "--blend",
        "none",
        "--outDir",
        "out",
        cwd=tmp_path,
    )
    truth, final = pixels(image), pixels(tmp_path / "out/final/0000_0.png")
    same = (truth == final).all(-1)
    if "--mask" in flags:
        assert same[4:].all() and not same[:4].all()
    else:
        np.testing.assert_array_equal(final, pixels(tmp_path / "out/hats_imgs/0025.png"))


def test_help_tells_the_defaults_of_the_search():
    from model import DCGAN

    text = " ".join(run("complete.py", "--help").stdout.split())
    defaults = {name: p.default for name, p in inspect.signature(DCGAN.complete).parameters.items()}
    for flag, name in runpy.run_path(str(ROOT / "complete.py"))["SEARCH"].items():
        told = re.search(rf" --{flag} .*?\(([^)]*)\)", text)[1]
        if defaults[name] is not None:
            assert told.split(",")[0] == str(defaults[name]).removesuffix(".0"), flag


@pytest.mark.parametrize(
    "error, reason",
    [
        (tf.errors.ResourceExhaustedError(None, None, "{{function_node x}} No space left\nmore"), "No space left"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_too_little_memory_or_disk_is_one_line(error, reason):
    with pytest.raises(utils.UserError) as told, ops.memory_and_disk("--batchSize"):
        raise error
    assert str(told.value) == f"--batchSize: too little memory, or a full disk ({reason})"


@pytest.mark.parametrize("script", ["train-dcgan.py", "sample.py", "complete.py"])
def test_help_does_not_wait_for_tensorflow(script):
    code = f"""if True:
        import runpy, sys
        sys.argv = ["{script}", "--help"]
        try:
            runpy.run_path(r"{ROOT / script}", run_name="__main__")
        finally:
            assert "tensorflow" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dataset", "nowhere"], ["--dataset nowhere", "no such directory"]),
        (["--dataset", "empty"], ["--dataset empty", "holds no images"]),
        (["--dataset", "broken"], ["--dataset broken", "none of its 1 images"]),
        (["--dataset", "images", "--checkpoint_dir", "file/ck"], ["--checkpoint_dir file/ck", "cannot be written"]),
        (["--dataset", ""], ["--dataset: is empty"]),
        (
            ["--dataset", "images", "--sample_dir", "taken", "--checkpoint_dir", "x/mine"],
            ["--sample_dir taken", "another"],
        ),
        (["--dataset", "images", "--z_dim", "7", "--checkpoint_dir", "mine"], ["--z_dim 7", "z_dim 5"]),
        (["--dataset", "images", "--epoch", "0"], ["--epoch", "from 1"]),
        (["--dataset", "images", "--image_size", "60"], ["--image_size", "64"]),
        ([], ["--dataset"]),
    ],
)
def test_training_errors(trained, tmp_path, broken, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    broken.rename(tmp_path / "broken/broken.png")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine_000001.png").write_text("")
    (tmp_path / "images").symlink_to(trained / "images")
    (tmp_path / "mine").symlink_to(trained / "checkpoints/mine")
    one_line(run("train-dcgan.py", *flags, cwd=tmp_path, status=2), *words)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["images/0.png", "--checkpointDir", "nowhere"], ["--checkpointDir nowhere", "holds no model"]),
        (["nowhere.png"], ["nowhere.png", "no image to complete; see above"]),
        (["empty"], ["empty", "no image to complete; it holds none (.bmp"]),
        ([""], ["IMAGE: is empty"]),
        (["images/0.png", "--mask", ""], ["--mask: is empty"]),
        (["images/0.png", "--mask", "nowhere.png"], ["nowhere.png: no such file"]),
        (["images/0.png", "--checkpointDir", ""], ["--checkpointDir: is empty"]),
        (["broken.png"], ["broken.png", "no image to complete"]),
        (["images/0.png", "--outDir", "file/out"], ["--outDir file/out", "cannot be written"]),
        (["images/0.png", "--outDir", "images"], ["--outDir images", "not empty"]),
        (["images", "--outDir", "images/completed"], ["--outDir images/completed", "lies in images"]),
        (["images/0.png", "--centerScale", "0.5"], ["--centerScale 0.5", "no hole"]),
        (["images/0.png", "--mask", "broken.png"], ["broken.png", "not a readable image"]),
        (["images/0.png", "--mask", "black.png"], ["--mask black.png", "no hole"]),
        (["images/0.png", "--maskDir", "empty"], ["--maskDir empty", "no mask named 0"]),
        (["images/0.png", "--maskDir", "two"], ["--maskDir two", "2 masks named 0"]),
        (["images/0.png", "--mask", "black.png", "--maskType", "left"], ["--maskType", "--mask"]),
        (["images/0.png", "--maskType", "alpha"], ["images/0.png", "no image to complete; see above"]),
        (["images/0.png", "--nIter", "0"], ["--nIter", "from 1"]),
        (["images/0.png", "--window", "4"], ["--window 4", "odd"]),
        (["images/0.png", "--lr", "-1"], ["--lr", "above 0"]),
        (["images/0.png", "--checkpointDir", "odd"], ["odd/config.json", "train-dcgan.py"]),
        (["images/0.png", "--checkpointDir", "odd2"], ["odd2/config.json", "train-dcgan.py"]),
        ([], ["IMAGE"]),
    ],
)
def test_completion_errors(trained, tmp_path, broken, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    utils.write_image(tmp_path / "black.png", np.zeros((16, 16, 1), np.uint8))
    for folder in ("two/a", "two/b"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(tmp_path / "black.png", tmp_path / folder / "0.png")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text("{}")
    (tmp_path / "odd/ckpt-1.index").write_text("")
    shutil.copytree(tmp_path / "odd", tmp_path / "odd2")
    architecture = dict(image_size="16", c_dim=3, z_dim=5, gf_dim=8, df_dim=8, ema=0.0)
    (tmp_path / "odd2/config.json").write_text(json.dumps({"architecture": architecture, "training": {}}))
    (tmp_path / "images").symlink_to(trained / "images")
    (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
    one_line(run("complete.py", *flags, cwd=tmp_path, status=2), *words)


def test_a_checkpoint_of_another_architecture_is_one_line_for_both_scripts(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained / "checkpoints/mine", other)
    config = json.loads((other / "config.json").read_text())
    config["architecture"]["gf_dim"] = 16
    (other / "config.json").write_text(json.dumps(config))
    flags = ["--sample_dir", tmp_path / "s", "--log_dir", tmp_path / "l", "--checkpoint_dir", other]
    one_line(run("train-dcgan.py", "--dataset", trained / "images", *flags, status=2), "ckpt-12", "config.json")
    flags = ["--checkpointDir", other, "--outDir", tmp_path / "o"]
    one_line(run("complete.py", trained / "images/0.png", *flags, cwd=tmp_path, status=2), "ckpt-12", "config.json")
    assert json.loads((other / "config.json").read_text()) == config


def test_damaged_checkpoints_are_named_and_older_ones_used(trained, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(trained / "checkpoints/mine", damaged)
    (damaged / "ckpt-12.data-00000-of-00001").write_bytes(b"short")
    image = trained / "images/0.png"
    flags = ["--sample_dir", tmp_path / "s", "--log_dir", tmp_path / "l", "--checkpoint_dir", damaged]
    done = run("train-dcgan.py", "--dataset", trained / "images", *flags, "--epoch", 7)
    assert f"skipped {damaged}/ckpt-12: damaged" in done.stderr and "7 of 7 epochs done, step 14;" in done.stdout
    for path in damaged.glob("*.index"):
        path.write_bytes(b"short")
    done = run("train-dcgan.py", "--dataset", trained / "images", *flags, "--epoch", 9, status=2)
    one_line(done, str(damaged), "no readable checkpoint")
    done = run("complete.py", image, "--checkpointDir", damaged, "--outDir", tmp_path / "o", cwd=tmp_path, status=2)
    one_line(done, str(damaged), "no readable checkpoint")
