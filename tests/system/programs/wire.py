"""Counts packets on an interface in which a text can be read. A file says, always: up to which moment of the machine's monotonic
clock all packets have been looked at, how many these were, and how many of them have each text.

    wire.py INTERFACE FILE TEXT…
"""

import os
import select
import socket
import sys
import time

interface, file, *texts = sys.argv[1:]
texts = [text.encode() for text in texts]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
wire.bind((interface, 0))
wire.setblocking(False)
seen, readable = 0, [0] * len(texts)
up_to = last = 0.0
while True:
    now = time.monotonic()
    try:
        packet = wire.recv(65535)
        seen += 1
        for number, text in enumerate(texts):
            readable[number] += text in packet
    except BlockingIOError:
        up_to = now
        select.select([wire], [], [], 0.1)
    except OSError:
        # The cable is out, or gone with a host that is off.
        time.sleep(0.1)
    if now - last > 0.2:
        last = now
        with open(file + ".new", "w", encoding="utf-8") as out:
            out.write(" ".join(map(str, (up_to, seen, *readable))))
        os.rename(file + ".new", file)
