//! The calls as they stand on the wire: JSON over HTTP/2 over TLS, `POST /v1/join` and `POST /v1/certificates`.
//! Fields that are not known are ignored, so that versions apart understand each other. The wire's types stay in
//! this file; `answer` turns a request's bytes into a response.

use std::time::SystemTime;

use baremesh_model::identity::Identity;
use baremesh_model::name::{Domain, Label, TrustDomain};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::authority::SignedLeaf;
use crate::issued::{chain_from_pem, chain_to_pem};
use crate::leaf::LeafFacts;
use crate::service::{CaService, IssueItem, IssueRequest, JoinAnswer, JoinRequest, Refusal};

/// The path of enrolment.
pub const JOIN_PATH: &str = "/v1/join";
/// The path of issuing.
pub const CERTIFICATES_PATH: &str = "/v1/certificates";
/// The largest body of a request. A whole batch takes less than half of it.
pub const MAX_BODY: usize = 64 * 1024;
/// The largest body of an answer: a whole batch with chains and room for longer names.
pub const MAX_ANSWER: usize = 1024 * 1024;

/// One call as it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path.
    pub path: &'a str,
    /// What the caller's verified certificate says, if it showed one.
    pub peer: Option<&'a LeafFacts>,
    /// The body, of at most `MAX_BODY`; a longer one is refused here, but better not collected at all.
    pub body: &'a [u8],
}

/// Answers one call. It blocks on the disk: async code calls it through `spawn_blocking`.
pub fn answer(service: &CaService, call: Call<'_>, now: SystemTime) -> Response<Bytes> {
    let answered = match (call.method, call.path) {
        (&Method::POST, JOIN_PATH) => answer_join(service, call.body, now),
        (&Method::POST, CERTIFICATES_PATH) => answer_issue(service, call, now),
        _ => Err(Refusal::NoSuchCall),
    };
    match answered {
        Ok(body) => respond(StatusCode::OK, body),
        Err(refusal) => respond(refusal.status(), to_body(&WireRefusal::from(&refusal)).unwrap_or_default()),
    }
}

fn respond(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn answer_join(service: &CaService, body: &[u8], now: SystemTime) -> Result<Bytes, Refusal> {
    let wire: WireJoin = from_body(body)?;
    let host = Label::new(&wire.host).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let request = JoinRequest { token: wire.token, host, request: from_base64(&wire.csr)? };
    let joined = service.join(&request, now)?;
    to_body(&WireJoined {
        host: joined.host.to_string(),
        chain: chain_to_pem(&joined.chain),
        roots: chain_to_pem(&joined.roots),
        trust_domain: joined.trust_domain.to_string(),
        domain: joined.domain.map(|domain| domain.to_string()),
    })
}

fn answer_issue(service: &CaService, call: Call<'_>, now: SystemTime) -> Result<Bytes, Refusal> {
    let node = call.peer.ok_or(Refusal::NoCredential)?;
    let wire: WireIssue = from_body(call.body)?;
    let items = wire.certificates.into_iter().map(|item| {
        let identity =
            Identity::parse(&item.identity).map_err(|error| Refusal::Malformed(error.to_string()))?;
        Ok(IssueItem { identity, request: from_base64(&item.csr)? })
    });
    let request = IssueRequest { items: items.collect::<Result<_, Refusal>>()? };
    let answers = service.issue(node, &request, now)?;
    let certificates = request.items.iter().zip(&answers).map(|(item, answer)| wire_answer(item, answer));
    to_body(&WireIssued { certificates: certificates.collect() })
}

fn wire_answer(item: &IssueItem, answer: &Result<SignedLeaf, Refusal>) -> WireAnswer {
    let (chain, refused) = match answer {
        Ok(signed) => (Some(chain_to_pem(&signed.chain)), None),
        Err(refusal) => (None, Some(WireRefusal::from(refusal))),
    };
    WireAnswer { identity: item.identity.to_string(), chain, refused }
}

/// What a host sends to join. It carries the token's secret, hence no `Debug`.
#[derive(Serialize, Deserialize)]
struct WireJoin {
    token: String,
    host: String,
    /// PKCS#10 in DER, base64.
    csr: String,
}

#[derive(Serialize, Deserialize)]
struct WireJoined {
    host: String,
    /// PEM, leaf first.
    chain: String,
    /// PEM.
    roots: String,
    trust_domain: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireIssue {
    certificates: Vec<WireItem>,
}

#[derive(Serialize, Deserialize)]
struct WireItem {
    identity: String,
    /// PKCS#10 in DER, base64.
    csr: String,
}

#[derive(Serialize, Deserialize)]
struct WireIssued {
    certificates: Vec<WireAnswer>,
}

#[derive(Serialize, Deserialize)]
struct WireAnswer {
    identity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<WireRefusal>,
}

#[derive(Serialize, Deserialize)]
struct WireRefusal {
    code: String,
    message: String,
}

impl From<&Refusal> for WireRefusal {
    fn from(refusal: &Refusal) -> Self {
        Self { code: refusal.code().to_owned(), message: refusal.to_string() }
    }
}

fn from_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    if body.len() > MAX_BODY {
        return Err(Refusal::Malformed(format!("its body is longer than {MAX_BODY} bytes")));
    }
    serde_json::from_slice(body).map_err(|error| Refusal::Malformed(error.to_string()))
}

fn from_base64(text: &str) -> Result<Vec<u8>, Refusal> {
    STANDARD.decode(text).map_err(|_| Refusal::Malformed("`csr` is not base64".to_owned()))
}

fn to_body(value: &impl Serialize) -> Result<Bytes, Refusal> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Refusal::unavailable(&error))
}

