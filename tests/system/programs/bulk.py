"""Bytes to an echo and back, while both are sent at once.

    bulk.py NAME PORT BYTES
"""

import os
import socket
import sys
import threading
import time

name, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sent = os.urandom(count - 1).replace(b"\n", b" ") + b"\n"
begin = time.monotonic()
with socket.create_connection((name, port), 60) as connection:
    def send():
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
    threading.Thread(target=send, daemon=True).start()
    back = b""
    while some := connection.recv(1 << 16):
        back += some
print(f"{len(back)} bytes in {time.monotonic() - begin:.2f} s")
sys.exit(back != sent)
