"""Who may ask the server of paint.py: the page that it has served itself, and nobody else; and how slowly."""

import hmac
import resource

import h11
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_SECONDS = 10  # that the headers of a request take, at most
CONNECTIONS = min(400, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Connection(H11Protocol):
    """A connection that is closed where no request comes, and of too many the one that has waited longest for one."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.since, self.last = self.loop.time(), None
        self.loop.call_later(HEADERS_SECONDS, self.close_if_idle)
        if len(self.connections) > CONNECTIONS:
            idle = [each for each in self.connections if each.conn.their_state is h11.IDLE]
            min(idle, key=lambda each: each.since).transport.abort()

    def close_if_idle(self):
        """Close it if it has had no request since the last look."""
        if self.conn.their_state is h11.IDLE and self.cycle is self.last:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.last = self.cycle
            self.loop.call_later(HEADERS_SECONDS, self.close_if_idle)


def restrict_access(app, hosts, token, cookie):
    """An ASGI app that answers its own page alone.

    hosts: the Host headers that are answered, against DNS rebinding, or None: all. token: what the link, or else the
    `cookie` that is set then, has to hold, or None.
    """

    def refusal(scope):
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        host, origin = headers.get("host", ""), headers.get("origin")
        link = scope["path"] == "/" and scope["method"] == "GET"
        if hosts is not None and host not in hosts:
            return Response("this server answers to localhost alone", 421)
        followed = link and headers.get("sec-fetch-mode") == "navigate"
        same_site = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        if origin not in (None, f"http://{host}", f"https://{host}") or not (same_site or followed):
            return Response("another site may not ask this", 403)
        if token is None:
            return None
        if link and safe_equal(query.get("token"), token):
            response = RedirectResponse("/", 303)
            response.set_cookie(cookie, token, httponly=True, samesite="lax")
            return response
        if not safe_equal(cookie_parser(headers.get("cookie", "")).get(cookie), token):
            return Response("open the link that paint.py has printed: it holds a token", 403)
        return None

    async def restricted(scope, receive, send):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return await app(scope, receive, send)
        await (refusal(scope) or app)(scope, receive, send_with_headers)

    return restricted


def safe_equal(one, other):
    """Whether two texts, the first of which may be None, are equal, in a time that tells nothing about them."""
    return hmac.compare_digest((one or "").encode(errors="surrogateescape"), other.encode())
