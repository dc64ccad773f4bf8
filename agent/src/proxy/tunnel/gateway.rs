//! To agents of other networks. A gateway of the network carries a connection to the agent, through a tunnel of its own,
//! and within that the same handshake is made as without it: the gateway sees who calls it and which agent is meant, and
//! of what is said there nothing but ciphertext.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use ::bytes::BytesMut;
use baremesh_model::network::Network;
use rustls::pki_types::CertificateDer;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Peer, Pool, Tunnel, server_name};
use crate::proxy::error::ProxyError;
use crate::proxy::http::bytes::{self, Joined};
use crate::proxy::tls::Session;
use crate::snapshot::endpoint::Agent;

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Arc<Tunnel>, ProxyError>> + Send + 'a>>;

/// Makes a tunnel to a peer of another network, through whichever of its gateways leads there: from one that is drawn on
/// through all of them.
pub(super) fn connect<'a>(pool: &'a Pool, peer: Peer<'a>, network: &'a Network) -> Connecting<'a> {
    // A future of its own: a tunnel to a gateway is made as this one is.
    Box::pin(async move {
        let gateways = &network.gateways;
        let first = rand::random_range(0..gateways.len().max(1));
        let nobody = io::Error::new(io::ErrorKind::NotFound, "its network has no gateway");
        let mut failed = ProxyError::Connect { address: peer.agent.address, source: nobody };
        for gateway in gateways.iter().cycle().skip(first).take(gateways.len()) {
            let identity = gateway.identity(peer.source.identity.trust_domain());
            let agent = Agent::direct(gateway.address);
            let to_gateway = Peer { destination: &identity, agent: &agent, ..peer };
            match within(pool, &peer, to_gateway).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(error) => {
                    tracing::debug!(network = %network.name, gateway = %gateway.host, %error, "a gateway does not lead there");
                    failed = error;
                }
            }
        }
        Err(failed)
    })
}

/// Makes a tunnel to `peer` within one to a gateway.
async fn within(pool: &Pool, peer: &Peer<'_>, gateway: Peer<'_>) -> Result<Arc<Tunnel>, ProxyError> {
    let (stream, place) = pool.open(gateway, peer.agent.address, None).await?;
    let (reader, writer) = bytes::of_tunnel(stream);
    let stream = Joined::new(reader, writer, BytesMut::new());
    let config = Arc::new(peer.credentials.caller(peer.source, peer.destination));
    let handshake = TlsConnector::from(config).connect(server_name(peer.destination), stream);
    let tls = pool.in_time(peer.agent.address, Box::pin(handshake)).await?;
    let unshown = || ProxyError::Handshake {
        address: peer.agent.address,
        source: io::Error::other("the peer showed no certificate"),
    };
    let session = session(&tls).ok_or_else(unshown)?;
    pool.stand(peer, (tls, session), Some(place)).await
}

/// What the peer showed.
fn session(tls: &TlsStream<Joined>) -> Option<Session> {
    let shown = tls.get_ref().1.peer_certificates()?;
    let owned = |certificate: &CertificateDer<'_>| certificate.clone().into_owned();
    let (peer, issuers) = shown.split_first()?;
    Some(Session { peer: owned(peer), issuers: issuers.iter().map(owned).collect(), server_name: None })
}
