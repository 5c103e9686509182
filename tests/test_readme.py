"""The README's commands work as they stand there, and its flags exist."""

import re
import shlex

import skimage.data
from conftest import ROOT, run
from PIL import Image

README = (ROOT / "README.md").read_text()
SCRIPTS = ("align.py", "train-dcgan.py", "complete.py", "sample.py")
# so that it takes seconds
SMALL = {
    "train-dcgan.py": "--image_size 16 --z_dim 5 --gf_dim 8 --df_dim 8".split(),
    "complete.py": "--nIter 5 --candidates 10".split(),
}


def test_the_commands_from_photos_to_completions(tmp_path):
    portrait = Image.fromarray(skimage.data.astronaut()[:240, 100:340])
    for name in ("mine", "test"):
        (tmp_path / "data" / name / "raw").mkdir(parents=True)
        portrait.save(tmp_path / "data" / name / "raw" / "portrait.jpg")
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("./")]
    assert {command[0] for command in commands} == {f"./{script}" for script in SCRIPTS}
    for script, *arguments in commands:
        script = script.removeprefix("./")
        run(script, *arguments, *SMALL.get(script, ()), cwd=tmp_path)
    assert (tmp_path / "completions" / "final" / "0000_portrait.png").exists()


def test_every_flag_exists():
    texts = [run(script, "--help").stdout for script in SCRIPTS]
    texts += [(ROOT / "tests" / f"{name}.py").read_text() for name in ("benchmark", "baselines")]
    flags = set(re.findall(r"(?<![\w-])--[A-Za-z]\w+", README)) - {"--logdir"}  # TensorBoard's own
    assert len(flags) > 30
    assert not [flag for flag in flags if not any(re.search(rf"{flag}\b", text) for text in texts)]
