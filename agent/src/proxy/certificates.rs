//! The certificates that a handshake needs. That of a service which was registered a moment ago may be on its way: whoever
//! needs it waits, as nothing else is wrong.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use tokio::net::TcpStream;

use super::error::ProxyError;
use super::{Worker, sniff};
use crate::credentials::{Credential, Credentials, Listening};
use crate::snapshot::Snapshot;

/// How long a certificate is waited for. Who signs takes milliseconds; one who takes longer than this is away. Within the time
/// of a handshake, so that a peer is told before it gives up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate that a peer is shown, and the set that it is of.
pub type Shown = (Arc<Credentials>, Arc<Credential>);

impl Worker {
    /// The certificate with which `caller`, a service of this host or the host itself, calls.
    pub(super) async fn certificate_of(&self, caller: &Identity) -> Result<Shown, ProxyError> {
        let find = |set: Arc<Credentials>| {
            let credential = Arc::clone(set.of(caller, SystemTime::now())?);
            Some((set, credential))
        };
        let keyring = &self.shared.credentials;
        let found = match find(keyring.load_full()) {
            // A program may go on that began as a service which is registered no more.
            None if self.shared.snapshot.load().identities.contains(caller) => {
                let longest = PATIENCE.min(self.shared.limits.connect_timeout);
                find(Box::pin(keyring.answered(caller, longest)).await)
            }
            found => found,
        };
        found.ok_or_else(|| ProxyError::NoCertificate(caller.to_string()))
    }

    /// The certificates with which a peer is answered that has connected. It waits for the one that the peer asks for alone, and
    /// takes nothing of what the peer sends.
    pub(super) async fn certificates_for(
        &self,
        peer: &TcpStream,
        snapshot: &Snapshot,
        listening: &Listening,
    ) -> Arc<Credentials> {
        let keyring = &self.shared.credentials;
        let set = keyring.load_full();
        if !snapshot.identities.iter().any(|identity| set.is_awaited(identity)) {
            return set;
        }
        let asked = match Box::pin(sniff::server_name(peer)).await {
            Some(name) => snapshot.identities.iter().find(|identity| identity.server_name() == name),
            None => listening.unnamed.as_ref(),
        };
        match asked {
            Some(identity) => {
                let longest = PATIENCE.min(self.shared.limits.handshake_timeout / 2);
                Box::pin(keyring.answered(identity, longest)).await
            }
            None => keyring.load_full(),
        }
    }
}
