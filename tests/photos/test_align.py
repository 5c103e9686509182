"""align.py: the photos it finds, the names and the record of its crops, what is wrong, and interrupts."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli

import cv2
import numpy as np
import pytest
import test_faces
from conftest import ROOT, heed_sigint, one_line
from PIL import Image
from test_faces import ASTRONAUT, NOISE, PORTRAIT, crops, read, rows_of, run

import utils
from photos import alignment, detection, record

in_process = test_faces.in_process


@pytest.fixture
def run_here(in_process):
    """A function that runs align.py in this process; returns its standard output, and keeps its standard error."""

    def call(*arguments):
        done = run(*arguments)
        call.err = done.stderr
        return done.stdout

    return call


@pytest.fixture
def refused(in_process):
    """As `run_here`, of a command that ends with an error; returns the line that says so."""

    def call(*arguments):
        line = run(*arguments, status=2).stderr.splitlines()[-1]
        assert line.startswith("align.py: error: ")
        return line

    return call


@pytest.fixture
def out(tmp_path, save_image, run_here, monkeypatch):
    """OUTPUT with the crop of in/a.png, in the working directory."""
    (tmp_path / "in").mkdir()
    save_image("in/a.png", PORTRAIT)
    monkeypatch.chdir(tmp_path)
    run_here("in", "out")
    return tmp_path / "out"


def test_all_faces_are_numbered_and_resumed(tmp_path, run_here):
    (tmp_path / "in").mkdir()
    Image.fromarray(ASTRONAUT).save(tmp_path / "in/a.png")
    flags = [tmp_path / "in", tmp_path / "out", "--faces", "all", "--size", 32]
    assert "2 faces aligned in 1 of 1 photos" in run_here(*flags)
    assert crops(tmp_path / "out") == ["a_0.png", "a_1.png"]
    before = rows_of(tmp_path / "out")
    assert [(row["output"], row["face"]) for row in before] == [("a_0.png", "0"), ("a_1.png", "1")]
    assert read(tmp_path / "out/a_1.png").shape == (32, 32, 3)
    assert "0 faces aligned in 0 of 1 photos, 1 already done" in run_here(*flags)
    (tmp_path / "out/a_1.png").unlink()
    assert "2 faces aligned in 1 of 1 photos, 0 already done" in run_here(*flags)
    assert rows_of(tmp_path / "out") == before
    # a face that is gone takes its crop along
    Image.fromarray(PORTRAIT).save(tmp_path / "in/a.png")
    run_here(*flags, "--overwrite")
    assert crops(tmp_path / "out") == ["a_0.png"] and len(rows_of(tmp_path / "out")) == 1


STOPPED = """
import os, sys, align

def replace(draft, path, real=os.replace, crops=[]):
    crops += [path] * str(path).endswith(".png")
    if len(crops) == 4:
        os.kill({whom}, {number})
    real(draft, path)

