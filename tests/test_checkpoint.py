"""Files of weights."""

import os
import shutil

import cli

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, changed, compiled_step, images, values, zs

import checkpoint
from model import DCGAN


def stored(tiny_dcgan, directory, step=2):
    """A tiny DCGAN whose checkpoint of a step is in `directory`."""
    dcgan = tiny_dcgan(ema=0.9)
    dcgan.step = step
    checkpoint.save(directory, dcgan.networks, {"step": step}, dcgan.make_optimizers(0.01, 0.5))
    checkpoint.write_config(directory, {"architecture": dcgan.architecture})
    return dcgan


def test_checkpoint_round_trip(tiny_dcgan, tmp_path):
    before = tiny_dcgan(ema=0.9)
    old = before.make_optimizers(0.01, 0.5)
    step = compiled_step(before, old)
    for _ in range(2):
        step(images(4), zs(4))
    checkpoint.save(tmp_path, before.networks, {"step": 2}, old)
    after = DCGAN(**TINY, ema=0.9)
    new = after.make_optimizers(0.01, 0.5)
    assert checkpoint.restore(tmp_path, after.networks, optimizers=new) == {"step": 2}
    for name, theirs in (before.networks | old).items():
        theirs, ours = theirs.variables, (after.networks | new)[name].variables
        assert len(ours) == len(theirs) > 0 and not any(changed(values(theirs), ours)), name
    assert len(before.networks | old) == 5
    assert int(new["g_optimizer"].iterations) == 4 and int(new["d_optimizer"].iterations) == 2
    x, z = images(4), zs(4)
    step(x, z)
    compiled_step(after, new)(x, z)
    for a, b in zip(before.generator.variables, after.generator.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_load_for_completion(tiny_dcgan, tmp_path):
    before = stored(tiny_dcgan, tmp_path)
    before.recalibrate_batchnorm()
    after = DCGAN.load(tmp_path)
    assert after.inference_generator is after.generator_ema
    z, x = zs(3), images(3)
    np.testing.assert_allclose(after.inference_generator(z), before.generator_ema(z), atol=1e-5)
    np.testing.assert_allclose(after.discriminator(x), before.discriminator(x), atol=1e-5)


def test_an_exported_model_draws_nearly_the_same(tiny_dcgan, tmp_path):
    before = stored(tiny_dcgan, tmp_path / "run")
    before.recalibrate_batchnorm()
    assert "faces take about 1200" in checkpoint.describe("run", before)
    before.pretrained_steps = 1198
    before.export(tmp_path / "small")
    after = DCGAN.load(tmp_path / "small")
    assert checkpoint.describe("small", after) == "model: small, step 2"
    assert after.step == 2 and after.generator_ema is None
    z, x = zs(3), images(3)
    pictures, logits = (after.generator(z), before.generator_ema(z)), (after.discriminator(x), before.discriminator(x))
    for ours, theirs in (pictures, logits):
        np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=0.01)
        assert ours.dtype == tf.float32 and not np.array_equal(ours, theirs)
    for variable, exact in zip(after.generator.variables, before.generator_ema.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), exact.numpy().astype(np.float16))
    weights = sum(v.numpy().size for v in after.generator.variables + after.discriminator.variables)
    files = [path.stat().st_size for path in (tmp_path / "small").glob("*.data*")]
    assert len(files) == 1 and files[0] < 2.5 * weights + 5000
    with pytest.raises(cli.UserError, match="is not empty"):
        before.export(tmp_path / "small")
    for network, name in ((before.discriminator, "d_h0_conv"), (before.generator_ema, "g_h0_lin")):
        network.get_layer(name).bias.assign_add(np.full(network.get_layer(name).bias.shape, 1e5))
        with pytest.raises(cli.UserError, match=f"{name}/bias does not fit"):
            before.export(tmp_path / "large")
        assert not (tmp_path / "large").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tiny_dcgan, tmp_path, capsys):
    stored(tiny_dcgan, tmp_path, step=2)
    stored(tiny_dcgan, tmp_path, step=10)
    data = tmp_path / "ckpt-10.data-00000-of-00001"
    content = data.read_bytes()
    (tmp_path / "checkpoint").unlink()
    for damaged in (content[: len(content) // 2], b"\0" * len(content), None):
        data.write_bytes(damaged) if damaged else data.unlink()
        assert DCGAN.load(tmp_path).step == 2
        assert f"skipped {tmp_path}/ckpt-10: damaged" in capsys.readouterr().err
    (tmp_path / "ckpt-2.index").write_text("")
    with pytest.raises(cli.UserError, match="holds no readable checkpoint"):
        DCGAN.load(tmp_path)


def test_what_a_killed_run_did_not_list_goes_and_what_is_listed_stays(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def save(step):
        checkpoint.save("./run", tiny.networks, {"step": step}, {})
        return [int(path.rpartition("-")[2]) for path in checkpoint.find("./run")]

    assert [save(step) for step in (1, 2, 3)][-1] == [3, 2, 1]
    for file in tmp_path.glob("run/ckpt-3.*"):
        shutil.copy(file, str(file).replace("ckpt-3.", "ckpt-9."))
    assert save(4) == [4, 3, 2]
    (tmp_path / "run/checkpoint").unlink()  # the list itself is lost: nothing goes until there is a whole one again
    assert save(5) == [5, 4, 3, 2] and save(6) == [6, 5, 4, 3, 2]
    assert save(7) == [7, 6, 5]


@pytest.mark.parametrize("kind", ["elsewhere", "pipe", "large"])
def test_a_list_of_checkpoints_that_is_not_ours_is_no_order_to_delete_them(tiny, tmp_path, kind):
    (tmp_path / "run").mkdir()
    (tmp_path / "photo.index").touch()
    names = [f'all_model_checkpoint_paths: "{tmp_path}/photo"'] + [f'all_model_checkpoint_paths: "{i}"' for i in "ab"]
    text = "\n".join(['model_checkpoint_path: "b"', *names, *["all_model_checkpoint_timestamps: 1.0"] * 3])
    if kind == "pipe":
        os.mkfifo(tmp_path / "run/checkpoint")
    else:
        (tmp_path / "run/checkpoint").write_text(text + "\n" * 2**17 * (kind == "large"))
    for step in range(4):
        checkpoint.save(tmp_path / "run", tiny.networks, {"step": step}, {})
    assert (tmp_path / "photo.index").exists() and len(checkpoint.find(tmp_path / "run")) == 3


def test_the_best_checkpoint_is_kept_beside(tiny, tmp_path):
    config = {"architecture": TINY, "training": {"seed": 1}, "images": 10}

    def offer(step, swd, **changes):
        checkpoint.keep_best(tmp_path, {**config, **changes}, "swd", swd, tiny.networks, {"step": step}, {})
        (kept,) = checkpoint.find(tmp_path)
        return int(kept.rpartition("-")[2])

    assert [offer(5, 10.0), offer(6, 12.0), offer(7, 9.0)] == [5, 5, 7]
    assert offer(4, 8.0) == 4  # of a run that went back
    # what cannot be compared is replaced, and so is what a killed run did not finish
    assert offer(8, 20.0, images=11) == 8
    assert offer(9, 30.0, training={"seed": 2}) == 9
    (tmp_path / "config.json").write_text("{")
    assert offer(10, 40.0) == 10
    checkpoint.save(tmp_path, tiny.networks, {"step": 11}, {}, keep=1)
    assert offer(12, 50.0) == 12 and offer(13, 51.0) == 12


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tiny_dcgan, tmp_path, monkeypatch):
    dcgan = stored(tiny_dcgan, tmp_path)
    before = sorted(tmp_path.iterdir())

    def full(manager, checkpoint_number):
        (tmp_path / f"ckpt-{checkpoint_number}_temp").mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.CheckpointManager, "save", full)
    with pytest.raises(cli.UserError, match="step 5 could not be saved.*No space left"):
        checkpoint.save(tmp_path, dcgan.networks, {"step": 5}, dcgan.make_optimizers(0.01, 0.5))
    assert sorted(tmp_path.iterdir()) == before
    assert DCGAN.load(tmp_path).step == 2


def test_only_what_a_save_left_is_cleared_away(tmp_path):
    for name in ("ckpt-3_temp", "ckpt-backup"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in ("ckpt-1.index", "ckpt-1.data-00000-of-00001", "ckpt-2.data-00000-of-00001", "ckpt-notes.txt"):
        (tmp_path / name).touch()
    checkpoint.remove_unfinished(tmp_path)
    kept = {"ckpt-1.index", "ckpt-1.data-00000-of-00001", "ckpt-backup", "ckpt-notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == kept
