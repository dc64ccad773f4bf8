//! The messages. Each is `{"type": …, "body": {…}}`. What a peer of another version adds, types and fields, is
//! ignored and counted; what it leaves out has a default where the protocol can do without.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest reason of a nack or a refusal, in bytes; what is longer is cut.
pub const MAX_REASON: usize = 1024;

/// What was read and not understood, since the start.
#[derive(Debug, Default)]
pub struct Unknown {
    messages: AtomicU64,
    fields: AtomicU64,
}

impl Unknown {
    /// Messages of unknown types.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Unknown fields of known messages.
    pub fn fields(&self) -> u64 {
        self.fields.load(Ordering::Relaxed)
    }
}

/// A message that is not one.
#[derive(Debug, thiserror::Error)]
#[error("not a message of the control protocol: {0}")]
pub struct MessageError(#[from] serde_json::Error);

/// A type of message.
pub trait Message: Serialize + DeserializeOwned {
    /// The type's name on the wire.
    const NAME: &'static str;
    /// The names of the fields.
    const FIELDS: &'static [&'static str];
}

macro_rules! message {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        impl Message for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

/// What an agent held when its last connection ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resume {
    /// The server's run that the version belongs to.
    pub epoch: u64,
    /// The version.
    pub version: u64,
    /// The digest of what the agent holds.
    pub digest: String,
    /// The subscription that it holds, where it is not the one that it asks for now.
    pub subscribe: Option<Vec<String>>,
}

message! {
    /// Agent: the first message.
    Hello {
        /// The agent's protocol version.
        protocol: u32,
        /// The agent's own version.
        agent_version: String,
        /// What the agent can do beyond its protocol version.
        capabilities: Vec<String>,
        /// What the agent holds already.
        resume: Option<Resume>,
        /// Whose endpoints it asks for: `*`, or services as `name.namespace`.
        subscribe: Vec<String>,
    }
}
message! {
    /// Agent: whose endpoints it asks for from now on.
    Subscribe {
        /// Counts up from 1; 0 is what `Hello` asked for.
        number: u64,
        /// `*`, or services as `name.namespace`.
        subscribe: Vec<String>,
    }
}
message! {
    /// Agent: all that its host runs. What was registered before and is not in it is deregistered.
    Register {
        /// Counts up; the result carries it.
        number: u64,
        /// One each; see `registration`. One that cannot be read is refused alone.
        registrations: Vec<serde_json::Value>,
    }
}
message! {
    /// Agent: everything up to this version is in force.
    Ack {
        /// The version.
        version: u64,
    }
}
message! {
    /// Agent: this version could not be put in force; the last good one stays.
    Nack {
        /// The version.
        version: u64,
        /// Why, for the operator.
        reason: String,
    }
}
/// What a host's checks have found of one of its services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    /// The service, as `name.namespace`.
    pub service: String,
    /// `healthy` or `unhealthy`; what is neither is ignored.
    pub health: String,
}
message! {
    /// Agent: what has changed in the health of what it registered. Only to servers that take it.
    Health {
        /// One a service that has changed.
        changes: Vec<Finding>,
    }
}
message! {
    /// Agent: still here.
    Renew {}
}
message! {
    /// Agent: leaving; its endpoints are to go at once.
    Goodbye {}
}
message! {
    /// Control: the answer to `Hello`.
    Welcome {
        /// The server's protocol version.
        protocol: u32,
        /// The server's own version.
        server_version: String,
        /// What the server can do beyond its protocol version.
        capabilities: Vec<String>,
        /// Seconds after which a silent host's endpoints go.
        lease_seconds: u64,
        /// The server's run: versions of different runs cannot be compared.
        epoch: u64,
        /// The mesh's settings, where there is a MeshConfig.
        mesh: Option<serde_json::Value>,
    }
}
/// Control: one entry, new or changed. In force only with the `Complete` that follows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upsert {
    /// `Kind/namespace/name`.
    pub key: String,
    /// The resource. Kept as text, since the digest is over the text.
    pub value: Box<RawValue>,
}
impl Message for Upsert {
    const NAME: &'static str = "Upsert";
    const FIELDS: &'static [&'static str] = &["key", "value"];
}
message! {
    /// Control: an entry that is gone. In force only with the `Complete` that follows.
    Delete {
        /// `Kind/namespace/name`.
        key: String,
    }
}
message! {
    /// Control: what was sent up to here is one consistent state.
    Complete {
        /// Its version.
        version: u64,
        /// The digest of all that the agent now holds.
        digest: String,
        /// Whether everything was sent, so that what was not is gone.
        full: bool,
        /// The number of the subscription that it satisfies.
        subscribed: u64,
    }
}
/// What became of one registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// The service, as `name.namespace`.
    pub service: String,
    /// Why it was refused; accepted where there is none.
    pub refused: Option<String>,
    /// Why it is accepted without some of its addresses, where it is.
    pub without: Option<String>,
}

impl Outcome {
    /// Why it is not in force as it was registered.
    pub fn fault(&self) -> Option<&str> {
        self.refused.as_deref().or(self.without.as_deref())
    }
}
message! {
    /// Control: what became of the registrations of a `Register`, in its order.
    RegisterResult {
        /// The number of the `Register`.
        number: u64,
        /// One a registration.
        results: Vec<Outcome>,
    }
}
message! {
    /// Control: the answer to `Renew`.
    Renewed {}
}
message! {
    /// Control: the last message of a session that the server ends, and why.
    Refused {
        /// What to do about it.
        reason: String,
    }
}

