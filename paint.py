#!/usr/bin/env python3
"""Serve a page on which holes are painted into photos with a brush, and watched while they fill.

./paint.py
./paint.py --host 0.0.0.0     for other machines: prints a link with a token
"""

import argparse
import logging
import os
import secrets
import socket
import sys

import cli

import uvicorn

import checkpoint
from web import app, security

LOCAL = ["127.0.0.1", "localhost", "[::1]"]  # as in a link


class Server(uvicorn.Server):
    """uvicorn's server waits for the streams to end before it stops, so this one ends them first."""

    def handle_exit(self, sig, frame):
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of what it cancels then
        self.config.site.close()
        super().handle_exit(sig, frame)


def parse_args():
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpointDir", metavar="DIR", help="the model (checkpoints/mine, else the pretrained one)")
    add("--host", default="127.0.0.1", help="where to listen; other machines need a token (%(default)s)")
    add("--port", type=cli.number(int, 0, 65535), default=8765, help="0: any that is free (%(default)s)")
    return parser, parser.parse_args()


def serve(args):
    """Serve the page until Ctrl-C."""
    directory = checkpoint.choose(args.checkpointDir)
    checkpoint.read_config(directory)
    try:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        listening = socket.create_server((args.host, args.port), family=family)
    except OSError as error:
        raise cli.UserError(f"--host {args.host} --port {args.port}: {error.strerror}; choose another") from error
    port = listening.getsockname()[1]
    host = f"[{args.host}]" if ":" in args.host else args.host
    local = host in LOCAL
    token = None if local else secrets.token_urlsafe(24)
    hosts = [f"{name}:{port}" for name in LOCAL] + (LOCAL if port == 80 else []) if local else None
    name = socket.gethostname() if args.host in ("0.0.0.0", "::") else host
    site = app.Site(directory)
    asgi = app.make_app(site, hosts, token, f"paint-{port}")
    link = f"http://{name}:{port}/{f'?token={token}' if token else ''}"
    print(f"model: {directory}\nopen {link}   (Ctrl-C stops)", flush=True)
    options = dict(log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=1, backlog=32)
    config = uvicorn.Config(asgi, http=security.Connection, ws="none", **options)
    config.site = site
    stderr = os.dup(2)  # while TensorFlow is imported, the other one is held back
    try:
        Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        os.write(stderr, b"paint.py: stopped\n")
        os._exit(130)  # threads that still load or search have nothing to save


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(serve, args))
