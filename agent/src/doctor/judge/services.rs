//! The services of this host: whether their programs listen, whose processes they are, how their checks go, who comes to
//! them, and where they are announced.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::admin::report::doctor::PlaintextReport;
use crate::admin::report::{ContainerProblem, LocalServiceReport, StatusReport};
use crate::attribution::{Caller, CallerTable};
use crate::doctor::Check;
use crate::doctor::code::Code;
use crate::doctor::look::processes::{Listener, Process};
use crate::registration::LocalService;

/// The registered services, by what runs here.
pub fn services(
    registered: &[Arc<LocalService>],
    listeners: &Result<Vec<Listener>, String>,
    processes: &[Process],
    own_addresses: Option<&[IpAddr]>,
) -> Check {
    let mut check = Check::new("services");
    check.seen = format!("{} registered", registered.len());
    match listeners {
        Err(error) => check.unchecked.push(format!("who listens: {error}")),
        Ok(listeners) => {
            for service in registered {
                for at in service.ports.iter().map(|port| port.deliver) {
                    // What is delivered to a container's address listens in another network namespace.
                    let is_own =
                        at.ip().is_loopback() || own_addresses.is_some_and(|own| own.contains(&at.ip()));
                    if is_own && !listeners.iter().any(|listener| takes(listener.at, at)) {
                        check.found(Code::NotListening, format!("{}: nothing listens at {at}", service.key));
                    }
                }
            }
        }
    }
    for service in registered {
        let Some(matcher) = &service.matcher else { continue };
        let table = CallerTable::new([(matcher.clone(), ())]);
        let is_its =
            |process: &Process| table.decide(process.uid, process.place.as_ref()) == Ok(Caller::Service(()));
        if !processes.iter().any(is_its) {
            let said = format!("{}: none of the {} processes is {matcher}", service.key, processes.len());
            check.found(Code::NoProcess, said);
        }
    }
    check
}

/// Whether what is sent to `at` comes to a listener.
fn takes(listener: SocketAddr, at: SocketAddr) -> bool {
    let any = listener.ip().is_unspecified() && (listener.is_ipv6() || at.is_ipv4());
    listener.port() == at.port() && (any || listener.ip() == at.ip())
}

/// What the agent says of them: their checks, and who comes in plaintext.
pub fn calls(services: &[LocalServiceReport], plaintext: &[PlaintextReport]) -> Check {
    let mut check = Check::new("calls");
    check.seen = format!("{} callers in plaintext within the last hour", plaintext.len());
    for service in services {
        let Some(health) = service.health.as_ref().filter(|health| health.health == "unhealthy") else {
            continue;
        };
        let reason = health.reason.as_deref().unwrap_or("it has not passed yet");
        let said = format!("{}: {} for {} s: {reason}", service.service, health.check, health.seconds);
        check.found(Code::ServiceUnhealthy, said);
    }
    for caller in plaintext {
        let said = format!(
            "{} came to {} {} times, last {} s ago",
            caller.from, caller.service, caller.connections, caller.seconds
        );
        check.found(Code::PlaintextRefused, said);
    }
    check
}

/// The containers that services are told by label to be.
pub fn containers(services: &[LocalServiceReport]) -> Check {
    let mut check = Check::new("containers");
    let told = services.iter().filter_map(|service| Some((service, service.container.as_ref()?)));
    let told: Vec<_> =
        told.filter(|(_, container)| container.labels.is_some() || !container.in_force).collect();
    check.seen = format!("{} services are told by label", told.len());
    for (service, container) in told.into_iter().filter(|(_, container)| !container.in_force) {
        let code = match container.problem {
            ContainerProblem::Unfollowed => Code::ContainersUnfollowed,
            ContainerProblem::Contested => Code::ContainerContested,
            // It may be stopped on purpose, and status says so.
            ContainerProblem::None | ContainerProblem::Absent => continue,
        };
        let labels = container.labels.as_ref().map(|labels| format!(" ({labels})")).unwrap_or_default();
        check.found(code, format!("{}{labels}: {}", service.service, container.standing));
    }
    check
}

