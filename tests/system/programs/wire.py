"""Counts packets on an interface in which a text can be read. How many of all packets have each text is in a file, always.

    wire.py INTERFACE FILE TEXT…
"""

import os
import socket
import sys
import time

interface, file, *texts = sys.argv[1:]
texts = [text.encode() for text in texts]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
wire.bind((interface, 0))
wire.settimeout(0.2)
seen, readable = 0, [0] * len(texts)
last = 0.0
while True:
    try:
        packet = wire.recv(65535)
        seen += 1
        for number, text in enumerate(texts):
            readable[number] += text in packet
    except TimeoutError:
        pass
    except OSError:
        # The cable is out, or gone with a host that is off.
        time.sleep(0.1)
    if time.monotonic() - last > 0.2:
        last = time.monotonic()
        with open(file + ".new", "w", encoding="utf-8") as out:
            out.write(" ".join(map(str, (seen, *readable))))
        os.rename(file + ".new", file)
