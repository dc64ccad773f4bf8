use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use baremesh_model::external_authorization::{
    Changes, CheckAnswer, Denial, FieldAction, FieldChange, PARTIAL_BODY,
};
use baremesh_model::http::{Headers, RequestHead, Version};
use baremesh_model::identity::Identity;
use bytes::Bytes;
use prost::Message as _;

use super::messages::{
    BoolValue, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, QueryParameter, RpcStatus,
};
use super::question::{Peers, Question, Shown};
use super::*;
use crate::snapshot::tests::{host, mesh, registration};
use crate::snapshot::{LocalEndpoint, Snapshot};

const ORDERS: &str = "name = \"orders\"\nports = [{ port = 7000, protocol = \"http\" }]\nuser = 7\n";

fn state(config: &str, policies: &str, previous: Option<&Snapshot>) -> Snapshot {
    let text = format!("[[MeshConfig]]\nextensionProviders = [{config}]\n{policies}");
    Snapshot::build(&mesh(&text), &[registration(ORDERS)], &host(), 15008, previous).expect("a snapshot")
}

fn policy(name: &str, provider: &str, rule: &str) -> String {
    format!(
        "[[AuthorizationPolicy]]\nname = \"{name}\"\naction = \"CUSTOM\"\nprovider = {{ name = \"{provider}\" }}\nrules = [{rule}]\n"
    )
}

fn grpc_provider(name: &str, more: &str) -> String {
    format!("{{ name = \"{name}\", envoyExtAuthzGrpc = {{ service = \"127.0.0.1\", port = 9000{more} }} }}")
}

fn local(snapshot: &Snapshot) -> Arc<LocalEndpoint> {
    let address = SocketAddr::from(([10, 0, 0, 1], 7000));
    Arc::clone(snapshot.advertised(address).expect("orders is here"))
}

fn head(fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead {
        method: "POST".into(),
        authority: "orders:7000".into(),
        target: "/a?b=c".into(),
        version: Version::Http2,
        ..RequestHead::default()
    };
    for (name, value) in fields {
        head.headers.append(name, value.as_bytes()).expect("a field");
    }
    head
}

fn peers<'a>(local: &'a LocalEndpoint, source: Option<&'a Identity>, port: u16) -> Peers<'a> {
    let client = SocketAddr::new(IpAddr::from([10, 0, 0, 9]), port);
    Peers { local, source, client, server_name: Some("orders.default.mesh.internal") }
}

fn shown<'a>(head: &'a RequestHead, body: Option<&'a (Bytes, bool)>) -> Shown<'a> {
    Shown { head, body, length: Some(5) }
}

fn web() -> Identity {
    Identity::parse("spiffe://mesh.internal/ns/default/sa/web").expect("an identity")
}

fn read(question: &Question) -> CheckRequest {
    let Question::Grpc(framed) = question else { panic!("a message") };
    assert_eq!((framed[0], framed[1..5].to_vec()), (0, (framed.len() as u32 - 5).to_be_bytes().to_vec()));
    CheckRequest::decode(&framed[5..]).expect("a message")
}

