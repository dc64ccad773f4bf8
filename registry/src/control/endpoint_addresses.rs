//! Where endpoints are, as it is told to agents that have not asked for them: of each endpoint no more than where it is and how
//! it is reached. It changes with registrations, and not with health. A service with many endpoints has several entries, so that
//! what is sent for a change goes by the change and not by the service.

use std::fmt::Write as _;
use std::net::IpAddr;

use baremesh_model::endpoint_addresses::{EndpointAddresses, EndpointGroup};
use baremesh_model::name::{Key, Label};
use baremesh_model::workload::Tunnel;
use serde_json::{Map, Value, json};

use super::registration;

/// The kind in the keys of such entries. It is no resource's.
pub const KIND: &str = "EndpointAddresses";

/// Addresses in one entry, about: a service has one for so many of them.
pub const ADDRESSES_OF_PART: usize = 64;
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

/// An endpoint: the group that it is of, by number, and its addresses.
type Place<'a> = (usize, &'a [IpAddr]);

/// The entries of a service.
pub fn written(addresses: &EndpointAddresses) -> Vec<Value> {
    let groups = addresses.groups.iter().enumerate();
    let all = || {
        let places =
            groups.clone().flat_map(|(group, of)| of.places.iter().map(move |place| (group, &**place)));
        places.filter(|(_, place)| !place.is_empty())
    };
    let count: usize = all().map(|(_, place)| place.len()).sum();
    let mut parts: Vec<Vec<Place<'_>>> = vec![Vec::new(); count.div_ceil(ADDRESSES_OF_PART)];
    for place in all() {
        let part = part_of(place.1, parts.len());
        parts[part].push(place);
    }
    let mut surplus = Vec::new();
    for part in &mut parts {
        let mut room = MAX_ADDRESSES;
        let mut fits = |(_, place): &Place<'_>| {
            let left = room.checked_sub(place.len());
            room = left.unwrap_or_default();
            left.is_some()
        };
        let fit = part.iter().take_while(|place| fits(place)).count();
        surplus.extend(part.split_off(fit));
    }
    let further = surplus.chunks(MAX_ADDRESSES / registration::MAX_ADDRESSES);
    parts.iter().map(Vec::as_slice).chain(further).map(|part| write_part(&addresses.groups, part)).collect()
}

/// The entry that an endpoint is in. One entry more, or one less, moves endpoints between two entries and leaves all others as
/// they are (linear hashing).
fn part_of(place: &[IpAddr], parts: usize) -> usize {
    let bits = place.first().map_or(0, |address| match address {
        IpAddr::V4(address) => u64::from(u32::from(*address)),
        IpAddr::V6(address) => {
            let bits = u128::from(*address);
            // What differs between hosts stands at either end.
            (bits >> 64) as u64 ^ bits as u64
        }
    });
    // Neighbours are spread (Fibonacci hashing), and the upper half of the product is the better one.
    let hash = (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
    let round = parts.next_power_of_two();
    match hash & (round - 1) {
        part if part < parts => part,
        part => part & (round / 2 - 1),
    }
}

fn write_part(groups: &[EndpointGroup], places: &[Place<'_>]) -> Value {
    let alike = places.chunk_by(|one, next| one.0 == next.0);
    let written: Vec<_> = alike.map(|alike| write_group(&groups[alike[0].0], alike)).collect();
    json!({ "groups": written })
}

fn write_group(group: &EndpointGroup, places: &[Place<'_>]) -> Value {
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
    let place = |(_, place): &Place<'_>| {
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

    fn sorted(mut places: Vec<Box<[IpAddr]>>) -> Vec<Box<[IpAddr]>> {
        places.sort_unstable();
        places
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
        for count in [1, ADDRESSES_OF_PART / 4, 1000, MAX_ADDRESSES] {
            let groups =
                vec![group(Tunnel::Hbone, None, places(count)), group(Tunnel::Plain, None, places(count))];
            let parts = written(&EndpointAddresses { groups });
            assert_eq!(parts.len(), (count * 4).div_ceil(ADDRESSES_OF_PART), "{count}");
            let largest = parts.iter().map(|part| part.to_string().len()).max();
            assert!(largest < Some(ADDRESSES_OF_PART * 40 * 2 + 200), "{count}: {largest:?}");
            let read: Vec<_> = parts.iter().flat_map(|part| read(part).expect("an entry").groups).collect();
            for tunnel in [Tunnel::Hbone, Tunnel::Plain] {
                let of = read.iter().filter(|group| group.tunnel == tunnel);
                let mut found: Vec<_> = of.flat_map(|group| group.places.clone()).collect();
                found.sort_unstable();
                assert_eq!(found, sorted(places(count)), "{count}");
            }
        }
        // Somebody who chooses addresses that all come into one entry.
        let same: Vec<Box<[IpAddr]>> =
            vec![vec![IpAddr::from([10, 0, 0, 1]); registration::MAX_ADDRESSES].into(); 5000];
        let parts = written(&EndpointAddresses { groups: vec![group(Tunnel::Hbone, None, same)] });
        assert!(parts.iter().all(|part| part.to_string().len() < super::super::server::MAX_RESOURCE));
        let read = parts.iter().flat_map(|part| read(part).expect("an entry").groups);
        assert_eq!(read.map(|group| group.places.len()).sum::<usize>(), 5000);
    }

    #[test]
    fn what_changes_goes_by_the_change_and_not_by_the_service() {
        let of = |count: usize| {
            written(&EndpointAddresses { groups: vec![group(Tunnel::Hbone, None, places(count))] })
        };
        let mut before = of(1000);
        for count in 1001..1200 {
            let after = of(count);
            let changed = after.iter().zip(&before).filter(|(one, other)| one != other).count();
            let more = after.len() - before.len();
            assert!(changed <= 2 && more <= 1, "{count}: {changed} changed, {more} are new");
            before = after;
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
