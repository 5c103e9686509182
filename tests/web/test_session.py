"""Photos that are mended in memory: the same numbers as `complete.py --photo`, and nothing but the hole changes."""

import io
import threading
import types

import cli

import numpy as np
import pytest
import skimage.data
from conftest import run
from PIL import Image, ImageCms

import checkpoint
import utils
from completion import prior, search
from photos import restoring
from web import preview, session

PORTRAIT = skimage.data.astronaut()[:300, 80:380]
POINTS = [(130, 115), (155, 113), (146, 158)]  # inner eyes and lower lip
STROKES = [session.Stroke(np.array([[100.0, 140.0], [150.0, 120.0], [180.0, 160.0]]), 12.0)]


@pytest.fixture(scope="module")
def seer():
    return session.Seer.load()


@pytest.fixture(scope="module")
def model(small_model):
    return session.Model.load(small_model)


def opened(pixels, seer, **options):
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(file, "PNG", **options)
    return session.open_photo(file.getvalue(), seer)


def found(fill, model, stop=None, **options):
    """The fill with all its answers."""
    for _ in session.find_answers(fill, model, stop or threading.Event(), **options):
        pass
    return fill


def near_strokes(shape, strokes, beyond):
    """Where boolean (H, W) is as near to strokes as half a brush and `beyond` pixels, by the distance to segments."""
    y, x = np.indices(shape) + 0.5
    near = np.zeros(shape, bool)
    for stroke in strokes:
        pairs = zip(stroke.points, [*stroke.points[1:], stroke.points[-1]], strict=True)
        for (x1, y1), (x2, y2) in pairs:
            length = (x2 - x1) ** 2 + (y2 - y1) ** 2
            along = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / (length or 1), 0, 1)
            near |= np.hypot(x - x1 - along * (x2 - x1), y - y1 - along * (y2 - y1)) <= stroke.size / 2 + beyond
    return near


def test_strokes_cover_what_is_near_their_lines(seer):
    photo = types.SimpleNamespace(pixels=np.zeros((80, 120, 3), np.uint8), alpha=None)
    outside = session.Stroke(np.array([[-50.0, 40.0], [60.0, 20.0], [140.0, 90.0]]), 9.0)
    dot = session.Stroke(np.array([[100.5, 10.5]]), 7.0)
    hole = session.painted([outside, dot], photo)
    assert hole[near_strokes(hole.shape, [outside, dot], -0.5)].all()
    assert not hole[~near_strokes(hole.shape, [outside, dot], 1.5)].any()

    eraser = outside._replace(points=outside.points + [0, 4], erases=True)
    left = session.painted([outside, dot, eraser], photo)
    assert not (left & ~hole).any() and not left[near_strokes(hole.shape, [eraser], -0.5)].any()
    assert left[near_strokes(hole.shape, [outside], -0.5) & ~near_strokes(hole.shape, [eraser], 1.5)].all()


def test_the_answers_are_those_of_complete_photo(tmp_path, seer, model, small_model):
    photo = opened(PORTRAIT, seer)
    fill = session.begin(photo, STROKES)
    hidden = session.painted(STROKES, photo)
    places = [np.array(POINTS) + 0.5]
    fill = found(session.with_faces(photo, fill, model, seer, places), model)

    Image.fromarray(PORTRAIT).save(tmp_path / "photo.png")
    utils.write_image(tmp_path / "mask.png", (255 * hidden[..., None]).astype(np.uint8))
    words = "photo.png --photo --mask mask.png --samples 4 --detail 0.6 --outDir out --points".split()
    run("complete.py", *words, *(f"{x},{y}" for x, y in POINTS), "--checkpointDir", small_model, cwd=tmp_path)
    for answer in range(4):
        theirs = np.asarray(Image.open(tmp_path / f"out/photos_{answer}/photo.png"))
        ours = session.save(photo, session.onto(photo, fill, answer, 0.6, model))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(ours))), theirs)
        assert (theirs != PORTRAIT)[~hidden].sum() == 0 < (theirs != PORTRAIT)[hidden].mean()


def test_detail_mixes_two_pictures(seer):
    """So that the page can show any detail without asking."""
    model = session.Model.load(checkpoint.SHIPPED)
    photo = opened(PORTRAIT, seer)
    fill = found(session.with_faces(photo, session.begin(photo, STROKES), model, seer), model)
    assert len(fill.matrices) == 1
    rough, fine, between = (session.render(photo, fill, 1, detail, model).astype(float) for detail in (0, 1, 0.4))
    assert np.abs(rough - fine).max() > 10
    assert np.abs(0.6 * rough + 0.4 * fine - between).max() < 2.5


