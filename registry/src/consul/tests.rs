//! The client against servers that answer as Consul does on bad days. Consul itself is met by the stories.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::client::plain_dial;
use super::kv::{MAX_OPERATIONS, MAX_VALUE, Operation, Transacted, When};
use super::local::Known;
use super::query::{Consistency, Place, Read, Step};
use super::{Client, ConsulError, Settings};

/// Answers each connection with the next of `answers`, the last one again and again; notes what was asked.
async fn serve(answers: Vec<String>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut answers = answers.into_iter().peekable();
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = match answers.next() {
                Some(answer) if answers.peek().is_some() => answer,
                Some(last) => {
                    answers = vec![last.clone(), last.clone()].into_iter().peekable();
                    last
                }
                None => return,
            };
            let mut head = vec![0; 64 << 10];
            let mut length = 0;
            while !head[..length].windows(4).any(|window| window == b"\r\n\r\n") {
                match stream.read(&mut head[length..]).await {
                    Ok(read) if read > 0 => length += read,
                    _ => break,
                }
            }
            noted.lock().expect("held").push(String::from_utf8_lossy(&head[..length]).into_owned());
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    (address, asked)
}

fn answer(status: u16, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n{fields}\r\n{body}", body.len())
}

fn client(addresses: &[SocketAddr], more: &str) -> Client {
    let all: Vec<_> = addresses.iter().map(|address| format!("\"http://{address}\"")).collect();
    let text = format!("addresses = [{}]\n{more}", all.join(", "));
    let settings: Settings = toml::from_str(&text).expect("settings");
    Client::new(settings, plain_dial())
}

const NOW: Read = Read { consistency: Consistency::Leader, index: 0, wait: Duration::ZERO };

#[tokio::test]
async fn each_failure_says_where_what_and_what_to_do() {
    let check = async |answered: String, part: &str, reason: &str| {
        let (address, _) = serve(vec![answered]).await;
        let error = client(&[address], "").get("a", NOW).await.expect_err(part);
        let text = error.to_string();
        assert!(text.contains(&format!("http://{address}/v1/kv/a")), "{text}");
        assert!(text.contains(part), "{text}");
        assert_eq!(error.reason(), reason, "{text}");
    };
    check(answer(403, "", "Permission denied"), "token_file", "denied").await;
    check(answer(500, "", "rpc error making call: Permission denied"), "token_file", "denied").await;
    check(answer(500, "", "No cluster leader"), "most of its servers", "no_leader").await;
    check(answer(429, "", ""), "raise its limits", "too_many").await;
    check(answer(500, "", "disk\r\nfull"), "500: disk  full", "status").await;
    check(answer(200, "", "[{\"Key\":1}]"), "is this Consul", "malformed").await;
    check(
        answer(200, "", "[{\"Key\":\"a\",\"Value\":\"?\",\"ModifyIndex\":1}]"),
        "cannot be read",
        "malformed",
    )
    .await;
    check("HTTP/1.1 200 -\r\ncontent-length: 9\r\n\r\n[".to_owned(), "broke off", "broken").await;
    let huge = format!("HTTP/1.1 200 -\r\ncontent-length: {}\r\n\r\n", super::client::MAX_ANSWER + 1);
    check(huge, "larger than", "too_large").await;
}

#[tokio::test]
async fn another_address_answers_for_one_that_does_not_and_is_asked_first_from_then_on() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let (headless, headless_asked) = serve(vec![answer(500, "", "No cluster leader")]).await;
    let (well, well_asked) = serve(vec![answer(200, "X-Consul-Index: 9\r\n", "true")]).await;
    let client = client(&[gone, headless, well], "");
    assert!(client.put("a", b"1".to_vec(), When::Absent).await.expect("written"));
    assert!(client.put("a b/c", b"1".to_vec(), When::Unchanged(4)).await.expect("written"));
    assert_eq!(headless_asked.lock().expect("held").len(), 1);
    let asked = well_asked.lock().expect("held").clone();
    assert!(asked[1].starts_with("PUT /v1/kv/a%20b/c?cas=4 HTTP/1.1\r\n"), "{asked:?}");
}

#[tokio::test]
async fn a_change_whose_end_is_not_known_is_not_made_a_second_time_and_a_question_is() {
    let broken = || vec!["HTTP/1.1 200 -\r\ncontent-length: 9\r\n\r\nt".to_owned()];
    let ((first, _), (second, asked)) = (serve(broken()).await, serve(vec![answer(200, "", "[]")]).await);
    let error = client(&[first, second], "").put("a", b"1".to_vec(), When::Always).await.expect_err("broken");
    assert!(matches!(error, ConsulError::Broken { .. }), "{error}");
    assert!(asked.lock().expect("held").is_empty());
    assert_eq!(client(&[first, second], "").get("a", NOW).await.expect("read").value, None);
}

#[tokio::test]
async fn what_a_server_says_that_was_cut_off_from_the_leader_is_not_believed() {
    let bound = Read { consistency: Consistency::Stale(Duration::from_secs(5)), ..NOW };
    for fields in
        ["X-Consul-KnownLeader: false\r\n", "X-Consul-KnownLeader: true\r\nX-Consul-LastContact: 5001\r\n"]
    {
        let fresh = answer(200, "X-Consul-Index: 8\r\n", "{\"web\": null}");
        let (address, asked) = serve(vec![answer(200, fields, "{}"), fresh]).await;
        let services = client(&[address], "").services(bound).await.expect("read");
        assert_eq!((services.value.len(), services.index), (1, 8));
        let asked = asked.lock().expect("held").clone();
        assert!(asked[0].starts_with("GET /v1/catalog/services?stale ") && !asked[1].contains("stale"));
    }
    let known = "X-Consul-KnownLeader: true\r\nX-Consul-LastContact: 4999\r\n";
    let (address, asked) = serve(vec![answer(200, known, "{}")]).await;
    client(&[address], "").services(bound).await.expect("read");
    assert_eq!(asked.lock().expect("held").len(), 1);
}

