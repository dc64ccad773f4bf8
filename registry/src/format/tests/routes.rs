//! Any VirtualService that is valid. Strategies are boxed: a strategy of strategies is as large as all that it can make, and
//! would fill the stack of a test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::grpc::GrpcStatus;
use baremesh_model::http::Scheme;
use baremesh_model::re2::Re2;
use baremesh_model::string_match::{Case, StringMatch};
use baremesh_model::token::ClaimPath;
use baremesh_model::virtual_service::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::values::{any_block, any_key, any_label, any_labels, any_port};

fn any_text() -> BoxedStrategy<Arc<str>> {
    prop_oneof!["[a-zA-Z0-9/_. -]{1,12}", "[^\u{0}]{1,6}"].prop_map(|text| text.as_str().into()).boxed()
}

fn any_url_text() -> BoxedStrategy<UrlText> {
    "[!-~]{1,12}".prop_map(|text| UrlText::new(&text).expect("text of a URL")).boxed()
}

fn any_regex() -> impl Strategy<Value = Re2> {
    prop_oneof!["[a-z/.]{1,6}", "\\(a\\|b\\)\\*", "\\[a-z\\]\\+", "\\^/v\\(\\[0-9\\]\\+\\)\\$"]
        .prop_map(|text| Re2::new(&text).expect("an expression"))
}

pub(super) fn any_match() -> BoxedStrategy<StringMatch> {
    let exact = prop_oneof![any_text(), Just("".into())];
    let regex = any_regex().prop_map(StringMatch::Regex);
    prop_oneof![
        exact.prop_map(StringMatch::Exact),
        any_text().prop_map(StringMatch::Prefix),
        regex,
        Just(StringMatch::Present),
    ]
    .boxed()
}

fn plain_match() -> BoxedStrategy<StringMatch> {
    any_match().prop_filter("no regex", |asked| !matches!(asked, StringMatch::Regex(_))).boxed()
}

type Named = Vec<(Arc<str>, StringMatch)>;

fn any_named(asked: impl Strategy<Value = StringMatch> + 'static) -> BoxedStrategy<Named> {
    let name = "[a-z][a-z0-9-]{0,8}"
        .prop_filter("a header", |name| !["uri", "scheme", "method", "authority"].contains(&name.as_str()));
    btree_map(name, asked, 0..3)
        .prop_map(|map| map.into_iter().map(|(name, asked)| (name.as_str().into(), asked)).collect())
        .boxed()
}

fn any_scope() -> BoxedStrategy<Scope> {
    let labels = option::of(any_labels()).prop_map(Option::unwrap_or_default);
    (proptest::bool::ANY, labels, option::of(any_label()), option::of(any_port()))
        .prop_map(|(at_mesh, source_labels, source_namespace, port)| {
            let gateways = if at_mesh { vec![Gateway::Mesh] } else { vec![] };
            Scope { gateways, source_labels, source_namespace, port }
        })
        .boxed()
}

pub(super) fn any_http_match<S: Strategy<Value = StringMatch> + 'static>(
    asked: impl Fn() -> S,
) -> BoxedStrategy<HttpMatch> {
    let parts = (option::of(asked()), option::of(asked()), option::of(asked()), option::of(asked()));
    let lists = (any_named(asked()), any_named(asked()), any_named(asked()));
    let lists = (lists, any_claims(asked()), any_claims(asked()));
    (option::of(any_text()), any_scope(), parts, proptest::bool::ANY, lists)
        .prop_map(
            |(
                name,
                scope,
                (uri, scheme, method, authority),
                ignored,
                ((headers, without_headers, query_params), claims, without_claims),
            )| {
                let uri_case = if ignored { Case::Ignored } else { Case::Sensitive };
                HttpMatch {
                    name,
                    scope,
                    uri,
                    uri_case,
                    scheme,
                    method,
                    authority,
                    headers,
                    without_headers,
                    query_params,
                    claims,
                    without_claims,
                }
            },
        )
        .boxed()
}

