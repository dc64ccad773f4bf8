//! Any Gateway that is valid.

use std::num::NonZeroU16;
use std::sync::Arc;

use baremesh_model::gateway::{Carries, Gateway, Server, ServerHost, ServerProtocol};
use baremesh_model::name::Label;
use baremesh_model::virtual_service::HostPattern;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{any_key, any_labels};

fn any_host() -> impl Strategy<Value = ServerHost> {
    let namespace = option::of("[a-z]{1,5}".prop_map(|text| Label::new(&text).expect("a label")));
    let name = prop_oneof![Just("*".to_owned()), "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}", "\\*\\.[a-z]{1,4}\\.com",];
    (namespace, name).prop_map(|(namespace, name)| ServerHost {
        namespace,
        host: HostPattern::new(&name).expect("a host"),
    })
}

fn any_server() -> impl Strategy<Value = Server> {
    let name = || option::of("[a-z]{1,6}".prop_map(Arc::from));
    (1..=u16::MAX, name(), select(ServerProtocol::ALL.to_vec()), name(), vec(any_host(), 1..4)).prop_map(
        |(port, port_name, protocol, name, mut hosts)| {
            if protocol.carries() == Carries::Bytes {
                hosts.iter_mut().for_each(|host| host.host = HostPattern::Any);
            }
            let port = NonZeroU16::new(port).expect("a port");
            Server { port, port_name, protocol, name, hosts }
        },
    )
}

pub(in crate::format::tests) fn any_gateway() -> BoxedStrategy<Gateway> {
    let selector = any_labels().prop_map(|mut labels| {
        labels.entry("istio".into()).or_insert_with(|| "egressgateway".into());
        labels
    });
    (any_key(), selector, vec(any_server(), 1..4))
        .prop_map(|(key, selector, servers)| Gateway { key, selector, servers })
        .boxed()
}
