//! A whole control server on loopback, with the real clients of both its sides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baremesh_agent::admin::client::{Socket, SocketError};
use baremesh_ca::authority::Authority;
use baremesh_ca::client::{Client, ClientError, Joined, join};
use baremesh_ca::issued::Issued;
use baremesh_ca::key::PrivateKey;
use baremesh_ca::protocol::{CERTIFICATES_PATH, JOIN_PATH, MAX_BODY};
use baremesh_ca::tls::{
    Expected, TrustBundle, client_config, join_client_config, placeholder_server_name, single_certificate,
};
use baremesh_ca::token::Token;
use baremesh_model::identity::Identity;
use baremesh_model::name::Label;
use baremesh_registry::control::client::{Ended, FollowError, Local, follow};
use baremesh_registry::control::followed::Followed;
use baremesh_registry::control::registration::Registration;
use baremesh_registry::control::stream::{StreamReader, StreamWriter};
use baremesh_registry::control::subscription::Subscription;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::report::{Changes, Fault, HostReport, HostStatus, StatusReport, TokenAnswer, TokenReport};
use super::*;

/// Long for a machine under load; nothing waits that long unless it failed.
const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(15);

const MESH: &str = "[[MeshConfig]]\ntrustDomain = \"mesh.test\"\ndomain = \"mesh.internal\"\n";
const POLICY: &str = "[[AuthorizationPolicy]]\nname = \"orders\"\nrules = [{ from = [{ source = { namespaces = [\"default\"] } }] }]\n";

/// A control host: its directories, and the server while it runs.
struct Host {
    place: tempfile::TempDir,
    running: Option<Running>,
}

