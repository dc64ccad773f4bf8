//! Certificates that are taken back before they end.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use baremesh_tests::{Answer, Member, Mesh, Requests, WAIT_BOUND, exit, exit_code_of, output_of, wait_until};
use serde_json::Value;

use crate::pair::{Pair, because, is_cut, virtual_addresses};
use crate::peer::{self, Tunnel, agent_of, authority};

/// The name of the service that is called.
const SNI: &str = "echo.default.mesh.internal";
/// Within how long after a command what it forbids is closed, on a machine under load.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);

/// Revokes, and returns what the command says was revoked.
#[track_caller]
fn revoke<const N: usize>(mesh: &Mesh, which: [&str; N]) -> Vec<Value> {
    let arguments = ["certs", "revoke", "-o", "json"].into_iter().chain(which);
    let said = output_of(mesh.control.baremesh(arguments));
    serde_json::from_str(&said).expect("JSON")
}

/// Sends a signal to a member's agent.
#[track_caller]
fn signal(member: &Member, signal: &str) {
    let sent = std::process::Command::new("kill").args([signal, &member.agent_pid().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

/// The serial number of the certificate that a member holds for a service.
fn serial_of(member: &Member, service: &str) -> Option<String> {
    let held = member.ask("/certificates")?;
    let end = format!("/ns/default/sa/{service}");
    let found =
        held.as_array()?.iter().find(|held| held["identity"].as_str().is_some_and(|id| id.ends_with(&end)));
    Some(found?["serial"].as_str()?.to_owned())
}

/// A thief has the keys of a host. The host is revoked: wherever the thief goes with them it is refused, what it has open
/// is closed, and a neighbour notices nothing.
#[test]
fn a_revoked_host_is_cut_off_everywhere_at_once_and_nobody_else_is() {
    let pair = Pair::new("revoke");
    pair.serve("echo", 7000);
    let other = pair.mesh.member("other", 3, &["other"]);
    other.register("other", ["--port", "80", "--user", "0"]);
    let target = authority(pair.store.host.v4(), 7000);
    let open = |of: &Member, service: &str| {
        let config = peer::config(&pair.mesh, peer::stolen(of, service));
        Tunnel::open(&of.host, agent_of(&pair.store.host), config, Some(SNI))
    };
    let (thief, neighbour) =
        (open(&pair.web, "web").expect("a member"), open(&other, "other").expect("a member"));
    let (mut taken, mut left) =
        (thief.connect(&target).expect("a stream"), neighbour.connect(&target).expect("a stream"));
    for (tunnel, stream) in [(&thief, &mut taken), (&neighbour, &mut left)] {
        assert_eq!(tunnel.exchange(stream, "before\n").expect("carried"), "before\n");
    }
    let revoked = revoke(&pair.mesh, ["web"]);
    let identities: Vec<_> = revoked.iter().filter_map(|one| one["identity"].as_str()).collect();
    for namespace in ["default", "hosts", "nodes"] {
        let end = format!("/ns/{namespace}/sa/web");
        assert!(identities.iter().any(|identity| identity.ends_with(&end)), "{identities:?}");
    }
    // Open: closed, with its reason.
    assert!(thief.hear(&mut taken).is_err(), "a reset, and no end that looks whole");
    let line = pair.store.wait_for_log("what was open is closed", because("certificate_revoked"));
    assert_eq!(line["fault"], "policy");
    // New: refused in the handshake.
    assert!(open(&pair.web, "web").and_then(|tunnel| tunnel.echoes(&target)).is_err());
    let refusal = |line: &Value| {
        because("handshake_failed")(line)
            && line["connection_termination_details"].to_string().contains("was revoked")
    };
    pair.store.wait_for_log("the refusal", refusal);
    assert!(is_cut(pair.call("echo", 7000, "by its programs")));
    // The node credential: nothing is issued, and no state sent.
    wait_until("the revoked host has no control server", || {
        pair.web.status().is_some_and(|status| status["source"]["connected"] == false)
    });
    assert_eq!(neighbour.exchange(&mut left, "after\n").expect("untouched"), "after\n");
    assert!(open(&other, "other").expect("a member").echoes(&target).expect("a stream"));
    let listed = output_of(pair.mesh.control.baremesh(["certs", "revoked"]));
    assert!(listed.contains("/ns/default/sa/web") && !listed.contains("/sa/other"), "{listed}");

    // Nor is it forgotten by an agent that starts without a control server.
    pair.mesh.kill_control();
    pair.store.kill_agent();
    pair.store.start();
    wait_until("the agent serves again", || {
        open(&other, "other").and_then(|tunnel| tunnel.echoes(&target)).unwrap_or(false)
    });
    assert!(open(&pair.web, "web").and_then(|tunnel| tunnel.echoes(&target)).is_err());

    // It comes back by a token made for that, with certificates of its own.
    pair.mesh.start_control();
    let made =
        pair.mesh.control.baremesh(["token", "create", "--rejoin", "web", "--service", "web", "-o", "json"]);
    let token: Value = serde_json::from_str(&output_of(made)).expect("JSON");
    let (address, token) =
        (pair.mesh.control.v4().to_string(), token["token"].as_str().expect("a token").to_owned());
    pair.web.stop_agent();
    output_of(pair.web.host.baremesh(["join", &address, "--token", &token, "--host", "web", "--force"]));
    pair.web.start();
    pair.web.wait_for_endpoints("echo.default", 1);
    wait_until("its programs are served again", || {
        exit_code_of(pair.call("echo", 7000, "back")) == exit::DONE
    });
}

/// The key of a service may have leaked: its certificates are revoked, its host gets others at once, and callers close
/// what they have open to it.
#[test]
fn a_revoked_identity_is_issued_anew_and_callers_leave_what_they_had_open() {
    let pair = Pair::new("rekey");
    let listener = pair.store.host.listen((Ipv4Addr::LOCALHOST, 7000));
    pair.register("echo", 7000);
    let (mut caller, mut called) = pair.both_ends("echo", &listener);
    caller.write_all(b"before").expect("sent");
    let mut heard = [0; 6];
    called.read_exact(&mut heard).expect("heard");
    let (before, callers) =
        (serial_of(&pair.store, "echo").expect("a certificate"), serial_of(&pair.web, "web"));
    // The called side hears of it too, and would end the tunnel first now and then.
    signal(&pair.store, "-STOP");
    let identity = "spiffe://mesh.internal/ns/default/sa/echo";
    let revoked = revoke(&pair.mesh, ["--identity", identity]);
    assert!(revoked.iter().any(|one| one["serial"] == before.as_str()), "{revoked:?}");
    assert!(caller.read(&mut [0; 1]).is_err(), "a reset, and no end that looks whole");
    let at_caller = |line: &Value| because("certificate_revoked")(line) && line["reporter"] == "source";
    pair.web.wait_for_log("the caller left", at_caller);
    signal(&pair.store, "-CONT");
    wait_until("another certificate is held", || {
        serial_of(&pair.store, "echo").is_some_and(|now| now != before)
    });
    pair.web.wait_for_endpoints("echo.default", 1);
    let (mut caller, mut called) = pair.both_ends("echo", &listener);
    caller.write_all(b"after!").expect("sent");
    called.read_exact(&mut heard).expect("heard");
    assert_eq!(&heard, b"after!");
    assert_eq!(serial_of(&pair.web, "web"), callers, "the caller's own is none of it");
    // One by its serial number, as other tools write it.
    let now = serial_of(&pair.store, "echo").expect("a certificate");
    assert_eq!(revoke(&pair.mesh, ["--serial", &now.to_uppercase()]).len(), 1);
    let unknown = pair.mesh.control.baremesh(["certs", "revoke", "--serial", "abcdef"]);
    assert_eq!(exit_code_of(unknown), 1, "nothing of that number was issued");
}

/// Both ends of a connection to the service `echo` of `listener`'s host, in the test's own hands.
#[track_caller]
fn open_to_echo(of: &Member, listener: &TcpListener) -> [TcpStream; 2] {
    let caller =
        of.host.connect((virtual_addresses(of, "echo")[0], 7000)).expect("a connection to the agent");
    let (called, _) = listener.accept().expect("the agent delivers");
    let mut ends = [caller, called];
    for end in &ends {
        end.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    }
    assert!(is_carried(&mut ends));
    ends
}

/// Whether what one end says is heard at the other.
fn is_carried([caller, called]: &mut [TcpStream; 2]) -> bool {
    let mut heard = [0; 5];
    caller.write_all(b"hello").is_ok() && called.read_exact(&mut heard).is_ok() && &heard == b"hello"
}

/// Waits until an end is closed, which is to be soon after `since`: within a second of reaching the agent, and on a machine
/// that is busy within more.
#[track_caller]
fn closed_soon(what: &str, end: &mut TcpStream, since: Instant) {
    let heard = end.read(&mut [0; 1]);
    assert!(
        matches!(&heard, Ok(0))
            || heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "{what}: {heard:?}"
    );
    let elapsed = since.elapsed();
    assert!(elapsed < CLOSED_WITHIN, "{what}: {elapsed:?}");
}

/// A host has its identity by a HostGrant, and another the same one by its token. The grant goes: what the first has open
/// is closed by those whom it calls, whatever its own agent does; the second notices nothing.
#[test]
fn a_grant_that_is_taken_away_takes_what_was_issued_and_what_is_open() {
    let mesh = Mesh::new("ungrant");
    let grant = "[[HostGrant]]\nname = \"web\"\nhost = \"web\"\nservices = [\"web\"]\n";
    mesh.apply(grant);
    let (web, own, store) =
        (mesh.member("web", 1, &[]), mesh.member("own", 2, &["web"]), mesh.member("store", 3, &["*"]));
    for member in [&web, &own] {
        member.register("web", ["--port", "80", "--user", "0"]);
    }
    let listener = store.host.listen((Ipv4Addr::LOCALHOST, 7000));
    store.register("echo", ["--port", "7000"]);
    let reviews = store.web("reviews", "v1", &[]);
    for member in [&web, &own] {
        member.wait_for_endpoints("echo.default", 1);
        member.wait_for_endpoints("reviews.default", 1);
        member.wait_for_endpoints("web.default", 2);
    }
    let (mut taken, mut left) = (open_to_echo(&web, &listener), open_to_echo(&own, &listener));
    let calls = [&web, &own].map(|of| Requests::start(&of.host, &["--keep"], "http://reviews"));
    let kept = serial_of(&own, "web").expect("a certificate");

    // Its own agent would end the tunnels as well, and first now and then.
    signal(&web, "-STOP");
    output_of(mesh.control.baremesh(["delete", "HostGrant", "web"]));
    closed_soon("a grant that was taken away", &mut taken[1], Instant::now());
    store.wait_for_log("what was open is closed", because("certificate_revoked"));
    signal(&web, "-CONT");
    own.wait_for_endpoints("web.default", 1);
    wait_until("the calls of its programs are refused", || {
        calls[0].answers().last().is_some_and(|answer| !answer.is_ok())
    });
    assert!(!web.host.get(&[], "http://reviews").is_ok());
    assert!(is_cut(web.host.shop(["call", "echo", "7000", "anew"])));
    assert!(is_carried(&mut left), "who has it by its token goes on");
    calls[1].wait_for_more(5);
    assert_eq!(serial_of(&own, "web"), Some(kept), "with what it had");
    let audit = output_of(mesh.control.baremesh(["audit"]));
    assert!(audit.contains("of host web") && audit.contains("no longer granted"), "{audit}");

    mesh.apply(grant);
    wait_until("it is issued anew, and served", || web.host.get(&[], "http://reviews").is_ok());
    own.wait_for_endpoints("web.default", 2);
    open_to_echo(&web, &listener);
    let [_, of_own] = calls.map(Requests::stop);
    assert!(of_own.iter().all(Answer::is_ok), "{of_own:?}");
    drop(reviews);
}

/// A service is deregistered. What is open to it is closed on its side, with that as the reason, whoever opened it; what
/// is open to its neighbour on the host is not.
#[test]
fn a_service_that_is_removed_closes_what_is_open_to_it_and_nothing_of_its_neighbours() {
    let pair = Pair::new("remove");
    let (listener, neighbours) = (
        pair.store.host.listen((Ipv4Addr::LOCALHOST, 7000)),
        pair.store.host.listen((Ipv4Addr::LOCALHOST, 7001)),
    );
    pair.register("echo", 7000);
    pair.register("tea", 7001);
    let mut open: [TcpStream; 2] = pair.both_ends("echo", &listener).into();
    let mut left: [TcpStream; 2] = pair.both_ends("tea", &neighbours).into();
    assert!(is_carried(&mut open) && is_carried(&mut left));
    // A stream of HTTP/2 from a peer that is no agent, and so closes nothing by itself.
    let config = peer::config(&pair.mesh, peer::stolen(&pair.web, "web"));
    let tunnel =
        Tunnel::open(&pair.web.host, agent_of(&pair.store.host), config, Some(SNI)).expect("a member");
    let mut stream = tunnel.connect(&authority(pair.store.host.v4(), 7000)).expect("a stream");
    let (mut of_stream, _) = listener.accept().expect("delivered");
    of_stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");

    output_of(pair.store.host.baremesh(["service", "deregister", "echo"]));
    let since = Instant::now();
    closed_soon("a service that was removed", &mut open[1], since);
    closed_soon("its stream of a peer of its own", &mut of_stream, since);
    assert!(tunnel.hear(&mut stream).is_err(), "a reset, and no end that looks whole");
    let removed = |line: &Value| {
        line["connection_termination_details"].to_string().contains("is no longer registered here")
    };
    pair.store.wait_for_log("what was open is closed", removed);
    wait_until("both are", || pair.store.log().iter().filter(|line| removed(line)).count() == 2);
    assert!(is_carried(&mut left), "its neighbour on the host goes on");
}
