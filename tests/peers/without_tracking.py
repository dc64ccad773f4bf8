"""Runs a program as on a kernel whose connection tracking cannot be asked: without_tracking.py PROGRAM ARGUMENT...

A seccomp filter refuses the socket on which baremesh asks, which is the only raw one of netfilter that it opens with
SOCK_NONBLOCK and SOCK_CLOEXEC; nft opens its own without."""

import ctypes
import os
import platform
import socket
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of BPF: a word at an offset; skip where it is another; end
ALLOW, ERRNO, EPROTONOSUPPORT = 0x7FFF0000, 0x00050000, 93
NETFILTER = 12
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]

# Offsets in struct seccomp_data: the call's number, then its arguments, of 8 bytes each.
WANTED = [
    (0, SOCKET),
    (16, socket.AF_NETLINK),
    (24, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC),
    (32, NETFILTER),
]

program = []
for place, (offset, value) in enumerate(WANTED):
    to_the_end = 2 * (len(WANTED) - place) - 1
    program += [(LOAD, 0, 0, offset), (EQUAL, 0, to_the_end, value)]
program += [(RETURN, 0, 0, ERRNO | EPROTONOSUPPORT), (RETURN, 0, 0, ALLOW)]

filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
described = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(filters)))
libc = ctypes.CDLL(None, use_errno=True)
for call in [(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described, 0, 0)]:
    if libc.prctl(*call) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
