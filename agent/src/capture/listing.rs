//! Our own table as the kernel has it, read with `nft -j list table inet baremesh`. Nothing else is listed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use super::CaptureError;
use super::command::Tools;
use super::rules::Ruleset;
use super::sets::{Element, Elements, NamedSet, SEAL, TABLE, fnv1a};
use super::status::Counter;
use super::units::UNITS_TABLE;

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) chains: BTreeMap<String, ListedChain>,
    pub(super) sets: BTreeMap<String, Elements>,
    pub(super) counters: BTreeMap<String, Counter>,
    /// A hash of chains, rules and definitions, without elements, figures and handles.
    pub(super) structure: u64,
}

/// A chain of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ListedChain {
    /// Kind, hook and priority.
    pub(super) hook: Option<(String, String, i64)>,
    /// How many rules it has.
    pub(super) rules: usize,
}

impl Listing {
    /// Reads it; `None` if there is no such table.
    pub(super) fn read(tools: &Tools) -> Result<Option<Self>, CaptureError> {
        let Some(text) = list(tools, &["-j", "list", "table", "inet", TABLE])? else { return Ok(None) };
        let unreadable =
            |detail| CaptureError::Unreadable { command: format!("nft -j list table inet {TABLE}"), detail };
        Self::parse(&text).map(Some).map_err(unreadable)
    }

    /// The counters of the table of units, of which there are none without it.
    pub(super) fn counters_of_units(tools: &Tools) -> Result<BTreeMap<String, Counter>, CaptureError> {
        let text = list(tools, &["-j", "list", "counters", "table", "inet", UNITS_TABLE])?;
        let listing = text.map(|text| Self::parse(&text)).transpose();
        let command = || format!("nft -j list counters table inet {UNITS_TABLE}");
        let listing = listing.map_err(|detail| CaptureError::Unreadable { command: command(), detail })?;
        Ok(listing.unwrap_or_default().counters)
    }

    /// The table's text without the elements of its sets, and those.
    pub(super) fn saved(tools: &Tools) -> Result<Option<(String, Vec<NamedSet>)>, CaptureError> {
        let Some(listing) = Self::read(tools)? else { return Ok(None) };
        let Some(text) = list(tools, &["-t", "list", "table", "inet", TABLE])? else { return Ok(None) };
        // The seal comes last, so that a load in several transactions is not taken for whole before it is.
        let (seal, others): (Vec<_>, Vec<_>) = listing.sets.into_iter().partition(|(name, _)| name == SEAL);
        let sets = others.into_iter().chain(seal).map(|(name, elements)| NamedSet::new(&name, "", elements));
        Ok(Some((text, sets.collect())))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let objects =
            whole.get_mut("nftables").and_then(Value::as_array_mut).ok_or("there is no `nftables`")?;
        let mut listing = Self::default();
        let mut structure = String::new();
        for object in objects {
            let Some((kind, body)) = object.as_object_mut().and_then(|object| object.iter_mut().next())
            else {
                continue;
            };
            if kind == "metainfo" {
                continue;
            }
            listing.take(kind, body)?;
            for volatile in ["handle", "elem", "packets", "bytes"] {
                body.as_object_mut().map(|body| body.remove(volatile));
            }
            structure.push_str(&format!("{kind} {body}\n"));
        }
        listing.structure = fnv1a(structure.as_bytes());
        Ok(listing)
    }

    fn take(&mut self, kind: &str, body: &Value) -> Result<(), String> {
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        let name = || text("name").ok_or_else(|| format!("a {kind} without a name"));
        let number = |key: &str| body.get(key).and_then(Value::as_u64).unwrap_or_default();
        match kind {
            "chain" => {
                let priority = body.get("prio").and_then(Value::as_i64);
                let hook = text("type").zip(text("hook")).zip(priority);
                self.chains.entry(name()?).or_default().hook =
                    hook.map(|((kind, at), priority)| (kind, at, priority));
            }
            "rule" => {
                let chain = text("chain").ok_or("a rule without a chain")?;
                self.chains.entry(chain).or_default().rules += 1;
            }
            "set" => {
                let none = Vec::new();
                let listed = body.get("elem").and_then(Value::as_array).unwrap_or(&none);
                let elements: Option<Elements> = listed.iter().map(element).collect();
                let elements =
                    elements.ok_or_else(|| format!("an element of an unknown kind in set {kind}"))?;
                self.sets.insert(name()?, elements);
            }
            "counter" => {
                let counter = Counter { packets: number("packets"), bytes: number("bytes") };
                self.counters.insert(name()?, counter);
            }
            _ => {}
        }
        Ok(())
    }

