"""A real browser on the page of paint.py: for its tests, and for the README's pictures of it."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse

import numpy as np
from conftest import ROOT, heed_sigint
from PIL import Image
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
SEARCHED = re.compile("choose one|filled from|Stopped")
PATIENCE = 180  # seconds, so that no test fails because the machine is busy
expect.set_options(timeout=1000 * PATIENCE)


@contextlib.contextmanager
def serving(*flags):
    """Run paint.py on a free port; yields the link it prints, and checks that it had nothing to complain of."""
    words = [sys.executable, ROOT / "paint.py", "--port", "0", *flags]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(words, **pipes, preexec_fn=heed_sigint) as server:
        try:
            server.stdout.readline()
            yield server.stdout.readline().split()[1]
        finally:
            server.send_signal(signal.SIGINT)
            complaint = server.communicate(timeout=PATIENCE)[1]
    assert complaint == "paint.py: stopped\n" and server.returncode == 130, complaint


@contextlib.contextmanager
def chromium():
    """Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Painter:
    """Somebody at the page, who paints in pixels of the photo."""

    def __init__(self, browser, url, **options):
        """Open the page in a window of its own; whatever it asks of another server fails, and is recorded."""
        self.context = browser.new_context(**dict(viewport=dict(width=1200, height=800)) | options)
        self.context.set_default_timeout(1000 * PATIENCE)
        self.page = self.context.new_page()
        self.strangers, self.errors, host = [], [], urllib.parse.urlsplit(url).netloc

        def route(route):
            if urllib.parse.urlsplit(route.request.url).netloc == host:
                return route.fallback()
            self.strangers.append(route.request.url)
            route.abort()

        self.context.route("**/*", route)
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)

    def ready(self):
        """Wait for the model."""
        expect(self.page.locator("#status")).to_have_text("Ready.")
        return self

    def says(self, text):
        """Wait until the status line holds a text, or matches a pattern."""
        expect(self.page.locator("#status")).to_have_text(re.compile(text))

    def open(self, path):
        """Open a file by the file picker, and wait until it is there."""
        self.page.set_input_files("#file", path)
        self.says("Paint over")
        return self

    def place(self, x, y):
        """Where a pixel of the photo is in the window."""
        box = self.page.locator("#overlay").bounding_box()
        view = self.page.evaluate("import('/canvas.js').then(({ view }) => ({ ...view, ratio: devicePixelRatio }))")
        left, top = (view[side] + view["scale"] * float(value) for side, value in (("x", x), ("y", y)))
        return box["x"] + left / view["ratio"], box["y"] + top / view["ratio"]

    def stroke(self, points, steps=8):
        """Paint with the mouse."""
        for number, point in enumerate(points):
            self.page.mouse.move(*self.place(*point), steps=steps if number else 1)
            if not number:
                self.page.mouse.down()
        self.page.mouse.up()

    def fill(self):
        """Fill, and wait for all answers."""
        self.page.click("#fill")
        self.says(SEARCHED.pattern)

    def save(self, button="#save"):
        """Save the photo, or its mask; returns its pixels, and the name of its file."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return np.asarray(Image.open(download.value.path())), download.value.suggested_filename
