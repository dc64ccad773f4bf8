"""The program of the README's first mesh: HTTP on 127.0.0.1:8080, whose answer is three orders."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Orders(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "13")
        self.end_headers()
        self.wfile.write(b"three orders\n")


ThreadingHTTPServer(("127.0.0.1", 8080), Orders).serve_forever()
