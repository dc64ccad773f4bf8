//! The administration socket: HTTP/1.1 over a Unix socket of the control host. Its file's mode lets root and the group
//! `baremesh` in; the kernel says whose process it is, and what is done is written down with that uid.

use std::io;
use std::sync::Arc;

use baremesh_agent::admin::server::{Administer, Answer, with};
use baremesh_registry::files::MAX_FILE_BYTES;
use bytes::Bytes;
use http::{Request, StatusCode};

use super::Server;
use super::orders::{self, Order};
use super::report::Fault;

/// Why an order was not carried out.
pub(super) struct Denial {
    pub(super) status: StatusCode,
    pub(super) fault: Fault,
}

impl Denial {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, fault: Fault { error: error.into(), findings: Vec::new() } }
    }

    /// What the server could not do, through no fault of the order.
    pub(super) fn failed(error: &dyn std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    fn answer(&self) -> Answer {
        with(self.status, JSON, serde_json::to_vec(&self.fault).unwrap_or_default())
    }
}

const JSON: &str = "application/json";

/// The control server as its administration socket sees it.
#[derive(Clone)]
pub(super) struct Administration(pub(super) Arc<Server>);

impl Administer for Administration {
    /// A file of the largest size, every byte of it escaped once.
    const MAX_BODY: usize = 2 * MAX_FILE_BYTES as usize + 64 * 1024;

    async fn answer(&self, uid: u32, request: Request<Bytes>) -> Answer {
        let (head, body) = request.into_parts();
        let order = Order {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            body,
            who: format!("uid {uid}"),
        };
        match Box::pin(orders::carry_out(Arc::clone(&self.0), order)).await {
            Ok(value) => with(StatusCode::OK, JSON, value.to_string().into_bytes()),
            Err(denial) => denial.answer(),
        }
    }

    fn refuse(&self, status: StatusCode, reason: String) -> Answer {
        Denial::new(status, reason).answer()
    }
}

impl From<io::Error> for Denial {
    fn from(error: io::Error) -> Self {
        Self::failed(&error)
    }
}
