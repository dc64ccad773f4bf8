//! Any RequestAuthentication that is valid.

use std::time::Duration;

use baremesh_model::request_authentication::{
    ClaimHeader, JwtRule, KeySource, KeyUrl, Missing, Original, RequestAuthentication, TokenPlace,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{any_key, any_labels};

fn any_keys() -> BoxedStrategy<KeySource> {
    let inline = "[a-z0-9]{0,8}".prop_map(|kid| format!(r#"{{"keys":[{{"kty":"EC","kid":"{kid}"}}]}}"#));
    prop_oneof![
        inline.prop_map(|text| KeySource::Inline(text.as_str().into())),
        "/[a-z/.]{0,12}".prop_map(|path| KeySource::File(path.as_str().into())),
        "https?://[a-z]{1,8}(:[1-9][0-9]{1,3})?(/[a-z?=&]{0,12})?"
            .prop_map(|text| KeySource::Url(KeyUrl::new(&text).expect("a URL"))),
    ]
    .boxed()
}

/// In the order in which they are read; none means the default ones.
fn any_places() -> BoxedStrategy<Vec<TokenPlace>> {
    let header = prop_oneof![
        Just(TokenPlace::Bearer),
        ("x-[a-z-]{1,8}", "[A-Za-z ]{0,8}")
            .prop_map(|(name, prefix)| TokenPlace::Header(name.as_str().into(), prefix.as_str().into())),
    ];
    let param = "[a-z_]{1,8}".prop_map(|name| TokenPlace::Param(name.as_str().into()));
    let cookie = "[a-z_]{1,8}".prop_map(|name| TokenPlace::Cookie(name.as_str().into()));
    (vec(header, 0..3), vec(param, 0..3), vec(cookie, 0..3))
        .prop_map(|(headers, params, cookies)| {
            let all: Vec<_> = headers.into_iter().chain(params).chain(cookies).collect();
            if all.is_empty() { TokenPlace::default_places() } else { all }
        })
        .boxed()
}

fn any_rule() -> BoxedStrategy<JwtRule> {
    let texts = || vec("[!-~]{1,12}".prop_map(|text| std::sync::Arc::from(text.as_str())), 0..3);
    let field = || "x-[a-z-]{1,8}".prop_map(|text| std::sync::Arc::from(text.as_str()));
    let claim = (field(), "[a-z.]{1,8}")
        .prop_map(|(header, claim)| ClaimHeader { header, claim: claim.as_str().into() });
    let original = prop_oneof![Just(Original::Removed), Just(Original::Forwarded)];
    let outputs = (option::of(field()), vec(claim, 0..3), original);
    ("[!-~]{1,12}", texts(), any_keys(), any_places(), outputs, 1..100_000_u64, texts())
        .prop_map(|(issuer, audiences, keys, places, outputs, timeout, space_delimited)| JwtRule {
            issuer: issuer.as_str().into(),
            audiences,
            keys,
            places,
            payload_header: outputs.0,
            claim_headers: outputs.1,
            original: outputs.2,
            timeout: Duration::from_millis(timeout),
            space_delimited,
        })
        .boxed()
}

pub(in crate::format::tests) fn any_request_authentication() -> BoxedStrategy<RequestAuthentication> {
    let missing = prop_oneof![Just(Missing::Passes), Just(Missing::Refused)];
    (any_key(), option::of(any_labels()), vec(any_rule(), 0..3), missing)
        .prop_map(|(key, selector, rules, missing)| RequestAuthentication { key, selector, rules, missing })
        .boxed()
}
