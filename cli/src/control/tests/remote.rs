//! Operators with credentials, and everybody else who tries what they may.

use baremesh_ca::client::{ORDERS_PATH, OperatorClient};
use baremesh_ca::issued::chain_from_pem;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::endpoints::{Access, OF_HOSTS, OF_OPERATORS};
use super::super::report::{AuditReport, OperatorAnswer, VersionReport};
use super::*;
use baremesh_model::operator::Need;

/// An operator with its credential.
struct Operator {
    bundle: Arc<TrustBundle>,
    credential: Issued,
    client: OperatorClient,
}

impl Operator {
    async fn add(host: &Host, name: &str, role: Value) -> Self {
        let key = PrivateKey::generate().expect("a key");
        let mut order =
            json!({ "name": name, "request": STANDARD.encode(key.request().expect("a request")) });
        order.as_object_mut().expect("an object").extend(role.as_object().expect("an object").clone());
        let answer: OperatorAnswer =
            host.post("/operators", order).await.map_err(|(_, fault)| fault.error).expect("added");
        let domain = TrustDomain::new(&answer.trust_domain).expect("a domain");
        let bundle = Arc::new(TrustBundle::from_pem(domain, answer.roots.as_bytes()).expect("a bundle"));
        let chain = chain_from_pem(answer.chain.as_bytes()).expect("a chain");
        let credential = Issued::new(chain, key.to_der()).expect("a credential");
        let client =
            OperatorClient::new(host.address().to_string(), bundle.clone(), &credential).expect("a client");
        Self { bundle, credential, client }
    }

    async fn editor(host: &Host, name: &str) -> Self {
        Self::add(host, name, json!({ "role": "editor", "namespaces": ["shop"] })).await
    }

    async fn order<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Value,
    ) -> Result<T, (StatusCode, Fault)> {
        let body = body.to_string().into_bytes();
        let (status, answer) = self.client.order(method, target, body).await.expect("an answer");
        match status {
            StatusCode::OK => Ok(serde_json::from_slice(&answer).expect("what was asked for")),
            status => Err((status, serde_json::from_slice(&answer).expect("a fault"))),
        }
    }

    async fn apply(&self, text: &str) -> Result<Changes, (StatusCode, Fault)> {
        self.order(Method::POST, "/apply", json!({ "text": text, "name": "x.toml" })).await
    }

    async fn roll_back(&self, body: Value) -> Result<Changes, (StatusCode, Fault)> {
        self.order(Method::POST, "/rollback", body).await
    }

    fn tls(&self) -> ClientConfig {
        tls_of(&self.credential, self.bundle.clone())
    }
}

fn tls_of(issued: &Issued, bundle: Arc<TrustBundle>) -> ClientConfig {
    let control = Identity::control(bundle.trust_domain().clone());
    let shown = single_certificate(issued.certified_key().expect("a key"));
    client_config(shown, bundle, Expected::exactly(control))
}

/// The status of a call with an empty object for a body.
async fn status_of(host: &Host, tls: ClientConfig, method: &Method, path: &str) -> StatusCode {
    let (client, _driver) = h2_client(host.address(), tls).await;
    let (response, mut stream) = begin(client, method.clone(), path).await;
    let _ = stream.send_data(Bytes::from_static(b"{}"), true);
    response.await.expect("a response").status()
}

