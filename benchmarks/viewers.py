"""Viewers of the live page's stream, as a program of their own: ``python -c READ PORT COUNT``."""

from __future__ import annotations

__all__ = ["READ"]

# Says "reading" once all are connected, and reads until the page closes one of them.
READ = """
import selectors, socket, sys
port, count = map(int, sys.argv[1:])
chosen = selectors.DefaultSelector()
for _ in range(count):
    each = socket.create_connection(("127.0.0.1", port))
    each.sendall(b"GET /stream.mjpg HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    chosen.register(each, selectors.EVENT_READ)
print("reading", flush=True)
while True:
    for key, _ in chosen.select():
        if not key.fileobj.recv(1 << 20):
            sys.exit()
"""
