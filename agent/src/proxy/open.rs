//! Connections that are open now: their bytes are counted while they go on, and a policy that changes closes those
//! that it no longer allows.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use baremesh_ca::revocation::Revoked;
use baremesh_model::authorization::{Carried, Hello, Request};
use baremesh_model::identity::Identity;
use baremesh_model::name::Key;
use baremesh_model::peer_authentication::MtlsMode;
use tokio::sync::{Notify, watch};

use super::LOOK;
use super::error::ProxyError;
use crate::snapshot::{From, LocalEndpoint, ServiceEntry, Snapshot};
use crate::telemetry::Counted;

/// What a policy decided on when a delivered connection was let through, to decide again when it changes.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The service's port on this host.
    pub local: Arc<LocalEndpoint>,
    /// Who calls; nobody over plaintext.
    pub source: Option<Identity>,
    /// Where it comes from.
    pub source_ip: IpAddr,
    /// The serial number of the certificate that the caller showed, where it came in a tunnel.
    pub serial: Option<Arc<str>>,
    /// The providers that were asked about its bytes, and allow them. Each request is asked about for itself.
    pub allowed_by: Vec<Arc<str>>,
    /// What is known of the application's own TLS.
    pub hello: Hello,
}

impl Delivered {
    /// Who calls, and from where.
    pub fn from(&self) -> From<'_> {
        (self.source.as_ref(), self.source_ip)
    }

    /// Why the connection, or a request on it, is not allowed by a state; none where it is.
    pub fn no_longer_allowed(&self, snapshot: &Snapshot, carried: Carried<'_>) -> Option<String> {
        let local = match self.still_served(snapshot) {
            Ok(local) => local,
            Err(reason) => return Some(reason),
        };
        if let Some(reason) =
            local.gateway.as_ref().and_then(|gateway| gateway.lists_no_longer(carried, &self.hello))
        {
            return Some(reason);
        }
        if let (Carried::Request(request), Some(rules)) = (carried, &local.tokens)
            && let Some(reason) = rules.no_longer_taken(request.head, request.token)
        {
            return Some(reason.to_owned());
        }
        let allowed_by = match carried {
            Carried::Request(request) => Some(request.allowed_by),
            Carried::Bytes => Some(&*self.allowed_by),
            Carried::Requests => None,
        };
        let asks = allowed_by.and_then(|by| local.asks(self.from(), (carried, &self.hello), by));
        if let Some(asks) = asks {
            return Some(format!("{asks}, which was not asked before"));
        }
        let verdict = local.authorize(self.from(), carried, &self.hello).verdict;
        (!verdict.allows()).then(|| verdict.to_string())
    }

    /// The service as a state has it, or why nothing on this connection is for it any more, whatever policies say.
    pub fn still_served<'a>(&self, snapshot: &'a Snapshot) -> Result<&'a Arc<LocalEndpoint>, String> {
        let Some(local) = snapshot.advertised(self.local.advertised) else {
            return Err(format!("{} is no longer registered here", self.local.service));
        };
        if local.identity != self.local.identity {
            return Err(format!("{} now belongs to {}", local.advertised, local.identity));
        }
        local.taken().map_err(|error| error.to_string())?;
        if local.gateway.is_some() != self.local.gateway.is_some() {
            return Err(format!("{} is registered anew, as something else", self.local.service));
        }
        if self.source.is_none() && local.mode == MtlsMode::Strict {
            return Err("PeerAuthentication is now STRICT, and the connection is plaintext".to_owned());
        }
        Ok(local)
    }
}

/// Where a connection of this host leads, where that is outside of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beyond {
    /// To an address that is no service's.
    Address(SocketAddr),
    /// To the host of ServiceEntries that was dialled, at its port.
    Host(Key, u16),
    /// To a host of ServiceEntries to which a route led: the caller's Sidecar need not name it.
    Routed(Key),
}