/// In the order of their names, as they are written.
fn any_claims(
    asked: impl Strategy<Value = StringMatch> + 'static,
) -> BoxedStrategy<Vec<(ClaimPath, StringMatch)>> {
    btree_map("[a-z:/.]{1,8}", asked, 0..2)
        .prop_map(|claims| {
            claims.into_iter().map(|(name, asked)| (ClaimPath::of([&*name, "x"]), asked)).collect()
        })
        .boxed()
}

fn any_host() -> BoxedStrategy<HostPattern> {
    prop_oneof!["[a-z]{1,8}", "[a-z]{1,8}\\.[a-z]{1,8}\\.com", "\\*\\.[a-z]{1,8}\\.com"]
        .prop_map(|text| HostPattern::new(&text).expect("a host"))
        .boxed()
}

fn any_destination() -> BoxedStrategy<Destination> {
    ("[a-z]{1,8}(\\.[a-z]{1,8}){0,3}", option::of(any_text()), option::of(any_port()))
        .prop_map(|(host, subset, port)| Destination { host: host.as_str().into(), subset, port })
        .boxed()
}

fn any_header_rules() -> BoxedStrategy<HeaderRules> {
    let operations = || {
        let values = || {
            btree_map("[a-z][a-z0-9-]{0,8}", "[ -~]{0,8}", 0..3).prop_map(|map: BTreeMap<String, String>| {
                let value = |(name, value): (String, String)| HeaderValue::new(&name, &value);
                map.into_iter().filter_map(value).collect::<Vec<_>>()
            })
        };
        let name = "x-[a-z0-9]{1,8}".prop_map(|name| name.as_str().into());
        (values(), values(), vec(name, 0..3)).prop_map(|(set, add, remove)| HeaderOperations {
            set,
            add,
            remove,
        })
    };
    let authority = "[!-~]{1,8}".prop_map(|text| text.as_str().into());
    (operations(), option::of(authority), operations())
        .prop_map(|(request, authority, response)| HeaderRules { request, authority, response })
        .boxed()
}

fn any_split() -> BoxedStrategy<Split> {
    let one = (any_destination(), any::<u32>(), any_header_rules())
        .prop_map(|(destination, weight, headers)| WeightedDestination { destination, weight, headers });
    vec(one, 1..4).prop_filter_map("a split", |all| Split::new(all).ok()).boxed()
}

fn any_stream_split() -> BoxedStrategy<Split> {
    let one = (any_destination(), any::<u32>()).prop_map(|(destination, weight)| WeightedDestination {
        destination,
        weight,
        headers: HeaderRules::default(),
    });
    vec(one, 1..4).prop_filter_map("a split", |all| Split::new(all).ok()).boxed()
}

fn any_share() -> BoxedStrategy<Percentage> {
    prop_oneof![(0..=100_u32).prop_map(f64::from), (0..=1_000_000_u32).prop_map(|n| f64::from(n) / 10_000.0)]
        .prop_map(|percent| Percentage::new(percent).expect("a share"))
        .boxed()
}

fn any_time() -> BoxedStrategy<Duration> {
    prop_oneof![
        (1..100_000_u64).prop_map(Duration::from_millis),
        (1_000_000..u64::MAX / 10).prop_map(Duration::from_nanos)
    ]
    .boxed()
}

fn any_action() -> BoxedStrategy<HttpAction> {
    let path = prop_oneof![
        any_url_text().prop_map(RedirectPath::Whole),
        any_url_text().prop_map(RedirectPath::Matched)
    ];
    let port = prop_oneof![
        any_port().prop_map(RedirectPort::Number),
        Just(RedirectPort::FromRequest),
        Just(RedirectPort::FromScheme)
    ];
    let scheme = prop_oneof![Just(Scheme::Http), Just(Scheme::Https)];
    let status = prop_oneof![Just(301), Just(302), Just(303), Just(307), Just(308)]
        .prop_map(|code| RedirectStatus::new(code).expect("a redirect's code"));
    let redirect =
        (option::of(path), option::of(any_url_text()), option::of(port), option::of(scheme), status)
            .prop_map(|(path, authority, port, scheme, status)| Redirect {
                path,
                authority,
                port,
                scheme,
                status,
            });
    let body = option::of(vec(any::<u8>(), 0..20)).prop_map(|body| body.map(Arc::from));
    let answer = (200..600_u16, body).prop_map(|(status, body)| DirectResponse { status, body });
    prop_oneof![
        3 => any_split().prop_map(HttpAction::Forward),
        1 => redirect.prop_map(HttpAction::Redirect),
        1 => answer.prop_map(HttpAction::Respond),
    ]
    .boxed()
}

