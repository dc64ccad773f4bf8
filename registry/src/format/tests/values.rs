//! Any value of the model that is valid.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::access_log::{AccessLogFormat, TextFormat};
use baremesh_model::authorization::*;
use baremesh_model::external_authorization::*;
use baremesh_model::federation::{BundleSource, Federated};
use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::health::Health;
use baremesh_model::http::PathNormalization;
use baremesh_model::identity::Identity;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Domain, Key, Label};
use baremesh_model::network::{Gateway, Network};
use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::pattern::{Match, Pattern};
use baremesh_model::peer_authentication::{MtlsMode, PeerAuthentication};
use baremesh_model::request_authentication::KeyUrl;
use baremesh_model::service::{Protocol, Service, ServicePort};
use baremesh_model::virtual_address::VirtualRanges;
use baremesh_model::workload::{Labels, Locality, Tunnel, Workload};
use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::routes::{any_retries, any_virtual_service};
use crate::resource::{HostGrant, HostPattern, Resource};

pub(super) fn any_label() -> impl Strategy<Value = Label> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?".prop_map(|text| Label::new(&text).expect("a label"))
}

pub(super) fn any_key() -> impl Strategy<Value = Key> {
    (any_label(), any_label()).prop_map(|(namespace, name)| Key::new(namespace, name))
}

pub(super) fn any_labels() -> impl Strategy<Value = Labels> {
    let text = "[a-zA-Z0-9]([a-zA-Z0-9._-]{0,10}[a-zA-Z0-9])?";
    let key =
        prop_oneof![text.prop_map(String::from), Just("yes".to_owned()), Just("example.org/on".to_owned())];
    let value = prop_oneof![
        text.prop_map(String::from),
        Just(String::new()),
        Just("1.0".to_owned()),
        Just("true".to_owned())
    ];
    btree_map(key, value, 1..4).prop_map(|map| {
        map.into_iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
    })
}

pub(super) fn any_port() -> impl Strategy<Value = NonZeroU16> {
    any::<NonZeroU16>()
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>()
        .prop_map(|address| address.to_canonical())
        .prop_filter("one workload", |address| !address.is_unspecified() && !address.is_multicast())
}

fn any_pattern() -> impl Strategy<Value = Pattern> {
    // What identities and server names hold, and what YAML or TOML would have to escape.
    let text =
        prop_oneof!["[a-z0-9./-]{1,20}", "[^*]{1,10}"].prop_filter("no URI", |t| !t.starts_with("spiffe://"));
    prop_oneof![
        text.clone().prop_map(|text| Pattern::Exact(text.into())),
        text.clone().prop_map(|text| Pattern::Prefix(text.into())),
        text.prop_map(|text| Pattern::Suffix(text.into())),
        Just(Pattern::Present),
    ]
}

pub(super) fn any_block() -> impl Strategy<Value = IpNet> {
    (any_address(), 0..=128_u8).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let block = IpNet::new(address, length.min(most)).expect("within the length").trunc();
        // A short prefix of an arbitrary address can leave the mapped range, never enter it.
        block
    })
}

