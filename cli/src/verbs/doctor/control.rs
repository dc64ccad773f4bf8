//! What the control server of this host says of the mesh: only on the control host.

use baremesh_agent::doctor::Check;
use baremesh_agent::doctor::code::Code;

use crate::control::report::StatusReport;

/// Resources that are refused, registrations that are not published, hosts that refuse the state.
pub(super) fn mesh(status: &StatusReport) -> Check {
    let mut check = Check::new("mesh");
    let connected = status.hosts.iter().filter(|host| host.connected).count();
    check.seen = format!(
        "{} resources, state version {}, {connected} of {} hosts connected",
        status.resources,
        status.state_version,
        status.hosts.len()
    );
    if let Some(refused) = &status.resources_refused {
        check.found(Code::ResourcesRefused, refused.clone());
    }
    if let Some(alarm) = &status.alarm {
        check.found(Code::ControlAlarm, alarm.clone());
    }
    for warning in &status.warnings {
        check.found(Code::CertificateNearEnd, warning.clone());
    }
    for host in &status.hosts {
        if let Some(reason) = &host.nack {
            check.found(Code::HostRefuses, format!("{}: {reason}", host.host));
        }
        for registration in &host.registrations {
            let reason = registration.held.as_ref().or(registration.without.as_ref());
            if let Some(reason) = reason {
                check.found(
                    Code::RegistrationHeld,
                    format!("{} of {}: {reason}", registration.service, host.host),
                );
            }
        }
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::{HostStatus, RegistrationStatus};

    #[test]
    fn what_the_control_server_complains_of_is_found() {
        let held = RegistrationStatus {
            service: "orders.default".into(),
            held: Some("not granted".into()),
            without: None,
            health: String::new(),
        };
        let host = HostStatus {
            host: "h1".into(),
            nack: Some("too large".into()),
            registrations: vec![held],
            ..HostStatus::default()
        };
        let mut status = StatusReport {
            version: String::new(),
            trust_domain: String::new(),
            listen: Vec::new(),
            certificate_not_after: 0,
            resources: 3,
            resources_refused: Some("line 3".into()),
            warnings: Vec::new(),
            alarm: Some("silent".into()),
            state_version: 7,
            hosts: vec![host],
        };
        let codes = |status: &StatusReport| mesh(status).findings.iter().map(|f| f.code).collect::<Vec<_>>();
        let expected =
            [Code::ResourcesRefused, Code::ControlAlarm, Code::HostRefuses, Code::RegistrationHeld];
        assert_eq!(codes(&status), expected);
        (status.resources_refused, status.alarm) = (None, None);
        status.hosts = vec![HostStatus { host: "h1".into(), ..HostStatus::default() }];
        assert!(codes(&status).is_empty());
    }
}
