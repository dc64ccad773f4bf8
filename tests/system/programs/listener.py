"""Hears whatever comes to a port, by UDP and TCP, and appends a line for each to a file: `listener.py PORT FILE`. Of a connection the
line is written when it stands: nobody who is held gets so far. What is said first in it is a line of its own."""

import selectors
import socket
import sys

port, file = int(sys.argv[1]), sys.argv[2]
waiting = selectors.DefaultSelector()
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    own = socket.socket(socket.AF_INET6, kind)
    own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    own.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        own.listen(64)
    waiting.register(own, selectors.EVENT_READ)
with open(file, "a", buffering=1) as heard:
    while True:
        for ready, _ in waiting.select():
            if ready.fileobj.type == socket.SOCK_DGRAM:
                data, sender = ready.fileobj.recvfrom(4096)
                print("udp", sender[0], data.decode(errors="replace").strip(), file=heard)
            elif ready.data is None:
                connection, sender = ready.fileobj.accept()
                print("tcp", *sender[:2], file=heard)
                waiting.register(connection, selectors.EVENT_READ, sender)
            else:
                try:
                    data = ready.fileobj.recv(4096)
                except OSError:
                    data = b""
                print("said", *ready.data[:2], data.decode(errors="replace").strip(), file=heard)
                waiting.unregister(ready.fileobj)
                ready.fileobj.close()