fn any_match<T: std::fmt::Debug + Clone>(
    item: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Match<T>> {
    (vec(item.clone(), 0..3), vec(item, 0..3)).prop_map(|(any_of, none_of)| Match { any_of, none_of })
}

fn filled<T: std::fmt::Debug + Clone>(
    item: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Match<T>> {
    any_match(item).prop_filter("asks for something", |asked| !asked.is_empty())
}

fn any_account() -> impl Strategy<Value = ServiceAccount> + Clone {
    let label = || "[a-z]{1,8}".prop_map(|text| Label::new(&text).expect("a label"));
    (label(), label()).prop_map(|(namespace, account)| ServiceAccount { namespace, account }).boxed()
}

fn any_source() -> impl Strategy<Value = Source> {
    let pattern = || any_pattern().boxed();
    let matches = || any_match(pattern());
    let named = (matches(), matches()).prop_map(|(principals, namespaces)| Source {
        principals,
        namespaces,
        ..Source::default()
    });
    let accounts = any_match(any_account())
        .prop_map(|service_accounts| Source { service_accounts, ..Source::default() });
    let blocks = || any_match(any_block().boxed());
    (prop_oneof![named, accounts], matches(), blocks(), blocks(), matches())
        .prop_map(|(source, trust_domains, ip_blocks, remote_ip_blocks, request_principals)| Source {
            trust_domains,
            ip_blocks,
            remote_ip_blocks,
            request_principals,
            ..source
        })
        .prop_filter("asks for something", |source| *source != Source::default())
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let pattern = || filled(any_pattern().boxed());
    let block = || filled(any_block().boxed());
    prop_oneof![
        block().prop_map(Condition::SourceIp),
        block().prop_map(Condition::RemoteIp),
        pattern().prop_map(Condition::ConnectionSni),
        ("[a-z-]{1,8}", pattern()).prop_map(|(name, values)| Condition::RequestHeader(name.into(), values)),
        pattern().prop_map(|values| Condition::RequestHeader(":path".into(), values)),
        pattern().prop_map(Condition::RequestPrincipal),
        pattern().prop_map(Condition::RequestAudiences),
        pattern().prop_map(Condition::RequestPresenter),
        (vec("[a-z.:/-]{1,8}", 1..4), pattern()).prop_map(|(path, values)| {
            Condition::RequestClaim(path.into_iter().map(Into::into).collect(), values)
        }),
        pattern().prop_map(Condition::SourceNamespace),
        pattern().prop_map(Condition::SourcePrincipal),
        filled(any_account()).prop_map(Condition::SourceServiceAccount),
        pattern().prop_map(Condition::SourceTrustDomain),
        block().prop_map(Condition::DestinationIp),
        filled(1..=u16::MAX).prop_map(Condition::DestinationPort),
    ]
}

fn any_path() -> impl Strategy<Value = PathPattern> {
    let template = proptest::sample::select(vec!["/a/{*}", "/{**}", "/{*}/b/{**}/c"]);
    prop_oneof![
        any_pattern()
            .prop_filter("no template", |one| !one.to_string().contains(['{', '}']))
            .prop_map(PathPattern::Plain),
        template.prop_map(|text| PathPattern::new(text).expect("a template")),
    ]
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let patterns = || any_match(any_pattern().boxed());
    (patterns(), any_match(1..=u16::MAX), patterns(), any_match(any_path().boxed()))
        .prop_map(|(hosts, ports, methods, paths)| Operation { hosts, ports, methods, paths })
        .prop_filter("asks for something", |operation| *operation != Operation::default())
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (vec(any_source(), 0..3), vec(any_operation(), 0..3), vec(any_condition(), 0..3))
        .prop_map(|(from, to, when)| Rule { from, to, when })
}

fn any_authorization_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Audit)];
    let enforcement = prop_oneof![Just(Enforcement::Enforced), Just(Enforcement::DryRun)];
    let response = (400..=599_u16, option::of("[^\u{0}-\u{1f}]{1,10}"));
    let response = response.prop_map(|(status, body)| DenyResponse::new(status, body.map(Into::into)));
    (any_key(), option::of(any_labels()), action, enforcement, vec(any_rule(), 0..3), response)
        .prop_map(|(key, selector, action, enforcement, rules, response)| AuthorizationPolicy {
            key,
            selector,
            action,
            enforcement,
            rules,
            response: response.filter(|_| action == Action::Deny),
            provider: None,
        })
        .prop_filter("DENY needs a rule", |policy| policy.action != Action::Deny || !policy.rules.is_empty())
}

fn any_custom_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let rule = vec(any_operation(), 0..3).prop_map(|to| Rule { to, ..Rule::default() });
    let provider = "[a-z-]{1,9}".prop_map(|name| Some(name.into()));
    (any_key(), option::of(any_labels()), vec(rule, 1..3), provider).prop_map(
        |(key, selector, rules, provider)| AuthorizationPolicy {
            key,
            selector,
            action: Action::Custom,
            enforcement: Enforcement::Enforced,
            rules,
            response: None,
            provider,
        },
    )
}

