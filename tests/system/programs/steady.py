"""A light, steady load on an echo: a connection for each line, to the service's name over either family and to its host's own
address; and one connection that is kept. What became of each line is a line of a file: when it began on the machine's monotonic
clock, which way, `ok` or the error, and how long it took, all in seconds.

What is said to the name and to the address has a mark each, by which it would be known on the wire. It listens on
127.0.0.1:9000, as the service that it is.

    steady.py NAME PORT ADDRESS FILE
"""

import contextlib
import socket
import sys
import threading
import time

NAME, PORT, ADDRESS, FILE = sys.argv[1:]
PAUSE = 0.1
# A line that has not come back by then failed.
PATIENCE = 3
MARKS = {"address": b"what-is-said-to-an-address"}
MARK = b"what-is-said-within-the-mesh"

out = open(FILE, "a", buffering=1, encoding="utf-8")
writing = threading.Lock()


def told(way, begin, said):
    with writing:
        out.write(f"{begin:.3f}\t{way}\t{said}\t{time.monotonic() - begin:.3f}\n")


def connect(way):
    """A connection that way. Names are asked for each time, as programs do."""
    if way == "address":
        return socket.create_connection((ADDRESS, int(PORT)), PATIENCE)
    family = socket.AF_INET6 if way == "name6" else socket.AF_INET
    where = socket.getaddrinfo(NAME, int(PORT), family, socket.SOCK_STREAM)[0][4]
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(where)
    except OSError:
        connection.close()
        raise
    return connection


def exchange(way, connection):
    mark = MARKS.get(way, MARK)
    connection.sendall(mark + b"\n")
    back = b""
    while not back.endswith(b"\n"):
        some = connection.recv(4096)
        if not some:
            raise ConnectionError("ended without an answer")
        back += some
    if back != mark + b"\n":
        raise ConnectionError("another answer")


def again(way):
    kept = None
    while True:
        begin = time.monotonic()
        try:
            connection = kept or connect(way)
            if way == "kept":
                kept = connection
            exchange(way, connection)
            if connection is not kept:
                connection.close()
            told(way, begin, "ok")
        except OSError as error:
            told(way, begin, f"{type(error).__name__}: {error}")
            with contextlib.suppress(OSError, UnboundLocalError):
                connection.close()
            kept = None
        time.sleep(PAUSE)


listener = socket.create_server(("127.0.0.1", 9000))
for way in ("name4", "name6", "address"):
    threading.Thread(target=again, args=(way,), daemon=True).start()
again("kept")
