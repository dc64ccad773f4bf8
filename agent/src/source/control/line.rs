//! Connections to the control server: a marked socket, TLS with the node credential, HTTP/2.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use baremesh_ca::client::CONTROL_PORT;
use baremesh_ca::tls::{Expected, TrustBundle, client_config, describe_io, placeholder_server_name};
use baremesh_model::identity::Identity;
use bytes::Bytes;
use h2::client::SendRequest;
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::proxy::socket::{self, Mark};

/// How long connecting, the handshake and the first answer may take together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 8;

/// How to reach the control server.
#[derive(Clone)]
pub(super) struct Line {
    /// `host`, `host:port` or an address, as the host joined with it.
    pub(super) control: String,
    pub(super) trust: watch::Receiver<Arc<TrustBundle>>,
    pub(super) credential: Option<Arc<dyn ResolvesClientCert>>,
    pub(super) mark: Mark,
}

/// An open connection. It is closed when it is dropped.
pub(super) struct Open {
    pub(super) requests: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Line {
    /// Connects to whichever of the control server's addresses answers.
    pub(super) async fn open(&self) -> Result<Open, String> {
        let mut last = format!("{} has no address", self.control);
        for address in self.resolve().await? {
            match socket::connect(address, self.mark, CONNECT_TIMEOUT).await {
                Ok(stream) => return self.secure(stream).await,
                Err(error) => last = format!("nothing answers at {address}: {error}"),
            }
        }
        Err(last)
    }

    /// Connects to one address of the control server from one of this host's.
    pub(super) async fn open_from(
        &self,
        from: IpAddr,
        to: SocketAddr,
        patience: Duration,
    ) -> Result<Open, String> {
        let stream = socket::connect_from(Some(from), to, self.mark, patience).await;
        self.secure(stream.map_err(|error| format!("nothing answers at {to}: {error}"))?).await
    }

    /// The control server's addresses, as its name says.
    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let name = match self.control.parse::<SocketAddr>().is_ok() || has_port(&self.control) {
            true => self.control.clone(),
            false => format!("{}:{CONTROL_PORT}", self.control),
        };
        let addresses = lookup_host(&name).await.map_err(|error| format!("{name}: {error}"))?;
        Ok(addresses.take(MAX_ADDRESSES).collect())
    }

    async fn secure(&self, stream: TcpStream) -> Result<Open, String> {
        let tls = self.shake_hands(stream).await;
        let tls = tls.map_err(|error| format!("the handshake failed: {}", describe_io(&error)))?;
        Self::speak(tls).await.map_err(|error| error.to_string())
    }

    /// TLS with the control server of this mesh, and nobody else.
    pub(super) async fn shake_hands(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let none = || io::Error::other("there is no node credential to connect with");
        let credential = self.credential.clone().ok_or_else(none)?;
        let bundle = Arc::clone(&self.trust.borrow());
        let control = Identity::control(bundle.trust_domain().clone());
        let mut config: ClientConfig = client_config(credential, bundle, Expected::exactly(control));
        config.enable_sni = false;
        TlsConnector::from(Arc::new(config)).connect(placeholder_server_name(), stream).await
    }

    /// HTTP/2 over it.
    pub(super) async fn speak(tls: TlsStream<TcpStream>) -> Result<Open, h2::Error> {
        let (requests, connection) = h2::client::handshake(tls).await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the control server ended");
            }
        });
        Ok(Open { requests, driver })
    }
}

fn has_port(control: &str) -> bool {
    control.rsplit_once(':').is_some_and(|(host, port)| port.parse::<u16>().is_ok() && !host.ends_with(':'))
}
