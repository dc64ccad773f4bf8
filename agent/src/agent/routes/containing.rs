//! What the administration socket is told and says of containers.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::Agent;
use crate::admin::report::{ContainerProblem, ContainerReport, EngineReport, RunningReport};
use crate::admin::server::{Answer, text};
use crate::capture::Interface;
use crate::containers::{Following, wire};
use crate::registration::container::Standing;
use crate::registration::{Container, LocalService};
use crate::snapshot::Snapshot;

impl Agent {
    /// Takes a follower's connection. Who tells containers says who is which service: root alone, and whoever the agent
    /// runs as, and not the group that may administer it otherwise.
    pub(super) fn hear_of_containers(&self, uid: u32, request: Request<Bytes>) -> Answer {
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            let reason = format!("uid {uid} may not say which containers run: root alone may\n");
            return text(StatusCode::FORBIDDEN, reason);
        }
        let asked = request.headers().get(http::header::UPGRADE);
        if asked.is_none_or(|protocol| protocol != wire::PROTOCOL) {
            let reason = format!("{} is for followers that speak {}\n", wire::ROUTE, wire::PROTOCOL);
            return text(StatusCode::UPGRADE_REQUIRED, reason);
        }
        let heard = Arc::clone(&self.heard);
        self.heard.spawn(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => heard.hear(TokioIo::new(upgraded)).await,
                Err(error) => tracing::warn!(%error, "a follower of containers went away"),
            }
        });
        let mut answer = text(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = answer.headers_mut();
        headers.clear();
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(http::header::UPGRADE, HeaderValue::from_static(wire::PROTOCOL));
        answer
    }

    /// What is known of containers, and whose they are.
    pub(super) fn containers(&self) -> Vec<EngineReport> {
        let snapshot = self.publisher.snapshot().load_full();
        let service = |places: &[Container]| {
            let mut addresses = places.iter().flat_map(|place| &place.addresses);
            let index = addresses.find_map(|address| snapshot.container(*address))?;
            Some(snapshot.registrations[index].key.to_string())
        };
        let engine = |(name, engine): (&String, &crate::containers::Engine)| EngineReport {
            engine: name.clone(),
            followed: engine.following == Following::Followed,
            containers: engine
                .containers
                .iter()
                .map(|running| RunningReport {
                    id: running.id.clone(),
                    name: running.name.clone(),
                    labels: running.labels.clone(),
                    addresses: in_words(&running.places),
                    service: service(&running.places),
                })
                .collect(),
        };
        self.publisher.containers().engines.iter().map(engine).collect()
    }
}

/// `ADDRESS on BRIDGE`, one each.
fn in_words(places: &[Container]) -> Vec<String> {
    let on = |place: &Container| {
        let interface = place.interface.clone();
        place.addresses.iter().map(move |address| format!("{address} on {interface}")).collect::<Vec<_>>()
    };
    places.iter().flat_map(on).collect()
}

/// What is known of the container that a service is.
pub(super) fn report(registered: &LocalService) -> Option<ContainerReport> {
    let own = registered.container.as_ref()?;
    Some(ContainerReport {
        labels: own.selector().map(ToString::to_string),
        addresses: in_words(&own.sources),
        in_force: own.standing == Standing::Found,
        problem: match own.standing {
            Standing::Found => ContainerProblem::None,
            Standing::Absent => ContainerProblem::Absent,
            Standing::Unfollowed => ContainerProblem::Unfollowed,
            Standing::Contested(_) => ContainerProblem::Contested,
        },
        standing: own.standing.to_string(),
    })
}

/// Containers that are not as registered, and bridges of which nothing is captured.
pub(super) fn warnings(snapshot: &Snapshot, interfaces: &BTreeSet<Interface>) -> Vec<String> {
    let outside: BTreeSet<_> = interfaces.iter().filter(|interface| interface.leads_outside()).collect();
    let mut warnings: Vec<_> = outside
        .iter()
        .map(|interface| {
            format!(
                "{interface} of `capture.interfaces` has others than containers on it, who could take a container's address: nothing of it is captured; take the network card off the bridge, or name a bridge without one"
            )
        })
        .collect();
    for registered in &snapshot.registrations {
        let Some(own) = &registered.container else { continue };
        if own.standing != Standing::Found {
            let labels = own.selector().map(|labels| format!(" with {labels}")).unwrap_or_default();
            warnings.push(format!("{} is a container{labels}: {}", registered.key, own.standing));
        }
        let on: BTreeSet<_> = own.held().map(|place| &place.interface).collect();
        for interface in on {
            let why = match interfaces.contains(interface) {
                false => "is not in `capture.interfaces` of agent.toml",
                true if outside.contains(interface) => "is not captured",
                true => continue,
            };
            warnings.push(format!(
                "{} is a container on {interface}, which {why}: the endpoints of the mesh refuse it, and what else it calls goes past the agent",
                registered.key
            ));
        }
    }
    warnings
}