#[test]
fn a_question_says_who_calls_whom_with_what() {
    let snapshot =
        state(&grpc_provider("p", ", includeRequestBodyInCheck = { maxRequestBytes = 3 }"), "", None);
    let (local, web) = (local(&snapshot), web());
    let provider = snapshot.providers.get("p").expect("a provider");
    let fields = [("x-a", "1"), ("x-a", "2"), ("x-request-id", "id"), ("content-length", "5")];
    let body = (Bytes::from_static(b"abc"), true);
    let now = SystemTime::UNIX_EPOCH + Duration::new(7, 8);
    let question = Question::of_request(
        &provider.definition,
        peers(&local, Some(&web), 5),
        shown(&head(&fields), Some(&body)),
        now,
    );
    let attributes = read(&question).attributes.expect("attributes");
    let (source, destination) = (attributes.source.expect("one"), attributes.destination.expect("one"));
    assert_eq!(source.principal, "spiffe://mesh.internal/ns/default/sa/web");
    assert_eq!(destination.principal, "spiffe://mesh.internal/ns/default/sa/orders");
    let socket = |peer: &messages::Peer| {
        let at = peer.address.clone().and_then(|address| address.socket_address).expect("an address");
        (at.address, at.port_value)
    };
    assert_eq!(socket(&source), ("10.0.0.9".to_owned(), Some(5)));
    assert_eq!(socket(&destination), ("10.0.0.1".to_owned(), Some(7000)));
    assert_eq!(attributes.tls_session.expect("TLS").sni, "orders.default.mesh.internal");
    let request = attributes.request.expect("a request");
    let time = request.time.expect("a time");
    assert_eq!((time.seconds, time.nanos), (7, 8));
    let http = request.http.expect("a request");
    assert_eq!(
        (&*http.method, &*http.path, &*http.host, &*http.scheme),
        ("POST", "/a?b=c", "orders:7000", "http")
    );
    assert_eq!((&*http.id, http.size, &*http.protocol, &*http.body), ("id", 5, "HTTP/2", "abc"));
    for (name, value) in
        [("x-a", "1,2"), (":path", "/a?b=c"), (":authority", "orders:7000"), (PARTIAL_BODY, "true")]
    {
        assert_eq!(http.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
}

#[test]
fn answers_are_kept_for_questions_that_are_the_same_in_all_that_is_sent() {
    let snapshot = state(&grpc_provider("p", ", cache = { ttl = \"10s\" }"), "", None);
    let (local, web) = (local(&snapshot), web());
    let provider = &snapshot.providers.get("p").expect("a provider").definition;
    let ask = |fields: &[(&str, &str)], source, port, at: u64| {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
        let peers = peers(&local, source, port);
        let question = Question::of_request(provider, peers, shown(&head(fields), None), now);
        (question.key(peers), read(&question).encode_to_vec())
    };
    let (key, sent) = ask(&[("x-user", "a"), ("x-request-id", "1"), ("traceparent", "x")], Some(&web), 1, 1);
    // What differs from request to request is not in the key, and so it is not sent either.
    assert_eq!((key, sent), ask(&[("x-user", "a"), ("x-request-id", "2")], Some(&web), 2, 2));
    let other = Identity::parse("spiffe://mesh.internal/ns/default/sa/other").expect("an identity");
    for (fields, source) in [
        (&[("x-user", "b")][..], Some(&web)),
        (&[("x-user", "a"), ("x-b", "")], Some(&web)),
        (&[("x-user", "a")], Some(&other)),
        (&[("x-user", "a")], None),
    ] {
        assert_ne!(key, ask(fields, source, 1, 1).0, "{fields:?} {source:?}");
    }
    // Without answers that are kept all of it is sent.
    let snapshot = state(&grpc_provider("p", ""), "", None);
    let provider = &snapshot.providers.get("p").expect("a provider").definition;
    let peers = peers(&local, None, 1);
    let question = Question::of_request(
        provider,
        peers,
        shown(&head(&[("x-request-id", "1")]), None),
        SystemTime::UNIX_EPOCH,
    );
    let http = read(&question).attributes.and_then(|all| all.request).expect("a request");
    assert!(http.time.is_some() && http.http.expect("a request").headers.contains_key("x-request-id"));
}

#[test]
fn parts_of_a_question_over_http_are_not_taken_for_each_other() {
    let provider = "{ name = \"p\", envoyExtAuthzHttp = { service = \"127.0.0.1\", port = 9000, includeRequestHeadersInCheck = [\"x-*\"], includeRequestBodyInCheck = { maxRequestBytes = 9 } } }";
    let snapshot = state(provider, "", None);
    let local = local(&snapshot);
    let provider = &snapshot.providers.get("p").expect("a provider").definition;
    let peers = peers(&local, None, 1);
    let key = |fields: &[(&str, &str)], body: &[u8]| {
        let body = (Bytes::copy_from_slice(body), false);
        Question::of_request(provider, peers, shown(&head(fields), Some(&body)), SystemTime::now()).key(peers)
    };
    let keys = [
        key(&[("x-a", "1")], b""),
        key(&[("x-a", "1"), ("x-b", "")], b""),
        key(&[("x-a", "1x-b")], b""),
        key(&[("x-a", "")], b"1"),
        key(&[("x-a", "1")], b"1"),
        key(&[], b"x-a1"),
    ];
    for (at, key) in keys.iter().enumerate() {
        assert!(!keys[at + 1..].contains(key), "{at}");
    }
    assert_eq!(key(&[("x-a", "1"), ("y", "2")], b""), keys[0], "what is not shown is no part of it");
}

fn option(name: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.into(), value: value.into(), raw_value: Bytes::new() }),
        append: append.map(|value| BoolValue { value }),
        append_action,
    }
}

fn framed(response: &CheckResponse) -> Bytes {
    let message = response.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat().into()
}

