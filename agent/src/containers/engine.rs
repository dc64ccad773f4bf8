//! What container engines answer, read: Docker's HTTP API, which podman serves as well, and the one question that podman
//! answers only in its own. Whoever runs containers chooses what stands in labels and names: every answer is held against
//! bounds. A container that does not fit is left out, and what no engine says is an error with its place.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::Deserialize;

use super::{MAX_ADDRESSES, MAX_CONTAINERS, MAX_LABEL, MAX_LABELS, MAX_NAME, Running};
use crate::capture::Interface;
use crate::registration::Container;
use crate::registration::container::is_nobodys;

/// Which containers run. Without a version in it Docker answers as its newest, and podman as the one that it has.
pub const CONTAINERS: &str = "/containers/json";
/// Whether the engine answers.
pub const PING: &str = "/_ping";
/// Who the engine is.
pub const VERSION: &str = "/version";
/// What happens, with `{"type":["container","network"]}` as filter.
pub const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

/// Docker's option of a network that names its bridge.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// How much of a network's ID stands in the name of its bridge, where Docker chose it.
const ID_IN_NAME: usize = 12;

/// The most labels of an image, all together, in bytes.
const MAX_IMAGE_LABELS: usize = 256 * 1024;
/// How much of what somebody else chose stands in an error, in characters.
const SHOWN: usize = 64;

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
pub struct Bridges {
    by_network: HashMap<String, Interface>,
    /// Networks that are left out, and why.
    pub left_out: Vec<String>,
}

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
    let mut bridges = Bridges::default();
    for (name, id, bridge) in named {
        let Some(bridge) = bridge else { continue };
        match bridge.parse::<Interface>() {
            Ok(bridge) => {
                bridges.by_network.insert(id, bridge.clone());
                bridges.by_network.insert(name, bridge);
            }
            Err(error) => bridges.left_out.push(format!("the network `{}`: {error}", shown(&name))),
        }
    }
    Ok(bridges)
}

/// What somebody else chose, for an error.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
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
    #[serde(rename = "ImageID", default)]
    image: String,
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

/// What runs, as an engine lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// The containers.
    pub containers: Vec<Found>,
    /// Those that are left out, and why.
    pub left_out: Vec<String>,
}

/// A container that runs, with its image's labels among its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    running: Running,
    image: String,
}

/// The containers that run, with where they are on these bridges. One that is beyond the bounds is left out.
pub fn containers(list: &[u8], bridges: &Bridges) -> Result<Listed, Unreadable> {
    const WHAT: &str = "the engine's containers";
    let all: Vec<ListedContainer> = parse(WHAT, list)?;
    if all.len() > MAX_CONTAINERS {
        let fault = format!("{} of them, and the limit is {MAX_CONTAINERS}", all.len());
        return Err(Unreadable { what: WHAT, fault });
    }
    let mut listed = Listed::default();
    for one in all {
        match found(one, bridges) {
            Ok(found) => listed.containers.push(found),
            Err(reason) => listed.left_out.push(reason),
        }
    }
    Ok(listed)
}

fn found(listed: ListedContainer, bridges: &Bridges) -> Result<Found, String> {
    let ListedContainer { id, image, names, created, labels, network_settings } = listed;
    if id.is_empty() || id.len() > MAX_NAME {
        return Err(format!("a container has an ID of {} bytes", id.len()));
    }
    let name = names.unwrap_or_default().into_iter().next().unwrap_or_else(|| id.clone());
    let name: String = name.trim_start_matches('/').chars().filter(|c| !c.is_control()).collect();
    if name.len() > MAX_NAME {
        let length = name.len();
        return Err(format!(
            "the container `{}` has a name of {length} bytes, and the limit is {MAX_NAME}",
            shown(&id)
        ));
    }
    let mut places: BTreeMap<&Interface, Vec<IpAddr>> = BTreeMap::new();
    let attached = network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    for (network, attachment) in &attached {
        let Some(attachment) = attachment else { continue };
        let of_network = |name: &String| bridges.by_network.get(name);
        let Some(bridge) = of_network(&attachment.network).or_else(|| of_network(network)) else { continue };
        for text in [&attachment.v4, &attachment.v6].into_iter().filter(|text| !text.is_empty()) {
            let address: IpAddr =
                text.parse().map_err(|_| format!("the container {name}: `{}` is no address", shown(text)))?;
            if !is_nobodys(&address) {
                places.entry(bridge).or_default().push(address.to_canonical());
            }
        }
    }
    if places.values().map(Vec::len).sum::<usize>() > MAX_ADDRESSES {
        return Err(format!("the container {name} has more than {MAX_ADDRESSES} addresses"));
    }
    let place =
        |(interface, addresses): (&Interface, _)| Container { interface: interface.clone(), addresses };
    let places = places.into_iter().map(place).collect();
    Ok(Found { running: Running { id, name, created, labels: labels.unwrap_or_default(), places }, image })
}

impl Found {
    /// The image whose labels it may have. None where it has no image, as podman's with `--rootfs`, and where its labels
    /// matter to nobody.
    pub fn image(&self) -> Option<&str> {
        let has_image = !matches!(self.image.as_str(), "" | "sha256:");
        let matters = !self.running.labels.is_empty() && !self.running.places.is_empty();
        (has_image && matters).then_some(self.image.as_str())
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.running.name
    }

    /// The container with the labels that it was given when it was made: those that its image has with the same value are
    /// whoever's who made the image. None of them where it is not known what the image has.
    pub fn given(self, image: Option<&BTreeMap<String, String>>) -> Running {
        let Running { labels, .. } = self.running;
        let labels = match image {
            None => BTreeMap::new(),
            Some(of_image) => labels
                .into_iter()
                .filter(|(key, value)| is_kept(key, value) && of_image.get(key) != Some(value))
                .take(MAX_LABELS)
                .collect(),
        };
        Running { labels, ..self.running }
    }
}

fn is_kept(key: &str, value: &str) -> bool {
    key.len() + value.len() <= MAX_LABEL
}

/// What is asked for the labels of an image. The error says why an engine can have no image of this ID.
pub fn image_question(id: &str) -> Result<String, String> {
    let is_digest =
        id.len() <= MAX_NAME && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':');
    match is_digest {
        true => Ok(format!("/images/{id}/json")),
        false => Err(format!("`{}` is no image's ID", shown(id))),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImageAnswer {
    config: Option<ImageConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImageConfig {
    labels: Option<BTreeMap<String, String>>,
}

/// The labels of an image, but for those that are too long to be named.
pub fn image_labels(image: &[u8]) -> Result<BTreeMap<String, String>, Unreadable> {
    const WHAT: &str = "an image";
    let answer: ImageAnswer = parse(WHAT, image)?;
    // Who leaves it out is not taken for an image without labels.
    let missing = || Unreadable { what: WHAT, fault: "it has no `Config`".to_owned() };
    let mut labels = answer.config.ok_or_else(missing)?.labels.unwrap_or_default();
    labels.retain(|key, value| is_kept(key, value));
    let size: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_IMAGE_LABELS {
        let fault = format!("{size} bytes of labels, and the limit is {MAX_IMAGE_LABELS}");
        return Err(Unreadable { what: WHAT, fault });
    }
    Ok(labels)
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
