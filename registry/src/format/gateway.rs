//! `Gateway`: which hosts leave the mesh through gateway hosts. Those that let clients into the mesh need certificates of
//! their own, and are refused until there are such.

use std::sync::Arc;

use baremesh_model::gateway::{Carries, Gateway, MAX_HOSTS, MAX_SERVERS, Server, ServerHost, ServerProtocol};
use baremesh_model::name::Label;
use baremesh_model::virtual_service::HostPattern;
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced, no_effect, refused};
use super::json;
use crate::diagnostic::quote;

/// Why what only gateways into the mesh have is refused.
const INTO_THE_MESH: &str =
    "gateways into the mesh are not there yet: callers come through the mesh's own mutual TLS alone";

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced(
        "selector",
        "labels of the gateways that it is for, all of them, in whichever namespace; a gateway has `istio: egressgateway` unless \
         registered with another",
    ),
    enforced("servers", "what they carry"),
    enforced("servers[].port", "the port of the gateway that callers name"),
    enforced("servers[].port.number", "its number, 1 to 65535"),
    enforced(
        "servers[].port.protocol",
        "HTTP, HTTP2, GRPC: requests, found by their authority; HTTPS, TLS: as `tls.mode` says; TCP: bytes, found by the port alone",
    ),
    enforced("servers[].port.name", "for people: `explain` shows it"),
    no_effect("servers[].port.targetPort", "callers name the port, and nothing listens behind it"),
    enforced("servers[].name", "for people, in the place of the port's"),
    enforced(
        "servers[].hosts",
        "hosts that leave through it: names, `*.` and a domain, or `*`; `namespace/` in front has VirtualServices and \
         ServiceEntries of that namespace alone say where they are, `./` those of its own",
    ),
    refused("servers[].bind", "an agent takes tunnels at the addresses of its host: remove it"),
    refused("servers[].defaultEndpoint", "name the destination in a VirtualService"),
    enforced("servers[].tls", "with HTTPS and TLS"),
    enforced(
        "servers[].tls.mode",
        "PASSTHROUGH: the caller's own TLS, by its server name; ISTIO_MUTUAL: requests with HTTPS, bytes with TLS, within the mesh's \
         own mutual TLS",
    ),
    refused("servers[].tls.httpsRedirect", INTO_THE_MESH),
    refused("servers[].tls.serverCertificate", INTO_THE_MESH),
    refused("servers[].tls.privateKey", INTO_THE_MESH),
    refused("servers[].tls.caCertificates", INTO_THE_MESH),
    refused("servers[].tls.caCrl", INTO_THE_MESH),
    refused("servers[].tls.credentialName", INTO_THE_MESH),
    refused("servers[].tls.credentialNames", INTO_THE_MESH),
    refused("servers[].tls.caCertCredentialName", INTO_THE_MESH),
    refused("servers[].tls.tlsCertificates", INTO_THE_MESH),
    refused("servers[].tls.subjectAltNames", "say who may call in an AuthorizationPolicy"),
    refused("servers[].tls.verifyCertificateSpki", "say who may call in an AuthorizationPolicy"),
    refused("servers[].tls.verifyCertificateHash", "say who may call in an AuthorizationPolicy"),
    refused(
        "servers[].tls.minProtocolVersion",
        "the mesh's own TLS is 1.3, and the caller's own is not looked into",
    ),
    refused(
        "servers[].tls.maxProtocolVersion",
        "the mesh's own TLS is 1.3, and the caller's own is not looked into",
    ),
    refused(
        "servers[].tls.cipherSuites",
        "the mesh's own TLS is 1.3, and the caller's own is not looked into",
    ),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<Gateway> {
    let selector = d.required(spec, "selector").and_then(|at| {
        let labels = d.labels(&at)?;
        if labels.is_empty() {
            d.invalid(&at, "names no gateway", "write the labels of one, such as `istio: egressgateway`");
            return None;
        }
        Some(labels)
    });
    let own = &metadata.key.namespace;
    let servers = d.required(spec, "servers").and_then(|at| {
        let servers = d.each(&at, |d, at| server(d, at, own))?;
        bounded(d, &at, servers, MAX_SERVERS)
    });
    Some(Gateway { key: metadata.key.clone(), selector: selector?, servers: servers? })
}

/// The items of a list that has some, and not too many.
fn bounded<T>(d: &mut Decoder<'_>, at: &At<'_>, items: Vec<T>, most: usize) -> Option<Vec<T>> {
    if items.is_empty() {
        d.invalid(at, "must have at least one item", "");
        return None;
    }
    if items.len() > most {
        d.invalid(at, format!("{} items, and the limit is {most}", items.len()), "write several Gateways");
        return None;
    }
    Some(items)
}

