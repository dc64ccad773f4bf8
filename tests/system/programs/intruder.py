"""A program without a mesh that tries a service's own addresses in plaintext all the time. What came back is a line of a file:
when, on the machine's monotonic clock, and from where.

    intruder.py PORT FILE ADDRESS…
"""

import socket
import sys
import time

port, file, *addresses = sys.argv[1:]
with open(file, "a", buffering=1, encoding="utf-8") as out:
    while True:
        for address in addresses:
            try:
                with socket.create_connection((address, int(port)), 0.5) as connection:
                    connection.sendall(b"let me in\n")
                    if connection.recv(64):
                        out.write(f"{time.monotonic():.3f}\t{address}\n")
            except OSError:
                pass
        time.sleep(0.1)
