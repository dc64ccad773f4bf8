//! What a program that stays may do beyond what the owner of its files may. Each says, before it has a second thread, what
//! it needs from then on, and gives up the rest for good: the kernel's capabilities are a thread's, and those that come
//! later inherit them. Nothing that it starts has more.

use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, getgroups, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    no_new_privs, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
};

use crate::admin::server::{GROUP, group_id};
use crate::config::{AgentConfig, DnsMode};

/// Of the processes that place rules for an agent that is gone: the guard, and what takes an unconfirmed change back.
pub const OF_RULES: CapabilitySet = CapabilitySet::NET_ADMIN;
/// Of the process that runs commands of health checks: to become the service's user.
pub const OF_COMMANDS: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);
/// Ports below are the system's, unless `net.ipv4.ip_unprivileged_port_start` says otherwise.
const FIRST_ORDINARY_PORT: u16 = 1024;
/// So many capabilities the kernel's interface has room for.
const ALL: u32 = u64::BITS;

/// Of the agent: the rules, routes and marks of its sockets, and the low ports that it was told to listen on.
pub fn of_agent(config: &AgentConfig) -> CapabilitySet {
    let dns = (config.dns != DnsMode::Off).then_some(config.dns_port);
    let ports = [config.ports.outbound, config.ports.inbound, config.ports.hbone];
    let ports = ports.into_iter().chain([config.metrics.port(), config.ready.port()]).chain(dns);
    CapabilitySet::NET_ADMIN | of_ports(ports)
}

/// What listening on these ports takes.
pub fn of_ports(ports: impl IntoIterator<Item = u16>) -> CapabilitySet {
    match ports.into_iter().any(|port| port < FIRST_ORDINARY_PORT) {
        true => CapabilitySet::NET_BIND_SERVICE,
        false => CapabilitySet::empty(),
    }
}

/// Joins the group that may use administration sockets, so that giving a socket to it takes no capability later. Where
/// there is no such group, or this is not allowed, nothing changes.
pub fn join_administrators() {
    let Some(group) = group_id(GROUP) else { return };
    let Ok(mut groups) = getgroups() else { return };
    groups.push(Gid::from_raw(group));
    if let Err(error) = set_thread_groups(&groups) {
        tracing::debug!(%error, "the group `{GROUP}` cannot be joined");
    }
}

/// Gives up every capability that is not `kept`, for this process and all that it starts, and takes its memory, with the
/// keys in it, out of core dumps and out of the reach of debuggers. To be called before there is a second thread.
pub fn keep(kept: CapabilitySet) -> io::Result<()> {
    // Without CAP_SETPCAP they stay in the bounding set, and out of reach: no program that is started gains any.
    let may_bound = capabilities(None)?.effective.contains(CapabilitySet::SETPCAP);
    for one in (0..ALL).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(one) {
            Ok(true) if may_bound && !kept.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            // This kernel knows no more of them.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    let left = capabilities(None)?.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() },
    )?;
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// What the calling thread holds, as `status` and the log say it.
pub fn in_words() -> String {
    let held = capabilities(None).map(|held| held.permitted.union(held.effective));
    let held = held.map_or_else(|error| format!("unknown ({error})"), names);
    match no_new_privs() {
        Ok(true) => format!("{held}; programs that it starts gain none"),
        _ => held,
    }
}

/// Names as `capsh` and systemd write them.
fn names(held: CapabilitySet) -> String {
    let names: Vec<_> = held.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    if names.is_empty() { "no capabilities".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_keeps_what_its_ports_need() {
        let mut config = AgentConfig::load(crate::config::Directories {
            config: "/nonexistent".into(),
            ..Default::default()
        })
        .expect("defaults");
        assert_eq!(names(of_agent(&config)), "CAP_NET_ADMIN");
        config.dns = DnsMode::Nameserver;
        config.dns_port = 53;
        assert_eq!(names(of_agent(&config)), "CAP_NET_BIND_SERVICE, CAP_NET_ADMIN");
        config.dns = DnsMode::Off;
        assert_eq!(names(of_agent(&config)), "CAP_NET_ADMIN");
        config.metrics.set_port(80);
        assert_eq!(names(of_agent(&config)), "CAP_NET_BIND_SERVICE, CAP_NET_ADMIN");
        assert_eq!(names(CapabilitySet::empty()), "no capabilities");
        assert_eq!(names(OF_COMMANDS), "CAP_SETGID, CAP_SETUID");
    }
}
