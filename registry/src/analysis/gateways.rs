//! Gateways, and the VirtualServices that are bound to them: names of Gateways that are there, hosts that they list, ports
//! that gateways have, and servers that are in each other's way.

use std::collections::BTreeMap;

use baremesh_model::gateway::{Carries, Gateway, Server, ServerHost};
use baremesh_model::mesh::Kind;
use baremesh_model::name::Key;
use baremesh_model::service::Service;
use baremesh_model::virtual_service::{Gateway as Bound, HostPattern, HttpEntry, Scope, VirtualService};

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};

/// Gateways by their keys.
type ByKey<'p> = BTreeMap<&'p Key, &'p Gateway>;

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    let gateways: ByKey<'_> = known.parts.gateways.iter().map(|gateway| (&gateway.key, &**gateway)).collect();
    for service in &known.parts.virtual_services {
        missing(known, report, (service, &gateways));
        unlisted_hosts(known, report, (service, &gateways));
    }
    let served = known.served();
    for gateway in gateways.values() {
        ports(known, report, (gateway, &served));
        conflicts(known, report, gateway);
    }
}

/// The Gateways that a VirtualService names, each with the place where it does.
fn named(service: &VirtualService) -> Vec<(Place, &Key)> {
    fn of<'s>(place: &Place, gateways: &'s [Bound], all: &mut Vec<(Place, &'s Key)>) {
        for (index, gateway) in gateways.iter().enumerate() {
            if let Bound::Named(key) = gateway {
                all.push((place.field("gateways").item(index), key));
            }
        }
    }
    let root = Place::of(Kind::VirtualService, &service.key);
    let mut all = Vec::new();
    of(&root, &service.gateways, &mut all);
    let mut scopes: Vec<(Place, &Scope)> = Vec::new();
    for (index, entry) in service.http.iter().enumerate() {
        let place = root.field("http").item(index).field("match");
        let matches = match entry {
            HttpEntry::Route(route) => &route.matches,
            HttpEntry::Delegate(delegation) => &delegation.matches,
        };
        scopes.extend(matches.iter().enumerate().map(|(at, block)| (place.item(at), &block.scope)));
    }
    for (index, route) in service.tls.iter().enumerate() {
        let place = root.field("tls").item(index).field("match");
        let matches = route.matches.iter().enumerate();
        scopes.extend(matches.map(|(at, block)| (place.item(at), &block.connection.scope)));
    }
    for (index, route) in service.tcp.iter().enumerate() {
        let place = root.field("tcp").item(index).field("match");
        scopes.extend(route.matches.iter().enumerate().map(|(at, block)| (place.item(at), &block.scope)));
    }
    for (place, scope) in scopes {
        of(&place, &scope.gateways, &mut all);
    }
    all
}

