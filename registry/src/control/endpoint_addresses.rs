//! Where endpoints are, as it is told to agents that have not asked for them: one entry a service, which says of each
//! endpoint no more than where it is and how it is reached. It changes with registrations, and not with health.

use std::fmt::Write as _;
use std::net::IpAddr;

use baremesh_model::endpoint_addresses::{EndpointAddresses, EndpointGroup};
use baremesh_model::name::{Key, Label};
use baremesh_model::workload::Tunnel;
use serde_json::{Map, Value, json};

/// The kind in the keys of such entries. It is no resource's.
pub const KIND: &str = "EndpointAddresses";

/// Most addresses in one entry, which is a message; what is more stands in further entries. An address is 39 bytes at most.
pub const MAX_ADDRESSES: usize = 16_000;

/// The key of a service's entry: `EndpointAddresses/namespace/name`, that of a further one with its number behind it.
pub fn entry_key(service: &Key, part: usize) -> String {
    match part {
        0 => format!("{KIND}/{}/{}", service.namespace, service.name),
        part => format!("{KIND}/{}/{}/{part}", service.namespace, service.name),
    }
}

/// The service that an entry is of; nothing where it is another kind's.
pub fn service_of(key: &str) -> Option<Key> {
    let mut parts = key.split('/');
    let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    (kind == KIND).then_some(())?;
    Some(Key::new(Label::new(namespace).ok()?, Label::new(name).ok()?))
}

/// The entries of a service.
pub fn written(addresses: &EndpointAddresses) -> Vec<Value> {
    let (mut parts, mut groups, mut count) = (Vec::new(), Vec::new(), 0);
    for group in &addresses.groups {
        let mut left = &group.places[..];
        while !left.is_empty() {
            let room = MAX_ADDRESSES - count;
            let mut taken = 0;
            let fit = left.iter().take_while(|place| {
                taken += place.len();
                taken <= room
            });
            // One that has more addresses than there may be is alone in its entry.
            let fit = fit.count().max(usize::from(count == 0));
            count += left[..fit].iter().map(|place| place.len()).sum::<usize>();
            if fit > 0 {
                groups.push(write_group(group, &left[..fit]));
            }
            left = &left[fit..];
            if !left.is_empty() {
                parts.push(json!({ "groups": std::mem::take(&mut groups) }));
                count = 0;
            }
        }
    }
    if !groups.is_empty() {
        parts.push(json!({ "groups": groups }));
    }
    parts
}

fn write_group(group: &EndpointGroup, places: &[Box<[IpAddr]>]) -> Value {
    let mut written = Map::new();
    let port = |(port, number): &(u16, u16)| match port == number {
        true => port.to_string(),
        false => format!("{port}:{number}"),
    };
    written.insert("ports".to_owned(), joined(group.ports.iter().map(port)).into());
    if group.tunnel == Tunnel::Plain {
        written.insert("tunnel".to_owned(), "plain".into());
    }
    if let Some(network) = &group.network {
        written.insert("network".to_owned(), network.as_str().into());
    }
    let place = |place: &Box<[IpAddr]>| {
        let mut text = String::new();
        for (index, address) in place.iter().enumerate() {
            // Writing into a text does not fail.
            let _ = write!(text, "{}{address}", if index > 0 { "," } else { "" });
        }
        text
    };
    written.insert("at".to_owned(), joined(places.iter().map(place)).into());
    written.into()
}

fn joined(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(" ")
}

/// Reads an entry; an error says what cannot be read. One that is not understood is not to be left out: what it is about would
/// be called in plaintext.
pub fn read(value: &Value) -> Result<EndpointAddresses, String> {
    let groups = value["groups"].as_array().ok_or("it has no `groups`")?;
    Ok(EndpointAddresses { groups: groups.iter().map(read_group).collect::<Result<_, _>>()? })
}

