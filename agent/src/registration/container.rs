//! Services that are no processes of this host but a container, or a guest, on one of its bridges.

use std::net::IpAddr;

use super::file::Written;
use crate::capture::Interface;
use crate::capture::interface::InterfaceError;

/// A container or guest on a bridge of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The bridge.
    pub interface: Interface,
    /// Its addresses there, at least one.
    pub addresses: Vec<IpAddr>,
}

/// Which container the service is.
pub(super) fn read(written: &Written) -> Result<Option<Container>, String> {
    let Some(interface) = &written.interface else {
        return match written.sources.first() {
            None => Ok(None),
            Some(address) => Err(format!(
                "the container at {address} is on a bridge: name its interface too, such as docker0"
            )),
        };
    };
    let interface: Interface = interface.parse().map_err(|error: InterfaceError| error.to_string())?;
    let addresses: Vec<_> = written.sources.iter().map(IpAddr::to_canonical).collect();
    if addresses.is_empty() {
        return Err(format!("name the container's addresses on {interface} too"));
    }
    let nobodys = |address: &&IpAddr| {
        let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local
    };
    if let Some(address) = addresses.iter().find(nobodys) {
        return Err(format!("no container has the address {address}"));
    }
    if written.unit.is_some() || written.cgroup.is_some() || written.user.is_some() {
        return Err("a service is processes of this host, or a container: name one of the two".to_owned());
    }
    Ok(Some(Container { interface, addresses }))
}

#[cfg(test)]
mod tests {
    use super::super::LocalService;
    use super::*;

    fn check(lines: &str, expected: Result<&[&str], &str>) {
        let text = format!("name = \"cart\"\nports = [{{ port = 80 }}]\n{lines}");
        let written: Written = toml::from_str(&text).expect("it parses");
        match (LocalService::try_from(&written), expected) {
            (Ok(local), Ok(addresses)) => {
                let found = local.container.map(|own| own.addresses).unwrap_or_default();
                assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), addresses, "{lines}");
            }
            (Err(fault), Err(part)) => assert!(fault.to_string().contains(part), "{lines}: {fault}"),
            (found, _) => panic!("{lines}: {found:?}"),
        }
    }

    #[test]
    fn a_container_is_an_address_on_a_bridge() {
        check("", Ok(&[]));
        check("interface = \"br0\"\nsources = [\"172.17.0.2\", \"fd17::2\"]", Ok(&["172.17.0.2", "fd17::2"]));
        check("interface = \"br0\"\nsources = [\"::ffff:172.17.0.2\"]", Ok(&["172.17.0.2"]));
        check("sources = [\"172.17.0.2\"]", Err("name its interface too"));
        check("interface = \"br0\"", Err("addresses on br0"));
        check("interface = \"br 0\"\nsources = [\"172.17.0.2\"]", Err("no interface"));
        check("interface = \"lo\"\nsources = [\"172.17.0.2\"]", Err("no container"));
        check("interface = \"br0\"\nsources = [\"127.0.0.1\"]", Err("no container has the address"));
        check("interface = \"br0\"\nsources = [\"fe80::1\"]", Err("no container has the address"));
        check("user = 7\ninterface = \"br0\"\nsources = [\"172.17.0.2\"]", Err("one of the two"));
    }
}
