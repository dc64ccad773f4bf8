//! The head of a request of HTTP/1, as a caller writes it to be taken for somebody else: what a program is told of who
//! calls it. The first byte says what is proved: an identity and a certificate, an identity alone, or nothing.

use std::sync::LazyLock;

use baremesh_agent::proxy::http::forwarded_cert::{Proved, introduce};
use baremesh_agent::proxy::http::h1::writer::Pending;
use baremesh_agent::proxy::http::h1::{HttpLimits, Parser};
use baremesh_model::http::RequestHead;
use baremesh_model::identity::Identity;

static CALLER: LazyLock<Identity> =
    LazyLock::new(|| Identity::parse("spiffe://mesh/ns/a/sa/web").expect("one"));
static CALLEE: LazyLock<Identity> =
    LazyLock::new(|| Identity::parse("spiffe://mesh/ns/a/sa/orders").expect("one"));
const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub fn check(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let (mut parser, mut head) = (Parser::new(HttpLimits::default()), RequestHead::default());
    parser.feed(bytes);
    let Ok(Some(hop)) = parser.request(&mut head) else { return };
    let before: Vec<(String, Vec<u8>)> = fields(&head);
    let (source, expected) = match kind % 3 {
        0 => (None, None),
        1 => (
            Some(Proved { identity: &CALLER, certificate: Some(HASH) }),
            Some(format!("By={};Hash={HASH};Subject=\"\";URI={}", *CALLEE, *CALLER)),
        ),
        _ => (
            Some(Proved { identity: &CALLER, certificate: None }),
            Some(format!("By={};Subject=\"\";URI={}", *CALLEE, *CALLER)),
        ),
    };
    introduce(&mut head.headers, source, &CALLEE);
    // What else the caller said stands as it did.
    let mut wanted: Vec<_> = before.into_iter().filter(|(name, _)| !may_be_taken_for_it(name)).collect();
    wanted.extend(
        expected.iter().map(|value| ("x-forwarded-client-cert".to_owned(), value.clone().into_bytes())),
    );
    assert_eq!(fields(&head), wanted, "another field is gone, or came");
    // And on the wire, looked at without a parser.
    let mut pending = Pending::default();
    pending.request(&head, &hop).expect("what was read can be written");
    let written = pending.take().concat();
    let end = written.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let text = String::from_utf8_lossy(&written[..end]);
    let told: Vec<_> = text
        .split(['\r', '\n'])
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| may_be_taken_for_it(name))
        .map(|(_, value)| value.trim())
        .collect();
    assert_eq!(told, expected.iter().map(String::as_str).collect::<Vec<_>>(), "{text}");
}

fn fields(head: &RequestHead) -> Vec<(String, Vec<u8>)> {
    head.headers.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
}

/// Whether some program finds a field under `HTTP_X_FORWARDED_CLIENT_CERT`, where CGI (RFC 3875, section 4.1.18) and
/// what came after it have it: letters and digits stand for themselves, and servers put `_` for a dash or for anything.
fn may_be_taken_for_it(name: &str) -> bool {
    let variable: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    variable == "X_FORWARDED_CLIENT_CERT"
}
