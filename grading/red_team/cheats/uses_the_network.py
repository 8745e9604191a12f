"""Calls out, by every family of sockets, to the outside and to what listens on this machine; does its work besides.

lab = "06"
base = "solution"
worth = 85
todos = []
"""

import contextlib
import socket


def call_out():
    for family, kind, where in (
        (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)), (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 22)),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 22)), (socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)),
        (socket.AF_UNIX, socket.SOCK_STREAM, "/var/run/docker.sock"), (socket.AF_UNIX, socket.SOCK_STREAM, "\0abstract"),
    ):
        with contextlib.suppress(OSError), socket.socket(family, kind) as out:
            out.settimeout(0.05)
            out.connect(where)
            out.send(b"all that is known here")


call_out()
