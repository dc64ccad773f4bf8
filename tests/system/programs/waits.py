"""Connections of whose agent nothing is heard for now: opens COUNT to an echo, sends a line on each, makes FILE, and waits for
all of the lines to come back.

    waits.py NAME PORT COUNT FILE
"""

import socket
import sys

name, port, count, file = sys.argv[1:]
connections = [socket.create_connection((name, int(port)), 60) for _ in range(int(count))]
for connection in connections:
    connection.sendall(b"here\n")
with open(file, "w", encoding="utf-8") as made:
    made.write("sent\n")
answers = []
for connection in connections:
    try:
        answers.append(connection.makefile().readline())
    except OSError as error:
        answers.append(f"{error}")
sys.exit(None if answers == ["here\n"] * len(answers) else f"{answers}")
