//! What container engines answer, read: Docker's HTTP API, which podman serves as well, and the one question that podman
//! answers only in its own. Whoever runs containers chooses what stands in labels and names: every answer is held against
//! bounds, and what does not fit is an error with its place.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::Deserialize;

use super::{MAX_ADDRESSES, MAX_CONTAINERS, MAX_LABEL, MAX_LABELS, MAX_NAME, Running};
use crate::capture::Interface;
use crate::registration::Container;
use crate::registration::container::is_nobodys;

/// Which containers run. Without a version in it Docker answers as its newest, and podman as the one that it has.
pub const CONTAINERS: &str = "/containers/json";
/// Who the engine is.
pub const VERSION: &str = "/version";
/// What happens, with `{"type":["container","network"]}` as filter.
pub const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

/// Docker's option of a network that names its bridge.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// How much of a network's ID stands in the name of its bridge, where Docker chose it.
const ID_IN_NAME: usize = 12;

/// An answer that cannot be what an engine says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {fault}")]
pub struct Unreadable {
    /// What was asked.
    what: &'static str,
    /// What is wrong with the answer.
    fault: String,
}

/// Which engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Docker, or what speaks as it does.
    Docker,
    /// podman.
    Podman,
}

impl Kind {
    /// What is asked for networks. podman says the bridge's name in an answer of its own alone.
    pub fn networks(self) -> &'static str {
        match self {
            Self::Docker => "/networks",
            Self::Podman => "/v4.0.0/libpod/networks/json",
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, answer: &'a [u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(answer).map_err(|error| Unreadable { what, fault: error.to_string() })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VersionAnswer {
    components: Option<Vec<Component>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

/// Which engine says this of itself.
pub fn kind(version: &[u8]) -> Result<Kind, Unreadable> {
    let answer: VersionAnswer = parse("the engine's version", version)?;
    let is_podman = |component: &Component| component.name.to_ascii_lowercase().contains("podman");
    match answer.components.unwrap_or_default().iter().any(is_podman) {
        true => Ok(Kind::Podman),
        false => Ok(Kind::Docker),
    }
}

/// The bridges of networks, by the networks' names and IDs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bridges(HashMap<String, Interface>);

#[derive(Deserialize)]
struct DockerNetwork {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Driver")]
    driver: String,
    #[serde(rename = "Options")]
    options: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct PodmanNetwork {
    name: String,
    id: String,
    driver: String,
    network_interface: Option<String>,
}

/// The bridges. Networks of other drivers have none on this host.
pub fn bridges(kind: Kind, networks: &[u8]) -> Result<Bridges, Unreadable> {
    const WHAT: &str = "the engine's networks";
    let named: Vec<(String, String, Option<String>)> = match kind {
        Kind::Docker => {
            let all: Vec<DockerNetwork> = parse(WHAT, networks)?;
            let on_bridges = all.into_iter().filter(|network| network.driver == "bridge");
            on_bridges
                .map(|network| {
                    let bridge = docker_bridge(&network);
                    (network.name, network.id, bridge)
                })
                .collect()
        }
        Kind::Podman => {
            let all: Vec<PodmanNetwork> = parse(WHAT, networks)?;
            let on_bridges = all.into_iter().filter(|network| network.driver == "bridge");
            on_bridges.map(|network| (network.name, network.id, network.network_interface)).collect()
        }
    };
    let mut bridges = HashMap::new();
    for (name, id, bridge) in named {
        let Some(bridge) = bridge else { continue };
        let bridge: Interface = bridge.parse().map_err(|error| Unreadable {
            what: WHAT,
            fault: format!("`{}`: {error}", name.escape_debug()),
        })?;
        bridges.insert(id, bridge.clone());
        bridges.insert(name, bridge);
    }
    Ok(Bridges(bridges))
}

fn docker_bridge(network: &DockerNetwork) -> Option<String> {
    let stated = network.options.as_ref().and_then(|options| options.get(BRIDGE_NAME));
    match stated.filter(|name| !name.is_empty()) {
        Some(name) => Some(name.clone()),
        None if network.name == "bridge" => Some("docker0".to_owned()),
        None => network.id.get(..ID_IN_NAME).map(|id| format!("br-{id}")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedContainer {
    id: String,
    names: Option<Vec<String>>,
    #[serde(default)]
    created: i64,
    labels: Option<BTreeMap<String, String>>,
    network_settings: Option<NetworkSettings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Option<Attachment>>>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "NetworkID", default)]
    network: String,
    #[serde(rename = "IPAddress", default)]
    v4: String,
    #[serde(rename = "GlobalIPv6Address", default)]
    v6: String,
}

/// The containers that run, with where they are on these bridges.
pub fn containers(list: &[u8], bridges: &Bridges) -> Result<Vec<Running>, Unreadable> {
    const WHAT: &str = "the engine's containers";
    let fault = |fault: String| Unreadable { what: WHAT, fault };
    let all: Vec<ListedContainer> = parse(WHAT, list)?;
    if all.len() > MAX_CONTAINERS {
        return Err(fault(format!("{} of them, and the limit is {MAX_CONTAINERS}", all.len())));
    }
    all.into_iter().map(|listed| running(listed, bridges).map_err(fault)).collect()
}

fn running(listed: ListedContainer, bridges: &Bridges) -> Result<Running, String> {
    let ListedContainer { id, names, created, labels, network_settings } = listed;
    if id.is_empty() || id.len() > MAX_NAME {
        return Err(format!("one has an ID of {} bytes", id.len()));
    }
    let name = names.unwrap_or_default().into_iter().next().unwrap_or_else(|| id.clone());
    let name: String = name.trim_start_matches('/').chars().filter(|c| !c.is_control()).collect();
    if name.len() > MAX_NAME {
        return Err(format!("`{id}` has a name of {} bytes, and the limit is {MAX_NAME}", name.len()));
    }
    let mut places: BTreeMap<&Interface, Vec<IpAddr>> = BTreeMap::new();
    let attached = network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    for (network, attachment) in &attached {
        let Some(attachment) = attachment else { continue };
        let bridge = bridges.0.get(&attachment.network).or_else(|| bridges.0.get(network));
        let Some(bridge) = bridge else { continue };
        for text in [&attachment.v4, &attachment.v6].into_iter().filter(|text| !text.is_empty()) {
            let address: IpAddr =
                text.parse().map_err(|_| format!("{name}: `{}` is no address", text.escape_debug()))?;
            if !is_nobodys(&address) {
                places.entry(bridge).or_default().push(address.to_canonical());
            }
        }
    }
    if places.values().map(Vec::len).sum::<usize>() > MAX_ADDRESSES {
        return Err(format!("{name}: more than {MAX_ADDRESSES} addresses"));
    }
    let is_kept = |(key, value): &(String, String)| key.len() + value.len() <= MAX_LABEL;
    let place =
        |(interface, addresses): (&Interface, _)| Container { interface: interface.clone(), addresses };
    Ok(Running {
        id,
        name,
        created,
        labels: labels.unwrap_or_default().into_iter().filter(is_kept).take(MAX_LABELS).collect(),
        places: places.into_iter().map(place).collect(),
    })
}

/// What an event means to who follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The container of this ID has ended, or left a network: its address may be another's next.
    Ended(String),
    /// What runs, or where, may be another than before.
    Changed,
    /// Nothing.
    Nothing,
}

#[derive(Deserialize)]
struct EventLine {
    #[serde(rename = "Type")]
    about: Option<String>,
    #[serde(rename = "Action")]
    action: Option<String>,
    #[serde(rename = "Actor")]
    actor: Option<Actor>,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(rename = "Attributes")]
    attributes: Option<HashMap<String, String>>,
}

/// Reads one line of the events.
pub fn event(line: &[u8]) -> Result<Event, Unreadable> {
    let EventLine { about, action, actor } = parse("an event of the engine", line)?;
    let Actor { id, attributes } = actor.unwrap_or(Actor { id: None, attributes: None });
    let ended = |id: Option<String>| id.map_or(Event::Changed, Event::Ended);
    Ok(match (about.as_deref(), action.as_deref().unwrap_or_default()) {
        (Some("container"), "die" | "died" | "stop" | "destroy" | "remove") => ended(id),
        (Some("container"), "start" | "restart" | "unpause" | "rename" | "update" | "cleanup") => {
            Event::Changed
        }
        // Docker says the network's ID and names the container beside it; podman says the container's.
        (Some("network"), "disconnect") => {
            ended(attributes.and_then(|mut attributes| attributes.remove("container")).or(id))
        }
        (Some("network"), _) => Event::Changed,
        _ => Event::Nothing,
    })
}

#[cfg(test)]
mod tests;
