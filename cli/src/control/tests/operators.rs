//! What operators may do, and what comes of it.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_is_shown_with_its_line() {
    let host = Host::started().await;
    host.apply(POLICY, "policy.toml").await.expect("applied");
    let bad = POLICY.replace("namespaces", "namespacez");
    let (status, fault) = host.apply(&bad, "policy.toml").await.expect_err("refused");
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(fault.error.starts_with("policy.toml:3:"), "{}", fault.error);
    assert_eq!(fault.findings[0]["line"], 3);
    let other = MESH.replace("mesh.test", "other.test");
    let (_, fault) = host.apply(&other, "mesh.toml").await.expect_err("refused");
    assert!(fault.error.contains("mesh.test"), "{}", fault.error);
    let dry: Changes = host
        .post("/apply", json!({ "text": POLICY.replace("orders", "web"), "name": "-", "dryRun": true }))
        .await
        .expect("a plan");
    assert!(!dry.in_force && dry.changes[0].diff.contains("+name = \"web\""), "{dry:?}");
    let resources: Vec<Value> = host.read("/resources?kind=AuthorizationPolicy").await;
    assert_eq!(resources.len(), 1);
    assert_eq!(resources[0]["name"], "orders");

    // A file that breaks beside the server's back leaves the last good set in force, and a restart as well.
    let broken = host.directories().registry().join("broken.toml");
    std::fs::write(&broken, "[[Service]]\nname = ").expect("written");
    let mut host = host;
    host.stop().await;
    host.start().await;
    let resources: Vec<Value> = host.read("/resources?kind=AuthorizationPolicy").await;
    assert_eq!(resources.len(), 1);
    wait_until("the refusal shows", async || {
        let status: StatusReport = host.read("/status").await;
        status.resources_refused.is_some_and(|reason| reason.contains("broken.toml:2"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_of_resources_count_at_once_and_for_hosts_to_come() {
    let host = Host::started().await;
    let member = host.join("web-1", &[]).await;
    let wanted = [identity("ns/shop/sa/orders")];
    assert!(member.issue(&host, &wanted).await.expect("answers")[0].is_err());
    let grant = "[[HostGrant]]\nname = \"web\"\nhost = \"web-*\"\nservices = [\"orders.shop\"]\n";
    assert!(host.apply(grant, "grant.toml").await.expect("applied").in_force);
    assert!(member.issue(&host, &wanted).await.expect("answers")[0].is_ok());
    let later = host.join("web-2", &[]).await;
    assert!(later.issue(&host, &wanted).await.expect("answers")[0].is_ok());
    let stranger = host.join("db-1", &[]).await;
    assert!(stranger.issue(&host, &wanted).await.expect("answers")[0].is_err());
    let hosts: Vec<HostReport> = host.read("/hosts").await;
    let may: Vec<_> = hosts.iter().map(|host| (host.name.as_str(), host.services.len())).collect();
    assert_eq!(may, [("db-1", 0), ("web-1", 1), ("web-2", 1)]);
    let follower = member.follow(host.address(), Vec::new());
    follower.value("MeshConfig/default/mesh").await;
    assert!(!follower.seen.borrow().keys().any(|key| key.starts_with("HostGrant")), "grants are not pushed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_root_and_the_group_and_orders_are_recorded() {
    use std::os::unix::fs::PermissionsExt;

    let mut host = Host::started().await;
    let path = host.directories().control_socket();
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode() & 0o7777;
    assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
    for (method, target, body, expected) in [
        (Method::GET, "/nosuch", Value::Null, 404),
        (Method::POST, "/apply", json!({ "txt": 1 }), 400),
        (Method::POST, "/token", json!({ "rejoin": true }), 400),
        (Method::POST, "/token", json!({ "expiresSeconds": 0 }), 400),
        (Method::POST, "/token", json!({ "services": ["UPPER"] }), 400),
        (Method::DELETE, "/tokens/nosuch", Value::Null, 404),
        (Method::GET, "/resources?kind=Pod", Value::Null, 400),
        (Method::POST, "/hosts/UPPER/revoke", json!({}), 400),
    ] {
        let (status, fault) = host.order::<Value>(method, target, body).await.expect_err(target);
        assert_eq!(status.as_u16(), expected, "{target}: {}", fault.error);
        assert!(!fault.error.is_empty());
    }
    host.apply(POLICY, "policy.toml").await.expect("applied");
    let token = host.token(json!({})).await;
    let _: Value =
        host.order(Method::DELETE, &format!("/tokens/{}", token.id()), Value::Null).await.expect("deleted");
    let second = start(host.config()).await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(second.contains("another `baremesh control`"), "{second}");
    host.stop().await;
    let ledger = Ledger::open(&host.directories().state.join(DATABASE)).expect("a ledger");
    let records = ledger.audit_records(10).expect("records");
    let who = format!("uid {}", rustix::process::geteuid().as_raw());
    let what: Vec<_> = records.iter().map(|record| record.what.as_str()).collect();
    assert!(records.iter().all(|record| record.who == who), "{records:?}");
    let applied = "apply policy.toml: AuthorizationPolicy default/orders created";
    assert!(what.contains(&applied), "{what:?}");
    assert!(what.iter().any(|what| what.starts_with("delete token")), "{what:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn does_not_start_on_what_it_could_not_serve() {
    let mut host = Host::new();
    let fails = async |host: &Host| {
        start(host.config()).await.err().map(|error| format!("{error:#}")).expect("it fails")
    };
    let mesh = |host: &Host| host.directories().registry().join("mesh.toml");
    std::fs::write(mesh(&host), MESH.replace("mesh.test", "other.test")).expect("written");
    assert!(fails(&host).await.contains("mesh.test"));
    std::fs::write(mesh(&host), "[[MeshConfig]]\ntrustDomain = 7\n").expect("written");
    assert!(fails(&host).await.contains("mesh.toml:2"));
    std::fs::write(mesh(&host), MESH).expect("written");
    host.start().await;
    host.stop().await;
    std::fs::remove_dir_all(host.directories().authority()).expect("removed");
    assert!(fails(&host).await.contains("baremesh init"));
    assert!(!host.directories().control_socket().exists(), "nothing half started is left");
}
