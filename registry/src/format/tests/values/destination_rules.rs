//! Any DestinationRule that is valid.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::decimal::Decimal;
use baremesh_model::destination_rule::*;
use baremesh_model::outlier::OutlierDetection;
use baremesh_model::retry_budget::RetryBudget;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::{any_key, any_label, any_labels};

fn any_text() -> impl Strategy<Value = Arc<str>> {
    "[a-z0-9][a-z0-9_-]{0,8}".prop_map(|text| text.as_str().into())
}

fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (1..=100_000_u64).prop_map(Duration::from_millis),
        (1..=3600_u64).prop_map(Duration::from_secs),
        (1_000_000..=9_000_000_000_u64).prop_map(Duration::from_nanos),
    ]
}

fn any_decimal(most: u64) -> impl Strategy<Value = Decimal> {
    (0..=most * 1000)
        .prop_map(|number| format!("{}.{:03}", number / 1000, number % 1000).parse().expect("a number"))
}

fn any_count() -> impl Strategy<Value = Option<u32>> {
    option::of(0..=i32::MAX as u32)
}

fn any_hash() -> BoxedStrategy<ConsistentHash> {
    let attributes = vec((any_text(), option::of(any_text())), 0..2);
    let ttl = option::of(prop_oneof![Just(Duration::ZERO), any_time()]);
    let cookie = (any_text(), option::of(any_text()), ttl, attributes)
        .prop_map(|(name, path, ttl, attributes)| Cookie { name, path, ttl, attributes });
    let key = prop_oneof![
        any_text().prop_map(HashKey::Header),
        cookie.prop_map(HashKey::Cookie),
        Just(HashKey::SourceIp),
        any_text().prop_map(HashKey::QueryParameter),
    ];
    let table = prop_oneof![
        (1..=HashTable::MAX_RING_SIZE).prop_map(|minimum_size| HashTable::Ring { minimum_size }),
        Just(HashTable::Maglev { size: 4099 }),
        Just(HashTable::Maglev { size: HashTable::MAX_MAGLEV_SIZE }),
    ];
    (key, table).prop_map(|(key, table)| ConsistentHash { key, table }).boxed()
}

fn any_locality() -> BoxedStrategy<LocalitySetting> {
    let pattern =
        || "[a-z]{1,4}(/[a-z]{1,4})?(/\\*)?".prop_map(|text| LocalityPattern::new(&text).expect("a pattern"));
    let distribute = (pattern(), 1..100_u32).prop_map(|(from, first)| {
        let to = |text, weight| (LocalityPattern::new(text).expect("a pattern"), weight);
        Distribute { from, to: vec![to("a/*", first), to("b", 100 - first)] }
    });
    let failover =
        any_text().prop_map(|from| RegionFailover { to: format!("{from}x").as_str().into(), from });
    let label = (any_text(), option::of(any_text())).prop_map(|(key, value)| PriorityLabel { key, value });
    let spread = prop_oneof![
        vec(distribute, 1..3).prop_map(Spread::Distribute),
        (vec(failover, 0..3), vec(label, 0..3))
            .prop_map(|(regions, priority)| Spread::Failover { regions, priority }),
    ];
    (option::of(any::<bool>()), spread)
        .prop_map(|(enabled, spread)| LocalitySetting { enabled, spread })
        .boxed()
}

fn any_load_balancer() -> BoxedStrategy<LoadBalancer> {
    let algorithm = prop_oneof![
        Just(Algorithm::LeastRequest),
        Just(Algorithm::RoundRobin),
        Just(Algorithm::Random),
        Just(Algorithm::Passthrough),
        any_hash().prop_map(Algorithm::ConsistentHash),
    ];
    let warmup = (any_time(), any_decimal(100), any_decimal(1000))
        .prop_map(|(duration, minimum_percent, aggression)| Warmup { duration, minimum_percent, aggression });
    (algorithm, option::of(warmup), option::of(any_locality()))
        .prop_map(|(algorithm, warmup, locality)| LoadBalancer { algorithm, warmup, locality })
        .boxed()
}

fn any_pool() -> BoxedStrategy<ConnectionPool> {
    let keepalive = (any_count(), option::of(any_time()), option::of(any_time()))
        .prop_map(|(probes, time, interval)| Keepalive { probes, time, interval });
    let times = || (option::of(any_time()), option::of(any_time()), option::of(any_time()));
    let tcp =
        (any_count(), times(), option::of(keepalive)).prop_map(
            |(max_connections, (connect_timeout, max_connection_duration, idle_timeout), keepalive)| {
                TcpPool { max_connections, connect_timeout, keepalive, max_connection_duration, idle_timeout }
            },
        );
    let counts = (any_count(), any_count(), any_count(), any_count(), any_count());
    let http = (counts, option::of(any_time())).prop_map(|((a, b, c, d, e), idle_timeout)| HttpPool {
        http1_max_pending_requests: a,
        http2_max_requests: b,
        max_requests_per_connection: c,
        max_retries: d,
        idle_timeout,
        max_concurrent_streams: e,
        // These have no effect yet, and are not kept.
        h2_upgrade: H2Upgrade::Default,
        use_client_protocol: false,
    });
    (tcp, http).prop_map(|(tcp, http)| ConnectionPool { tcp, http }).boxed()
}

