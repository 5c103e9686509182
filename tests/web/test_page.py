"""The page in a real browser; without one these tests are skipped."""

import re

import cv2
import matplotlib
import numpy as np
import pytest
from browser import CHROMIUM, Painter, chromium, serving
from conftest import ROOT, run
from PIL import Image
from playwright.sync_api import expect
from test_session import PORTRAIT, near_strokes

import checkpoint
import ops
import utils
from completion import masks
from model import DCGAN
from photos import geometry
from web import session

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"), pytest.mark.slow]


@pytest.fixture(scope="module")
def pretrained_url():
    """A server with the pretrained model."""
    with serving("--checkpointDir", checkpoint.SHIPPED) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def painter(browser, url):
    """Opens pages, which must have asked nobody else, nor complained of what a test does not name."""
    painters = []

    def open_page(expected=r"^$", url=url, **options):
        painters.append((Painter(browser, url, **options), expected))
        return painters[-1][0]

    yield open_page
    for one, expected in painters:
        one.context.close()
        assert not one.strangers
        assert all(re.search(expected, error) for error in one.errors), one.errors


@pytest.fixture
def portrait(tmp_path):
    Image.fromarray(PORTRAIT).save(tmp_path / "portrait.png")
    return tmp_path / "portrait.png"


def generated():
    """A face that the model draws, in a grey picture, and where its three landmarks are."""
    dcgan = DCGAN.load(checkpoint.SHIPPED)
    face = utils.to_uint8(dcgan.inference_generator(ops.random_z((1, dcgan.z_dim), 0, "samples"), training=False)[0])
    picture = np.full((340, 340, 3), 128, np.uint8)
    picture[50:290, 50:290] = cv2.resize(face, (240, 240), interpolation=cv2.INTER_CUBIC)
    three = geometry.MINMAX_TEMPLATE[geometry.LANDMARKS["innerEyesAndBottomLip"]]
    return picture, 50 + 240 * three


def drawn(painter, is_drawn):
    """How many pixels of the overlay are those of which a JavaScript function of red, green and alpha says so."""
    return painter.page.evaluate(f"""async () => {{
        for (let i = 0; i < 2; i += 1) await new Promise(requestAnimationFrame);
        const canvas = document.getElementById("overlay"), is_drawn = {is_drawn};
        const {{ data }} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4) count += is_drawn(data[i], data[i + 1], data[i + 3]);
        return count;
    }}""")


def inked(painter):
    """How many pixels of the overlay are painted."""
    return drawn(painter, "(red, green, alpha) => red > 180 && green < 60 && alpha > 100")


