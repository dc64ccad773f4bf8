//! Asking others whether a request goes on: Istio's extension providers, which speak Envoy's ext_authz. Here stands who is
//! asked, what is said over HTTP, and what becomes of a request by the answer; bytes and sockets are the agent's.

/// When a provider is asked no more.
mod circuit;
/// What an answer changes of a request.
mod changes;
/// Asking over HTTP.
mod http_check;
/// Parameters of a query.
mod query;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use changes::{Changes, FieldAction, FieldChange, Vouched, may_be_set};
pub use circuit::{Circuit, FAILURES, PAUSE};
pub use http_check::HttpCheck;

use crate::http::Headers;
use crate::name::{Domain, Key, Label, default_namespace};
use crate::pattern::Pattern;

/// The most providers of one mesh.
pub const MAX_PROVIDERS: usize = 64;
/// The most entries of each list of fields.
pub const MAX_FIELDS: usize = 64;
/// How long a provider may take unless it is said. Istio waits for ten minutes, in which callers would pile up.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a provider may be given: as long as Istio waits.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// The most of a request's body that a provider is sent.
pub const MAX_BODY: u32 = 1024 * 1024;
/// The longest that an answer may be kept for the same question.
pub const MAX_TTL: Duration = Duration::from_secs(3600);

/// One provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionProvider {
    /// What policies call it.
    pub name: Arc<str>,
    /// A service of the mesh, another host's name, or an address; in lower case.
    pub host: Arc<str>,
    /// The namespace in which a service's name without one is read; `default` without.
    pub namespace: Option<Label>,
    /// Its port.
    pub port: u16,
    /// How long an answer may take.
    pub timeout: Duration,
    /// What becomes of a request when there is no answer.
    pub on_failure: OnFailure,
    /// How it is asked.
    pub protocol: CheckProtocol,
    /// Whether it sees the body of a request.
    pub body: Option<BodyInCheck>,
    /// How long an answer holds for the same question; each time anew without.
    pub cache: Option<Duration>,
}

impl ExtensionProvider {
    /// The service of the mesh that it is, whether or not there is one of that name: what is written as one is never looked for
    /// elsewhere, where somebody else could answer.
    pub fn service(&self, domain: &Domain) -> Option<Key> {
        if &*self.host == "localhost" || self.address().is_some() {
            return None;
        }
        let namespace = self.namespace.clone().unwrap_or_else(default_namespace);
        Key::resolve(&self.host, &namespace, domain).ok()
    }

    /// The address, where it is written as one.
    pub fn address(&self) -> Option<IpAddr> {
        let bare = self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        bare.unwrap_or(&self.host).parse().ok()
    }

    /// What it is called where it is asked: host and port.
    pub fn authority(&self) -> String {
        match self.address() {
            Some(address) => std::net::SocketAddr::new(address, self.port).to_string(),
            None => format!("{}:{}", self.host, self.port),
        }
    }
}

/// What becomes of a request of which a provider says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It goes on.
    Allow,
    /// It is refused with this status.
    Refuse(u16),
}

/// How a provider is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckProtocol {
    /// By the request itself, without its body.
    Http(HttpCheck),
    /// By `envoy.service.auth.v3.Authorization/Check`.
    Grpc,
}

/// How much of a body a provider sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyInCheck {
    /// Bytes, at most `MAX_BODY`.
    pub max_bytes: u32,
    /// What becomes of a request with more.
    pub longer: LongerBody,
    /// Where it stands in a message of gRPC.
    pub packing: Packing,
}

/// What becomes of a request with a body that is longer than what the provider is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongerBody {
    /// The provider sees the start of it.
    Cut,
    /// It is refused, with 413.
    Refused,
}

/// Where a body stands in a message of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// In `body`, a text: what is not UTF-8 shows replacement characters.
    Text,
    /// In `raw_body`.
    Bytes,
}

/// As much of a request's body as its provider sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownBody<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Whether there is more.
    pub is_cut: bool,
}

/// What a provider said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckAnswer {
    /// The request goes on, changed so.
    Allowed(Changes),
    /// It does not.
    Denied(Denial),
    /// Nothing that counts, and why.
    Failed(String),
}

/// What the caller of a refused request is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The status, 200 to 599.
    pub status: u16,
    /// Fields of the answer.
    pub headers: Headers,
    /// The body.
    pub body: Arc<[u8]>,
}

/// The field that tells a provider whether it sees all of a body (Envoy's name).
pub const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// Whether any pattern names a field, whose name is in lower case as the patterns are.
fn names(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_a_service_of_the_mesh_or_elsewhere_and_never_both() {
        let domain = Domain::new("mesh.internal").expect("a domain");
        let check = |host: &str, namespace: Option<&str>, service: Option<&str>, authority: &str| {
            let provider = ExtensionProvider {
                name: "p".into(),
                host: host.into(),
                namespace: namespace.map(|name| Label::new(name).expect("a label")),
                port: 80,
                timeout: DEFAULT_TIMEOUT,
                on_failure: OnFailure::Refuse(403),
                protocol: CheckProtocol::Grpc,
                body: None,
                cache: None,
            };
            assert_eq!(provider.service(&domain).map(|key| key.to_string()).as_deref(), service, "{host}");
            assert_eq!(provider.authority(), authority);
        };
        check("authz", None, Some("authz.default"), "authz:80");
        check("authz", Some("shop"), Some("authz.shop"), "authz:80");
        check("authz.shop", Some("web"), Some("authz.shop"), "authz.shop:80");
        check("authz.mesh.internal", None, Some("authz.default"), "authz.mesh.internal:80");
        check("authz.shop.svc.cluster.local", None, Some("authz.shop"), "authz.shop.svc.cluster.local:80");
        check("authz.example.org", None, None, "authz.example.org:80");
        check("localhost", None, None, "localhost:80");
        check("127.0.0.1", None, None, "127.0.0.1:80");
        check("::1", None, None, "[::1]:80");
        check("[fd00::1]", None, None, "[fd00::1]:80");
    }
}