fn any_rewrite() -> BoxedStrategy<Rewrite> {
    let substitution = option::of("/[a-z/]{0,8}".prop_map(|text| UrlText::new(&text).expect("a path")));
    let path = prop_oneof![
        any_url_text().prop_map(PathRewrite::Matched),
        (any_regex(), substitution)
            .prop_map(|(pattern, substitution)| PathRewrite::Regex { pattern, substitution })
    ];
    (option::of(path), option::of(any_url_text()))
        .prop_map(|(path, authority)| Rewrite { path, authority })
        .prop_filter("does something", |rewrite| *rewrite != Rewrite::default())
        .boxed()
}

pub(super) fn any_retries() -> BoxedStrategy<RetryPolicy> {
    let words = prop_oneof![
        Just("5xx,reset,503"),
        Just("connect-failure"),
        Just("retriable-4xx,retriable-status-codes"),
        Just("cancelled,deadline-exceeded,internal,resource-exhausted,unavailable,gateway-error"),
    ];
    let conditions = words.prop_map(|words| RetryConditions::parse(words).expect("words"));
    let conditions = prop_oneof![conditions, Just(RetryConditions::default())];
    let flags = (option::of(proptest::bool::ANY), proptest::bool::ANY);
    let policy = (1..100_u32, option::of(any_time()), conditions, any_time(), flags).prop_map(
        |(attempts, per_try_timeout, conditions, backoff, (ignore_previous_hosts, remote_localities))| {
            RetryPolicy {
                attempts,
                per_try_timeout,
                conditions,
                backoff,
                ignore_previous_hosts,
                remote_localities,
            }
        },
    );
    prop_oneof![4 => policy, 1 => Just(RetryPolicy { attempts: 0, ..RetryPolicy::default() })].boxed()
}

fn any_fault() -> BoxedStrategy<Fault> {
    let delay = (any_time(), any_share()).prop_map(|(fixed, percentage)| Delay { fixed, percentage });
    let status = prop_oneof![
        (200..600_u16).prop_map(AbortStatus::Http),
        (0..17_u8).prop_map(|code| AbortStatus::Grpc(GrpcStatus::new(code).expect("a code"))),
    ];
    let abort = (status, any_share()).prop_map(|(status, percentage)| Abort { status, percentage });
    (option::of(delay), option::of(abort))
        .prop_map(|(delay, abort)| Fault { delay, abort })
        .prop_filter("does something", |fault| fault.delay.is_some() || fault.abort.is_some())
        .boxed()
}

fn any_cors() -> BoxedStrategy<CorsPolicy> {
    let names = || vec("[A-Za-z][A-Za-z0-9-]{0,8}".prop_map(|name| name.as_str().into()), 0..3);
    let origins = vec(any_match().prop_filter("an origin", |asked| *asked != StringMatch::Present), 0..3);
    let flags = (proptest::bool::ANY, proptest::bool::ANY);
    let age = option::of((0..1_000_000_u64).prop_map(Duration::from_secs));
    (origins, names(), names(), names(), age, flags)
        .prop_map(
            |(
                allow_origins,
                allow_methods,
                allow_headers,
                expose_headers,
                max_age,
                (credentials, ignore),
            )| {
                CorsPolicy {
                    allow_origins,
                    allow_methods,
                    allow_headers,
                    expose_headers,
                    max_age,
                    credentials: if credentials { Credentials::Allowed } else { Credentials::Refused },
                    unmatched_preflights: if ignore {
                        UnmatchedPreflights::Ignore
                    } else {
                        UnmatchedPreflights::Forward
                    },
                }
            },
        )
        .boxed()
}

