//! The handshake. Records are handed to rustls one by one, so that nothing after the last of them is taken in:
//! what follows belongs to the record layer, with its keys.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ExtractedSecrets, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Session;
use super::record::{HEADER, MAX_PAYLOAD};
use super::stream::{Rekey, TlsStream};

/// The most bytes that a peer's side of a handshake may take: a chain of certificates fits many times.
const MAX_HANDSHAKE: usize = 128 * 1024;
/// What is read of the socket at a time.
const READ: usize = 4 * 1024;

/// Calls: the caller's side of a handshake on a connected socket.
pub async fn connect(
    mut config: ClientConfig,
    name: ServerName<'static>,
    socket: TcpStream,
) -> io::Result<(TlsStream, Session)> {
    config.enable_secret_extraction = true;
    let mut connection = UnbufferedClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut wire = Wire::new(socket);
    while !client_step(&mut connection, &mut wire).await? {
        wire.take_record().await?;
    }
    let (peer, issuers) = chain(&connection)?;
    let (secrets, keys) = connection.dangerous_into_kernel_connection().map_err(io::Error::other)?;
    let stream = wire.into_stream(&secrets, Rekey::Client(Box::new(keys)))?;
    Ok((stream, Session { peer, issuers, server_name: None }))
}

/// Is called: the listener's side of a handshake on an accepted socket.
pub async fn accept(config: &ServerConfig, socket: TcpStream) -> io::Result<(TlsStream, Session)> {
    let asked = Arc::new(NameAsked { resolver: Arc::clone(&config.cert_resolver), name: Mutex::default() });
    let resolver = Arc::clone(&asked) as Arc<dyn ResolvesServerCert>;
    let mut config = config.clone();
    config.cert_resolver = resolver;
    config.enable_secret_extraction = true;
    let mut connection = UnbufferedServerConnection::new(Arc::new(config)).map_err(io::Error::other)?;
    let mut wire = Wire::new(socket);
    while !server_step(&mut connection, &mut wire).await? {
        wire.take_record().await?;
    }
    let (peer, issuers) = chain(&connection)?;
    let (secrets, keys) = connection.dangerous_into_kernel_connection().map_err(io::Error::other)?;
    let stream = wire.into_stream(&secrets, Rekey::Server(Box::new(keys)))?;
    let server_name = asked.name.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok((stream, Session { peer, issuers, server_name }))
}

/// What the peer showed: its leaf, and the issuers behind it.
fn chain(state: &CommonState) -> io::Result<(CertificateDer<'static>, Vec<CertificateDer<'static>>)> {
    let owned = |certificate: &CertificateDer<'_>| certificate.clone().into_owned();
    match state.peer_certificates() {
        Some([leaf, issuers @ ..]) => Ok((owned(leaf), issuers.iter().map(owned).collect())),
        Some([]) | None => Err(io::Error::other("the peer showed no certificate")),
    }
}

/// Remembers the server name that the peer asked for: the connection does not tell it later.
#[derive(Debug)]
struct NameAsked {
    resolver: Arc<dyn ResolvesServerCert>,
    name: Mutex<Option<String>>,
}

impl ResolvesServerCert for NameAsked {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = hello.server_name().map(str::to_owned);
        self.resolver.resolve(hello)
    }
}

/// The socket during the handshake.
struct Wire {
    socket: TcpStream,
    /// Received, not yet given to rustls.
    received: Vec<u8>,
    /// Whole records given to rustls and not yet used up.
    incoming: Vec<u8>,
    /// To be sent.
    outgoing: Vec<u8>,
    /// Bytes that the peer has sent for its handshake.
    taken: usize,
}

impl Wire {
    fn new(socket: TcpStream) -> Self {
        Self { socket, received: Vec::new(), incoming: Vec::new(), outgoing: Vec::new(), taken: 0 }
    }

