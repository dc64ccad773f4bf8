//! `service-router`: routes by what a request is.

use baremesh_model::name::Label;
use serde_json::{Map, Value as Json, json};

use super::entries::name;
use super::fields::Fields;
use super::resolver::millis;
use super::{Findings, headers};

/// One route.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// `match` of a route: any of these; none takes everything.
    pub(super) matches: Vec<Json>,
    /// Where it goes.
    pub(super) service: Label,
    /// To which subset of it.
    pub(super) subset: Option<String>,
    /// `rewrite`, `timeout` and `retries` as a route has them.
    pub(super) options: Map<String, Json>,
    /// What changes on the way.
    pub(super) headers: Option<Json>,
}

pub(super) fn read(fields: Fields<'_>, own: &Label, f: &mut Findings) -> Vec<Route> {
    let routes = fields.objects(f, "Routes");
    let routes = routes.into_iter().filter_map(|fields| route(fields, own, f)).collect();
    fields.finish(f);
    routes
}

fn route(fields: Fields<'_>, own: &Label, f: &mut Findings) -> Option<Route> {
    let http = fields.object(f, "Match").and_then(|outer| {
        let http = outer.object(f, "HTTP");
        outer.finish(f);
        http
    });
    let matches = http.and_then(|http| asked(http, f)).into_iter().collect();
    let mut route = Route { matches, service: own.clone(), subset: None, options: Map::new(), headers: None };
    if let Some(to) = fields.object(f, "Destination") {
        to.at_home(f);
        if let Some(text) = to.text(f, "Service") {
            route.service = name(f, &to.entry, Some(&to.place("Service")), text)?;
        }
        route.subset = to.text(f, "ServiceSubset").map(str::to_owned);
        route.headers = headers::read(&to, f);
        if let Some(prefix) = to.text(f, "PrefixRewrite") {
            route.options.insert("rewrite".into(), json!({ "uri": prefix }));
        }
        if let Some(timeout) = millis(&to, "RequestTimeout", f) {
            route.options.insert("timeout".into(), timeout.into());
        }
        let help = "use `idle_timeout_seconds` of agent.toml, or RequestTimeout";
        to.unsaid(f, "IdleTimeout", "routes have no time limit of their own on silence", help);
        if let Some(retries) = retries(&to, f) {
            route.options.insert("retries".into(), retries);
        }
        to.finish(f);
    }
    fields.finish(f);
    Some(route)
}

/// Envoy tries once more where it is asked to try again and nobody says how often.
const RETRIES: u64 = 1;

fn retries(to: &Fields<'_>, f: &mut Findings) -> Option<Json> {
    let attempts = to.number(f, "NumRetries");
    let mut on: Vec<String> = to.texts(f, "RetryOn").into_iter().map(str::to_owned).collect();
    if to.flag(f, "RetryOnConnectFailure") && !on.iter().any(|word| word == "connect-failure") {
        on.push("connect-failure".into());
    }
    if let Some(codes) = to.value("RetryOnStatusCodes") {
        let read: Option<Vec<u64>> =
            codes.as_array().and_then(|codes| codes.iter().map(Json::as_u64).collect());
        match read {
            Some(codes) => on.extend(codes.iter().map(u64::to_string)),
            None => to.refuse(f, "RetryOnStatusCodes", "is not a list of status codes", ""),
        }
    }
    // Without a reason Envoy tries nothing again, however many times it may.
    match (attempts, on.is_empty()) {
        (None, true) => None,
        (_, true) => Some(json!({ "attempts": 0 })),
        (attempts, false) => {
            Some(json!({ "attempts": attempts.unwrap_or(RETRIES), "retryOn": on.join(",") }))
        }
    }
}

fn asked(http: Fields<'_>, f: &mut Findings) -> Option<Json> {
    let mut block = Map::new();
    for (key, way) in [("PathExact", "exact"), ("PathPrefix", "prefix"), ("PathRegex", "regex")] {
        if let Some(text) = http.text(f, key) {
            // Every path starts with a slash.
            if way == "prefix" && text == "/" {
                continue;
            }
            block.insert("uri".into(), json!({ way: text }));
        }
    }
    if http.flag(f, "CaseInsensitive") {
        block.insert("ignoreUriCase".into(), true.into());
    }
    match &http.texts(f, "Methods")[..] {
        [] => {}
        [method] => _ = block.insert("method".into(), json!({ "exact": method })),
        methods => _ = block.insert("method".into(), json!({ "regex": methods.join("|") })),
    }
    let (mut with, mut without) = (Map::new(), Map::new());
    for header in http.objects(f, "Header") {
        self::header(header, (&mut with, &mut without), f);
    }
    for (key, map) in [("headers", with), ("withoutHeaders", without)] {
        if !map.is_empty() {
            block.insert(key.into(), map.into());
        }
    }
    let mut params = Map::new();
    for param in http.objects(f, "QueryParam") {
        parameter(param, &mut params, f);
    }
    if !params.is_empty() {
        block.insert("queryParams".into(), params.into());
    }
    http.finish(f);
    (!block.is_empty()).then(|| block.into())
}

/// One way to match a text; several are refused.
fn way(fields: &Fields<'_>, f: &mut Findings) -> Option<Json> {
    let mut ways = Vec::new();
    for (key, way) in [("Exact", "exact"), ("Prefix", "prefix"), ("Regex", "regex")] {
        if let Some(text) = fields.text(f, key) {
            ways.push(json!({ way: text }));
        }
    }
    if let Some(suffix) = fields.text(f, "Suffix") {
        ways.push(json!({ "regex": format!("(?s).*{}", escaped(suffix)) }));
    }
    if fields.flag(f, "Present") {
        ways.push(json!({}));
    }
    if ways.len() != 1 {
        fields.refuse(
            f,
            "Name",
            "is to match in no way, or in several",
            "keep one of Exact, Prefix, Suffix, Regex, Present",
        );
    }
    ways.pop()
}

/// A text as a regular expression.
fn escaped(text: &str) -> String {
    let special = |c: char| c.is_ascii_punctuation();
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// With `Invert`, a field that is there and does not match, as Envoy has it; of `Present`, one that is missing.
fn header(
    fields: Fields<'_>,
    (with, without): (&mut Map<String, Json>, &mut Map<String, Json>),
    f: &mut Findings,
) {
    let Some(name) = fields.text(f, "Name").map(str::to_ascii_lowercase) else {
        fields.refuse(f, "Name", "a header without a name", "");
        return;
    };
    let inverted = fields.flag(f, "Invert");
    let Some(way) = way(&fields, f) else { return };
    let mut insert = |map: &mut Map<String, Json>, way: Json| {
        if map.insert(name.clone(), way.clone()).is_some_and(|before| before != way) {
            fields.refuse(f, "Name", "is asked for twice in one match", "write one regular expression");
        }
    };
    match (inverted, way == json!({})) {
        (false, _) => insert(with, way),
        (true, true) => insert(without, way),
        (true, false) => {
            insert(with, json!({}));
            insert(without, way);
        }
    }
    fields.finish(f);
}

fn parameter(fields: Fields<'_>, params: &mut Map<String, Json>, f: &mut Findings) {
    let Some(name) = fields.text(f, "Name") else {
        fields.refuse(f, "Name", "a parameter without a name", "");
        return;
    };
    let Some(way) = way(&fields, f) else { return };
    if params.insert(name.to_owned(), way).is_some() {
        fields.refuse(f, "Name", "is asked for twice in one match", "write one regular expression");
    }
    fields.finish(f);
}
