//! Any RateLimit that is valid.

use std::time::Duration;

use baremesh_model::authorization::Enforcement;
use baremesh_model::rate_limit::{KeyPart, Limit, RateLimit, Traffic};
use baremesh_model::token::ClaimPath;
use baremesh_model::virtual_service::{HttpMatch, Scope};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::super::routes::{any_http_match, any_match};
use super::{any_key, any_labels};

fn any_traffic() -> BoxedStrategy<Traffic> {
    prop_oneof![
        option::of(any_labels()).prop_map(Traffic::ToWorkloads),
        "[a-z]{1,8}(\\.[a-z]{1,8}){0,3}".prop_map(|host| Traffic::ToHost(host.as_str().into())),
    ]
    .boxed()
}

/// A block without what the called side cannot know.
fn any_block() -> BoxedStrategy<HttpMatch> {
    any_http_match(any_match)
        .prop_map(|block| {
            let Scope { source_namespace, port, .. } = block.scope;
            let scope = Scope { source_namespace, port, ..Scope::default() };
            HttpMatch { name: None, scope, ..block }
        })
        .boxed()
}

fn any_limit() -> BoxedStrategy<Limit> {
    (1..=1_000_000_u32, 1..100_000_000_u64, option::of(1..10_000_u32))
        .prop_filter_map("a limit", |(requests, milliseconds, burst)| {
            Limit::new(requests, Duration::from_millis(milliseconds), burst.unwrap_or(requests)).ok()
        })
        .boxed()
}

fn any_parts() -> BoxedStrategy<Vec<KeyPart>> {
    let names = btree_set("[a-z][a-z0-9-]{0,8}", 0..3);
    let claims = btree_set("[a-z:/.]{1,8}", 0..3);
    (
        proptest::sample::subsequence(
            vec![KeyPart::SourceIdentity, KeyPart::RemoteAddress, KeyPart::Path],
            0..=3,
        ),
        names,
        claims,
    )
        .prop_map(|(mut parts, names, claims)| {
            parts.truncate(2);
            parts.extend(claims.iter().map(|name| KeyPart::Claim(ClaimPath::of(["realm", name]))));
            parts.extend(names.iter().map(|name| KeyPart::Header(name.as_str().into())));
            parts
        })
        .boxed()
}

pub(in crate::format::tests) fn any_rate_limit() -> BoxedStrategy<RateLimit> {
    let enforcement = prop_oneof![Just(Enforcement::Enforced), Just(Enforcement::DryRun)];
    (any_key(), any_traffic(), vec(any_block(), 0..3), any_limit(), any_parts(), enforcement)
        .prop_map(|(key, traffic, mut matches, limit, mut parts, enforcement)| {
            // The calling side knows no claims.
            if matches!(traffic, Traffic::ToHost(_)) {
                parts.retain(|part| !matches!(part, KeyPart::Claim(_)));
                matches.retain(|block: &HttpMatch| !block.asks_for_claims());
            }
            RateLimit { key, traffic, matches, limit, parts, enforcement }
        })
        .boxed()
}
