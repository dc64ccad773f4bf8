//! Certificates are short-lived: how they change, and what happens when they cannot.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::authority::{Authority, BACKDATE};
use baremesh_ca::issued::Issued;
use baremesh_ca::key::PrivateKey;
use baremesh_ca::tls::{Expected, client_config};
use baremesh_tests::{Host, Load, Member, Mesh, exit, exit_code_of, output_of, wait_for_errors, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use rustls::{ClientConnection, StreamOwned};
use time::OffsetDateTime;

use crate::impostor::bundle_of;
use crate::pair::virtual_addresses;
use crate::peer::{self, Tunnel, agent_of, authority};
use crate::raw_peer::{Shows, service};
use crate::signer::Signer;

/// A caller and an echo, each a service of its own.
pub fn two(mesh: &Mesh) -> (Member, Member) {
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    web.register("web", ["--port", "80", "--user", "0"]);
    store.register("store", ["--port", "80:7000"]);
    web.wait_for_endpoints("store.default", 1);
    (web, store)
}

#[test]
fn certificates_change_under_load_and_no_connection_fails() {
    let mesh = Mesh::with_control_arguments("rotate", &["--workload-lifetime", "8"]);
    let (web, store) = two(&mesh);
    let load = Load::start(&web.host, "store", 80);
    let serials = |member: &Member, reporter: &str| -> BTreeSet<String> {
        let log = member.log().into_iter().filter(|line| line["reporter"] == reporter);
        log.filter_map(|line| Some(line["peer_certificate_serial"].as_str()?.to_owned())).collect()
    };
    wait_until("store has seen four certificates of web", || serials(&store, "destination").len() >= 4);
    wait_until("web has seen four certificates of store", || serials(&web, "source").len() >= 4);
    load.wait_for_more(10);
    assert_eq!(load.stop(), Vec::<String>::new());
}

/// A service is known on its host and to others before its certificate is there: who calls then waits for that.
#[test]
fn a_certificate_that_is_on_its_way_is_waited_for_by_callers_and_called() {
    let (mesh, _consul_host, consul) = Mesh::in_consul("awaited");
    let member = |name: &str, index| mesh.member_with(name, index, &["*"], &consul.config());
    let (web, orders) = (member("web", 1), member("orders", 2));
    orders.host.serve("echo", ["echo", "127.0.0.1:7000", "127.0.0.1:7001"]);
    orders.register("before", ["--port", "80:7001"]);
    web.wait_for_endpoints("before.default", 1);
    // Services are told of by Consul, and certificates are signed by the control server.
    let signer = Pid::from_raw(mesh.control_pid().cast_signed()).expect("a process");
    let signal = |signal| kill_process(signer, signal).expect("it runs");
    let taken = |member: &Member, port: u16| {
        let at =
            format!("ss --no-header --numeric --tcp state established '( sport = :{port} )' | wc --lines");
        output_of(member.host.sh(&at)) == "1"
    };
    let call = |to: &str, text: &str| {
        let to = virtual_addresses(&web, to)[0].to_string();
        web.host.shop(["call", "--timeout", "60", &to, "80", text])
    };

    signal(Signal::STOP);
    output_of(orders.host.baremesh(["service", "register", "orders", "--port", "80:7000"]));
    web.wait_for_endpoints("orders.default", 1);
    let called = web.host.spawn("called", call("orders", "to one without"));
    wait_until("the agent of the called side has the connection", || taken(&orders, 15008));
    assert_eq!(output_of(call("before", "to one with")), "to one with", "nobody else waits");
    assert_eq!(orders.has_certificate("orders.default"), Some(false));
    signal(Signal::CONT);
    assert!(called.wait().success(), "{}", called.stderr());
    assert_eq!(called.stdout(), "to one without\n");

    signal(Signal::STOP);
    output_of(web.host.baremesh(["service", "register", "web", "--port", "81", "--user", "0"]));
    wait_until("its programs are the service's", || web.has_certificate("web.default") == Some(false));
    let calling = web.host.spawn("calling", call("orders", "by one without"));
    wait_until("the agent of the caller has the connection", || taken(&web, 15001));
    assert_eq!(web.has_certificate("web.default"), Some(false));
    signal(Signal::CONT);
    assert!(calling.wait().success(), "{}", calling.stderr());
    let line = orders.wait_for_log("the call", |line| {
        line["source_principal"] == "spiffe://mesh.internal/ns/default/sa/web"
    });
    assert_eq!(line["response_flags"], "-", "{line}");
}

/// Nothing fails before the end, and after it nothing goes on, in plaintext least of all.
#[test]
fn without_the_authority_calls_go_on_until_certificates_expire_and_then_fail_with_a_reason() {
    let mesh = Mesh::with_control_arguments("away", &["--workload-lifetime", "20"]);
    let (web, store) = two(&mesh);
    let load = Load::start_with_timeout(&web.host, "store", 80, 5);
    let wire = mesh.net.capture();
    mesh.kill_control();
    let ends = |member: &Member| -> u64 {
        let held = member.ask("/certificates").unwrap_or_default();
        let used = held.as_array().cloned().unwrap_or_default();
        let used =
            used.iter().filter(|held| held["identity"].as_str().is_some_and(|id| id.contains("/default/")));
        used.filter_map(|held| held["not_after"].as_u64()).min().unwrap_or_default()
    };
    let end = ends(&web).min(ends(&store));
    let failures = |member: &Member| counter(&member.metrics(), "baremesh_issue_failures_total");
    wait_until("renewals fail, and are counted", || failures(&web) >= 2.0 && failures(&store) >= 2.0);
    wait_until("the certificates end", || !load.failures().is_empty());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(
        now + 1 >= end,
        "the first call failed at {now}, the certificates end at {end}: {:?}",
        load.failures()
    );
    let reasons = ["no_certificate", "certificate_expired", "handshake_failed"];
    web.wait_for_log("why", |line| reasons.iter().any(|reason| line["response_code_details"] == *reason));
    wait_until("nothing is carried any more", || {
        exit_code_of(web.host.shop(["call", "--timeout", "5", "store", "80", "too late"])) == exit::CUT
    });
    // The store's may be the first that ends.
    wait_until("a host without certificates is not ready", || {
        web.status().is_some_and(|status| status["ready"] == false)
    });
    wait_until("it says what is in the way", || {
        web.status().is_some_and(|status| status["not_ready"].to_string().contains("nothing answers at"))
    });
    let wire = wire.stop().off_loopback();
    assert!(!wire.contains("call-") && !wire.contains("too late"), "{:?}", wire.find("call-"));

    mesh.start_control();
    let before = load.done();
    wait_until("calls go well again", || load.done() > before);
}

/// The value of a counter without labels.
fn counter(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
}

/// A host that was suspended wakes up with certificates that have ended meanwhile: none of them is shown, not for a moment,
/// and it has new ones within half a minute.
#[test]
fn a_host_that_was_suspended_past_the_end_of_its_certificates_shows_none_that_ended() {
    let mesh = Mesh::with_control_arguments("suspended", &["--workload-lifetime", "10"]);
    let (web, store) = two(&mesh);
    let peer = mesh.net.host("peer", 9);
    let member = certificate(&mesh, Duration::ZERO);
    assert_eq!(meets(&peer, &store, &mesh, &member), Ok(()));
    let kept = store.host.path("/var/lib/baremesh/certificates/default.store.pem");
    let pid = Pid::from_raw(store.agent_pid().cast_signed()).expect("a process");
    kill_process(pid, Signal::STOP).expect("it is ours");
    let end = crate::impostor::stolen(&kept).not_after;
    wait_until("the certificate has ended", || SystemTime::now() > end + Duration::from_secs(2));
    kill_process(pid, Signal::CONT).expect("it is ours");
    let mut said = Vec::new();
    wait_until("it has a certificate again", || match meets(&peer, &store, &mesh, &member) {
        Ok(()) => true,
        Err(error) => {
            said.push(error);
            false
        }
    });
    assert!(
        said.iter().all(|error| !error.to_lowercase().contains("expired")),
        "one that ended was shown: {said:?}"
    );
    assert!(crate::impostor::stolen(&kept).not_after > end, "it is another one");
    wait_until("calls go well again", || {
        exit_code_of(web.host.shop(["call", "--timeout", "5", "store", "80", "awake"])) == exit::DONE
    });
}

/// The clock of the other host is ahead.
#[test]
fn a_clock_that_is_a_minute_ahead_does_no_harm_and_beyond_the_log_names_the_clocks() {
    let mesh = Mesh::new("skew");
    let (_web, store) = two(&mesh);
    let peer = mesh.net.host("peer", 9);
    assert!(answers(&peer, &store, &mesh, &certificate(&mesh, Duration::from_secs(60))));
    assert!(!answers(&peer, &store, &mesh, &certificate(&mesh, BACKDATE + Duration::from_secs(60))));
    let line = store.wait_for_log("the refusal", |line| line["response_code_details"] == "handshake_failed");
    let why = line["connection_termination_details"].to_string();
    assert!(why.contains("becomes valid in") && why.contains("timedatectl"), "{why}");
}

/// What the authority signs for `web` when its clock is `ahead`.
fn certificate(mesh: &Mesh, ahead: Duration) -> Issued {
    let now = SystemTime::now() + ahead;
    let authority =
        Authority::open(mesh.control.path("/var/lib/baremesh/ca"), now).expect("the mesh's authority");
    let key = PrivateKey::generate().expect("a key");
    let signed =
        authority.sign(&key.public(), &service("web"), Duration::from_secs(3600), now).expect("signed");
    Issued::new(signed.chain, key.to_der()).expect("a certificate")
}

/// Whether the agent of `to` talks HTTP/2 to somebody with that certificate.
fn answers(from: &Host, to: &Member, mesh: &Mesh, issued: &Issued) -> bool {
    meets(from, to, mesh, issued).is_ok()
}

/// The same, with what is in the way; what the agent shows is verified as members do.
fn meets(from: &Host, to: &Member, mesh: &Mesh, issued: &Issued) -> Result<(), String> {
    let shows = Arc::new(Shows(issued.certified_key().expect("a key that fits")));
    let config = client_config(shows, bundle_of(mesh), Expected::exactly(service("store")));
    let name = "store.default.mesh.internal".to_owned().try_into().expect("a server name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let stream = from.connect((to.host.v4(), 15008)).expect("the agent's port");
    let mut tls = StreamOwned::new(connection, stream);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let said = tls.write_all(preface).and_then(|()| tls.read(&mut [0; 9]));
    match said {
        Ok(1..) => Ok(()),
        Ok(0) => Err("closed".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// An agent that starts with a certificate on disk that has ended does not use it.
#[test]
fn an_expired_certificate_on_disk_is_never_shown() {
    let mesh = Mesh::with_control_arguments("stale", &["--workload-lifetime", "6"]);
    let (web, store) = two(&mesh);
    output_of(web.host.shop(["call", "store", "80", "fresh"]));
    store.stop_agent();
    mesh.kill_control();
    let kept = store.host.path("/var/lib/baremesh/certificates/default.store.pem");
    let end = crate::impostor::stolen(&kept).not_after;
    // To the second: the end itself is still within it.
    wait_until("the kept certificate has ended", || SystemTime::now() > end + Duration::from_secs(1));
    store.start_without_waiting();
    wait_for_errors(&store.host, "agent", &["a kept certificate has expired"]);
    wait_until("the agent says what it lacks", || {
        store.status().is_some_and(|status| status["not_ready"].to_string().contains("no certificate for"))
    });
    assert_ne!(exit_code_of(web.host.shop(["call", "--timeout", "5", "store", "80", "late"])), exit::DONE);
}

/// A certificate ends while its tunnel stands: what is open goes on, and no stream opens any more.
#[test]
fn no_stream_opens_in_a_tunnel_after_the_end_of_a_certificate() {
    let mesh = Mesh::new("tunnel-end");
    let (web, store) = two(&mesh);
    let end = OffsetDateTime::now_utc() + Duration::from_secs(8);
    let key = Signer::of_mesh(&mesh).sign(|leaf| leaf.not_after = end);
    let config = peer::config(&mesh, key);
    let name = "store.default.mesh.internal";
    let tunnel =
        Tunnel::open(&web.host, agent_of(&store.host), config.clone(), Some(name)).expect("a tunnel");
    let target = authority(store.host.v4(), 7000);
    let mut open = tunnel.connect(&target).expect("a stream");
    assert_eq!(open.status, 200);
    assert_eq!(tunnel.exchange(&mut open, "before\n").expect("carried"), "before\n");
    wait_until("the certificate has ended", || OffsetDateTime::now_utc() > end + Duration::from_secs(1));
    let late = tunnel.connect(&target).map(|stream| stream.status);
    assert!(!matches!(late, Ok(200)), "{late:?}");
    assert_eq!(tunnel.exchange(&mut open, "after\n").expect("carried on"), "after\n");
    let again = Tunnel::open(&web.host, agent_of(&store.host), config, Some(name));
    assert!(again.and_then(|tunnel| tunnel.connect(&target)).is_err(), "nor does a tunnel");
    store.wait_for_log("why", |line| {
        line["response_code_details"] == "handshake_failed"
            && line["connection_termination_details"].to_string().contains("expired")
    });
}
