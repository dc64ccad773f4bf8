//! `VirtualService`: how requests and connections are routed.

use std::collections::BTreeSet;
use std::sync::Arc;

use baremesh_model::name::Label;
use baremesh_model::virtual_service::{Gateway, HostPattern, HttpMatch, VirtualService, Visibility};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use crate::diagnostic::quote;

/// Back to a document.
mod encode;
/// Entries of `http`.
mod http;
/// What routes ask for.
mod matching;
/// Retries, faults, mirrors, CORS, changes of fields.
mod options;
/// Entries of `tcp` and `tls`.
mod stream;
/// The table of fields.
mod table;

pub(super) use encode::{
    encode, export_to as encode_export_to, http_match as encode_match, retries as encode_retries,
};
pub(super) use options::retries as decode_retries;
pub(super) use table::FIELDS;

/// What names within the resource are read by.
#[derive(Debug, Clone, Copy)]
struct Named<'a> {
    /// The resource's namespace.
    namespace: &'a Label,
    /// Whether it has no hosts.
    is_delegate: bool,
}

/// One block of a match on requests, as another kind of `namespace` has it.
pub(super) fn http_match(d: &mut Decoder<'_>, at: &At<'_>, namespace: &Label) -> Option<HttpMatch> {
    matching::http_match(d, at, Named { namespace, is_delegate: false })
}

pub(super) fn decode(
    d: &mut Decoder<'_>,
    metadata: &Metadata<'_>,
    spec: &Fields<'_>,
) -> Option<VirtualService> {
    let hosts = optional(spec.take("hosts"), |at| hosts(d, &at)).map(Option::unwrap_or_default);
    let is_delegate = hosts.as_ref().is_some_and(Vec::is_empty);
    let named = Named { namespace: &metadata.key.namespace, is_delegate };
    let gateways = optional(spec.take("gateways"), |at| matching::gateways(d, &at, named));
    let export_to = optional(spec.take("exportTo"), |at| export_to(d, &at, named.namespace));
    let http = optional(spec.take("http"), |at| d.each(&at, |d, at| http::entry(d, at, named)));
    let tls = optional(spec.take("tls"), |at| {
        // Of hosts that did not read nothing is said a second time.
        let of = hosts.as_ref()?;
        d.each(&at, |d, at| stream::tls(d, at, named, of))
    });
    let tcp = optional(spec.take("tcp"), |at| d.each(&at, |d, at| stream::tcp(d, at, named)));
    let service = VirtualService {
        key: metadata.key.clone(),
        hosts: hosts?,
        gateways: gateways?.unwrap_or_else(|| vec![Gateway::Mesh]),
        export_to: export_to?.unwrap_or_default(),
        http: http?.unwrap_or_default(),
        tls: tls?.unwrap_or_default(),
        tcp: tcp?.unwrap_or_default(),
    };
    fits_together(d, spec, &service).then_some(service)
}

/// What no field shows by itself.
fn fits_together(d: &mut Decoder<'_>, spec: &Fields<'_>, service: &VirtualService) -> bool {
    let fault = if service.http.is_empty() && service.tls.is_empty() && service.tcp.is_empty() {
        Some(("http, tcp or tls must be provided in virtual service", "add `http` with a `route`"))
    } else if service.is_delegate() && (!service.tls.is_empty() || !service.tcp.is_empty()) {
        Some((
            "a delegate, which has no `hosts`, has HTTP routes alone",
            "add `hosts`, or remove `tcp` and `tls`",
        ))
    } else if service.is_delegate() && spec.take("gateways").is_some() {
        Some((
            "a delegate, which has no `hosts`, holds where its root does",
            "add `hosts`, or remove `gateways`",
        ))
    } else if service.gateways.contains(&Gateway::Mesh) && service.hosts.contains(&HostPattern::Any) {
        let message = "wildcard host * is not allowed for virtual services bound to the mesh gateway";
        Some((message, "name the hosts, or use `*.` and a domain"))
    } else {
        None
    };
    if let Some((message, help)) = fault {
        d.findings.error(spec.span, crate::diagnostic::Code::InvalidValue, message, help);
    }
    fault.is_none()
}

fn hosts(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Vec<HostPattern>> {
    let mut read: Vec<HostPattern> = Vec::new();
    let all = d.each(at, |d, at| {
        let host = host(d, at)?;
        if let Some(other) = read.iter().find(|other| other.covers(&host) || host.covers(other)) {
            let message = format!("duplicate hosts in virtual service: {} and {}", other, host);
            d.invalid(at, message, "keep one of the two: a star takes all that end so");
            return None;
        }
        read.push(host);
        Some(())
    });
    all.map(|_| read)
}

fn host(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HostPattern> {
    let text = d.text(at)?;
    HostPattern::new(text).map_err(|error| d.invalid(at, error.to_string(), "")).ok()
}

/// A host without a star.
fn exact_host(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    match host(d, at)? {
        HostPattern::Exact(host) => Some(host),
        star => {
            d.invalid(
                at,
                format!("{} is not one host", quote(&star.to_string())),
                "a destination has no star",
            );
            None
        }
    }
}

/// `*` is everybody, `.` the own namespace, `~` nobody.
pub(super) fn export_to(d: &mut Decoder<'_>, at: &At<'_>, own: &Label) -> Option<Visibility> {
    let items = d.list(at)?;
    let (mut namespaces, mut others) = (BTreeSet::new(), Vec::new());
    for item in &items {
        match d.text(item)? {
            "." => _ = namespaces.insert(own.clone()),
            text @ ("*" | "~") => others.push(text),
            text => _ = namespaces.insert(d.named(item, Label::new(text))?),
        }
    }
    match (&others[..], namespaces.is_empty()) {
        ([], true) | (["*"], true) => Some(Visibility::Everywhere),
        (["~"], true) => Some(Visibility::Namespaces(namespaces)),
        ([], false) => Some(Visibility::Namespaces(namespaces)),
        _ => {
            d.invalid(at, "`*` and `~` stand alone", "name everybody, nobody, or namespaces");
            None
        }
    }
}