def test_a_face_that_was_seen_is_read_again_without_what_is_painted(seer, model):
    photo, damaged = opened(PORTRAIT, seer), PORTRAIT.copy()
    hidden = session.painted(STROKES, photo)
    damaged[hidden] = np.random.default_rng(0).integers(0, 256, (hidden.sum(), 3))
    fills = []
    for pixels in (PORTRAIT, damaged):
        changed = photo._replace(pixels=pixels)  # seen as it was
        fills.append(session.with_faces(changed, session.begin(changed, STROKES), model, seer))
    np.testing.assert_array_equal(fills[0].matrices, fills[1].matrices)
    np.testing.assert_array_equal(fills[0].images * fills[0].holes.masks, fills[1].images * fills[1].holes.masks)
    true = np.linalg.inv(np.vstack([session.faces.affine(photo.seen[0].landmarks, 64), [0, 0, 1]]))
    corners = fills[0].matrices[0] @ true @ np.array([[0, 0, 1], [63, 0, 1], [0, 63, 1]]).T
    assert np.abs(corners - [[0, 63, 0], [0, 0, 63]]).max() < 5  # pixels of 64

    face_gone = [session.Stroke(photo.seen[0].landmarks.mean(0)[None].astype(float), 130.0)]
    fill = session.with_faces(photo, session.begin(photo, face_gone), model, seer)
    np.testing.assert_array_equal(fill.matrices[0], session.faces.affine(photo.seen[0].landmarks, 64))


def test_without_a_face_the_hole_is_inpainted(seer, model):
    photo = opened(skimage.data.coffee()[:200, :200], seer)
    fill = session.with_faces(photo, session.begin(photo, STROKES), model, seer)
    assert not fill.matrices
    found(fill, model)
    assert len(fill.answers) == 1
    hidden = session.painted(STROKES, photo)
    filled = session.onto(photo, fill, 0, 0.75, model)
    expected, _ = restoring.into_photo(photo.pixels, hidden, [], [], 0)
    np.testing.assert_array_equal(session.current(photo, filled)[0], expected)


def test_a_mark_elsewhere_hinders_nothing(seer, model):
    photo = opened(PORTRAIT, seer)
    elsewhere = [[(20, 240), (40, 240), (30, 270)]]
    for seen in (photo, photo._replace(seen=[])):
        fills = [
            session.with_faces(seen, session.begin(seen, STROKES), model, seer, marked) for marked in ((), elsewhere)
        ]
        assert len(fills[0].matrices) == 1
        np.testing.assert_array_equal(fills[0].matrices, fills[1].matrices)


def test_what_is_filled_is_the_base_of_what_comes_next(seer, model):
    photo = opened(PORTRAIT, seer)
    first = found(session.with_faces(photo, session.begin(photo, STROKES), model, seer), model)
    base = session.onto(photo, first, 2, 0.5, model)
    other = [session.Stroke(np.array([[120.0, 150.0]]), 20.0)]
    second = found(session.with_faces(photo, session.begin(photo, other, base), model, seer), model)
    result, _ = session.current(photo, session.onto(photo, second, 0, 1, model))
    expected, hidden = session.current(photo, base)[0], session.painted(other, photo)
    np.testing.assert_array_equal(result[~hidden], expected[~hidden])
    assert (result != expected)[hidden].mean() > 0.5
    union = hidden | session.painted(STROKES, photo)
    np.testing.assert_array_equal(result[~union], PORTRAIT[~union])


def test_more_answers_near_one(seer, model):
    photo = opened(PORTRAIT, seer)
    fill = found(session.with_faces(photo, session.begin(photo, STROKES), model, seer), model, iterations=0)
    near = fill.answers[3][0]
    more = found(fill._replace(answers=[]), model, near=near, seed=4, iterations=0)
    for answer, (z, _) in enumerate(more.answers):
        np.testing.assert_array_equal(z, search.near(near, 4 + answer, [0]))


@pytest.mark.parametrize("encoded", [True, False])
def test_stopping_keeps_what_was_found(seer, model, encoded):
    photo, stop = opened(PORTRAIT, seer), threading.Event()
    model = model if encoded else model._replace(encoder=None)
    fill = session.with_faces(photo, session.begin(photo, STROKES), model, seer)
    states = session.find_answers(fill, model, stop, candidates=64)
    number, last = next(states)
    stop.set()
    rest = list(states)
    assert number == 0 and len(fill.answers) == 1 and len(rest) <= 2
    if encoded:
        np.testing.assert_array_equal(fill.answers[0][0], last.z)

    stop.set()
    assert not list(session.find_answers(fill._replace(answers=[]), model._replace(encoder=None), stop))


def test_transparent_parts_are_unknown_and_stay(seer, model):
    alpha = np.full(PORTRAIT.shape[:2], 255, np.uint8)
    alpha[:, 165:] = 0
    photo = opened(np.dstack([PORTRAIT, alpha]), seer)
    fill = found(session.with_faces(photo, session.begin(photo, STROKES), model, seer), model)
    assert (fill.holes.masks[0][:, -8:] == 0).all()
    saved = np.asarray(Image.open(io.BytesIO(session.save(photo, session.onto(photo, fill, 0, 1, model)))))
    hidden = session.painted(STROKES, photo)
    np.testing.assert_array_equal(saved[..., 3], np.where(hidden, 255, alpha))
    np.testing.assert_array_equal(saved[~hidden][:, :3], PORTRAIT[~hidden])

    all_of_it = session.begin(photo, [session.Stroke(transparent=True)])
    np.testing.assert_array_equal(session.known_of(photo, all_of_it)[1], alpha < 255)
    saved = session.save(photo, session.onto(photo, found(all_of_it, model), 0, 1, model))
    assert Image.open(io.BytesIO(saved)).mode == "RGB"


