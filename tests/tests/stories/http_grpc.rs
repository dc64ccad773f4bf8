//! gRPC with a server and a client that nobody here wrote: PyPI's grpcio.

use std::path::Path;
use std::process::Command;

use baremesh_tests::{Host, Member, Mesh, Process, output_of, run, wait_until};

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

/// How a call that went well ends, and a message of a stream.
const WELL: [&str; 2] = ["call: OK", "stream: OK said more"];

fn peer(host: &Host, arguments: &[&str]) -> Command {
    let mut python = host.command("python3");
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/grpc_shop.py")).args(arguments);
    // Names as every other program of the host has them.
    python.env("GRPC_DNS_RESOLVER", "native");
    python
}

/// A caller, the host of a server, and the server, which tells connections to go that are so many milliseconds old.
fn shop(name: &str, age: Option<&str>) -> (Mesh, Member, Member, Process) {
    let mesh = Mesh::new(name);
    let (web, store) = (mesh.member("web", 1, &["*"]), mesh.member("store", 2, &["*"]));
    let mut python = web.host.command("python3");
    python.args(["-c", "import grpc"]);
    assert!(run(python).status.success(), "this story needs python3 with grpcio: `pip install grpcio`");
    let arguments: Vec<_> = ["serve", "127.0.0.1:50051"].into_iter().chain(age).collect();
    let server = store.host.spawn("shop", peer(&store.host, &arguments));
    server.wait_for_output("listening on");
    web.register("web", ["--port", "80", "--user", "0"]);
    store.register("shop", ["--port", "50051", "--protocol", "grpc"]);
    web.wait_for_endpoints("shop.default", 1);
    (mesh, web, store, server)
}

/// Calls one by one beside a stream that stays open.
struct Kept(Process);

impl Kept {
    fn start(web: &Member) -> Self {
        Self(web.host.spawn("kept", peer(&web.host, &["keep", "shop:50051"])))
    }

    /// Waits for so many calls that went well since now, each with a message of the stream.
    #[track_caller]
    fn wait_for_more(&self, calls: usize) {
        let before = self.0.stdout().lines().count();
        wait_until("more calls", || {
            let said = self.0.stdout();
            let wrong: Vec<_> = said.lines().filter(|line| !WELL.contains(line)).collect();
            assert!(wrong.is_empty(), "{wrong:?}");
            said.lines().count() >= before + WELL.len() * calls
        });
    }
}

#[test]
fn every_kind_of_call_comes_through_with_its_status_its_deadline_and_its_end() {
    let (_mesh, web, _store, server) = shop("grpcio", None);
    let said = output_of(peer(&web.host, &["call", "shop:50051"]));
    assert_eq!(said.lines().collect::<Vec<_>>(), EXPECTED);
    // The server heard of both ends, and the record tells them from each other.
    server.wait_for_output("cancelled by its deadline");
    server.wait_for_output("cancelled by its caller");
    let line = web.wait_for_log("the failure", |line| line["path"] == "/shop.Shop/Fail");
    assert_eq!(line["response_code"], 200, "{line}");
}

#[test]
fn calls_go_on_beside_a_stream_that_stays_open_on_a_connection_that_takes_no_more() {
    let (_mesh, web, store, _server) = shop("grpc-going", None);
    let kept = Kept::start(&web);
    kept.wait_for_more(5);
    // The agent that carries the stream tells the caller's agent to go elsewhere.
    let _old = store.take_over();
    kept.wait_for_more(20);
    let _older = store.take_over();
    kept.wait_for_more(20);
}

#[test]
fn calls_go_on_while_their_server_tells_connections_to_go() {
    let (_mesh, web, _store, _server) = shop("grpc-age", Some("1000"));
    let kept = Kept::start(&web);
    // Several ages long.
    kept.wait_for_more(60);
}