@pytest.mark.parametrize("which", ["astronaut", "grace_hopper", "generated"])
def test_a_photo_is_painted_filled_and_saved(painter, pretrained_url, tmp_path, which):
    page, marks = painter(url=pretrained_url).ready(), None
    if which == "astronaut":
        truth, points = PORTRAIT, [(112, 116), (150, 130), (176, 112)]
    elif which == "grace_hopper":
        truth = np.asarray(Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg"))
        points = [(215, 270), (300, 262)]
    else:
        truth, marks = generated()
        points = [marks[0], marks[1]]
    Image.fromarray(truth).save(tmp_path / "photo.png")
    page.open(tmp_path / "photo.png")
    if marks is not None:
        page.page.click("#mark")
        for mark in marks:
            page.page.mouse.click(*page.place(*mark))
        page.says("Marked")
    page.page.fill("#size", "60")
    page.stroke(points)
    assert inked(page) > 500
    page.fill()
    assert page.page.locator("#answers label").count() == 4
    assert int(page.page.get_attribute("#photo", "data-frames")) >= 4
    saved, name = page.save()
    assert name == "photo-mended.png" and saved.shape == truth.shape
    size = min(truth.shape[:2]) * 0.004 * 100**0.6
    stroke = [session.Stroke(np.array(points, float), size)]
    hole, outside = near_strokes(truth.shape[:2], stroke, -1), ~near_strokes(truth.shape[:2], stroke, 3 + masks.GROW)
    np.testing.assert_array_equal(saved[outside], truth[outside])
    assert (saved != truth)[hole].any(-1).mean() > 0.9
    hidden = (~outside & (saved != truth).any(-1) | hole).astype(np.uint8)
    inpainted = cv2.inpaint(truth, hidden, 3, cv2.INPAINT_TELEA)
    error, telea = (np.abs(x.astype(float) - truth)[hole].mean() for x in (saved, inpainted))
    assert error < telea


def test_answers_detail_and_filling_again(painter, portrait):
    page = painter().ready().open(portrait)
    page.page.fill("#size", "60")
    page.stroke([(112, 116), (176, 112)])
    page.fill()
    shown, files = [], []

    def look():
        shown.append(page.page.screenshot(clip=dict(x=0, y=50, width=850, height=700)))

    look()
    page.page.fill("#detail", "0")
    look()
    page.page.locator("#answers label").nth(2).click()
    page.page.fill("#detail", "100")
    look()
    page.page.locator("#original").hover()
    page.page.mouse.down()
    look()
    page.page.mouse.up()
    assert len(set(shown)) == 4
    for _ in range(2):
        files.append(page.save()[0])
        page.stroke([(140, 155), (160, 155)])
        page.fill()
    changed = (files[0] != files[1]).any(-1)
    assert changed.any() and not changed[:130].any()  # the eyes stay as they were chosen
    assert (files[1] != PORTRAIT).any(-1)[100:125].any()

    page.page.click("#undo")
    page.page.click("#undo")
    np.testing.assert_array_equal(page.save()[0], files[1])
    expect(page.page.locator("#fill")).to_have_text("Four more like it")
    page.fill()
    changed = (page.save()[0] != files[1]).any(-1)
    assert changed.any() and not changed[:130].any()


def test_undo_redo_eraser_and_clear(painter, portrait):
    page = painter().ready().open(portrait)
    page.page.fill("#size", "55")
    counts = [inked(page)]
    assert page.page.is_disabled("#fill") and page.page.is_disabled("#undo")
    page.stroke([(100, 100), (200, 200)])
    counts.append(inked(page))
    page.stroke([(100, 200), (400, 100)])  # on beyond the photo
    counts.append(inked(page))
    page.page.check("#eraser")
    page.stroke([(120, 120), (180, 180)])
    counts.append(inked(page))
    assert counts[0] == 0 and np.diff(sorted(counts)).min() > 3000 and counts[1] < counts[3] < counts[2]
    for expected in counts[2::-1]:
        page.page.keyboard.press("Control+z")
        assert abs(inked(page) - expected) < 1000  # the cursor hides some
    for expected in counts[1:]:
        page.page.keyboard.press("Control+Shift+Z")
        assert abs(inked(page) - expected) < 1000  # the cursor hides some
    page.page.click("#clear")
    assert inked(page) == 0 and page.page.is_disabled("#fill")
    page.page.click("#undo")
    assert abs(inked(page) - counts[3]) < 1000


def test_a_rim_shows_by_how_much_the_hole_grows(painter, portrait):
    page = painter().ready().open(portrait)
    page.page.fill("#size", "60")
    page.stroke([(150, 130)])
    page.page.mouse.move(5, 5)
    radius = 300 * 0.004 * 100**0.6 / 2
    alphas = [
        page.page.evaluate("""async ([x, y]) => {
            for (let i = 0; i < 2; i += 1) await new Promise(requestAnimationFrame);
            const { view } = await import("/canvas.js"), canvas = document.getElementById("overlay");
            return canvas.getContext("2d").getImageData(view.x + view.scale * x, view.y + view.scale * y, 1, 1).data[3];
        }""", [150 + radius + beyond, 130])
        for beyond in (-1, masks.GROW / 2, masks.GROW + 1)
    ]  # fmt: skip
    assert alphas == [153, 255, 0]  # what is painted lets the photo through


def test_stop_keeps_what_was_found(painter, portrait):
    page = painter().ready().open(portrait)
    page.stroke([(112, 116), (176, 112)])
    page.page.click("#fill")
    page.page.wait_for_selector("#photo[data-frames]")
    page.page.keyboard.press("Escape")
    page.says("^1 answer|Stopped")
    assert page.page.locator("#answers label").count() <= 1
    assert page.page.is_enabled("#fill")


def test_two_pages_and_one_that_is_closed(painter, portrait):
    first, second, third = (painter().ready().open(portrait) for _ in range(3))
    for page in (first, second, third):
        page.stroke([(112, 116), (176, 112)])
    for page in (first, second, third):
        page.page.click("#fill")
    third.says("Other searches come first")
    first.page.wait_for_selector("#photo[data-frames]")
    first.page.close()
    for page in (second, third):
        page.says("choose one")
        assert page.page.locator("#answers label").count() == 4


def test_what_is_no_photo_is_reported(painter, portrait, tmp_path):
    page = painter("status of 422").ready().open(portrait)
    (tmp_path / "text.png").write_text("this is no image")
    page.page.set_input_files("#file", tmp_path / "text.png")
    page.says("text.png: cannot be opened")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(200 * 2**20)
    page.page.set_input_files("#file", tmp_path / "large.png")
    page.says("large.png: is too large: 64 MB at most")
    page.stroke([(112, 116), (176, 112)])  # the photo before is still there
    page.fill()


def test_transparent_parts_are_painted_from_the_start(painter, tmp_path):
    alpha = np.full(PORTRAIT.shape[:2], 255, np.uint8)
    alpha[105:125, 110:180] = 0
    Image.fromarray(np.dstack([PORTRAIT, alpha])).save(tmp_path / "hole.png")
    page = painter().ready().open(tmp_path / "hole.png")
    assert inked(page) > 1000
    page.fill()
    saved, _ = page.save()
    assert saved.shape == PORTRAIT.shape  # without transparency
    np.testing.assert_array_equal(saved[alpha == 255], PORTRAIT[alpha == 255])


def test_keys_alone_do_it_all(painter):
    page = painter().ready().page
    page.focus("[data-demo=astronaut]")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text(re.compile("1 face found"))
    expect(page.locator("#overlay")).to_be_focused()
    page.keyboard.press("m")
    for keys in (["ArrowUp"] * 5, ["ArrowRight"] * 3, ["ArrowDown"] * 4 + ["ArrowLeft"] * 2):
        for key in keys:
            page.keyboard.press(key)
        page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text(re.compile("Marked"))
    page.keyboard.press("Enter")  # a dot
    page.keyboard.press("f")
    expect(page.locator("#status")).to_have_text(re.compile("choose one"))
    page.keyboard.press("3")
    expect(page.locator("#answers input").nth(2)).to_be_checked()
    page.keyboard.press("+")
    page.keyboard.press("0")
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename == "astronaut-mended.png"
    reached = set()
    page.focus("body")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"overlay", "brush", "size", "undo", "mark", "fill", "detail", "save", "original", "fit"} <= reached


