//! Gateway: which hosts leave the mesh through the hosts whose agents are gateways, at which ports, and how. Whether a host
//! is a gateway is said by its own configuration and by nothing here.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::name::{Key, Label};
use crate::service::Protocol;
use crate::virtual_service::HostPattern;
use crate::workload::{Labels, selects};

/// The most servers that one Gateway has.
pub const MAX_SERVERS: usize = 1024;
/// The most hosts that one server has.
pub const MAX_HOSTS: usize = 1024;

/// One Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Namespace and name.
    pub key: Key,
    /// Labels of the gateways that it is for, all of them; at least one.
    pub selector: Labels,
    /// What they carry.
    pub servers: Vec<Server>,
}

impl Gateway {
    /// Whether it is for a gateway with these labels, of whichever namespace.
    pub fn selects(&self, labels: &Labels) -> bool {
        !self.selector.is_empty() && selects(&self.selector, labels)
    }
}

/// Hosts that leave through one port of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The port that callers name.
    pub port: NonZeroU16,
    /// The port's name.
    pub port_name: Option<Arc<str>>,
    /// What is said there.
    pub protocol: ServerProtocol,
    /// Its own name, for people.
    pub name: Option<Arc<str>>,
    /// The hosts; at least one.
    pub hosts: Vec<ServerHost>,
}

/// What a server's port carries, and within what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerProtocol {
    /// Requests: `HTTP`.
    Http,
    /// Requests: `HTTP2`.
    Http2,
    /// Requests: `GRPC`.
    Grpc,
    /// Requests within the mesh's own mutual TLS, which carries everything here: `HTTPS` with `ISTIO_MUTUAL`.
    HttpsMutual,
    /// The caller's own TLS: `HTTPS` with `PASSTHROUGH`.
    HttpsPassthrough,
    /// Bytes within the mesh's own mutual TLS: `TLS` with `ISTIO_MUTUAL`.
    TlsMutual,
    /// The caller's own TLS: `TLS` with `PASSTHROUGH`.
    TlsPassthrough,
    /// Bytes: `TCP`.
    Tcp,
}

/// What is looked at to find the host that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carries {
    /// Requests, by their authority.
    Requests,
    /// TLS of the caller's own, by its server name.
    Tls,
    /// Bytes, by the port alone.
    Bytes,
}

impl Carries {
    /// What a port of a gateway carries that was registered with a protocol; none where the protocol leaves it open.
    pub fn of_port(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => Some(Self::Requests),
            Protocol::Https | Protocol::Tls => Some(Self::Tls),
            Protocol::Tcp => Some(Self::Bytes),
            Protocol::Auto => None,
        }
    }
}

impl fmt::Display for Carries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "http",
            Self::Tls => "tls",
            Self::Bytes => "tcp",
        })
    }
}

impl ServerProtocol {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Http,
        Self::Http2,
        Self::Grpc,
        Self::HttpsMutual,
        Self::HttpsPassthrough,
        Self::TlsMutual,
        Self::TlsPassthrough,
        Self::Tcp,
    ];

    /// `port.protocol` and `tls.mode` as Istio writes them.
    pub fn names(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Http => ("HTTP", None),
            Self::Http2 => ("HTTP2", None),
            Self::Grpc => ("GRPC", None),
            Self::HttpsMutual => ("HTTPS", Some("ISTIO_MUTUAL")),
            Self::HttpsPassthrough => ("HTTPS", Some("PASSTHROUGH")),
            Self::TlsMutual => ("TLS", Some("ISTIO_MUTUAL")),
            Self::TlsPassthrough => ("TLS", Some("PASSTHROUGH")),
            Self::Tcp => ("TCP", None),
        }
    }

    /// What finds the host that is meant.
    pub fn carries(self) -> Carries {
        match self {
            Self::Http | Self::Http2 | Self::Grpc | Self::HttpsMutual => Carries::Requests,
            Self::HttpsPassthrough | Self::TlsPassthrough => Carries::Tls,
            Self::TlsMutual | Self::Tcp => Carries::Bytes,
        }
    }
}

/// Hosts, with the namespace whose VirtualServices and ServiceEntries say where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerHost {
    /// The namespace; any without.
    pub namespace: Option<Label>,
    /// The hosts.
    pub host: HostPattern,
}

impl ServerHost {
    /// Whether what a resource of that namespace says of such a host counts.
    pub fn takes_from(&self, namespace: &Label) -> bool {
        self.namespace.as_ref().is_none_or(|own| own == namespace)
    }
}

impl fmt::Display for ServerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.host),
            None => write!(f, "{}", self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_the_host_depends_on_protocol_and_mode() {
        let carried: Vec<_> = ServerProtocol::ALL.map(|one| (one.names(), one.carries().to_string())).into();
        let expected = [
            (("HTTP", None), "http"),
            (("HTTP2", None), "http"),
            (("GRPC", None), "http"),
            (("HTTPS", Some("ISTIO_MUTUAL")), "http"),
            (("HTTPS", Some("PASSTHROUGH")), "tls"),
            (("TLS", Some("ISTIO_MUTUAL")), "tcp"),
            (("TLS", Some("PASSTHROUGH")), "tls"),
            (("TCP", None), "tcp"),
        ];
        assert_eq!(carried, expected.map(|(names, carried)| (names, carried.to_owned())));
    }

    #[test]
    fn selects_gateways_by_all_of_its_labels_and_nobody_by_none() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        let key = Key::new(Label::new("a").expect("a label"), Label::new("b").expect("a label"));
        let check = |selector: &[(&str, &str)], of: &[(&str, &str)], expected| {
            let gateway = Gateway { key: key.clone(), selector: labels(selector), servers: Vec::new() };
            assert_eq!(gateway.selects(&labels(of)), expected, "{selector:?} {of:?}");
        };
        let own = [("istio", "egressgateway"), ("app", "egress")];
        check(&[("istio", "egressgateway")], &own, true);
        check(&own, &own, true);
        check(&[("istio", "ingressgateway")], &own, false);
        check(&own, &own[..1], false);
        check(&[], &own, false);
    }
}
