//! `baremesh status`.

use std::path::Path;

use baremesh_agent::admin::client::{Socket, SocketError};
use baremesh_agent::admin::report::{ConsulReport, EndpointsReport, StatusReport as AgentStatus};
use baremesh_model::health::Health;
use clap::Args;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::server::Remote;
use super::service::health_in_words;
use super::{Global, block_on};
use crate::control::report::{HostStatus, StatusReport as ControlStatus};
use crate::output::{Exit, Output, Said, in_full, remark, say, say_json, table};

const LONG_ABOUT: &str = "\
Show how this host's agent stands, and on the control host how every host stands. Exits with 0 where all is well, 1 where
the agent is not ready, resources or registrations are refused or an alarm is raised, 3 where neither agent nor control server answers.
With an operator's credential, from any machine: how every host stands.";

/// Show how this host stands, and on the control host the whole mesh
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct Status {
    #[command(flatten)]
    remote: Remote,
}

impl Status {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let directories = global.directories();
        if self.remote.is_given() {
            let control = block_on(self.remote.server(&directories)?.ask(Method::GET, "/status"))?;
            return from_afar(global.output, &control);
        }
        let agent = ask::<AgentStatus>(&directories.agent_socket(), "baremesh agent");
        // On most hosts there is no control server, and nothing to say about that.
        let control = directories.control_socket();
        let control = control.exists().then(|| ask::<ControlStatus>(&control, "baremesh control"));
        let (agent, agent_fault) = split(Some(agent));
        let (control, control_fault) = split(control);
        if agent.is_none() && control.is_none() {
            // The agent is what every host has.
            return Err(agent_fault.or(control_fault).unwrap_or_else(|| anyhow::anyhow!("nothing answers")));
        }
        if global.output == Output::Json {
            say_json(&json!({ "agent": agent, "control": control }))?;
        } else {
            agent.iter().try_for_each(say_agent)?;
            control.iter().try_for_each(say_control)?;
        }
        let control_is_silent = control_fault.is_some();
        // A control host need not have an agent of its own; one that does not answer is there.
        let is_silent =
            |fault: &anyhow::Error| matches!(fault.downcast_ref(), Some(SocketError::Silent { .. }));
        let agent_fault = agent_fault.filter(|fault| control.is_none() || is_silent(fault));
        let agent_is_silent = agent_fault.is_some();
        for fault in [agent_fault, control_fault].into_iter().flatten() {
            remark(format_args!("note: {}", in_full(&fault)));
        }
        // A socket that nobody answers at was left by a control server that crashed.
        let nothing_refused =
            |agent: &AgentStatus| agent.source.last_error.is_none() && agent.refused.is_empty();
        let well = agent.is_none_or(|agent| agent.ready && nothing_refused(&agent))
            && !(agent_is_silent || control_is_silent)
            && control.is_none_or(|control| control.alarm.is_none() && control.resources_refused.is_none());
        if well { Ok(()) } else { Err(Said(Exit::Refused).into()) }
    }
}

/// What an operator is told from another machine: how the mesh stands.
fn from_afar(output: Output, control: &ControlStatus) -> anyhow::Result<()> {
    match output {
        Output::Json => say_json(&json!({ "agent": null, "control": control }))?,
        _ => say_control(control)?,
    }
    let well = control.alarm.is_none() && control.resources_refused.is_none();
    if well { Ok(()) } else { Err(Said(Exit::Refused).into()) }
}

fn ask<T: DeserializeOwned>(path: &Path, program: &'static str) -> anyhow::Result<T> {
    block_on(async {
        let answer: Result<_, SocketError> = Socket { path, program }.ask("/status").await;
        Ok(serde_json::from_slice(&answer?)?)
    })
}

fn split<T>(asked: Option<anyhow::Result<T>>) -> (Option<T>, Option<anyhow::Error>) {
    match asked {
        None => (None, None),
        Some(Ok(answer)) => (Some(answer), None),
        Some(Err(error)) => (None, Some(error)),
    }
}