DROP = """async ([kind, numbers]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(numbers)], `${kind}.png`, { type: "image/png" }));
    document.getElementById("status").textContent = ""; // which may tell of the one before
    document.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data })
        : new DragEvent("drop", { dataTransfer: data }));
}"""


def test_paste_drop_and_touch(painter, portrait):
    page = painter(has_touch=True).ready()
    for kind in ("paste", "drop"):
        page.page.evaluate(DROP, [kind, list(portrait.read_bytes())])
        page.says("1 face found")
    page.page.fill("#size", "60")
    page.page.touchscreen.tap(*page.place(150, 130))
    assert inked(page) > 300
    page.page.evaluate("""() => {
        const data = new DataTransfer();
        data.setData("text/uri-list", "http://example.org/a.jpg");
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
    }""")
    page.says("What was dropped is no image file")
    page.page.set_input_files("#file", [portrait, portrait])
    page.says("1 more can be opened next")
    page.page.click("#another")
    expect(page.page.locator("#another")).to_have_text("Open another")


def test_a_small_screen_holds_all_and_answers_are_not_lost(painter, portrait):
    page = painter(has_touch=True, is_mobile=True, viewport=dict(width=390, height=664)).ready().open(portrait)
    page.stroke([(112, 116), (176, 112)])
    page.fill()
    expect(page.page.locator("#answers label")).to_have_count(4)
    small = page.page.evaluate("""() => [...document.querySelectorAll("button, label, summary")].filter((one) =>
        one.offsetParent).map((one) => one.getBoundingClientRect()).filter(({ top, bottom, left, right, height }) =>
        height < 44 || top < 0 || bottom > 664 || left < 0 || right > 390).length""")
    assert small == 0
    before = page.page.screenshot(clip=dict(x=0, y=80, width=390, height=200))
    page.page.fill("#split", "100")
    assert page.page.screenshot(clip=dict(x=0, y=80, width=390, height=200)) != before
    asked = []
    page.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.page.set_input_files("#file", portrait)
    expect(page.page.locator("#answers label")).to_have_count(4)
    page.page.close(run_before_unload=True)
    page.page.wait_for_timeout(500)
    assert asked == ["confirm", "beforeunload"]


