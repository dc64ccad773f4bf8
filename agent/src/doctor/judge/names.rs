//! Whether names of the mesh are answered by the agent.

use std::net::IpAddr;

use crate::doctor::Check;
use crate::doctor::code::Code;
use crate::doctor::look::names::Looked;

/// What came of the name of a service with these virtual addresses.
pub fn names(looked: &Looked, expected: &[IpAddr]) -> Check {
    let mut check = Check::new("names");
    let asked = match (&looked.servers[..], &looked.switch) {
        ([], _) => "/etc/resolv.conf names no server".to_owned(),
        (servers, Some(switch)) => format!("asked of {} ({switch})", servers.join(", ")),
        (servers, None) => format!("asked of {}", servers.join(", ")),
    };
    match &looked.answer {
        Ok(found) if found.iter().any(|address| expected.contains(address)) => {
            check.seen = format!("{} is {}", looked.name, list(found));
        }
        Ok(found) => {
            let said = format!("{} is {}, not {}; {asked}", looked.name, list(found), list(expected));
            check.found(Code::NamesBypassed, said);
        }
        Err(error) => check.found(Code::NamesBypassed, format!("{}: {error}; {asked}", looked.name)),
    }
    check
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_somebody_else_is_none_of_the_agents() {
        let virtual_address = IpAddr::from([240, 240, 0, 2]);
        let check = |answer: Result<Vec<IpAddr>, String>, expected: usize| {
            let looked = Looked {
                name: "orders.default.mesh.internal".to_owned(),
                answer,
                servers: vec!["10.0.0.2".to_owned()],
                switch: None,
            };
            let check = names(&looked, &[virtual_address]);
            assert_eq!(check.findings.len(), expected, "{check:?}");
            assert!(check.findings.iter().all(|finding| finding.seen.contains("10.0.0.2")), "{check:?}");
        };
        check(Ok(vec![virtual_address]), 0);
        check(Ok(vec![IpAddr::from([192, 0, 2, 1]), virtual_address]), 0);
        check(Ok(vec![IpAddr::from([192, 0, 2, 1])]), 1);
        check(Ok(Vec::new()), 1);
        check(Err("no such name".to_owned()), 1);
    }
}
