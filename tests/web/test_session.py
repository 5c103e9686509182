"""Photos edited in memory: the same numbers as `complete.py --photo`, and nothing but the hole changes."""

import dataclasses
import io
import threading

import cli

import numpy as np
import pytest
import skimage.data
from conftest import run
from PIL import Image, ImageCms

import checkpoint
from completion import masks, search
from model import DCGAN
from photos import detection, filling, geometry, reading, symmetry
from web import preview, session

PORTRAIT = skimage.data.astronaut()[:300, 80:380]
POINTS = [(130, 115), (155, 113), (146, 158)]  # inner eyes and lower lip
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
STROKES = [session.Stroke(np.array([[100.0, 140.0], [150.0, 120.0], [180.0, 160.0]]), 12.0)]


@pytest.fixture(scope="module")
def completer(small_model):
    return session.load_completer(small_model)


@pytest.fixture(scope="module")
def detector(completer):
    """With the prior of the small model, for it is quicker."""
    return detection.FaceDetector.load()._replace(prior=completer.prior)


@pytest.fixture(scope="module")
def photo():
    """The portrait, opened."""
    return opened(PORTRAIT)


@pytest.fixture(scope="module")
def start(completer, detector):
    """A function that starts an edit of a photo, with its faces; `faces`: those that are detected, if not its own."""

    def start(photo, strokes=STROKES, marked=(), layers=(), faces=None):
        faces = session.find_faces(photo, detector) if faces is None else faces
        return session.with_faces(photo, session.start_edit(photo, strokes, layers), faces, completer, detector, marked)

    return start


@pytest.fixture(scope="module")
def filled(photo, start, completer):
    """An edit of the portrait with all its answers, which nobody changes."""
    return find(start(photo), completer)


def opened(pixels, **options):
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(file, "PNG", **options)
    return session.open_photo(file.getvalue())


def find(edit, completer, near=None, **options):
    """The edit with all its answers."""
    for _ in session.find_answers(edit, dataclasses.replace(completer, **options), threading.Event(), near):
        pass
    return edit


def flatten(photo, edit, answer, detail, completer):
    """The layers of a photo with an answer."""
    return session.layers_up_to(edit, session.render(photo, edit, answer, detail, completer))


def composite(photo, edit, answer, detail, completer):
    """The whole photo with an answer."""
    return session.composite(photo, flatten(photo, edit, answer, detail, completer), session.WHOLE)[0]


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


def test_damage_beyond_the_paint_shows(photo):
    pixels = photo.pixels.copy()
    pixels[120:150, 100:200] = 255
    for size, rim in ((24, True), (34, False)):
        stroke = session.Stroke(np.array([[100.0, 135.0], [200.0, 135.0]]), size)
        edit = session.start_edit(opened(pixels), [stroke])
        assert session.shows_a_rim(opened(pixels), edit) == rim


def test_a_rendering_and_a_file_can_be_ended(photo, filled, completer):
    def check_after(times):
        checks = iter([None] * times)
        return lambda *_: next(checks)

    for times in range(3):
        with pytest.raises(StopIteration):
            session.render(photo, filled, 1, 0.4, completer, check_after(times))
        with pytest.raises(StopIteration):
            session.save(photo, check=check_after(times))


def test_strokes_cover_what_is_near_their_lines():
    photo = reading.Photo(np.zeros((80, 120, 3), np.uint8), None, {}, [])
    outside = session.Stroke(np.array([[-50.0, 40.0], [60.0, 20.0], [140.0, 90.0]]), 9.0)
    dot = session.Stroke(np.array([[100.5, 10.5]]), 7.0)
    hole = session.painted([outside, dot], photo)
    assert hole[near_strokes(hole.shape, [outside, dot], -0.5)].all()
    assert not hole[~near_strokes(hole.shape, [outside, dot], 1.5)].any()

    eraser = outside._replace(points=outside.points + [0, 4], erases=True)
    left = session.painted([outside, dot, eraser], photo)
    assert not (left & ~hole).any() and not left[near_strokes(hole.shape, [eraser], -0.5)].any()
    assert left[near_strokes(hole.shape, [outside], -0.5) & ~near_strokes(hole.shape, [eraser], 1.5)].all()


