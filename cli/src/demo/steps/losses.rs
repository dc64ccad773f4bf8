//! What is lost and what goes on: a host that dies, and the control server.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use baremesh_agent::admin::report::ServiceReport;

use super::policy::is_turned_away;
use crate::demo::stage::{ENDPOINTS, Stage};

/// Calls while nobody is at the control server.
const CALLS: u32 = 5;

/// Calls in a row, none of which may fail.
#[derive(Default)]
struct Calls {
    made: u32,
    slowest: Duration,
}

impl Calls {
    fn order(&mut self, stage: &Stage<'_>) -> Result<()> {
        let said = stage.order(&stage.web)?;
        self.made += 1;
        self.slowest = self.slowest.max(said.took);
        let number = self.made;
        said.success("a call to orders").with_context(|| format!("call {number} failed"))?;
        Ok(())
    }

    fn in_words(&self) -> String {
        format!("{} calls, none failed, the slowest took {} ms", self.made, self.slowest.as_millis())
    }
}

pub(super) fn of_a_host(stage: &Stage<'_>) -> Result<Vec<String>> {
    let mut outcome = kill_two(stage);
    // Whatever came of it, what follows needs the host again.
    stage.two.host.plug_in()?;
    stage.two.start()?;
    if let Ok(evidence) = &mut outcome {
        stage.wait_until_whole()?;
        stage.order(&stage.web)?.success("the call after the host came back")?;
        evidence.push("plugged in and started again, it is an endpoint again".to_owned());
    }
    outcome
}

fn kill_two(stage: &Stage<'_>) -> Result<Vec<String>> {
    let address = stage.two.host.v4();
    let of_two =
        |service: &ServiceReport| service.endpoints.iter().any(|endpoint| endpoint.address.ip() == address);
    let orders = stage.web.service("orders").context("web does not know orders")?;
    ensure!(of_two(&orders) && orders.endpoints.len() == 2, "orders is not on both hosts to begin with");
    stage.two.kill()?;
    stage.two.host.unplug()?;
    let killed = Instant::now();
    let mut calls = Calls::default();
    calls.order(stage)?;
    let first = killed.elapsed();
    // The lease is what takes it away; until then connections that fail teach the callers' agents.
    let mut failed = None;
    stage.patience.wait("the endpoint of the killed host is gone", || {
        failed = calls.order(stage).err();
        failed.is_some() || stage.web.service("orders").is_some_and(|orders| !of_two(&orders))
    })?;
    failed.map_or(Ok(()), Err)?;
    let gone = killed.elapsed();
    calls.order(stage)?;
    Ok(vec![
        format!("killed the agent of two ({address}) and pulled its cable"),
        format!("{}; the first was answered {} ms after", calls.in_words(), first.as_millis()),
        format!("{:.1} s after, {address} is no endpoint of orders any more", gone.as_secs_f64()),
    ])
}

pub(super) fn of_the_control_server(stage: &Stage<'_>) -> Result<Vec<String>> {
    let before = state(stage);
    let expected: usize = ENDPOINTS.iter().map(|(_, count)| count).sum();
    ensure!(before.len() == expected, "not everything is there to begin with: {before:?}");
    stage.kill_control()?;
    let in_reach =
        || stage.members().map(|member| member.status().is_some_and(|status| status.source.connected));
    stage.patience.wait("the agents notice that the control server is gone", || in_reach() == [false; 4])?;
    let mut calls = Calls::default();
    for _ in 0..CALLS {
        calls.order(stage)?;
    }
    let denied = |when: &str| -> Result<()> {
        let said = stage.order(&stage.guest)?;
        ensure!(is_turned_away(&said), "{when} the guest is not denied: {}{}", said.stdout, said.stderr);
        Ok(())
    };
    denied("without the control server")?;
    let started = Instant::now();
    stage.start_control()?;
    stage.patience.wait("every agent is in touch again", || in_reach() == [true; 4])?;
    let back = started.elapsed();
    stage.patience.wait("everything is as before", || state(stage) == before)?;
    calls.order(stage)?;
    denied("after the control server's return")?;
    Ok(vec![
        "killed the control server; all four agents report that it is not in reach".to_owned(),
        format!("{}; the guest is denied as before", calls.in_words()),
        format!("{:.1} s after its start all agents are in touch again", back.as_secs_f64()),
        "the same services, addresses, endpoints and policy as before".to_owned(),
    ])
}

/// Services, virtual addresses and endpoints as web knows them.
fn state(stage: &Stage<'_>) -> Vec<String> {
    let mut known = Vec::new();
    for service in stage.web.services() {
        for endpoint in &service.endpoints {
            known.push(format!(
                "{} {:?} {} {}",
                service.service, service.addresses, endpoint.workload, endpoint.address
            ));
        }
    }
    known.sort();
    known
}
