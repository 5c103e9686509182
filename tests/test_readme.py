"""README.md and docs/ are true: commands run as they stand there, flags and files exist, links lead somewhere."""

import base64
import copy
import io
import os
import re
import shlex
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pytest
import scipy.stats
import skimage.data
from conftest import ROOT, command, run
from PIL import Image

import utils
from completion import masks

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("*/*.md"))}
TEXTS["checkpoints/faces-64/MODEL_CARD.md"] = (ROOT / "checkpoints/faces-64/MODEL_CARD.md").read_text()
README, SCRIPTS = TEXTS["README.md"], TEXTS["docs/scripts.md"]
COMMANDS = "\n".join([README, SCRIPTS, TEXTS["docs/evaluation.md"]])
NAMES = "align.py train-dcgan.py train-encoder.py train-refiner.py complete.py sample.py export.py paint.py".split()
# so that it takes seconds
SMALL = {
    "train-dcgan.py": "--image_size 16 --z_dim 5 --gf_dim 8 --df_dim 8".split(),
    "train-encoder.py": ["--epoch", "10"],
    "train-refiner.py": ["--epoch", "2"],
    "complete.py": "--nIter 5 --candidates 10".split(),
    "tensorboard": ["--inspect"],
}


@pytest.mark.slow
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
    # a line with brackets tells the flags, and is no command; paint.py is started in tests/web
    lines = re.findall(r"^(?:    )?((?:\./|tensorboard )[^[\n]*)$", COMMANDS, re.M)
    commands = [shlex.split(line, comments=True) for line in lines]
    assert {command[0] for command in commands} == {*(f"./{name}" for name in NAMES[:-1]), "tensorboard"}
    done = {}
    for program, *arguments in commands:
        script = program.removeprefix("./")
        # the networks of --init are what they are
        arguments += ["--epoch", "2"] if "--init" in arguments else SMALL.get(script, ())
        if script != program and program in done:  # a second start takes as long, and shows nothing more
            run(script, *arguments, cwd=tmp_path)
            continue
        start = command(script) if script != program else [os.path.join(os.path.dirname(sys.executable), program)]
        environment = None if script != program else {**os.environ, "PYTHONPATH": str(ROOT)}
        done[program] = subprocess.run(start + arguments, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done[program].returncode == 0, done[program].stderr
        if script != program:
            assert "oneDNN" not in done[program].stderr  # TensorFlow's chatter
            assert "Traceback" not in done[program].stderr
    assert "d_loss" in done["tensorboard"].stdout and "histograms" in done["tensorboard"].stdout
    assert (tmp_path / "checkpoints/published/ckpt-25.index").exists()
    assert (tmp_path / "checkpoints/published/encoder/ckpt-10.index").exists()
    assert (tmp_path / "checkpoints/published/refiner/ckpt-2.index").exists()
    assert (tmp_path / "onnx-of-mine/encoder.onnx").exists()
    assert (tmp_path / "completions-of-faces" / "final" / "0000_portrait.png").exists()
    with Image.open(tmp_path / "photo.jpg") as before, Image.open(tmp_path / "completions/photos/photo.png") as after:
        changed = (np.asarray(before) != np.asarray(after)).any(-1)
    assert changed[scratch > 0].mean() > 0.9 and not changed[~masks.grown(scratch > 0, masks.GROW)].any()
    assert (tmp_path / "samples-smile" / "arithmetic.png").exists()
    assert (tmp_path / "checkpoints/tuned/ckpt-2.index").exists()

    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(snippet, names := {})
    truth = utils.to_float(utils.read_image("data/test/aligned/portrait.png", 64, 3))
    for completed in (names["last"].result[0], names["last"].completed[0]):
        same = (np.asarray(completed) == truth).all(-1)
        assert same[16:48, 16:48].mean() < 0.1  # the hole
        same[16:48, 16:48] = True
        assert same.all()
    np.testing.assert_array_equal(Image.open("completed.png"), utils.to_uint8(names["last"].result[0]))


@pytest.mark.slow
def test_the_notebook_runs_and_draws_what_is_committed():
    committed = nbformat.read(ROOT / "docs/article.ipynb", 4)
    assert (ROOT / "docs/article.ipynb").stat().st_size < 1_500_000
    notebook = copy.deepcopy(committed)
    resources = {"metadata": {"path": str(ROOT / "docs")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    drawn, before = list(pictures(notebook)), list(pictures(committed))
    assert len(drawn) == len(before) > 5
    assert not [out for cell in notebook.cells for out in cell.get("outputs", ()) if out.get("name") == "stderr"]
    for now, then in zip(drawn[:2], before[:2], strict=True):  # the densities; what TensorFlow computes may differ
        assert now.size == then.size
        # other fonts and versions move a line by a pixel
        views = (np.asarray(x.convert("RGB").resize((90, 45), Image.Resampling.BOX), float) for x in (now, then))
        assert np.abs(np.subtract(*views)).max() < 30


def pictures(notebook):
    """The pictures among a notebook's outputs."""
    for output in [output for cell in notebook.cells for output in cell.get("outputs", ())]:
        if "image/png" in output.get("data", {}):
            yield Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))


def test_the_most_probable_y_of_the_notebook():
    source = "\n\n\n".join(cell.source for cell in nbformat.read(ROOT / "docs/article.ipynb", 4).cells)
    (function,) = [text for text in source.split("\n\n\n") if text.startswith("def most_probable_y")]
    exec(function, names := {})
    y, covariance = np.linspace(-4, 4, 8001), np.array([[2, -0.6], [-0.6, 0.5]])
    density = scipy.stats.multivariate_normal(cov=covariance).pdf(np.column_stack([0 * y + 1.5, y]))
    assert names["most_probable_y"](1.5, covariance) == pytest.approx(y[density.argmax()], abs=1e-3)


def test_every_flag_exists_and_is_described():
    helps = {name: run(name, "--help").stdout for name in NAMES}
    helps |= {name: run(name, "--help").stdout for name in set(re.findall(r"\bbenchmarks/\w+\.py(?= --)", COMMANDS))}
    for script, arguments in re.findall(r"^ *(?:\./|python )([\w/-]+\.py) (.*)$", COMMANDS, re.M):
        for flag in re.findall(r"--\w+", arguments):
            assert re.search(rf"{flag}\b", helps[script]), f"{script} {flag}"
    flag = r"(?<![\w-])--[A-Za-z][\w-]+"
    flags = set(re.findall(flag, COMMANDS + TEXTS["checkpoints/faces-64/MODEL_CARD.md"]))
    exist = {found for text in helps.values() for found in re.findall(flag, text)}
    assert len(flags) > 30 and flags <= exist
    described = {found for name in NAMES for found in re.findall(flag, helps[name])} - {"--help", "--logdir"}
    assert described <= set(re.findall(flag, SCRIPTS))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_the_readme_lists_all_files():
    (tree,) = re.findall(r"(?:^ +[\w.-]+(?:/|\.py) .*\n)+", README, re.M)
    listed, room = [], ""
    for indent, name in re.findall(r"^( +)(\S+)", tree, re.M):
        room = room if len(indent) > 4 else ""
        assert (ROOT / room / name).exists(), name
        listed += [room + name] if name.endswith(".py") else []
        room = name if name.endswith("/") else room
    rooms = (".", "completion", "photos", "training", "web")
    files = [path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).glob("*.py")]
    assert sorted(listed) == sorted(name for name in files if not name.endswith("__init__.py"))


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        assert (ROOT / place).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", TEXTS[place], re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target
