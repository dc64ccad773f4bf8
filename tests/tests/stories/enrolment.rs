//! How a host gets in, and what it gets.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown};
use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use baremesh_ca::ledger::{Ledger, Outcome};
use baremesh_tests::{Host, Mesh, errors_of, output_of, run, wait_for_errors, wait_until};
use serde_json::Value;

use crate::impostor::Impostor;

fn join(host: &Host, address: Ipv4Addr, token: &str) -> Output {
    run(host.baremesh(["join", &address.to_string(), "--token", token, "--host", host.name()]))
}

/// What a join that was refused said.
#[track_caller]
fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

fn is_member(host: &Host) -> bool {
    host.path("/var/lib/baremesh/node/node.pem").exists()
}

#[test]
fn a_token_works_once() {
    let mesh = Mesh::new("once");
    let (first, second) = (mesh.net.host("first", 1), mesh.net.host("second", 2));
    let token = mesh.token(&["web"]);
    assert!(join(&first, mesh.control.v4(), &token).status.success());
    let said = refused(&join(&second, mesh.control.v4(), &token));
    assert!(said.contains("used already") && said.contains("baremesh token create"), "{said}");
    assert!(is_member(&first) && !is_member(&second));
    wait_for_errors(&mesh.control, "control", &["token_used"]);
    assert!(join(&second, mesh.control.v4(), &mesh.token(&[])).status.success());
}

#[test]
fn a_join_whose_answer_was_lost_can_be_repeated() {
    let mesh = Mesh::new("lost");
    let (web, between, other) =
        (mesh.net.host("web", 1), mesh.net.host("between", 2), mesh.net.host("other", 3));
    let token = mesh.token(&["web"]);
    let listener = between.listen((Ipv4Addr::UNSPECIFIED, 15012));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, _) = listener.accept().expect("the joining host");
            let mut server = between.connect((mesh.control.v4(), 15012)).expect("the control server");
            let mut from_client = client.try_clone().expect("a descriptor");
            let mut to_server = server.try_clone().expect("a descriptor");
            scope.spawn(move || std::io::copy(&mut from_client, &mut to_server));
            let mut buffer = [0; 16384];
            // The server writes down that the host has joined before it answers: that answer is lost.
            while let Ok(length @ 1..) = server.read(&mut buffer) {
                if errors_of(&mesh.control, "control").contains("joined") {
                    break;
                }
                client.write_all(&buffer[..length]).expect("the joining host takes it");
            }
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        });
        refused(&join(&web, between.v4(), &token));
    });
    assert!(errors_of(&mesh.control, "control").contains("joined") && !is_member(&web));
    refused(&join(&other, mesh.control.v4(), &token));
    assert!(join(&web, mesh.control.v4(), &token).status.success());
    assert!(is_member(&web));
}

#[test]
fn an_expired_token_is_refused() {
    let mesh = Mesh::new("late");
    let host = mesh.net.host("web", 1);
    let made = output_of(mesh.control.baremesh(["token", "create", "--expires", "1s", "--output", "json"]));
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let end = UNIX_EPOCH + Duration::from_secs(made["expiresAt"].as_u64().expect("seconds") + 1);
    wait_until("the token has expired", || SystemTime::now() > end);
    let said = refused(&join(&host, mesh.control.v4(), made["token"].as_str().expect("a token")));
    assert!(said.contains("expired") && said.contains("baremesh token create"), "{said}");
    wait_for_errors(&mesh.control, "control", &["token_expired"]);
}

#[test]
fn a_token_of_another_mesh_is_refused_before_it_is_shown() {
    let (mesh, other) = (Mesh::new("mesh-a"), Mesh::new("mesh-b"));
    let host = mesh.net.host("web", 1);
    let said = refused(&join(&host, mesh.control.v4(), &other.token(&[])));
    assert!(said.contains("no root with the fingerprint of the token"), "{said}");
    assert!(
        !errors_of(&mesh.control, "control").contains("join refused"),
        "the secret was sent to a stranger"
    );
}

#[test]
fn a_host_gets_no_identity_that_it_was_not_granted_until_a_grant_adds_it() {
    let mesh = Mesh::new("grants");
    let member = mesh.member("web1", 1, &["web"]);
    member.register("web", ["--port", "80"]);
    output_of(member.host.baremesh(["service", "register", "orders", "--port", "81"]));
    wait_for_errors(&member.host, "agent", &["certificate refused", "was not granted", "sa/orders"]);
    wait_for_errors(&mesh.control, "control", &["not_granted"]);
    wait_until("its status says so too", || {
        member.status().is_some_and(|status| status["not_ready"].to_string().contains("was not granted"))
    });
    let ledger = Ledger::open(&mesh.control.path("/var/lib/baremesh/control.db"))
        .expect("the control server's records");
    let audit = ledger.audit_records(100).expect("an audit");
    let refused = audit.iter().filter(|record| record.outcome == Outcome::Refused);
    assert!(
        refused.into_iter().any(|record| record.who == "web1" && record.what.contains("sa/orders")),
        "{audit:?}"
    );

    mesh.apply("[[HostGrant]]\nname = \"more\"\nhost = \"web1\"\nservices = [\"orders\"]\n");
    wait_until("orders has its certificate", || {
        let services =
            member.status().unwrap_or_default()["services"].as_array().cloned().unwrap_or_default();
        services.iter().filter(|service| service["certificate"] == true).count() == 2
    });
    member.wait_until_ready();
}

#[test]
fn a_member_cannot_pose_as_the_control_server() {
    let mesh = Mesh::new("pose");
    let web = mesh.member("web", 1, &["web"]);
    web.register("web", ["--port", "80"]);
    let (token, thief) = (mesh.token(&[]), mesh.net.host("thief", 9));
    let certificate = web.host.path("/var/lib/baremesh/certificates/default.web.pem");
    let impostor = Impostor::listen(&thief, 15012, &certificate, &mesh);

    let newcomer = mesh.net.host("newcomer", 2);
    let said = refused(&join(&newcomer, thief.v4(), &token));
    assert!(said.contains("sa/web") && said.contains("ns/control"), "{said}");

    let membership = web.host.path("/var/lib/baremesh/node/mesh.toml");
    let text = std::fs::read_to_string(&membership).expect("the membership");
    web.stop_agent();
    std::fs::write(&membership, text.replace(&mesh.control.v4().to_string(), &thief.v4().to_string()))
        .expect("written");
    web.start();
    wait_for_errors(&web.host, "agent", &["the handshake failed", "sa/web"]);
    impostor.wait_for_attempts(2);
    assert_eq!(impostor.heard(), b"", "something was said to an impostor");
}
