//! Hosts that VirtualServices are for: one VirtualService a host, for hosts that are there, with routes that their ports
//! can use.

use std::collections::BTreeMap;

use baremesh_model::mesh::Kind;
use baremesh_model::service::{Protocol, Service};
use baremesh_model::virtual_service::{Gateway, HostName, HostPattern, VirtualService};

use super::known::{Known, Named};
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    let on_mesh =
        |service: &&VirtualService| service.gateways.contains(&Gateway::Mesh) && !service.is_delegate();
    let all: Vec<&VirtualService> = known.parts.virtual_services.iter().map(|service| &**service).collect();
    let all: Vec<&VirtualService> = all.into_iter().filter(on_mesh).collect();
    conflicts(known, report, &all);
    for service in all {
        // At a gateway hosts are what clients outside call, and ports are the gateway's.
        if service.gateways.iter().all(|gateway| *gateway == Gateway::Mesh) {
            unknown_hosts(known, report, service);
            other_protocols(known, report, service);
        }
    }
}

/// VirtualServices for one host are not merged on the mesh. Each is told of once.
fn conflicts(known: &Known<'_>, report: &mut Report<'_>, all: &[&VirtualService]) {
    let mut by_host: BTreeMap<String, Vec<&VirtualService>> = BTreeMap::new();
    let full = |service: &VirtualService, host: &HostPattern| match host {
        HostPattern::Exact(name) => {
            HostName::resolve(name, &service.key.namespace, &known.parts.config.domain).full().to_string()
        }
        star => star.to_string(),
    };
    for service in all {
        for host in &service.hosts {
            by_host.entry(full(service, host)).or_default().push(service);
        }
    }
    for service in all {
        let shared = service.hosts.iter().enumerate().find_map(|(index, host)| {
            let rivals = by_host[&full(service, host)]
                .iter()
                .filter(|other| other.key != service.key && other.export_to.overlaps(&service.export_to));
            let rivals: Vec<&&VirtualService> = rivals.collect();
            Some((index, host, *rivals.first()?, rivals.len()))
        });
        let Some((index, host, first, rivals)) = shared else { continue };
        let mut others = report.place_of(Kind::VirtualService, &first.key);
        if rivals > 1 {
            others.push_str(&format!(" and {} more", rivals - 1));
        }
        // They come in the order of their keys.
        let consequence = match service.key < first.key {
            true => "this one holds, being the first by namespace and name".to_owned(),
            false => format!(
                "{}/{} holds, being the first by namespace and name",
                first.key.namespace, first.key.name
            ),
        };
        let message = format!("{} is routed by {others} as well: {consequence}", quote(&host.to_string()));
        let place = Place::of(Kind::VirtualService, &service.key).field("hosts").item(index);
        report.error(
            &place,
            Code::HostConflict,
            message,
            "merge them into one, or let one delegate to the others",
        );
    }
}

fn unknown_hosts(known: &Known<'_>, report: &mut Report<'_>, service: &VirtualService) {
    for (index, host) in service.hosts.iter().enumerate() {
        let HostPattern::Exact(name) = host else { continue };
        if let Named::Nothing = known.host(name, &service.key.namespace) {
            let message = format!("{} is no service: nothing is routed by this", quote(name));
            let place = Place::of(Kind::VirtualService, &service.key).field("hosts").item(index);
            let help = known.instead_of(name, &service.key.namespace);
            report.warning(&place, Code::UnknownRoutedHost, message, &help);
        }
    }
}

/// Routes of a kind that no port of the hosts speaks.
fn other_protocols(known: &Known<'_>, report: &mut Report<'_>, service: &VirtualService) {
    let mut services: Vec<&Service> = Vec::new();
    for host in &service.hosts {
        let HostPattern::Exact(name) = host else { return };
        match known.host(name, &service.key.namespace) {
            Named::Service(found) => services.push(found),
            Named::Unsure | Named::Nothing => return,
        }
    }
    let some_port = |speaks: fn(Protocol) -> bool| {
        services.iter().flat_map(|service| &service.ports).any(|port| speaks(port.protocol))
    };
    let place = Place::of(Kind::VirtualService, &service.key);
    let mut say = |list: &'static str, what: &str, help: &str| {
        let names: Vec<String> = services.iter().map(|service| service.key.to_string()).collect();
        let message =
            format!("no port of Service {} speaks {what}: these routes take nothing", names.join(", "));
        report.warning(&place.field(list), Code::OtherProtocol, message, help);
    };
    if !service.http.is_empty() && !some_port(|port| port.is_http() || port == Protocol::Auto) {
        say("http", "HTTP", "declare the port's protocol in the Service: `protocol = \"http\"`");
    }
    if !service.tls.is_empty()
        && !some_port(|port| matches!(port, Protocol::Tls | Protocol::Https | Protocol::Auto))
    {
        say("tls", "TLS", "declare the port's protocol in the Service: `protocol = \"tls\"`");
    }
    if !service.tcp.is_empty() && !some_port(|port| matches!(port, Protocol::Tcp | Protocol::Auto)) {
        say("tcp", "plain bytes", "write `http` or `tls` routes");
    }
}
