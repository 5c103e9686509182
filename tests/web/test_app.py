"""The server of the page, asked without a browser: whom it answers, what it takes, and who waits for whom."""

import asyncio
import base64
import contextlib
import http.client
import io
import itertools
import json
import random
import socket
import time
import types
import urllib.parse

import numpy as np
import pytest
import skimage.data
from browser import PATIENCE
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from completion import masks
from web import app, queue, requests, security, session

PORTRAIT = skimage.data.astronaut()[:300, 80:380]
FILL = dict(strokes=[dict(points=[[100, 140], [150, 120], [180, 160]], size=12)])


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Browser:
    """As much of a browser as is needed: a page that holds its stream of events open, and asks."""

    def __init__(self, url, headers=None):
        self.host, self.headers, self.said = urllib.parse.urlsplit(url).netloc, headers or {}, []
        self.page = self.listen("/events")["page"]

    def listen(self, path):
        """Open a stream; return its first event."""
        self.connection = http.client.HTTPConnection(self.host, timeout=60)
        self.connection.request("GET", path, headers=self.headers)
        self.stream = self.connection.getresponse()
        count = len(self.said)
        self.hear("page")
        assert "page" in self.said[count]
        return self.said[count]

    def listen_again(self):
        """Open another stream of the same page; return its first event."""
        return self.listen(f"/events?page={self.page}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.connection.close()

    def hear(self, *names):
        """Read events until one holds one of the names; return that."""
        end = time.monotonic() + PATIENCE
        while True:
            line = self.stream.readline()
            assert line, "the stream has ended"
            assert time.monotonic() < end, f"none of {names} in {PATIENCE} s"
            if line.startswith(b"data: "):
                self.said.append(json.loads(line[6:]))
                if set(names) & set(self.said[-1]):
                    return self.said[-1]

    def ask(self, method, name, body=None, status=200):
        answer = ask(self.host, method, f"/pages/{self.page}/{name}", body, self.headers)
        assert answer.status == status, answer.data
        return answer.data if "json" not in answer.headers["Content-Type"] else json.loads(answer.data)

    def ready(self):
        """Wait for the model."""
        if not self.said[0]["ready"]:
            self.hear("ready")
        return self

    def open(self):
        """Wait for the model, and open the portrait."""
        self.ready().ask("PUT", "photo", png(PORTRAIT))
        return self

    def start(self, **changes):
        """Ask for a fill; return its number."""
        return self.ask("POST", "fills", json.dumps(FILL | changes), status=202)["fill"]

    def fill(self, **changes):
        """Fill, and hear what comes; return its number."""
        number = self.start(**changes)
        self.hear("done")
        return number

    def fill_once(self):
        """Fill, and stop after the first answer; return the fill's number."""
        number = self.start()
        self.hear("answer")
        self.ask("POST", "stop")
        self.hear("done")
        return number


def ask(host, method, path, body=None, headers=()):
    """The response to a request, its body, but for that of an endless stream, in `data`."""
    with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as connection:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        answer.data = b"" if "event-stream" in answer.headers.get("Content-Type", "") else answer.read()
        return answer


def test_a_photo_is_opened_filled_and_saved(url):
    with Browser(url) as browser:
        browser.ready()
        seen = browser.ask("PUT", "photo", png(PORTRAIT))
        assert (seen["width"], seen["height"], len(seen["faces"]), seen["transparent"]) == (300, 300, 1, False)
        assert seen["kind"] == "PNG"
        shown = np.asarray(Image.open(io.BytesIO(browser.ask("GET", "photo"))), float)
        assert np.abs(shown - PORTRAIT).mean() < 3
        number = browser.fill()
        names = ("frame", "iteration", "answer", "faces", "done", "page", "ready", "opened", "look")
        kinds = [next(name for name in names if name in event) for event in browser.said]
        assert kinds.count("answer") == 4 and kinds.count("iteration") == 4 * 6
        assert kinds.index("frame") < kinds.index("faces") < kinds.index("iteration") < kinds.index("answer")
        losses = [event["total"] for event in browser.said if event.get("number") == 0]
        assert losses[-1] < losses[0]

        query = f"fill={number}&answer=1&detail=0.75"
        saved = np.asarray(Image.open(io.BytesIO(browser.ask("GET", f"mended?{query}"))))
        patch = Image.open(io.BytesIO(browser.ask("GET", f"patch?{query}")))
        quick = Image.open(io.BytesIO(browser.ask("GET", f"preview?{query}")))
        left, top = next(event["place"] for event in browser.said if "answer" in event)
        laid = Image.fromarray(PORTRAIT)
        laid.paste(patch, (left, top), patch)
        np.testing.assert_array_equal(laid, saved)
        assert (saved != PORTRAIT).any(-1).sum() > 1000
        box = next(event["box"] for event in browser.said if "answer" in event)
        assert quick.size == tuple(box[2:])  # as the hole is small
        apart = np.abs(np.asarray(patch, float) - np.asarray(quick.crop((32, 32, 32 + patch.width, 32 + patch.height))))
        assert apart[np.asarray(patch)[..., 3] > 0].mean() < 8

        again = browser.fill(base=dict(fill=number, answer=1, detail=0.75), near=dict(fill=number, answer=0, detail=1))
        twice = np.asarray(Image.open(io.BytesIO(browser.ask("GET", f"mended?fill={again}&answer=0&detail=1"))))
        same = (twice == saved).all(-1)
        assert same[(saved == PORTRAIT).all(-1)].mean() > 0.99 and (~same).sum() > 1000
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(browser.ask("GET", "mended")))), PORTRAIT)
        assert Image.open(io.BytesIO(browser.ask("GET", f"mended?{query}&kind=WEBP"))).format == "WEBP"
        browser.ask("GET", f"mended?{query}&kind=TIFF", status=400)

        mask = browser.ask("POST", "mask", json.dumps(FILL))
        hole = masks.grown(np.asarray(Image.open(io.BytesIO(mask))), masks.GROW)
        assert (saved != PORTRAIT)[~hole].sum() == 0
        stroke = dict(mask=base64.b64encode(browser.ask("PUT", "mask", mask)).decode())
        assert browser.ask("POST", "mask", json.dumps(dict(strokes=[stroke]))) == mask
        small = png(np.zeros((9, 9), np.uint8))
        assert browser.ask("PUT", "mask?name=m.png", small, status=422)["error"].startswith("m.png: a mask of 9x9")
        browser.ask("DELETE", "photo")
        browser.ask("GET", "photo", status=410)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link that was clicked
    ],
)
def test_strangers_are_refused(url, headers, status):
    host = urllib.parse.urlsplit(url).netloc
    answer = ask(host, "GET", "/", headers=headers)
    assert answer.status == status
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in answer.headers
    if status == 200:
        with Browser(url) as browser:
            stop = f"/pages/{browser.page}/photo"
            assert ask(host, "PUT", stop, png(PORTRAIT), {"Origin": f"http://{host}"}).status == 200
            assert ask(host, "PUT", stop, png(PORTRAIT), {"Origin": "http://localhost:1"}).status == 403
            link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
            assert ask(host, "GET", f"/pages/{browser.page}/mended", headers=link).status == 403


