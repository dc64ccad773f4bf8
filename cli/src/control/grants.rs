//! Which services each host may have: what its token granted, and what `HostGrant` resources grant to its name. Kept
//! in memory, because every registration asks; made anew when a host joins, is shut out, or resources change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use baremesh_ca::ledger::LedgerError;
use baremesh_ca::service::CaService;
use baremesh_model::grant::Grant;
use baremesh_model::identity::Identity;
use baremesh_model::name::Label;
use baremesh_registry::resource::HostGrant;

/// The grants of all hosts that are members.
pub(super) struct GrantBook {
    ca: Arc<CaService>,
    resources: Mutex<Vec<HostGrant>>,
    hosts: RwLock<BTreeMap<Label, Vec<Grant>>>,
}

impl GrantBook {
    pub(super) fn new(ca: Arc<CaService>) -> Self {
        Self { ca, resources: Mutex::default(), hosts: RwLock::default() }
    }

    /// Takes the `HostGrant`s of a set, and returns those before. Blocks on the ledger.
    pub(super) fn set_resources(&self, grants: Vec<HostGrant>) -> Result<Vec<HostGrant>, LedgerError> {
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *resources, grants);
        match self.renew(&resources) {
            Ok(()) => Ok(before),
            Err(error) => {
                *resources = before;
                Err(error)
            }
        }
    }

    /// Takes up who has joined, or was shut out. Blocks on the ledger.
    pub(super) fn refresh(&self) -> Result<(), LedgerError> {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        self.renew(&resources)
    }

    /// The resources' lock is held, so that what is read last is also written last.
    fn renew(&self, resources: &[HostGrant]) -> Result<(), LedgerError> {
        let (mut by_resource, mut all) = (BTreeMap::new(), BTreeMap::new());
        for host in self.ca.ledger().hosts()? {
            let granted = resources.iter().filter(|grant| grant.host.matches(&host.name));
            let granted: Vec<Grant> = granted.flat_map(|grant| grant.services.iter().cloned()).collect();
            if !host.revoked {
                let mut grants = host.grants;
                grants.extend(granted.iter().cloned());
                grants.sort();
                grants.dedup();
                all.insert(host.name.clone(), grants);
            }
            by_resource.insert(host.name, granted);
        }
        self.ca.set_grants(by_resource);
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }

    /// Whether a host may have an identity.
    pub(super) fn allows(&self, host: &Label, identity: &Identity) -> bool {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host).is_some_and(|grants| grants.iter().any(|grant| grant.allows(identity)))
    }

    /// What a host may have, as lists show it.
    pub(super) fn of(&self, host: &Label) -> Vec<Grant> {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned().unwrap_or_default()
    }
}