fn any_providers() -> impl Strategy<Value = Vec<Arc<ExtensionProvider>>> {
    let field = prop_oneof!["x-[a-z]{1,5}", "x-[a-z]{1,5}\\*", "\\*-[a-z]{1,5}"];
    let fields = vec(field.prop_map(|text| Pattern::new(&text)), 0..3);
    let added = btree_map("x-[a-z]{1,5}", "[a-z ]{0,5}", 0..3);
    let added =
        added.prop_map(|map| map.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
    let prefix = option::of("(/[a-z]{1,4}){1,2}");
    let http = (prefix, fields.clone(), added, fields.clone(), fields.clone(), fields);
    let http = http.prop_map(|(prefix, request_fields, added_fields, up, allowed, denied)| HttpCheck {
        path_prefix: prefix.unwrap_or_default().into(),
        request_fields,
        added_fields,
        to_upstream: up,
        to_caller_on_allow: allowed,
        to_caller_on_deny: denied,
    });
    let protocol = prop_oneof![Just(CheckProtocol::Grpc), http.prop_map(CheckProtocol::Http)];
    let longer = prop_oneof![Just(LongerBody::Cut), Just(LongerBody::Refused)];
    let packing = prop_oneof![Just(Packing::Text), Just(Packing::Bytes)];
    let body = (1..=MAX_BODY, longer, packing);
    let body = body.prop_map(|(max_bytes, longer, packing)| BodyInCheck { max_bytes, longer, packing });
    let on_failure = prop_oneof![Just(OnFailure::Allow), (400..=599_u16).prop_map(OnFailure::Refuse)];
    let host = prop_oneof![
        "[a-z]{1,5}",
        "[a-z]{1,5}(\\.[a-z]{1,5}){1,3}",
        Just("fd00::1".to_owned()),
        Just("10.0.0.1".to_owned())
    ];
    let milliseconds = |most: u64| (1..=most).prop_map(Duration::from_millis);
    let rest = (
        1..=u16::MAX,
        milliseconds(600_000),
        on_failure,
        protocol,
        option::of(body),
        option::of(milliseconds(3_600_000)),
    );
    let provider = (host, option::of(any_label()), rest).prop_map(|(host, namespace, rest)| {
        let (port, timeout, on_failure, protocol, body, cache) = rest;
        let (name, host) = ("".into(), host.into());
        ExtensionProvider { name, host, namespace, port, timeout, on_failure, protocol, body, cache }
    });
    let all = btree_map("[a-z-]{1,9}", provider, 0..3);
    all.prop_map(|all| {
        let named = |(name, provider): (String, ExtensionProvider)| ExtensionProvider {
            name: name.into(),
            ..provider
        };
        all.into_iter().map(|entry| Arc::new(named(entry))).collect()
    })
}

fn any_mode() -> impl Strategy<Value = MtlsMode> {
    prop_oneof![Just(MtlsMode::Disable), Just(MtlsMode::Permissive), Just(MtlsMode::Strict)]
}

fn any_peer_authentication() -> impl Strategy<Value = PeerAuthentication> {
    let ports = btree_map(1..=u16::MAX, option::of(any_mode()), 0..3);
    (any_key(), option::of(any_labels()), option::of(any_mode()), ports).prop_map(
        |(key, selector, mode, ports)| {
            let ports = if selector.is_some() { ports } else { BTreeMap::new() };
            PeerAuthentication { key, selector, mode, ports }
        },
    )
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    use Protocol::*;
    prop_oneof![Just(Tcp), Just(Tls), Just(Http), Just(Http2), Just(Grpc), Just(Https), Just(Auto)]
}

fn any_service() -> impl Strategy<Value = Service> {
    let port = (any_port(), any_protocol(), proptest::bool::ANY);
    let ports = btree_map(any_port(), port, 1..4).prop_map(|ports| {
        let port = |(port, (target_port, protocol, named)): (NonZeroU16, (NonZeroU16, Protocol, bool))| {
            let name = named.then(|| format!("http-{port}").as_str().into());
            ServicePort { port, target_port, protocol, name }
        };
        ports.into_iter().map(port).collect::<Vec<_>>()
    });
    let addresses = (option::of(any::<std::net::Ipv4Addr>()), option::of(any::<std::net::Ipv6Addr>()));
    let federated =
        option::of(Just(Identity::parse("spiffe://a.test/ns/shop/sa/orders").expect("an identity")));
    (any_key(), ports, option::of(any_labels()), any_label(), addresses, federated).prop_map(
        |(key, ports, selector, service_account, (v4, v6), federated)| {
            let v6 = v6.filter(|v6| v6.to_ipv4_mapped().is_none());
            let addresses = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).collect();
            Service { key, ports, selector, service_account, addresses, federated }
        },
    )
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let ports = btree_map("[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", any_port(), 0..3);
    let locality = ("[a-z0-9-]{0,5}", "[a-z0-9-]{0,5}", "[a-z0-9/-]{0,5}");
    let labels = option::of(any_labels()).prop_map(Option::unwrap_or_default);
    let of_one = || option::of(any_label());
    let names = (of_one(), of_one(), of_one(), of_one());
    let any_bool = proptest::bool::ANY;
    let reach = (any_address(), vec(any_address(), 0..3), (any_bool, any_bool), 1..=u32::MAX);
    (any_key(), reach, names, ports, labels, locality).prop_map(
        |(
            key,
            (address, other_addresses, (hbone, healthy), weight),
            names,
            ports,
            labels,
            (region, zone, subzone),
        )| {
            let text = format!("{region}/{zone}/{subzone}");
            Workload {
                key,
                address,
                other_addresses,
                service: names.0,
                host: names.1,
                ports: ports.into_iter().map(|(name, port)| (name.as_str().into(), port)).collect(),
                labels,
                network: names.3,
                locality: Locality::parse(text.trim_end_matches('/')),
                weight,
                service_account: names.2,
                tunnel: if hbone { Tunnel::Hbone } else { Tunnel::Plain },
                health: if healthy { Health::Healthy } else { Health::Unhealthy },
            }
        },
    )
}

