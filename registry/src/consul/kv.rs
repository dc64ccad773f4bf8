//! Consul's key-value store (<https://developer.hashicorp.com/consul/api-docs/kv>) and its transactions.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::client::{Asked, Client, Slash, escape};
use super::error::ConsulError;
use super::query::{Answer, Read};

/// The largest value that Consul takes (`kv_max_value_size`).
pub const MAX_VALUE: usize = 512 << 10;
/// Most operations of a transaction.
pub const MAX_OPERATIONS: usize = 64;
/// The largest transaction (`txn_max_req_len`), as JSON with its values in base64; some room is left for its frame.
pub const MAX_TRANSACTION: usize = MAX_VALUE - (8 << 10);

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The whole key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// What it was changed at last, for compare-and-set.
    pub modified: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawPair {
    key: String,
    value: Option<String>,
    modify_index: u64,
}

/// When a key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In any case.
    Always,
    /// Only if there is no such key.
    Absent,
    /// Only if it was last changed at this.
    Unchanged(u64),
}

impl When {
    fn cas(self) -> Option<u64> {
        match self {
            Self::Always => None,
            Self::Absent => Some(0),
            Self::Unchanged(modified) => Some(modified),
        }
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes a key.
    Put {
        /// The whole key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// When it is written; the whole transaction fails otherwise.
        when: When,
    },
    /// Deletes a key.
    Delete {
        /// The whole key.
        key: String,
        /// When; `Absent` makes no sense here, and fails where the key is there.
        when: When,
    },
    /// Does nothing, and fails the whole transaction unless the key was last changed at this.
    Check {
        /// The whole key.
        key: String,
        /// Where it stands.
        modified: u64,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "UPPERCASE")]
struct RawOperation {
    kv: RawKv,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RawKv {
    verb: &'static str,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

impl Operation {
    fn raw(&self) -> RawOperation {
        let (verb, key, value, index) = match self {
            Self::Put { key, value, when } => {
                let verb = if *when == When::Always { "set" } else { "cas" };
                (verb, key, Some(STANDARD.encode(value)), when.cas())
            }
            Self::Delete { key, when: When::Always } => ("delete", key, None, None),
            Self::Delete { key, when } => ("delete-cas", key, None, when.cas()),
            Self::Check { key, modified } => ("check-index", key, None, Some(*modified)),
        };
        RawOperation { kv: RawKv { verb, key: key.clone(), value, index } }
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transacted {
    /// All of it was done.
    Done,
    /// Nothing of it was, because of these: the number of the operation, and what Consul says of it.
    Refused(Vec<(usize, String)>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawTransacted {
    results: Option<Vec<RawResult>>,
    errors: Option<Vec<RawFault>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct RawResult {
    kv: Option<RawChanged>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawChanged {
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawFault {
    op_index: usize,
    what: String,
}

fn path(key: &str) -> String {
    format!("/v1/kv/{}", escape(key, Slash::Kept))
}

fn pair(raw: RawPair) -> Result<Pair, String> {
    let value = STANDARD.decode(raw.value.unwrap_or_default());
    let value = value.map_err(|error| format!("{}: {error}", raw.key))?;
    Ok(Pair { key: raw.key, value, modified: raw.modify_index })
}

impl Client {
    /// One key, or nothing.
    pub async fn get(&self, key: &str, read: Read) -> Result<Answer<Option<Pair>>, ConsulError> {
        let answer = self.pairs(Asked::new(Method::GET, path(key)), read).await?;
        Ok(Answer { index: answer.index, value: answer.value.into_iter().next() })
    }

    /// Every key with this prefix, ordered.
    pub async fn list(&self, prefix: &str, read: Read) -> Result<Answer<Vec<Pair>>, ConsulError> {
        self.pairs(Asked::new(Method::GET, path(prefix)).with("recurse", ""), read).await
    }

    async fn pairs(&self, asked: Asked, read: Read) -> Result<Answer<Vec<Pair>>, ConsulError> {
        let came = self.read(asked, read).await?;
        if came.status == StatusCode::NOT_FOUND {
            return Ok(Answer { value: Vec::new(), index: came.index() });
        }
        let answer: Answer<Vec<RawPair>> = came.answer()?;
        let pairs = answer.value.into_iter().map(pair).collect::<Result<Vec<_>, _>>();
        let malformed = |reason| ConsulError::Malformed { address: came.address, path: came.path, reason };
        Ok(Answer { value: pairs.map_err(malformed)?, index: answer.index })
    }

    /// The names of every key with this prefix.
    pub async fn keys(&self, prefix: &str, read: Read) -> Result<Answer<Vec<String>>, ConsulError> {
        let came = self.read(Asked::new(Method::GET, path(prefix)).with("keys", ""), read).await?;
        match came.status {
            StatusCode::NOT_FOUND => Ok(Answer { value: Vec::new(), index: came.index() }),
            _ => came.answer(),
        }
    }

    /// Writes a key. False: `when` was not the case, and nothing was written.
    pub async fn put(&self, key: &str, value: Vec<u8>, when: When) -> Result<bool, ConsulError> {
        if value.len() > MAX_VALUE {
            let (key, size) = (key.to_owned(), value.len());
            return Err(ConsulError::ValueTooLarge { key, size, limit: MAX_VALUE });
        }
        let mut asked = Asked::new(Method::PUT, path(key)).body(value);
        if let Some(cas) = when.cas() {
            asked = asked.with("cas", cas.to_string());
        }
        self.ask(asked).await?.json()
    }

    /// Deletes a key. False: `when` was not the case. A key that is not there is no error.
    pub async fn delete(&self, key: &str, when: When) -> Result<bool, ConsulError> {
        let mut asked = Asked::new(Method::DELETE, path(key));
        if let Some(cas) = when.cas() {
            asked = asked.with("cas", cas.to_string());
        }
        self.ask(asked).await?.json()
    }

    /// Does all of it, or nothing: at most `MAX_OPERATIONS`, of `MAX_TRANSACTION` bytes together.
    pub async fn transact(&self, operations: &[Operation]) -> Result<Transacted, ConsulError> {
        Ok(match self.transact_at(operations).await? {
            Ok(_) => Transacted::Done,
            Err(faults) => Transacted::Refused(faults),
        })
    }

    /// As `transact`, and says what the last key that was written was changed at (0 if none was), or what is in the way.
    pub async fn transact_at(
        &self,
        operations: &[Operation],
    ) -> Result<Result<u64, Vec<(usize, String)>>, ConsulError> {
        if operations.len() > MAX_OPERATIONS {
            let operations = operations.len();
            return Err(ConsulError::TransactionTooLarge { operations, limit: MAX_OPERATIONS });
        }
        let raw: Vec<_> = operations.iter().map(Operation::raw).collect();
        let body = serde_json::to_vec(&raw).expect("plain fields");
        if body.len() > MAX_TRANSACTION {
            let (key, size) = ("a transaction".to_owned(), body.len());
            return Err(ConsulError::ValueTooLarge { key, size, limit: MAX_TRANSACTION });
        }
        let came = self.ask(Asked::new(Method::PUT, "/v1/txn".to_owned()).body(body)).await?;
        let RawTransacted { results, errors } = came.json()?;
        let last = results.unwrap_or_default().pop().and_then(|result| result.kv);
        let faults = errors.unwrap_or_default().into_iter().map(|fault| (fault.op_index, fault.what));
        let faults: Vec<_> = faults.collect();
        // A key that may not be written is told as a conflict is, which it is not.
        if let Some((_, said)) = faults.iter().find(|(_, what)| what.contains("Permission denied")) {
            return Err(ConsulError::Denied { address: came.address, path: came.path, said: said.clone() });
        }
        match came.status {
            StatusCode::OK => Ok(Ok(last.map_or(0, |changed| changed.modify_index))),
            _ => Ok(Err(faults)),
        }
    }
}
