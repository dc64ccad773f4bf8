//! The control server, attacked by strangers and by a host that was taken over: nobody else notices, nothing is given
//! away, and it is on record.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use baremesh_ca::client::Client;
use baremesh_ca::issued::Issued;
use baremesh_model::identity::Identity;
use baremesh_tests::{Host, Mesh, output_of, run, wait_until};
use serde_json::Value;

use crate::consul::patiently;
use crate::impostor::{bundle_of, stolen};
use crate::raw_peer::{self, Shows};

/// More than the control server takes of all strangers together.
const MANY: usize = 600;

#[test]
fn who_says_nothing_to_the_control_server_is_cut_and_keeps_nobody_out() {
    let mesh = Mesh::new("silence");
    let (noisy, newcomer) = (mesh.net.host("noisy", 1), mesh.net.host("newcomer", 2));
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..MANY {
        silent.extend(noisy.connect((mesh.control.v4(), 15012)));
    }
    assert!(silent.len() > MANY / 2, "{}", silent.len());
    let token = mesh.token(&[]);
    let joined = run(newcomer.baremesh([
        "join",
        &mesh.control.v4().to_string(),
        "--token",
        &token,
        "--host",
        "newcomer",
    ]));
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    // Those that were taken are cut when their time for a handshake is over; the others were at once.
    for stream in &mut silent {
        stream.set_read_timeout(Some(baremesh_tests::WAIT_BOUND)).expect("a timeout");
        let end = stream.read(&mut [0; 1]);
        let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(matches!(&end, Ok(0)) || end.as_ref().is_err_and(reset), "{end:?}");
    }
}

#[test]
fn a_host_that_asks_without_end_is_refused_and_others_are_served() {
    let mesh = Mesh::new("insistent");
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    let node = stolen(&web.host.path("/var/lib/baremesh/node/node.pem"));
    let ask = || {
        raw_peer::order(&web.host, mesh.control.v4(), &node, bundle_of(&mesh), ("POST", "/v1/certificates"))
    };
    // One is forgiven each second: on a busy machine it takes many.
    patiently("it is told to wait", || ask() == Some(429));
    store.register("store", ["--port", "80"]);
}

fn identity(path: &str) -> Identity {
    Identity::parse(&format!("spiffe://mesh.internal/{path}")).expect("an identity")
}

/// What the control server says to a host that asks for certificates, one code or `issued` each.
fn asked(host: &Host, mesh: &Mesh, node: &Issued, identities: &[Identity]) -> Vec<String> {
    let stream = host.connect((mesh.control.v4(), 15012)).expect("the control server's port");
    stream.set_nonblocking(true).expect("a socket");
    let stream = Mutex::new(Some(stream));
    let shows = Arc::new(Shows(node.certified_key().expect("a key that fits")));
    let client = Client::new(
        "10.77.0.200".to_owned(),
        tokio::sync::watch::Sender::new(bundle_of(mesh)).subscribe(),
        shows,
    )
    .dialing(Arc::new(move |_| {
        let stream = stream.lock().expect("no panic").take();
        Box::pin(
            async move { tokio::net::TcpStream::from_std(stream.ok_or(std::io::ErrorKind::NotConnected)?) },
        )
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answers = runtime.block_on(client.issue(identities)).expect("answers");
    answers
        .into_iter()
        .map(|answer| answer.map_or_else(|refused| refused.code, |_| "issued".to_owned()))
        .collect()
}

#[test]
fn a_host_that_was_taken_over_gets_nothing_of_others() {
    let mesh = Mesh::new("taken");
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    store.register("store", ["--port", "80"]);
    web.register("web", ["--port", "81"]);
    let node = stolen(&web.host.path("/var/lib/baremesh/node/node.pem"));
    let wanted = [
        ("ns/default/sa/web", "issued"),
        ("ns/default/sa/store", "not_granted"),
        ("ns/hosts/sa/store", "reserved"),
        ("ns/nodes/sa/store", "reserved"),
        ("ns/control/sa/control", "reserved"),
        ("ns/operators/sa/admin", "reserved"),
    ];
    let identities: Vec<_> = wanted.iter().map(|(path, _)| identity(path)).collect();
    let codes: Vec<_> = wanted.iter().map(|(_, code)| (*code).to_owned()).collect();
    assert_eq!(asked(&web.host, &mesh, &node, &identities), codes);
    // Endpoints of a service that it was not granted are published to nobody.
    output_of(web.host.baremesh(["service", "register", "store", "--port", "80"]));
    wait_until("the registration is refused", || {
        let status = output_of(mesh.control.baremesh(["status"]));
        status.contains("not published") && status.contains("may not serve")
    });
    // What tokens and operators there are is none of its business.
    for (method, path) in [
        ("POST", "/v1/admin/token"),
        ("GET", "/v1/admin/tokens"),
        ("POST", "/v1/admin/operators"),
        ("GET", "/v1/admin/audit"),
        ("POST", "/v1/admin/hosts/store/revoke"),
        ("GET", "/v1/admin/resources"),
    ] {
        let answer = raw_peer::order(&web.host, mesh.control.v4(), &node, bundle_of(&mesh), (method, path));
        assert_eq!(answer, Some(403), "{method} {path}");
    }
    let audit: Value =
        serde_json::from_str(&output_of(mesh.control.baremesh(["audit", "-o", "json"]))).expect("JSON");
    let refused = |who: &str, what: &str| {
        let lines = audit.as_array().expect("lines").iter();
        lines
            .filter(|line| line["who"] == who && !line["refused"].is_null())
            .any(|line| line["what"].as_str().is_some_and(|text| text.contains(what)))
    };
    for (path, code) in wanted {
        assert_eq!(refused("web", path), code != "issued", "{path}: {audit}");
    }
    assert!(refused("mesh.internal/ns/nodes/sa/web", "POST /v1/admin/token"), "{audit}");
}
