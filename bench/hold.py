"""hold.py HOST PORT COUNT: opens COUNT connections, sends one request on each, so that the whole path to the server
stands, prints `ready` and holds them until its standard input ends."""

import socket
import sys


def main():
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    held = []
    for _ in range(count):
        connection = socket.create_connection((host, port), timeout=10)
        connection.sendall(request)
        answer = connection.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{host}:{port} answered {answer[:80]!r}")
        held.append(connection)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"connection to {sys.argv[1]}:{sys.argv[2]}: {error}")
