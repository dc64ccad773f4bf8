//! What an instance in the catalog comes to: one that an agent of this mesh registered, one of somebody else's, or
//! nothing that could be called.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::address::is_unreachable;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::Protocol;
use baremesh_model::workload::Labels;

use super::catalog::{Check, Instance};
use super::mark;
use crate::control::registration::Registration;
use crate::format::is_label;
use crate::resource::HostGrant;

/// The name that a port of a foreign instance has.
pub const PORT_NAME: &str = "consul";
/// The meta value that says what a foreign instance speaks.
const PROTOCOL: &str = "protocol";
/// The label for a tag that is no `key=value`, and its value.
const TAG_LABEL: &str = "consul-tag";
/// The label with the node's name.
const NODE_LABEL: &str = "consul-node";
/// The label with the datacenter.
const DATACENTER_LABEL: &str = "consul-datacenter";

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It takes calls.
    Well,
    /// Somebody who knows says that it does not.
    Ill,
    /// Nobody has heard of it, or of its machine, in time.
    Silent,
}

/// What an instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// An agent of this mesh is there.
    Agent {
        /// The host.
        host: Label,
        /// What it registered.
        registration: Box<Registration>,
    },
    /// Somebody else's.
    Foreign {
        /// Where it is.
        address: IpAddr,
        /// Its port.
        port: NonZeroU16,
        /// What it speaks, where it says so.
        protocol: Option<Protocol>,
        /// Labels: of tags, meta values, the node and the datacenter.
        labels: Labels,
        /// Its share of calls.
        weight: u32,
    },
}

/// What `instance` of `service` is, or why it can be nothing. An agent's addresses are those of its node in Consul, and those that
/// an operator granted to its host: what a registration claims beyond them does not count.
pub fn what(service: &Key, instance: &Instance, grants: &[HostGrant]) -> Result<What, String> {
    match mark::read(&instance.service.meta) {
        Some(Ok((host, mut registration))) if registration.service == *service => {
            registration.addresses = own_addresses(&host, &registration.addresses, instance, grants)?;
            Ok(What::Agent { host, registration: Box::new(registration) })
        }
        Some(Ok((_, registration))) => Err(format!("it says that it is of {}", registration.service)),
        Some(Err(reason)) => Err(format!("what an agent registered cannot be read: {reason}")),
        None => foreign(service, instance),
    }
}

fn own_addresses(
    host: &Label,
    claimed: &[IpAddr],
    instance: &Instance,
    grants: &[HostGrant],
) -> Result<Vec<IpAddr>, String> {
    let node = of_node(instance);
    let is_granted = |address: IpAddr| {
        let of_host = grants.iter().filter(|grant| grant.host.matches(host));
        of_host.flat_map(|grant| &grant.addresses).any(|granted| granted.covers(address))
    };
    let is_own = |address: &IpAddr| {
        is_unreachable(*address).is_none() && (node.contains(address) || is_granted(*address))
    };
    let own: Vec<IpAddr> = claimed.iter().copied().filter(is_own).collect();
    match own.is_empty() {
        true => Err(format!(
            "it says that it is at {}, and its node in Consul is at {}: if host {host} is there, grant it with `addresses` in a \
             HostGrant",
            listed(claimed),
            listed(&node)
        )),
        false => Ok(own),
    }
}

fn listed<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> String {
    let shown: Vec<_> = addresses.into_iter().map(ToString::to_string).collect();
    shown.join(", ")
}

/// The addresses of an instance's node, which its Consul agent has shown to the others.
pub(super) fn of_node(instance: &Instance) -> BTreeSet<IpAddr> {
    let node = &instance.node;
    let tagged =
        node.tagged_addresses.iter().filter(|(tag, _)| tag.starts_with("lan") || tag.starts_with("wan"));
    let all = tagged.map(|(_, address)| address).chain([&node.address]);
    all.filter_map(|text| text.parse::<IpAddr>().ok()).map(|address| address.to_canonical()).collect()
}

