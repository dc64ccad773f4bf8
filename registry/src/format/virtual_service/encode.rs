//! A VirtualService as a document, which reads as the same again.

use baremesh_model::string_match::{Case, StringMatch};
use baremesh_model::virtual_service::{
    AbortStatus, CorsPolicy, Credentials, Destination, DirectResponse, Fault, Gateway, HeaderOperations,
    HeaderRules, HeaderValue, HttpAction, HttpEntry, HttpMatch, Mirror, PathRewrite, Percentage, Redirect,
    RedirectPath, RedirectPort, RetryConditions, RetryPolicy, Rewrite, RouteOptions, Scope, Split, TcpMatch,
    UnmatchedPreflights, UrlText, VirtualService, Visibility,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};

use super::matching::CLAIMS;
use crate::format::duration;

/// A map that leaves out what is empty.
#[derive(Default)]
struct Out(Map<String, Json>);

impl Out {
    fn put(&mut self, key: &str, value: impl Into<Json>) {
        self.0.insert(key.into(), value.into());
    }

    fn maybe(&mut self, key: &str, value: Option<impl Into<Json>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn list(&mut self, key: &str, items: impl Iterator<Item = Json>) {
        let items: Vec<Json> = items.collect();
        if !items.is_empty() {
            self.put(key, items);
        }
    }

    fn done(self) -> Json {
        Json::Object(self.0)
    }
}

pub(in crate::format) fn encode(service: &VirtualService) -> Json {
    let mut out = Out::default();
    out.list("hosts", service.hosts.iter().map(|host| host.to_string().into()));
    if service.gateways != [Gateway::Mesh] {
        out.list("gateways", service.gateways.iter().map(|gateway| gateway.to_string().into()));
    }
    if let Some(namespaces) = export_to(&service.export_to) {
        out.put("exportTo", namespaces);
    }
    out.list("http", service.http.iter().map(http_entry));
    out.list(
        "tls",
        service.tls.iter().map(|route| {
            let block = |block: &baremesh_model::virtual_service::TlsMatch| {
                let mut out = connection(&block.connection);
                out.list("sniHosts", block.sni_hosts.iter().map(|host| host.to_string().into()));
                out.done()
            };
            json!({ "match": route.matches.iter().map(block).collect::<Vec<_>>(), "route": split(&route.split) })
        }),
    );
    out.list(
        "tcp",
        service.tcp.iter().map(|route| {
            let mut out = Out::default();
            out.list("match", route.matches.iter().map(|block| connection(block).done()));
            out.put("route", split(&route.split));
            out.done()
        }),
    );
    out.done()
}

fn http_entry(entry: &HttpEntry) -> Json {
    let mut out = Out::default();
    let (name, matches, options) = match entry {
        HttpEntry::Route(route) => (&route.name, &route.matches, &route.options),
        HttpEntry::Delegate(delegation) => (&delegation.name, &delegation.matches, &delegation.options),
    };
    out.maybe("name", name.as_deref());
    out.list("match", matches.iter().map(http_match));
    match entry {
        HttpEntry::Delegate(delegation) => {
            let to = &delegation.to;
            out.put("delegate", json!({ "name": to.name.as_str(), "namespace": to.namespace.as_str() }));
        }
        HttpEntry::Route(route) => match &route.action {
            HttpAction::Forward(destinations) => out.put("route", split(destinations)),
            HttpAction::Redirect(to) => out.put("redirect", redirect(to)),
            HttpAction::Respond(answer) => out.put("directResponse", direct_response(answer)),
        },
    }
    put_options(&mut out, options);
    out.done()
}

/// One block of a match on requests.
pub(in crate::format) fn http_match(block: &HttpMatch) -> Json {
    let mut out = scope(&block.scope);
    out.maybe("name", block.name.as_deref());
    out.maybe("uri", block.uri.as_ref().map(string_match));
    if block.uri_case == Case::Ignored {
        out.put("ignoreUriCase", true);
    }
    out.maybe("scheme", block.scheme.as_ref().map(string_match));
    out.maybe("method", block.method.as_ref().map(string_match));
    out.maybe("authority", block.authority.as_ref().map(string_match));
    let lists = [
        ("headers", &block.headers, &block.claims),
        ("withoutHeaders", &block.without_headers, &block.without_claims),
        ("queryParams", &block.query_params, &Vec::new()),
    ];
    for (key, fields, claims) in lists {
        let fields = fields.iter().map(|(name, asked)| (name.to_string(), string_match(asked)));
        let claims = claims.iter().map(|(path, asked)| (format!("{CLAIMS}{path}"), string_match(asked)));
        let entries: Map<String, Json> = fields.chain(claims).collect();
        if !entries.is_empty() {
            out.put(key, Json::Object(entries));
        }
    }
    out.done()
}

fn string_match(asked: &StringMatch) -> Json {
    match asked {
        StringMatch::Exact(text) => json!({ "exact": &**text }),
        StringMatch::Prefix(text) => json!({ "prefix": &**text }),
        StringMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
        StringMatch::Present => json!({}),
    }
}

fn scope(scope: &Scope) -> Out {
    let mut out = Out::default();
    out.list("gateways", scope.gateways.iter().map(|gateway| gateway.to_string().into()));
    if !scope.source_labels.is_empty() {
        out.put("sourceLabels", crate::format::json::labels(&scope.source_labels));
    }
    out.maybe("sourceNamespace", scope.source_namespace.as_ref().map(|namespace| namespace.as_str()));
    out.maybe("port", scope.port.map(|port| port.get()));
    out
}

fn connection(block: &TcpMatch) -> Out {
    let mut out = scope(&block.scope);
    out.list("destinationSubnets", block.destination_subnets.iter().map(|subnet| subnet.to_string().into()));
    out
}

fn split(split: &Split) -> Json {
    let all = split.all().iter().map(|to| {
        let mut out = Out::default();
        out.put("destination", destination(&to.destination));
        if to.weight != 0 {
            out.put("weight", to.weight);
        }
        if to.headers != HeaderRules::default() {
            out.put("headers", header_rules(&to.headers));
        }
        out.done()
    });
    all.collect::<Vec<_>>().into()
}

fn destination(to: &Destination) -> Json {
    let mut out = Out::default();
    out.put("host", &*to.host);
    out.maybe("subset", to.subset.as_deref());
    out.maybe("port", to.port.map(|port| json!({ "number": port.get() })));
    out.done()
}

fn redirect(to: &Redirect) -> Json {
    let mut out = Out::default();
    match &to.path {
        Some(RedirectPath::Whole(text)) => out.put("uri", text.as_str()),
        Some(RedirectPath::Matched(text)) => out.put("prefixRewrite", text.as_str()),
        None => {}
    }
    out.maybe("authority", to.authority.as_ref().map(UrlText::as_str));
    match to.port {
        Some(RedirectPort::Number(port)) => out.put("port", port.get()),
        Some(RedirectPort::FromRequest) => out.put("derivePort", "FROM_REQUEST_PORT"),
        Some(RedirectPort::FromScheme) => out.put("derivePort", "FROM_PROTOCOL_DEFAULT"),
        None => {}
    }
    out.maybe("scheme", to.scheme.map(|scheme| scheme.name()));
    out.put("redirectCode", to.status.code());
    out.done()
}

fn direct_response(answer: &DirectResponse) -> Json {
    let mut out = Out::default();
    out.put("status", answer.status);
    out.maybe(
        "body",
        answer.body.as_ref().map(|body| match std::str::from_utf8(body) {
            Ok(text) => json!({ "string": text }),
            Err(_) => json!({ "bytes": STANDARD.encode(body) }),
        }),
    );
    out.done()
}

fn put_options(out: &mut Out, options: &RouteOptions) {
    out.maybe("rewrite", options.rewrite.as_ref().map(rewrite));
    out.maybe("timeout", options.timeout.map(duration::text));
    out.maybe("retries", options.retries.as_ref().map(retries));
    out.maybe("fault", options.fault.as_ref().map(fault));
    out.list("mirrors", options.mirrors.iter().map(mirror));
    out.maybe("corsPolicy", options.cors.as_ref().map(cors));
    out.maybe("headers", options.headers.as_ref().map(header_rules));
}

fn rewrite(rewrite: &Rewrite) -> Json {
    let mut out = Out::default();
    match &rewrite.path {
        Some(PathRewrite::Matched(text)) => out.put("uri", text.as_str()),
        Some(PathRewrite::Regex { pattern, substitution }) => {
            let text = substitution.as_ref().map_or("", UrlText::as_str);
            out.put("uriRegexRewrite", json!({ "match": pattern.as_str(), "rewrite": text }));
        }
        None => {}
    }
    out.maybe("authority", rewrite.authority.as_ref().map(UrlText::as_str));
    out.done()
}

pub(in crate::format) fn retries(policy: &RetryPolicy) -> Json {
    let mut out = Out::default();
    out.put("attempts", policy.attempts);
    if policy.attempts == 0 {
        // Nothing else is taken beside it.
        return out.done();
    }
    out.maybe("perTryTimeout", policy.per_try_timeout.map(duration::text));
    if policy.conditions != RetryConditions::default() {
        out.put("retryOn", policy.conditions.text());
    }
    out.put("backoff", duration::text(policy.backoff));
    out.maybe("retryIgnorePreviousHosts", policy.ignore_previous_hosts);
    if policy.remote_localities {
        out.put("retryRemoteLocalities", true);
    }
    out.done()
}

fn fault(fault: &Fault) -> Json {
    let mut out = Out::default();
    if let Some(delay) = &fault.delay {
        let fixed = duration::text(delay.fixed);
        out.put("delay", json!({ "fixedDelay": fixed, "percentage": percentage(delay.percentage) }));
    }
    if let Some(abort) = &fault.abort {
        let share = percentage(abort.percentage);
        out.put(
            "abort",
            match abort.status {
                AbortStatus::Http(status) => json!({ "httpStatus": status, "percentage": share }),
                AbortStatus::Grpc(status) => json!({ "grpcStatus": status.name(), "percentage": share }),
            },
        );
    }
    out.done()
}

/// Whole numbers are written as such.
fn percentage(share: Percentage) -> Json {
    let percent = share.percent();
    if percent.fract() == 0.0 { json!({ "value": percent as u8 }) } else { json!({ "value": percent }) }
}

fn mirror(mirror: &Mirror) -> Json {
    json!({ "destination": destination(&mirror.destination), "percentage": percentage(mirror.percentage) })
}

fn cors(policy: &CorsPolicy) -> Json {
    let mut out = Out::default();
    out.list("allowOrigins", policy.allow_origins.iter().map(string_match));
    let lists = [
        ("allowMethods", &policy.allow_methods),
        ("allowHeaders", &policy.allow_headers),
        ("exposeHeaders", &policy.expose_headers),
    ];
    for (key, list) in lists {
        out.list(key, list.iter().map(|text| (&**text).into()));
    }
    out.maybe("maxAge", policy.max_age.map(duration::text));
    if policy.credentials == Credentials::Allowed {
        out.put("allowCredentials", true);
    }
    if policy.unmatched_preflights == UnmatchedPreflights::Ignore {
        out.put("unmatchedPreflights", "IGNORE");
    }
    out.done()
}

fn header_rules(rules: &HeaderRules) -> Json {
    let mut out = Out::default();
    let request = operations(&rules.request, rules.authority.as_deref());
    let response = operations(&rules.response, None);
    for (key, operations) in [("request", request), ("response", response)] {
        if !operations.0.is_empty() {
            out.put(key, operations.done());
        }
    }
    out.done()
}

fn operations(operations: &HeaderOperations, authority: Option<&str>) -> Out {
    let escaped = |text: &str| Json::from(text.replace('%', "%%"));
    let entries = |values: &[HeaderValue]| -> Map<String, Json> {
        values.iter().map(|field| (field.name().to_owned(), escaped(field.value()))).collect()
    };
    let mut set = entries(&operations.set);
    if let Some(authority) = authority {
        set.insert(":authority".to_owned(), escaped(authority));
    }
    let mut out = Out::default();
    for (key, entries) in [("set", set), ("add", entries(&operations.add))] {
        if !entries.is_empty() {
            out.put(key, Json::Object(entries));
        }
    }
    out.list("remove", operations.remove.iter().map(|name| (&**name).into()));
    out
}

/// `exportTo`, where it says anything.
pub(in crate::format) fn export_to(visibility: &Visibility) -> Option<Json> {
    match visibility {
        Visibility::Everywhere => None,
        Visibility::Namespaces(none) if none.is_empty() => Some(json!(["~"])),
        Visibility::Namespaces(namespaces) => {
            Some(namespaces.iter().map(|namespace| Json::from(namespace.as_str())).collect())
        }
    }
}