#[tokio::test]
async fn follows_an_index_and_begins_anew_when_it_goes_back() {
    let at = |index: u64| answer(200, &format!("X-Consul-Index: {index}\r\n"), "[]");
    let (address, asked) = serve(vec![at(7), at(7), at(3), at(3), at(0)]).await;
    let client = client(&[address], "datacenter = \"dc2\"");
    let mut place = Place::default();
    let mut steps = Vec::new();
    for _ in 0..5 {
        let read = place.read(Consistency::Consistent, Duration::from_secs(1));
        steps.push(place.advance(client.instances("a/b", read).await.expect("read").index));
    }
    assert_eq!(steps, [Step::Changed, Step::Same, Step::Reset, Step::Changed, Step::Reset]);
    let asked = asked.lock().expect("held").clone();
    let first = "GET /v1/health/service/a%2Fb?consistent&dc=dc2 ";
    assert!(asked[0].starts_with(first) && asked[3].starts_with(first), "{asked:?}");
    assert!(asked[1].contains("&index=7&wait=1s&"), "{asked:?}");
}

#[tokio::test]
async fn a_token_is_read_anew_for_each_request_and_only_from_a_file_of_its_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("token");
    let write = |text: &str, mode: u32| {
        std::fs::write(&file, text).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("changed");
    };
    let (address, asked) = serve(vec![answer(200, "", "[]")]).await;
    let client = client(&[address], &format!("token_file = {:?}", file.display().to_string()));
    for token in ["first", "second"] {
        write(&format!("{token}\n"), 0o600);
        client.get("a", NOW).await.expect("read");
        let last = asked.lock().expect("held").last().cloned().expect("asked");
        assert!(last.contains(&format!("x-consul-token: {token}\r\n")), "{last}");
    }
    write("third", 0o644);
    assert!(matches!(client.get("a", NOW).await, Err(ConsulError::File(_))));
    write("two words", 0o600);
    assert!(client.get("a", NOW).await.expect_err("refused").to_string().contains("SecretID"));
    assert_eq!(asked.lock().expect("held").len(), 2, "nothing is asked without the token");
}

#[tokio::test]
async fn nothing_is_sent_that_consul_would_not_take() {
    let client = client(&["127.0.0.1:1".parse().expect("an address")], "");
    let large = client.put("a", vec![0; MAX_VALUE + 1], When::Always).await;
    assert!(matches!(large, Err(ConsulError::ValueTooLarge { .. })));
    let delete = Operation::Delete { key: "a".to_owned(), when: When::Always };
    let many = client.transact(&vec![delete; MAX_OPERATIONS + 1]).await;
    assert!(matches!(many, Err(ConsulError::TransactionTooLarge { .. })));
    let put = Operation::Put { key: "a".to_owned(), value: vec![0; MAX_VALUE], when: When::Always };
    assert!(matches!(client.transact(&[put]).await, Err(ConsulError::ValueTooLarge { .. })));
}

#[tokio::test]
async fn a_transaction_that_may_not_be_made_is_told_from_one_that_lost() {
    let refused = async |what: &str| {
        let said = format!("{{\"Results\":null,\"Errors\":[{{\"OpIndex\":0,\"What\":\"{what}\"}}]}}");
        let (address, _) = serve(vec![answer(409, "", &said)]).await;
        let delete = Operation::Delete { key: "a".to_owned(), when: When::Always };
        client(&[address], "").transact(&[delete]).await
    };
    let lost = "failed to set key \\\"a\\\", index is stale";
    let faults = vec![(0, "failed to set key \"a\", index is stale".to_owned())];
    assert_eq!(refused(lost).await.expect("asked"), Transacted::Refused(faults));
    let denied = refused("Permission denied").await;
    assert!(matches!(denied, Err(ConsulError::Denied { .. })), "{denied:?}");
}

#[tokio::test]
async fn what_a_consul_agent_has_lost_is_no_failure() {
    for lost in [answer(404, "", ""), answer(500, "", "Unknown check \"x\"")] {
        let (address, _) = serve(vec![lost]).await;
        let client = client(&[address], "");
        assert_eq!(client.update("x", super::local::Status::Passing, "").await.expect("told"), Known::Lost);
    }
    let (address, _) = serve(vec![answer(500, "", "other")]).await;
    assert!(client(&[address], "").deregister("x").await.is_err());
}

#[tokio::test]
async fn tls_without_its_files_is_refused_with_their_names() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let text = format!("addresses = [\"https://127.0.0.1:{port}\"]\nca_certificates = \"/nowhere/ca.pem\"");
    let settings: Settings = toml::from_str(&text).expect("settings");
    assert_eq!(settings.ca_certificates.as_deref(), Some(Path::new("/nowhere/ca.pem")));
    let error = Client::new(settings, plain_dial()).get("a", NOW).await.expect_err("no file");
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}