def test_a_mask_is_saved_opened_and_painted_on(painter, portrait, tmp_path):
    page = painter("status of 422").ready().open(portrait)
    assert page.page.is_disabled("#saveMask")
    page.stroke([(112, 116), (176, 112)])
    mask, name = page.save("#saveMask")
    assert name == "portrait-mask.png" and mask.shape == PORTRAIT.shape[:2] and mask[114, 144] and not mask[160, 144]
    Image.fromarray(mask).save(tmp_path / name)
    Image.fromarray(mask[1:]).save(tmp_path / "small.png")
    page.page.click("#clear")
    page.page.set_input_files("#maskFile", tmp_path / "small.png")
    page.says("small.png: a mask of 300x299 pixels, for a photo of 300x300")
    page.page.set_input_files("#file", [tmp_path / name, portrait])  # together, in any order
    page.says(f"{name} is painted")
    assert inked(page) > 1000
    np.testing.assert_array_equal(page.save("#saveMask")[0], mask)
    page.page.check("#eraser")
    page.stroke([(112, 116), (144, 114)])
    erased, _ = page.save("#saveMask")
    assert not (erased & ~mask).any() and erased[113, 170] and not erased[114, 130]
    page.page.check("#brush")
    page.fill()
    page.stroke([(150, 160)])
    both, _ = page.save("#saveMask")
    assert both[159, 150] and (both | ~erased).all()


def test_a_jpeg_file_can_be_saved_as_one(painter, tmp_path):
    Image.fromarray(PORTRAIT).save(tmp_path / "portrait.jpg", quality=95)
    page = painter().ready().open(tmp_path / "portrait.jpg")
    page.stroke([(150, 130)])
    page.fill()
    assert page.save()[1] == "portrait-mended.png"
    page.page.select_option("#kind", "JPEG")
    page.says("all pixels are encoded again")
    with page.page.expect_download() as download:
        page.page.keyboard.press("s")
    assert download.value.suggested_filename == "portrait-mended.jpg"
    assert Image.open(download.value.path()).format == "JPEG"


def test_a_reload_keeps_the_answers_that_the_server_has(painter, portrait):
    page = painter().ready().open(portrait)
    page.page.on("dialog", lambda dialog: dialog.accept())
    page.stroke([(112, 116), (176, 112)])
    page.fill()
    page.page.locator("#answers label").nth(2).click()
    third = page.save()[0]
    for _ in range(2):
        page.page.reload()
        page.says("with its answers")
        assert page.page.locator("#answers input").nth(2).is_checked()
    np.testing.assert_array_equal(page.save()[0], third)
    page.stroke([(150, 160)])
    page.page.reload()  # what was filled is in the photo now
    page.says("with its answers")
    np.testing.assert_array_equal(page.save()[0], third)
    page.fill()
    changed = (page.save()[0] != third).any(-1)
    assert changed[155:165].any() and not changed[:140].any()


DOT_AND_RELOAD = """() => setTimeout(() => {
    document.getElementById("overlay").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
    location.reload();
})"""


