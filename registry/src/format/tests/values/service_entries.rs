//! Any ServiceEntry that is valid.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::service::{Protocol, ServicePort};
use baremesh_model::service_entry::{Address, Endpoints, EntryEndpoint, Location, Resolution, ServiceEntry};
use baremesh_model::virtual_service::{HostPattern, Visibility};
use baremesh_model::workload::Locality;
use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::{any_key, any_label, any_labels, any_port};

fn any_hosts() -> impl Strategy<Value = Vec<HostPattern>> {
    let host = "(\\*\\.)?[a-z]{1,8}\\.[a-z]{1,8}(\\.[a-z]{1,5})?";
    btree_set(host, 1..4)
        .prop_map(|all| all.iter().map(|host| HostPattern::new(host).expect("a host")).collect())
}

fn any_network() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        Just("10.1.0.0/16"),
        Just("192.0.2.7/32"),
        Just("2001:db8::/32"),
        Just("2001:db8::7/128"),
        Just("240.240.1.1/32")
    ]
    .prop_map(|text| text.parse().expect("a network"))
}

fn any_endpoint() -> impl Strategy<Value = EntryEndpoint> {
    let address = prop_oneof![
        Just(Address::Ip(IpAddr::from([192, 0, 2, 9]))),
        Just(Address::Ip("2001:db8::9".parse().expect("an address"))),
    ];
    let locality = prop_oneof![Just(""), Just("eu"), Just("eu/a/1"), Just("eu//1")];
    (address, any_labels(), locality, 1..9_u32, option::of(any_port())).prop_map(
        |(address, labels, locality, weight, port)| EntryEndpoint {
            address,
            ports: port.map(|port| (Arc::from("p0"), port)).into_iter().collect(),
            labels,
            locality: Locality::parse(locality),
            weight,
        },
    )
}

fn any_visibility() -> impl Strategy<Value = Visibility> {
    option::of(btree_set(any_label(), 0..3)).prop_map(|namespaces| match namespaces {
        None => Visibility::Everywhere,
        Some(namespaces) => Visibility::Namespaces(namespaces),
    })
}

/// Ports of which the first has the name that endpoints map.
fn any_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let protocol = prop_oneof![
        Just(Protocol::Auto),
        Just(Protocol::Http),
        Just(Protocol::Https),
        Just(Protocol::Tls),
        Just(Protocol::Tcp)
    ];
    (btree_set(any_port(), 1..4), any_port(), protocol).prop_map(|(numbers, target, protocol)| {
        let port = |(index, port)| ServicePort {
            port,
            target_port: if index == 0 { target } else { port },
            protocol,
            name: Some(format!("p{index}").into()),
        };
        numbers.into_iter().enumerate().map(port).collect()
    })
}

pub(super) fn any_service_entry() -> impl Strategy<Value = ServiceEntry> {
    let endpoints = prop_oneof![
        vec(any_endpoint(), 0..3).prop_map(Endpoints::Listed),
        any_labels().prop_map(Endpoints::Selected)
    ];
    let names = vec("[a-z]{1,8}\\.example\\.com", 0..3);
    let location = prop_oneof![Just(Location::External), Just(Location::Internal)];
    let head = (any_key(), any_hosts(), vec(any_network(), 0..3), any_ports(), location);
    (head, endpoints, names, any_visibility(), any::<bool>()).prop_map(
        |((key, hosts, addresses, ports, location), endpoints, names, export_to, assigned)| {
            let mut entry = ServiceEntry {
                key,
                hosts,
                addresses,
                ports,
                location,
                resolution: Resolution::Static,
                endpoints,
                subject_alt_names: names.iter().map(|name| name.as_str().into()).collect(),
                export_to,
                assigned: BTreeMap::new(),
            };
            if assigned {
                let host = entry.host_names().next().expect("at least one");
                entry.assigned.insert(host, vec![IpAddr::from([240, 240, 3, 4])]);
            }
            entry
        },
    )
}