fn say_agent(agent: &AgentStatus) -> anyhow::Result<()> {
    let addresses: Vec<_> = agent.addresses.iter().map(ToString::to_string).collect();
    let source = &agent.source;
    let reach = if source.connected { "in reach" } else { "not in reach: the last state stays in force" };
    let mut text = format!(
        "Agent of host {} ({}), version {}, trust domain {}\n",
        agent.host,
        addresses.join(", "),
        agent.version,
        agent.trust_domain
    );
    text.push_str(&format!("  ready         {}\n", if agent.ready { "yes" } else { "no" }));
    for reason in &agent.not_ready {
        text.push_str(&format!("                {reason}\n"));
    }
    if !agent.addresses_why.is_empty() {
        text.push_str(&format!("  addresses     {}\n", agent.addresses_why));
    }
    if let Some(network) = &agent.network {
        let role = if agent.network_gateway { ", and this host is a gateway of it" } else { "" };
        text.push_str(&format!("  network       {network}{role}\n"));
    }
    text.push_str(&format!("  resources     {}, {reach}, version {}\n", source.name, source.version));
    if let Some(error) = &source.last_error {
        text.push_str(&format!("                the last state was refused: {error}\n"));
    }
    if let Some(endpoints) = &agent.endpoints {
        let EndpointsReport { all, services, held, called, declared } = endpoints;
        let asked = match all {
            true => "all are asked for".to_owned(),
            false => format!("{called} called from here, {declared} named beforehand"),
        };
        text.push_str(&format!("  endpoints     of {held} of {services} services: {asked}\n"));
    }
    if let Some(consul) = &source.consul {
        text.push_str(&consul_in_words(consul));
    }
    for refused in &agent.refused {
        text.push_str(&format!("  refused       {refused}\n"));
    }
    text.push_str(&format!("  capture       {}\n", agent.capture));
    text.push_str(&format!("  privileges    {}\n", agent.privileges));
    text.push_str(&format!("  connections   {} open, {} tunnels\n", agent.open_connections, agent.tunnels));
    for warning in &agent.warnings {
        text.push_str(&format!("  warning       {warning}\n"));
    }
    say(text)?;
    let rows = agent.services.iter().map(|service| {
        let list = |addresses: &[std::net::SocketAddr]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let certificate = if service.certificate { "yes" } else { "none" };
        vec![
            service.service.clone(),
            match service.own_addresses {
                true => format!("{} (registered so)", list(&service.advertised)),
                false => list(&service.advertised),
            },
            match &service.container {
                Some(own) if own.labels.is_some() && !own.in_force => {
                    format!("{} (not now: {})", list(&service.deliver), own.problem.word())
                }
                _ => list(&service.deliver),
            },
            service.mtls.clone(),
            certificate.to_owned(),
            service.health.as_ref().map_or_else(|| "-".to_owned(), health_in_words),
        ]
    });
    let empty = "no services on this host: `baremesh service register` adds one";
    say(table(
        &["SERVICE", "ADVERTISED", "DELIVERED TO", "MTLS", "CERTIFICATE", "HEALTH"],
        rows.collect(),
        empty,
    ))
}

/// Who answers and who leads, and how old each part is.
fn consul_in_words(consul: &ConsulReport) -> String {
    let who = match (&consul.address, &consul.leader) {
        (None, _) => "nobody answers".to_owned(),
        (Some(address), Some(leader)) => format!("{address} answers, {leader} leads"),
        (Some(address), None) => format!("{address} answers, and there is no leader"),
    };
    let mut text = format!("  consul        {who}\n");
    for part in &consul.parts {
        let mut said = vec![match part.answered_seconds_ago {
            Some(seconds) => format!("answered {seconds} s ago"),
            None => "never answered".to_owned(),
        }];
        said.extend(part.index.map(|index| format!("index {index}")));
        said.extend(part.last_error.iter().zip(part.failed_seconds_ago).map(|(error, seconds)| {
            let until = if part.connected { "the last failure" } else { "failed" };
            format!("{until} {seconds} s ago: {error}")
        }));
        text.push_str(&format!("                {}: {}\n", part.part, said.join(", ")));
    }
    text
}