    /// Moves one whole record to `incoming`, reading as much as that takes.
    async fn take_record(&mut self) -> io::Result<()> {
        let end = loop {
            if let Some(header) = self.received.first_chunk::<HEADER>() {
                let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
                if length > MAX_PAYLOAD {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not TLS"));
                }
                if self.received.len() >= HEADER + length {
                    break HEADER + length;
                }
            }
            self.received.reserve(READ);
            if self.socket.read_buf(&mut self.received).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer left during the handshake",
                ));
            }
        };
        self.taken += end;
        if self.taken > MAX_HANDSHAKE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a handshake without end"));
        }
        self.incoming.extend(self.received.drain(..end));
        Ok(())
    }

    async fn send(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.outgoing).await?;
        self.outgoing.clear();
        Ok(())
    }

    fn into_stream(self, secrets: &ExtractedSecrets, rekey: Rekey) -> io::Result<TlsStream> {
        debug_assert!(self.incoming.is_empty(), "rustls has used up what it was given");
        TlsStream::new(self.socket, self.received, secrets, rekey)
    }
}

/// Two functions of the same text: rustls has the two sides as two types without a trait over them.
macro_rules! step {
    ($name:ident, $connection:ty) => {
        /// Goes on until rustls needs another record (`false`) or the handshake is done (`true`).
        async fn $name(connection: &mut $connection, wire: &mut Wire) -> io::Result<bool> {
            loop {
                let Wire { socket, incoming, outgoing, .. } = wire;
                let UnbufferedStatus { discard, state, .. } = connection.process_tls_records(incoming);
                let step = match state {
                    Ok(ConnectionState::EncodeTlsData(mut data)) => {
                        encode(outgoing, |room| data.encode(room))?;
                        Step::Again
                    }
                    Ok(ConnectionState::TransmitTlsData(data)) => {
                        socket.write_all(outgoing).await?;
                        outgoing.clear();
                        data.done();
                        Step::Again
                    }
                    Ok(ConnectionState::BlockedHandshake) => Step::Blocked,
                    Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
                    Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Step::Broken(
                        io::Error::new(io::ErrorKind::UnexpectedEof, "the peer left during the handshake"),
                    ),
                    Ok(_) => {
                        Step::Broken(io::Error::new(io::ErrorKind::InvalidData, "data during the handshake"))
                    }
                    Err(error) => Step::Broken(io::Error::new(io::ErrorKind::InvalidData, error)),
                };
                wire.incoming.drain(..discard);
                match step {
                    Step::Again => {}
                    Step::Blocked => return Ok(false),
                    Step::Done => return Ok(true),
                    Step::Broken(error) => {
                        say_why(connection, wire).await;
                        return Err(error);
                    }
                }
            }
        }
    };
}

enum Step {
    Again,
    Blocked,
    Done,
    Broken(io::Error),
}

step!(client_step, UnbufferedClientConnection);
step!(server_step, UnbufferedServerConnection);

fn encode(
    outgoing: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let start = outgoing.len();
    match encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(size)) => outgoing.resize(start + size.required_size, 0),
        Err(error) => return Err(io::Error::other(error)),
    }
    let written = encode(&mut outgoing[start..]).map_err(io::Error::other)?;
    outgoing.truncate(start + written);
    Ok(())
}

/// After a failure rustls has an alert to send, by which the peer learns the reason.
trait Alerting {
    fn alert(&mut self, outgoing: &mut Vec<u8>);
}

macro_rules! alerting {
    ($connection:ty) => {
        impl Alerting for $connection {
            fn alert(&mut self, outgoing: &mut Vec<u8>) {
                let UnbufferedStatus { state, .. } = self.process_tls_records(&mut []);
                if let Ok(ConnectionState::EncodeTlsData(mut data)) = state {
                    // The connection is broken already; an alert that cannot be said is left unsaid.
                    let _: Result<(), io::Error> = encode(outgoing, |room| data.encode(room));
                }
            }
        }
    };
}
alerting!(UnbufferedClientConnection);
alerting!(UnbufferedServerConnection);

async fn say_why(connection: &mut impl Alerting, wire: &mut Wire) {
    wire.outgoing.clear();
    connection.alert(&mut wire.outgoing);
    // The peer may be gone, in which case there is nobody to tell.
    let _ = wire.send().await;
    let _ = wire.socket.shutdown().await;
}