def test_other_machines_need_the_token(link):
    host, query = urllib.parse.urlsplit(link).netloc, urllib.parse.urlsplit(link).query
    token = query.removeprefix("token=")
    assert len(token) >= 32
    wrong = f"/?token={token[:-1]}", "/?token=", f"/paint.js?{query}", "/?token=%ff"
    for path in ("/", "/paint.js", "/events", *wrong):
        assert ask(host, "GET", path).status == 403
    first = ask(host, "GET", f"/?{query}")
    assert (first.status, first.headers["Location"]) == (303, "/")
    cookie = first.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    headers = {"Cookie": cookie.partition(";")[0]}
    assert ask(host, "GET", "/", headers=headers).status == 200
    assert ask(host, "GET", "/", headers={"Cookie": headers["Cookie"][:-1]}).status == 403
    with Browser(link, headers) as browser:
        browser.ask("PUT", "photo", png(PORTRAIT))


def test_what_is_no_photo_is_reported_in_a_line(url):
    with Browser(url) as browser:
        assert "cannot be opened" in browser.ask("PUT", "photo", png(PORTRAIT)[:2000], status=422)["error"]
        browser.ask("GET", "photo", status=410)


def test_uploads_are_bounded_before_they_are_read(url):
    host = urllib.parse.urlsplit(url).netloc
    with Browser(url) as browser:
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.putrequest("PUT", f"/pages/{browser.page}/photo")
        connection.putheader("Content-Length", str(200 * 2**20))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413 and "64 MB" in json.loads(answer.read())["error"]

        connection = http.client.HTTPConnection(host, timeout=60)
        chunks = itertools.repeat(bytes(2**20), 80)  # it does not say how many will come
        connection.request("PUT", f"/pages/{browser.page}/photo", chunks, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_what_is_painted_is_checked(url):
    def stroke(points, size=5):
        return json.dumps(dict(strokes=[dict(points=points, size=size)]))

    cases = [
        ("", 400), ("[]", 400), ("{}", 400), ("[" * 10**5, 400), ("x" * (requests.JSON_BYTES + 1), 413),
        ('{"strokes": []}', 422), (stroke([[float("nan"), 1]]), 400), (stroke([[1, 2, 3]]), 400), (stroke([]), 400),
        (stroke([[1, 2]], -5), 400), (stroke([["1", 2]]), 400), (stroke([[1, 1e300]]), 400),
        (stroke([[9, 9]] * 10, 32767), 422), (stroke([[9, 9]], 1e4), 422), (stroke([[9, 9], [10, 9]], 4e4), 400),
        (json.dumps(FILL | dict(base=dict(fill=7, answer=0, detail=1))), 410),
        (json.dumps(FILL | dict(near=dict(fill="7", answer=0, detail=1))), 400),
        (json.dumps(FILL | dict(marked=[[[1, 1], [2, 2]]])), 400), (json.dumps(FILL | dict(base={})), 400),
    ]  # fmt: skip
    with Browser(url).open() as browser:
        for body, status in cases:
            assert len(browser.ask("POST", "fills", body, status=status)["error"].splitlines()) == 1, body[:100]


def test_points_that_are_no_face_are_reported(url):
    with Browser(url).open() as browser:
        for marks in ([[40, 50], [50, 50], [60, 50]], [[50, 50], [60, 60], [70.1, 70.3]]):
            browser.start(marked=[marks])
            assert "three points" in browser.hear("failed")["failed"]
            browser.hear("done")
        browser.fill_once()


def test_searches_wait_for_each_other_and_end_with_their_page(url):
    with Browser(url) as third:
        with Browser(url) as first, Browser(url) as second:
            for browser in (first, second, third):
                browser.open()
            for browser in (first, second, third):
                browser.start()
            assert "search is running" in first.ask("POST", "fills", json.dumps(FILL), status=409)["error"]
            assert third.hear("before")["before"] == 2
            first.hear("iteration")
            first.ask("POST", "stop")
            first.hear("done")
            assert sum("answer" in event for event in first.said) == 1
            second.hear("iteration")
        # both pages are closed: the second's search ends without its last answer, and it is the third's turn
        third.hear("frame")
        second.ask("GET", "mended?fill=1&answer=3&detail=1", status=410)
        third.hear("done")
        assert [event["before"] for event in third.said if "before" in event] == [2, 1]
        assert sum("answer" in event for event in third.said) == 4


def test_a_search_that_waits_can_be_stopped(url):
    with Browser(url) as first, Browser(url) as second:
        for browser in (first, second):
            browser.open()
            browser.start()
        second.hear("before")
        second.ask("POST", "stop")
        second.hear("done")
        assert not any("frame" in event for event in second.said)
        first.hear("iteration")  # it still runs
        first.hear("done")
        assert sum("answer" in event for event in first.said) == 4


def test_a_new_stream_of_a_page_ends_the_old_one(url):
    with Browser(url).open() as browser:
        number = browser.start()
        old = browser.stream
        hello = browser.listen_again()
        assert (hello["page"], hello["photo"], hello["job"]) == (browser.page, True, number)
        while old.readline():
            pass
        old.close()
        browser.hear("done")


def test_an_upload_that_is_broken_off(url):
    with Browser(url) as browser:
        for name in ("photo", "fills"):
            with socket.create_connection(browser.host.split(":")) as line:
                head = f"{'PUT' if name == 'photo' else 'POST'} /pages/{browser.page}/{name} HTTP/1.1"
                line.sendall(f"{head}\r\nHost: {browser.host}\r\nContent-Length: 99\r\n\r\nabc".encode())
                time.sleep(0.2)
        browser.open().fill_once()


def test_a_closed_page_takes_its_photo_along_unless_it_is_there_again(monkeypatch):
    monkeypatch.setattr(app, "AWAY", 1)
    site = app.Site(None)

    async def visit(query=b""):
        stream = (await site.events(Request(dict(type="http", query_string=query)))).body_iterator
        hello = json.loads((await anext(stream)).removeprefix("data: "))
        await stream.aclose()
        return hello

    async def visits():
        page = (await visit())["page"]
        site.pages[page].open("photo")
        for _ in range(3):  # a second time when the first closing is that long ago
            await asyncio.sleep(0.6)
            hello = await visit(f"page={page}".encode())
            assert (hello["page"], hello["photo"]) == (page, True)
        await asyncio.sleep(1.2)

    asyncio.run(visits())
    assert not site.pages


def test_photos_are_dropped_when_there_are_too_many_or_they_are_old(monkeypatch):
    site = app.Site(None)
    pages = []
    for number in range(app.PHOTOS + 2):
        page = queue.Page(queue.Searches(None))
        page.open(f"photo {number}")
        page.used = number
        site.pages[page.id] = page
        pages.append(page)
    for page in site.with_photo()[: -app.PHOTOS]:
        site.drop(page)
    assert [page.photo for page in pages[:3]] == [None, None, "photo 2"]
    assert pages[0].events.get_nowait() == {"gone": True}

    now = app.UNUSED + 10.5
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waits = itertools.count()

    async def at_once(seconds):
        if next(waits):
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", at_once)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(site.drop_unused())
    assert [page.photo is None for page in pages] == [number < 11 for number in range(len(pages))]


def test_a_photo_that_is_closed_while_an_answer_is_rendered(monkeypatch):
    photo = session.open_photo(png(PORTRAIT))
    site, rendered = app.Site(None), photo.pixels[100:120, 80:130]
    page = queue.Page(site.searches)
    page.open(photo)
    site.pages[page.id] = page
    edit = types.SimpleNamespace(answers=[(None, None)], hole=np.ones((20, 50), bool))
    page.edits[1] = edit, None
    monkeypatch.setattr(session, "render", lambda *_: page.open() or rendered)
    scope = dict(type="http", path_params=dict(page=page.id), query_string=b"fill=1&answer=0&detail=0.5", headers=[])

    async def connected():
        return dict(type="http.request")

    response = asyncio.run(site.patch(Request(scope, connected)))
    assert page.photo is None
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.body)))[..., :3], rendered)