fn any_mesh_config() -> impl Strategy<Value = MeshConfig> {
    let domain =
        || "[a-z]{1,5}(\\.[a-z0-9]{1,5}){0,3}".prop_map(|text| Domain::new(&text).expect("a domain"));
    let v4 = (16..220_u8, 0..=255_u8, 8..=30_u8)
        .prop_filter("routable", |(a, b, _)| *a != 127 && (*a, *b) != (169, 254));
    let v4 = v4.prop_map(|(a, b, length)| ipnet::Ipv4Net::new_assert([a, b, 7, 9].into(), length).trunc());
    let v4 = v4.prop_filter("routable", |range| range.network().octets()[0] >= 16);
    let v6 = option::of((0xfd00..0xfe00_u16, 16..=120_u8));
    let v6 = v6.prop_map(|v6| {
        v6.map(|(head, length)| {
            ipnet::Ipv6Net::new_assert([head, 1, 2, 3, 4, 5, 6, 7].into(), length).trunc()
        })
    });
    let retries = option::of(any_retries());
    use PathNormalization::*;
    let normalization = prop_oneof![Just(None), Just(Base), Just(MergeSlashes), Just(DecodeAndMergeSlashes)];
    let elsewhere = (any_federation(), any_networks());
    let outbound = prop_oneof![Just(OutboundPolicy::AllowAny), Just(OutboundPolicy::RegistryOnly)];
    let settings = (retries, any_access_log(), normalization, any_providers(), 0..4_u32, elsewhere, outbound);
    (any_label(), domain(), domain(), any_label(), any_mode(), v4, v6, settings).prop_map(
        |(name, trust_domain, domain, root_namespace, default_mtls, v4, v6, settings)| MeshConfig {
            name,
            trust_domain,
            domain,
            root_namespace,
            default_mtls,
            virtual_ranges: VirtualRanges { v4, v6 },
            default_retries: settings.0,
            access_log: settings.1,
            path_normalization: settings.2,
            extension_providers: settings.3,
            trusted_proxies: settings.4,
            federation: settings.5.0,
            networks: settings.5.1,
            outbound: settings.6,
        },
    )
}

fn any_networks() -> impl Strategy<Value = Vec<Network>> {
    let gateway = (any_label(), any_address(), 1..=u16::MAX).prop_filter("reached", |(_, address, _)| {
        !(address.is_unspecified() || address.is_multicast() || address.is_loopback())
    });
    let gateway = gateway.prop_map(|(host, address, port)| Gateway { host, address: (address, port).into() });
    btree_map(any_label(), vec(gateway, 1..3), 0..3).prop_map(|networks| {
        networks.into_iter().map(|(name, gateways)| Network { name, gateways }).collect()
    })
}

