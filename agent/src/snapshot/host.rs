//! This host: its name, its addresses and why it is these, and its network.

use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::name::Label;

/// This host, as the mesh knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, unique in the mesh.
    pub name: Label,
    /// The addresses at which other hosts reach its agent, the preferred one first.
    pub addresses: Vec<IpAddr>,
    /// Why it is these, in words.
    pub why: Arc<str>,
    /// The network that it is in, where it says so.
    pub network: Option<HostNetwork>,
}

/// The network of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// Its name.
    pub name: Label,
    /// What this host does for it.
    pub role: NetworkRole,
}

/// What a host does for its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkRole {
    /// It is in it.
    Member,
    /// It takes connections from outside to the agents in it as well.
    Gateway,
}

impl Host {
    /// Whether it takes connections from outside to the agents of its network.
    pub fn is_gateway(&self) -> bool {
        self.network.as_ref().is_some_and(|network| network.role == NetworkRole::Gateway)
    }

    /// The network that it says it is in.
    pub fn network_name(&self) -> Option<&Label> {
        self.network.as_ref().map(|network| &network.name)
    }
}
