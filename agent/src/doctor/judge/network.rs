//! Ports of the agent and who has them, a second agent, and the agents of other hosts.

use crate::admin::report::doctor::{DoctorReport, Step};
use crate::doctor::code::Code;
use crate::doctor::look::processes::{Listener, Process};
use crate::doctor::{Check, Finding};

/// Whose ports they are. `agent` is the process that answers at this host's socket; none where nobody does.
pub fn ports(
    wanted: &[u16],
    listeners: &Result<Vec<Listener>, String>,
    processes: &[Process],
    agent: Option<u32>,
) -> Check {
    let mut check = Check::new("ports");
    let listeners = match listeners {
        Ok(listeners) => listeners,
        Err(error) => return Check::unchecked("ports", error.clone()),
    };
    let agents: Vec<_> = processes.iter().filter(|process| process.is_baremesh("agent")).collect();
    let here: Vec<_> = agents.iter().filter(|process| process.is_here == Some(true)).collect();
    if agents.iter().any(|process| process.is_here.is_none()) {
        check
            .unchecked
            .push("whether other agents are of this host: only root sees their namespaces".to_owned());
    }
    let others: Vec<_> = here.iter().filter(|process| Some(process.pid) != agent).collect();
    match agent {
        // What the agent has it could take. Another one that runs has its own, or waits for these.
        Some(_) => check.seen = format!("{} of {} taken", taken(wanted, listeners), wanted.len()),
        None => {
            check.seen = format!("no agent; {} of {} taken", taken(wanted, listeners), wanted.len());
            let of_agents = |listener: &&Listener| {
                let holder = listener.process.as_ref().map(|(pid, _)| *pid);
                // The guard of an agent that has died holds them for the next one.
                processes.iter().any(|process| {
                    Some(process.pid) == holder
                        && (process.is_baremesh("agent") || process.is_baremesh("guard"))
                })
            };
            let foreign = listeners.iter().filter(|listener| wanted.contains(&listener.at.port()));
            for listener in foreign.filter(|listener| !of_agents(listener)) {
                check.findings.push(taken_by(listener));
            }
        }
    }
    // One alone that does not answer is found by its not answering.
    if !others.is_empty() && (agent.is_some() || others.len() > 1) {
        let pids: Vec<_> = others.iter().map(|process| process.pid.to_string()).collect();
        let said = match agent {
            Some(agent) => {
                format!("process {agent} answers at this host's socket, and {} runs besides", pids.join(", "))
            }
            None => format!("processes {}", pids.join(", ")),
        };
        check.found(Code::TwoAgents, said);
    }
    check.findings.dedup();
    check
}

fn taken(wanted: &[u16], listeners: &[Listener]) -> usize {
    wanted.iter().filter(|port| listeners.iter().any(|listener| listener.at.port() == **port)).count()
}

fn taken_by(listener: &Listener) -> Finding {
    let port = listener.at.port();
    match &listener.process {
        Some((pid, name)) => Finding::new(
            Code::PortTaken,
            format!("port {port} is taken by process {pid} ({name}) of user {}", listener.uid),
        ),
        None => Finding::new(
            Code::PortTaken,
            format!("port {port} is taken by a process of user {}", listener.uid),
        )
        .with_remedy(format!(
            "`ss -ltnp sport = :{port}` as root tells which: end it, or set `[ports]` in agent.toml"
        )),
    }
}

/// The agents of other hosts, where they were asked for.
pub fn peers(agent: &DoctorReport) -> Check {
    let mut check = Check::new("peers");
    let reached = agent.peers.iter().filter(|peer| peer.step.is_none()).count();
    check.seen = format!("{reached} of {} agents take connections", agent.peers.len());
    if agent.peers_left_out > 0 {
        check.unchecked.push(format!("{} more agents", agent.peers_left_out));
    }
    for peer in &agent.peers {
        let Some(step) = peer.step else { continue };
        let detail = peer.detail.as_deref().unwrap_or_default();
        let (agent, service) = (peer.agent, &peer.service);
        let finding = Finding::new(
            Code::PeerUnreachable,
            format!("{agent}, which has an endpoint of {service}: {detail}"),
        );
        check.findings.push(match step {
            Step::Route => finding.with_remedy(format!(
                "there is no route: `ip route get {}`; is the interface up, is there a gateway to that network?",
                agent.ip()
            )),
            Step::Port => finding.with_remedy("nobody listens there: `systemctl start baremesh` on that host"),
            _ => finding.with_remedy(format!(
                "nothing comes back: let TCP port {} pass in the firewalls of both hosts and between, or start that host",
                agent.port()
            )),
        });
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::doctor::PeerReport;
    use crate::attribution::Uid;

    fn process(pid: u32, line: &str) -> Process {
        let arguments = line.split(' ').map(str::to_owned).collect();
        Process { pid, uid: Uid(0), arguments, place: None, is_here: Some(true) }
    }

    #[test]
    fn tells_whose_the_ports_are() {
        let listener = |pid: u32, name: &str| Listener {
            at: ([0, 0, 0, 0], 15008).into(),
            uid: 1000,
            process: Some((pid, name.to_owned())),
        };
        let check = |listeners: &[Listener], processes: &[Process], agent, expected: &[Code]| {
            let check = ports(&[15001, 15008], &Ok(listeners.to_vec()), processes, agent);
            let codes: Vec<_> = check.findings.iter().map(|finding| finding.code).collect();
            assert_eq!(codes, expected, "{listeners:?} {processes:?} {agent:?}");
        };
        let (own, guard) = (process(7, "baremesh agent"), process(8, "baremesh capture guard 7 x"));
        check(&[listener(7, "baremesh")], &[own.clone(), guard.clone()], Some(7), &[]);
        check(&[], &[], None, &[]);
        check(&[listener(9, "nc")], &[], None, &[Code::PortTaken]);
        check(&[listener(9, "nc"), listener(9, "nc")], &[], None, &[Code::PortTaken]);
        check(&[listener(8, "baremesh")], &[guard], None, &[]);
        check(&[listener(7, "baremesh")], std::slice::from_ref(&own), None, &[]);
        let second = process(9, "baremesh --run-dir /run/b agent");
        check(&[listener(7, "baremesh")], &[own.clone(), second.clone()], Some(7), &[Code::TwoAgents]);
        check(&[], &[own.clone(), second.clone()], None, &[Code::TwoAgents]);
        let elsewhere = Process { is_here: Some(false), ..second };
        check(&[listener(7, "baremesh")], &[own, elsewhere], Some(7), &[]);
    }

    #[test]
    fn a_peer_that_is_not_reached_has_the_way_out_of_its_step() {
        let peer = |step| PeerReport {
            agent: ([10, 0, 0, 7], 15008).into(),
            service: "orders.default".to_owned(),
            step,
            detail: step.map(|_| "so".to_owned()),
        };
        let steps = [None, Some(Step::Route), Some(Step::Port), Some(Step::Silence)];
        let agent = DoctorReport { peers: steps.map(peer).to_vec(), ..DoctorReport::default() };
        let remedies: Vec<_> =
            peers(&agent).findings.iter().map(|finding| finding.remedy().to_owned()).collect();
        assert_eq!(remedies.len(), 3);
        for (remedy, word) in remedies.iter().zip(["ip route get 10.0.0.7", "systemctl start", "port 15008"])
        {
            assert!(remedy.contains(word), "{remedy}");
        }
    }
}
