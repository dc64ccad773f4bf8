//! An operator's side: the orders that the control host's own socket takes, from another machine, with the operator's
//! credential.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::identity::Identity;
use bytes::Bytes;
use http::{Method, StatusCode};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::{Asked, ClientError, connect, exchange, plain_dial};
use crate::issued::{Issued, IssuedError};
use crate::tls::{Expected, TrustBundle, client_config, single_certificate};

/// What stands before an order's path at the port of hosts.
pub const ORDERS_PATH: &str = "/v1/admin";
/// How long an order may take from its first byte to the last of its answer: `apply` validates and writes a whole set.
const ORDER_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer that is read.
const MAX_ORDER_ANSWER: usize = 64 * 1024 * 1024;

/// Gives orders to one control server.
pub struct OperatorClient {
    address: String,
    config: ClientConfig,
}

impl OperatorClient {
    /// Orders to the control server at `address` and to nobody else, with that credential.
    pub fn new(address: String, bundle: Arc<TrustBundle>, credential: &Issued) -> Result<Self, IssuedError> {
        let control = Identity::control(bundle.trust_domain().clone());
        let shown = single_certificate(credential.certified_key()?);
        let mut config = client_config(shown, bundle, Expected::exactly(control));
        config.enable_sni = false;
        Ok(Self { address, config })
    }

    /// Gives one order, and returns status and body of the answer.
    pub async fn order(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let failed = |reason: String| ClientError::Call { address: self.address.clone(), reason };
        let stream = connect(&self.address, &*plain_dial(), self.config.clone()).await?;
        let path = format!("{ORDERS_PATH}{target}");
        let asked = Asked { method, path: &path, body: body.into(), most: MAX_ORDER_ANSWER };
        match timeout(ORDER_TIMEOUT, exchange(stream, asked)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {} s", ORDER_TIMEOUT.as_secs()))),
        }
    }
}

impl fmt::Debug for OperatorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorClient").field("address", &self.address).finish_non_exhaustive()
    }
}
