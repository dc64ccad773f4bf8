//! What is in force of all that Consul says: the mesh that is made of it, and as much of it as this host holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use baremesh_model::mesh::Mesh;
use baremesh_registry::consul::{Settings, state};
use baremesh_registry::control::REVOKED;
use baremesh_registry::control::followed::{Entries, Entry, Followed, WholeError};
use serde_json::Value;

use super::known::{Holding, Known};
use crate::publish::Publisher;
use crate::source::resources::Resources;
use crate::trust::Trust;

/// What the entries of the mesh were last, and what was read from them.
#[derive(Default)]
pub(super) struct Derived {
    entries: Entries,
    resources: Resources,
    /// The mesh that is in force, with all endpoints, and which of them the publisher has.
    in_force: Option<(Mesh, Option<Holding>)>,
    /// What was to be held last: where that was refused, it is not tried again before the next publication.
    tried: Option<Holding>,
}

impl Derived {
    /// The mesh of some inputs, with all endpoints.
    pub(super) fn mesh(
        &mut self,
        inputs: &BTreeMap<String, Value>,
        (settings, trust): (&Settings, &Trust),
    ) -> (state::Derived, Result<Mesh, String>) {
        let derived = state::derive(inputs, settings);
        self.entries = entries_of(&derived.entries, &self.entries);
        let made = self.resources.mesh(&self.entries, &trust.now());
        (derived, made)
    }

    /// Publishes what is in force as a host knows it that holds these endpoints, where that is not the case yet.
    pub(super) fn hold(
        &mut self,
        holding: Holding,
        followed: &Followed,
        with: (&Settings, &Trust),
        publisher: &Publisher,
    ) {
        if followed.entries().is_empty() || self.tried.as_ref() == Some(&holding) {
            return;
        }
        self.tried = Some(holding.clone());
        if let Err(reason) = self.publish_held(holding, followed, with, publisher) {
            publisher.refuse(reason);
        }
    }

    fn publish_held(
        &mut self,
        holding: Holding,
        followed: &Followed,
        with: (&Settings, &Trust),
        publisher: &Publisher,
    ) -> Result<(), String> {
        let mesh = match self.in_force.take() {
            Some((mesh, Some(held))) if held == holding => {
                self.in_force = Some((mesh, Some(held)));
                return Ok(());
            }
            Some((mesh, _)) => mesh,
            // The agent has begun with it.
            None => self.mesh(&followed.values(), with).1?,
        };
        let held = mesh.clone().holding(|service| holding.holds(service));
        let told = publisher.take_mesh(held, followed.version());
        self.in_force = Some((mesh, told.is_ok().then_some(holding)));
        told
    }
}

/// Values as entries; those that have not changed are the ones from before.
fn entries_of(values: &BTreeMap<String, Value>, before: &Entries) -> Entries {
    let entry = |(key, value): (&String, &Value)| {
        let entry = Entry::of(key, value);
        let known = before.get(key).filter(|known| ***known == entry);
        (key.clone(), known.map_or_else(|| Arc::new(entry), Arc::clone))
    };
    values.iter().map(entry).collect()
}

/// Publishes what is known, where there is a whole set of resources, and keeps it.
pub(super) fn publish(
    known: &mut Known,
    (followed, before): (&mut Followed, &mut Derived),
    (settings, trust): (&Settings, &Trust),
    publisher: &Publisher,
) -> Result<(), WholeError> {
    before.tried = None;
    let Some((mut inputs, version)) = known.inputs(Instant::now()) else { return Ok(()) };
    let is_in_force = |inputs: &BTreeMap<String, Value>, followed: &Followed, known: &Known| {
        !known.is_unsaved() && followed.is_of(inputs, version)
    };
    if is_in_force(&inputs, followed, known) {
        known.note_older_list(None);
        return Ok(());
    }
    // Not put off by anything that this agent cannot take.
    let older = match trust.take(|key| inputs.get(key).cloned()) {
        Ok(older) => older,
        Err(reason) => {
            publisher.refuse(reason.clone());
            return Err(WholeError::Refused(reason));
        }
    };
    // What is kept on the disk is what is in force.
    inputs.extend(older.as_ref().and_then(|older| Some((REVOKED.to_owned(), older.kept.clone()?))));
    if let Some(news) = known.note_older_list(older) {
        publisher.refuse_list(news);
    }
    if is_in_force(&inputs, followed, known) {
        return Ok(());
    }
    let holding = known.holding(Instant::now());
    let (inputs, derived, made, instead) = in_any_case(inputs, followed, before, (settings, trust));
    if instead.is_some() && is_in_force(&inputs, followed, known) {
        known.published(&Ok(()), derived.report, instead);
        return Ok(());
    }
    let put = followed.put_in_force(&inputs, version, || {
        let mesh = made.inspect_err(|reason| publisher.refuse(reason.clone()))?;
        publisher.take_mesh(mesh.clone().holding(|service| holding.holds(service)), version)?;
        before.in_force = Some((mesh, Some(holding)));
        Ok(())
    });
    if let Err(WholeError::Bounds(error)) = &put {
        publisher.refuse(error.to_string());
    }
    known.published(&put, derived.report, instead);
    put
}

/// A mesh of the inputs. Should what stands in the catalog keep one from being made, for a reason that deriving it does not
/// know, one of the same resources with the catalog as it was in force last, or with none: policy goes on. What it was made of, and what
/// is to be said then.
fn in_any_case(
    inputs: BTreeMap<String, Value>,
    followed: &Followed,
    before: &mut Derived,
    with: (&Settings, &Trust),
) -> (BTreeMap<String, Value>, state::Derived, Result<Mesh, String>, Option<String>) {
    let (derived, made) = before.mesh(&inputs, with);
    let Err(reason) = &made else { return (inputs, derived, made, None) };
    let last = followed.values();
    for (of, words) in [(Some(&last), "the catalog of before"), (None, "nothing of the catalog")] {
        let others = state::with_catalog(&inputs, of);
        let (derived, made) = before.mesh(&others, with);
        if made.is_ok() {
            let said =
                format!("Consul's catalog cannot come into force: {reason}; {words} is, with all policy");
            return (others, derived, made, Some(said));
        }
    }
    (inputs, derived, made, None)
}