def test_what_nobody_waits_for_ends():
    site, asked = app.Site(None), Request(dict(type="http"), disconnected)
    page = queue.Page(site.searches)

    def work(check):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            check()

    with pytest.raises(HTTPException, match="closed"):
        asyncio.run(site.run_for(asked, page, work))


def test_no_faces_are_looked_for_in_the_photo_of_a_closed_page():
    async def upload():
        site = app.Site(None)
        page = site.pages["x"] = queue.Page(site.searches)
        site.searches.ready.set()
        site.searches.detector = "detector"
        events = [dict(type="http.request", body=png(PORTRAIT)), dict(type="http.disconnect")]

        async def receive():
            return events.pop(0) if len(events) > 1 else events[0]

        scope = dict(type="http", path_params=dict(page="x"), query_string=b"", headers=[])
        with pytest.raises(HTTPException, match="closed"):
            await site.upload(Request(scope, receive))
        assert page.photo is None and page.events.empty()

    asyncio.run(upload())


async def disconnected():
    return dict(type="http.disconnect")


def test_only_the_latest_edits_are_kept():
    page = queue.Page(queue.Searches(None))
    page.open("photo")
    searches = queue.Searches(None)
    for _ in range(queue.EDITS + 3):
        searches.keep(queue.Job(page), "edit")
    assert sorted(page.edits) == list(range(4, queue.EDITS + 4))
    job = queue.Job(page)
    page.open("another")
    searches.keep(job, "edit")
    assert not page.edits


