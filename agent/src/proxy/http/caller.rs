//! stub
mod dial;
use std::sync::Arc;
use super::downstream::Exchange;
use super::reply::Reply;
use crate::proxy::Worker;
use crate::telemetry::Record;
use baremesh_model::identity::Identity;

/// A
pub struct Caller {
    /// w
    pub worker: Arc<Worker>,
    identity: Identity,
    peers: Record,
}
impl Caller {
    /// c
    pub async fn carry(&self, _exchange: Exchange<'_>) {}
    /// r
    pub async fn refuse(&self, _exchange: Exchange<'_>, _reply: Reply) {}
}
