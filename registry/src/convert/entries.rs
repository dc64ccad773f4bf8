//! What was given, taken apart into entries: single objects, lists, several documents one after the other, answers of
//! `/v1/config/…`, `/v1/connect/intentions`, `/v1/catalog/service/…` and `/v1/health/service/…`.

use std::collections::BTreeMap;

use baremesh_model::name::Label;
use serde_json::{Map, Value as Json};

use super::defaults::{self, Defaults};
use super::fields::Fields;
use super::intentions::{self, Intention};
use super::resolver::{self, Resolver};
use super::router::{self, Route};
use super::splitter::{self, Split};
use super::{Findings, Options};

/// Entries that are taken at once.
pub const MAX_ENTRIES: usize = 20_000;

/// Everything that was given.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) intentions: Vec<Intention>,
    pub(super) defaults: BTreeMap<Label, Defaults>,
    pub(super) routers: BTreeMap<Label, Vec<Route>>,
    pub(super) splitters: BTreeMap<Label, Vec<Split>>,
    pub(super) resolvers: BTreeMap<Label, Resolver>,
    /// The protocol of services that have none of their own.
    pub(super) protocol: Option<String>,
    /// What proxy-defaults says about plaintext.
    pub(super) peer_authentication: Option<Json>,
    /// Ports by service; several if instances disagree.
    pub(super) ports: BTreeMap<Label, Vec<u16>>,
}

impl Entries {
    /// What a service speaks, as far as anybody says.
    pub(super) fn protocol(&self, service: &Label) -> Option<&str> {
        let own = self.defaults.get(service).and_then(|defaults| defaults.protocol.as_deref());
        own.or(self.protocol.as_deref())
    }
}

/// Whether requests are told apart in a protocol.
pub(super) fn is_http(protocol: &str) -> bool {
    matches!(protocol, "http" | "http2" | "grpc")
}

/// Fields of every entry that change nothing for traffic.
const BOOKKEEPING: [&str; 6] = ["Meta", "CreateIndex", "ModifyIndex", "Hash", "Status", "Kind"];

pub(super) fn read(texts: &[(String, String)], options: &Options, f: &mut Findings) -> Entries {
    let mut entries = Entries::default();
    for (service, port) in &options.ports {
        if let Some(service) = name(f, "--port", None, service) {
            entries.ports.insert(service, vec![*port]);
        }
    }
    let given: Vec<Label> = entries.ports.keys().cloned().collect();
    let mut count = 0;
    for (file, text) in texts {
        for document in serde_json::Deserializer::from_str(text).into_iter::<Json>() {
            match document {
                Ok(Json::Array(items)) => {
                    items.iter().for_each(|item| one(item, file, &given, (&mut entries, &mut count), f));
                }
                Ok(item) => one(&item, file, &given, (&mut entries, &mut count), f),
                Err(error) => {
                    let help = "give the JSON of `consul config read -kind K -name N` or of /v1/config/KIND; \
                                `consul config list` prints names alone";
                    f.refuse(file, None, format!("is not JSON: {error}"), help);
                    break;
                }
            }
        }
    }
    if count > MAX_ENTRIES {
        let reason = format!("more than {MAX_ENTRIES} entries");
        f.refuse("all files together", None, reason, "convert them in parts that do not refer to each other");
    }
    entries
}

fn one(
    item: &Json,
    file: &str,
    given: &[Label],
    (entries, count): (&mut Entries, &mut usize),
    f: &mut Findings,
) {
    *count += 1;
    if *count > MAX_ENTRIES {
        return;
    }
    let Json::Object(map) = item else {
        f.refuse(file, None, "holds something that is not an entry", "give the JSON of Consul's API");
        return;
    };
    let outer = Fields::of_entry(file, map);
    let kind = outer.text(f, "Kind").map(str::to_owned);
    match kind.as_deref() {
        Some(kind) if known(kind) => entry(kind, map, entries, f),
        Some(kind) => {
            let named = outer.text(f, "Name").unwrap_or_default();
            f.refuse(
                &format!("{kind} {named}"),
                None,
                "entries of this kind are not converted",
                instead(kind),
            );
        }
        None if outer.value("SourceName").is_some() || outer.value("DestinationName").is_some() => {
            entries.intentions.extend(intentions::legacy(map, f));
        }
        None => catalog(&outer, given, entries, f),
    }
}

