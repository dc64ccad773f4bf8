//! The administration socket: HTTP/1.1 over a Unix socket of the control host. Its file's mode lets root and the group
//! `baremesh` in; the kernel says whose process it is, and what is done is written down with that uid.

use std::io;
use std::sync::Arc;

use baremesh_agent::admin::server::{Administer, Answer, with};
use baremesh_registry::files::MAX_FILE_BYTES;
use bytes::Bytes;
use http::{Request, StatusCode};

use super::Server;
use super::endpoints::{OF_OPERATORS, find};
use super::orders::{self, Order};
use super::report::Fault;
use super::who::Who;

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

    /// What no table has.
    pub(super) fn no_such_order() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "there is no such order: is the command of another version than the control server?",
        )
    }

    fn answer(&self) -> Answer {
        with(self.status, JSON, serde_json::to_vec(&self.fault).unwrap_or_default())
    }
}

/// Bytes of an order's body: a file of the largest size, every byte of it escaped once.
pub(super) const MAX_ORDER: usize = 2 * MAX_FILE_BYTES as usize + 64 * 1024;
const JSON: &str = "application/json";

/// The control server as its administration socket sees it.
#[derive(Clone)]
pub(super) struct Administration(pub(super) Arc<Server>);

impl Administer for Administration {
    const MAX_BODY: usize = MAX_ORDER;

    async fn answer(&self, uid: u32, request: Request<Bytes>) -> Answer {
        let (head, body) = request.into_parts();
        let Some((endpoint, name)) = find(&OF_OPERATORS, &head.method, head.uri.path()) else {
            return Denial::no_such_order().answer();
        };
        let query = head.uri.query().unwrap_or_default();
        let order = Order { endpoint, name, query, body, who: Who::Local { uid } };
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
