"""Who may ask the server of paint.py: the page it has served itself, and nobody else."""

import hmac

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def guarded(app, hosts, token, cookie):
    """An ASGI app that lets nobody in but its own page.

    hosts: what the Host header may be, so that no name that leads here by DNS rebinding does, or None for all; token:
    without which, in the link or in the `cookie` that is set then, nothing is answered, or None.
    """

    def refusal(scope):
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        host, origin = headers.get("host", ""), headers.get("origin")
        link = scope["path"] == "/" and scope["method"] == "GET"
        if hosts is not None and host not in hosts:
            return Response("this server answers to localhost alone", 421)
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return Response("another site may not ask this", 403)
        from_link = link and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not from_link:
            return Response("another site may not ask this", 403)
        if token is None:
            return None
        if link and same(query.get("token"), token):
            response = RedirectResponse("/", 303)
            response.set_cookie(cookie, token, httponly=True, samesite="lax")
            return response
        if not same(cookie_parser(headers.get("cookie", "")).get(cookie), token):
            return Response("open the link that paint.py has printed: it holds a token", 403)
        return None

    async def guard(scope, receive, send):
        async def secured(message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return await app(scope, receive, send)
        await (refusal(scope) or app)(scope, receive, secured)

    return guard


def same(one, other):
    """Whether two texts, the first of which may be None, are the same; how long it takes tells nothing."""
    return hmac.compare_digest((one or "").encode(errors="surrogateescape"), other.encode())
