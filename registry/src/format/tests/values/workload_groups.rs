//! Any WorkloadGroup that is valid.

use std::sync::Arc;
use std::time::Duration;

use baremesh_model::health::{Schedule, Thresholds};
use baremesh_model::workload::Locality;
use baremesh_model::workload_group::{HttpGet, Look, Probe, ProbePort, WorkloadGroup};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::{any_key, any_label, any_labels, any_port};

fn any_probe_port() -> impl Strategy<Value = Option<ProbePort>> {
    option::of(prop_oneof![
        any_port().prop_map(ProbePort::Number),
        "[a-z][a-z0-9-]{0,8}".prop_map(|name| ProbePort::Name(name.as_str().into())),
    ])
}

fn any_look() -> impl Strategy<Value = Look> {
    let header = ("[a-z-]{1,8}", "[ -~]{0,8}");
    let header = header.prop_map(|(name, value)| (Arc::from(name.as_str()), Arc::from(value.as_str())));
    let get = ("/[a-z?=/]{0,8}", any_probe_port(), any::<bool>(), vec(header, 0..3));
    let get = get.prop_map(|(path, port, https, headers)| HttpGet {
        path: path.as_str().into(),
        port,
        https,
        headers,
    });
    prop_oneof![
        get.prop_map(Look::HttpGet),
        any_probe_port().prop_map(|port| Look::TcpSocket { port }),
        (any_probe_port(), "[a-z.]{0,8}")
            .prop_map(|(port, service)| Look::Grpc { port, service: service.as_str().into() }),
    ]
}

fn any_probe() -> impl Strategy<Value = Probe> {
    let times = (0..86_400_u64, 1..=300_u64, 1..=86_400_u64, 1..=100_u32, 1..=100_u32);
    let looked_at = (any_look(), times).prop_map(|(look, (delay, timeout, period, success, failure))| {
        let [initial_delay, timeout, period] = [delay, timeout, period].map(Duration::from_secs);
        let schedule = Schedule { initial_delay, timeout, period };
        Probe { look, schedule, thresholds: Thresholds { success, failure } }
    });
    let told = (1_000..86_400_000_u64).prop_map(|milliseconds| Probe {
        look: Look::Ttl(Duration::from_millis(milliseconds)),
        schedule: Schedule::default(),
        thresholds: Thresholds::default(),
    });
    prop_oneof![looked_at, told]
}

pub(in crate::format::tests) fn any_workload_group() -> BoxedStrategy<WorkloadGroup> {
    let ports = btree_map("[a-z]([a-z0-9-]{0,6}[a-z0-9])?", any_port(), 0..3);
    let template = (ports, option::of("[a-z]{1,5}(/[a-z]{1,5}){0,2}"), option::of(1..=u32::MAX));
    (any_key(), option::of(any_labels()), template, option::of(any_label()), option::of(any_probe()))
        .prop_map(|(key, labels, (ports, locality, weight), service_account, probe)| WorkloadGroup {
            key,
            labels: labels.unwrap_or_default(),
            ports: ports.into_iter().map(|(name, port)| (name.as_str().into(), port)).collect(),
            locality: locality.as_deref().map(Locality::parse),
            weight,
            service_account,
            probe,
        })
        .boxed()
}