impl Beyond {
    /// Of a connection that was opened to a service's port, and led to `target`; nothing where both are the mesh's.
    pub fn of_hosts((dialled, port): (&ServiceEntry, u16), target: &ServiceEntry) -> Option<Self> {
        match (&dialled.external, &target.external) {
            (Some(_), _) => Some(Self::Host(dialled.key.clone(), port)),
            (None, Some(_)) => Some(Self::Routed(target.key.clone())),
            (None, None) => None,
        }
    }
}

/// A connection of a service of this host out of the mesh.
#[derive(Debug, Clone)]
pub struct Outside {
    /// The service as which the caller is registered here.
    pub caller: Key,
    /// Where it leads.
    pub beyond: Beyond,
}

impl Outside {
    /// Why a state does not let the caller out there any more; nothing where it does, or holds nobody back.
    pub fn no_longer_allowed(&self, snapshot: &Snapshot) -> Option<ProxyError> {
        let caller = snapshot.registration(Some(&self.caller));
        let (host, port) = match &self.beyond {
            Beyond::Address(address) => {
                return (!snapshot.lets_out(caller, *address)).then_some(ProxyError::NotInRegistry(*address));
            }
            Beyond::Host(host, port) => (host, Some(*port)),
            Beyond::Routed(host) => (host, None),
        };
        if !snapshot.is_held(caller) {
            return None;
        }
        let from = snapshot.namespace_of(caller);
        let known = snapshot.service(host).filter(|service| service.is_for(from));
        if known.is_none_or(|service| port.is_some_and(|port| service.port_index(port).is_none())) {
            return Some(ProxyError::NoLongerInRegistry(host.clone()));
        }
        let (service, port) = (host.clone(), port?);
        let sidecar = snapshot.sidecar_against(caller, host, port)?.clone();
        Some(ProxyError::NotInSidecar { service, port, sidecar })
    }
}

/// One open connection.
#[derive(Debug)]
pub struct Open {
    number: u64,
    /// Nothing where requests are counted instead of bytes.
    counted: Option<Arc<Counted>>,
    /// With what it carries: where bytes are counted, bytes.
    delivered: Option<Delivered>,
    /// Who of this host goes where outside of the mesh.
    outside: Option<Outside>,
    closed: Notify,
    reason: Mutex<Option<ProxyError>>,
}

/// The open connections of one worker.
#[derive(Debug, Default)]
pub struct OpenConnections {
    connections: Arc<Mutex<HashMap<u64, Arc<Open>>>>,
    next: AtomicU64,
    emptied: Arc<Notify>,
}

/// An open connection's entry; it is taken out when this is dropped.
pub struct Entry {
    open: Arc<Open>,
    connections: Arc<Mutex<HashMap<u64, Arc<Open>>>>,
    emptied: Arc<Notify>,
}

impl OpenConnections {
    /// Enters a connection. `delivered` is there where this host's policies let it through.
    pub fn enter(&self, counted: Option<Arc<Counted>>, delivered: Option<Delivered>) -> Entry {
        self.enter_outside(counted, delivered, None)
    }

