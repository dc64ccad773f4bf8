//! A peer that is no agent: it asks an agent for tunnels as it likes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use baremesh_ca::issued::Issued;
use baremesh_ca::tls::{Expected, TrustBundle, client_config};
use baremesh_model::identity::Identity;
use baremesh_model::name::{Domain, Label};
use baremesh_tests::Host;
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;

/// Shows one certificate to every server.
#[derive(Debug)]
pub struct Shows(pub Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The identity of a service of the namespace `default`.
pub fn service(name: &str) -> Identity {
    let label = |text| Label::new(text).expect("a label");
    Identity::new(Domain::new("mesh.internal").expect("a domain"), label("default"), label(name))
}

/// What the agent at `to`, asked for its service `callee`, answers to a CONNECT; nothing where it breaks off.
pub fn connect(
    from: &Host,
    to: Ipv4Addr,
    callee: &str,
    certificate: &Issued,
    bundle: Arc<TrustBundle>,
    authority: &str,
) -> Option<u16> {
    let said = Bytes::from_static(b"GET / HTTP/1.0\r\n\r\n");
    runtime().block_on(async {
        let (answer, _stream) = tunnel(from, (to, callee, authority), (certificate, bundle), said).await?;
        Some(answer.status().as_u16())
    })
}

/// All that comes back to `said` within a tunnel that the agent at `to` gave for an authority; nothing where it gave none.
pub fn ask(
    from: &Host,
    at: (Ipv4Addr, &str, &str),
    shown: (&Issued, Arc<TrustBundle>),
    said: String,
) -> Option<String> {
    runtime().block_on(async {
        // Who ends its side while it is asked would be gone.
        let (answer, _stream) = tunnel(from, at, shown, said.into()).await?;
        let is_open = answer.status() == 200;
        let (mut body, mut told) = (answer.into_body(), Vec::new());
        while let Some(Ok(chunk)) = body.data().await {
            told.extend_from_slice(&chunk);
        }
        is_open.then(|| String::from_utf8_lossy(&told).into_owned())
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The answer to a CONNECT behind which something is said, and the way there.
async fn tunnel(
    from: &Host,
    (to, callee, authority): (Ipv4Addr, &str, &str),
    (certificate, bundle): (&Issued, Arc<TrustBundle>),
    said: Bytes,
) -> Option<(Response<RecvStream>, SendStream<Bytes>)> {
    let shows = Arc::new(Shows(certificate.certified_key().expect("a key that fits")));
    let config = client_config(shows, bundle, Expected::exactly(service(callee)));
    let stream = from.connect((to, 15008)).expect("the agent's port");
    stream.set_nonblocking(true).expect("a socket");
    let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
    let name = format!("{callee}.default.mesh.internal").try_into().expect("a server name");
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let (mut sender, connection) = h2::client::handshake(tls).await.ok()?;
    tokio::spawn(connection);
    let request = Request::builder().method(Method::CONNECT).uri(authority).body(()).expect("a request");
    let (response, mut stream) = sender.send_request(request, false).ok()?;
    let _ = stream.send_data(said, false);
    Some((response.await.ok()?, stream))
}

/// What the control server at `to` answers to a request with an empty object for a body; nothing where it breaks off.
pub fn order(
    from: &Host,
    to: Ipv4Addr,
    certificate: &Issued,
    bundle: Arc<TrustBundle>,
    (method, path): (&str, &str),
) -> Option<u16> {
    let shows = Arc::new(Shows(certificate.certified_key().expect("a key that fits")));
    let control = Identity::control(bundle.trust_domain().clone());
    let config = client_config(shows, bundle, Expected::exactly(control));
    let stream = from.connect((to, 15012)).expect("the control server's port");
    stream.set_nonblocking(true).expect("a socket");
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = connector.connect(baremesh_ca::tls::placeholder_server_name(), stream).await.ok()?;
        let (mut sender, connection) = h2::client::handshake(tls).await.ok()?;
        tokio::spawn(connection);
        let uri = format!("https://control{path}");
        let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
        let (response, mut stream) = sender.send_request(request, false).ok()?;
        let _ = stream.send_data(Bytes::from_static(b"{}"), true);
        Some(response.await.ok()?.status().as_u16())
    })
}
