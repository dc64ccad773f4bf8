//! `RequestAuthentication`: which tokens are taken, and from where.

use std::sync::Arc;

use baremesh_model::http::headers::is_token;
use baremesh_model::name::Key;
use baremesh_model::request_authentication::{
    ClaimHeader, FETCH_TIMEOUT, JwtRule, KeySource, KeyUrl, Missing, Original, RequestAuthentication,
    TokenPlace,
};
use baremesh_model::token::ClaimPath;
use baremesh_model::workload::Labels;
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::duration;
use super::fields::{Field, enforced, refused};
use crate::diagnostic::quote;

/// The most rules of one resource.
const MAX_RULES: usize = 32;
/// The most places that one rule has tokens looked for in.
const MAX_PLACES: usize = 16;
/// Fields that a message is framed and addressed by: a claim never becomes one.
const FRAMING: [&str; 9] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "x-forwarded-client-cert",
];
/// Members of a JWK that only who signs may have (RFC 7518, section 6).
const PRIVATE: [&str; 7] = ["d", "p", "q", "dp", "dq", "qi", "k"];

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("selector", "the workloads that it is for; all of the namespace without it"),
    enforced("selector.matchLabels", "labels that a workload must carry, all of them"),
    refused("targetRef", "there are no Kubernetes Gateways: use `selector`"),
    refused("targetRefs", "there are no Kubernetes Gateways: use `selector`"),
    enforced(
        "requireToken",
        "true: a request without a token of one of these rules is refused; it passes without",
    ),
    enforced("jwtRules", "issuers whose tokens are taken; a token of any other is refused"),
    enforced("jwtRules[].issuer", "what `iss` must be, byte for byte"),
    enforced("jwtRules[].audiences", "one of these must be in `aud`, byte for byte; any without"),
    enforced("jwtRules[].jwksUri", "an http or https URL that agents fetch the issuer's keys from"),
    enforced("jwtRules[].jwks", "the issuer's public keys, a JWK set as a text"),
    enforced("jwtRules[].jwksFile", "a file of the host with the issuer's public keys, a JWK set"),
    enforced(
        "jwtRules[].fromHeaders",
        "fields that tokens stand in; `Authorization: Bearer` and the parameter `access_token` where no place is named",
    ),
    enforced("jwtRules[].fromHeaders[].name", "the field"),
    enforced("jwtRules[].fromHeaders[].prefix", "what stands before the token in it"),
    enforced("jwtRules[].fromParams", "parameters of the query that tokens stand in"),
    enforced("jwtRules[].fromCookies", "cookies that tokens stand in"),
    enforced("jwtRules[].outputPayloadToHeader", "the field that takes the payload, in base64url"),
    enforced(
        "jwtRules[].outputClaimToHeaders",
        "fields that take claims that are texts, numbers or truth values",
    ),
    enforced("jwtRules[].outputClaimToHeaders[].header", "the field; what the caller wrote there is removed"),
    enforced("jwtRules[].outputClaimToHeaders[].claim", "the claim; a dot leads into a claim"),
    enforced("jwtRules[].forwardOriginalToken", "true: the program sees the token; removed without"),
    refused(
        "jwtRules[].presence",
        "a request without a token passes: set `requireToken` of the resource, or ask for one with an AuthorizationPolicy, \
         `requestPrincipals: [\"*\"]`",
    ),
    enforced("jwtRules[].timeout", "for fetching the keys; `5s` unless set"),
    enforced(
        "jwtRules[].spaceDelimitedClaims",
        "claims that are lists separated by spaces, beside `scope` and `permission`",
    ),
];

pub(super) fn decode(
    d: &mut Decoder<'_>,
    metadata: &Metadata<'_>,
    spec: &Fields<'_>,
) -> Option<RequestAuthentication> {
    let selector = d.selector(spec);
    let required = optional(spec.take("requireToken"), |at| d.boolean(&at));
    let rules = optional(spec.take("jwtRules"), |at| {
        let rules = d.each(&at, rule)?;
        within(d, &at, rules, MAX_RULES, "write a second RequestAuthentication")
    });
    Some(RequestAuthentication {
        key: metadata.key.clone(),
        selector: selector?,
        rules: rules?.unwrap_or_default(),
        missing: if required?.unwrap_or(false) { Missing::Refused } else { Missing::Passes },
    })
}

fn within<T>(d: &mut Decoder<'_>, at: &At<'_>, items: Vec<T>, most: usize, help: &str) -> Option<Vec<T>> {
    if items.len() > most {
        d.invalid(at, format!("has more than {most} entries"), help);
        return None;
    }
    Some(items)
}