fn say_control(control: &ControlStatus) -> anyhow::Result<()> {
    let mut text = format!(
        "\nControl server, version {}, trust domain {}, at {}\n",
        control.version,
        control.trust_domain,
        control.listen.join(" ")
    );
    text.push_str(&format!(
        "  resources     {} in force, state version {}\n",
        control.resources, control.state_version
    ));
    if let Some(refused) = &control.resources_refused {
        text.push_str(&format!("                the files as they are now are refused: {refused}\n"));
    }
    for warning in &control.warnings {
        text.push_str(&format!("  warning       {warning}\n"));
    }
    if let Some(alarm) = &control.alarm {
        text.push_str(&format!("  ALARM         {alarm}\n"));
    }
    say(text)?;
    let rows = control.hosts.iter().map(|host| host_row(host, control.state_version)).collect();
    let empty = "no host has joined: `baremesh token create` makes a token with which one can";
    say(table(&["HOST", "STATE", "LEASE", "IN FORCE", "AGENT", "SERVICES"], rows, empty))
}

fn host_row(host: &HostStatus, newest: u64) -> Vec<String> {
    let dash = || "-".to_owned();
    let state = match (host.revoked, host.connected, host.lease_seconds) {
        (true, ..) => "shut out",
        (_, true, _) => "connected",
        (_, false, Some(_)) => "silent",
        (_, false, None) => "away",
    };
    let in_force = match (&host.nack, host.acked) {
        (Some(reason), _) => format!("refused: {reason}"),
        (None, Some(version)) if version >= newest => "newest".to_owned(),
        (None, Some(version)) => format!("version {version}"),
        (None, None) => dash(),
    };
    let services = host.registrations.iter().map(|registration| {
        let service = &registration.service;
        match (&registration.held, &registration.without) {
            (None, None) if registration.health == Health::Unhealthy.word() => {
                format!("{service} (unhealthy: its check on the host fails)")
            }
            (None, None) => service.clone(),
            (Some(reason), _) => format!("{service} (not published: {reason})"),
            (None, Some(reason)) => format!("{service} (without some addresses: {reason})"),
        }
    });
    let services: Vec<_> = services.collect();
    vec![
        host.host.clone(),
        state.to_owned(),
        host.lease_seconds.map_or_else(dash, |seconds| format!("{seconds} s")),
        in_force,
        host.agent_version.clone().unwrap_or_else(dash),
        if services.is_empty() { dash() } else { services.join("\n") },
    ]
}

#[cfg(test)]
mod tests {
    use baremesh_agent::admin::report::ConsulPartReport;

    use super::*;

    #[test]
    fn tells_who_answers_for_consul_and_how_old_that_is() {
        let part = ConsulPartReport { part: "the catalog".to_owned(), ..ConsulPartReport::default() };
        let check = |consul: ConsulReport, expected: &str| assert_eq!(consul_in_words(&consul), expected);
        check(ConsulReport::default(), "  consul        nobody answers\n");
        let well = ConsulPartReport {
            connected: true,
            index: Some(7),
            answered_seconds_ago: Some(3),
            last_error: Some("gone".to_owned()),
            failed_seconds_ago: Some(9),
            ..part
        };
        let consul = ConsulReport {
            address: Some("http://a:8500".to_owned()),
            leader: Some("b:8300".to_owned()),
            parts: vec![well.clone()],
        };
        check(
            consul.clone(),
            "  consul        http://a:8500 answers, b:8300 leads\n                the catalog: answered 3 s ago, index 7, \
             the last failure 9 s ago: gone\n",
        );
        let ill = ConsulPartReport { connected: false, answered_seconds_ago: None, index: None, ..well };
        check(
            ConsulReport { leader: None, parts: vec![ill], ..consul },
            "  consul        http://a:8500 answers, and there is no leader\n                the catalog: never answered, \
             failed 9 s ago: gone\n",
        );
    }

    #[test]
    fn tells_the_states_of_a_host_apart() {
        let base = HostStatus { host: "h1".into(), connected: true, acked: Some(7), ..HostStatus::default() };
        let check = |host: HostStatus, state: &str, in_force: &str| {
            let row = host_row(&host, 7);
            assert_eq!((row[1].as_str(), row[3].as_str()), (state, in_force));
        };
        check(base.clone(), "connected", "newest");
        check(HostStatus { acked: Some(6), ..base.clone() }, "connected", "version 6");
        check(
            HostStatus { nack: Some("too large".into()), ..base.clone() },
            "connected",
            "refused: too large",
        );
        check(HostStatus { connected: false, lease_seconds: Some(3), ..base.clone() }, "silent", "newest");
        check(HostStatus { connected: false, acked: None, ..base.clone() }, "away", "-");
        check(HostStatus { revoked: true, ..base }, "shut out", "newest");
    }
}
