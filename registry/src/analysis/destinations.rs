//! Destinations of routes: the host is there, with the port and the subset, and where a service has several ports one is
//! named.

use baremesh_model::mesh::Kind;
use baremesh_model::name::Key;
use baremesh_model::service::Service;
use baremesh_model::virtual_service::{
    Destination, HostPattern, HttpAction, HttpEntry, Split, VirtualService,
};

use super::known::{Known, Named};
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};
use crate::format::place::Step;

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    for service in &known.parts.virtual_services {
        for (place, destination) in destinations(service) {
            let target = host_and_port(known, report, service, (&place, destination));
            subset(known, report, service, (&place, destination, target.is_some()));
        }
    }
}

/// Every destination of a VirtualService, with its place.
fn destinations(service: &VirtualService) -> Vec<(Place, &Destination)> {
    fn of_split<'s>(route: &Place, split: &'s Split, all: &mut Vec<(Place, &'s Destination)>) {
        let place = |index| route.field("route").item(index).field("destination");
        let listed = split.all().iter().enumerate();
        all.extend(listed.map(|(index, weighted)| (place(index), &weighted.destination)));
    }
    let root = Place::of(Kind::VirtualService, &service.key);
    let mut all = Vec::new();
    for (index, entry) in service.http.iter().enumerate() {
        let place = root.field("http").item(index);
        let options = match entry {
            HttpEntry::Route(route) => {
                if let HttpAction::Forward(split) = &route.action {
                    of_split(&place, split, &mut all);
                }
                &route.options
            }
            HttpEntry::Delegate(delegation) => &delegation.options,
        };
        let mirrors = options.mirrors.iter().enumerate();
        all.extend(mirrors.map(|(index, mirror)| (place.step(Step::Mirror(index)), &mirror.destination)));
    }
    for (index, route) in service.tls.iter().enumerate() {
        of_split(&root.field("tls").item(index), &route.split, &mut all);
    }
    for (index, route) in service.tcp.iter().enumerate() {
        of_split(&root.field("tcp").item(index), &route.split, &mut all);
    }
    all
}

/// The service that a destination names; none where it is said that there is none, or that is not known.
fn host_and_port<'p>(
    known: &Known<'p>,
    report: &mut Report<'_>,
    of: &VirtualService,
    (place, destination): (&Place, &Destination),
) -> Option<&'p Service> {
    let (host, from) = (&*destination.host, &of.key.namespace);
    let service = match known.host(host, from) {
        Named::Service(service) => service,
        Named::Unsure => return None,
        Named::Nothing => {
            let message = format!("the destination's host {} is not found", quote(host));
            report.error(
                &place.field("host"),
                Code::MissingReference,
                message,
                &known.instead_of(host, from),
            );
            return None;
        }
    };
    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    let ports = ports.join(", ");
    match destination.port {
        Some(port) if service.port(port.get()).is_none() => {
            let message =
                format!("the destination's port {} is not found: Service {} has {ports}", port, service.key);
            let place = place.field("port").field("number");
            report.error(&place, Code::MissingReference, message, "name a port of the service");
        }
        None if service.ports.len() > 1 => several_ports(known, report, of, (place, service, &ports)),
        _ => {}
    }
    Some(service)
}

/// Without a port the dialled one is meant, and it need not be there.
fn several_ports(
    known: &Known<'_>,
    report: &mut Report<'_>,
    of: &VirtualService,
    (place, service, ports): (&Place, &Service, &str),
) {
    const HELP: &str = "add `port: { number: … }` to the destination";
    let place = place.field("host");
    let dialled = |host: &HostPattern| match host {
        HostPattern::Exact(host) => match known.host(host, &of.key.namespace) {
            Named::Service(dialled) => {
                dialled.ports.iter().all(|port| service.port(port.port.get()).is_some())
            }
            Named::Unsure | Named::Nothing => false,
        },
        HostPattern::Suffix(_) | HostPattern::Any => false,
    };
    let message = format!("the destination names no port, and Service {} has several ({ports})", service.key);
    if !of.is_delegate() && of.hosts.iter().all(dialled) {
        let message = format!("{message}: the one that was dialled is taken");
        report.warning(&place, Code::PortNeeded, message, HELP);
    } else {
        let message = format!("{message}: the dialled one is taken, and may not be among them");
        report.error(&place, Code::PortNeeded, message, HELP);
    }
}

/// A subset is one of a DestinationRule for the host.
fn subset(
    known: &Known<'_>,
    report: &mut Report<'_>,
    of: &VirtualService,
    (place, destination, host_is_there): (&Place, &Destination, bool),
) {
    let Some(subset) = &destination.subset else { return };
    let key = match known.host(&destination.host, &of.key.namespace) {
        Named::Service(service) => service.key.clone(),
        _ => match Key::resolve(&destination.host, &of.key.namespace, &known.parts.config.domain) {
            Ok(key) => key,
            Err(_) => return,
        },
    };
    let mut rules = known.rules_for(&key).peekable();
    // Of a host that is not there, and that no rule is for, enough has been said.
    if rules.peek().is_none() && !host_is_there {
        return;
    }
    let mut names = Vec::new();
    for rule in rules {
        if rule.subsets.iter().any(|known| known.name == *subset) {
            return;
        }
        names.extend(rule.subsets.iter().map(|subset| subset.name.to_string()));
    }
    if !known.is_whole() {
        return;
    }
    let message = format!("the subset {} of {} is not found", quote(subset), quote(&destination.host));
    let help = match names.is_empty() {
        true => format!("add a DestinationRule for {key} with a subset of that name"),
        false => format!("its DestinationRules have {}", names.join(", ")),
    };
    report.error(&place.field("subset"), Code::MissingReference, message, &help);
}