fn any_options() -> BoxedStrategy<RouteOptions> {
    let mirror = (any_destination(), any_share())
        .prop_map(|(destination, percentage)| Mirror { destination, percentage });
    (
        option::of(any_rewrite()),
        option::of(prop_oneof![any_time(), Just(Duration::ZERO)]),
        option::of(any_retries()),
        option::of(any_fault()),
        vec(mirror, 0..3),
        option::of(any_cors()),
        option::of(any_header_rules()),
    )
        .prop_map(|(rewrite, timeout, retries, fault, mirrors, cors, headers)| {
            let mut options = RouteOptions { rewrite, timeout, retries, fault, mirrors, cors, headers };
            if let (Some(rewrite), Some(headers)) = (&options.rewrite, &mut options.headers)
                && rewrite.authority.is_some()
            {
                headers.authority = None;
            }
            options
        })
        .boxed()
}

fn any_route<S: Strategy<Value = StringMatch> + 'static>(asked: impl Fn() -> S) -> BoxedStrategy<HttpEntry> {
    (option::of(any_text()), vec(any_http_match(asked), 0..3), any_action(), any_options())
        .prop_map(|(name, matches, action, mut options)| {
            if !matches!(action, HttpAction::Forward(_)) {
                (options.rewrite, options.fault) = (None, None);
            }
            HttpEntry::Route(Arc::new(HttpRoute { name, matches, action, options }))
        })
        .boxed()
}

fn any_delegation() -> BoxedStrategy<HttpEntry> {
    (any_key(), option::of(any_text()), vec(any_http_match(plain_match), 0..3), any_options())
        .prop_map(|(to, name, matches, options)| {
            HttpEntry::Delegate(Box::new(Delegation { to, name, matches, options }))
        })
        .boxed()
}

fn any_connection() -> BoxedStrategy<TcpMatch> {
    (any_scope(), vec(any_block(), 0..3))
        .prop_map(|(scope, destination_subnets)| TcpMatch { scope, destination_subnets })
        .boxed()
}

fn any_export() -> BoxedStrategy<Visibility> {
    prop_oneof![
        Just(Visibility::Everywhere),
        proptest::collection::btree_set(any_label(), 0..3).prop_map(Visibility::Namespaces)
    ]
    .boxed()
}

pub(super) fn any_virtual_service() -> BoxedStrategy<VirtualService> {
    let tcp = (vec(any_connection(), 0..3), any_stream_split())
        .prop_map(|(matches, split)| Arc::new(TcpRoute { matches, split }));
    let tls = (vec(any_connection(), 1..3), any_stream_split());
    let entry = prop_oneof![4 => any_route(any_match), 1 => any_delegation()];
    let routed = (any_key(), any_host(), any_export(), vec(entry, 1..4), vec(tcp, 0..2), vec(tls, 0..2))
        .prop_map(|(key, host, export_to, http, tcp, tls)| {
            let block = |connection| TlsMatch { sni_hosts: vec![host.clone()], connection };
            let tls = tls.into_iter().map(|(connections, split)| {
                Arc::new(TlsRoute { matches: connections.into_iter().map(block).collect(), split })
            });
            let tls = tls.collect();
            VirtualService {
                key,
                hosts: vec![host],
                gateways: vec![Gateway::Mesh],
                export_to,
                http,
                tls,
                tcp,
            }
        });
    let delegate =
        (any_key(), any_export(), vec(any_route(plain_match), 1..3)).prop_map(|(key, export_to, http)| {
            VirtualService {
                key,
                hosts: vec![],
                gateways: vec![Gateway::Mesh],
                export_to,
                http,
                tls: vec![],
                tcp: vec![],
            }
        });
    prop_oneof![3 => routed, 1 => delegate].boxed()
}