macro_rules! side {
    ($(#[$doc:meta])* $side:ident { $($name:ident),* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $side { $(#[allow(missing_docs)] $name($name)),* }
        impl $side {
            /// Reads a frame; `None` is a type that only another version knows.
            pub fn read(frame: &[u8], unknown: &Unknown) -> Result<Option<Self>, MessageError> {
                let envelope: Envelope<'_> = serde_json::from_slice(frame)?;
                match &*envelope.kind {
                    $($name::NAME => envelope.read(unknown).map(|message| Some(Self::$name(message))),)*
                    _ => {
                        unknown.messages.fetch_add(1, Ordering::Relaxed);
                        Ok(None)
                    }
                }
            }
        }
    };
}
side! {
    /// What an agent says.
    FromAgent { Hello, Subscribe, Register, Health, Ack, Nack, Renew, Goodbye }
}
side! {
    /// What the control server says.
    FromControl { Welcome, Upsert, Delete, Complete, RegisterResult, Renewed, Refused }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl Envelope<'_> {
    fn read<M: Message>(&self, unknown: &Unknown) -> Result<M, MessageError> {
        let fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(self.body.get())?;
        let surplus = fields.keys().filter(|field| !M::FIELDS.contains(&field.as_ref())).count();
        unknown.fields.fetch_add(surplus as u64, Ordering::Relaxed);
        Ok(serde_json::from_str(self.body.get())?)
    }
}

#[derive(Serialize)]
struct Outgoing<'a, M> {
    #[serde(rename = "type")]
    kind: &'static str,
    body: &'a M,
}

/// A message as a frame.
pub fn frame<M: Message>(message: &M) -> Vec<u8> {
    // Strings, numbers and values that were JSON already: no field has a key that JSON could not write.
    serde_json::to_vec(&Outgoing { kind: M::NAME, body: message }).expect("messages are JSON")
}

/// The frame of an `Upsert` whose value is text that was JSON already.
pub fn upsert_frame(key: &str, text: &str) -> Vec<u8> {
    let key = serde_json::Value::from(key);
    format!(r#"{{"type":"Upsert","body":{{"key":{key},"value":{text}}}}}"#).into_bytes()
}

/// A text from a peer, cut to the limit and free of control characters, so that it can be shown and logged.
pub fn printable(text: &str) -> String {
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let hello = Hello { protocol: 1, subscribe: vec!["*".into()], ..Hello::default() };
        let read = FromAgent::read(&frame(&hello), &Unknown::default()).expect("a message");
        assert!(matches!(read, Some(FromAgent::Hello(Hello { protocol: 1, .. }))));
        let text = r#"{"b":1.50,"a":"\u0041"}"#;
        let read = FromControl::read(&upsert_frame("Service/a/\"b", text), &Unknown::default());
        let Ok(Some(FromControl::Upsert(upsert))) = read else { panic!("{read:?}") };
        // The digest is over the text, so that it must come through byte for byte.
        assert_eq!((upsert.key.as_str(), upsert.value.get()), ("Service/a/\"b", text));
    }

    #[test]
    fn ignores_and_counts_what_other_versions_add() {
        let unknown = Unknown::default();
        let newer = br#"{"type":"Rebalance","body":{"x":1}}"#;
        assert!(FromAgent::read(newer, &unknown).expect("ignored").is_none());
        let ack = br#"{"type":"Ack","body":{"version":7,"lag":1,"mood":{}},"trace":"x"}"#;
        let read = FromAgent::read(ack, &unknown).expect("a message");
        assert!(matches!(read, Some(FromAgent::Ack(Ack { version: 7 }))));
        assert_eq!((unknown.messages(), unknown.fields()), (1, 2));
        // Left out by an older peer: the default.
        let complete = br#"{"type":"Complete","body":{"version":7}}"#;
        let read = FromControl::read(complete, &unknown).expect("a message");
        assert!(matches!(read, Some(FromControl::Complete(Complete { full: false, subscribed: 0, .. }))));
    }

    #[test]
    fn refuses_what_is_no_message() {
        for bad in [
            &b""[..],
            b"{}",
            b"[]",
            b"\xff\xfe",
            br#"{"type":"Ack"}"#,
            br#"{"type":"Ack","body":[]}"#,
            br#"{"type":"Ack","body":{"version":"7"}}"#,
            br#"{"type":"Ack","body":{"version":-1}}"#,
            br#"{"type":7,"body":{}}"#,
        ] {
            assert!(FromAgent::read(bad, &Unknown::default()).is_err(), "{bad:?}");
        }
        let deep = format!(r#"{{"type":"Register","body":{{"registrations":[{}]}}}}"#, "[".repeat(100_000));
        assert!(FromAgent::read(deep.as_bytes(), &Unknown::default()).is_err());
    }

    #[test]
    fn makes_foreign_text_printable() {
        assert_eq!(printable("a\nb\x1b[31m"), "a b [31m");
        assert_eq!(printable(&"é".repeat(MAX_REASON)).len(), MAX_REASON);
        assert_eq!(printable(&format!("a{}", "é".repeat(MAX_REASON))).len(), MAX_REASON - 1);
    }
}