def test_the_answers_are_those_of_complete_photo(tmp_path, photo, start, completer, small_model, monkeypatch):
    hidden = session.painted(STROKES, photo)
    edit = find(start(photo, marked=[np.array(POINTS) + 0.5]), completer)

    Image.fromarray(PORTRAIT).save(tmp_path / "photo.png")
    (tmp_path / "mask.png").write_bytes(session.save_mask(hidden))
    monkeypatch.setattr(DCGAN, "load", lambda directory: completer.dcgan)  # its search is compiled
    words = "photo.png --photo --mask mask.png --samples 4 --outDir out --points".split()
    run("complete.py", *words, *(f"{x},{y}" for x, y in POINTS), "--checkpointDir", small_model, cwd=tmp_path)
    for answer in range(4):
        theirs = np.asarray(Image.open(tmp_path / f"out/photos_{answer}/photo.png"))
        ours = session.save(photo, flatten(photo, edit, answer, 0.75, completer))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(ours))), theirs)
        hole = masks.grown(hidden, masks.GROW)
        assert (theirs != PORTRAIT)[~hole].sum() == 0 < (theirs != PORTRAIT)[hole].mean()


@pytest.mark.slow
def test_detail_mixes_two_pictures(photo, start, monkeypatch):
    """So that the page can show any detail without asking; of the pretrained model, which draws faces."""
    monkeypatch.setattr(masks, "GROW", 0)
    monkeypatch.setattr(symmetry, "STRENGTH", 0)  # what the page mixes are previews, which have none of it
    completer = session.load_completer(checkpoint.SHIPPED)
    edit = find(start(photo), completer)  # for which it is as large as the small one
    assert len(edit.matrices) == 1

    def error(completer):
        rough, fine, between = (
            session.render(photo, edit, 1, detail, completer).astype(float) for detail in (0, 1, 0.4)
        )
        assert np.abs(rough - fine).max() > 10
        return np.abs(0.6 * rough + 0.4 * fine - between)[edit.hole]

    assert error(dataclasses.replace(completer, refiner=None)).max() < 2.5
    refined = error(completer)  # which is not linear; the page shows the mixture only until it has the picture itself
    assert refined.mean() < 1 and refined.max() < 16


def test_a_detected_face_is_read_again_without_what_is_painted(photo, start, filled, detector):
    hidden, damaged = session.painted(STROKES, photo), PORTRAIT.copy()
    damaged[hidden] = np.random.default_rng(0).integers(0, 256, (hidden.sum(), 3))
    faces = session.find_faces(photo, detector)
    edit = start(photo._replace(pixels=damaged), faces=faces)
    np.testing.assert_array_equal(edit.matrices, filled.matrices)
    np.testing.assert_array_equal(edit.images * edit.holes.masks, filled.images * filled.holes.masks)
    true = np.linalg.inv(np.vstack([geometry.affine(faces[0].landmarks, 64), [0, 0, 1]]))
    corners = filled.matrices[0] @ true @ np.array([[0, 0, 1], [63, 0, 1], [0, 63, 1]]).T
    assert np.abs(corners - [[0, 63, 0], [0, 0, 63]]).max() < 5  # pixels of 64

    face_gone = [session.Stroke(faces[0].landmarks.mean(0)[None].astype(float), 130.0)]
    np.testing.assert_array_equal(start(photo, face_gone).matrices[0], geometry.affine(faces[0].landmarks, 64))


def test_without_a_face_the_hole_is_filled_from_the_photo(start, completer):
    photo = opened(skimage.data.coffee()[:200, :200])
    edit = find(start(photo), completer)
    assert not edit.matrices and len(edit.answers) == 1
    hole = masks.grown(session.painted(STROKES, photo), masks.GROW)
    expected, *_ = filling.into_photo(photo.pixels, hole, [], [], 0)
    np.testing.assert_array_equal(composite(photo, edit, 0, 0.75, completer), expected)


