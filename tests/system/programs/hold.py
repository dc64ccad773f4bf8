"""Opens connections to an echo, and keeps those that are answered. What became of them is in a file.

    hold.py NAME PORT COUNT FILE
"""

import collections
import os
import socket
import sys
import time

name, port, count, file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
held, found = [], collections.Counter()
for _ in range(count):
    try:
        connection = socket.create_connection((name, port), 5)
        connection.sendall(b"held\n")
        found["answered" if connection.recv(64) else "ended"] += 1
        held.append(connection)
    except OSError as error:
        found[f"{type(error).__name__}: {error}"] += 1
with open(file + ".new", "w", encoding="utf-8") as out:
    out.write(", ".join(f"{number} {what}" for what, number in found.items()))
os.rename(file + ".new", file)
time.sleep(1e6)
