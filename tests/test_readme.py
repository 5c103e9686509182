"""The README's commands work as they stand there, and its flags exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import skimage.data
from conftest import ROOT, command, run
from PIL import Image

import utils

README = (ROOT / "README.md").read_text()
SCRIPTS = ("align.py", "train-dcgan.py", "train-encoder.py", "complete.py", "sample.py", "export.py")
# so that it takes seconds
SMALL = {
    "train-dcgan.py": "--image_size 16 --z_dim 5 --gf_dim 8 --df_dim 8".split(),
    "complete.py": "--nIter 5 --candidates 10".split(),
    "tensorboard": ["--inspect"],
}


def test_the_commands_from_photos_to_completions(tmp_path, monkeypatch, small_model):
    portrait = Image.fromarray(skimage.data.astronaut()[:240, 100:340])
    for name in ("mine/raw/portrait", "mine/raw/another", "test/raw/portrait"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        portrait.save(tmp_path / "data" / f"{name}.jpg")
    portrait.save(tmp_path / "photo.jpg")
    scratch = np.zeros((240, 240), np.uint8)
    scratch[140:150] = 255
    Image.fromarray(scratch).save(tmp_path / "photo-mask.png")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "faces-64").symlink_to(small_model)
    # a line with brackets tells the flags, and is no command
    lines = re.findall(r"^(?:    )?((?:\./|tensorboard )[^[\n]*)$", README, re.M)
    commands = list(map(shlex.split, lines))
    assert {command[0] for command in commands} == {*(f"./{script}" for script in SCRIPTS), "tensorboard"}
    done = {}
    for program, *arguments in commands:
        script = program.removeprefix("./")
        # the networks of --init are what they are
        arguments += ["--epoch", "2"] if "--init" in arguments else SMALL.get(script, ())
        if script == program:
            start, environment = [Path(sys.executable).with_name(program)], {**os.environ, "PYTHONPATH": str(ROOT)}
        else:
            start, environment = command(script), None
        start += arguments
        done[program] = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done[program].returncode == 0, done[program].stderr
        if script != program:
            assert "oneDNN" not in done[program].stderr  # TensorFlow's chatter
            assert "Traceback" not in done[program].stderr
    assert "d_loss" in done["tensorboard"].stdout and "histograms" in done["tensorboard"].stdout
    assert (tmp_path / "checkpoints/published/ckpt-25.index").exists()
    assert (tmp_path / "checkpoints/published/encoder/ckpt-10.index").exists()
    assert (tmp_path / "onnx-of-mine/encoder.onnx").exists()
    assert (tmp_path / "completions-of-faces" / "final" / "0000_portrait.png").exists()
    with Image.open(tmp_path / "photo.jpg") as before, Image.open(tmp_path / "completions/photos/photo.png") as after:
        changed = (np.asarray(before) != np.asarray(after)).any(-1)
    assert changed[scratch > 0].mean() > 0.9 and not changed[scratch == 0].any()
    assert (tmp_path / "samples-smile" / "arithmetic.png").exists()
    assert (tmp_path / "checkpoints/tuned/ckpt-2.index").exists()

    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(snippet, names := {})
    truth = utils.to_float(utils.read_image("data/test/aligned/portrait.png", 64, 3))
    for completed in (names["blended"][0], names["last"].completed[0]):
        same = (np.asarray(completed) == truth).all(-1)
        assert same[16:48, 16:48].mean() < 0.1  # the hole
        same[16:48, 16:48] = True
        assert same.all()
    np.testing.assert_array_equal(Image.open("completed.png"), utils.to_uint8(names["blended"][0]))


def test_the_figure_of_distributions(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import distributions
    finally:
        sys.path.pop(0)
    y = np.linspace(-4, 4, 8001)
    density = scipy.stats.multivariate_normal(cov=[[2, -0.6], [-0.6, 0.5]]).pdf(np.column_stack([0 * y + 1.5, y]))
    best = distributions.most_probable_y(1.5, np.array([[2, -0.6], [-0.6, 0.5]]))
    assert best == pytest.approx(y[density.argmax()], abs=1e-3)

    run("docs/distributions.py", tmp_path / "figure.png")
    drawn, committed = Image.open(tmp_path / "figure.png"), Image.open(ROOT / "docs" / "distributions.png")
    assert drawn.size == committed.size
    # other fonts and versions move a line by a pixel
    views = (np.asarray(x.convert("RGB").resize((90, 72), Image.Resampling.BOX), float) for x in (drawn, committed))
    assert np.abs(np.subtract(*views)).max() < 30


def test_every_flag_exists():
    helps = {script: run(script, "--help").stdout for script in (*SCRIPTS, "paint.py")}
    for script, arguments in re.findall(r"^ *\./([\w-]+\.py) (.*)$", README, re.M):
        for flag in re.findall(r"--\w+", arguments):
            assert re.search(rf"{flag}\b", helps[script]), f"{script} {flag}"
    texts = [*helps.values()]
    texts += [(ROOT / "tests" / f"{name}.py").read_text() for name in ("benchmark", "baselines")]
    flags = set(re.findall(r"(?<![\w-])--[A-Za-z]\w+", README)) - {"--logdir"}  # TensorBoard's own
    assert len(flags) > 30
    assert not [flag for flag in flags if not any(re.search(rf"{flag}\b", text) for text in texts)]