fn foreign(service: &Key, instance: &Instance) -> Result<What, String> {
    let registered = &instance.service;
    if !registered.kind.is_empty() {
        return Err(format!("it is a {} of Consul's own mesh", registered.kind));
    }
    let address = address(instance);
    let address: IpAddr = address.parse().map_err(|_| {
        format!("its address `{address}` is a name, and names are not resolved: register an IP address")
    })?;
    let address = address.to_canonical();
    if let Some(why) = is_unreachable(address) {
        return Err(format!("no other host reaches it at {address}: {why}"));
    }
    let port = u16::try_from(registered.port).ok().and_then(NonZeroU16::new);
    let port = port.ok_or_else(|| format!("its port is {}", registered.port))?;
    let warns = instance.checks.iter().any(|check| check.status == "warning");
    let weight = if warns { registered.weights.warning } else { registered.weights.passing };
    Ok(What::Foreign {
        address,
        port,
        protocol: registered.meta.get(PROTOCOL).and_then(|name| name.parse::<Protocol>().ok()),
        labels: labels(service, instance),
        weight: u32::try_from(weight).unwrap_or(1).max(1),
    })
}

/// The address of an instance as Consul has it: its own, else its node's.
fn address(instance: &Instance) -> &str {
    match instance.service.address.as_str() {
        "" => &instance.node.address,
        own => own,
    }
}

/// Whether an instance is elsewhere than at its node.
pub fn is_elsewhere(instance: &Instance, what: &What) -> bool {
    let node = of_node(instance);
    match what {
        What::Agent { registration, .. } => {
            !registration.addresses.iter().all(|address| node.contains(address))
        }
        What::Foreign { address, .. } => !node.contains(address),
    }
}

/// Labels, of which a later one does not replace an earlier one: meta values, then tags, then where it is. What cannot be a
/// label is left out.
fn labels(service: &Key, instance: &Instance) -> Labels {
    let registered = &instance.service;
    let meta = registered.meta.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let tags = registered.tags.iter().map(|tag| tag.split_once('=').unwrap_or((TAG_LABEL, tag.as_str())));
    let place = [
        (NODE_LABEL, instance.node.node.as_str()),
        (DATACENTER_LABEL, instance.node.datacenter.as_str()),
        ("app", service.name.as_str()),
    ];
    let mut labels = Labels::new();
    for (key, value) in meta.chain(tags).chain(place) {
        if is_label(key, value) {
            labels.entry(Arc::from(key)).or_insert_with(|| Arc::from(value));
        }
    }
    labels
}

