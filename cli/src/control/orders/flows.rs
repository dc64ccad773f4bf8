//! What policies do, and other policies would do, with the connections of the last hour.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use baremesh_model::flow::{Flow, Judgement, Way};
use baremesh_model::mesh::{Mesh, Parts};
use baremesh_model::peer_authentication::{MtlsMode, PeerAuthentication};
use baremesh_registry::resource::Resource;
use baremesh_registry::set::assemble;
use serde_json::Value;

use super::change::registered;
use super::told;
use crate::control::Server;
use crate::control::flows::{Known, Told};
use crate::control::report::{ApplyRequest, FlowReport, FlowsReport};
use crate::control::resources;
use crate::control::socket::Denial;
use crate::output::to_unix;

/// Flows that one report names.
const MAX_NAMED: usize = 1_000;

/// Who would be cut off if plaintext were refused everywhere.
pub(super) fn strict(server: &Server) -> Result<Value, Denial> {
    let mesh = server.in_force.borrow().loaded.mesh.clone();
    let mut parts: Parts = mesh.clone().into_parts();
    let unset = |policy: &mut PeerAuthentication| {
        policy.mode = policy.mode.map(|_| MtlsMode::Strict);
        policy.ports.values_mut().for_each(|mode| *mode = mode.map(|_| MtlsMode::Strict));
    };
    parts.peer_authentications.iter_mut().for_each(unset);
    parts.config.default_mtls = MtlsMode::Strict;
    let strict = Mesh::assemble(parts).map_err(|errors| match errors.first() {
        Some(error) => Denial::failed(error),
        None => Denial::failed(&"the mesh cannot be put together"),
    })?;
    compared(server, &mesh, &strict, |flow| flow.way == Way::Plaintext)
}

/// What a candidate's policies would do otherwise than those in force. Nothing is written.
pub(super) fn simulate(server: &Server, request: &ApplyRequest) -> Result<Value, Denial> {
    let (text, name) = (&request.text, resources::name_with_form(request));
    let planned = server.directory.plan(text, &name)?;
    let candidate = assemble(planned.resulting, Vec::new())?;
    let mesh = server.in_force.borrow().loaded.mesh.clone();
    compared(server, &mesh, &candidate.mesh, |_| true)
}

/// The flows that are asked about and that two meshes treat otherwise, or that the first refuses already.
fn compared(
    server: &Server,
    now: &Mesh,
    then: &Mesh,
    asked: impl Fn(&Flow) -> bool,
) -> Result<Value, Denial> {
    let Known { flows, hosts, missed } = server.flows.known(SystemTime::now());
    let names = names(server);
    let connected = server.control.status().into_iter().filter(|status| status.connected);
    let silent = connected.filter(|status| !hosts.contains(&status.host)).count();
    let mut report = FlowsReport { hosts: hosts.len(), silent, missed, ..FlowsReport::default() };
    for Told { flow, count, last } in flows.iter().filter(|told| asked(&told.flow)) {
        report.judged += 1;
        let (before, after) = (flow.judge(now), flow.judge(then));
        let list = match (&before, &after) {
            (Judgement::Allowed, Judgement::Allowed) => continue,
            (Judgement::Allowed, _) => &mut report.cut,
            (_, Judgement::Allowed) => &mut report.opened,
            _ => &mut report.refused_already,
        };
        let peer = match &flow.source {
            Some(identity) => identity.to_string(),
            None => names.get(&flow.source_ip).cloned().unwrap_or_else(|| "nobody of the mesh".to_owned()),
        };
        list.push(FlowReport {
            service: flow.service.to_string(),
            destination: flow.destination.to_string(),
            port: flow.destination.port(),
            peer,
            peer_address: flow.source_ip.to_string(),
            way: flow.way.name().to_owned(),
            connections: *count,
            last: to_unix(*last),
            reason: if after == Judgement::Allowed { before.to_string() } else { after.to_string() },
        });
    }
    for list in [&mut report.cut, &mut report.opened, &mut report.refused_already] {
        list.sort_by(|a, b| {
            (&a.service, a.port, &a.peer, &a.peer_address).cmp(&(
                &b.service,
                b.port,
                &b.peer,
                &b.peer_address,
            ))
        });
        report.unnamed += list.len().saturating_sub(MAX_NAMED);
        list.truncate(MAX_NAMED);
    }
    told(report)
}

/// Which workloads of the mesh are at which addresses, for those who say nothing of themselves.
fn names(server: &Server) -> BTreeMap<IpAddr, String> {
    let mut names: BTreeMap<IpAddr, String> = BTreeMap::new();
    for located in registered(server) {
        let Resource::Workload(workload) = located.value else { continue };
        let host = workload.host.as_ref().map(|host| format!("something on host {host}"));
        let name = host.unwrap_or_else(|| format!("something at WorkloadEntry {}", workload.key));
        for address in std::iter::once(workload.address).chain(workload.other_addresses.iter().copied()) {
            names.insert(address, name.clone());
        }
    }
    names
}
