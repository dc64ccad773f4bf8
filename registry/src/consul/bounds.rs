//! How much of a catalog is held: whoever may register something in Consul fills no host's memory. What is beyond a bound is left
//! out, the youngest first, so that what was there before stays.

use std::collections::BTreeMap;

use super::catalog::Instance;
use super::damping::At;

/// Most instances of a service.
pub const MAX_INSTANCES: usize = 2_000;
/// Most bytes of the meta values and tags of an instance. What an agent of this mesh registers is less.
pub const MAX_INSTANCE_BYTES: usize = 32 << 10;
/// Most instances of all services.
pub const MAX_IN_ALL: usize = 50_000;
/// Most bytes of all instances.
pub const MAX_BYTES_IN_ALL: usize = 64 << 20;

/// What is held of the instances of one service, and how many are not.
pub fn of_service(mut instances: Vec<Instance>) -> (Vec<Instance>, usize) {
    let came = instances.len();
    instances.retain(|instance| said(instance) <= MAX_INSTANCE_BYTES);
    instances.sort_by_key(|instance| instance.service.create_index);
    instances.truncate(MAX_INSTANCES);
    let beyond = came - instances.len();
    (instances, beyond)
}

/// Takes the youngest out that are more than is held of all services, and says of which services how many those were.
pub fn in_all(held: &mut BTreeMap<At, Instance>) -> BTreeMap<String, usize> {
    within(held, MAX_IN_ALL, MAX_BYTES_IN_ALL)
}

fn within(held: &mut BTreeMap<At, Instance>, most: usize, most_bytes: usize) -> BTreeMap<String, usize> {
    let mut bytes: usize = held.values().map(size).sum();
    let mut gone = BTreeMap::new();
    if held.len() <= most && bytes <= most_bytes {
        return gone;
    }
    let mut by_age: Vec<(u64, At)> =
        held.iter().map(|(at, instance)| (instance.service.create_index, at.clone())).collect();
    by_age.sort();
    while (held.len() > most || bytes > most_bytes)
        && let Some((_, youngest)) = by_age.pop()
    {
        let taken = held.remove(&youngest);
        bytes -= taken.as_ref().map_or(0, size);
        *gone.entry(youngest.0).or_default() += 1;
    }
    gone
}

fn texts(of: &BTreeMap<String, String>) -> usize {
    of.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn said(instance: &Instance) -> usize {
    texts(&instance.service.meta) + instance.service.tags.iter().map(String::len).sum::<usize>()
}

fn size(instance: &Instance) -> usize {
    let checks = instance.checks.iter().map(|check| check.id.len() + check.output.len()).sum::<usize>();
    size_of::<Instance>() + said(instance) + texts(&instance.node.meta) + checks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(id: &str, age: u64, meta: usize) -> Instance {
        let service = json!({
            "ID": id, "Service": "db", "Port": 1, "CreateIndex": age, "Meta": { "m": "x".repeat(meta) }, "Tags": ["tag"],
        });
        serde_json::from_value(json!({ "Node": { "Node": "n" }, "Service": service })).expect("an instance")
    }

    fn ids(of: &[Instance]) -> Vec<&str> {
        of.iter().map(|one| one.service.id.as_str()).collect()
    }

    #[test]
    fn the_youngest_of_too_many_instances_and_those_that_say_too_much_are_left_out() {
        let many =
            (0..MAX_INSTANCES as u64 + 5).rev().map(|age| instance(&format!("i{age}"), age, 0)).collect();
        let (held, beyond) = of_service(many);
        assert_eq!((held.len(), beyond), (MAX_INSTANCES, 5));
        assert_eq!(
            (held[0].service.id.as_str(), held.last().expect("one").service.create_index),
            ("i0", 1999)
        );
        let (least, most) =
            (instance("a", 1, MAX_INSTANCE_BYTES - 4), instance("b", 2, MAX_INSTANCE_BYTES - 3));
        let (held, beyond) = of_service(vec![most, least]);
        assert_eq!((ids(&held), beyond), (vec!["a"], 1));
    }

    #[test]
    fn what_an_agent_registers_is_within_the_bound() {
        let registration = crate::control::registration::Registration::read(&json!({
            "service": "orders.shop", "ports": [{ "port": 80 }], "addresses": ["10.0.0.7"],
            "labels": (0..60).map(|n| (format!("l{n}"), "x".repeat(250))).collect::<BTreeMap<_, _>>(),
        }));
        let host = "h".repeat(63).parse().expect("a label");
        let made = super::super::mark::registration(&host, &registration.expect("a registration"));
        let mut instance = instance("i", 1, 0);
        instance.service.meta = made.expect("registered").meta;
        assert!(instance.service.meta.len() > 30);
        assert_eq!(of_service(vec![instance]).1, 0);
    }

    #[test]
    fn the_youngest_go_where_all_together_are_too_many_or_too_large() {
        let at = |name: &str, id: &str| (name.to_owned(), "n".to_owned(), id.to_owned());
        let all = |meta: usize| -> BTreeMap<At, Instance> {
            [("old", "a", 1), ("old", "b", 2), ("new", "c", 3), ("new", "d", 4)]
                .into_iter()
                .map(|(name, id, age)| (at(name, id), instance(id, age, meta)))
                .collect()
        };
        let check = |meta: usize, most: usize, most_bytes: usize, gone: &[(&str, usize)], left: usize| {
            let mut held = all(meta);
            let found = within(&mut held, most, most_bytes);
            let expected = gone.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            assert_eq!((found, held.len()), (expected, left));
        };
        check(0, 4, usize::MAX, &[], 4);
        check(0, 3, usize::MAX, &[("new", 1)], 3);
        check(0, 1, usize::MAX, &[("new", 2), ("old", 1)], 1);
        check(10_000, 4, 25_000, &[("new", 2)], 2);
    }
}
