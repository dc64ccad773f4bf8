//! What is learnt of a request while it is under way, and the line that tells it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::http::response::Parts;
use serde_json::{Map, Value, json};

use super::super::super::connection::Broken;
use super::super::INSTANCE;
use super::super::content::Read;
use super::super::request::lists;
use super::Wanted;

/// Filled in as the answer comes, so that what came before a failure is not lost.
#[derive(Default)]
pub(super) struct Told {
    known: Mutex<Known>,
    informed: Arc<Mutex<Vec<u16>>>,
}

#[derive(Default)]
struct Known {
    connection: Option<u64>,
    head: Option<Parts>,
    read: Option<Read>,
}

impl Told {
    pub(super) fn connection(&self, number: u64) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).connection = Some(number);
    }

    pub(super) fn head(&self, head: Parts) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).head = Some(head);
    }

    pub(super) fn read(&self, read: Read) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).read = Some(read);
    }

    /// The codes of the informational answers so far.
    pub(super) fn informed(&self) -> Arc<Mutex<Vec<u16>>> {
        Arc::clone(&self.informed)
    }

    pub(super) fn was_informed(&self) -> bool {
        !self.informed.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The line for standard output.
    pub(super) fn line(&self, wanted: &Wanted, broken: Option<&Broken>, took: Duration) -> Value {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = Map::new();
        let mut add = |name: &str, value: Value| line.insert(name.to_owned(), value);
        if let Some(head) = &known.head {
            let instance = head.headers.get(INSTANCE).and_then(|name| name.to_str().ok());
            add("status", head.status.as_u16().into());
            add("instance", instance.into());
            if !wanted.brief {
                add("version", format!("{:?}", head.version).into());
                add("headers", lists(&head.headers));
                add("informational", json!(*self.informed.lock().unwrap_or_else(PoisonError::into_inner)));
            }
        }
        if let Some(read) = known.read.as_ref().filter(|_| !wanted.brief) {
            add("length", read.sum.length().into());
            add("checksum", read.sum.digest().into());
            add("body", read.text().into());
            add("trailers", lists(&read.trailers));
        }
        if let Some(broken) = broken {
            add("error", broken.to_string().into());
            add("code", broken.code().into());
        }
        add("connection", known.connection.into());
        add("ms", u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into());
        Value::Object(line)
    }
}
