//! All hosts of a mesh's entries. Entries of one namespace for one host are one host: each adds the ports that those
//! before it, by key, do not have.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ServiceEntry;
use crate::name::Key;
use crate::service::{Service, ServicePort};
use crate::virtual_address::VirtualRanges;

/// One host of a namespace's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalHost {
    /// The namespace and the host.
    pub key: Key,
    /// The host as written, which may begin with `*.`.
    pub name: Arc<str>,
    /// The entries that it is made of, at least one, by key.
    pub entries: Vec<Arc<ServiceEntry>>,
    /// Its ports, each as the first entry has it that does.
    pub ports: Vec<HostPort>,
    /// Virtual addresses: its own, or those that entries state.
    pub virtual_addresses: Vec<IpAddr>,
    /// Whether the virtual addresses are those that its name hashes to, because nobody says others.
    pub is_hashed: bool,
    /// Addresses outside the mesh's virtual ranges.
    pub addresses: Vec<IpNet>,
}

/// One port of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The port.
    pub port: ServicePort,
    /// The entry that it is from.
    pub entry: Arc<ServiceEntry>,
}

impl ExternalHost {
    /// The host as a service is declared, as far as that goes: name, ports, addresses.
    pub fn as_service(&self) -> Service {
        let first = &self.entries[0];
        Service {
            key: self.key.clone(),
            ports: self.ports.iter().map(|port| port.port.clone()).collect(),
            selector: None,
            service_account: first.key.name.clone(),
            addresses: self.virtual_addresses.clone(),
            federated: first.identity(),
        }
    }

    /// Whether another host's key is of one of the same entries, whose addresses are all of their hosts'.
    pub fn shares_addresses_with(&self, other: &Key, entries: &BTreeMap<Key, Arc<ServiceEntry>>) -> bool {
        let Some(name) = other.as_host() else { return false };
        let of_other = |entry: &Arc<ServiceEntry>| {
            other.namespace == entry.key.namespace && entry.host_names().any(|host| *host == *name)
        };
        self.entries.iter().any(|own| entries.get(&own.key).is_some_and(of_other))
    }
}

/// Every host. Those without addresses get assigned virtual ones, else those that their names hash to.
pub fn hosts(
    entries: &BTreeMap<Key, Arc<ServiceEntry>>,
    ranges: &VirtualRanges,
) -> BTreeMap<Key, ExternalHost> {
    let mut all: BTreeMap<Key, ExternalHost> = BTreeMap::new();
    for entry in entries.values() {
        for name in entry.host_names() {
            let key = entry.key_of(&name);
            let host = all.entry(key.clone()).or_insert_with(|| ExternalHost {
                key,
                name: Arc::clone(&name),
                entries: Vec::new(),
                ports: Vec::new(),
                virtual_addresses: Vec::new(),
                is_hashed: false,
                addresses: Vec::new(),
            });
            host.entries.push(Arc::clone(entry));
            for port in &entry.ports {
                if host.ports.iter().all(|known| known.port.port != port.port) {
                    host.ports.push(HostPort { port: port.clone(), entry: Arc::clone(entry) });
                }
            }
            for network in &entry.addresses {
                let alone = network.prefix_len() == network.max_prefix_len();
                if alone && ranges.contains(network.addr()) {
                    host.virtual_addresses.push(network.addr());
                } else {
                    host.addresses.push(*network);
                }
            }
        }
    }
    for host in all.values_mut() {
        let needs = host.addresses.is_empty() && host.virtual_addresses.is_empty();
        if needs && host.entries.iter().any(|entry| entry.needs_virtual_addresses()) {
            let assigned = host.entries.iter().filter_map(|entry| entry.assigned.get(&host.name)).flatten();
            host.virtual_addresses = assigned.copied().filter(|address| ranges.contains(*address)).collect();
            if host.virtual_addresses.is_empty() {
                host.virtual_addresses = ranges.hashed(&host.key);
                host.is_hashed = true;
            }
        }
        host.virtual_addresses.sort();
        host.virtual_addresses.dedup();
        host.addresses.sort();
        host.addresses.dedup();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Label;
    use crate::service::Protocol;
    use crate::service_entry::{Endpoints, Location, Resolution};
    use crate::virtual_service::{HostPattern, Visibility};

    fn entry(name: &str, hosts: &[&str], ports: &[u16], addresses: &[&str]) -> Arc<ServiceEntry> {
        let label = |text: &str| Label::new(text).expect("a label");
        let port = |number: &u16| {
            let port = (*number).try_into().expect("a port");
            ServicePort { port, target_port: port, protocol: Protocol::Tcp, name: None }
        };
        Arc::new(ServiceEntry {
            key: Key::new(label("shop"), label(name)),
            hosts: hosts.iter().map(|host| HostPattern::new(host).expect("a host")).collect(),
            addresses: addresses.iter().map(|text| text.parse().expect("a network")).collect(),
            ports: ports.iter().map(port).collect(),
            location: Location::External,
            resolution: Resolution::Dns,
            endpoints: Endpoints::Listed(Vec::new()),
            subject_alt_names: Vec::new(),
            export_to: Visibility::Everywhere,
            assigned: BTreeMap::new(),
        })
    }

    fn hosts_of(entries: &[Arc<ServiceEntry>]) -> BTreeMap<String, ExternalHost> {
        let entries = entries.iter().map(|entry| (entry.key.clone(), Arc::clone(entry))).collect();
        let hosts = hosts(&entries, &VirtualRanges::default());
        hosts.into_iter().map(|(key, host)| (key.to_string(), host)).collect()
    }

    #[test]
    fn entries_of_one_namespace_for_one_host_are_one_host() {
        let hosts = hosts_of(&[
            entry("a", &["api.example.com", "*.example.com"], &[80, 443], &[]),
            entry("b", &["api.example.com"], &[443, 8080], &[]),
        ]);
        assert_eq!(hosts.len(), 2);
        let api = &hosts["shop/api.example.com"];
        let ports: Vec<_> =
            api.ports.iter().map(|port| (port.port.port.get(), port.entry.key.name.as_str())).collect();
        assert_eq!(ports, [(80, "a"), (443, "a"), (8080, "b")]);
        assert_ne!(api.virtual_addresses, hosts["shop/*.example.com"].virtual_addresses);
    }

    #[test]
    fn only_hosts_without_addresses_get_virtual_ones() {
        let check = |addresses: &[&str], expected: (usize, usize)| {
            let hosts = hosts_of(&[entry("a", &["api.example.com"], &[80], addresses)]);
            let host = &hosts["shop/api.example.com"];
            assert_eq!((host.virtual_addresses.len(), host.addresses.len()), expected, "{addresses:?}");
        };
        check(&[], (2, 0));
        check(&["10.0.0.0/8"], (0, 1));
        check(&["240.240.1.2/32"], (1, 0));
        check(&["240.240.1.2/32", "10.0.0.1/32"], (1, 1));
    }

    #[test]
    fn what_was_assigned_goes_before_the_hash() {
        let mut one = (*entry("a", &["api.example.com"], &[80], &[])).clone();
        let assigned: IpAddr = "240.240.7.7".parse().expect("an address");
        let elsewhere: IpAddr = "10.0.0.1".parse().expect("an address");
        one.assigned.insert("api.example.com".into(), vec![assigned, elsewhere]);
        assert_eq!(hosts_of(&[Arc::new(one)])["shop/api.example.com"].virtual_addresses, [assigned]);
    }
}