def test_any_request_is_answered(url):
    """200 requests at random, of which none may be too much, and the page works afterwards."""
    rng, host = random.Random(0), urllib.parse.urlsplit(url).netloc
    with Browser(url).open() as browser:
        number = browser.fill_once()
        names = ["photo", "transparent", "mask", "fills", "stop", "patch", "mended", "", "photo/../..", "%00", "%c3%a9"]
        values = [f"fill={number}", "fill=-1", f"fill={10**20}", "fill=true", "answer=0", "answer=1e3", "detail=0.5"]
        values += ["detail=NaN", "detail=[[", "token=%ff"]
        strange = ["", "x" * 5000, "\x7f", "[]", "{", "*/*", "-1", "1e9", "gzip, br", "bytes=0-", "null", "é"]
        fields = "Accept Cookie Content-Type Range X-Forwarded-For Content-Encoding Expect Upgrade".split()
        fields += "If-None-Match Referer Sec-Fetch-Mode Authorization".split()
        bodies = [b"", b"{}", b"[" * 5000, json.dumps(FILL).encode(), rng.randbytes(3000), png(PORTRAIT)[:5000]]
        strokes = [b'{"mask": "AAAA"}', b'{"mask": 7}', b'{"points": [[1, 2]], "size": 1e999}']
        bodies += [b'{"strokes": [%s]}' % stroke for stroke in strokes]
        methods = ["GET", "PUT", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH"]
        for _ in range(200):
            page = rng.choice([browser.page, browser.page, "x", "../x", "%2e%2e"])
            others = ["/events?page=%00", "/", "/paint.js", "//", "/../guard.py"]
            path = rng.choice([*[f"/pages/{page}/{rng.choice(names)}"] * 5, *others])
            path += "?" + "&".join(rng.sample(values, rng.randrange(4)))
            headers = {name: rng.choice(strange).encode("latin-1") for name in rng.sample(fields, rng.randrange(3))}
            method, body = rng.choice(methods), rng.choice(bodies)
            assert ask(host, method, path, body, headers).status < 500, (path, headers)
        browser.ask("POST", "stop")
        browser.ask("PUT", "photo", png(PORTRAIT))
        browser.fill_once()


def test_slow_and_broken_connections_hinder_nobody(url):
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    with Browser(url).open() as browser, contextlib.ExitStack() as stack:

        def seconds():
            start = time.monotonic()
            browser.ask("GET", "mended")
            return time.monotonic() - start

        alone = seconds()
        head = (
            f"PUT /pages/{browser.page}/photo HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 9999\r\n\r\n".encode()
        )
        lines = [stack.enter_context(socket.create_connection((host, port))) for _ in range(200)]
        for number, line in enumerate(lines):
            line.sendall([b"", b"GET / HTTP/1.1\r\nHo", head, head + b"abc", b"\x00\r\n\r\n"][number % 5])
        assert min(seconds() for _ in range(3)) < alone + 1
        browser.ask("PUT", "photo", png(PORTRAIT))
        lines[0].settimeout(PATIENCE)
        assert lines[0].recv(1) == b""  # its headers did not come
        for _ in range(security.CONNECTIONS):
            stack.enter_context(socket.create_connection((host, port)))
        browser.ask("GET", "photo")
