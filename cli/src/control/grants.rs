//! Which services and addresses each host may have: what its token granted, and what `HostGrant` resources grant to
//! its name. Kept in memory, because every registration asks; made anew when a host joins, is shut out, or resources
//! change.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use baremesh_ca::ledger::LedgerError;
use baremesh_ca::service::{CaService, Refusal};
use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::identity::Identity;
use baremesh_model::name::Label;
use baremesh_registry::resource::HostGrant;

/// Who takes certificates back that are granted no longer, in the audit.
const TAKEN_BACK_BY: &str = "HostGrants";

/// The grants of all hosts that are members.
pub(super) struct GrantBook {
    ca: Arc<CaService>,
    resources: Mutex<Vec<HostGrant>>,
    hosts: RwLock<BTreeMap<Label, Granted>>,
    /// Whether certificates may be out there that the grants of now do not give: after a change, and at a start.
    owing: AtomicBool,
}

/// What one host may have.
#[derive(Debug, Clone, Default)]
pub(super) struct Granted {
    pub(super) services: Vec<Grant>,
    pub(super) addresses: Vec<AddressGrant>,
}

impl Granted {
    fn add(&mut self, services: &[Grant], addresses: &[AddressGrant]) {
        self.services.extend_from_slice(services);
        self.services.sort();
        self.services.dedup();
        self.addresses.extend_from_slice(addresses);
        self.addresses.sort();
        self.addresses.dedup();
    }
}

impl GrantBook {
    pub(super) fn new(ca: Arc<CaService>) -> Self {
        Self { ca, resources: Mutex::default(), hosts: RwLock::default(), owing: AtomicBool::new(true) }
    }

    /// Takes the `HostGrant`s of a set, and returns those before. Blocks on the ledger.
    pub(super) fn set_resources(&self, grants: Vec<HostGrant>) -> Result<Vec<HostGrant>, LedgerError> {
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *resources, grants);
        match self.renew(&resources) {
            Ok(()) => {
                self.owing.fetch_or(*resources != before, Ordering::SeqCst);
                Ok(before)
            }
            Err(error) => {
                *resources = before;
                Err(error)
            }
        }
    }

    /// Whether `take_back` has anything to look at.
    pub(super) fn is_owing(&self) -> bool {
        self.owing.load(Ordering::SeqCst)
    }

    /// Revokes the certificates of what is granted no longer, for the grants of a set that is in force, and says how many. Of
    /// grants that cannot be read, none is taken for gone. Blocks on the ledger.
    pub(super) fn take_back(&self, found: &str) -> Result<usize, Refusal> {
        let resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        self.renew(&resources)?;
        let why = format!(", which the host is no longer granted{found}");
        let count = self.ca.revoke_ungranted((TAKEN_BACK_BY, &why), SystemTime::now())?;
        self.owing.store(false, Ordering::SeqCst);
        Ok(count)
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
            let mut granted = Granted::default();
            for grant in resources.iter().filter(|grant| grant.host.matches(&host.name)) {
                granted.add(&grant.services, &grant.addresses);
            }
            by_resource.insert(host.name.clone(), granted.services.clone());
            if !host.revoked {
                granted.add(&host.grants, &host.addresses);
                all.insert(host.name, granted);
            }
        }
        self.ca.set_grants(by_resource);
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }

    /// Whether a host may have an identity.
    pub(super) fn allows(&self, host: &Label, identity: &Identity) -> bool {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host).is_some_and(|granted| granted.services.iter().any(|grant| grant.allows(identity)))
    }

    /// Whether a host may say that it is at an address from which it does not speak.
    pub(super) fn covers(&self, host: &Label, address: IpAddr) -> bool {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host).is_some_and(|granted| granted.addresses.iter().any(|grant| grant.covers(address)))
    }

    /// What a host may have, as lists show it.
    pub(super) fn of(&self, host: &Label) -> Granted {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned().unwrap_or_default()
    }
}
