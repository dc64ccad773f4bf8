"""A gRPC server that says how it is by `grpc.health.v1`, with PyPI's grpcio and without generated code.

    grpc_serving.py ADDRESS FILE      SERVING while FILE is there; knows the services `` and `shop.Shop`

Its name is not that of PyPI's package: grpcio would import it for that.
"""

import os
import sys
from concurrent import futures

import grpc

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
# HealthCheckRequest: field 1, a text.
ASKED = {b"": "", b"\x0a\x09shop.Shop": "shop.Shop"}


class Health(grpc.GenericRpcHandler):
    def __init__(self, file):
        self.file = file

    def service(self, details):
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self.check)
        return None

    def check(self, message, context):
        if message not in ASKED:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return SERVING if os.path.exists(self.file) else NOT_SERVING


def main(address, file):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Health(file),))
    assert server.add_insecure_port(address)
    server.start()
    print("listening on", address, flush=True)
    server.wait_for_termination()


main(*sys.argv[1:])
