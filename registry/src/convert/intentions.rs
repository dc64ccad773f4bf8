//! Who may call whom, as `service-intentions` and the older single intentions say it.

use baremesh_model::name::Label;
use serde_json::{Map, Value as Json};

use super::entries::name;
use super::fields::Fields;
use super::permission::{self, Permission};
use super::{DefaultPolicy, Findings};

/// One intention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Intention {
    /// Where it stands, for people.
    pub(super) entry: String,
    /// Who calls; none is `*`.
    pub(super) source: Option<Label>,
    /// Who is called; none is `*`.
    pub(super) destination: Option<Label>,
    /// What becomes of the call.
    pub(super) act: Act,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// It is the same for all requests.
    All(DefaultPolicy),
    /// The first of these that matches decides, else the mesh's default.
    First(Vec<Permission>),
}

/// Bookkeeping and words for people.
const BOOKKEEPING: [&str; 12] = [
    "ID",
    "Description",
    "Meta",
    "Precedence",
    "CreatedAt",
    "UpdatedAt",
    "CreateIndex",
    "ModifyIndex",
    "Hash",
    "LegacyID",
    "LegacyMeta",
    "LegacyCreateTime",
];

/// The intentions of one entry, which is for one destination.
pub(super) fn entry(fields: Fields<'_>, destination: &str, f: &mut Findings) -> Vec<Intention> {
    let entry = fields.entry.clone();
    fields.unsaid(
        f,
        "JWT",
        "asks for tokens",
        "write a RequestAuthentication and `requestPrincipals`: docs/tokens.md",
    );
    let sources = fields.objects(f, "Sources");
    let destination = exact(f, &entry, "Name", destination);
    let intentions = sources.into_iter().filter_map(|source| {
        source.pass_over(&BOOKKEEPING);
        source.pass_over(&["LegacyUpdateTime"]);
        source.at_home(f);
        let Some(text) = source.text(f, "Name") else {
            source.refuse(f, "Name", "a source without a name", "");
            return None;
        };
        let from = exact(f, &entry, &source.place("Name"), text);
        type_of(&source, "Type", f);
        let act = act(&source, destination.as_ref(), f);
        source.finish(f);
        Some(Intention { entry: entry.clone(), source: from?, destination: destination.clone()?, act })
    });
    let intentions = intentions.collect();
    fields.finish(f);
    intentions
}

/// An intention as `/v1/connect/intentions` lists it.
pub(super) fn legacy(map: &Map<String, Json>, f: &mut Findings) -> Option<Intention> {
    let outer = Fields::of_entry("intention", map);
    let source = outer.text(f, "SourceName").unwrap_or_default();
    let destination = outer.text(f, "DestinationName").unwrap_or_default();
    let fields = Fields::of_entry(format!("intention {source} => {destination}"), map);
    fields.pass_over(&BOOKKEEPING);
    fields.pass_over(&["SourceName", "DestinationName"]);
    for key in ["SourceNS", "DestinationNS", "SourcePartition", "DestinationPartition"] {
        if fields.text(f, key).is_some_and(|text| text != "default") {
            let reason = "is Consul Enterprise's: each namespace and partition is converted by itself";
            fields.refuse(f, key, reason, "export it alone, and give --namespace");
        }
    }
    for key in ["SourcePeer", "SourceSamenessGroup"] {
        fields.unsaid(
            f,
            key,
            "other clusters have trust domains of their own here",
            "see docs/federation.md",
        );
    }
    type_of(&fields, "SourceType", f);
    let from = exact(f, &fields.entry, "SourceName", source);
    let to = exact(f, &fields.entry, "DestinationName", destination);
    let act = act(&fields, to.as_ref(), f);
    let entry = fields.entry.clone();
    fields.finish(f);
    Some(Intention { entry, source: from?, destination: to?, act })
}

/// A name, or none for `*`.
fn exact(f: &mut Findings, entry: &str, field: &str, text: &str) -> Option<Option<Label>> {
    if text == "*" { Some(None) } else { name(f, entry, Some(field), text).map(Some) }
}

fn type_of(fields: &Fields<'_>, key: &str, f: &mut Findings) {
    if fields.text(f, key).is_some_and(|text| text != "consul") {
        fields.refuse(f, key, "is not `consul`", "only services of Consul call each other");
    }
}

fn act(fields: &Fields<'_>, destination: Option<&Option<Label>>, f: &mut Findings) -> Act {
    let permissions = permission::read(fields, f);
    if permissions.is_empty() {
        return Act::All(permission::action(fields, f));
    }
    if fields.value("Action").is_some() {
        fields.refuse(f, "Action", "stands beside Permissions", "Consul takes one of the two");
    }
    if destination == Some(&None) {
        fields.refuse(f, "Permissions", "Consul takes none on intentions for `*`", "name the services");
    }
    Act::First(permissions)
}
