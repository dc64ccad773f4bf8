//! gRPC with a server and a client that nobody here wrote: PyPI's grpcio.

use std::path::Path;
use std::process::Command;

use baremesh_tests::{Host, Mesh, output_of, run};

/// What the client says when every call came to what it should.
const EXPECTED: &[&str] = &[
    "unary: ordered tea, 350",
    "download: 500 messages, True",
    "upload: 5000000",
    "chat: True",
    "fail: NOT_FOUND no lamp in the shop",
    "unknown: UNIMPLEMENTED",
    "deadline: DEADLINE_EXCEEDED",
    "cancel: CANCELLED",
    "many: 100",
];

fn peer(host: &Host, arguments: [&str; 2]) -> Command {
    let mut python = host.command("python3");
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/grpc_shop.py")).args(arguments);
    // Names as every other program of the host has them.
    python.env("GRPC_DNS_RESOLVER", "native");
    python
}

#[test]
fn every_kind_of_call_comes_through_with_its_status_its_deadline_and_its_end() {
    let mesh = Mesh::new("grpcio");
    let (web, store) = (mesh.member("web", 1, &["*"]), mesh.member("store", 2, &["*"]));
    let mut python = web.host.command("python3");
    python.args(["-c", "import grpc"]);
    assert!(run(python).status.success(), "this story needs python3 with grpcio: `pip install grpcio`");
    let server = store.host.spawn("shop", peer(&store.host, ["serve", "127.0.0.1:50051"]));
    server.wait_for_output("listening on");
    web.register("web", ["--port", "80", "--user", "0"]);
    store.register("shop", ["--port", "50051", "--protocol", "grpc"]);
    web.wait_for_endpoints("shop.default", 1);
    let said = output_of(peer(&web.host, ["call", "shop:50051"]));
    assert_eq!(said.lines().collect::<Vec<_>>(), EXPECTED);
    // The server heard of both ends, and the record tells them from each other.
    server.wait_for_output("cancelled by its deadline");
    server.wait_for_output("cancelled by its caller");
    let line = web.wait_for_log("the failure", |line| line["path"] == "/shop.Shop/Fail");
    assert_eq!(line["response_code"], 200, "{line}");
}
