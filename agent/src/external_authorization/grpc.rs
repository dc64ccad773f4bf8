//! Asking over gRPC: `envoy.service.auth.v3.Authorization/Check`, written and read as Envoy does.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use baremesh_model::external_authorization::{
    Changes, CheckAnswer, Denial, ExtensionProvider, FieldAction, FieldChange, PARTIAL_BODY, Packing,
    may_be_set,
};
use baremesh_model::http::Headers;
use baremesh_model::identity::Identity;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;

use super::messages::{
    Address, AttributeContext, CheckRequest, CheckResponse, HeaderValueOption, HttpRequest, Peer, Request,
    SocketAddress, Timestamp, TlsSession,
};
use super::question::{Peers, Shown};

/// The method that is called.
pub const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The bytes before a message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;
/// The status of a refused request where the provider names none.
const FORBIDDEN: u16 = 403;
/// Fields that differ from request to request and say nothing of it: not sent where answers are kept, so that two requests
/// alike are the same question.
const OF_ONE_REQUEST: [&str; 8] = [
    "x-request-id",
    "x-envoy-attempt-count",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
];

/// The message with its prefix.
pub fn question(
    provider: &ExtensionProvider,
    peers: Peers<'_>,
    request: Option<Shown<'_>>,
    now: SystemTime,
) -> Bytes {
    let is_kept = provider.cache.is_some();
    let packing = provider.body.map_or(Packing::Text, |body| body.packing);
    // A port is another for each connection, and a moment for each request.
    let port = if is_kept { 0 } else { peers.client.port() };
    let peer = |identity: Option<&Identity>, address: SocketAddr| Peer {
        address: Some(socket_address(address.ip(), address.port())),
        labels: BTreeMap::new(),
        principal: identity.map(Identity::to_string).unwrap_or_default(),
    };
    let labels = peers.local.labels.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    let destination =
        Peer { labels: labels.collect(), ..peer(Some(&peers.local.identity), peers.local.advertised) };
    let attributes = AttributeContext {
        source: Some(peer(peers.source, SocketAddr::new(peers.client.ip(), port))),
        destination: Some(destination),
        request: request.map(|shown| Request {
            time: (!is_kept).then(|| timestamp(now)),
            http: Some(http(shown, packing, is_kept)),
        }),
        tls_session: peers.server_name.map(|name| TlsSession { sni: name.to_owned() }),
    };
    framed(&CheckRequest { attributes: Some(attributes) }.encode_to_vec())
}

fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

fn socket_address(ip: IpAddr, port: u16) -> Address {
    let socket_address = SocketAddress { address: ip.to_string(), port_value: Some(port.into()) };
    Address { socket_address: Some(socket_address) }
}

fn timestamp(now: SystemTime) -> Timestamp {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

/// A request as Envoy describes one: fields of one name joined by commas, what HTTP/2 has in their place among them.
fn http(Shown { head, body, length }: Shown<'_>, packing: Packing, is_kept: bool) -> HttpRequest {
    let mut headers = BTreeMap::new();
    for (name, text) in [
        (":authority", &*head.authority),
        (":method", &*head.method),
        (":path", &*head.target),
        (":scheme", head.scheme.name()),
    ] {
        headers.insert(name.to_owned(), text.to_owned());
    }
    let shown = |name: &str| name != PARTIAL_BODY && !(is_kept && OF_ONE_REQUEST.contains(&name));
    for (name, _) in head.headers.iter().filter(|(name, _)| shown(name)) {
        let text = || head.headers.text(name).unwrap_or_default().into_owned();
        headers.entry(name.to_owned()).or_insert_with(text);
    }
    if let Some((_, is_cut)) = body {
        headers.insert(PARTIAL_BODY.to_owned(), is_cut.to_string());
    }
    let (text, raw_body) = match (body, packing) {
        (Some((bytes, _)), Packing::Text) => (String::from_utf8_lossy(bytes).into_owned(), Bytes::new()),
        (Some((bytes, _)), Packing::Bytes) => (String::new(), bytes.clone()),
        (None, _) => (String::new(), Bytes::new()),
    };
    let id = head.headers.text("x-request-id").filter(|_| !is_kept);
    HttpRequest {
        id: id.unwrap_or_default().into_owned(),
        method: head.method.clone(),
        headers,
        path: head.target.clone(),
        host: head.authority.clone(),
        scheme: head.scheme.name().to_owned(),
        // Where nobody knows the length of what is to come it is -1.
        size: length.and_then(|length| i64::try_from(length).ok()).unwrap_or(-1),
        protocol: head.version.name().to_owned(),
        body: text,
        raw_body,
    }
}

/// What an answer comes to: its message with the prefix, and the status of the call.
pub fn read(status: Option<u16>, mut message: Bytes) -> CheckAnswer {
    let failed = |why: &str| CheckAnswer::Failed(why.to_owned());
    match status {
        Some(0) => {}
        Some(status) => return CheckAnswer::Failed(format!("it answered with the gRPC status {status}")),
        None => return failed("its answer ended without a gRPC status: is a gRPC server there?"),
    }
    if message.len() < PREFIX || message.get_u8() != 0 {
        return failed("its answer is no message");
    }
    if message.get_u32() as usize != message.len() {
        return failed("its answer is not one message");
    }
    let Ok(CheckResponse { status, denied_response, ok_response }) = CheckResponse::decode(message) else {
        return failed("its answer is no CheckResponse");
    };
    // Without a status it is OK, which is 0.
    if status.is_none_or(|status| status.code == 0) {
        let ok = ok_response.unwrap_or_default();
        return CheckAnswer::Allowed(Changes {
            // Where nothing is said, a field of the request is set and one of the answer is added, as Envoy does.
            request: ok.headers.iter().filter_map(|option| change(option, FieldAction::Overwrite)).collect(),
            removed: ok.headers_to_remove.iter().map(|name| name.as_str().into()).collect(),
            query: ok.query_parameters_to_set.into_iter().map(|pair| (pair.key, pair.value)).collect(),
            query_removed: ok.query_parameters_to_remove,
            answer: ok
                .response_headers_to_add
                .iter()
                .filter_map(|option| change(option, FieldAction::Append))
                .collect(),
        });
    }
    let denied = denied_response.unwrap_or_default();
    let mut headers = Headers::default();
    for field in denied.headers.iter().filter_map(|option| change(option, FieldAction::Overwrite)) {
        if may_be_set(&field.name) {
            // What cannot be a field is none.
            let _ = match field.action {
                FieldAction::Append => headers.append(&field.name, &field.value),
                _ => headers.set(&field.name, &field.value),
            };
        }
    }
    let status = denied.status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.filter(|status| (200..=599).contains(status)).unwrap_or(FORBIDDEN);
    CheckAnswer::Denied(Denial { status, headers, body: denied.body.into_bytes().into() })
}

fn change(option: &HeaderValueOption, unless_said: FieldAction) -> Option<FieldChange> {
    let header = option.header.as_ref()?;
    let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    let action = match (option.append.as_ref().map(|append| append.value), option.append_action) {
        (Some(true), _) => FieldAction::Append,
        (Some(false), _) | (None, 2) => FieldAction::Overwrite,
        (None, 1) => FieldAction::AddIfAbsent,
        (None, 3) => FieldAction::OverwriteIfExists,
        (None, _) => unless_said,
    };
    Some(FieldChange { action, name: header.key.to_ascii_lowercase().into(), value: value.into() })
}