/// Each Gateway that is named is there.
fn missing(known: &Known<'_>, report: &mut Report<'_>, (service, gateways): (&VirtualService, &ByKey<'_>)) {
    for (place, key) in named(service) {
        if gateways.contains_key(key) || known.may_be_unread(Kind::Gateway, key) {
            continue;
        }
        let elsewhere = gateways.keys().find(|known| known.name == key.name);
        let help = match elsewhere {
            Some(other) => format!("Gateway {0}/{1} is there: write `{0}/{1}`", other.namespace, other.name),
            None => "correct the name, or add the Gateway; `mesh` is where callers are".to_owned(),
        };
        let message = format!("the Gateway {}/{} is not found", key.namespace, key.name);
        report.error(&place, Code::MissingReference, message, &help);
    }
}

/// A Gateway that a VirtualService is bound to lists one of its hosts: without any it routes nothing there.
fn unlisted_hosts(
    known: &Known<'_>,
    report: &mut Report<'_>,
    (service, gateways): (&VirtualService, &ByKey<'_>),
) {
    let place = Place::of(Kind::VirtualService, &service.key);
    let domain = &known.parts.config.domain;
    for (index, bound) in service.gateways.iter().enumerate() {
        let Bound::Named(key) = bound else { continue };
        let Some(gateway) = gateways.get(key).filter(|_| !service.is_delegate()) else { continue };
        let meets = |listed: &ServerHost, host: &HostPattern| {
            let (own, its) = (
                host.resolved(&service.key.namespace, domain),
                listed.host.resolved(&gateway.key.namespace, domain),
            );
            let overlap = |one: &HostPattern, other: &HostPattern| one.covers(other) || other.covers(one);
            listed.takes_from(&service.key.namespace) && (overlap(&own, &its) || overlap(host, &listed.host))
        };
        let mut listed = gateway.servers.iter().flat_map(|server| &server.hosts);
        if listed.any(|listed| service.hosts.iter().any(|host| meets(listed, host))) {
            continue;
        }
        let hosts: Vec<String> = service.hosts.iter().map(|host| quote(&host.to_string())).collect();
        let message = format!(
            "none of the hosts {} is listed by the Gateway {}/{}: nothing is routed there",
            hosts.join(", "),
            key.namespace,
            key.name
        );
        let help = "add one to `servers[].hosts` of the Gateway, or correct it; a namespace in front is the VirtualService's";
        report.warning(&place.field("gateways").item(index), Code::NotInGateway, message, help);
    }
}

/// The ports of servers are ports of the gateways that are selected, and carry the same.
fn ports(
    known: &Known<'_>,
    report: &mut Report<'_>,
    (gateway, served): (&Gateway, &BTreeMap<&Key, Vec<&Service>>),
) {
    let selected = known.parts.workloads.values().filter(|workload| gateway.selects(&workload.labels));
    let services: Vec<&Service> =
        selected.filter_map(|workload| served.get(&workload.key)).flatten().copied().collect();
    // Which gateways there are is for hosts to say, and known with `--live` alone.
    let Some(first) = services.first() else { return };
    for (index, server) in gateway.servers.iter().enumerate() {
        let number = server.port.get();
        let place = Place::of(Kind::Gateway, &gateway.key).field("servers").item(index).field("port");
        let mut there = services.iter().filter_map(|service| service.port(number)).peekable();
        let carries = server.protocol.carries();
        if there.peek().is_none() {
            let ports: Vec<String> = first.ports.iter().map(|port| port.port.to_string()).collect();
            let message =
                format!("the port {number} is none of {}, which has {}", first.key, ports.join(", "));
            let help = "name a port of the gateway, or register it there";
            report.error(&place.field("number"), Code::GatewayPort, message, help);
        } else if there.all(|port| Carries::of_port(port.protocol).is_some_and(|own| own != carries)) {
            let message = format!(
                "the port {number} of {} is registered for something else than the {carries} of this server: nothing \
                 leaves through it",
                first.key
            );
            let help = "register the gateway's port with that protocol, or take another port";
            report.warning(&place.field("protocol"), Code::OtherProtocol, message, help);
        }
    }
}

/// Servers of two Gateways for the same gateways, port and hosts.
fn conflicts(known: &Known<'_>, report: &mut Report<'_>, gateway: &Gateway) {
    let others = || {
        known
            .parts
            .gateways
            .iter()
            .filter(|other| other.key != gateway.key && other.selector == gateway.selector)
    };
    let clash = |one: &Server, other: &Server| {
        let meet = |listed: &ServerHost| {
            other.hosts.iter().any(|host| listed.host.covers(&host.host) || host.host.covers(&listed.host))
        };
        one.port == other.port && one.hosts.iter().any(meet)
    };
    let found = gateway.servers.iter().enumerate().find_map(|(index, server)| {
        let rival = others().find(|other| other.servers.iter().any(|other| clash(server, other)))?;
        Some((index, server, rival))
    });
    let Some((index, server, rival)) = found else { return };
    let other = report.place_of(Kind::Gateway, &rival.key);
    let message = format!(
        "{other} has the same hosts at port {} for the same gateways: VirtualServices that are bound to either are tried one \
         after the other",
        server.port
    );
    let place = Place::of(Kind::Gateway, &gateway.key).field("servers").item(index);
    report.warning(&place, Code::GatewaysConflict, message, "let one Gateway list a host at a port");
}