fn service(namespace: &str, name: &str, port: u16) -> String {
    format!("[[Service]]\nname = \"{name}\"\nnamespace = \"{namespace}\"\nports = [{{ port = {port} }}]\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_for_those_whom_its_rule_names_and_for_nobody_else() {
    let host = Host::started().await;
    let member = host.join("h1", &["orders.shop"]).await;
    let issued = member.issue(&host, &[identity("ns/shop/sa/orders"), identity("ns/hosts/sa/h1")]).await;
    let mut issued = issued.expect("answers").into_iter().map(|issued| issued.expect("issued"));
    let (workload, own) = (issued.next().expect("one"), issued.next().expect("another"));
    let token = host.token(json!({})).await;
    let viewer = Operator::add(&host, "vera", json!({ "role": "viewer" })).await;
    let editor = Operator::editor(&host, "eve").await;
    let admin = Operator::add(&host, "ada", json!({ "role": "admin" })).await;
    // A name that is a host's as well makes it no host.
    let namesake = Operator::add(&host, "h1", json!({ "role": "viewer" })).await;
    let needs = |need: Need| [Need::View, Need::Change, Need::Administer].iter().position(|n| *n == need);
    let callers = [
        ("nobody", join_client_config(token.root()), None, false),
        ("a service", tls_of(&workload, member.bundle()), None, false),
        ("a host's own identity", tls_of(&own, member.bundle()), None, false),
        ("a node", member.tls(), None, true),
        ("a viewer", viewer.tls(), Some(0), false),
        ("a viewer with a host's name", namesake.tls(), Some(0), false),
        ("an editor", editor.tls(), Some(1), false),
        ("an admin", admin.tls(), Some(2), false),
    ];
    let hosts = OF_HOSTS.iter().map(|e| (e.method.clone(), e.path.to_owned(), e.access));
    let orders = OF_OPERATORS
        .iter()
        .map(|e| (e.method.clone(), format!("{ORDERS_PATH}{}", e.path.replace("{}", "nosuch")), e.access));
    for (method, path, access) in hosts.chain(orders) {
        for (who, tls, role, is_node) in &callers {
            let allowed = match access {
                Access::Token => true,
                Access::Node | Access::NodeOrEnded => *is_node,
                Access::Operator(need) => *role >= needs(need) && role.is_some(),
            };
            let status = status_of(&host, tls.clone(), &method, &path).await;
            let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
            assert_eq!(refused, !allowed, "{method} {path} by {who}: {status}");
            assert_ne!(status, StatusCode::TOO_MANY_REQUESTS, "the test asks no more often than it may");
        }
    }
    // What the tables do not have is nowhere, whoever asks.
    for path in
        ["/apply", "/v1/admin", "/v1/admin/", "/v1/adminapply", "/v1/admin/nosuch", "/v1/admin//apply"]
    {
        let status = status_of(&host, admin.tls(), &Method::POST, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    let audit: Vec<AuditReport> =
        admin.order(Method::GET, "/audit?limit=10000", Value::Null).await.expect("the audit");
    let refused = |who: &str, what: &str| {
        audit.iter().any(|line| line.who == who && line.what == what && line.refused.is_some())
    };
    assert!(
        refused("mesh.test/ns/nodes/sa/h1", "POST /v1/admin/apply"),
        "a node credential is used to apply"
    );
    assert!(refused("mesh.test/ns/shop/sa/orders", "POST /v1/admin/apply"));
    assert!(refused("mesh.test/ns/operators/sa/ada", "/v1/certificates"), "an operator poses as a host");
    assert!(refused("operator vera", "POST /apply"));
    assert!(refused("operator eve", "POST /token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_taken_whole_or_refused_whole_and_is_on_record() {
    let host = Host::started().await;
    let eve = Operator::editor(&host, "eve").await;
    let applied = eve.apply(&service("shop", "tea", 80)).await.expect("applied");
    assert!(applied.in_force && applied.version == Some(1), "{applied:?}");
    for beyond in [
        service("billing", "tea", 80),
        MESH.replace("mesh.internal", "other.internal"),
        "[[HostGrant]]\nname = \"g\"\nnamespace = \"shop\"\nhost = \"*\"\nservices = [\"*.*\"]\n".to_owned(),
        "[[PeerAuthentication]]\nname = \"p\"\nnamespace = \"mesh-system\"\nmtls = { mode = \"DISABLE\" }\n"
            .to_owned(),
        "[[AuthorizationPolicy]]\nname = \"p\"\nnamespace = \"istio-system\"\n".to_owned(),
    ] {
        let text = service("shop", "coffee", 81) + &beyond;
        let (status, fault) = eve.apply(&text).await.expect_err("refused");
        assert_eq!(status, StatusCode::FORBIDDEN, "{beyond}");
        assert!(fault.error.contains("nothing was changed"), "{}", fault.error);
    }
    let mesh = json!({ "kind": "MeshConfig", "namespace": "default", "name": "mesh" });
    let (status, _) = eve.order::<Value>(Method::POST, "/delete", mesh).await.expect_err("refused");
    assert_eq!(status, StatusCode::FORBIDDEN);
    let services: Vec<Value> = host.read("/resources?kind=Service").await;
    assert_eq!(services.len(), 1, "nothing was half applied: {services:?}");
    let audit: Vec<AuditReport> = host.read("/audit").await;
    let refusals = audit.iter().filter(|line| line.who == "operator eve" && line.refused.is_some());
    assert_eq!(refusals.count(), 6, "{audit:?}");
    let done = audit.iter().find(|line| line.version == Some(1)).expect("the change");
    assert_eq!(done.what, "apply x.toml: Service shop/tea created");
    assert!(done.difference.contains("+ ports[0]"), "{}", done.difference);
    let tea = json!({ "kind": "Service", "namespace": "shop", "name": "tea" });
    let deleted: Changes = eve.order(Method::POST, "/delete", tea).await.expect("deleted");
    assert_eq!(deleted.version, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_operator_and_a_replaced_credential_are_refused_at_once() {
    let mut host = Host::started().await;
    let first = Operator::editor(&host, "eve").await;
    // A connection that stands, and is idle between two orders.
    let (client, driver) = h2_client(host.address(), first.tls()).await;
    let ask = async |client: &h2::client::SendRequest<Bytes>| {
        let (response, mut stream) =
            begin(client.clone(), Method::GET, &format!("{ORDERS_PATH}/hosts")).await;
        let _ = stream.send_data(Bytes::new(), true);
        response.await.expect("a response").status()
    };
    assert_eq!(ask(&client).await, StatusCode::OK);
    let second = Operator::add(&host, "eve", json!({ "role": "viewer", "replace": true })).await;
    assert!(
        first
            .apply(&service("shop", "a", 80))
            .await
            .is_err_and(|(status, _)| status == StatusCode::FORBIDDEN)
    );
    wait_until("what is open with the former credential is cut", async || driver.0.is_finished()).await;
    let read =
        async |operator: &Operator| operator.order::<Value>(Method::GET, "/resources", Value::Null).await;
    assert!(read(&second).await.is_ok(), "the later one counts");
    assert!(second.apply(&service("shop", "a", 80)).await.is_err(), "with the role that it has now");
    host.stop().await;
    host.start().await;
    let client = OperatorClient::new(host.address().to_string(), second.bundle.clone(), &second.credential);
    let second = Operator { client: client.expect("a client"), ..second };
    assert!(read(&second).await.is_ok(), "a restart forgets nobody");
    let _: Value = host.order(Method::DELETE, "/operators/eve", Value::Null).await.expect("removed");
    let (status, fault) = read(&second).await.expect_err("refused");
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(fault.error.contains("operator add eve"), "{}", fault.error);
    assert!(host.order::<Value>(Method::DELETE, "/operators/eve", Value::Null).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_taken_back_and_what_others_did_is_shown_first() {
    let host = Host::started().await;
    let (eve, bob) = (Operator::editor(&host, "eve").await, Operator::editor(&host, "bob").await);
    let port = async |name: &str| {
        let resources: Vec<Value> = host.read(&format!("/resources?kind=Service&name={name}")).await;
        resources.first().map(|found| found["document"]["spec"]["ports"][0].to_string())
    };
    assert_eq!(eve.roll_back(json!({})).await.expect_err("nothing").0, StatusCode::CONFLICT);
    for (version, text) in
        [(1, service("shop", "tea", 80)), (2, service("shop", "tea", 81)), (3, service("shop", "milk", 90))]
    {
        assert_eq!(eve.apply(&text).await.expect("applied").version, Some(version));
    }
    let at_81 = port("tea").await;
    assert!(eve.apply(&service("shop", "tea", 81)).await.expect("the same").version.is_none());
    // The latest one, then one in the middle with what came after it, then that again undone.
    let done = eve.roll_back(json!({})).await.expect("rolled back");
    assert!(done.in_force && done.version == Some(4) && done.changes[0].effect == "deleted", "{done:?}");
    assert_eq!(port("milk").await, None);
    let dry = eve.roll_back(json!({ "version": 2, "dryRun": true })).await.expect("a plan");
    assert!(dry.version.is_none() && port("tea").await == at_81);
    eve.roll_back(json!({ "version": 2 })).await.expect("rolled back");
    assert!(port("tea").await.is_some_and(|port| port.contains("80")));
    eve.roll_back(json!({ "to": 4 })).await.expect("forward again");
    assert_eq!(port("tea").await, at_81);

    // Somebody else's change in between, and a file that was changed by hand.
    assert_eq!(bob.apply(&service("shop", "honey", 70)).await.expect("applied").version, Some(7));
    for body in [json!({}), json!({ "version": 1 }), json!({ "to": 3 })] {
        let (status, fault) = eve.roll_back(body.clone()).await.expect_err("a conflict");
        assert_eq!(status, StatusCode::CONFLICT, "{body}");
        assert!(fault.error.contains("version 7 of operator bob"), "{}", fault.error);
    }
    assert!(port("honey").await.is_some());
    bob.roll_back(json!({})).await.expect("its own");
    let file = host.directories().registry().join("service.shop.tea.toml");
    std::fs::write(&file, service("shop", "tea", 99)).expect("written");
    let (status, fault) =
        eve.roll_back(json!({ "version": 2, "force": false })).await.expect_err("a conflict");
    assert!(status == StatusCode::CONFLICT && fault.error.contains("changed by hand"), "{}", fault.error);
    eve.roll_back(json!({ "version": 2, "force": true })).await.expect("forced");
    wait_until("version 1 is in force", async || port("tea").await.is_some_and(|port| port.contains("80")))
        .await;

    // Whoever takes back must be allowed to change what is taken back.
    let _: Changes = host.apply(&service("billing", "till", 60), "t.toml").await.expect("applied");
    let (status, fault) = eve.roll_back(json!({ "force": true })).await.expect_err("refused");
    assert!(status == StatusCode::FORBIDDEN && fault.error.contains("billing"), "{}", fault.error);
    assert!(port("till").await.is_some());
    // What it could not write, it does not put back either.
    let beyond = "[[VirtualService]]\nname = \"r\"\nnamespace = \"shop\"\nhosts = [\"till.billing\"]\n\
        tcp = [{ route = [{ destination = { host = \"tea.shop\" } }] }]\n";
    let _: Changes = host.apply(beyond, "r.toml").await.expect("applied");
    let gone = json!({ "kind": "VirtualService", "namespace": "shop", "name": "r" });
    let _: Changes = host.post("/delete", gone).await.expect("deleted");
    let (status, fault) = eve.roll_back(json!({ "force": true })).await.expect_err("refused");
    assert!(status == StatusCode::FORBIDDEN && fault.error.contains("till.billing"), "{}", fault.error);
    assert_eq!(eve.roll_back(json!({ "version": 99 })).await.expect_err("none").0, StatusCode::NOT_FOUND);
    assert_eq!(
        eve.roll_back(json!({ "version": 1, "to": 1 })).await.expect_err("both").0,
        StatusCode::BAD_REQUEST
    );
    let versions: Vec<VersionReport> =
        eve.order(Method::GET, "/versions?limit=3", Value::Null).await.expect("versions");
    assert_eq!(versions.iter().map(|version| version.version).collect::<Vec<_>>(), [12, 11, 10]);
    let versions: Vec<VersionReport> =
        eve.order(Method::GET, "/versions?limit=5", Value::Null).await.expect("versions");
    assert!(versions[3].what.starts_with("rollback 2") && versions[3].kept, "{versions:?}");
    let audit: Vec<AuditReport> = host.read("/audit").await;
    assert!(audit.iter().any(|line| line.version == Some(9) && line.who == "operator eve"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_edited_by_hand_is_on_record_once_and_no_order_is_taken_for_it() {
    let host = Host::started().await;
    let by_hand = async || {
        let audit: Vec<AuditReport> = host.read("/audit").await;
        let lines = audit.into_iter().filter(|line| line.who == "by hand");
        lines.map(|line| (line.what, line.difference, line.version)).collect::<Vec<_>>()
    };
    host.apply(&service("shop", "tea", 80), "t.toml").await.expect("applied");
    let file = host.directories().registry().join("milk.toml");
    // In one step: a file that is truncated first is, for a moment, one without resources.
    let write = |text: String| {
        let aside = host.directories().registry().join(".milk");
        std::fs::write(&aside, text).expect("written");
        std::fs::rename(&aside, &file).expect("renamed");
    };
    write(service("shop", "milk", 80));
    wait_until("the edit is on record", async || !by_hand().await.is_empty()).await;
    host.apply(&service("shop", "tea", 81), "t.toml").await.expect("applied");
    // One that an order finds there is not taken for the order's.
    write(service("shop", "milk", 81));
    host.apply(&service("shop", "tea", 82), "t.toml").await.expect("applied");
    let found = by_hand().await;
    let what: Vec<_> = found.iter().map(|(what, ..)| what.as_str()).collect();
    let of = |effect: &str| format!("files of the control host: Service shop/milk {effect}");
    assert_eq!(what, [of("changed"), of("created")]);
    assert!(found[0].1.contains("80 -> 81") && found[0].2.is_none(), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_lists_and_long_orders_go_through_and_too_long_ones_do_not() {
    let host = Host::started().await;
    let ada = Operator::add(&host, "ada", json!({ "role": "admin" })).await;
    let ports: Vec<_> = (1..=200).map(|port| format!("{{ port = {port} }}")).collect();
    let one = |n| format!("[[Service]]\nname = \"s{n}\"\nports = [{}]\n", ports.join(", "));
    let many: String = (0..60).map(one).collect();
    let applied = ada.apply(&many).await.map_err(|(_, fault)| fault.error).expect("applied");
    assert_eq!(applied.changes.len(), 60);
    // Larger than every window between the two.
    let list: Vec<Value> =
        ada.order(Method::GET, "/resources?kind=Service", Value::Null).await.expect("a list");
    let size: usize = list.iter().map(|found| found.to_string().len()).sum();
    assert!(list.len() == 60 && size > 300_000, "{size}");
    let long = "#".repeat(socket::MAX_ORDER);
    let (status, _) = ada.apply(&long).await.expect_err("too long");
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

/// Who sends orders slowly keeps nobody else from giving any.
#[tokio::test(flavor = "multi_thread")]
async fn one_operator_does_not_hold_the_places_of_all() {
    let host = Host::started().await;
    let slow = Operator::add(&host, "slow", json!({ "role": "viewer" })).await;
    let (client, _driver) = h2_client(host.address(), slow.tls()).await;
    let path = format!("{ORDERS_PATH}/analyze");
    let mut held = Vec::new();
    // As many as a connection has streams; those of them that are refused are answered at once.
    for _ in 0..8 {
        held.push(begin(client.clone(), Method::POST, &path).await);
    }
    let mut refused = 0;
    for (response, _) in &mut held {
        let answered = tokio::time::timeout(Duration::from_secs(1), response).await;
        refused +=
            usize::from(answered.is_ok_and(|response| {
                response.expect("a response").status() == StatusCode::TOO_MANY_REQUESTS
            }));
    }
    assert!((1..8).contains(&refused), "{refused} of 8 are refused, and the others wait for their bodies");
    let eve = Operator::editor(&host, "eve").await;
    assert!(eve.apply(&service("shop", "tea", 80)).await.is_ok());
}

/// A virtual address that was assigned is taken by nobody, in another namespace or in the same; and the order is refused
/// rather than a set left behind that nothing can come into force after.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_assigned_is_not_taken_by_stating_it() {
    let host = Host::started().await;
    let follower = host.join("h1", &[]).await.follow(host.address(), Vec::new());
    let address = async |key: &str| {
        let published = follower.value(&format!("Service/{key}")).await;
        published["spec"]["addresses"][0].as_str().expect("an address").to_owned()
    };
    host.apply(&service("billing", "till", 60), "t.toml").await.expect("applied");
    let eve = Operator::editor(&host, "eve").await;
    eve.apply(&service("shop", "tea", 80)).await.expect("applied");
    let stating =
        |name: &str, address: &str| service("shop", name, 80) + &format!("addresses = [\"{address}\"]\n");
    let (till, tea) = (address("billing/till").await, address("shop/tea").await);
    for (name, taken, by) in
        [("milk", &till, "billing/till"), ("tea", &till, "billing/till"), ("milk", &tea, "shop/tea")]
    {
        let (status, fault) = eve.apply(&stating(name, taken)).await.expect_err("refused");
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{}", fault.error);
        let said = by.split('/').all(|part| fault.error.contains(part));
        assert!(said && fault.error.contains(taken.as_str()), "{name}: {}", fault.error);
    }
    let order = json!({ "text": stating("milk", &till), "name": "x.toml", "dryRun": true });
    assert!(eve.order::<Changes>(Method::POST, "/apply", order).await.is_err(), "a plan says so, too");
    // One's own may be stated, and one that nobody has; and everything that comes after is in force.
    assert!(eve.apply(&stating("tea", &tea)).await.expect("its own").in_force);
    assert!(eve.apply(&service("shop", "honey", 70)).await.expect("applied").in_force);
    assert_eq!(address("billing/till").await, till);
}