/// How an instance is, by its checks.
pub fn standing(instance: &Instance) -> Standing {
    let critical = || instance.checks.iter().filter(|check| check.status == "critical");
    let of_node = |check: &&Check| check.service_id.is_empty();
    // `serfHealth` is what the other Consul agents think of the node's; maintenance is somebody's order.
    let is_order = |check: &Check| {
        check.id.starts_with("_node_maintenance") || check.id.starts_with("_service_maintenance")
    };
    let is_ours = instance.service.tags.iter().any(|tag| tag == mark::TAG);
    let is_said = |check: &Check| match (is_order(check), check.service_id.is_empty()) {
        (true, _) => true,
        (false, true) => check.id != "serfHealth",
        (false, false) => {
            !(is_ours && check.id == instance.service.id) || check.output.starts_with(mark::ILL)
        }
    };
    if critical().any(is_said) {
        Standing::Ill
    } else if critical().any(|check| of_node(&check) || !is_said(check)) {
        Standing::Silent
    } else {
        Standing::Well
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(value: &serde_json::Value) -> Instance {
        serde_json::from_value(value.clone()).expect("an instance")
    }

    fn key() -> Key {
        mark::service_of("db").expect("a service")
    }

    #[test]
    fn tags_and_meta_become_labels_and_what_cannot_be_called_is_nothing() {
        let one = |service: serde_json::Value| {
            let node = json!({ "Node": "n1", "Address": "10.0.0.5", "Datacenter": "dc1" });
            instance(&json!({ "Node": node, "Service": service, "Checks": null }))
        };
        let found = what(
            &key(),
            &one(json!({
                "ID": "db1", "Service": "db", "Port": 5432, "Tags": ["version=v2", "primary", "bad tag", "zone=x"],
                "Meta": { "zone": "a", "protocol": "mysql", "no label": "" }, "Weights": { "Passing": 5, "Warning": 1 },
            })),
            &[],
        );
        let Ok(What::Foreign { address, port, labels, weight, .. }) = found else { panic!("{found:?}") };
        assert_eq!((address.to_string().as_str(), port.get(), weight), ("10.0.0.5", 5432, 5));
        let shown: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected =
            "app=db consul-datacenter=dc1 consul-node=n1 consul-tag=primary protocol=mysql version=v2 zone=a";
        assert_eq!(shown.join(" "), expected);
        for (bad, part) in [
            (json!({ "Service": "db", "Port": 0 }), "port is 0"),
            (json!({ "Service": "db", "Port": 70000 }), "port is 70000"),
            (json!({ "Service": "db", "Port": 1, "Address": "db.example" }), "not resolved"),
            (json!({ "Service": "db", "Port": 1, "Address": "127.0.0.1" }), "reaches"),
            (json!({ "Service": "db", "Port": 1, "Kind": "connect-proxy" }), "Consul's own mesh"),
            (json!({ "Service": "db", "Port": 1, "Meta": { "baremesh-host": "h" } }), "cannot be read"),
        ] {
            let refused = what(&key(), &one(bad), &[]).expect_err(part);
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn what_others_registered_leads_to_no_host_s_own_ports_and_to_no_metadata() {
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            // As the instance's own, and as its node's.
            for (of_node, own) in [("10.0.0.5", address), (address, "")] {
                let found = instance(&json!({
                    "Node": { "Node": "n1", "Address": of_node },
                    "Service": { "Service": "db", "Port": 5432, "Address": own },
                }));
                let refused = what(&key(), &found, &[]).expect_err(address);
                assert!(refused.contains("no other host reaches it"), "{refused}");
            }
        }
        let found = instance(&json!({
            "Node": { "Node": "n1", "Address": "10.0.0.5" },
            "Service": { "Service": "db", "Port": 5432, "Address": "::ffff:10.0.0.6" },
        }));
        let Ok(What::Foreign { address, .. }) = what(&key(), &found, &[]) else { panic!("an address") };
        assert_eq!(address.to_string(), "10.0.0.6");
    }

    #[test]
    fn silence_is_told_from_what_somebody_says() {
        let check = |tags: &[&str], checks: serde_json::Value, expected: Standing| {
            let node = json!({ "Node": "n1", "Address": "10.0.0.5" });
            let service = json!({ "ID": "s", "Service": "db", "Port": 1, "Tags": tags });
            let instance = instance(&json!({ "Node": node, "Service": service, "Checks": checks }));
            assert_eq!(standing(&instance), expected, "{checks}");
        };
        let one = |id: &str, service: &str, status: &str, output: &str| json!([{ "CheckID": id, "ServiceID": service, "Status": status, "Output": output }]);
        check(&[], json!([]), Standing::Well);
        check(&[], one("x", "s", "warning", ""), Standing::Well);
        check(&[], one("x", "s", "critical", ""), Standing::Ill);
        check(&[], one("serfHealth", "", "critical", ""), Standing::Silent);
        check(&[], one("_node_maintenance", "", "critical", ""), Standing::Ill);
        check(&["baremesh"], one("s", "s", "critical", "TTL expired (last output …)"), Standing::Silent);
        check(&["baremesh"], one("s", "s", "critical", mark::ILL), Standing::Ill);
        check(&["baremesh"], one("other", "s", "critical", ""), Standing::Ill);
    }
}
