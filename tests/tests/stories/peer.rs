//! A peer that is no agent: it speaks TLS and HTTP/2 to an agent's port 15008 from the test itself, with whatever
//! certificate it was given, and asks for whatever it likes.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use baremesh_ca::issued::Issued;
use baremesh_ca::tls::{
    Expected, TrustBundle, client_config, peer_identity, placeholder_server_name, single_certificate,
};
use baremesh_model::name::TrustDomain;
use baremesh_tests::{Host, Member, Mesh, WAIT_BOUND};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

/// The port of agents' tunnels.
pub const HBONE: u16 = 15008;

/// The agent of a host.
pub fn agent_of(host: &Host) -> SocketAddr {
    (host.v4(), HBONE).into()
}

/// The file in which a member keeps a service's key and certificate.
pub fn certificate_file(member: &Member, service: &str) -> std::path::PathBuf {
    member.host.path("/var/lib/baremesh/certificates").join(format!("default.{service}.pem"))
}

/// A member's certificate with its key, as a thief with root on that host has it.
#[track_caller]
pub fn stolen(member: &Member, service: &str) -> Arc<CertifiedKey> {
    let pem = fs::read_to_string(certificate_file(member, service)).expect("the member's certificate");
    Issued::from_pem(&pem).and_then(|issued| issued.certified_key()).expect("a key with its certificate")
}

/// What members trust.
#[track_caller]
pub fn bundle(mesh: &Mesh) -> Arc<TrustBundle> {
    let pem = fs::read(mesh.control.path("/var/lib/baremesh/ca/root.crt")).expect("the root");
    let domain = TrustDomain::new("mesh.internal").expect("a trust domain");
    Arc::new(TrustBundle::from_pem(domain, &pem).expect("a bundle"))
}

/// What an agent would call with: TLS 1.3, HTTP/2, and `key` to show.
pub fn config(mesh: &Mesh, key: Arc<CertifiedKey>) -> ClientConfig {
    client_config(single_certificate(key), bundle(mesh), Expected::Anyone)
}

/// An HTTP/2 connection inside TLS to an agent.
pub struct Tunnel {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    /// The identity that the agent showed.
    pub shown: String,
    /// Whether a session was resumed.
    pub handshake: Option<HandshakeKind>,
}