/// What the calling side sends and reads.
pub(crate) mod caller {
    use super::*;

    /// One certificate's answer: the chain, or the refusal's code and message.
    pub(crate) type Answer = Result<Vec<CertificateDer<'static>>, (String, String)>;

    pub(crate) fn join(token: &str, host: &Label, csr: &[u8]) -> Option<Bytes> {
        let csr = STANDARD.encode(csr);
        to_body(&WireJoin { token: token.to_owned(), host: host.to_string(), csr }).ok()
    }

    pub(crate) fn joined(body: &[u8]) -> Option<JoinAnswer> {
        let wire: WireJoined = serde_json::from_slice(body).ok()?;
        Some(JoinAnswer {
            host: Label::new(&wire.host).ok()?,
            chain: chain_from_pem(wire.chain.as_bytes())?,
            roots: chain_from_pem(wire.roots.as_bytes())?,
            trust_domain: TrustDomain::new(&wire.trust_domain).ok()?,
            domain: wire.domain.map(|domain| Domain::new(&domain)).transpose().ok()?,
        })
    }

    pub(crate) fn issue(items: &[IssueItem]) -> Option<Bytes> {
        let certificates = items.iter().map(|item| WireItem {
            identity: item.identity.to_string(),
            csr: STANDARD.encode(&item.request),
        });
        to_body(&WireIssue { certificates: certificates.collect() }).ok()
    }

    /// The answers in the order of the items; none when they do not match the items one by one.
    pub(crate) fn issued(body: &[u8], items: &[IssueItem]) -> Option<Vec<Answer>> {
        let wire: WireIssued = serde_json::from_slice(body).ok()?;
        if wire.certificates.len() != items.len() {
            return None;
        }
        let answers = wire.certificates.into_iter().zip(items).map(|(answer, item)| {
            let same = answer.identity == item.identity.to_string();
            match (answer.chain, answer.refused) {
                (Some(chain), None) if same => Some(Ok(chain_from_pem(chain.as_bytes())?)),
                (None, Some(refused)) if same => Some(Err((refused.code, refused.message))),
                _ => None,
            }
        });
        answers.collect()
    }

    /// Code and message of a refused call.
    pub(crate) fn refused(body: &[u8]) -> Option<(String, String)> {
        let wire: WireRefusal = serde_json::from_slice(body).ok()?;
        Some((wire.code, wire.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;
    use crate::ledger::TokenHost;
    use crate::testing::{Place, now, token};

    fn check(service: &CaService, path: &str, body: &[u8], expected: (u16, &str)) {
        let call = Call { method: &Method::POST, path, peer: None, body };
        let response = answer(service, call, now());
        let code = caller::refused(response.body()).map(|(code, _)| code).unwrap_or_default();
        assert_eq!((response.status().as_u16(), code.as_str()), expected);
    }

    #[test]
    fn refuses_what_is_no_call_without_falling_over() {
        let place = Place::new();
        let service = place.service();
        let long = vec![b' '; MAX_BODY + 1];
        let deep = "[".repeat(MAX_BODY);
        check(&service, "/v1/other", b"{}", (404, "no_such_call"));
        check(&service, CERTIFICATES_PATH, b"{\"certificates\":[]}", (401, "no_credential"));
        for body in [&b""[..], b"{}", b"[]", b"\xff", &long, deep.as_bytes()] {
            check(&service, JOIN_PATH, body, (400, "malformed"));
        }
        check(&service, JOIN_PATH, br#"{"token":"t","host":"UPPER","csr":""}"#, (400, "malformed"));
        check(&service, JOIN_PATH, br#"{"token":"t","host":"h1","csr":"?"}"#, (400, "malformed"));
        check(&service, JOIN_PATH, br#"{"token":"t","host":"h1","csr":""}"#, (400, "token_malformed"));
        let get = Call { method: &Method::GET, path: JOIN_PATH, peer: None, body: b"" };
        assert_eq!(answer(&service, get, now()).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn ignores_fields_of_later_versions() {
        let place = Place::new();
        let service = place.service();
        let token = token(&service, TokenHost::Any, &[], now()).reveal();
        let csr = STANDARD.encode(PrivateKey::generate().expect("a key").request().expect("a request"));
        let body = format!(r#"{{"token":"{token}","host":"h1","csr":"{csr}","labels":{{"a":1}}}}"#);
        let call = Call { method: &Method::POST, path: JOIN_PATH, peer: None, body: body.as_bytes() };
        let response = answer(&service, call, now());
        assert_eq!(response.status(), StatusCode::OK);
        let mut later: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
        later["later"] = serde_json::json!(["x"]);
        assert!(caller::joined(later.to_string().as_bytes()).is_some());
    }
}