def test_a_reload_keeps_photo_and_paint_until_it_is_closed(painter, portrait):
    page, other = (painter().ready() for _ in range(2))
    page.open(portrait)
    assert page.page.is_hidden("#kind")
    page.stroke([(112, 116), (176, 112)])
    mask, _ = page.save("#saveMask")
    page.fill()
    page.save()
    page.stroke([(150, 160)])
    page.save("#saveMask")
    page.page.on("dialog", lambda dialog: dialog.accept())
    page.context.add_init_script("sessionStorage.removeItem('page')")  # as after a time that is too long for the server
    page.page.mouse.move(*page.place(60, 250))
    with page.page.expect_navigation():
        page.page.evaluate(DOT_AND_RELOAD)
    page.says("the photo from before, with its paint")
    kept, name = page.save("#saveMask")
    assert name == "portrait-mask.png" and kept[159, 150] and kept[250, 60] and (kept | ~mask).all()
    other.page.reload()
    expect(other.page.locator("#empty")).to_be_visible()
    page.page.click("#close")
    page.says("forgotten")
    page.page.reload()
    page.ready()
    expect(page.page.locator("#empty")).to_be_visible()


def test_without_a_store_and_with_an_early_drop(painter, portrait):
    """A browser that keeps nothing, and a photo that is dropped before the script has run."""
    page = painter()
    page.context.add_init_script("indexedDB.open = () => { throw new DOMException('no store', 'SecurityError'); };")
    page.page.route("**/paint.js", lambda route: (page.page.evaluate(DROP, ["drop", numbers]), route.continue_()))
    numbers = list(portrait.read_bytes())
    page.page.reload()
    page.says("1 face found")
    page.page.unroute("**/paint.js")
    page.page.reload()
    page.ready()


NO_ROOM = """const put = IDBObjectStore.prototype.put;
IDBObjectStore.prototype.put = function (value, key) {
    if (value instanceof Blob) throw new DOMException("no room", "QuotaExceededError");
    return put.call(this, value, key);
};"""


def test_paint_without_its_photo_is_not_taken_for_one(painter, portrait):
    page = painter()
    page.context.add_init_script(NO_ROOM)
    page.page.reload()
    page.ready().open(portrait).stroke([(112, 116), (176, 112)])
    page.page.reload()
    page.ready()
    expect(page.page.locator("#empty")).to_be_visible()


def test_a_face_found_under_the_paint_is_outlined(painter, tmp_path):
    damaged = PORTRAIT.copy()
    damaged[100:130, 100:190] = 255
    Image.fromarray(damaged).save(tmp_path / "damaged.png")
    page = painter().ready().open(tmp_path / "damaged.png")
    page.says("No face found yet")

    def outlined():
        page.page.mouse.move(5, 5)
        return drawn(page, "(red, green, alpha) => red > 250 && green > 250 && alpha > 250")

    page.page.fill("#size", "70")
    page.stroke([(105, 115), (185, 115)])
    assert not outlined()
    page.fill()
    page.says("A face was found under the paint")
    page.page.click("#undo")
    assert outlined() > 200
    page.stroke([(150, 200)])
    assert outlined() > 200


def luminance(color):
    """The relative luminance of a CSS color "rgb(r, g, b)" (WCAG 2.1)."""
    channels = [float(x) / 255 for x in re.findall(r"[\d.]+", color)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_also_on_a_narrow_page(painter, scheme):
    page = painter(color_scheme=scheme, viewport=dict(width=400, height=800)).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    pairs = page.evaluate("""() => [...document.querySelectorAll("*")].filter((one) =>
        [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) && one.offsetParent
    ).map((one) => {
        let behind = one;
        while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [one.textContent.trim(), getComputedStyle(one).color, getComputedStyle(behind).backgroundColor];
    })""")
    assert len(pairs) > 20
    for text, *colors in pairs:
        dark, light = sorted(map(luminance, colors))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, text


def test_without_the_token_there_is_no_page(browser, link):
    page = browser.new_page()
    assert page.goto(link.partition("?")[0]).status == 403
    assert "token" in page.inner_text("body")
    assert page.goto(link).ok and "token" not in page.url
    expect(page.locator("#status")).to_have_text("Ready.")
    page.context.close()


def test_a_port_that_is_taken_is_reported(url):
    port = url.rstrip("/").rpartition(":")[2]
    assert f"--port {port}" in run("paint.py", "--port", port, status=2, cwd=ROOT).stderr
