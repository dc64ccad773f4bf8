//! Services that are no processes of this host but a container, or a guest, on one of its bridges. Which one is said by
//! its address there, or by labels that its engine knows it by.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::check::WrittenCheck;
use super::file::Written;
use crate::capture::Interface;
use crate::capture::interface::InterfaceError;

/// The most labels that a registration names.
const MAX_LABELS: usize = 16;
/// The longest label that a registration names, key and value together, in bytes.
const MAX_LABEL: usize = 1024;

/// A container or guest on a bridge of this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container {
    /// The bridge.
    pub interface: Interface,
    /// Its addresses there, at least one.
    pub addresses: Vec<IpAddr>,
}

/// How a registration says which container the service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// By its addresses on a bridge.
    At(Container),
    /// By labels. Where it is, is what its engine tells of it.
    Labelled(Selector),
}

/// Labels that a container has, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(BTreeMap<String, Option<String>>);

impl Selector {
    /// From `KEY=VALUE`, or `KEY` for whatever value; at least one.
    pub fn of(labels: &[String]) -> Result<Self, String> {
        let mut selector = BTreeMap::new();
        if labels.len() > MAX_LABELS {
            return Err(format!("more than {MAX_LABELS} container labels: fewer tell a container apart too"));
        }
        for label in labels {
            let (key, value) = match label.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (label.as_str(), None),
            };
            if key.trim().is_empty() || label.len() > MAX_LABEL || label.contains(char::is_control) {
                return Err(format!(
                    "`{}` is no label of a container: write KEY=VALUE, or KEY for whatever value, of up to {MAX_LABEL} bytes",
                    label.escape_debug()
                ));
            }
            if selector.insert(key.to_owned(), value).is_some() {
                return Err(format!("the container label `{key}` is named twice, and all must match"));
            }
        }
        Ok(Self(selector))
    }

    /// Whether a container with these labels is meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, wanted)| {
            labels.get(key).is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match value {
                Some(value) => write!(f, "{comma}{key}={value}")?,
                None => write!(f, "{comma}{key}")?,
            }
        }
        Ok(())
    }
}

/// Which container a service is, and where it is known to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contained {
    /// As registered.
    pub named: Named,
    /// Where what comes is the service, one entry a bridge.
    pub sources: Vec<Container>,
    /// Where what comes may be the service and is not certain to be: it is nobody, and held to what the service is held
    /// to.
    pub suspended: Vec<Container>,
    /// How that came about.
    pub standing: Standing,
    /// How the service is looked at, where that moves with the container.
    pub(super) check: Option<Arc<WrittenCheck>>,
}

impl Contained {
    /// Every place that is, or may be, the service's.
    pub fn held(&self) -> impl Iterator<Item = &Container> {
        self.sources.iter().chain(&self.suspended)
    }

    /// The labels, where it is told by them.
    pub fn selector(&self) -> Option<&Selector> {
        match &self.named {
            Named::At(_) => None,
            Named::Labelled(selector) => Some(selector),
        }
    }
}

/// What is known of a service's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Where it is.
    Found,
    /// Its engine is followed, and no container that runs has the labels.
    Absent,
    /// Nobody follows the engine.
    Unfollowed,
    /// It is another service's as well.
    Contested(Arc<str>),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found => f.write_str("found"),
            Self::Absent => f.write_str("no container that runs on a bridge has the labels"),
            Self::Unfollowed => f.write_str(
                "nobody follows the container engine, so no container is certain to be it: `systemctl enable --now baremesh-containers`",
            ),
            Self::Contested(with) => f.write_str(with),
        }
    }
}

/// Where a port is delivered, as written: an address and port, or a port of the container that labels name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WrittenDeliver {
    /// A fixed place.
    At(SocketAddr),
    /// `container:PORT`.
    Container(NonZeroU16),
}

impl FromStr for WrittenDeliver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = match text.strip_prefix("container:") {
            Some(port) => port.parse().ok().map(Self::Container),
            None => text.parse().ok().map(Self::At),
        };
        read.ok_or_else(|| {
            format!("`{text}` is nowhere to deliver to: write ADDRESS:PORT, [ADDRESS]:PORT or container:PORT")
        })
    }
}

impl TryFrom<String> for WrittenDeliver {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<WrittenDeliver> for String {
    fn from(deliver: WrittenDeliver) -> Self {
        deliver.to_string()
    }
}

impl fmt::Display for WrittenDeliver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Container(port) => write!(f, "container:{port}"),
        }
    }
}

/// Whether no container has this address on a bridge.
pub(crate) fn is_nobodys(address: &IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local
}

