//! Whether others than containers of this host are on an interface. Whoever is on a bridge can take a container's address
//! there, and would be the container to the agent.
//!
//! sysfs alone is asked: it is read without a process or a socket, every two seconds and for every port. It names no kind,
//! so a port is told by what containers' ports have and others have not. A port is a container's if it is
//! - a tun or tap device (`tun_flags`), a guest's; or
//! - a veth: its `iflink` is the index of its other end, and so not its own, it is no device on a bus (`device`), lies over no
//!   other of this host (`lower_*`, as VLANs, bonds, teams, macvlans and vxlans over a device do) and is of no declared type
//!   (`DEVTYPE`, which bonds, VLANs, vxlans, geneves, radios and bridges have, and veths have not).
//!
//! Anything else leads outside, dummies among them. Where the other end of a veth or a tap has been put by the operator
//! does not show.

use std::fs;
use std::path::Path;

use super::interface::Interface;

/// Where the kernel shows interfaces.
const LINKS: &str = "/sys/class/net";

impl Interface {
    /// Whether others than containers of this host are on it. From an interface that is not there nothing comes.
    pub fn leads_outside(&self) -> bool {
        leads_outside(self.as_str(), Path::new(LINKS))
    }
}

fn leads_outside(interface: &str, links: &Path) -> bool {
    match fs::read_dir(links.join(interface).join("brif")) {
        Ok(ports) => ports.flatten().any(|port| is_others(&links.join(port.file_name()))),
        Err(_) => is_others(&links.join(interface)),
    }
}

/// Whether a port is there, and not a container's.
fn is_others(port: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(port.join(name));
    // One that has been taken away meanwhile is no port any more.
    let (Ok(own), Ok(other)) = (read("ifindex"), read("iflink")) else { return false };
    if port.join("tun_flags").exists() {
        return false;
    }
    let is_typed = || read("uevent").is_ok_and(|text| text.lines().any(|line| line.starts_with("DEVTYPE=")));
    let lies_over = || {
        let entries = fs::read_dir(port).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| name.as_encoded_bytes().starts_with(b"lower_"))
    };
    own.trim() == other.trim() || port.join("device").exists() || is_typed() || lies_over()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What sysfs shows of an interface: its name, index, that of its other end, and what else.
    fn link(links: &Path, (name, own, other): (&str, u32, u32), more: &[&str]) {
        let directory = links.join(name);
        fs::create_dir_all(&directory).expect("made");
        let write = |file: &str, text: String| fs::write(directory.join(file), text).expect("written");
        write("ifindex", format!("{own}\n"));
        write("iflink", format!("{other}\n"));
        write("uevent", format!("INTERFACE={name}\nIFINDEX={own}\n"));
        for what in more {
            match what.strip_prefix("DEVTYPE=") {
                Some(_) => write("uevent", format!("{what}\nINTERFACE={name}\nIFINDEX={own}\n")),
                None => fs::create_dir_all(directory.join(what)).expect("made"),
            }
        }
    }

    #[test]
    fn a_bridge_with_a_network_card_is_the_network_s() {
        let links = tempfile::tempdir().expect("a directory");
        let make = |named, more: &[&str]| link(links.path(), named, more);
        make(("veth1", 7, 2), &[]);
        make(("vnet0", 8, 8), &["tun_flags"]);
        make(("eth0", 2, 2), &["device"]);
        make(("virtio-veth", 2, 3), &["device"]);
        make(("bond0", 9, 9), &["DEVTYPE=bond", "lower_eth0"]);
        make(("team0", 10, 10), &["lower_eth0"]);
        make(("eth0.5", 11, 2), &["DEVTYPE=vlan", "lower_eth0"]);
        make(("vxlan0", 12, 2), &["DEVTYPE=vxlan"]);
        make(("macvlan0", 13, 2), &["lower_eth0"]);
        make(("dummy0", 14, 14), &[]);
        let check = |bridge: &str, ports: &[&str], expected: bool| {
            link(links.path(), (bridge, 20, 20), &["DEVTYPE=bridge", "brif"]);
            for port in ports {
                fs::create_dir_all(links.path().join(bridge).join("brif").join(port)).expect("made");
            }
            assert_eq!(leads_outside(bridge, links.path()), expected, "{bridge}: {ports:?}");
        };
        check("empty", &[], false);
        check("containers", &["veth1", "vnet0"], false);
        check("going", &["veth1", "was-taken-away"], false);
        for port in
            ["eth0", "virtio-veth", "bond0", "team0", "eth0.5", "vxlan0", "macvlan0", "dummy0", "containers"]
        {
            check(&format!("with-{port}"), &["veth1", port], true);
        }
        // What is no bridge is judged as a port would be.
        for (name, expected) in [("veth1", false), ("vnet0", false), ("eth0", true), ("not-there", false)] {
            assert_eq!(leads_outside(name, links.path()), expected, "{name}");
        }
    }
}
