//! A service's word on itself, which a check of the kind `ttl` waits for.

use baremesh_model::name::{Key, default_namespace};
use http::StatusCode;

use super::Agent;
use crate::admin::report::{HeartbeatAnswer, HeartbeatOrder, HeartbeatStatus};
use crate::admin::server::{Answer, json, text};

/// What a service that says nothing but that it fails is told to have said.
const NO_NOTE: &str = "it says that it fails";

impl Agent {
    pub(super) fn heartbeat(&self, body: &[u8]) -> Answer {
        let order: HeartbeatOrder = match serde_json::from_slice(body) {
            Ok(order) => order,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("no heartbeat: {error}")),
        };
        let snapshot = self.publisher.snapshot().load_full();
        let domain = &snapshot.mesh.config.domain;
        let resolved = Key::resolve(&order.service, &default_namespace(), domain);
        let Ok(key) = resolved else {
            return text(StatusCode::BAD_REQUEST, format!("`{}` is no service's name", order.service));
        };
        let result = match (order.status, order.note) {
            (HeartbeatStatus::Passing, _) => Ok(()),
            (HeartbeatStatus::Failing, note) => Err(note.unwrap_or_else(|| NO_NOTE.to_owned())),
        };
        match self.checks.heartbeat(&key, result) {
            Ok(health) => {
                json(&HeartbeatAnswer { service: key.to_string(), health: health.word().to_owned() })
            }
            Err(error) => text(StatusCode::CONFLICT, error.to_string()),
        }
    }
}