fn any_federation() -> impl Strategy<Value = Vec<Federated>> {
    let url =
        |authorities| BundleSource::url(KeyUrl::new("https://a.test/bundle").expect("a URL"), authorities);
    let source = prop_oneof![
        Just(BundleSource::file("/etc/a.pem").expect("a file")),
        Just(url(None).expect("a server")),
        Just(url(Some("/etc/ca.pem")).expect("a server")),
    ];
    let refresh = option::of((10..86_400_u64).prop_map(Duration::from_secs));
    // A name that no domain of the strategy has: it is not the mesh's own.
    let one = (source, refresh).prop_map(|(source, refresh)| {
        let domain = Domain::new("federated.example-of-another.test").expect("a domain");
        Federated::new(domain, source, refresh).expect("a federation")
    });
    vec(one, 0..2)
}

fn any_access_log() -> impl Strategy<Value = AccessLogFormat> {
    let part =
        prop_oneof![Just("a \"b\""), Just("%%"), Just("%DURATION%"), Just("%REQ(:PATH?X-REQUEST-ID):9%")];
    let text = vec(part, 1..9).prop_map(|parts| parts.concat());
    prop_oneof![
        Just(AccessLogFormat::Json),
        Just(AccessLogFormat::Text(TextFormat::default())),
        text.prop_map(|text| AccessLogFormat::Text(TextFormat::parse(&text).expect("a format"))),
    ]
}

fn any_host_grant() -> impl Strategy<Value = HostGrant> {
    let grant = "[a-z*-]{1,8}\\.[a-z*-]{1,8}".prop_map(|text| Grant::parse(&text).expect("a grant"));
    let host = prop_oneof!["[a-z]{1,8}", "[a-z-]{0,8}\\*", "\\*[a-z-]{0,8}"];
    let host = host.prop_map(|text| HostPattern::new(&text).expect("a pattern"));
    let block = (any::<IpAddr>(), 0..=32_u8)
        .prop_map(|(address, prefix)| AddressGrant::parse(&format!("{address}/{prefix}")).expect("a block"));
    (any_key(), host, vec(grant, 1..4), vec(block, 0..3))
        .prop_map(|(key, host, services, addresses)| HostGrant { key, host, services, addresses })
}

/// Destination rules.
mod destination_rules;
/// Gateways.
mod gateways;
/// Rate limits.
mod rate_limits;
/// Sidecars.
mod sidecars;
/// Workload groups.
mod workload_groups;
/// Request authentications.
mod request_authentications;
/// Service entries.
mod service_entries;

use destination_rules::any_destination_rule;
use gateways::any_gateway;
use rate_limits::any_rate_limit;
use request_authentications::any_request_authentication;
use service_entries::any_service_entry;
use sidecars::any_sidecar;
use workload_groups::any_workload_group;

pub(super) fn any_resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        any_mesh_config().prop_map(|value| Resource::MeshConfig(value.into())),
        any_service().prop_map(|value| Resource::Service(value.into())),
        any_workload().prop_map(|value| Resource::Workload(value.into())),
        any_virtual_service().prop_map(|value| Resource::VirtualService(value.into())),
        any_peer_authentication().prop_map(|value| Resource::PeerAuthentication(value.into())),
        any_authorization_policy().prop_map(|value| Resource::AuthorizationPolicy(value.into())),
        any_custom_policy().prop_map(|value| Resource::AuthorizationPolicy(value.into())),
        any_host_grant().prop_map(|value| Resource::HostGrant(value.into())),
        any_destination_rule().prop_map(|value| Resource::DestinationRule(value.into())),
        any_rate_limit().prop_map(|value| Resource::RateLimit(value.into())),
        any_sidecar().prop_map(|value| Resource::Sidecar(value.into())),
        any_gateway().prop_map(|value| Resource::Gateway(value.into())),
        any_workload_group().prop_map(|value| Resource::WorkloadGroup(value.into())),
        any_request_authentication().prop_map(|value| Resource::RequestAuthentication(value.into())),
        any_service_entry().prop_map(|value| Resource::ServiceEntry(value.into())),
    ]
}
