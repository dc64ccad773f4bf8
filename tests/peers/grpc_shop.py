"""A gRPC server and its client as anyone would write them, with PyPI's grpcio and without generated code: messages are
bytes.

    grpc_shop.py serve ADDRESS [AGE]    tells connections to go that are AGE milliseconds old; calls on them may end
    grpc_shop.py call ADDRESS           makes every kind of call, and prints a line `NAME: OUTCOME` for each
    grpc_shop.py keep ADDRESS           makes one call after the other beside a stream that stays open, and prints how each ended
"""

import queue
import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "/shop.Shop/"
LONG = 3.0


def say(line):
    print(line, flush=True)


class Shop(grpc.GenericRpcHandler):
    def service(self, details):
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Download": grpc.unary_stream_rpc_method_handler(self.download),
            "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
        }
        return handlers.get(details.method.removeprefix(SERVICE))

    def unary(self, message, context):
        context.set_trailing_metadata((("x-price", "350"),))
        return b"ordered " + message

    def download(self, message, context):
        for number in range(int(message)):
            yield b"%d:" % number + b"x" * 10_000

    def upload(self, messages, context):
        return b"%d" % sum(len(message) for message in messages)

    def chat(self, messages, context):
        for message in messages:
            yield b"said " + message

    def hang(self, message, context):
        gone = threading.Event()
        context.add_callback(gone.set)
        say("hanging")
        gone.wait()
        say("cancelled " + message.decode())
        return b""

    def fail(self, message, context):
        context.abort(grpc.StatusCode.NOT_FOUND, "no " + message.decode() + " in the shop")


def serve(address, age=None):
    options = [("grpc.max_connection_age_ms", int(age))] if age else []
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), handlers=[Shop()], options=options)
    server.add_insecure_port(address)
    server.start()
    say("listening on " + address)
    server.wait_for_termination()


def status_of(call):
    """The status with which a call ends, and its message."""
    try:
        call()
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"
    return "OK"


def turns(chat):
    """Messages one by one, each after the answer to the one before; the pause shows that nothing on the way waits for
    more, and that a stream may be quiet."""
    answers, told = [], threading.Semaphore(1)

    def messages():
        for number in range(5):
            told.acquire()
            time.sleep(0.5)
            yield b"message %d" % number

    for answer in chat(messages()):
        answers.append(answer)
        told.release()
    return answers == [b"said message %d" % number for number in range(5)]


def call(address):
    channel = grpc.insecure_channel(address)
    unary = lambda name: channel.unary_unary(SERVICE + name)  # noqa: E731
    answer, ended = unary("Unary").with_call(b"tea", timeout=20)
    say(f"unary: {answer.decode()}, {dict(ended.trailing_metadata()).get('x-price')}")
    downloaded = list(channel.unary_stream(SERVICE + "Download")(b"500", timeout=20))
    say(f"download: {len(downloaded)} messages, {sum(map(len, downloaded)) > 5_000_000}")
    sent = (b"y" * 10_000 for _ in range(500))
    say(f"upload: {channel.stream_unary(SERVICE + 'Upload')(sent, timeout=20).decode()}")
    say(f"chat: {turns(channel.stream_stream(SERVICE + 'Chat'))}")
    say(f"fail: {status_of(lambda: unary('Fail')(b'lamp', timeout=20))}")
    say(f"unknown: {status_of(lambda: unary('Nothing')(b'', timeout=20)).split()[0]}")
    say(f"deadline: {status_of(lambda: unary('Hang')(b'by its deadline', timeout=LONG)).split()[0]}")
    hanging = unary("Hang").future(b"by its caller", timeout=60)
    # By then the server has heard of it.
    time.sleep(5)
    hanging.cancel()
    say(f"cancel: {status_of(hanging.result) if not hanging.cancelled() else 'CANCELLED'}")
    many = [unary("Unary").future(b"%d" % number, timeout=20) for number in range(100)]
    say(f"many: {sum(one.result() == b'ordered %d' % number for number, one in enumerate(many))}")


def keep(address):
    channel = grpc.insecure_channel(address)
    told = queue.SimpleQueue()
    chat = channel.stream_stream(SERVICE + "Chat")(iter(told.get, None))
    unary = channel.unary_unary(SERVICE + "Unary")
    while True:
        say(f"call: {status_of(lambda: unary(b'tea', timeout=20))}")
        told.put(b"more")
        said = []
        say(f"stream: {status_of(lambda: said.append(next(chat)))} {said[0].decode() if said else ''}")
        time.sleep(0.05)


{"serve": serve, "call": call, "keep": keep}[sys.argv[1]](*sys.argv[2:])
