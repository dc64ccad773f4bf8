//! Any Sidecar that is valid.

use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::sidecar::{Egress, EgressHost, Sidecar};
use proptest::collection::vec;
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

pub(in crate::format::tests) fn any_sidecar() -> BoxedStrategy<Sidecar> {
    let outbound = prop_oneof![Just(OutboundPolicy::AllowAny), Just(OutboundPolicy::RegistryOnly)];
    (any_key(), option::of(any_labels()), option::of(vec(any_egress(), 1..3)), option::of(outbound))
        .prop_map(|(key, selector, egress, outbound)| Sidecar { key, selector, egress, outbound })
        .boxed()
}
