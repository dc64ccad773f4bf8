//! Registering this host's services at the Consul agent beside it, and telling it how they are. What was told holds for
//! half a minute: a host that falls silent takes no calls after that. What a Consul agent has lost is registered anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::name::Label;
use baremesh_registry::consul::client::Client;
use baremesh_registry::consul::error::ConsulError;
use baremesh_registry::consul::local::{Known, Registration};
use baremesh_registry::consul::mark::{TTL_SECONDS, is_of, registration, words};
use tokio::sync::Mutex;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use super::super::control::registrations_of;
use super::store::say;
use super::{Heard, Part};
use crate::publish::Publisher;

/// How often the checks are told that all is as it was: three times before what was told last ends.
const TELL: Duration = Duration::from_secs(TTL_SECONDS / 3);
/// The pause after a failure. No longer than that: a Consul agent that is back has to hear before the time is over.
const AGAIN: Duration = Duration::from_secs(2);
/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// Keeps this host's services registered.
#[derive(Clone)]
pub(super) struct Registering {
    beside: Client,
    host: Label,
    publisher: Arc<Publisher>,
    /// What the Consul agent was told, by ID.
    told: Arc<Mutex<BTreeMap<String, Registration>>>,
}

impl Registering {
    pub(super) fn new(beside: Client, host: Label, publisher: Arc<Publisher>) -> Self {
        Self { beside, host, publisher, told: Arc::default() }
    }

    /// Keeps them registered, for ever.
    pub(super) async fn keep(self, tell: Sender<Heard>) {
        let mut registered = self.publisher.registered();
        loop {
            registered.mark_unchanged();
            let done = Box::pin(self.tell_all()).await;
            let pause = if done.is_ok() { TELL } else { AGAIN };
            say(&tell, Part::Registrations, done.map(|()| (None, None))).await;
            tokio::select! {
                () = sleep(pause) => {}
                changed = registered.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }

    /// Tells the Consul agent all there is, and takes out what is no longer.
    async fn tell_all(&self) -> Result<(), String> {
        let host = self.publisher.snapshot().load().host.clone();
        let services = self.publisher.registered().borrow().clone();
        let mut wanted = BTreeMap::new();
        let mut refused = Vec::new();
        for one in registrations_of(&services, &host) {
            match registration(&self.host, &one) {
                Ok(registration) => _ = wanted.insert(registration.id.clone(), registration),
                Err(reason) => refused.push(reason),
            }
        }
        let mut told = self.told.lock().await;
        let there = self.beside.own_services().await.map_err(|error| error.to_string())?;
        for (id, registration) in &wanted {
            let before = told.get(id).filter(|_| there.contains_key(id));
            self.tell(registration, before).await.map_err(|error| error.to_string())?;
            told.insert(id.clone(), registration.clone());
        }
        let gone: BTreeSet<_> =
            there.keys().filter(|id| is_of(id, &self.host) && !wanted.contains_key(*id)).collect();
        for id in gone {
            self.beside.deregister(id).await.map_err(|error| error.to_string())?;
        }
        told.retain(|id, _| wanted.contains_key(id));
        match refused.first() {
            Some(reason) => Err(reason.clone()),
            None => Ok(()),
        }
    }

    /// Registers what is new or other than before; of the rest, says how it is.
    async fn tell(&self, now: &Registration, before: Option<&Registration>) -> Result<(), ConsulError> {
        let status = now.check.status;
        let same = |before: &Registration| {
            let mut before = before.clone();
            before.check.status = status;
            before == *now
        };
        if before.is_some_and(same)
            && self.beside.update(&now.check.id, status, words(status)).await? == Known::Known
        {
            return Ok(());
        }
        self.beside.register(now).await?;
        // Registered with that status, but without the words that tell it from silence.
        self.beside.update(&now.check.id, status, words(status)).await.map(|_| ())
    }

    /// Takes this host's services out, so that no new call comes here.
    pub(super) async fn say(&self) {
        let goodbye = async {
            let there = self.beside.own_services().await?;
            for id in there.keys().filter(|id| is_of(id, &self.host)) {
                self.beside.deregister(id).await?;
            }
            Ok::<_, ConsulError>(())
        };
        match timeout(GOODBYE, Box::pin(goodbye)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "this host's services stay in Consul until they fall silent");
            }
            Err(_) => {
                tracing::warn!(limit = ?GOODBYE, "Consul did not take this host's services out in time");
            }
        }
    }
}