fn rule(d: &mut Decoder<'_>, at: &At<'_>) -> Option<JwtRule> {
    let fields = d.fields(at)?;
    let issuer = d.required(&fields, "issuer").and_then(|at| Some(Arc::from(d.text(&at)?)));
    let audiences = optional(fields.take("audiences"), |at| d.each(&at, text));
    let keys = keys(d, at, &fields);
    let places = places(d, at, &fields);
    let payload = optional(fields.take("outputPayloadToHeader"), |at| output(d, &at));
    let claims = optional(fields.take("outputClaimToHeaders"), |at| {
        let claims = d.each(&at, claim_header)?;
        within(d, &at, claims, MAX_PLACES, "leave some out")
    });
    let forward = optional(fields.take("forwardOriginalToken"), |at| d.boolean(&at));
    let timeout = optional(fields.take("timeout"), |at| duration::positive(d, &at));
    let spaced = optional(fields.take("spaceDelimitedClaims"), |at| d.each(&at, text));
    Some(JwtRule {
        issuer: issuer?,
        audiences: audiences?.unwrap_or_default(),
        keys: keys?,
        places: places?,
        payload_header: payload?,
        claim_headers: claims?.unwrap_or_default(),
        original: if forward?.unwrap_or(false) { Original::Forwarded } else { Original::Removed },
        timeout: timeout?.unwrap_or(FETCH_TIMEOUT),
        space_delimited: spaced?.unwrap_or_default(),
    })
}

fn text(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    d.text(at).map(Arc::from)
}

fn keys(d: &mut Decoder<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<KeySource> {
    let forms = ["jwks", "jwksFile", "jwksUri"];
    let mut written = forms.into_iter().filter_map(|form| Some((form, fields.take(form)?)));
    let Some((form, value)) = written.next() else {
        let help = "set `jwksUri`, `jwks` or `jwksFile`; an OpenID provider names its own as `jwks_uri` in \
                    `<issuer>/.well-known/openid-configuration`";
        d.invalid(at, "names no keys to verify tokens with", help);
        return None;
    };
    if let Some((other, at)) = written.next() {
        d.invalid(&at, format!("`{form}` and `{other}` cannot both be set"), "keep one of them");
        return None;
    }
    let text = d.text(&value)?;
    match form {
        "jwks" => inline(d, &value, text),
        "jwksFile" if text.starts_with('/') => Some(KeySource::File(text.into())),
        "jwksFile" => {
            d.invalid(
                &value,
                format!("{} is not an absolute path", quote(text)),
                "write such as `/etc/keys.json`",
            );
            None
        }
        _ => match KeyUrl::new(text) {
            Ok(url) => Some(KeySource::Url(url)),
            Err(error) => {
                d.invalid(
                    &value,
                    format!("{}: {error}", quote(text)),
                    "write such as `https://issuer.example/keys`",
                );
                None
            }
        },
    }
}

/// A JWK set. What each key is good for is found where tokens are verified.
fn inline(d: &mut Decoder<'_>, at: &At<'_>, text: &str) -> Option<KeySource> {
    let fault = match serde_json::from_str::<Json>(text) {
        Err(error) => Some((format!("is no JSON: {error}"), "copy what the issuer serves as its JWK set")),
        Ok(set) => match set.get("keys").and_then(Json::as_array) {
            None => {
                Some(("has no list `keys`".to_owned(), "write such as `{\"keys\": [{\"kty\": \"RSA\", …}]}`"))
            }
            Some(keys) => keys.iter().enumerate().find_map(|(index, key)| fault_of_key(index, key)),
        },
    };
    if let Some((message, help)) = fault {
        d.invalid(at, message, help);
        return None;
    }
    Some(KeySource::Inline(text.into()))
}

fn fault_of_key(index: usize, key: &Json) -> Option<(String, &'static str)> {
    let Some(kind) = key.get("kty").and_then(Json::as_str) else {
        return Some((format!("key {index} is no object with a text `kty`"), ""));
    };
    if kind == "oct" {
        let help = "who verifies by a shared secret can sign with it: use an RSA, EC or Ed25519 key";
        return Some((format!("key {index} is a secret (`oct`)"), help));
    }
    let member = PRIVATE.into_iter().find(|member| key.get(*member).is_some())?;
    Some((
        format!("key {index} has `{member}`: it is a private key"),
        "take the private key out, and replace it at the issuer: every host would have seen it",
    ))
}

/// Where tokens are looked for: headers first, then parameters, then cookies.
fn places(d: &mut Decoder<'_>, at: &At<'_>, fields: &Fields<'_>) -> Option<Vec<TokenPlace>> {
    let headers = optional(fields.take("fromHeaders"), |at| d.each(&at, from_header));
    let params = optional(fields.take("fromParams"), |at| d.each(&at, text));
    let cookies = optional(fields.take("fromCookies"), |at| {
        d.each(&at, |d, at| {
            let name = d.text(at)?;
            if name.bytes().all(is_token) {
                return Some(Arc::from(name));
            }
            d.invalid(at, format!("{} is not a cookie's name", quote(name)), "");
            None
        })
    });
    let mut all = headers?.unwrap_or_default();
    all.extend(params?.unwrap_or_default().into_iter().map(TokenPlace::Param));
    all.extend(cookies?.unwrap_or_default().into_iter().map(TokenPlace::Cookie));
    if all.is_empty() {
        all = TokenPlace::default_places();
    }
    within(d, at, all, MAX_PLACES, "look for tokens in fewer places")
}

fn from_header(d: &mut Decoder<'_>, at: &At<'_>) -> Option<TokenPlace> {
    let fields = d.fields(at)?;
    let name = d.required(&fields, "name").and_then(|at| field_name(d, &at));
    let prefix = optional(fields.take("prefix"), |at| d.any_text(&at));
    let (name, prefix) = (name?, prefix?.unwrap_or_default());
    // What this says in Istio's documentation is what RFC 6750 says, where the scheme's case does not matter.
    let is_bearer = &*name == "authorization" && prefix.trim_end() == "Bearer";
    Some(if is_bearer { TokenPlace::Bearer } else { TokenPlace::Header(name, prefix.into()) })
}

fn field_name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !text.bytes().all(is_token) {
        d.invalid(at, format!("{} is not a header name", quote(text)), "write such as `x-jwt-claim-sub`");
        return None;
    }
    Some(text.to_ascii_lowercase().into())
}

