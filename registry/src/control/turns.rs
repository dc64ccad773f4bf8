//! One change after another: each is stored, applied and published before the next is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use baremesh_model::name::Label;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};

use super::catalog::{Change, Declared};
use super::memory::Core;
use super::message::Unknown;
use super::ownership::NotOwn;
use super::server::{ControlError, Settings};
use super::store::{Store, StoreError};

/// What the handles share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) unknown: Unknown,
    pub(super) failed_sessions: AtomicU64,
    /// The newest version; `None` until there are resources, so that no agent is told of an empty mesh.
    pub(super) version: watch::Sender<Option<u64>>,
    /// Places for pushes of a whole state and the like.
    pub(super) large_pushes: Arc<Semaphore>,
    pub(super) store: Store,
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    pub(super) core: Mutex<Core>,
}

impl Shared {
    /// The state. Held for computations only, never across the disk or the network.
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, version: u64) {
        self.version.send_if_modified(|published| {
            let news = published.is_some_and(|published| published != version);
            if news {
                *published = Some(version);
            }
            news
        });
    }

    pub(super) fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() { Ok(()) } else { self.store.commit(changes) }
    }

    /// Stores and applies changes, and publishes what follows from them.
    pub(super) fn change(&self, changes: &[Change], live: Option<(&Label, bool)>) -> Result<(), StoreError> {
        self.commit(changes)?;
        self.apply(changes, live);
        Ok(())
    }

    /// Applies changes, and publishes what follows from them.
    pub(super) fn apply(&self, changes: &[Change], live: Option<(&Label, bool)>) {
        let mut core = self.core();
        let mut effects = Arc::make_mut(&mut core.catalog).apply(changes);
        if let Some((host, live)) = live {
            effects.endpoints.extend(Arc::make_mut(&mut core.catalog).mark(host, live).endpoints);
        }
        core.publish(&effects, &self.settings.format);
        let other = |change: &Change| !matches!(change, Change::Health { .. });
        let reconsider = changes.iter().any(other) && core.catalog.holds_back();
        let declared = reconsider.then(|| core.catalog.declared().clone());
        let version = core.state.version();
        drop(core);
        self.publish(version);
        // What contradicted a registration that was held back may be gone.
        if let Some(declared) = declared
            && let Err(error) = self.redeclare(declared, None)
        {
            tracing::warn!(%error, "registrations that were held back stay so");
        }
    }

    pub(super) fn redeclare(
        &self,
        declared: Declared,
        resources: Option<BTreeMap<String, Value>>,
    ) -> Result<(), ControlError> {
        let allowed = &*self.settings.allowed;
        // Nobody else changes the catalog: this is this change's turn.
        let before = self.core().catalog.clone();
        let (catalog, changes) = before.redeclare(declared, &|h, i| allowed(h, i), SystemTime::now())?;
        self.commit(&changes)?;
        let mut core = self.core();
        core.catalog = Arc::new(catalog);
        if let Some(resources) = resources {
            core.resources = resources;
        }
        core.publish_all(&self.settings.format);
        let version = core.state.version();
        let hosts = core.catalog.hosts().keys().cloned().collect();
        drop(core);
        self.publish(version);
        // With the resources, grants of addresses may have changed, or registrations that were held back be back.
        Ok(self.revise(&hosts)?)
    }

    /// Which of the addresses are taken for the host's. Asks the grants, which may block.
    pub(super) fn check(
        &self,
        host: &Label,
        addresses: BTreeSet<IpAddr>,
    ) -> BTreeMap<IpAddr, Result<(), NotOwn>> {
        let granted: BTreeSet<IpAddr> =
            addresses.iter().copied().filter(|address| (self.settings.addresses)(host, *address)).collect();
        let core = self.core();
        let check =
            |address: IpAddr| core.speakers.check(host, address, &|_, asked| granted.contains(&asked));
        addresses.into_iter().map(|address| (address, check(address))).collect()
    }

    /// Looks anew at the addresses that hosts registered, since who speaks from where, or what is granted, is another
    /// now. What is no longer a host's goes out of its registrations, and its session ends, so that its agent registers
    /// anew and learns why. Of a host that is not connected, only what another one speaks from goes.
    pub(super) fn revise(&self, hosts: &BTreeSet<Label>) -> Result<(), StoreError> {
        for host in hosts {
            let (named, connected) = {
                let core = self.core();
                let Some(entry) = core.catalog.hosts().get(host) else { continue };
                let known = entry.registrations.values().flat_map(|known| &known.registration.addresses);
                (known.copied().collect(), core.has_registered(host))
            };
            let mut faults = self.check(host, named);
            faults.retain(|_, fault| match fault {
                Err(NotOwn::Others { .. }) => true,
                Err(NotOwn::NotShown { .. }) => connected,
                Ok(()) => false,
            });
            if faults.is_empty() {
                continue;
            }
            for fault in faults.values().filter_map(|fault| fault.as_ref().err()) {
                tracing::warn!(%host, "an address is taken out of the host's registrations: {fault}");
            }
            let catalog = self.core().catalog.clone();
            let services = catalog.hosts().get(host).into_iter().flat_map(|entry| entry.registrations.keys());
            let gone = |address: IpAddr| faults.contains_key(&address);
            let without = |service| catalog.without(host, service, &gone, SystemTime::now());
            let changes: Vec<_> = services.flat_map(without).collect();
            // A catalog that somebody else holds would be copied to be changed.
            drop(catalog);
            self.change(&changes, None)?;
            self.core().interrupt(host);
        }
        Ok(())
    }

    /// Takes the endpoints of hosts out whose leases have ended.
    pub(super) fn expire(&self, mut core: MutexGuard<'_, Core>, expired: &[Label]) {
        for host in expired {
            tracing::warn!(%host, "nothing was heard from the host for a whole lease: its endpoints are left out");
            let effects = Arc::make_mut(&mut core.catalog).mark(host, false);
            core.publish(&effects, &self.settings.format);
        }
        core.forget_idle();
        let version = core.state.version();
        drop(core);
        self.publish(version);
    }
}
