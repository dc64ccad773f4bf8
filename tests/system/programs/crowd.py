"""Many who open connections, and go no further.

    crowd.py half-open ADDRESS PORT COUNT       a SYN each, from addresses and ports of its own, and nothing after it
    crowd.py silent ADDRESS PORT COUNT          opens each and says nothing; then waits until all were ended by the other side
"""

import selectors
import socket
import struct
import sys
import time

how, address, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def half_open():
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    to = socket.inet_aton(address)
    begin = time.monotonic()
    for number in range(count):
        # Nobody has these addresses, so that nobody resets what is answered there.
        source = socket.inet_aton(f"10.79.0.{100 + number % 100}")
        syn = struct.pack("!HHIIBBHHH", 1024 + number, port, number, 0, 5 << 4, 2, 64240, 0, 0)
        pseudo = source + to + struct.pack("!BBH", 0, 6, len(syn))
        syn = syn[:16] + struct.pack("!H", checksum(pseudo + syn)) + syn[18:]
        raw.sendto(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, number & 0xFFFF, 0, 64, 6, 0, source, to) + syn, (address, 0))
    print(f"{count} SYNs in {time.monotonic() - begin:.1f} s")


def silent():
    selector = selectors.DefaultSelector()
    opened = ended = refused = 0
    begin = time.monotonic()
    for _ in range(count):
        connection = socket.socket()
        connection.settimeout(1)
        try:
            connection.connect((address, port))
        except OSError:
            refused += 1
            connection.close()
            if refused > 10 and not opened:
                break
            continue
        opened += 1
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
    took = time.monotonic() - begin
    until = time.monotonic() + 60
    while ended < opened and time.monotonic() < until:
        for key, _ in selector.select(1):
            ended += 1
            selector.unregister(key.fileobj)
            key.fileobj.close()
    print(f"{opened} of {count} opened in {took:.1f} s, {ended} ended by the other side after {time.monotonic() - begin:.1f} s")


{"half-open": half_open, "silent": silent}[how]()