fn known(kind: &str) -> bool {
    const KINDS: [&str; 6] = [
        "service-defaults",
        "proxy-defaults",
        "service-intentions",
        "service-router",
        "service-splitter",
        "service-resolver",
    ];
    KINDS.contains(&kind)
}

/// What to write instead of an entry of a kind that is not converted.
fn instead(kind: &str) -> &'static str {
    match kind {
        "ingress-gateway" | "api-gateway" | "http-route" | "tcp-route" | "bound-api-gateway" => {
            "requests from outside of the mesh come in by a proxy of your own in front of an agent"
        }
        "terminating-gateway" => {
            "callers reach what is outside of the mesh themselves: write ServiceEntries, and a DestinationRule with `tls`"
        }
        "jwt-provider" => "write a RequestAuthentication: docs/tokens.md",
        "exported-services" | "sameness-group" | "partition-exports" => "see docs/federation.md",
        "mesh" => "what it sets is in agent.toml and MeshConfig: docs/resources.md",
        "control-plane-request-limit" => "it is about Consul's servers, not about the mesh: leave it out",
        _ => "leave it out, and write by hand what it is for: docs/resources.md",
    }
}

fn entry(kind: &str, map: &Map<String, Json>, entries: &mut Entries, f: &mut Findings) {
    let outer = Fields::of_entry(kind, map);
    let Some(text) = outer.text(f, "Name").map(str::to_owned) else {
        f.refuse(kind, Some("Name"), "an entry without a name", "is it the JSON of Consul's API?");
        return;
    };
    let fields = Fields::of_entry(format!("{kind} {text}"), map);
    fields.pass_over(&BOOKKEEPING);
    fields.pass_over(&["Name"]);
    fields.at_home(f);
    if kind == "proxy-defaults" {
        defaults::of_mesh(fields, entries, f);
        return;
    }
    if kind == "service-intentions" {
        entries.intentions.extend(intentions::entry(fields, &text, f));
        return;
    }
    let entry = fields.entry.clone();
    let Some(service) = name(f, &entry, Some("Name"), &text) else { return };
    let twice = match kind {
        "service-defaults" => {
            let read = defaults::of_service(fields, f);
            entries.defaults.insert(service, read).is_some()
        }
        "service-router" => {
            let read = router::read(fields, &service, f);
            entries.routers.insert(service, read).is_some()
        }
        "service-splitter" => {
            let read = splitter::read(fields, &service, f);
            entries.splitters.insert(service, read).is_some()
        }
        _ => {
            let read = resolver::read(fields, &service, f);
            entries.resolvers.insert(service, read).is_some()
        }
    };
    if twice {
        f.refuse(&entry, None, "stands there twice", "keep one of the two");
    }
}

/// A name of a service as resources have them.
pub(super) fn name(f: &mut Findings, entry: &str, field: Option<&str>, text: &str) -> Option<Label> {
    let label = Label::new(text);
    if label.is_err() {
        let reason = format!("{text} cannot be a service's name: names are RFC 1123 labels");
        f.refuse(entry, field, reason, "name the service in lower case letters, digits and hyphens");
    }
    label.ok()
}

/// An instance of a service, of which the port is taken where none was given.
fn catalog(outer: &Fields<'_>, given: &[Label], entries: &mut Entries, f: &mut Findings) {
    let inner = outer.stands("Service").filter(|value| value.is_object());
    let of_health = inner.and_then(Json::as_object).map(|map| Fields::of_entry(outer.entry.clone(), map));
    let (service, port) = match &of_health {
        Some(service) => (service.text(f, "Service"), service.number(f, "Port")),
        None => (outer.text(f, "ServiceName"), outer.number(f, "ServicePort")),
    };
    let Some(service) = service else {
        let help = "give config entries, intentions, or answers of /v1/catalog/service/NAME";
        f.refuse(&outer.entry, None, "holds an object that is none of these", help);
        return;
    };
    let Some(service) = name(f, &outer.entry, None, service) else { return };
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { return };
    if given.contains(&service) {
        return;
    }
    let ports = entries.ports.entry(service).or_default();
    if !ports.contains(&port) {
        ports.push(port);
    }
}
