//! Routes of bytes: plain TCP by its destination, TLS of the application's own by its server name.

use std::net::IpAddr;

use ipnet::IpNet;

use super::host::HostPattern;
use super::http_route::Split;
use super::scope::{Caller, Scope};
use super::unmet::Unmet;

/// A connection as routing sees it.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The address that was dialled.
    pub destination: IpAddr,
    /// The port that was dialled.
    pub port: u16,
    /// Who dialled.
    pub caller: Caller<'a>,
}

/// One entry of `tcp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpRoute {
    /// It takes what any of these matches; empty: everything.
    pub matches: Vec<TcpMatch>,
    /// Where it goes.
    pub split: Split,
}

/// What a route asks of a connection: all of it. A default one takes every connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcpMatch {
    /// The caller, the gateway and the port.
    pub scope: Scope,
    /// Addresses that may have been dialled; empty: any.
    pub destination_subnets: Vec<IpNet>,
}

/// One entry of `tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsRoute {
    /// It takes what any of these matches; there is at least one.
    pub matches: Vec<TlsMatch>,
    /// Where it goes.
    pub split: Split,
}

/// What a route asks of a connection with TLS of the application's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsMatch {
    /// Server names, any of these; there is at least one.
    pub sni_hosts: Vec<HostPattern>,
    /// What is asked of the connection under it.
    pub connection: TcpMatch,
}

impl TcpMatch {
    /// The first of its conditions that a connection does not fulfil; none where it matches.
    pub fn unmet(&self, opening: Opening<'_>) -> Option<Unmet<'_>> {
        let subnets = &self.destination_subnets;
        let inside = || subnets.is_empty() || subnets.iter().any(|net| net.contains(&opening.destination));
        let in_scope = self.scope.unmet_by_connection(opening.caller, opening.port);
        in_scope.or_else(|| (!inside()).then_some(Unmet::DestinationSubnets(subnets)))
    }
}

impl TlsMatch {
    /// The first of its conditions that a connection which asks for `server_name`, in lower case, does not fulfil; none
    /// where it matches.
    pub fn unmet(&self, opening: Opening<'_>, server_name: &str) -> Option<Unmet<'_>> {
        let named = self.sni_hosts.iter().any(|host| host.matches_text(server_name));
        if named { self.connection.unmet(opening) } else { Some(Unmet::SniHosts(&self.sni_hosts)) }
    }
}

impl TcpRoute {
    /// Whether a connection is this route's.
    pub fn matches(&self, opening: Opening<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|block| block.unmet(opening).is_none())
    }
}

impl TlsRoute {
    /// Whether a connection that asks for `server_name` is this route's. Without a name it is nobody's but `*`'s.
    pub fn matches(&self, opening: Opening<'_>, server_name: Option<&str>) -> bool {
        let name = server_name.unwrap_or_default().to_ascii_lowercase();
        self.matches.iter().any(|block| block.unmet(opening, &name).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Label;
    use crate::virtual_service::{Destination, Gateway, HeaderRules, WeightedDestination};
    use crate::workload::Labels;

    fn split() -> Split {
        let destination = Destination { host: "b".into(), subset: None, port: None };
        Split::new(vec![WeightedDestination { destination, weight: 1, headers: HeaderRules::default() }])
            .expect("a split")
    }

    fn at(address: &str, check: impl FnOnce(Opening<'_>)) {
        let (namespace, labels) = (Label::new("shop").expect("a label"), Labels::new());
        let caller = Caller { gateway: &Gateway::Mesh, namespace: &namespace, labels: &labels };
        check(Opening { destination: address.parse().expect("an address"), port: 27017, caller });
    }

    #[test]
    fn tcp_is_routed_by_where_it_goes() {
        let check = |matches: Vec<TcpMatch>, expected| {
            let route = TcpRoute { matches, split: split() };
            at("10.1.2.3", |opening| assert_eq!(route.matches(opening), expected, "{route:?}"));
        };
        let subnet = |text: &str| TcpMatch {
            destination_subnets: vec![text.parse().expect("a subnet")],
            ..TcpMatch::default()
        };
        let port = |number: u16| TcpMatch {
            scope: Scope { port: number.try_into().ok(), ..Scope::default() },
            ..TcpMatch::default()
        };
        check(vec![], true);
        check(vec![subnet("10.1.0.0/16")], true);
        check(vec![subnet("10.2.0.0/16")], false);
        check(vec![subnet("10.2.0.0/16"), port(27017)], true);
        check(vec![port(1)], false);
    }

    #[test]
    fn tls_is_routed_by_its_server_name() {
        let check = |asked: &str, name: Option<&str>, expected| {
            let sni_hosts = vec![HostPattern::new(asked).expect("a host")];
            let matches = vec![TlsMatch { sni_hosts, ..TlsMatch::default() }];
            let route = TlsRoute { matches, split: split() };
            at("10.1.2.3", |opening| assert_eq!(route.matches(opening, name), expected, "{asked} {name:?}"));
        };
        check("login.example.com", Some("login.example.com"), true);
        check("login.example.com", Some("LOGIN.example.com"), true);
        check("login.example.com", Some("example.com"), false);
        check("*.example.com", Some("a.b.example.com"), true);
        check("*.example.com", Some("example.com"), false);
        check("*", None, true);
        check("*.example.com", None, false);
    }
}