/// Where the host and its services are announced.
pub fn addresses(status: &StatusReport, own: Option<&[IpAddr]>) -> Check {
    let Some(own) = own else { return Check::unchecked("addresses", "the interfaces cannot be read") };
    let mut check = Check::new("addresses");
    let text: Vec<_> = status.addresses.iter().map(ToString::to_string).collect();
    check.seen = if text.is_empty() { "none".to_owned() } else { text.join(", ") };
    let announced = status.services.iter().flat_map(|service| &service.advertised).map(SocketAddr::ip);
    let mut all: Vec<_> = status.addresses.iter().copied().chain(announced).collect();
    all.sort();
    all.dedup();
    for address in all.iter().filter(|address| !own.contains(address)) {
        check.found(Code::AddressElsewhere, format!("{address} is on no interface of this host"));
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::Uid;
    use crate::snapshot::tests::registration;

    fn codes(check: &Check) -> Vec<Code> {
        check.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_service_without_a_program_is_named() {
        let orders = registration("name = \"orders\"\nports = [{ port = 7000 }]\nuser = 1000\n");
        let listener = |at: &str| Listener { at: at.parse().expect("an address"), uid: 0, process: None };
        let process =
            |uid| Process { pid: 1, uid: Uid(uid), arguments: Vec::new(), place: None, is_here: None };
        let check = |at: &[&str], uid, expected: &[Code]| {
            let listeners = Ok(at.iter().map(|at| listener(at)).collect());
            let check = services(std::slice::from_ref(&orders), &listeners, &[process(uid)], None);
            assert_eq!(codes(&check), expected, "{at:?} {uid}");
        };
        check(&["127.0.0.1:7000"], 1000, &[]);
        check(&["0.0.0.0:7000"], 1000, &[]);
        check(&["[::]:7000"], 1000, &[]);
        check(&["127.0.0.1:7000"], 1001, &[Code::NoProcess]);
        check(&["127.0.0.1:7001", "10.0.0.1:7000", "[::1]:7000"], 1000, &[Code::NotListening]);
        check(&[], 0, &[Code::NotListening, Code::NoProcess]);
    }

    #[test]
    fn callers_in_plaintext_and_failing_checks_are_named() {
        use crate::admin::report::{ContainerReport, HealthReport};
        let service = |health: &str| LocalServiceReport {
            service: "orders.default".to_owned(),
            identity: String::new(),
            advertised: vec![([10, 0, 0, 1], 7000).into()],
            own_addresses: false,
            group: None,
            container: None,
            deliver: Vec::new(),
            mtls: "STRICT".to_owned(),
            certificate: true,
            health: Some(HealthReport {
                check: "tcpSocket".to_owned(),
                health: health.to_owned(),
                seconds: 3,
                last: None,
                last_seconds: None,
                reason: None,
            }),
        };
        assert!(codes(&calls(&[service("healthy")], &[])).is_empty());
        assert_eq!(codes(&calls(&[service("unhealthy")], &[])), [Code::ServiceUnhealthy]);
        let caller = PlaintextReport {
            service: "orders.default".to_owned(),
            from: [10, 0, 0, 9].into(),
            connections: 2,
            seconds: 1,
        };
        assert_eq!(codes(&calls(&[service("healthy")], &[caller])), [Code::PlaintextRefused]);
        let contained = |problem, labels: Option<&str>| LocalServiceReport {
            container: Some(ContainerReport {
                labels: labels.map(str::to_owned),
                addresses: Vec::new(),
                in_force: problem == ContainerProblem::None,
                problem,
                standing: "in words".to_owned(),
            }),
            ..service("healthy")
        };
        for (problem, expected) in [
            (ContainerProblem::None, &[][..]),
            (ContainerProblem::Absent, &[]),
            (ContainerProblem::Unfollowed, &[Code::ContainersUnfollowed]),
            (ContainerProblem::Contested, &[Code::ContainerContested]),
        ] {
            assert_eq!(codes(&containers(&[contained(problem, Some("app=cart"))])), expected);
        }
        // One that is told by its address may be another's by label.
        assert_eq!(
            codes(&containers(&[contained(ContainerProblem::Contested, None)])),
            [Code::ContainerContested]
        );
    }
}
