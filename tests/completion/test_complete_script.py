"""complete.py as a user runs it: a process of its own, on a tiny network."""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY_FLAGS, events, one_line, run
from PIL import Image, ImageSequence

import utils
from completion import compositing, masks, metrics, prior, search, settings
from model import DCGAN

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
    assert "model: checkpoints/mine, step 12 (faces take" in done.stdout
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
    flags += [*FEW, "--checkpointDir", trained / "checkpoints/mine"]
    run("complete.py", *files, *flags, cwd=tmp_path)
    dcgan = DCGAN.load(trained / "checkpoints/mine")
    images = utils.to_float([pixels(file) for file in files])
    holes = np.stack([masks.make("random", 16, fraction=0.4, seed=(7, i)) for i in range(3)])
    weights = np.stack([masks.neighbour_weights(hole, 5) for hole in holes])
    zs = []
    for sample in range(2):
        settings = dict(weights=weights, lam=0.3, iterations=25, candidates=50, interval=10, seed=7 + sample)
        *_, last = search.complete(dcgan, images, holes, range(3), **settings)
        zs.append(last.z)
        for i, hole in enumerate(holes):
            name = f"{i:04d}_{i}_{sample}.png"
            blended = compositing.poisson(images[i], last.generated[i], hole)
            np.testing.assert_allclose(pixels(tmp_path / "completions/final" / name), utils.to_uint8(blended), atol=1)
            plain = np.where(hole > 0, images[i], last.generated[i])
            np.testing.assert_allclose(pixels(tmp_path / "completions/plain" / name), utils.to_uint8(plain), atol=1)
    np.testing.assert_allclose(np.load(tmp_path / "completions/z.npy"), np.concatenate(zs), atol=1e-3)


def test_complete_each_image_with_the_mask_of_its_name(trained, tmp_path):
    for i in range(3):
        white = np.zeros((16, 16, 1), np.uint8)
        white[4 * i : 4 * i + 4] = 255
        (tmp_path / "holes").mkdir(exist_ok=True)
        utils.write_image(tmp_path / "holes" / ("0.png", "1_mask.png", "2-MASK.PNG")[i], white)
    files = sorted((trained / "images").iterdir())[:3]
    flags = ["--maskDir", "holes", "--blend", "none", *FEW, "--checkpointDir", trained / "checkpoints/mine"]
    run("complete.py", *files, "holes/1_mask.png", *flags, cwd=tmp_path)  # which is no image, as it is a mask
    assert len(list((tmp_path / "completions/final").iterdir())) == 3
    for i, file in enumerate(files):
        same = (pixels(tmp_path / f"completions/final/000{i}_{i}.png") == pixels(file)).all(-1)
        hidden = np.arange(16) // 4 == i
        assert same[~hidden].all() and same[hidden].mean() < 0.1


def test_complete_one_grey_image_of_another_size_in_several_ways(trained, tmp_path, save_image):
    name = os.fsdecode("gr\xfcn.jpg".encode("latin-1"))  # no UTF-8
    grey, out = save_image(name, np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8)), tmp_path / "out"
    run("complete.py", grey, *FEW, "--samples", 2, "--outDir", out, cwd=trained)
    names = {p.name for p in out.iterdir()}
    assert names == {"sample_00", "sample_01", "samples.png", "final", "plain", "z.npy", "metrics.csv"}
    first, second = (pixels(out / f"final/0000_{grey.stem}_{i}.png") for i in range(2))
    assert first.shape == (16, 16, 3) and not np.array_equal(first, second)
    names = {p.name for p in (out / "sample_01").iterdir()}
    assert names >= {"before.png", "masked.png", "hats_imgs", "completion.gif"}


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
    flags = [*flags, *FEW, "--weighting", "neighbours", "--blend", "none", "--outDir", "out"]
    run("complete.py", image, *flags, cwd=tmp_path)
    truth, final = pixels(image), pixels(tmp_path / "out/final/0000_0.png")
    same = (truth == final).all(-1)
    if "--mask" in flags:
        assert same[4:].all() and not same[:4].all()
    else:
        np.testing.assert_array_equal(final, pixels(tmp_path / "out/hats_imgs/0025.png"))


def test_help_tells_the_defaults_of_the_search():
    assert settings.SEARCH["approach"][1] == list(search.RULES)
    text = " ".join(run("complete.py", "--help").stdout.split())
    for flag, _, default, _ in settings.SEARCH.values():
        told = re.search(rf" --{flag} .*?\(([^)]*)\)", text)[1]
        if default is not None:
            assert told == str(default), flag
    assert re.search(r" --detail .*?\(([^)]*)\)", text)[1] == str(prior.DETAIL)


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
        (["images/0.png", "--checkpointDir", "nowhere"], ["--checkpointDir nowhere", "holds no model"]),
        (["nowhere.png"], ["nowhere.png", "no image to complete; see above"]),
        (["empty"], ["empty", "no image to complete; it holds no images (.avif"]),
        ([""], ["IMAGE: is empty"]),
        (["images/0.png", "--mask", ""], ["--mask: is empty"]),
        (["images/0.png", "--mask", "nowhere.png"], ["nowhere.png: no such file"]),
        (["images/0.png", "--checkpointDir", ""], ["--checkpointDir: is empty"]),
        (["broken.png"], ["broken.png", "no image to complete"]),
        (["images/0.png", "--outDir", "file/out"], ["--outDir file/out", "cannot be written"]),
        (["images/0.png", "--outDir", "images"], ["--outDir images", "not empty"]),
        (["images", "--outDir", "images/completed"], ["--outDir images/completed", "lies in images"]),
        (["images/0.png", "--faces", "all"], ["--faces: is for --photo"]),
        (["images/0.png", "--centerScale", "0.5"], ["--centerScale 0.5", "no hole"]),
        (["images/0.png", "--mask", "broken.png"], ["broken.png", "not a readable image"]),
        (["images/0.png", "--mask", "black.png"], ["--mask black.png", "no hole"]),
        (["images/0.png", "--maskDir", "empty"], ["--maskDir empty", "no mask named 0"]),
        (["images/0.png", "--maskDir", "two"], ["--maskDir two", "2 masks named 0"]),
        (["images/0.png", "--mask", "black.png", "--maskType", "left"], ["--maskType", "--mask"]),
        (["images/0.png", "--maskType", "alpha"], ["images/0.png", "no image to complete; see above"]),
        (["images/0.png", "--nIter", "-1"], ["--nIter", "from 0"]),
        (["images/0.png", "--start", "encoder"], ["--start encoder: checkpoints/mine", "train-encoder.py"]),
        (["images/0.png", "--prior", "1"], ["--prior", "--start encoder"]),
        (["images/0.png", "--start", "encoder", "--candidates", "5"], ["--candidates", "leave one of them out"]),
        (["images/0.png", "--blend", "gaussian"], ["--blend gaussian: checkpoints/mine", "train-encoder.py"]),
        (["images/0.png", "--detail", "1"], ["--detail", "--blend gaussian"]),
        (["images/0.png", "--detail", "1.5"], ["--detail", "to 1"]),
        (["images/0.png", "--window", "4"], ["--window 4", "odd"]),
        (["images/0.png", "--lr", "-1"], ["--lr", "above 0"]),
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
    (tmp_path / "images").symlink_to(trained / "images")
    (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
    one_line(run("complete.py", *flags, cwd=tmp_path, status=2), *words)