/// A stream that the agent answered.
pub struct Stream {
    /// The answer's status.
    pub status: u16,
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl Tunnel {
    /// Connects from `from` to the agent at `to`, asking for the server name `sni` where there is one.
    pub fn open(
        from: &Host,
        to: SocketAddr,
        mut config: ClientConfig,
        sni: Option<&str>,
    ) -> io::Result<Self> {
        let socket = from.connect(to)?;
        socket.set_nonblocking(true)?;
        config.enable_sni = sni.is_some();
        let name = match sni {
            Some(name) => ServerName::try_from(name.to_owned()).map_err(io::Error::other)?,
            None => placeholder_server_name(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let connected = runtime.block_on(in_time(async {
            let socket = tokio::net::TcpStream::from_std(socket)?;
            let tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
            let session = tls.get_ref().1;
            let leaf = session.peer_certificates().and_then(|chain| chain.first());
            let shown = leaf.and_then(|leaf| peer_identity(leaf).ok()).map(|identity| identity.to_string());
            let handshake = session.handshake_kind();
            let (sender, connection) = h2::client::handshake(tls).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok((sender, shown.unwrap_or_default(), handshake))
        }));
        let (sender, shown, handshake) = connected?;
        Ok(Self { runtime, sender, shown, handshake })
    }

    /// Asks for a connection to `authority`, and waits for the answer.
    pub fn connect(&self, authority: &str) -> io::Result<Stream> {
        let request =
            Request::builder().method(Method::CONNECT).uri(authority).body(()).map_err(io::Error::other)?;
        self.runtime.block_on(in_time(async {
            let mut sender = self.sender.clone().ready().await.map_err(io::Error::other)?;
            let (answer, send) = sender.send_request(request, false).map_err(io::Error::other)?;
            let answer = answer.await.map_err(io::Error::other)?;
            Ok(Stream { status: answer.status().as_u16(), send, receive: answer.into_body() })
        }))
    }

    /// Sends a text on a stream, and reads as many bytes back.
    pub fn exchange(&self, stream: &mut Stream, text: &str) -> io::Result<String> {
        self.runtime.block_on(in_time(async {
            stream.send.send_data(Bytes::from(text.to_owned()), false).map_err(io::Error::other)?;
            let mut heard = Vec::new();
            while heard.len() < text.len() {
                let chunk = stream.receive.data().await.ok_or(io::ErrorKind::UnexpectedEof)?;
                let chunk = chunk.map_err(io::Error::other)?;
                stream.receive.flow_control().release_capacity(chunk.len()).map_err(io::Error::other)?;
                heard.extend_from_slice(&chunk);
            }
            String::from_utf8(heard).map_err(io::Error::other)
        }))
    }

    /// Sends bytes on a stream as soon as they may be sent.
    pub fn send(&self, stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
        self.runtime.block_on(in_time(async {
            let mut left = Bytes::copy_from_slice(bytes);
            while !left.is_empty() {
                stream.send.reserve_capacity(left.len());
                let capacity = poll_fn(|cx| stream.send.poll_capacity(cx)).await;
                let capacity = capacity.ok_or(io::ErrorKind::BrokenPipe)?.map_err(io::Error::other)?;
                let part = left.split_to(capacity.min(left.len()));
                stream.send.send_data(part, false).map_err(io::Error::other)?;
            }
            Ok(())
        }))
    }

    /// Says that nothing more comes on a stream.
    pub fn end(&self, stream: &mut Stream) -> io::Result<()> {
        self.runtime.block_on(async { stream.send.send_data(Bytes::new(), true) }).map_err(io::Error::other)
    }

    /// Resets a stream.
    pub fn reset(&self, stream: &mut Stream) {
        self.runtime.block_on(async { stream.send.send_reset(h2::Reason::CANCEL) });
    }

    /// What comes on a stream, for so long; nothing at its end.
    pub fn receive(&self, stream: &mut Stream, patience: Duration) -> io::Result<Vec<u8>> {
        self.runtime.block_on(async {
            match tokio::time::timeout(patience, stream.receive.data()).await {
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
                Ok(None) => Ok(Vec::new()),
                Ok(Some(chunk)) => {
                    let chunk = chunk.map_err(io::Error::other)?;
                    let given_back = stream.receive.flow_control().release_capacity(chunk.len());
                    given_back.map_err(io::Error::other)?;
                    Ok(chunk.to_vec())
                }
            }
        })
    }

    /// Sends a text on a stream.
    pub fn say(&self, stream: &mut Stream, text: String) -> io::Result<()> {
        // The connection's task sends it.
        self.runtime.block_on(async { stream.send.send_data(text.into(), false).map_err(io::Error::other) })
    }

    /// What comes on a stream until it ends.
    pub fn hear(&self, stream: &mut Stream) -> io::Result<String> {
        self.runtime.block_on(in_time(async {
            let mut heard = Vec::new();
            while let Some(chunk) = stream.receive.data().await {
                let chunk = chunk.map_err(io::Error::other)?;
                stream.receive.flow_control().release_capacity(chunk.len()).map_err(io::Error::other)?;
                heard.extend_from_slice(&chunk);
            }
            String::from_utf8(heard).map_err(io::Error::other)
        }))
    }

    /// Whether the agent carries a word to `authority` and its echo back.
    pub fn echoes(&self, authority: &str) -> io::Result<bool> {
        let mut stream = self.connect(authority)?;
        Ok(stream.status == 200 && self.exchange(&mut stream, "hello\n")? == "hello\n")
    }
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(WAIT_BOUND, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What a CONNECT asks for.
pub fn authority(address: Ipv4Addr, port: u16) -> String {
    format!("{address}:{port}")
}
