//! Listing what runs: the engine's containers, the bridges that they are on, and the labels that they were given themselves.
//! An engine puts an image's labels among its containers' own, so that whoever makes an image could say who its containers
//! are: the images are asked for theirs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use super::Running;
use super::engine::{self, Found, Kind};
use super::follow::{FollowError, ask};
use crate::admin::client::{Socket, SocketError};

/// The most images whose labels are remembered. What an ID names never changes.
const MAX_IMAGES: usize = 1024;

type Labels = BTreeMap<String, String>;

/// Lists what one engine runs, time and again.
pub struct Listing {
    engine: PathBuf,
    kind: Kind,
    /// The labels of images, by the images' IDs.
    images: HashMap<String, Labels>,
    /// What was left out the time before: it is logged once.
    left_out: BTreeSet<String>,
}

impl Listing {
    /// Of the engine at this socket.
    pub fn new(engine: PathBuf, kind: Kind) -> Self {
        Self { engine, kind, images: HashMap::new(), left_out: BTreeSet::new() }
    }

    /// What runs, and where. A network that has gone between two answers takes its containers' addresses with it.
    pub async fn list(mut self) -> Result<(Self, Vec<Running>), FollowError> {
        let socket = self.engine.clone();
        let socket = Socket { path: &socket, program: "the container engine" };
        let containers = ask(&socket, engine::CONTAINERS).await?;
        let bridges = engine::bridges(self.kind, &ask(&socket, self.kind.networks()).await?)?;
        let listed = engine::containers(&containers, &bridges)?;
        let mut left_out: BTreeSet<_> = bridges.left_out.into_iter().chain(listed.left_out).collect();
        let wanted: HashSet<_> =
            listed.containers.iter().filter_map(Found::image).map(str::to_owned).collect();
        if self.images.len() + wanted.len() > MAX_IMAGES {
            self.images.retain(|id, _| wanted.contains(id));
        }
        let mut beyond = HashMap::new();
        let mut unknown = HashMap::new();
        for id in wanted.into_iter().filter(|id| !self.images.contains_key(id)).collect::<Vec<_>>() {
            match labels(&socket, &id).await? {
                Ok(labels) if self.images.len() < MAX_IMAGES => _ = self.images.insert(id, labels),
                Ok(labels) => _ = beyond.insert(id, labels),
                Err(reason) => _ = unknown.insert(id, reason),
            }
        }
        let none = Labels::new();
        let mut running = Vec::with_capacity(listed.containers.len());
        for found in listed.containers {
            let of_image = match found.image() {
                None => Some(&none),
                Some(id) => self.images.get(id).or_else(|| beyond.get(id)),
            };
            if let Some(reason) = found.image().and_then(|id| unknown.get(id)) {
                left_out.insert(format!("all labels of the container {}: {reason}", found.name()));
            }
            running.push(found.given(of_image));
        }
        for reason in left_out.difference(&self.left_out) {
            tracing::warn!(engine = %self.engine.display(), reason, "left out of what is told of containers");
        }
        self.left_out = left_out;
        Ok((self, running))
    }
}

/// An image's labels, or why they are not known. An engine that does not answer is an error.
async fn labels(engine: &Socket<'_>, id: &str) -> Result<Result<Labels, String>, FollowError> {
    let question = match engine::image_question(id) {
        Ok(question) => question,
        Err(reason) => return Ok(Err(reason)),
    };
    match ask(engine, &question).await {
        Ok(answer) => Ok(engine::image_labels(&answer).map_err(|error| error.to_string())),
        Err(FollowError::Socket(SocketError::Refused { message, .. })) => {
            Ok(Err(format!("its image cannot be asked for: {message}")))
        }
        Err(error) => Err(error),
    }
}
