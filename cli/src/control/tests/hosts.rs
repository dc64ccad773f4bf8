//! What hosts may do, and what they may not.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_gets_certificates_and_follows_the_state() {
    let host = Host::started().await;
    let member = host.join("h1", &["orders.shop"]).await;
    assert_eq!(member.joined.domain.as_ref().map(ToString::to_string).as_deref(), Some("mesh.internal"));

    let wanted = [identity("ns/shop/sa/orders"), identity("ns/hosts/sa/h1"), identity("ns/shop/sa/other")];
    let issued = member.issue(&host, &wanted).await.expect("answers");
    let lifetime =
        issued[0].as_ref().expect("issued").not_after.duration_since(SystemTime::now()).expect("ahead");
    assert!(lifetime <= Duration::from_secs(3600) && lifetime > Duration::from_secs(1800));
    assert!(issued[1].is_ok());
    assert_eq!(issued[2].as_ref().err().map(String::as_str), Some("not_granted"));

    let follower = member.follow(host.address(), vec![orders()]);
    assert_eq!(follower.value("MeshConfig/default/mesh").await["spec"]["trustDomain"], "mesh.test");
    let service = follower.value("Service/shop/orders").await;
    assert!(!service["spec"]["addresses"].as_array().expect("assigned").is_empty());
    follower.value("WorkloadEntry/shop/orders-h1").await;

    let applied = host.apply(POLICY, "policy.toml").await.expect("applied");
    assert!(applied.in_force);
    assert_eq!(applied.changes[0].effect, "created");
    follower.value("AuthorizationPolicy/default/orders").await;
    wait_until("the host acknowledges", async || {
        let status: StatusReport = host.read("/status").await;
        status.hosts[0].acked == Some(status.state_version)
    })
    .await;
    let status = host.status_of("h1").await;
    assert!(status.connected && status.agent_version.as_deref() == Some("9.8.7"), "{status:?}");
    assert_eq!(status.registrations[0].service, "orders.shop");

    let deleted: Changes = host
        .post("/delete", json!({ "kind": "AuthorizationPolicy", "namespace": "default", "name": "orders" }))
        .await
        .expect("deleted");
    assert!(deleted.in_force);
    follower.gone("AuthorizationPolicy/default/orders").await;
    follower.shutdown.send_replace(true);
    assert!(matches!(follower.ended().await, Ok(Ended::Goodbye)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_extends_leases_and_keeps_what_was_registered() {
    let mut host = Host::started().await;
    let member = host.join("h1", &["orders.shop"]).await;
    let follower = member.follow(host.address(), vec![orders()]);
    follower.value("WorkloadEntry/shop/orders-h1").await;
    let address = follower.value("Service/shop/orders").await["spec"]["addresses"].clone();
    // The agent is gone with its server, and says no goodbye.
    host.stop().await;
    follower.ended().await.ok();
    assert!(!host.directories().control_socket().exists(), "nothing is left to call");

    host.start().await;
    let status = host.status_of("h1").await;
    assert!(!status.connected);
    // Taken up with a full period, of which a moment may have passed.
    assert!(status.lease_seconds.is_some_and(|left| left >= LEASE.as_secs() / 2), "{status:?}");
    let other = host.join("h2", &[]).await;
    let follower = other.follow(host.address(), Vec::new());
    follower.value("WorkloadEntry/shop/orders-h1").await;
    assert_eq!(follower.value("Service/shop/orders").await["spec"]["addresses"], address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_itself_and_nobody_else() {
    let host = Host::started().await;
    let member = host.join("h1", &["orders.shop"]).await;
    let others = host.join("h2", &[]).await;
    // Another host's identities, its own control server's, and what was granted to another.
    let wanted = [
        identity("ns/nodes/sa/h2"),
        identity("ns/hosts/sa/h2"),
        identity("ns/control/sa/control"),
        identity("ns/shop/sa/orders"),
    ];
    let answers = member.issue(&host, &wanted[..3]).await.expect("answers");
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert!(others.issue(&host, &wanted[3..]).await.expect("answers")[0].is_err());

    // A workload's certificate opens nothing here.
    let workload = member.issue(&host, &wanted[3..]).await.expect("answers").remove(0).expect("issued");
    let workload = single_certificate(workload.certified_key().expect("a key"));
    let control = Identity::control(member.joined.bundle.trust_domain().clone());
    let tls = || client_config(workload.clone(), member.bundle(), Expected::exactly(control.clone()));
    assert_eq!(raw(&host, tls(), endpoints::STATE_PATH, Vec::new()).await, (403, "not_a_node".to_owned()));
    let empty = br#"{"certificates":[]}"#.to_vec();
    assert_eq!(raw(&host, tls(), CERTIFICATES_PATH, empty).await, (403, "not_a_node".to_owned()));

    // The host h2 registers what was granted to h1.
    let follower = others.follow(host.address(), vec![orders()]);
    wait_until("the refusal shows", async || {
        let status = host.status_of("h2").await;
        status
            .registrations
            .iter()
            .any(|one| one.held.as_deref().is_some_and(|held| held.contains("may not serve")))
    })
    .await;
    assert!(!follower.seen.borrow().contains_key("WorkloadEntry/shop/orders-h2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_credential_only_joining_is_open() {
    let host = Host::started().await;
    let token = host.token(json!({})).await;
    let tls = || join_client_config(token.root());
    assert_eq!(raw(&host, tls(), endpoints::STATE_PATH, Vec::new()).await, (401, "no_credential".to_owned()));
    assert_eq!(raw(&host, tls(), CERTIFICATES_PATH, b"{}".to_vec()).await, (401, "no_credential".to_owned()));
    assert_eq!(raw(&host, tls(), "/v1/other", Vec::new()).await, (404, "no_such_call".to_owned()));
    let long = vec![b' '; MAX_BODY + 1];
    assert_eq!(raw(&host, tls(), JOIN_PATH, long).await, (400, "malformed".to_owned()));
    // None of this used the token up.
    let key = PrivateKey::generate().expect("a key");
    join(&host.address().to_string(), &token, &label("h1"), &key).await.expect("joined");
    let again = PrivateKey::generate().expect("a key");
    let refused = join(&host.address().to_string(), &token, &label("h2"), &again).await.expect_err("used");
    assert!(matches!(&refused, ClientError::Refused(refused) if refused.code == "token_used"), "{refused}");
    let tokens: Vec<TokenReport> = host.read("/tokens").await;
    assert_eq!(tokens[0].redeemed_by.as_deref(), Some("h1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_shut_out_is_cut_off() {
    let host = Host::started().await;
    let member = host.join("h1", &["orders.shop"]).await;
    let watcher = host.join("h2", &[]).await;
    let seen = watcher.follow(host.address(), Vec::new());
    let follower = member.follow(host.address(), vec![orders()]);
    seen.value("WorkloadEntry/shop/orders-h1").await;
    let _: Value = host.post("/hosts/h1/revoke", json!({})).await.expect("revoked");
    follower.ended().await.ok();
    seen.gone("WorkloadEntry/shop/orders-h1").await;
    let refused = member.issue(&host, &[identity("ns/shop/sa/orders")]).await.expect_err("refused");
    assert!(matches!(&refused, ClientError::Refused(refused) if refused.code == "host_revoked"), "{refused}");
    let (status, _) = host.post::<Value>("/hosts/h9/revoke", json!({})).await.expect_err("nobody");
    assert_eq!(status, StatusCode::NOT_FOUND);
    // It comes back with a token made for that.
    let token = host.token(json!({ "host": "h1", "rejoin": true, "services": ["orders.shop"] })).await;
    let key = PrivateKey::generate().expect("a key");
    let joined = join(&host.address().to_string(), &token, &label("h1"), &key).await.expect("joined");
    let again = Member { joined };
    assert!(again.issue(&host, &[identity("ns/shop/sa/orders")]).await.expect("answers")[0].is_ok());
    assert!(!host.status_of("h1").await.revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_s_own_certificate_is_renewed_while_it_serves() {
    let mut host = Host::new();
    let config = ControlConfig { workload_lifetime: Duration::from_secs(4), ..host.config() };
    host.running = Some(start(config).await.expect("it starts"));
    let token = host.token(json!({})).await;
    let serials = Mutex::new(std::collections::BTreeSet::new());
    wait_until("another certificate is shown", async || {
        let stream = TcpStream::connect(host.address()).await.expect("connected");
        let connector = TlsConnector::from(Arc::new(join_client_config(token.root())));
        let stream =
            connector.connect(placeholder_server_name(), stream).await.expect("never an ended certificate");
        let shown = stream.get_ref().1.peer_certificates().expect("a chain");
        let facts = baremesh_ca::tls::peer_leaf_facts(&shown[0]).expect("a leaf");
        let mut serials = serials.lock().expect("a lock");
        serials.insert(facts.serial);
        serials.len() > 1
    })
    .await;
}