fn server(d: &mut Decoder<'_>, at: &At<'_>, own: &Label) -> Option<Server> {
    let fields = d.fields(at)?;
    let name = optional(fields.take("name"), |at| d.text(&at));
    let mode = optional(fields.take("tls"), |at| {
        let fields = d.fields(&at)?;
        optional(fields.take("mode"), |at| mode(d, at))
    });
    let port = d.required(&fields, "port").and_then(|at| {
        let fields = d.fields(&at)?;
        let number = d.required(&fields, "number").and_then(|at| d.port(&at));
        let name = optional(fields.take("name"), |at| d.text(&at));
        let protocol = d.required(&fields, "protocol").and_then(|at| protocol(d, at));
        Some((number?, name?.map(Arc::from), protocol?))
    });
    let hosts = d.required(&fields, "hosts").and_then(|at| {
        let hosts = d.each(&at, |d, at| host(d, at, own))?;
        bounded(d, &at, hosts, MAX_HOSTS)
    });
    let (number, port_name, named) = port?;
    let protocol = together(d, named, mode?.flatten().as_ref())?;
    let hosts = hosts?;
    let is_suffix = |host: &ServerHost| matches!(host.host, HostPattern::Suffix(_));
    if protocol.carries() == Carries::Bytes
        && let Some(star) = hosts.iter().find(|host| is_suffix(host))
    {
        let message = format!("{} names nothing in plain bytes", quote(&star.to_string()));
        let at = fields.take("hosts")?;
        d.invalid(&at, message, "name one host, or `*`: bytes are found by the port alone");
        return None;
    }
    Some(Server { port: number, port_name, protocol, name: name?.map(Arc::from), hosts })
}

/// A protocol, in capitals.
fn protocol<'a>(d: &mut Decoder<'_>, at: At<'a>) -> Option<(String, At<'a>)> {
    let name = d.text(&at)?;
    let upper = name.to_ascii_uppercase();
    if !ServerProtocol::ALL.iter().any(|one| one.names().0 == upper) {
        let message = format!("{} is no protocol of a gateway", quote(name));
        d.invalid(&at, message, "write HTTP, HTTP2, GRPC, HTTPS, TLS or TCP");
        return None;
    }
    Some((upper, at))
}

/// A mode that there is.
fn mode<'a>(d: &mut Decoder<'_>, at: At<'a>) -> Option<(String, At<'a>)> {
    let mode = d.text(&at)?;
    match mode {
        "PASSTHROUGH" | "ISTIO_MUTUAL" => return Some((mode.to_owned(), at)),
        "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL" | "AUTO_PASSTHROUGH" => {
            d.invalid(&at, format!("the mode {mode} is not supported yet"), INTO_THE_MESH);
        }
        _ => d.invalid(&at, format!("{} is no mode", quote(mode)), "write PASSTHROUGH or ISTIO_MUTUAL"),
    }
    None
}

/// What protocol and mode come to together.
fn together(
    d: &mut Decoder<'_>,
    (upper, at): (String, At<'_>),
    mode: Option<&(String, At<'_>)>,
) -> Option<ServerProtocol> {
    let written = (upper.as_str(), mode.map(|(mode, _)| mode.as_str()));
    let found = ServerProtocol::ALL.into_iter().find(|one| one.names() == written);
    if found.is_none() {
        match mode {
            Some((_, at)) => d.invalid(
                at,
                format!("server cannot have TLS settings for plain {upper} ports"),
                "remove `tls`, or set the port's protocol to HTTPS or TLS",
            ),
            None => d.invalid(
                &at,
                "server must have TLS settings for HTTPS/TLS protocols",
                "add `tls: { mode: PASSTHROUGH }` or `tls: { mode: ISTIO_MUTUAL }`",
            ),
        }
    }
    found
}

fn host(d: &mut Decoder<'_>, at: &At<'_>, own: &Label) -> Option<ServerHost> {
    let text = d.text(at)?;
    let (namespace, name) = match text.split_once('/') {
        None | Some(("*", _)) => (None, text.split_once('/').map_or(text, |(_, name)| name)),
        Some((".", name)) => (Some(own.clone()), name),
        Some((namespace, name)) => (Some(d.named(at, Label::new(namespace))?), name),
    };
    let host = HostPattern::new(name).map_err(|error| d.invalid(at, error.to_string(), "")).ok()?;
    Some(ServerHost { namespace, host })
}

pub(super) fn encode(gateway: &Gateway) -> Json {
    let server = |server: &Server| {
        let (protocol, mode) = server.protocol.names();
        let mut port = json!({ "number": server.port.get(), "protocol": protocol });
        if let Some(name) = &server.port_name {
            port["name"] = (&**name).into();
        }
        let mut out = Map::new();
        if let Some(name) = &server.name {
            out.insert("name".into(), (&**name).into());
        }
        out.insert("port".into(), port);
        out.insert("hosts".into(), server.hosts.iter().map(|host| Json::from(host.to_string())).collect());
        if let Some(mode) = mode {
            out.insert("tls".into(), json!({ "mode": mode }));
        }
        Json::Object(out)
    };
    let servers: Vec<Json> = gateway.servers.iter().map(server).collect();
    json!({ "selector": json::labels(&gateway.selector), "servers": servers })
}
