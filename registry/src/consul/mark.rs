//! How this mesh's own registrations are told from others in the catalog: a tag, by which the names of meshed services are
//! known without looking at their instances, and meta values with the whole registration as agents tell it to a control
//! server.

use std::collections::BTreeMap;

use baremesh_model::health::Health;
use baremesh_model::identity::RESERVED_NAMESPACES;
use baremesh_model::name::{Key, Label, default_namespace};

use super::local::{self, Share, Status, Ttl};
use crate::control::registration::Registration;

/// The tag.
pub const TAG: &str = "baremesh";
/// The host, in the meta values.
const HOST: &str = "baremesh-host";
/// What the pieces of the registration are called, with their number from 0 behind it.
const PIECE: &str = "baremesh-registration-";
/// The longest meta value, in bytes.
const MAX_VALUE: usize = 512;
/// Most meta values of a registration, less the host's and some room.
const MAX_PIECES: usize = 60;
/// What a check says in its first words when it is this mesh's agent that finds the service ill. Anything else that makes
/// it critical is silence: a Consul agent that began anew, or an agent that is gone.
pub const ILL: &str = "baremesh finds it unhealthy";
/// How long what was told of a service's health holds.
pub const TTL_SECONDS: u64 = 30;
/// After so long of silence Consul forgets the registration; the agent, should it come back, registers it anew.
const FORGOTTEN_AFTER: &str = "24h";

/// The name of a service in Consul: its own, with the namespace behind it unless that is the default one.
pub fn consul_name(service: &Key) -> String {
    match service.namespace == default_namespace() {
        true => service.name.to_string(),
        false => service.to_string(),
    }
}

/// The service that a name in Consul is, if it can be one of a mesh: `name`, or `name.namespace`.
pub fn service_of(name: &str) -> Option<Key> {
    let (name, namespace) = match name.split_once('.') {
        Some((name, namespace)) => (name, Label::new(namespace).ok()?),
        None => (name, default_namespace()),
    };
    Some(Key::new(namespace, Label::new(name).ok()?))
}

/// The service that a name in the catalog is, or why it is none. A service has one name there: were `orders.default` another
/// one of `orders`, instances under the one would stand for those under the other.
pub fn service_named(name: &str) -> Result<Key, String> {
    let key = service_of(name).ok_or(
        "it is no name of the mesh: those are lower-case letters, digits and hyphens, as `name` or `name.namespace`",
    )?;
    match consul_name(&key) {
        own if own != name => {
            Err(format!("the service {key} is `{own}` in Consul, and has no second name there"))
        }
        _ if RESERVED_NAMESPACES.contains(&key.namespace.as_str()) => {
            Err(format!("the namespace `{}` is the mesh's own", key.namespace))
        }
        _ => Ok(key),
    }
}

/// The ID of a registration, and of its check: unique in the datacenter, so that hosts may share a Consul agent.
pub fn id(host: &Label, service: &Key) -> String {
    format!("baremesh:{host}:{}:{}", service.namespace, service.name)
}

/// Whether an ID is one of this host's registrations.
pub fn is_of(id: &str, host: &Label) -> bool {
    id.strip_prefix("baremesh:")
        .and_then(|rest| rest.split_once(':'))
        .is_some_and(|(of, _)| of == host.as_str())
}

/// What is registered at the local Consul agent, or why it cannot be.
pub fn registration(host: &Label, of: &Registration) -> Result<local::Registration, String> {
    // Health goes by the check, so that a change of it is no change of the registration.
    let lasting = Registration { health: Health::Healthy, ..of.clone() };
    let mut meta = BTreeMap::from([(HOST.to_owned(), host.to_string())]);
    let text = lasting.written().to_string();
    let mut rest = text.as_str();
    let mut number = 0;
    while !rest.is_empty() {
        let end = (0..=rest.len().min(MAX_VALUE)).rev().find(|end| rest.is_char_boundary(*end)).unwrap_or(0);
        let (piece, after) = rest.split_at(end);
        meta.insert(format!("{PIECE}{number}"), piece.to_owned());
        (rest, number) = (after, number + 1);
    }
    if number > MAX_PIECES {
        return Err(format!(
            "{}: its ports and labels take {} bytes, and Consul takes {}: give it fewer labels",
            of.service,
            text.len(),
            MAX_PIECES * MAX_VALUE
        ));
    }
    let id = id(host, &of.service);
    Ok(local::Registration {
        id: id.clone(),
        name: consul_name(&of.service),
        tags: vec![TAG.to_owned()],
        address: of.addresses.first().map(ToString::to_string).unwrap_or_default(),
        port: of.ports.first().map_or(0, |port| port.target_port.get()),
        meta,
        // Consul's weights end at 65535.
        weights: Share { passing: of.weight.clamp(1, 65535), warning: of.weight.clamp(1, 65535) },
        check: Ttl {
            id,
            name: "as its baremesh agent finds it".to_owned(),
            ttl: format!("{TTL_SECONDS}s"),
            status: status(of.health),
            deregister_critical_service_after: FORGOTTEN_AFTER.to_owned(),
        },
    })
}