/// A field that the agent writes.
fn output(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let name = field_name(d, at)?;
    if FRAMING.contains(&&*name) {
        d.invalid(at, format!("{} is not for claims", quote(&name)), "write such as `x-jwt-payload`");
        return None;
    }
    Some(name)
}

fn claim_header(d: &mut Decoder<'_>, at: &At<'_>) -> Option<ClaimHeader> {
    let fields = d.fields(at)?;
    let header = d.required(&fields, "header").and_then(|at| output(d, &at));
    let claim = d.required(&fields, "claim").and_then(|at| {
        let claim = d.text(&at)?;
        if claim.split('.').count() > ClaimPath::MAX_DEPTH {
            d.invalid(&at, "leads too deep", "");
            return None;
        }
        Some(Arc::from(claim))
    });
    Some(ClaimHeader { header: header?, claim: claim? })
}

pub(super) fn encode(policy: &RequestAuthentication) -> Json {
    let mut spec = Map::new();
    if let Some(selector) = &policy.selector {
        spec.insert("selector".into(), json!({ "matchLabels": super::json::labels(selector) }));
    }
    if !policy.rules.is_empty() {
        spec.insert("jwtRules".into(), policy.rules.iter().map(encode_rule).collect());
    }
    if policy.missing == Missing::Refused {
        spec.insert("requireToken".into(), true.into());
    }
    Json::Object(spec)
}

fn encode_rule(rule: &JwtRule) -> Json {
    let mut out = Map::new();
    let mut list = |key: &str, items: Vec<Json>| {
        if !items.is_empty() {
            out.insert(key.into(), items.into());
        }
    };
    let texts = |all: &[Arc<str>]| all.iter().map(|text| (&**text).into()).collect();
    list("audiences", texts(&rule.audiences));
    list("spaceDelimitedClaims", texts(&rule.space_delimited));
    let headers = rule.places.iter().filter_map(|place| match place {
        TokenPlace::Bearer => Some(json!({ "name": "authorization", "prefix": "Bearer " })),
        TokenPlace::Header(name, prefix) if prefix.is_empty() => Some(json!({ "name": &**name })),
        TokenPlace::Header(name, prefix) => Some(json!({ "name": &**name, "prefix": &**prefix })),
        TokenPlace::Param(_) | TokenPlace::Cookie(_) => None,
    });
    if rule.places != TokenPlace::default_places() {
        list("fromHeaders", headers.collect());
        let params = rule.places.iter().filter_map(|place| match place {
            TokenPlace::Param(name) => Some((&**name).into()),
            _ => None,
        });
        list("fromParams", params.collect());
        let cookies = rule.places.iter().filter_map(|place| match place {
            TokenPlace::Cookie(name) => Some((&**name).into()),
            _ => None,
        });
        list("fromCookies", cookies.collect());
    }
    let claim = |to: &ClaimHeader| json!({ "header": &*to.header, "claim": &*to.claim });
    list("outputClaimToHeaders", rule.claim_headers.iter().map(claim).collect());
    out.insert("issuer".into(), (&*rule.issuer).into());
    let (key, value) = match &rule.keys {
        KeySource::Inline(text) => ("jwks", &**text),
        KeySource::File(path) => ("jwksFile", &**path),
        KeySource::Url(url) => ("jwksUri", url.as_str()),
    };
    out.insert(key.into(), value.into());
    if let Some(header) = &rule.payload_header {
        out.insert("outputPayloadToHeader".into(), (&**header).into());
    }
    if rule.original == Original::Forwarded {
        out.insert("forwardOriginalToken".into(), true.into());
    }
    if rule.timeout != FETCH_TIMEOUT {
        out.insert("timeout".into(), duration::text(rule.timeout).into());
    }
    Json::Object(out)
}

/// What stands in the place of one that is not understood: it asks for a token, and takes none.
pub(super) fn closed(key: Key, selector: Option<Labels>) -> RequestAuthentication {
    RequestAuthentication { key, selector, rules: Vec::new(), missing: Missing::Refused }
}