@pytest.mark.parametrize("faces", [None, []], ids=["detected", "found under the hole"])
def test_a_mark_elsewhere_changes_nothing(photo, start, faces):
    edits = [start(photo, marked=marked, faces=faces) for marked in ((), [[(20, 240), (40, 240), (30, 270)]])]
    assert len(edits[0].matrices) == 1
    np.testing.assert_array_equal(edits[0].matrices, edits[1].matrices)


def test_an_edit_starts_on_the_layers_of_those_before(photo, start, filled, completer):
    other = [session.Stroke(np.array([[120.0, 150.0]]), 20.0)]
    second = find(start(photo, other, layers=flatten(photo, filled, 2, 0.5, completer)), completer)
    result = composite(photo, second, 0, 1, completer)
    expected = composite(photo, filled, 2, 0.5, completer)
    hidden, first = (masks.grown(session.painted(strokes, photo), masks.GROW) for strokes in (other, STROKES))
    np.testing.assert_array_equal(result[~hidden], expected[~hidden])
    assert (result != expected)[hidden].mean() > 0.5
    np.testing.assert_array_equal(result[~(hidden | first)], PORTRAIT[~(hidden | first)])


def test_a_part_of_a_composite_is_that_part_of_the_whole():
    alpha = np.full(PORTRAIT.shape[:2], 255, np.uint8)
    alpha[:20] = alpha[100:, :40] = 0
    photo, rng = opened(np.dstack([PORTRAIT, alpha])), np.random.default_rng(0)
    layers = [
        session.Layer(part, rng.integers(0, 256, (50, 70, 3), np.uint8), rng.random((50, 70)) < 0.5)
        for part in (np.s_[10:60, 20:90], np.s_[50:100, 0:70])
    ]
    whole = session.composite(photo, layers, session.WHOLE)
    np.testing.assert_array_equal(whole[0][layers[1].part], layers[1].pixels)
    np.testing.assert_array_equal(whole[0][10:50, 20:90], layers[0].pixels[:40])
    np.testing.assert_array_equal(whole[1][10:20, 20:90], ~layers[0].filled[:10])
    parts = np.s_[0:300, 0:300], np.s_[30:90, 0:50], np.s_[20:30, 40:50], np.s_[200:240, 10:80], np.s_[5:9, 200:999]
    for part in parts:
        for mine, all_of_it in zip(session.composite(photo, layers, part), whole, strict=True):
            np.testing.assert_array_equal(mine, all_of_it[part])


def test_more_answers_near_one(filled, completer):
    near = filled.answers[3][0]
    more = find(filled._replace(answers=[]), completer, near, seed=4, settings={"iterations": 0})
    for answer, (z, _) in enumerate(more.answers):
        np.testing.assert_array_equal(z, search.near(near, 4 + answer, [0]))


@pytest.mark.parametrize("encoded", [True, False])
def test_stopping_keeps_what_was_found(filled, completer, encoded):
    stop, edit = threading.Event(), filled._replace(answers=[])
    candidates = dataclasses.replace(completer, encoder=None, settings={"candidates": 64})
    states = session.find_answers(edit, completer if encoded else candidates, stop)
    number, last = next(states)
    stop.set()
    rest = list(states)
    assert number == 0 and len(edit.answers) == 1 and len(rest) <= 2
    if encoded:
        np.testing.assert_array_equal(edit.answers[0][0], last.z)
    assert not list(session.find_answers(filled._replace(answers=[]), candidates, stop))


def test_transparent_parts_are_unknown_and_stay(start, completer):
    alpha = np.full(PORTRAIT.shape[:2], 255, np.uint8)
    alpha[:, 165:] = 0
    photo = opened(np.dstack([PORTRAIT, alpha]))
    edit = find(start(photo), completer)
    assert (edit.holes.masks[0][:, -8:] == 0).all()
    saved = session.save(photo, flatten(photo, edit, 0, 1, completer))
    saved, hidden = np.asarray(Image.open(io.BytesIO(saved))), session.painted(STROKES, photo)
    hidden |= masks.grown(hidden & (alpha == 255), masks.GROW) & (alpha == 255)
    np.testing.assert_array_equal(saved[..., 3], np.where(hidden, 255, alpha))
    np.testing.assert_array_equal(saved[~hidden][:, :3], PORTRAIT[~hidden])

    all_of_it = session.start_edit(photo, [session.Stroke(mask=session.save_mask(photo.hidden, transparency=0))])
    np.testing.assert_array_equal(session.before(photo, all_of_it, session.WHOLE)[1], alpha < 255)
    saved = session.save(photo, flatten(photo, find(all_of_it, completer), 0, 1, completer))
    assert Image.open(io.BytesIO(saved)).mode == "RGB"