def test_a_saved_photo_keeps_grey_profile_and_exif(seer, model):
    grey = Image.fromarray(PORTRAIT).convert("L")
    exif = Image.Exif()
    exif[0x010E] = "a portrait"
    photo = opened(grey, seer, exif=exif)
    fill = found(session.with_faces(photo, session.begin(photo, STROKES), model, seer), model)
    saved = Image.open(io.BytesIO(session.save(photo, session.onto(photo, fill, 0, 0.75, model))))
    assert saved.mode == "L" and saved.getexif()[0x010E] == "a portrait"

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = opened(PORTRAIT, seer, icc_profile=profile)
    assert Image.open(io.BytesIO(session.save(photo, None))).info["icc_profile"] == profile
    patch = preview.cut_out(PORTRAIT, PORTRAIT[..., 0] > 128)
    assert Image.open(io.BytesIO(preview.encoded(patch, "PNG", photo))).info["icc_profile"] == profile


def test_a_preview_is_the_fill_in_fewer_pixels(seer, model):
    photo = opened(np.asarray(Image.fromarray(PORTRAIT).resize((900, 900))), seer)
    strokes = [session.Stroke(3 * STROKES[0].points, 160.0)]
    fill = found(session.with_faces(photo, session.begin(photo, strokes), model, seer), model)
    (left, top, width, height), show = preview.previewer(photo, fill)
    small = np.asarray(show(fill, fill.answers[0][1], model), float)
    assert max(small.shape) == preview.PREVIEW < max(width, height)
    whole = session.current(photo, session.onto(photo, fill, 0, prior.DETAIL, model))[0]
    part = Image.fromarray(whole[top : top + height, left : left + width]).resize(small.shape[1::-1], Image.BOX)
    hidden = small[..., 3] > 0
    assert np.abs(np.asarray(part, float) - small[..., :3])[hidden].mean() < 4
    assert not small[~hidden].any()
    inpainted = np.asarray(show(fill, None, model), float)
    assert np.abs(inpainted - small)[hidden].mean() > 4


def test_outlines_are_what_is_cut_out(seer):
    matrix = np.array([[0.5, 0.1, -3.0], [-0.1, 0.5, 4.0]])
    corners = np.array(preview.corners(matrix, 64))
    mapped = (corners - 0.5) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(mapped, [[-0.5, -0.5], [63.5, -0.5], [63.5, 63.5], [-0.5, 63.5]], atol=1e-9)


def test_what_cannot_be_done_is_said(seer, model):
    photo = opened(PORTRAIT, seer)
    with pytest.raises(cli.UserError, match="Nothing is painted"):
        session.begin(photo, [session.Stroke(np.array([[-900.0, 5.0]]), 10.0)])
    with pytest.raises(cli.UserError, match="All of the photo"):
        session.begin(photo, [session.Stroke(np.array([[150.0, 150.0]]), 900.0)])
    with pytest.raises(cli.UserError, match="three points"):
        fill = session.begin(photo, STROKES)
        session.with_faces(photo, fill, model, seer, [[(10, 10), (5, 10), (7, 20)]])


def bomb():
    """A PNG file of a few bytes that would be 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20000, 20000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("data", [b"", b"a text", b"\x89PNG\r\n\x1a\n" + bytes(50), bomb()], ids=len)
def test_what_is_no_photo_is_refused(seer, data):
    with pytest.raises(cli.UserError, match="cannot be opened"):
        session.open_photo(data, seer)


@pytest.mark.parametrize("size", [(3, 300), (2500, 40)])
def test_shapes_have_limits(seer, size):
    with pytest.raises(cli.UserError, match="too small, or too slim"):
        opened(np.zeros((*size, 3), np.uint8), seer)


@pytest.mark.parametrize(
    "kind, mode", [("WEBP", "RGB"), ("TIFF", "CMYK"), ("GIF", "P"), ("BMP", "1"), ("JPEG", "CMYK")]
)
def test_other_kinds_of_files_are_opened(seer, kind, mode):
    file = io.BytesIO()
    Image.fromarray(PORTRAIT).convert(mode).save(file, kind)
    photo = session.open_photo(file.getvalue(), seer)
    assert photo.pixels.shape == (300, 300, 1 if mode == "1" else 3)
    if mode in ("RGB", "CMYK"):
        assert np.abs(photo.pixels.astype(float) - PORTRAIT).mean() < 4


def test_a_slim_photo_is_filled(seer, model):
    photo = opened(np.random.default_rng(0).integers(0, 256, (40, 780, 3), np.uint8), seer)
    fill = session.begin(photo, [session.Stroke(np.array([[10.0, 20.0], [770.0, 20.0]]), 36.0)])
    box, show = preview.previewer(photo, fill)
    assert np.asarray(show(fill, None, model))[..., 3].any()
    found(fill, model)
    assert (session.render(photo, fill, 0, 1, model) != photo.pixels[fill.part]).any()
