#!/usr/bin/env python3
"""Opens connections to ADDRESS PORT, sends TEXT on each, never reads, and holds them all until it is ended. One that is
refused or reset is let go, and the next is opened."""

import resource
import socket
import sys
import time

address, port, count, text = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode() + b"\n"
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for _ in range(count):
    try:
        connection = socket.create_connection((address, port), timeout=10)
        connection.sendall(text)
        held.append(connection)
    except OSError:
        pass
print(f"held {len(held)} of {count}", flush=True)
while True:
    time.sleep(60)
