//! Any Sidecar that is valid.

use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::service::Protocol;
use baremesh_model::sidecar::{Egress, EgressHost, Ingress, Sidecar};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::{any_key, any_labels};

fn any_egress() -> impl Strategy<Value = Egress> {
    let namespace = prop_oneof![Just("*"), Just("."), Just("~"), Just("shop")];
    let name = prop_oneof![
        Just("*".to_owned()),
        "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}",
        Just("*.mesh.internal".to_owned())
    ];
    let host = (namespace, name)
        .prop_map(|(namespace, name)| EgressHost::parse(&format!("{namespace}/{name}")).expect("a host"));
    (option::of(1..=u16::MAX), vec(host, 1..4)).prop_map(|(port, hosts)| Egress { port, hosts })
}

/// Each port once.
fn any_ingress() -> impl Strategy<Value = Vec<Ingress>> {
    let protocol = option::of(prop_oneof![Just(Protocol::Tcp), Just(Protocol::Http), Just(Protocol::Grpc)]);
    btree_map(1..=u16::MAX, protocol, 1..4)
        .prop_map(|ports| ports.into_iter().map(|(port, protocol)| Ingress { port, protocol }).collect())
}

pub(in crate::format::tests) fn any_sidecar() -> BoxedStrategy<Sidecar> {
    let outbound = prop_oneof![Just(OutboundPolicy::AllowAny), Just(OutboundPolicy::RegistryOnly)];
    let egress = option::of(vec(any_egress(), 1..3));
    (any_key(), option::of(any_labels()), egress, option::of(any_ingress()), option::of(outbound))
        .prop_map(|(key, selector, egress, ingress, outbound)| Sidecar {
            key,
            selector,
            egress,
            ingress,
            outbound,
        })
        .boxed()
}