/// Which container the service is.
pub(super) fn read(written: &Written) -> Result<Option<Contained>, String> {
    let by_container =
        |port: &super::file::WrittenPort| matches!(port.deliver, Some(WrittenDeliver::Container(_)));
    let named = match (&written.interface, written.sources.first()) {
        _ if !written.container_labels.is_empty() => {
            Named::Labelled(Selector::of(&written.container_labels)?)
        }
        _ if written.ports.iter().any(by_container) => {
            return Err(
                "`container:PORT` is the container that labels name: name them too, as `containerLabels`, or deliver to \
                 an address"
                    .to_owned(),
            );
        }
        (None, None) => return Ok(None),
        (None, Some(address)) => {
            return Err(format!(
                "the container at {address} is on a bridge: name its interface too, such as docker0"
            ));
        }
        (Some(interface), _) => Named::At(at_address(interface, &written.sources)?),
    };
    if written.unit.is_some() || written.cgroup.is_some() || written.user.is_some() {
        return Err("a service is processes of this host, or a container: name one of the two".to_owned());
    }
    let contained = match named {
        Named::At(container) => Contained {
            sources: vec![container.clone()],
            named: Named::At(container),
            suspended: Vec::new(),
            standing: Standing::Found,
            check: None,
        },
        Named::Labelled(_) if written.interface.is_some() || !written.sources.is_empty() => {
            return Err(
                "a container is told by its labels, or by its addresses: name one of the two".to_owned()
            );
        }
        named @ Named::Labelled(_) => Contained {
            named,
            sources: Vec::new(),
            suspended: Vec::new(),
            standing: Standing::Unfollowed,
            check: written.check.clone().map(Arc::new),
        },
    };
    Ok(Some(contained))
}

fn at_address(interface: &str, sources: &[IpAddr]) -> Result<Container, String> {
    let interface: Interface = interface.parse().map_err(|error: InterfaceError| error.to_string())?;
    let addresses: Vec<_> = sources.iter().map(IpAddr::to_canonical).collect();
    if addresses.is_empty() {
        return Err(format!("name the container's addresses on {interface} too"));
    }
    if let Some(address) = addresses.iter().find(|address| is_nobodys(address)) {
        return Err(format!("no container has the address {address}"));
    }
    Ok(Container { interface, addresses })
}

#[cfg(test)]
mod tests {
    use super::super::LocalService;
    use super::*;

    fn read(lines: &str) -> Result<LocalService, String> {
        let text = format!("name = \"cart\"\n{lines}");
        let text = if text.contains("ports") { text } else { format!("ports = [{{ port = 80 }}]\n{text}") };
        let written: Written = toml::from_str(&text).map_err(|error| error.to_string())?;
        LocalService::try_from(&written).map_err(|fault| fault.to_string())
    }

    fn check(lines: &str, expected: Result<&[&str], &str>) {
        match (read(lines), expected) {
            (Ok(local), Ok(addresses)) => {
                let sources = local.container.map(|own| own.sources).unwrap_or_default();
                let found = sources.iter().flat_map(|own| &own.addresses).map(ToString::to_string);
                assert_eq!(found.collect::<Vec<_>>(), addresses, "{lines}");
            }
            (Err(fault), Err(part)) => assert!(fault.contains(part), "{lines}: {fault}"),
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

    #[test]
    fn or_what_has_the_labels() {
        check("containerLabels = [\"app=cart\", \"tier\"]", Ok(&[]));
        check("containerLabels = [\"app=cart\", \"app\"]", Err("named twice"));
        check("containerLabels = [\"=cart\"]", Err("no label of a container"));
        check("containerLabels = [\"a\\nb\"]", Err("no label of a container"));
        check(
            &format!("containerLabels = [\"{}\"]", "a".repeat(MAX_LABEL + 1)),
            Err("no label of a container"),
        );
        check("containerLabels = [\"app=cart\"]\nuser = 7", Err("one of the two"));
        check("containerLabels = [\"app=cart\"]\ninterface = \"br0\"", Err("one of the two"));
        check("containerLabels = [\"app=cart\"]\ngateway = true", Err("remove `containerLabels`"));
        check("ports = [{ port = 80, deliver = \"container:8080\" }]", Err("that labels name"));
        check("ports = [{ port = 80, deliver = \"container:22\" }]\ncontainerLabels = [\"app\"]", Err("SSH"));
        for deliver in ["container:0", "container:", "container:http", "172.17.0.2"] {
            let ports =
                format!("ports = [{{ port = 80, deliver = \"{deliver}\" }}]\ncontainerLabels = [\"app\"]");
            check(&ports, Err("nowhere to deliver to"));
        }
        let local =
            read("ports = [{ port = 80, deliver = \"container:8080\" }]\ncontainerLabels = [\"app\"]");
        let local = local.expect("a registration");
        assert_eq!(local.ports[0].deliver.to_string(), "0.0.0.0:8080");
        assert_eq!(local.container.expect("a container").standing, Standing::Unfollowed);
        assert!(!local.health.is_healthy(), "before its container is known it takes no calls");
    }

    #[test]
    fn all_labels_must_match() {
        let labels: BTreeMap<String, String> = [("app", "cart"), ("tier", ""), ("eq", "a=b")]
            .map(|(key, value)| (key.into(), value.into()))
            .into();
        for (wanted, expected) in [
            (&["app=cart"][..], true),
            (&["app"], true),
            (&["app=cart", "tier"], true),
            (&["app=cart", "tier="], true),
            (&["eq=a=b"], true),
            (&["app=till"], false),
            (&["app="], false),
            (&["app=cart", "zone"], false),
            (&["App=cart"], false),
        ] {
            let selector = Selector::of(&wanted.iter().map(|&label| label.to_owned()).collect::<Vec<_>>());
            let selector = selector.expect("a selector");
            assert_eq!(selector.matches(&labels), expected, "{selector}");
        }
    }
}