fn any_outlier() -> BoxedStrategy<OutlierDetection> {
    let counts = (any::<u16>(), any::<u16>(), option::of(any::<u16>()));
    (counts, any_time(), any_time(), 1..=100_u8, 0..=100_u8)
        .prop_map(
            |((consecutive_5xx, consecutive_gateway, local), interval, base_ejection_time, most, least)| {
                OutlierDetection {
                    consecutive_5xx,
                    consecutive_gateway,
                    split_local: local.is_some(),
                    consecutive_local: local.unwrap_or(OutlierDetection::default().consecutive_local),
                    interval,
                    base_ejection_time,
                    max_ejection_percent: most,
                    min_health_percent: least,
                }
            },
        )
        .boxed()
}

fn any_tls() -> BoxedStrategy<ClientTls> {
    let verify = prop_oneof![Just(Verify::Full), Just(Verify::Nothing)];
    let file = || "/[a-z/.]{1,10}".prop_map(|text| Arc::<str>::from(text.as_str()));
    let trust = option::of(file()).prop_map(|file| file.map_or(Trust::System, Trust::File));
    let names = vec("[a-z]{1,5}(\\.[a-z]{1,5})?".prop_map(|name| name.as_str().into()), 0..2);
    let rest = (option::of("[a-z]{1,5}(\\.[a-z]{1,5})?"), names, verify);
    (0..6, trust, (file(), file(), any_text()), rest)
        .prop_map(|(mode, trust, (certificate, key, name), (sni, subject_alt_names, verify))| {
            let sni = sni.map(|sni| sni.as_str().into());
            let server = |trust| ServerCheck { trust, sni, subject_alt_names, verify };
            let named = Trust::Credential(Arc::clone(&name));
            match mode {
                0 => ClientTls::Disable,
                1 => ClientTls::IstioMutual,
                2 => ClientTls::Simple(server(trust)),
                3 => ClientTls::Simple(server(named)),
                4 => ClientTls::Mutual(ClientCertificate::Files { certificate, key }, server(trust)),
                _ => ClientTls::Mutual(ClientCertificate::Credential(name), server(named)),
            }
        })
        .boxed()
}

fn any_port_policy() -> BoxedStrategy<PortPolicy> {
    (
        option::of(any_load_balancer()),
        option::of(any_pool()),
        option::of(any_outlier()),
        option::of(any_tls()),
    )
        .prop_map(|(load_balancer, connection_pool, outlier_detection, tls)| PortPolicy {
            load_balancer,
            connection_pool,
            outlier_detection,
            tls,
        })
        .boxed()
}

fn any_policy() -> BoxedStrategy<TrafficPolicy> {
    let budget = (any_decimal(100), 0..1000_u32)
        .prop_map(|(percent, min_concurrency)| RetryBudget { percent, min_concurrency });
    let proxy = prop_oneof![Just(ProxyProtocol::V1), Just(ProxyProtocol::V2)];
    let ports = btree_map(1..=u16::MAX, any_port_policy(), 0..2);
    let target = prop_oneof![
        "[a-z]{1,8}(\\.[a-z0-9]{1,8}){0,3}",
        Just("10.0.0.7".to_owned()),
        Just("fd00::7".to_owned())
    ];
    let tunnel = (target, 1..=u16::MAX).prop_map(|(host, port)| {
        let port = NonZeroU16::new(port).expect("not zero");
        Tunnel::new(&host, port).expect("a host")
    });
    (any_port_policy(), ports, option::of(budget), option::of(proxy), option::of(tunnel))
        .prop_map(|(common, ports, retry_budget, proxy_protocol, tunnel)| TrafficPolicy {
            load_balancer: common.load_balancer,
            connection_pool: common.connection_pool,
            outlier_detection: common.outlier_detection,
            tls: common.tls,
            ports,
            retry_budget,
            proxy_protocol,
            tunnel,
        })
        .boxed()
}

pub(super) fn any_destination_rule() -> BoxedStrategy<DestinationRule> {
    let host = prop_oneof!["[a-z]{1,8}(\\.[a-z0-9]{1,8}){0,3}", "\\*\\.[a-z]{1,8}", Just("*".to_owned())]
        .prop_map(|text| HostPattern::new(&text).expect("a host"));
    let said = any_policy().prop_filter("says something", |policy| *policy != TrafficPolicy::default());
    let subset = (option::of(any_labels()), option::of(said));
    let subsets = btree_map("[a-zA-Z0-9]{1,6}", subset, 0..3).prop_map(|subsets| {
        let subset = |(name, (labels, policy)): (String, (Option<_>, _))| Subset {
            name: name.as_str().into(),
            labels: labels.unwrap_or_default(),
            policy,
        };
        subsets.into_iter().map(subset).collect::<Vec<_>>()
    });
    let export = prop_oneof![Just(ExportTo::All), vec(any_label(), 0..2).prop_map(ExportTo::Only)];
    (any_key(), host, any_policy(), subsets, option::of(any_labels()), export)
        .prop_map(|(key, host, policy, subsets, workload_selector, export_to)| DestinationRule {
            key,
            host,
            policy,
            subsets,
            workload_selector,
            export_to,
        })
        .prop_filter("its own namespace is not said", |rule| match &rule.export_to {
            ExportTo::All => true,
            ExportTo::Only(namespaces) => !namespaces.contains(&rule.key.namespace),
        })
        .boxed()
}
