import cli

import numpy as np
import pytest

import utils
from training.dataset import ImageFolder


def epoch(images, number=0, batch_size=3, **options):
    return np.concatenate(list(images.epoch(number, batch_size, **options)))


def as_set(images):
    return {x.tobytes() for x in images}


@pytest.mark.parametrize("cache_mb", [1, 0])
def test_an_epoch_holds_each_image_once(folder, cache_mb):
    images = ImageFolder(folder, 16, 3, cache_mb=cache_mb)
    assert (images.images is None) == (cache_mb == 0)
    files = [utils.to_float(utils.read_image(p, 16, 3)) for p in utils.find_images(folder)]
    batches = epoch(images, batch_size=5)
    assert batches.dtype == np.float32 and len(batches) == 10
    assert as_set(batches) == as_set(files)


def test_a_partial_batch_is_dropped(folder):
    assert len(epoch(ImageFolder(folder, 16, 3), batch_size=4)) == 8


def test_order_is_decided_by_seed_and_epoch(folder):
    images = ImageFolder(folder, 16, 3)
    first = epoch(images, 0, seed=1)
    np.testing.assert_array_equal(epoch(ImageFolder(folder, 16, 3, cache_mb=0), 0, seed=1), first)
    assert not np.array_equal(epoch(images, 1, seed=1), first)
    assert not np.array_equal(epoch(images, 0, seed=2), first)


def test_an_interrupted_epoch_goes_on_where_it_was(folder):
    images = ImageFolder(folder, 16, 3)
    whole = epoch(images, 2, seed=1, flip=True)
    np.testing.assert_array_equal(epoch(images, 2, seed=1, flip=True, start=3), whole[3:])


def test_flip_mirrors_some_images(folder):
    images = ImageFolder(folder, 16, 3)
    plain, flipped = epoch(images), epoch(images, flip=True)
    mirrored = [np.array_equal(f, p[:, ::-1]) for f, p in zip(flipped, plain, strict=True)]
    kept = [np.array_equal(f, p) for f, p in zip(flipped, plain, strict=True)]
    assert any(mirrored) and any(kept)
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))


def test_train_size_draws_by_seed(folder):
    chosen = ImageFolder(folder, 16, 3, train_size=4, seed=1).paths
    assert len(chosen) == 4 and chosen == ImageFolder(folder, 16, 3, train_size=4, seed=1).paths
    assert chosen != ImageFolder(folder, 16, 3, train_size=4, seed=2).paths
    assert len(ImageFolder(folder, 16, 3, train_size=99)) == 10


@pytest.mark.parametrize("cache_mb", [1, 0])
def test_a_broken_file_is_named_and_left_out(folder, broken, capfd, cache_mb):
    good = as_set(epoch(ImageFolder(folder, 16, 3), batch_size=5))
    broken.rename(folder / "a" / "1_broken.png")
    images = ImageFolder(folder, 16, 3, cache_mb=cache_mb)
    assert "1_broken.png" in capfd.readouterr().err
    assert len(images) == 10
    assert as_set(epoch(images, batch_size=5)) == good


def test_a_file_that_breaks_later_is_named_and_replaced(folder, capfd):
    images = ImageFolder(folder, 16, 3, cache_mb=0)
    good = as_set(epoch(images, batch_size=5))
    images.paths[4].unlink()
    batches = epoch(images, batch_size=5)
    assert images.paths[4].name in capfd.readouterr().err
    assert len(batches) == 10 and len(as_set(batches)) == 9 and as_set(batches) < good


def test_when_more_than_a_tenth_breaks_that_is_an_error(folder, capfd):
    images = ImageFolder(folder, 16, 3, cache_mb=0)
    broken = [images.paths[i] for i in (2, 7)]
    broken[0].unlink()
    assert len(epoch(images, batch_size=5)) == len(epoch(images, 1, batch_size=5)) == 10
    assert capfd.readouterr().err.count("skipped") == 1  # said once, not each epoch
    broken[1].write_text("no image")
    with pytest.raises(cli.UserError, match="--dataset: 2 of its 10 images can no longer be read, such as "):
        epoch(images, 2, batch_size=5)
    assert f"skipped {broken[1]}" in capfd.readouterr().err


def test_folder_without_images(tmp_path, broken):
    with pytest.raises(cli.UserError, match="--dataset.*none of its 1 images"):
        ImageFolder(tmp_path, 16, 3)
    broken.unlink()
    with pytest.raises(cli.UserError, match="--dataset.*holds no images"):
        ImageFolder(tmp_path, 16, 3)
