//! Asking the peer of a tunnel for a stream.

use std::net::SocketAddr;

use http::StatusCode;

use super::Place;
use crate::proxy::error::ProxyError;
use crate::proxy::hbone::{self, DENIED};
use crate::proxy::relay::TunnelStream;

/// Asks for a stream to `authority`, and waits for the peer's 200.
pub(super) async fn request(
    place: &Place,
    address: SocketAddr,
    authority: SocketAddr,
    client: Option<SocketAddr>,
) -> Result<TunnelStream, ProxyError> {
    let broken = |source| ProxyError::Tunnel { address, source };
    let head = hbone::connect_request(authority, client)
        .map_err(|_| ProxyError::BadRequest("the endpoint's address makes no authority"))?;
    let mut sender = place.0.sender.clone().ready().await.map_err(broken)?;
    let (response, send) = sender.send_request(head, false).map_err(broken)?;
    let response = response.await.map_err(broken)?;
    match response.status() {
        StatusCode::OK => Ok(TunnelStream { send, receive: response.into_body() }),
        status if status == DENIED => Err(ProxyError::DeniedByPeer(address)),
        status => Err(ProxyError::RefusedByPeer { address, status: status.as_u16() }),
    }
}