#[test]
fn an_answer_is_read_as_envoy_reads_it() {
    let ok = OkHttpResponse {
        headers: vec![
            option("X-Set", "1", None, 0),
            option("x-append", "2", Some(true), 0),
            option("x-absent", "3", None, 1),
            option("x-over", "4", None, 2),
            option("x-there", "5", None, 3),
        ],
        headers_to_remove: vec!["x-gone".into()],
        response_headers_to_add: vec![option("x-answer", "6", None, 0), option("x-one", "7", Some(false), 0)],
        query_parameters_to_set: vec![QueryParameter { key: "a".into(), value: "b".into() }],
        query_parameters_to_remove: vec!["c".into()],
    };
    let said =
        grpc::read(Some(0), framed(&CheckResponse { ok_response: Some(ok), ..CheckResponse::default() }));
    let change = |action, name: &str, value: &str| FieldChange {
        action,
        name: name.into(),
        value: value.as_bytes().into(),
    };
    let expected = Changes {
        request: vec![
            change(FieldAction::Overwrite, "x-set", "1"),
            change(FieldAction::Append, "x-append", "2"),
            change(FieldAction::AddIfAbsent, "x-absent", "3"),
            change(FieldAction::Overwrite, "x-over", "4"),
            change(FieldAction::OverwriteIfExists, "x-there", "5"),
        ],
        removed: vec!["x-gone".into()],
        query: vec![("a".into(), "b".into())],
        query_removed: vec!["c".into()],
        answer: vec![
            change(FieldAction::Append, "x-answer", "6"),
            change(FieldAction::Overwrite, "x-one", "7"),
        ],
    };
    assert_eq!(said, CheckAnswer::Allowed(expected));
    let denied = |code: i32, response: Option<DeniedHttpResponse>| {
        let status = Some(RpcStatus { code, message: "no".into() });
        grpc::read(Some(0), framed(&CheckResponse { status, denied_response: response, ok_response: None }))
    };
    let mut headers = Headers::default();
    headers.append("x-why", b"1").expect("a field");
    let response = DeniedHttpResponse {
        status: Some(HttpStatus { code: 401 }),
        headers: vec![option("x-why", "1", None, 0), option("content-length", "9", None, 0)],
        body: "no entry".into(),
    };
    let expected = Denial { status: 401, headers, body: b"no entry"[..].into() };
    assert_eq!(denied(7, Some(response)), CheckAnswer::Denied(expected));
    let plain = Denial { status: 403, headers: Headers::default(), body: [].into() };
    assert_eq!(denied(16, None), CheckAnswer::Denied(plain.clone()));
    let odd = DeniedHttpResponse { status: Some(HttpStatus { code: 99 }), ..DeniedHttpResponse::default() };
    assert_eq!(denied(16, Some(odd)), CheckAnswer::Denied(plain));
}

#[test]
fn what_is_no_answer_is_none() {
    let whole = framed(&CheckResponse::default());
    assert!(matches!(grpc::read(Some(0), whole.clone()), CheckAnswer::Allowed(_)), "an empty one allows");
    let check = |status, message: Bytes| {
        assert!(
            matches!(grpc::read(status, message.clone()), CheckAnswer::Failed(_)),
            "{status:?} {message:?}"
        );
    };
    check(None, whole.clone());
    check(Some(14), whole);
    check(Some(0), Bytes::new());
    check(Some(0), Bytes::from_static(&[0, 0, 0, 0]));
    check(Some(0), Bytes::from_static(&[1, 0, 0, 0, 0]));
    check(Some(0), Bytes::from_static(&[0, 0, 0, 0, 1]));
    check(Some(0), Bytes::from_static(&[0, 0, 0, 0, 0, 0]));
    check(Some(0), Bytes::from_static(&[0, 0, 0, 0, 2, 0x0a, 0xff]));
    proptest::proptest!(|(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64))| {
        _ = grpc::read(Some(0), bytes.into());
    });
}

#[test]
fn a_provider_keeps_what_it_said_until_it_or_its_policies_change() {
    let rule = policy("a", "p", "{}");
    let first = state(&grpc_provider("p", ", cache = { ttl = \"10s\" }"), &rule, None);
    let of = |snapshot: &Snapshot| Arc::clone(snapshot.providers.get("p").expect("a provider"));
    let provider = of(&first);
    let same = state(&grpc_provider("p", ", cache = { ttl = \"10s\" }"), &rule, Some(&first));
    assert!(Arc::ptr_eq(&provider, &of(&same)));
    for (config, rule) in [
        (grpc_provider("p", ", cache = { ttl = \"11s\" }"), rule),
        (
            grpc_provider("p", ", cache = { ttl = \"10s\" }"),
            policy("a", "p", "{ to = [{ operation = { paths = [\"/\"] } }] }"),
        ),
    ] {
        let changed = of(&state(&config, &rule, Some(&first)));
        assert!(!Arc::ptr_eq(&provider, &changed) && Arc::ptr_eq(&provider.tally, &changed.tally));
    }
}