/// What a check is told of a service's health.
pub fn status(health: Health) -> Status {
    if health.is_healthy() { Status::Passing } else { Status::Critical }
}

/// The words that go with it.
pub fn words(status: Status) -> &'static str {
    match status {
        Status::Passing => "baremesh finds it healthy",
        Status::Warning | Status::Critical => ILL,
    }
}

/// The host and the registration that meta values hold; nothing where they are not of this mesh's agents.
pub fn read(meta: &BTreeMap<String, String>) -> Option<Result<(Label, Registration), String>> {
    let host = meta.get(HOST)?;
    let read = || {
        let host = Label::new(host).map_err(|error| error.to_string())?;
        let pieces = (0..MAX_PIECES).map_while(|number| meta.get(&format!("{PIECE}{number}")));
        let text: String = pieces.map(String::as_str).collect();
        let value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let registration = Registration::read(&value).map_err(|error| error.to_string())?;
        Ok((host, registration))
    };
    Some(read())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(labels: usize) -> Registration {
        let labels: BTreeMap<_, _> = (0..labels).map(|n| (format!("l{n}"), "ä".repeat(60))).collect();
        Registration::read(&json!({
            "service": "orders.shop",
            "ports": [{ "port": 80, "targetPort": 8080, "protocol": "http", "name": "http" }],
            "addresses": ["10.0.0.7", "fd00::7"],
            "labels": labels,
            "locality": "eu/a",
            "weight": 7,
            "serviceAccount": "orders",
        }))
        .expect("a registration")
    }

    #[test]
    fn a_registration_comes_back_as_it_was_however_long_it_is() {
        let host = Label::new("h1").expect("a label");
        for labels in [0, 60] {
            let sample = sample(labels);
            let registered = registration(&host, &sample).expect("registered");
            assert!(registered.meta.values().all(|value| value.len() <= MAX_VALUE));
            assert!(registered.meta.len() <= 64);
            assert_eq!(read(&registered.meta), Some(Ok((host.clone(), sample))));
            assert_eq!((registered.name.as_str(), registered.port), ("orders.shop", 8080));
            assert!(
                is_of(&registered.id, &host) && !is_of(&registered.id, &Label::new("h").expect("a label"))
            );
        }
        let ill = Registration { health: Health::Unhealthy, ..sample(0) };
        let registered = registration(&host, &ill).expect("registered");
        assert_eq!(registered.check.status, Status::Critical);
        assert_eq!(registered.meta, registration(&host, &sample(0)).expect("registered").meta);
    }

    #[test]
    fn what_others_registered_is_not_taken_for_ours() {
        assert_eq!(read(&BTreeMap::new()), None);
        let meta = BTreeMap::from([(HOST.to_owned(), "h1".to_owned())]);
        assert!(read(&meta).is_some_and(|read| read.is_err()));
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(service_of(name).map(|key| key.to_string()).as_deref(), expected, "{name}");
        };
        check("orders", Some("orders.default"));
        check("orders.shop", Some("orders.shop"));
        for bad in ["", "Orders", "a_b", "a.b.c", ".a", "a."] {
            check(bad, None);
        }
        let shop = service_of("orders.shop").expect("a service");
        assert_eq!(service_of(&consul_name(&shop)), Some(shop));
    }

    #[test]
    fn a_service_has_one_name_in_the_catalog() {
        let check = |name: &str, expected: Result<&str, &str>| match (service_named(name), expected) {
            (Ok(key), Ok(expected)) => assert_eq!(key.to_string(), expected),
            (Err(why), Err(part)) => assert!(why.contains(part), "{name}: {why}"),
            (found, _) => panic!("{name}: {found:?}"),
        };
        check("orders", Ok("orders.default"));
        check("orders.shop", Ok("orders.shop"));
        check("orders.default", Err("is `orders` in Consul"));
        check("Orders", Err("lower-case"));
        check("x.control", Err("the mesh's own"));
    }
}