    /// Every difference between this and the rules that were asked for, in words.
    pub(super) fn differences(&self, expected: &Ruleset) -> Vec<String> {
        let mut found = Vec::new();
        for chain in &expected.chains {
            let hook =
                chain.hook.map(|hook| (hook.kind.to_owned(), hook.at.to_owned(), i64::from(hook.priority)));
            let wanted = ListedChain { hook, rules: chain.rules.len() };
            match self.chains.get(chain.name) {
                None => found.push(format!("chain {} is missing", chain.name)),
                Some(listed) if listed.hook != wanted.hook => {
                    found.push(format!("chain {} is hooked elsewhere", chain.name));
                }
                Some(listed) if listed.rules != wanted.rules => {
                    found.push(format!(
                        "chain {} has {} rules, not {}",
                        chain.name, listed.rules, wanted.rules
                    ));
                }
                Some(_) => {}
            }
        }
        for foreign in
            self.chains.keys().filter(|name| expected.chains.iter().all(|chain| chain.name != *name))
        {
            found.push(format!("chain {foreign} is not ours"));
        }
        for set in expected.sets.iter().filter(|set| set.name != SEAL) {
            match self.sets.get(&set.name) {
                None => found.push(format!("set {} is missing", set.name)),
                Some(listed) if !listed.keys().eq(set.elements.keys()) => found.push(format!(
                    "set {} has {} elements that differ from the {} asked for",
                    set.name,
                    listed.len(),
                    set.elements.len()
                )),
                Some(_) => {}
            }
        }
        found
    }

    /// What the seal says about one thing.
    pub(super) fn sealed(&self, number: u32) -> Option<&str> {
        self.sets.get(SEAL)?.get(&Element::Number(number))?.as_deref()
    }
}

/// Lists a table of ours; `None` if it does not exist.
pub(super) fn list(tools: &Tools, arguments: &[&str]) -> Result<Option<String>, CaptureError> {
    match tools.nft(arguments, "") {
        Ok(text) => Ok(Some(text)),
        Err(CaptureError::Refused { stderr, .. }) if stderr.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

fn element(value: &Value) -> Option<(Element, Option<String>)> {
    if let Some(inner) = value.get("elem") {
        let comment = inner.get("comment").and_then(Value::as_str).map(str::to_owned);
        return Some((element(inner.get("val")?)?.0, comment));
    }
    if let Some([address, port]) = value.get("concat").and_then(Value::as_array).map(Vec::as_slice) {
        let port = u16::try_from(port.as_u64()?).ok()?;
        if let Some(prefix) = address.get("prefix") {
            let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
            let network = IpNet::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()?;
            return Some((Element::Network(network, port), None));
        }
        let address: IpAddr = address.as_str()?.parse().ok()?;
        return Some((Element::Socket(SocketAddr::new(address, port)), None));
    }
    Some((Element::Number(u32::try_from(value.as_u64()?).ok()?), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "baremesh", "handle": 2}},
        {"counter": {"name": "dns", "handle": 4, "packets": 7, "bytes": 9}},
        {"set": {"name": "a", "type": ["ipv4_addr", "inet_service"], "handle": 5,
                 "elem": [{"concat": ["10.0.0.1", 80]}, {"elem": {"val": {"concat": ["10.0.0.2", 80]}, "comment": "x"}}]}},
        {"chain": {"name": "c", "handle": 1, "type": "nat", "hook": "output", "prio": -105, "policy": "accept"}},
        {"rule": {"chain": "c", "handle": 9, "expr": [{"return": null}]}}]}"#;

    #[test]
    fn reads_what_nft_writes() {
        let listing = Listing::parse(TEXT).expect("a listing");
        assert_eq!(listing.counters["dns"], Counter { packets: 7, bytes: 9 });
        assert_eq!(
            listing.chains["c"],
            ListedChain { hook: Some(("nat".into(), "output".into(), -105)), rules: 1 }
        );
        let elements: Vec<_> = listing.sets["a"].iter().map(|(e, c)| (e.to_string(), c.as_deref())).collect();
        assert_eq!(elements, [("10.0.0.1 . 80".to_owned(), None), ("10.0.0.2 . 80".to_owned(), Some("x"))]);
    }

    #[test]
    fn the_structure_does_not_change_with_handles_figures_and_elements() {
        let hash = |text: &str| Listing::parse(text).expect("a listing").structure;
        let check = |from: &str, to: &str, same: bool| {
            assert!(TEXT.contains(from));
            assert_eq!(hash(TEXT) == hash(&TEXT.replace(from, to)), same, "{from}");
        };
        check("\"handle\": 9", "\"handle\": 8", true);
        check("\"packets\": 7", "\"packets\": 8", true);
        check("10.0.0.1", "10.0.0.9", true);
        check("-105", "-100", false);
        check("return", "accept", false);
    }

    #[test]
    fn other_output_is_refused() {
        for text in ["", "{}", "[]", "{\"nftables\": [{\"set\": {\"name\": \"a\", \"elem\": [\"what\"]}}]}"] {
            assert!(Listing::parse(text).is_err(), "{text}");
        }
    }
}
