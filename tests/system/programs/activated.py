"""A socket-activated service (Accept=no): who connects to the socket that systemd opened gets what a call of the mesh
answers.

    activated.py NAME PORT
"""

import socket
import subprocess
import sys

listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    with connection:
        called = subprocess.run(["/usr/bin/baremesh", "demo-shop", "call", *sys.argv[1:], "activated"], capture_output=True)
        connection.sendall(called.stdout + called.stderr)