def test_a_mask_is_painted_as_complete_reads_it(tmp_path, photo):
    hidden = session.painted(STROKES, photo)
    data = session.save_mask(hidden)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), hidden)
    np.testing.assert_array_equal(session.open_mask(data, "m.png", photo), hidden)
    eraser = STROKES[0]._replace(erases=True)
    assert not session.painted([session.Stroke(mask=data), eraser], photo).any()
    soft = io.BytesIO()
    Image.fromarray(hidden).convert("L").save(soft, "JPEG", quality=50)
    (tmp_path / "soft.jpg").write_bytes(soft.getvalue())
    read = session.open_mask(soft.getvalue(), "soft.jpg", photo)
    np.testing.assert_array_equal(read, masks.read_hidden(tmp_path / "soft.jpg"))
    for size, why in ((299, "m.png: a mask of 299x299 pixels, for a photo of 300x300"), (300, "m.png: hides nothing")):
        with pytest.raises(cli.UserError, match=why):
            session.open_mask(session.save_mask(np.zeros((size, size), bool)), "m.png", photo)
    with pytest.raises(cli.UserError, match="m.png: cannot be opened"):
        session.open_mask(b"a text", "m.png", photo)
    with pytest.raises(cli.UserError, match="cannot be opened"):
        session.painted([session.Stroke(mask=session.save_mask(np.ones((200, 450), bool)))], photo)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_photo_is_saved_as_what_it_was(kind):
    exif = Image.Exif()
    exif[0x010E] = "a portrait"
    given = dict(exif=exif, icc_profile=SRGB, xmp=b"<x:xmpmeta/>", quality=95)
    Image.fromarray(PORTRAIT).save(file := io.BytesIO(), kind, **given)
    assert session.kind_of(file.getvalue()) == kind
    photo = session.open_photo(file.getvalue())
    layer = session.Layer(np.s_[50:70, 50:90], np.zeros((20, 40, 3), np.uint8), np.ones((20, 40), bool))
    saved = Image.open(io.BytesIO(session.save(photo, [layer], kind)))
    assert saved.format == kind and saved.getexif()[0x010E] == "a portrait"
    assert saved.info["icc_profile"] == SRGB and saved.info["xmp"] == b"<x:xmpmeta/>"
    error = np.abs(np.asarray(saved).astype(float) - session.composite(photo, [layer], session.WHOLE)[0])
    assert error.mean() < 3 and error[52:68, 52:88].mean() < 3
    Image.fromarray(PORTRAIT).save(file := io.BytesIO(), "BMP")
    assert session.kind_of(file.getvalue()) == "PNG"


def test_a_saved_photo_keeps_grey_profile_and_exif(start, completer):
    exif = Image.Exif()
    exif[0x010E] = "a portrait"
    photo = opened(Image.fromarray(PORTRAIT).convert("L"), exif=exif)
    layers = flatten(photo, find(start(photo), completer), 0, 0.75, completer)
    saved = Image.open(io.BytesIO(session.save(photo, layers)))
    assert saved.mode == "L" and saved.getexif()[0x010E] == "a portrait"

    photo = opened(PORTRAIT, icc_profile=SRGB)
    assert Image.open(io.BytesIO(session.save(photo))).info["icc_profile"] == SRGB
    patch = preview.cut_out(PORTRAIT, PORTRAIT[..., 0] > 128)
    assert Image.open(io.BytesIO(preview.encode(patch, "PNG", photo))).info["icc_profile"] == SRGB


