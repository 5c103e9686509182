#!/usr/bin/env python3
"""Draw the portraits that the page offers, and the README's pictures of the page itself; needs Chromium.

make demo
.venv/bin/python docs/page.py .venv/photos
"""

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "web"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import scratches
from browser import Painter, chromium, serving
from PIL import Image

import utils
from photos import detection

HOME = Path(__file__).resolve().parent
# where the astronaut is scratched, in pixels
SCRATCHES = [[(188, 36), (198, 95), (214, 150), (228, 208)], [(281, 70), (246, 93), (215, 115), (145, 158)]]


def portraits(photos):
    """Scratch the two portraits, so little that their faces are still found."""
    scratches.ACROSS, scratches.WIDTH = 2, 0.03
    detector = detection.FaceDetector.load()
    for path in utils.find_images(photos):
        photo = utils.open_image(path).convert("RGB")
        box = detector.find_faces(np.asarray(photo))[0]
        photo.paste("white", mask=scratches.scratched(photo.size, [box], np.random.default_rng(5)))
        photo.save(HOME.parent / "web/static" / f"{path.stem}.jpg", quality=90, subsampling=0)


def film(url):
    """Paint over the scratches, fill, move the slider; write what is seen: a picture and a film."""
    frames = []
    with chromium() as browser:
        painter = Painter(browser, url, viewport=dict(width=1080, height=790), color_scheme="light").ready()
        page = painter.page

        def look(milliseconds):
            frames.append((Image.open(io.BytesIO(page.screenshot())).convert("RGB"), milliseconds))

        page.click("[data-demo=astronaut]")
        painter.says("1 face found")
        page.fill("#size", "35")
        look(1200)
        for points in SCRATCHES:
            page.mouse.move(*painter.place(*points[0]))
            page.mouse.down()
            for start, end in zip(points, points[1:], strict=False):
                for share in (0.5, 1):
                    page.mouse.move(*painter.place(*(np.array(start) * (1 - share) + np.array(end) * share)), steps=4)
                    look(100)
            page.mouse.up()
        page.click("#fill")
        page.wait_for_selector("#photo[data-frames]")
        look(400)
        while not page.locator("#answers label").count():
            look(150)
        painter.says("choose one")
        look(2000)
        frames[-1][0].save(HOME / "page.jpg", quality=90)
        for detail in (50, 25, 0, 25, 50, 75, 100, 75):
            page.fill("#detail", str(detail))
            look(150)
        page.locator("#original").hover()
        page.mouse.down()
        look(1000)
        page.mouse.up()
        look(2000)
    size = frames[0][0].width * 2 // 3, frames[0][0].height * 2 // 3
    palette = Image.new("RGB", (2 * size[0], size[1]))  # of a frame with paint and of the last one
    for number, (picture, _) in enumerate((frames[8], frames[-1])):
        palette.paste(picture.resize(size), (number * size[0], 0))
    palette = palette.quantize(256)
    pictures = [
        picture.resize(size, Image.Resampling.LANCZOS).quantize(palette=palette, dither=0) for picture, _ in frames
    ]
    durations = [milliseconds for _, milliseconds in frames]
    pictures[0].save(HOME / "page.gif", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def main(photos):
    """Draw all of them."""
    portraits(photos)
    with serving() as url:
        film(url)


if __name__ == "__main__":
    main(*sys.argv[1:])
