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
use baremesh_registry::control::followed::{Entries, Followed};
use baremesh_registry::control::registration::Registration;
use baremesh_registry::control::stream::{StreamReader, StreamWriter};
use baremesh_registry::control::subscription::Subscription;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::report::{Changes, Fault, HostReport, HostStatus, StatusReport, TokenAnswer, TokenReport};
use super::*;

/// What hosts may do.
mod hosts;
/// What operators may do.
mod operators;
/// What a start finds.
mod recovery;
/// What they may do from other machines, and who may not.
mod remote;

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
        Authority::create(directories.authority(), &domain, SystemTime::now()).expect("an authority");
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
            consul: None,
            directories: self.directories(),
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            ca_passphrase: None,
            federation_allow: Vec::new(),
            workload_lifetime: Duration::from_secs(3600),
            node_lifetime: Duration::from_secs(7200),
            lease: LEASE,
            shared_ledger: None,
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
        // All of them are on this machine, and say that they are elsewhere.
        let token = self.token(json!({ "services": services, "addresses": ["10.0.0.0/24"] })).await;
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
        let client =
            Client::new(host.address().to_string(), watch::channel(self.bundle()).1, self.credential());
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
                flush: mpsc::channel(1).1,
            };
            let (client, _driver) = h2_client(address, tls).await;
            let (reader, writer) = open_state(client).await;
            let mut followed = Followed::new(None);
            follow(reader, writer, &mut followed, &mut local, |entries: &Entries, _| {
                outlet
                    .send_replace(entries.iter().map(|(key, entry)| (key.clone(), entry.value())).collect());
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
    let (response, stream) = begin(client, Method::POST, endpoints::STATE_PATH).await;
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
