//! What the follower of an engine says to the agent: lines of JSON over a connection that stays. A line is the whole list,
//! or empty, which says that the list still holds. The agent answers each list with a line.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Engine, Following, Known, MAX_ADDRESSES, MAX_CONTAINERS, MAX_ENGINES, MAX_LABEL, MAX_LABELS, MAX_NAME,
    Running,
};
use crate::capture::Interface;
use crate::registration::Container;
use crate::registration::container::is_nobodys;

/// What a connection is upgraded to.
pub const PROTOCOL: &str = "baremesh-containers/1";
/// Where it is asked for.
pub const ROUTE: &str = "/containers";
/// The longest line, in bytes: the largest list of containers with some kilobytes of labels each.
pub const MAX_LINE: usize = 16 * 1024 * 1024;
/// The longest that the follower is silent.
pub const SAYS: Duration = Duration::from_secs(2);
/// How long the agent waits for a word before it takes the follower to be gone.
pub const SILENCE: Duration = Duration::from_secs(8);

/// The list of an engine's containers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// The engine's socket.
    engine: String,
    /// What runs.
    containers: Vec<ToldContainer>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldContainer {
    id: String,
    name: String,
    created: i64,
    labels: BTreeMap<String, String>,
    places: Vec<ToldPlace>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldPlace {
    interface: String,
    addresses: Vec<IpAddr>,
}

/// The agent's answer to a list.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Why it was not taken, where it was not.
    pub refused: Option<String>,
}

impl Told {
    /// What is said of this engine.
    pub fn new<'a>(engine: &str, running: impl Iterator<Item = &'a Running>) -> Self {
        let place = |place: &Container| ToldPlace {
            interface: place.interface.to_string(),
            addresses: place.addresses.clone(),
        };
        let container = |running: &Running| ToldContainer {
            id: running.id.clone(),
            name: running.name.clone(),
            created: running.created,
            labels: running.labels.clone(),
            places: running.places.iter().map(place).collect(),
        };
        Self { engine: engine.to_owned(), containers: running.map(container).collect() }
    }

    /// What was said, held against the bounds. The error says what is wrong with it.
    pub fn read(line: &[u8]) -> Result<(String, Vec<Running>), String> {
        let told: Self =
            serde_json::from_slice(line).map_err(|error| format!("no list of containers: {error}"))?;
        told.checked()
    }

    /// The engine and what runs, held against the bounds.
    fn checked(self) -> Result<(String, Vec<Running>), String> {
        if self.engine.is_empty() || self.engine.len() > MAX_NAME {
            return Err(format!("an engine has a name of 1 to {MAX_NAME} bytes"));
        }
        if self.containers.len() > MAX_CONTAINERS {
            return Err(format!("{} containers, and the limit is {MAX_CONTAINERS}", self.containers.len()));
        }
        let containers = self.containers.into_iter().map(running).collect::<Result<_, _>>()?;
        Ok((self.engine, containers))
    }
}

/// What an agent knows of containers, as it hands it to the one that takes its place.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handed {
    engines: Vec<HandedEngine>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HandedEngine {
    told: Told,
    following: Following,
}

impl Handed {
    /// What is handed on of this.
    pub fn new(known: &Known) -> Self {
        let engine = |(name, engine): (&String, &Engine)| HandedEngine {
            told: Told::new(name, engine.containers.iter()),
            following: engine.following,
        };
        Self { engines: known.engines.iter().map(engine).collect() }
    }

    /// What was handed on, held against the bounds. The error says what is wrong with it.
    pub fn read(handed: &serde_json::Value) -> Result<Known, String> {
        let handed = Self::deserialize(handed).map_err(|error| format!("no lists of containers: {error}"))?;
        if handed.engines.len() > MAX_ENGINES {
            return Err(format!("{} engines, and the limit is {MAX_ENGINES}", handed.engines.len()));
        }
        let engine = |handed: HandedEngine| {
            let (name, containers) = handed.told.checked()?;
            Ok((name, Engine { containers, following: handed.following }))
        };
        Ok(Known { engines: handed.engines.into_iter().map(engine).collect::<Result<_, String>>()? })
    }
}

fn running(told: ToldContainer) -> Result<Running, String> {
    let ToldContainer { id, name, created, labels, places } = told;
    if id.is_empty() || id.len() > MAX_NAME || name.len() > MAX_NAME {
        return Err(format!("a container has an ID of 1 to {MAX_NAME} bytes, and a name of as many at most"));
    }
    if labels.len() > MAX_LABELS || labels.iter().any(|(key, value)| key.len() + value.len() > MAX_LABEL) {
        return Err(format!("{name}: more than {MAX_LABELS} labels, or one of more than {MAX_LABEL} bytes"));
    }
    let place = |place: ToldPlace| {
        let interface: Interface = place.interface.parse().map_err(|error| format!("{name}: {error}"))?;
        let addresses: Vec<_> = place.addresses.iter().map(IpAddr::to_canonical).collect();
        match addresses.iter().find(|address| is_nobodys(address)) {
            Some(address) => Err(format!("{name}: no container has the address {address}")),
            None => Ok(Container { interface, addresses }),
        }
    };
    let places: Vec<_> = places.into_iter().map(place).collect::<Result<_, _>>()?;
    if places.iter().map(|place| place.addresses.len()).sum::<usize>() > MAX_ADDRESSES {
        return Err(format!("{name}: more than {MAX_ADDRESSES} addresses"));
    }
    Ok(Running { id, name, created, labels, places })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_the_same_and_within_bounds() {
        let running = Running {
            id: "4d50".into(),
            name: "cart".into(),
            created: 7,
            labels: [("app".to_owned(), "cart".to_owned())].into(),
            places: vec![Container {
                interface: "docker0".parse().expect("an interface"),
                addresses: vec!["172.17.0.2".parse().expect("an address")],
            }],
        };
        let said = |running: &Running| {
            serde_json::to_string(&Told::new("/run/docker.sock", [running].into_iter())).expect("JSON")
        };
        let line = said(&running);
        assert_eq!(Told::read(line.as_bytes()), Ok(("/run/docker.sock".into(), vec![running.clone()])));
        for (from, to, part) in [
            ("docker0", "docker 0", "no interface"),
            ("172.17.0.2", "127.0.0.1", "no container has the address"),
            ("172.17.0.2", "172.17.0", "no list of containers"),
            ("\"created\"", "\"made\"", "unknown field"),
            ("/run/docker.sock", "", "an engine has a name"),
            ("4d50", "", "an ID"),
        ] {
            let error = Told::read(line.replace(from, to).as_bytes()).expect_err(to);
            assert!(error.contains(part), "{to}: {error}");
        }
        let many = Running { places: vec![running.places[0].clone(); MAX_ADDRESSES + 1], ..running.clone() };
        assert!(Told::read(said(&many).as_bytes()).is_err());
        let labels = (0..=MAX_LABELS).map(|number| (number.to_string(), String::new())).collect();
        assert!(Told::read(said(&Running { labels, ..running }).as_bytes()).is_err());
    }
}