os.replace = replace
parser, args = align.parse_args()
sys.exit(parser.run(align.align, args))
"""


# Ctrl-C reaches all processes of a terminal, as some send SIGTERM to all; workers end with the one that is killed
@pytest.mark.slow
@pytest.mark.parametrize("whom, number", [(0, signal.SIGINT), (0, signal.SIGTERM), ("os.getpid()", signal.SIGKILL)])
def test_an_interrupted_run_resumes(tmp_path, run_here, monkeypatch, whom, number):
    (tmp_path / "in").mkdir()
    for i in range(24):
        Image.fromarray(PORTRAIT).save(tmp_path / f"in/{i:02d}.bmp")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = subprocess.run(  # which waits until no process holds its output any more
        [sys.executable, "-c", STOPPED.format(whom=whom, number=int(number)), "in", "out", "--workers", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        start_new_session=True,
        preexec_fn=heed_sigint,
        timeout=60,
    )
    left = crops(tmp_path / "out")
    count = len([name for name in left if name.endswith(".png")])
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number and "the same command resumes" in process.stdout
        assert "Traceback" not in process.stderr
        assert sorted(row["output"] for row in rows_of(tmp_path / "out")) == left
    else:
        assert len(left) == count + 1  # its draft
    assert 3 <= count < 24
    done = run_here(tmp_path / "in", tmp_path / "out")
    assert f"{24 - count} faces aligned in {24 - count} of 24 photos, {count} already done" in done
    assert crops(tmp_path / "out") == [f"{i:02d}.png" for i in range(24)]
    assert [row["output"] for row in rows_of(tmp_path / "out")] == [f"{i:02d}.png" for i in range(24)]


def test_one_run_at_a_time_writes_to_a_folder(out, refused):
    with alignment.only_run(out):
        assert "OUTPUT out: another align.py writes to it; wait for it" in refused("in", "out", "--overwrite")


@pytest.mark.parametrize("side, size, seconds", [(4000, 64, 0), (300, 512, 1)])
def test_a_killed_worker_is_one_line(tmp_path, save_image, side, size, seconds):
    """It is killed while it looks at the second photo, or in the midst of its answer, which holds a large crop."""
    save_image("0.bmp", PORTRAIT)
    save_image("1.bmp", cv2.resize(PORTRAIT, (side, side)))
    settings = alignment.Settings(size=size, workers=1, predictor=detection.find_predictor())
    tasks = [(str(tmp_path / f"{i}.bmp"), str(i)) for i in range(2)]
    with pytest.raises(cli.UserError, match="killed.*--workers 1.*1.bmp"):
        for rows, _ in alignment.in_parallel(iter(tasks), tmp_path, settings):
            assert rows[0]["status"] == "aligned"
            time.sleep(seconds)
            (worker,) = multiprocessing.active_children()
            worker.kill()
            worker.join()  # or all of its answer may still be read
    assert not multiprocessing.active_children()


def named(*names):
    """As find_photos gives them: from /PATH to what is mirrored, the last of a/b."""
    return {f"/{name}": name.partition("/")[2] for name in names}


def test_names_of_crops():
    assert alignment.name_crops(named("x/a.jpg", "x/s/b.c.png")) == {"/x/a.jpg": "a", "/x/s/b.c.png": "s/b.c"}
    crowd = named("x/a.jpg", "x/a.png", "x/A.webp", "y/b.png")
    names = alignment.name_crops(crowd)
    assert names == {"/x/a.jpg": "a.jpg", "/x/a.png": "a.png", "/x/A.webp": "A.webp", "/y/b.png": "b"}
    assert alignment.name_crops(dict(reversed(crowd.items()))) == names
    for pair in (("x/b.png", "y/b.png"), ("x/b.png", "y/B.png"), ("x/b.jpg", "x/b.jpg.png", "x/b.png")):
        with pytest.raises(cli.UserError, match="INPUT /.*would both be"):
            alignment.name_crops(named(*pair))


def test_photos_of_one_name_are_all_kept(tmp_path, run_here, monkeypatch):
    for name in ("x/a.png", "y/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PORTRAIT).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert "2 faces" in run_here("x", "y", "y/b.png", "out")
    before = rows_of(tmp_path / "out")
    # a name that comes later does not take an earlier one's place
    Image.fromarray(PORTRAIT).save(tmp_path / "x/a.bmp")
    assert "1 faces aligned in 1 of 3 photos, 2 already done" in run_here("y", "x", "out")
    assert crops(tmp_path / "out") == ["a.bmp.png", "a.png", "b.png"]
    shutil.copytree(tmp_path / "y", tmp_path / "z")
    for flags in ([], ["--overwrite"]):
        one_line(run("z", "out", *flags, status=2), "out/b.png", "y/b.png", "another OUTPUT")
    assert [row for row in rows_of(tmp_path / "out") if "bmp" not in row["source"]] == before


def test_find_photos(folder):
    inside = folder / "a" / "out"
    inside.mkdir()
    shutil.copy(folder / "a/0.png", inside / "0.png")
    found = alignment.find_photos([folder, folder / "a/2.png"], inside)
    assert found == {str(folder / f"{'ab'[i % 2]}/{i}.png"): f"{'ab'[i % 2]}/{i}.png" for i in range(10)}
    for inputs, output in (([folder], folder), ([folder / "a"], folder), ([folder / "a/0.png"], folder / "a")):
        with pytest.raises(cli.UserError, match="lies in OUTPUT"):
            alignment.find_photos(inputs, output)


def test_record_cut_short(tmp_path):
    row = dict(faces="all", landmarks="outerEyesAndNose")
    rows = {
        f"{tmp_path}/{s}": [row | dict(source=f"{tmp_path}/{s}", output=f"{s}_{i}.png", face=i) for i in (0, 1)]
        for s in ("q", "p\n,\udce9")  # a name that is not UTF-8
    }
    record.write_record(tmp_path / "align.csv", rows)
    read = record.read_record(tmp_path / "align.csv")
    assert sorted(read) == sorted(rows) and all(len(rows) == 2 for rows in read.values())
    text = (tmp_path / "align.csv").read_bytes()
    # done anew, and the last row cut: the latest word counts, and what is whole
    (tmp_path / "align.csv").write_bytes(text + text.splitlines(keepends=True)[-2] + text.splitlines()[-1][:-5])
    (row,) = record.read_record(tmp_path / "align.csv")[f"{tmp_path}/q"]
    assert row["output"] == "q_0.png"


def rewrite(folder, **cells):
    """Change cells of a record of one row by hand."""
    record.write_record(folder / "align.csv", {"": [rows_of(folder)[0] | cells]})
    return (folder / "align.csv").read_bytes()


def test_a_moved_folder_is_known_where_it_is_now(tmp_path, out, run_here):
    before = (out / "align.csv").read_bytes()
    for name in ("in", "out"):
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "there" / name)
    (crop,) = record.find_crops([tmp_path / "there/out/a.png"])
    assert crop.source == tmp_path / "there/in/a.png"
    assert "1 already done" in run_here("there/in", "there/out")
    assert (tmp_path / "there/out/align.csv").read_bytes() == before and str(tmp_path).encode() not in before
    # older records hold absolute paths
    (tmp_path / "there/out").rename(out)
    (out / "align.csv").write_bytes(before.replace(b"../in", f"{tmp_path}/there/in".encode()))
    assert "1 already done" in run_here("there/in", "out")
    # which are known in another place, too, if the photos moved with the crops
    out.rename(tmp_path / "there/out")
    (tmp_path / "there/out/align.csv").write_bytes(before.replace(b"../in", f"{tmp_path}/there/in".encode()))
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    (crop,) = record.find_crops([tmp_path / "elsewhere/out/a.png"])
    assert crop.source == tmp_path / "elsewhere/in/a.png"
    assert "1 already done" in run_here("elsewhere/in", "elsewhere/out")


def test_a_photo_that_has_changed_is_aligned_again(out, run_here, save_image):
    save_image("in/b.png", PORTRAIT)
    assert "1 faces aligned in 1 of 2 photos, 1 already done" in run_here("in", "out")
    os.utime("in/a.png")  # the same photo
    save_image("in/b.png", PORTRAIT[:, ::-1].copy())
    assert "1 faces aligned in 1 of 2 photos, 1 already done" in run_here("in", "out")
    first, second = (read(out / f"{name}.png").astype(int) for name in "ab")
    assert np.abs(first - second).mean() > 10
    # whoever gives points does not want the crop that is there
    assert "1 faces aligned in 1 of 1 photos" in run_here("in/a.png", "out", "--points", "90,100", "140,100", "115,170")
    assert [row["seen"] for row in rows_of(out)] == ["points", ""]


@pytest.mark.parametrize(
    "place", ["../x/y.png", "{}/x/y.png", "sub/y.png", "link.png", "notes.txt", "in/../a.png", "\0.png"]
)
def test_a_record_of_crops_elsewhere_is_refused(tmp_path, out, refused, place):
    (tmp_path / "x").mkdir()
    (out / "sub").symlink_to("../x")
    (out / "link.png").symlink_to("../x/y.png")
    victims = tmp_path / "x/y.png", out / "notes.txt"
    for victim in victims:
        victim.write_text("kept")
    before = rewrite(out, output=place.format(tmp_path))
    for flags in ([], ["--overwrite"], ["--overwrite", "--faces", "all"]):
        line = refused("in", "out", *flags)
        assert "out/align.csv: not a record of align.py's" in line and "choose another OUTPUT" in line
    assert (out / "align.csv").read_bytes() == before
    assert [victim.read_text() for victim in victims] == ["kept", "kept"] and os.listdir(tmp_path / "x") == ["y.png"]


@pytest.mark.parametrize(
    "cells, words",
    [
        (dict(faces="odd"), "--faces largest: OUTPUT out holds the crop of {}/in/a.png with --faces odd; choose"),
        (dict(size="1\n2"), "--size 64: OUTPUT out holds the crop of {}/in/a.png with --size 1 2; choose"),
        (dict(landmarks="odd"), "out/a.png: is there already"),
        (dict(source="other"), "out/a.png: is there already, made of {}/out/other"),
        (dict(face="odd"), "1 already done"),
    ],
)
def test_an_odd_row_of_the_record_is_one_line(out, run_here, refused, cells, words):
    rewrite(out, **cells)
    command = run_here if "face" in cells else refused  # which does no harm
    assert words.format(out.parent) in command("in", "out")
    with open(out / "align.csv", "a") as file:
        file.write("a,b.png,aligned,0,,,,,,,,,,,,,,,,64,largest,outerEyesAndNose,a cell too many\n")
    assert "out/align.csv: not a record of align.py's (an odd row, of a); choose" in refused("in", "out")


@pytest.mark.parametrize("make, why", [(Path.touch, "other columns"), (os.mkfifo, "it is no file")])
def test_a_record_that_holds_nothing_is_one_line(out, refused, make, why):
    (out / "align.csv").unlink()
    make(out / "align.csv")
    assert f"out/align.csv: not a record of align.py's ({why}); choose another OUTPUT" in refused("in", "out")


def test_nothing_goes_through_a_link(tmp_path, out, run_here, refused, save_image):
    victim, elsewhere = tmp_path / "victim", tmp_path / "elsewhere"
    victim.write_text("kept")
    elsewhere.mkdir()
    for name in ("a.png.draft", "b.png.draft", "align.csv.draft", f".{os.getpid()}.draft"):
        (out / name).symlink_to(victim)
    (tmp_path / "named").symlink_to("out")  # OUTPUT itself may be one
    save_image("in/b.png", PORTRAIT)
    assert "2 faces" in run_here("in", "named", "--overwrite")
    assert not (out / "b.png").is_symlink()

    (tmp_path / "in/sub").mkdir()
    save_image("in/sub/c.png", PORTRAIT)
    (out / "sub").symlink_to(elsewhere)
    assert "out/sub/c.png: does not lie in out, or is a link" in refused("in", "out", "--overwrite")
    (out / "a.png").unlink()
    (out / "a.png").symlink_to(victim)
    assert "out/a.png: does not lie in out, or is a link" in refused("in/a.png", "out", "--overwrite")
    (out / "align.csv").rename(tmp_path / "record")
    (out / "align.csv").symlink_to(tmp_path / "record")
    before = (tmp_path / "record").read_bytes()
    line = refused("in/b.png", "out", "--overwrite")
    assert "out/align.csv: not a record" in line and "is a link" in line and "choose another OUTPUT" in line
    assert (tmp_path / "record").read_bytes() == before
    assert victim.read_text() == "kept" and not os.listdir(elsewhere)


def test_a_loop_of_links_is_no_photo(tmp_path, out, run_here, refused):
    (tmp_path / "in/loop.png").symlink_to("loop.png")
    assert "1 faces aligned in 1 of 1 photos" in run_here("in", "out", "--overwrite")
    assert "INPUT in/loop.png: no such file or folder" in refused("in/loop.png", "out")
    assert "OUTPUT in/loop.png: cannot be written" in refused("in/a.png", "in/loop.png")


def test_a_long_name_does_not_end_the_run(out, run_here, save_image):
    name = "a" * 250  # of a file, 255 bytes at most
    save_image(f"in/{name}.bmp", PORTRAIT)
    assert "1 faces aligned in 1 of 2 photos, 1 already done" in run_here("in", "out")
    assert crops(out) == ["a.png", f"{name}.png"]
    assert "1 faces aligned in 1 of 2 photos" in run_here("in", "all", "--faces", "all")
    assert [row["status"][:31] for row in rows_of(out.parent / "all")] == ["aligned", "unreadable: OSError [Errno 36] "]
    assert f"{name}.bmp: unreadable: OSError [Errno 36] File name too long" in run_here.err
    assert crops(out.parent / "all") == ["a_0.png"]


def test_the_faces_that_are_not_taken_are_reported(out, run_here, save_image):
    save_image("in/two.png", np.hstack([PORTRAIT, PORTRAIT]))
    run_here("in", "out", "--overwrite")
    assert run_here.err.count("took") == 1
    assert f"{out.parent}/in/two.png: took the largest of 2 faces; --faces all takes them all\n" in run_here.err
    assert [row["status"] for row in rows_of(out)] == ["aligned"] * 2
    run_here("in", "all", "--faces", "all")
    assert "took" not in run_here.err


def test_after_two_dashes_all_are_files(out, run_here, save_image):
    save_image("-dash.png", PORTRAIT)
    run_here("--size", 32, "--", "-dash.png", "new")
    run_here("in/a.png", "--", "-dash.png", "-new")
    assert crops(out.parent / "new") == ["-dash.png"] and crops(out.parent / "-new") == ["-dash.png", "a.png"]


FILES = [(utils, "x", "align.csv"), (alignment, "a", "align.csv"), (utils, "xb", "b.png")]


@pytest.mark.parametrize("module, mode, name", FILES)
def test_a_full_disk_is_one_line(out, run_here, refused, save_image, monkeypatch, module, mode, name):
    def full(path, as_what="r", **options):
        file = open(path, as_what, **options)
        if as_what == mode:
            with open("/dev/full", "wb") as device:
                os.dup2(device.fileno(), file.fileno())
        return file

    before = (out / "align.csv").read_bytes()
    save_image("in/b.png", PORTRAIT)
    with monkeypatch.context() as patch:
        patch.setattr(module, "open", full, raising=False)
        assert f"out/{name}: cannot be written ({os.strerror(errno.ENOSPC)})" in refused("in", "out")
    assert crops(out) == ["a.png"] and (out / "align.csv").read_bytes().startswith(before)
    assert "1 faces aligned in 1 of 2 photos, 1 already done" in run_here("in", "out")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["nowhere", "out"], ["INPUT nowhere", "no such file or folder"]),
        (["empty", "out"], ["INPUT empty", "holds no images"]),
        (["images", "images"], ["INPUT images", "apart"]),
        (["", "out"], ["INPUT: is empty"]),
        (["images/p.png", "images"], ["INPUT images/p.png", "apart"]),
        (["images", "file"], ["OUTPUT file", "cannot be written"]),
        (["images", "taken"], ["taken/p.png", "align.csv does not know", "another OUTPUT"]),
        (["images", "odd"], ["odd/align.csv", "not a record"]),
        (["images", "out", "--predictor", "nowhere.dat"], ["--predictor nowhere.dat", "pip install"]),
        (["images", "out", "--predictor", "half.dat"], ["--predictor half.dat", "pip install"]),
        (["images", "out", "--size", "0"], ["--size", "from 1"]),
        (["images", "out", "--size", "4097"], ["--size", "from 1 to 4096"]),
        (["images", "out", "--upsample", "9"], ["--upsample", "0 to 4"]),
    ],
)
def test_errors(tmp_path, save_image, flags, words):
    for name in ("empty", "images", "taken", "odd"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("no folder")
    with open(detection.find_predictor(), "rb") as file:
        (tmp_path / "half.dat").write_bytes(file.read(1_000_000))
    (tmp_path / "odd/align.csv").write_text("other,columns\n1,2\n")
    for name in ("images", "taken"):
        save_image(f"{name}/p.png", PORTRAIT)
    one_line(run(*flags, cwd=tmp_path, status=2), *words)
    np.testing.assert_array_equal(read(tmp_path / "images/p.png"), PORTRAIT)


def test_nothing_aligned_is_an_error(tmp_path, save_image, in_process):
    save_image("none.png", NOISE)
    done = run("none.png", tmp_path / "out", cwd=tmp_path, status=2)
    assert "0 faces aligned in 0 of 1 photos, 0 already done, 1 no face" in done.stdout
    assert done.stderr.splitlines()[-1] == "align.py: error: INPUT none.png: nothing was aligned (no face)"
    assert "skipped" not in done.stderr  # one line is enough