impl Host {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let host = Self { place, running: None };
        let directories = host.directories();
        std::fs::create_dir_all(directories.registry()).expect("a directory");
        std::fs::create_dir_all(&directories.state).expect("a directory");
        std::fs::write(directories.registry().join("mesh.toml"), MESH).expect("written");
        let domain = TrustDomain::new("mesh.test").expect("a domain");
        Authority::create(&directories.authority(), &domain, SystemTime::now()).expect("an authority");
        host
    }

    async fn started() -> Self {
        let mut host = Self::new();
        host.start().await;
        host
    }

    fn directories(&self) -> Directories {
        let below = |name: &str| self.place.path().join(name);
        Directories { config: below("etc"), state: below("state"), runtime: below("run") }
    }

    fn config(&self) -> ControlConfig {
        ControlConfig {
            directories: self.directories(),
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            workload_lifetime: Duration::from_secs(3600),
            lease: LEASE,
        }
    }

    async fn start(&mut self) {
        self.running = Some(start(self.config()).await.expect("it starts"));
    }

    async fn stop(&mut self) {
        self.running.take().expect("it runs").stop().await;
    }

    fn address(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").addresses()[0]
    }

    async fn order<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Value,
    ) -> Result<T, (StatusCode, Fault)> {
        let path = self.directories().control_socket();
        let socket = Socket { path: &path, program: "baremesh control" };
        match socket.call(method, target, body.to_string().into_bytes()).await {
            Ok(answer) => Ok(serde_json::from_slice(&answer).expect("an answer")),
            Err(SocketError::Refused { status, message }) => {
                Err((status, serde_json::from_str(&message).expect("a fault")))
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn post<T: DeserializeOwned>(&self, target: &str, body: Value) -> Result<T, (StatusCode, Fault)> {
        self.order(Method::POST, target, body).await
    }

    async fn read<T: DeserializeOwned>(&self, target: &str) -> T {
        self.order(Method::GET, target, Value::Null).await.expect(target)
    }

    async fn apply(&self, text: &str, name: &str) -> Result<Changes, (StatusCode, Fault)> {
        self.post("/apply", json!({ "text": text, "name": name })).await
    }

    async fn token(&self, order: Value) -> Token {
        let answer: TokenAnswer =
            self.post("/token", order).await.map_err(|(_, fault)| fault.error).expect("a token");
        Token::parse(&answer.token).expect("a token")
    }

    async fn join(&self, name: &str, services: &[&str]) -> Member {
        let token = self.token(json!({ "services": services })).await;
        let key = PrivateKey::generate().expect("a key");
        let joined = join(&self.address().to_string(), &token, &label(name), &key).await.expect("joined");
        Member { joined }
    }

    async fn status_of(&self, name: &str) -> HostStatus {
        let status: StatusReport = self.read("/status").await;
        status.hosts.into_iter().find(|host| host.host == name).unwrap_or_default()
    }
}

/// A host that has joined.
struct Member {
    joined: Joined,
}

impl Member {
    fn bundle(&self) -> Arc<TrustBundle> {
        Arc::new(self.joined.bundle.clone())
    }

    fn credential(&self) -> Arc<rustls::sign::SingleCertAndKey> {
        single_certificate(self.joined.node.certified_key().expect("a key"))
    }

    async fn issue(
        &self,
        host: &Host,
        identities: &[Identity],
    ) -> Result<Vec<Result<Issued, String>>, ClientError> {
        let client = Client::new(host.address().to_string(), self.bundle(), self.credential());
        let answers = client.issue(identities).await?;
        Ok(answers.into_iter().map(|answer| answer.map_err(|refused| refused.code)).collect())
    }

    fn tls(&self) -> ClientConfig {
        let control = Identity::control(self.joined.bundle.trust_domain().clone());
        client_config(self.credential(), self.bundle(), Expected::exactly(control))
    }

    /// Follows the state, with registrations, until it is dropped.
    fn follow(&self, address: SocketAddr, registrations: Vec<Registration>) -> Follower {
        let seen = Arc::new(watch::Sender::new(BTreeMap::new()));
        let (shutdown, leaving) = watch::channel(false);
        let (outlet, tls) = (seen.clone(), self.tls());
        let task = tokio::spawn(async move {
            let mut local = Local {
                agent_version: "9.8.7".to_owned(),
                registrations: watch::channel(registrations).1,
                subscription: watch::channel(Subscription::All).1,
                shutdown: leaving,
            };
            let (client, _driver) = h2_client(address, tls).await;
            let (reader, writer) = open_state(client).await;
            let mut followed = Followed::new(None);
            follow(reader, writer, &mut followed, &mut local, |values: &BTreeMap<String, Value>, _| {
                outlet.send_replace(values.clone());
                Ok(())
            })
            .await
        });
        Follower { seen, shutdown, task }
    }
}

struct Follower {
    seen: Arc<watch::Sender<BTreeMap<String, Value>>>,
    shutdown: watch::Sender<bool>,
    task: JoinHandle<Result<Ended, FollowError>>,
}

impl Follower {
    /// Waits until the state holds a key, and returns its value.
    async fn value(&self, key: &str) -> Value {
        let mut seen = self.seen.subscribe();
        let waiting = seen.wait_for(|values| values.contains_key(key));
        let values = tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no {key}"));
        values.expect("a state")[key].clone()
    }

    async fn gone(&self, key: &str) {
        let mut seen = self.seen.subscribe();
        let waiting = seen.wait_for(|values| !values.contains_key(key));
        tokio::time::timeout(PATIENCE, waiting).await.expect("it goes").expect("a state");
    }

    async fn ended(self) -> Result<Ended, FollowError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("no panic")
    }
}

async fn h2_client(address: SocketAddr, tls: ClientConfig) -> (h2::client::SendRequest<Bytes>, Driver) {
    let stream = TcpStream::connect(address).await.expect("connected");
    let connector = TlsConnector::from(Arc::new(tls));
    let stream = connector.connect(placeholder_server_name(), stream).await.expect("a handshake");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    (client, Driver(tokio::spawn(async move { _ = connection.await })))
}

struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn open_state(client: h2::client::SendRequest<Bytes>) -> (StreamReader, StreamWriter) {
    let (response, stream) = begin(client, Method::POST, calls::STATE_PATH).await;
    let response = response.await.expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
    (StreamReader::new(response.into_body()), StreamWriter::new(stream))
}

async fn begin(
    client: h2::client::SendRequest<Bytes>,
    method: Method,
    path: &str,
) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let uri = format!("https://control{path}");
    let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
    client.ready().await.expect("ready").send_request(request, false).expect("sent")
}

/// Sends a whole request past the clients, and returns status and code of the answer.
async fn raw(host: &Host, tls: ClientConfig, path: &str, body: Vec<u8>) -> (u16, String) {
    let (client, _driver) = h2_client(host.address(), tls).await;
    let (response, mut stream) = begin(client, Method::POST, path).await;
    let _ = stream.send_data(body.into(), true);
    let response = response.await.expect("a response");
    let status = response.status().as_u16();
    let (mut body, mut text) = (response.into_body(), Vec::new());
    while let Some(Ok(data)) = body.data().await {
        text.extend_from_slice(&data);
    }
    let value: Value = serde_json::from_slice(&text).unwrap_or_default();
    (status, value["code"].as_str().unwrap_or_default().to_owned())
}

fn label(text: &str) -> Label {
    Label::new(text).expect("a label")
}

fn identity(path: &str) -> Identity {
    Identity::parse(&format!("spiffe://mesh.test/{path}")).expect("an identity")
}

fn orders() -> Registration {
    let written = json!({ "service": "orders.shop", "ports": [{ "port": 80, "targetPort": 8080 }], "addresses": ["10.0.0.7"] });
    Registration::read(&written).expect("a registration")
}

async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

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
    assert_eq!(raw(&host, tls(), calls::STATE_PATH, Vec::new()).await, (403, "not_a_node".to_owned()));
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
    assert_eq!(raw(&host, tls(), calls::STATE_PATH, Vec::new()).await, (401, "no_credential".to_owned()));
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