def test_a_preview_is_the_edit_in_fewer_pixels(start, completer):
    photo = opened(np.asarray(Image.fromarray(PORTRAIT).resize((900, 900))))
    edit = find(start(photo, [session.Stroke(3 * STROKES[0].points, 160.0)]), completer)
    (left, top, width, height), show = preview.previewer(photo, edit)
    generated = edit.answers[0][1]
    small = np.asarray(show(edit, completer.blend(edit.images, generated, edit.holes)), float)
    assert max(small.shape) == preview.PREVIEW < max(width, height)
    whole = composite(photo, edit, 0, completer.detail, completer)
    part = Image.fromarray(whole[top : top + height, left : left + width]).resize(small.shape[1::-1], Image.BOX)
    hidden = small[..., 3] > 0
    y, x = np.indices(hidden.shape) + 0.5
    points = np.stack([x * width / hidden.shape[1] + left, y * height / hidden.shape[0] + top, np.ones_like(x)], -1)
    in_face = hidden & (np.abs(points @ edit.matrices[0].T - 32) < 20).all(-1)  # what is beside it is drawn anew
    assert in_face.mean() > 0.1 and np.abs(np.asarray(part, float) - small[..., :3])[in_face].mean() < 4
    assert not small[~hidden].any()
    quick = np.asarray(show(edit, session.quick_blend(edit, generated, completer)), float)
    assert np.abs(quick - small)[in_face].mean() < 4
    faceless = np.asarray(show(edit), float)
    assert np.abs(faceless - small)[in_face].mean() > 4


def test_outlines_are_what_is_cut_out():
    matrix = np.array([[0.5, 0.1, -3.0], [-0.1, 0.5, 4.0]])
    corners = np.array(preview.corners(matrix, 64))
    mapped = (corners - 0.5) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(mapped, [[-0.5, -0.5], [63.5, -0.5], [63.5, 63.5], [-0.5, 63.5]], atol=1e-9)


def test_what_cannot_be_edited_is_reported(photo, start):
    with pytest.raises(cli.UserError, match="Nothing is painted"):
        session.start_edit(photo, [session.Stroke(np.array([[-900.0, 5.0]]), 10.0)])
    with pytest.raises(cli.UserError, match="All of the photo"):
        session.start_edit(photo, [session.Stroke(np.array([[150.0, 150.0]]), 900.0)])
    with pytest.raises(cli.UserError, match="three points"):
        start(photo, marked=[[(10, 10), (5, 10), (20, 10)]])


def black(side):
    """A PNG file of a few bytes that would be side x side pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("data", [b"", b"a text", b"\x89PNG\r\n\x1a\n" + bytes(50), black(20000), black(9000)], ids=len)
def test_what_is_no_photo_is_refused(data):
    with pytest.raises(cli.UserError, match="cannot be opened"):
        session.open_photo(data)


@pytest.mark.parametrize("size", [(3, 300), (2500, 40)])
def test_shapes_have_limits(size):
    with pytest.raises(cli.UserError, match="too small, or too slim"):
        opened(np.zeros((*size, 3), np.uint8))


@pytest.mark.parametrize(
    "kind, mode", [("WEBP", "RGB"), ("AVIF", "RGB"), ("TIFF", "CMYK"), ("GIF", "P"), ("BMP", "1"), ("JPEG", "CMYK")]
)
def test_other_kinds_of_files_are_opened(kind, mode):
    file = io.BytesIO()
    Image.fromarray(PORTRAIT).convert(mode).save(file, kind)
    photo = session.open_photo(file.getvalue())
    assert photo.pixels.shape == (300, 300, 1 if mode == "1" else 3)
    if mode in ("RGB", "CMYK"):
        assert np.abs(photo.pixels.astype(float) - PORTRAIT).mean() < 4


def test_a_slim_photo_is_filled(start, completer):
    photo = opened(np.random.default_rng(0).integers(0, 256, (40, 780, 3), np.uint8))
    edit = start(photo, [session.Stroke(np.array([[10.0, 20.0], [770.0, 20.0]]), 36.0)])
    _, show = preview.previewer(photo, edit)
    assert np.asarray(show(edit))[..., 3].any()
    find(edit, completer)
    assert (session.render(photo, edit, 0, 1, completer) != photo.pixels[edit.part]).any()