    /// The same of a connection that a service of this host opened. `outside` is there where it leads out of the mesh.
    pub fn enter_outside(
        &self,
        counted: Option<Arc<Counted>>,
        delivered: Option<Delivered>,
        outside: Option<Outside>,
    ) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (closed, reason) = (Notify::new(), Mutex::default());
        let open = Arc::new(Open { number, counted, delivered, outside, closed, reason });
        lock(&self.connections).insert(number, Arc::clone(&open));
        Entry { open, connections: Arc::clone(&self.connections), emptied: Arc::clone(&self.emptied) }
    }

    /// Adds what moved to the counters.
    pub fn flush(&self) {
        for counted in lock(&self.connections).values().filter_map(|open| open.counted.as_ref()) {
            counted.flush();
        }
    }

    /// Closes what the new state does not allow any more.
    pub fn judge(&self, snapshot: &Snapshot) {
        for open in lock(&self.connections).values() {
            open.judge(snapshot);
        }
    }

    /// Closes what came in under a certificate that is revoked.
    pub fn close_revoked(&self, revoked: &Revoked) {
        let of = |open: &Open| open.delivered.as_ref().and_then(|delivered| delivered.serial.clone());
        for open in lock(&self.connections).values() {
            if of(open).is_some_and(|serial| revoked.contains(&serial)) {
                open.close(ProxyError::CertificateRevoked);
            }
        }
    }

    /// Closes what came in under this certificate.
    pub fn close_of(&self, serial: &str) {
        for open in lock(&self.connections).values() {
            let shown = open.delivered.as_ref().and_then(|delivered| delivered.serial.as_deref());
            if shown == Some(serial) {
                open.close(ProxyError::CertificateRevoked);
            }
        }
    }

    /// Closes everything.
    pub fn close_all(&self) {
        for open in lock(&self.connections).values() {
            open.close(ProxyError::Draining);
        }
    }

    /// Ends when none is open of those that are now.
    pub async fn until_those_end(&self) {
        let next = self.next.load(Ordering::Relaxed);
        while lock(&self.connections).keys().any(|number| *number < next) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends when no connection is open.
    pub async fn until_empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if lock(&self.connections).is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

impl Entry {
    /// Decides again by the state in force, if that is not the one that let the connection through: it may have
    /// changed while the program was waited for, before this entry was there to be judged.
    pub fn judge_again(&self, decided_by: &Arc<Snapshot>, in_force: &ArcSwap<Snapshot>) {
        let now = in_force.load();
        if !Arc::ptr_eq(&now, decided_by) {
            self.open.judge(&now);
        }
    }

    /// Ends when the connection is to be closed, with the reason.
    pub async fn until_closed(&self) -> ProxyError {
        self.open.closed.notified().await;
        self.open.reason.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(ProxyError::Draining)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut connections = lock(&self.connections);
        connections.remove(&self.open.number);
        if connections.is_empty() {
            self.emptied.notify_waiters();
        }
    }
}

impl Open {
    fn judge(&self, snapshot: &Snapshot) {
        let carried = if self.counted.is_some() { Carried::Bytes } else { Carried::Requests };
        let delivered = self.delivered.as_ref();
        let reason = delivered.and_then(|delivered| delivered.no_longer_allowed(snapshot, carried));
        if let Some(reason) = reason {
            self.close(ProxyError::NoLongerAllowed(reason));
        }
        if let Some(reason) = self.outside.as_ref().and_then(|outside| outside.no_longer_allowed(snapshot)) {
            self.close(reason);
        }
    }

    fn close(&self, reason: ProxyError) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        // `notify_one` keeps the word for a connection that does not listen at this moment.
        self.closed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a request end when the state changes and no longer allows it.
#[derive(Clone)]
pub struct RequestWatch {
    changed: watch::Receiver<u64>,
}

impl RequestWatch {
    /// Begins to watch. To be called before the state is loaded by which the request is let through, so that no change in
    /// between is missed.
    pub fn begin(changed: &watch::Receiver<u64>) -> Self {
        let mut changed = changed.clone();
        changed.mark_unchanged();
        Self { changed }
    }

    /// Ends when the state in force no longer allows the request, with the reason.
    pub async fn until_forbidden(
        &mut self,
        (delivered, request): (&Delivered, &Request<'_>),
        in_force: &ArcSwap<Snapshot>,
    ) -> ProxyError {
        // Without the sender the agent is about to end.
        while self.changed.changed().await.is_ok() {
            let snapshot = in_force.load_full();
            if let Some(reason) = delivered.no_longer_allowed(&snapshot, Carried::Request(request)) {
                return ProxyError::NoLongerAllowed(reason);
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
