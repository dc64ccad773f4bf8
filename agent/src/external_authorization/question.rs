//! What a provider is asked about a request or a connection: a pure function of what is known. All that it is sent stands
//! here, and where answers are kept, all of it is in their key.

use std::net::SocketAddr;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use baremesh_model::external_authorization::{CheckProtocol, ExtensionProvider, ShownBody};
use baremesh_model::http::RequestHead;
use baremesh_model::identity::Identity;
use bytes::Bytes;

use super::cache::QuestionKey;
use super::grpc;
use crate::snapshot::LocalEndpoint;

/// What is known of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peers<'a> {
    /// The service that is called.
    pub local: &'a LocalEndpoint,
    /// Who calls; nobody over plaintext.
    pub source: Option<&'a Identity>,
    /// Where the connection comes from.
    pub client: SocketAddr,
    /// The server name of the mesh's own TLS, where there is one.
    pub server_name: Option<&'a str>,
}

/// What is known of a request.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// Its head.
    pub head: &'a RequestHead,
    /// As much of its body as the provider is to see, and whether there is more.
    pub body: Option<&'a (Bytes, bool)>,
    /// How many bytes the body has, where that is known.
    pub length: Option<u64>,
}

/// What is sent.
#[derive(Debug, Clone)]
pub enum Question {
    /// A request, with its body.
    Http(Box<RequestHead>, Bytes),
    /// A message of gRPC.
    Grpc(Bytes),
}

impl Question {
    /// About a request. `now` is not asked where answers are kept: it could not be part of their key.
    pub fn of_request(
        provider: &ExtensionProvider,
        peers: Peers<'_>,
        shown: Shown<'_>,
        now: SystemTime,
    ) -> Self {
        match &provider.protocol {
            CheckProtocol::Http(check) => {
                let body = shown.body.map(|(bytes, is_cut)| ShownBody { bytes, is_cut: *is_cut });
                let mut head = check.head(shown.head, body);
                let body = shown.body.map(|(bytes, _)| bytes.clone()).unwrap_or_default();
                // A number may stand in a field.
                let _ = head.headers.set("content-length", body.len().to_string().as_bytes());
                Self::Http(Box::new(head), body)
            }
            CheckProtocol::Grpc => Self::Grpc(grpc::question(provider, peers, Some(shown), now)),
        }
    }

    /// About a connection of bytes; none over HTTP, where there is no request to show.
    pub fn of_bytes(provider: &ExtensionProvider, peers: Peers<'_>, now: SystemTime) -> Option<Self> {
        match &provider.protocol {
            CheckProtocol::Http(_) => None,
            CheckProtocol::Grpc => Some(Self::Grpc(grpc::question(provider, peers, None, now))),
        }
    }

    /// What stands for it among answers that are kept: all that is sent, who calls, and what is called.
    pub fn key(&self, peers: Peers<'_>) -> QuestionKey {
        let mut digest = Context::new(&SHA256);
        // Each part with its length: no other parts read the same.
        let mut part = |bytes: &[u8]| {
            digest.update(&(bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        };
        part(peers.local.service.to_string().as_bytes());
        part(peers.local.advertised.port().to_string().as_bytes());
        part(peers.source.map(Identity::to_string).unwrap_or_default().as_bytes());
        match self {
            Self::Http(head, body) => {
                for text in [&head.method, &head.authority, &head.target] {
                    part(text.as_bytes());
                }
                for (name, value) in head.headers.lines() {
                    part(name);
                    part(value);
                }
                // A field has a name and this has none: where fields end and the body begins is told.
                part(b"");
                part(body);
            }
            Self::Grpc(message) => part(message),
        }
        let mut key = QuestionKey::default();
        key.copy_from_slice(digest.finish().as_ref());
        key
    }
}