#[test]
fn the_cache_is_bounded_and_forgets_in_time() {
    let cache = DecisionCache::new(Duration::from_secs(10));
    let start = Instant::now();
    let allowed = Arc::new(CheckAnswer::Allowed(Changes::default()));
    let key = |number: usize| {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    };
    for number in 0..2 * MAX_CACHED {
        cache.keep(key(number), &allowed, start);
    }
    assert_eq!(cache.len(), MAX_CACHED);
    assert!(cache.find(&key(0), start).is_none() && cache.find(&key(2 * MAX_CACHED - 1), start).is_some());
    let later = start + Duration::from_secs(10);
    assert!(cache.find(&key(2 * MAX_CACHED - 1), later).is_none());
    cache.keep(key(0), &allowed, later);
    assert_eq!(cache.len(), 1, "what has ended goes with the next that comes");
    let set_cookie =
        FieldChange { action: FieldAction::Append, name: "set-cookie".into(), value: b"a=1"[..].into() };
    let mut headers = Headers::default();
    headers.append("set-cookie", b"a=1").expect("a field");
    let denial =
        |body: &[u8], headers| CheckAnswer::Denied(Denial { status: 403, headers, body: body.into() });
    for answer in [
        CheckAnswer::Failed(String::new()),
        CheckAnswer::Allowed(Changes { answer: vec![set_cookie], ..Changes::default() }),
        denial(b"", headers),
        denial(&[0; MAX_CACHED_SIZE + 1], Headers::default()),
    ] {
        cache.keep(key(1), &Arc::new(answer), later);
        assert!(cache.find(&key(1), later).is_none());
    }
    cache.keep(key(1), &Arc::new(denial(b"no", Headers::default())), later);
    assert!(cache.find(&key(1), later).is_some());
}

#[test]
fn nobody_is_asked_about_who_is_asked() {
    let at_orders = "{ name = \"p\", envoyExtAuthzGrpc = { service = \"orders\", port = 7000 } }";
    let everywhere =
        policy("all", "p", "{}").replace("name = \"all\"\n", "name = \"all\"\nnamespace = \"mesh-system\"\n");
    let asks = |config: &str| {
        let snapshot = state(config, &everywhere, None);
        let (local, web) = (local(&snapshot), web());
        let head = head(&[]);
        let (remote_ip, from) = (IpAddr::from([10, 0, 0, 9]), (Some(&web), IpAddr::from([10, 0, 0, 9])));
        let request =
            baremesh_model::authorization::Request { head: &head, token: None, remote_ip, allowed_by: &[] };
        let carried = baremesh_model::authorization::Carried::Request(&request);
        local
            .asks(from, (carried, &baremesh_model::authorization::Hello::Unread), &[])
            .map(|asks| asks.to_string())
    };
    let expected = "AuthorizationPolicy mesh-system/all asks the provider p";
    assert_eq!(asks(&grpc_provider("p", "")).as_deref(), Some(expected));
    assert_eq!(asks(at_orders), None);
    assert_eq!(asks(&at_orders.replace("7000", "7001")).as_deref(), Some(expected), "another port of it");
}

#[test]
fn room_is_taken_in_steps_and_no_host_takes_all_of_it() {
    let host = |last| IpAddr::from([10, 0, 0, last]);
    let room = Room::default();
    let mut step = room.take(host(1), 5).expect("room");
    assert_eq!((step.use_up(HELD_STEP), step.use_up(1)), (HELD_STEP - 5, 0));
    assert!(room.take(host(1), MAX_HELD_OF_HOST).is_none(), "with what it has that is too much");
    drop(step);
    let half = room.take(host(1), MAX_HELD_OF_HOST).expect("it was given back");
    assert!(room.take(host(1), 1).is_none());
    let other = room.take(host(2), MAX_HELD_OF_HOST).expect("others have theirs");
    assert!(room.take(host(3), 1).is_none(), "there is no more of it");
    drop((half, other));
    assert!(room.take(host(3), 1).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_name_is_looked_up_once_for_all_and_to_its_end() {
    let snapshot = state(&grpc_provider("p", ""), "", None);
    let provider = Arc::clone(snapshot.providers.get("p").expect("a provider"));
    let (looked, open) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
    let look_up = |found: Result<Arc<[SocketAddr]>, Arc<str>>| {
        let (looked, open) = (Arc::clone(&looked), Arc::clone(&open));
        async move || {
            looked.fetch_add(1, Ordering::Relaxed);
            let _open = open.acquire().await;
            found
        }
    };
    let none = || Err::<Arc<[SocketAddr]>, Arc<str>>("no such name".into());
    let waited = tokio::time::timeout(Duration::from_millis(1), provider.resolved(look_up(none()))).await;
    assert!(waited.is_err(), "who gives up waiting");
    let waited = tokio::time::timeout(Duration::from_millis(1), provider.resolved(look_up(none()))).await;
    assert!(waited.is_err() && looked.load(Ordering::Relaxed) == 1, "leaves the one lookup under way");
    open.add_permits(1);
    assert_eq!(provider.resolved(look_up(none())).await, none());
    assert_eq!(looked.load(Ordering::Relaxed), 1, "what was not found is known for a moment");
}
