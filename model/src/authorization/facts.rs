//! The facts of a call that policies decide on. Those of the connection are none that a peer says of itself.

use std::net::IpAddr;
use std::sync::Arc;

use crate::http::RequestHead;
use crate::identity::Identity;
use crate::name::Key;
use crate::service::Protocol;
use crate::token::Token;

/// All that is known of a call.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// What it carries.
    pub carried: Carried<'a>,
}

/// The facts of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The identity of the caller's certificate, or the attested one of a caller on this host.
    pub source: Option<&'a Identity>,
    /// Where the connection comes from.
    pub source_ip: IpAddr,
    /// The workload's address.
    pub destination_ip: IpAddr,
    /// The workload's port.
    pub destination_port: u16,
    /// The server name of TLS, `connection.sni`.
    pub server_name: ServerName<'a>,
}

/// The server name that TLS asks for.
#[derive(Debug, Clone, Copy)]
pub enum ServerName<'a> {
    /// There is no TLS, or it names no server.
    None,
    /// The mesh's own TLS: the service under each of the names that policies may know it by.
    Service(&'a [Arc<str>]),
    /// The application's own TLS asks for this, in lower case.
    Asked(&'a str),
    /// What the application's own TLS asks for is still to come: a rule of ALLOW about it may match, and one of another
    /// action does not.
    Pending,
    /// The application's own TLS may be carried, and nobody knows what it asks for: rules fail closed.
    Unread,
}

/// What is known of the application's own TLS, in bytes that are carried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Hello {
    /// It is waited for, and decides.
    Pending,
    /// It has come, and asks for this name, in lower case.
    Named(Arc<str>),
    /// It has come, and asks for no name.
    Nameless,
    /// What has come is no TLS.
    Absent,
    /// Nobody looked, or nobody can tell.
    #[default]
    Unread,
}

/// What a connection carries, as far as it is decided on.
#[derive(Debug, Clone, Copy)]
pub enum Carried<'a> {
    /// Bytes: an ALLOW or AUDIT rule with a field of HTTP does not match, a DENY or CUSTOM rule does as if it had not the
    /// field.
    Bytes,
    /// Requests that are still to come. Refused is only what no request can change: a rule of ALLOW with a field of
    /// HTTP may match, and one of another action does not.
    Requests,
    /// This request.
    Request(&'a Request<'a>),
}

/// The facts of a request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its head, the path normalised as it is forwarded.
    pub head: &'a RequestHead,
    /// The verified token of who sends it.
    pub token: Option<&'a Token>,
    /// Where it comes from, `remote.ip`: as far as proxies before are believed.
    pub remote_ip: IpAddr,
    /// The providers of CUSTOM policies that were asked about it, and allow it.
    pub allowed_by: &'a [Arc<str>],
}

/// The server name of a connection: that of the application's own TLS where some is carried, else the service's.
pub fn server_name<'a>(
    (source, names): (Option<&Identity>, &'a [Arc<str>]),
    protocol: Protocol,
    carried: Carried<'_>,
    hello: &'a Hello,
) -> ServerName<'a> {
    let of_mesh = source.map_or(ServerName::None, |_| ServerName::Service(names));
    match (protocol, carried, hello) {
        (Protocol::Tls | Protocol::Https, ..) | (Protocol::Auto, Carried::Bytes, _) => match hello {
            Hello::Pending => ServerName::Pending,
            Hello::Named(name) => ServerName::Asked(name),
            Hello::Nameless => ServerName::None,
            Hello::Absent => of_mesh,
            Hello::Unread => ServerName::Unread,
        },
        (Protocol::Auto, Carried::Requests, Hello::Pending) => ServerName::Pending,
        _ => of_mesh,
    }
}

/// The names that policies may know a service's port by: its own, and what Istio's sidecars ask for.
pub fn server_names(host: &str, service: &Key, port: u16) -> Arc<[Arc<str>]> {
    let istios = format!("outbound_.{port}_._.{}.{}.svc.cluster.local", service.name, service.namespace);
    [host.into(), istios.as_str().into()].into()
}

impl Carried<'static> {
    /// What a new connection carries: where requests may come, those decide.
    pub fn opening(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Auto => Self::Requests,
            Protocol::Tcp | Protocol::Tls | Protocol::Https => Self::Bytes,
        }
    }
}