fn read_group(group: &Value) -> Result<EndpointGroup, String> {
    let text = |field: &str| group[field].as_str().ok_or(format!("a group has no `{field}`"));
    let port = |written: &str| {
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("`{written}` is no port"));
        match written.split_once(':') {
            Some((port, at)) => Ok::<_, String>((number(port)?, number(at)?)),
            None => number(written).map(|port| (port, port)),
        }
    };
    let place = |written: &str| {
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("`{text}` is no address"));
        written.split(',').map(address).collect::<Result<Box<[_]>, _>>()
    };
    Ok(EndpointGroup {
        tunnel: match group["tunnel"].as_str() {
            None => Tunnel::Hbone,
            Some("plain") => Tunnel::Plain,
            Some(other) => return Err(format!("`{other}` is no tunnel")),
        },
        network: match group["network"].as_str() {
            None => None,
            Some(name) => Some(Label::new(name).map_err(|error| error.to_string())?),
        },
        ports: text("ports")?.split_whitespace().map(port).collect::<Result<_, _>>()?,
        places: text("at")?.split_whitespace().map(place).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(count: usize) -> Vec<Box<[IpAddr]>> {
        let place = |n: usize| -> Box<[IpAddr]> {
            let n = u32::try_from(n).expect("few");
            Box::new([IpAddr::from(n.to_be_bytes()), IpAddr::from(u128::from(n).to_be_bytes())])
        };
        (0..count).map(place).collect()
    }

    fn group(tunnel: Tunnel, network: Option<&str>, places: Vec<Box<[IpAddr]>>) -> EndpointGroup {
        let network = network.map(|name| Label::new(name).expect("a label"));
        EndpointGroup { tunnel, network, ports: vec![(80, 8080), (81, 81)], places }
    }

    #[test]
    fn is_read_as_it_is_written() {
        let groups = vec![group(Tunnel::Hbone, None, places(2)), group(Tunnel::Plain, Some("eu"), places(1))];
        let addresses = EndpointAddresses { groups };
        let [only] = &written(&addresses)[..] else { panic!("one entry") };
        assert_eq!(
            only.to_string(),
            r#"{"groups":[{"at":"0.0.0.0,:: 0.0.0.1,::1","ports":"80:8080 81"},{"at":"0.0.0.0,::","network":"eu","ports":"80:8080 81","tunnel":"plain"}]}"#
        );
        assert_eq!(read(only), Ok(addresses));
        assert!(written(&EndpointAddresses::default()).is_empty());
    }

    #[test]
    fn what_is_too_much_for_one_message_stands_in_several() {
        let count = MAX_ADDRESSES / 2 + 3;
        let addresses = EndpointAddresses {
            groups: vec![
                group(Tunnel::Hbone, None, places(count)),
                group(Tunnel::Plain, None, places(count)),
            ],
        };
        let parts = written(&addresses);
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|part| part.to_string().len() < super::super::server::MAX_RESOURCE));
        let read: Vec<_> = parts.iter().flat_map(|part| read(part).expect("an entry").groups).collect();
        for tunnel in [Tunnel::Hbone, Tunnel::Plain] {
            let of = read.iter().filter(|group| group.tunnel == tunnel);
            assert_eq!(of.flat_map(|group| group.places.clone()).collect::<Vec<_>>(), places(count));
        }
    }

    #[test]
    fn keys_name_the_service() {
        let key = Key::read("a.x").expect("a key");
        for (part, expected) in [(0, "EndpointAddresses/x/a"), (2, "EndpointAddresses/x/a/2")] {
            assert_eq!(entry_key(&key, part), expected);
            assert_eq!(service_of(expected), Some(key.clone()));
        }
        for other in ["Service/x/a", "EndpointAddresses/x", "EndpointAddresses/X/a", ""] {
            assert_eq!(service_of(other), None, "{other}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for bad in [
            json!({}),
            json!({ "groups": [{}] }),
            json!({ "groups": [{ "ports": "80", "at": "10.0.0.x" }] }),
            json!({ "groups": [{ "ports": "80:x", "at": "" }] }),
            json!({ "groups": [{ "ports": "80", "at": "10.0.0.1", "tunnel": "carrier pigeon" }] }),
            json!({ "groups": [{ "ports": "80", "at": "10.0.0.1", "network": "E U" }] }),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }
}
