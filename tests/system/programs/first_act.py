"""Sends to a port of another host as its very first act, by UDP and TCP, over IPv4 and IPv6: `first_act.py PORT WORD ADDRESS …`. What
refuses it is not minded."""

import socket
import sys

port, word, addresses = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as own:
            own.settimeout(2)
            try:
                own.connect((address, port))
                own.sendall(word.encode() + b"\n")
            except OSError:
                pass
