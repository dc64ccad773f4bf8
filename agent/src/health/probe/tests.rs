//! Every kind against a real little server, or a real command.

use std::time::Instant;

use ::http::{HeaderMap, Request, Response};
use bytes::Bytes;
use h2::server::SendResponse;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::health::commands::Commands;
use crate::registration::check::{HttpGet, Scheme};
use baremesh_model::name::{Key, Label};

const LIMIT: Duration = Duration::from_secs(60);
/// For what is to time out.
const BRIEF: Duration = Duration::from_millis(300);

fn prober() -> Prober {
    Prober::new(Mark(None), Commands::Here(RunAs::of_this_process())).expect("a prober")
}

fn service() -> Key {
    Key::new(Label::new("default").expect("a label"), Label::new("orders").expect("a label"))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("an address");
    (listener, at)
}

fn get(at: SocketAddr) -> HttpGet {
    let path = "/healthz?a=1".parse().expect("a path");
    HttpGet { at, scheme: Scheme::Http, http2: false, path, headers: HeaderMap::new() }
}

async fn look(probe: Probe, limit: Duration) -> Result<(), String> {
    prober().look(&service(), &probe, limit).await
}

/// `None` passes; else what the reason says.
fn check(what: &str, result: &Result<(), String>, expected: Option<&str>) {
    match (result, expected) {
        (Ok(()), None) => {}
        (Err(reason), Some(part)) => assert!(reason.contains(part), "{what}: {reason} should say {part}"),
        (result, expected) => panic!("{what}: {result:?}, not {expected:?}"),
    }
}

/// Answers one connection with these bytes, and returns what was asked.
async fn answer_once(listener: TcpListener, answer: &'static [u8]) -> String {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let asked = head_of(&mut stream).await;
    // Whoever asks may have heard enough.
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    asked
}

async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole head"));
    }
    String::from_utf8(head).expect("text")
}

#[tokio::test]
async fn a_get_passes_by_its_status() {
    let long: &'static [u8] = Box::leak(
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD)).into_bytes().into_boxed_slice(),
    );
    for (answer, expected) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..], None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", None),
        // The body is not waited for.
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\nbeginning", None),
        (b"HTTP/1.0 200 OK\r\n\r\n", None),
        // A redirection is an answer.
        (b"HTTP/1.1 302 Found\r\nLocation: http://10.9.9.9/\r\n\r\n", None),
        (b"HTTP/1.1 399 Odd\r\n\r\n", None),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Some("/healthz?a=1 answered 400")),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Some("answered 503")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Some("asking 127.0.0.1")),
        (b"", Some("asking 127.0.0.1")),
        (long, Some("asking 127.0.0.1")),
    ] {
        let (listener, at) = listen().await;
        let (asked, result) =
            tokio::join!(answer_once(listener, answer), look(Probe::HttpGet(get(at)), LIMIT));
        check(&String::from_utf8_lossy(&answer[..answer.len().min(40)]), &result, expected);
        assert!(asked.starts_with("GET /healthz?a=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {at}\r\n")) && asked.contains("user-agent: baremesh-health/"));
    }
}

#[tokio::test]
async fn headers_are_sent_as_written() {
    let (listener, at) = listen().await;
    let mut get = get(at);
    get.headers.append("host", "orders.example".parse().expect("a value"));
    get.headers.append("user-agent", "me".parse().expect("a value"));
    get.headers.append("x-probe", "1".parse().expect("a value"));
    get.headers.append("x-probe", "2".parse().expect("a value"));
    let answer = b"HTTP/1.1 200 OK\r\n\r\n";
    let (asked, result) = tokio::join!(answer_once(listener, answer), look(Probe::HttpGet(get), LIMIT));
    assert_eq!(result, Ok(()));
    let mut lines: Vec<&str> = asked.lines().filter(|line| line.contains(": ")).collect();
    lines.sort_unstable();
    let expected = [
        "accept: */*",
        "connection: close",
        "host: orders.example",
        "user-agent: me",
        "x-probe: 1",
        "x-probe: 2",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn nobody_there_and_nobody_who_answers_are_told_apart() {
    let (listener, at) = listen().await;
    for probe in [
        Probe::HttpGet(get(at)),
        Probe::HttpGet(HttpGet { scheme: Scheme::Https, ..get(at) }),
        Probe::HttpGet(HttpGet { http2: true, ..get(at) }),
        Probe::Grpc { at, service: String::new() },
    ] {
        check("it hangs", &look(probe, BRIEF).await, Some("no answer within 300ms"));
    }
    assert_eq!(look(Probe::TcpSocket { at }, LIMIT).await, Ok(()), "it takes connections");
    drop(listener);
    for probe in
        [Probe::HttpGet(get(at)), Probe::TcpSocket { at }, Probe::Grpc { at, service: String::new() }]
    {
        check("it is gone", &look(probe, LIMIT).await, Some("connecting to 127.0.0.1"));
    }
}

fn tls(protocol: &[u8]) -> TlsAcceptor {
    let certified =
        rcgen::generate_simple_self_signed(vec!["not.this.name".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth();
    let mut config = config.with_single_cert(vec![certified.cert.der().clone()], key).expect("a pair");
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsAcceptor::from(std::sync::Arc::new(config))
}

#[tokio::test]
async fn inside_tls_whoever_answers_will_do() {
    let (listener, at) = listen().await;
    let served = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = tls(b"http/1.1").accept(stream).await.expect("TLS");
        let asked = head_of(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        asked
    };
    let probe = Probe::HttpGet(HttpGet { scheme: Scheme::Https, ..get(at) });
    let (asked, result) = tokio::join!(served, look(probe.clone(), LIMIT));
    assert_eq!((result, asked.starts_with("GET /healthz")), (Ok(()), true));
    let (_, result) = tokio::join!(
        async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        },
        look(probe, LIMIT)
    );
    check("plaintext", &result, Some("TLS with 127.0.0.1"));
}

/// Serves HTTP/2 on one connection.
async fn serve_h2<S, F>(stream: S, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request<Bytes>, SendResponse<Bytes>),
{
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        let reading = async {
            let mut read = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                read.extend_from_slice(&data);
            }
            read
        };
        tokio::pin!(reading);
        let read = tokio::select! {
            read = &mut reading => read,
            _ = std::future::poll_fn(|context| connection.poll_closed(context)) => return,
        };
        answer(Request::from_parts(head, read.into()), respond);
    }
}

#[tokio::test]
async fn a_port_of_http2_is_asked_over_http2() {
    for (scheme, status) in [(Scheme::Http, 200), (Scheme::Http, 500), (Scheme::Https, 200)] {
        let (listener, at) = listen().await;
        let answer = |request: Request<Bytes>, mut respond: SendResponse<Bytes>| {
            assert_eq!(request.uri().path_and_query().map(|path| path.as_str()), Some("/healthz?a=1"));
            let head = Response::builder().status(status).body(()).expect("a head");
            respond.send_response(head, true).expect("sent");
        };
        let served = async {
            let (stream, _) = listener.accept().await.expect("a connection");
            match scheme {
                Scheme::Http => serve_h2(stream, answer).await,
                Scheme::Https => serve_h2(tls(b"h2").accept(stream).await.expect("TLS"), answer).await,
            }
        };
        let probe = Probe::HttpGet(HttpGet { scheme, http2: true, ..get(at) });
        let (_, result) = tokio::join!(served, look(probe, LIMIT));
        check("HTTP/2", &result, (status == 500).then_some("answered 500"));
    }
}

/// What a gRPC server answers.
#[derive(Clone, Copy)]
enum Grpc {
    Serving(&'static [u8]),
    Status(&'static str),
    Broken,
    Endless,
    Http(u16),
}

#[tokio::test]
async fn grpc_passes_where_the_server_says_serving() {
    for (answer, expected) in [
        (Grpc::Serving(&[0, 0, 0, 0, 2, 0x08, 1]), None),
        (Grpc::Serving(&[0, 0, 0, 0, 2, 0x08, 2]), Some("it says NOT_SERVING")),
        (Grpc::Serving(&[0, 0, 0, 0, 2, 0x08, 9]), Some("it says 9")),
        (Grpc::Serving(&[0, 0, 0, 0, 0]), Some("it says UNKNOWN")),
        (Grpc::Serving(b""), Some("no HealthCheckResponse")),
        (Grpc::Serving(&[0, 0, 0, 0, 9, 0x08, 1]), Some("no HealthCheckResponse")),
        (Grpc::Status("5"), Some("does not know this service")),
        (Grpc::Status("12"), Some("add grpc.health.v1")),
        (Grpc::Status("14"), Some("UNAVAILABLE")),
        (Grpc::Status("-1"), Some("no status of gRPC's")),
        (Grpc::Broken, Some("stream error")),
        (Grpc::Endless, Some("longer than 4096")),
        (Grpc::Http(404), Some("is a gRPC server there?")),
    ] {
        let (listener, at) = listen().await;
        let served = async {
            let (stream, _) = listener.accept().await.expect("a connection");
            let answer = |request: Request<Bytes>, mut respond: SendResponse<Bytes>| {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.headers()["content-type"], "application/grpc");
                assert_eq!(&request.body()[..], [&[0, 0, 0, 0, 6, 0x0a, 4][..], b"a.B1"].concat());
                let head = Response::builder().header("content-type", "application/grpc");
                let head = match answer {
                    Grpc::Status(status) => head.header("grpc-status", status),
                    Grpc::Http(status) => head.status(status),
                    _ => head,
                };
                let ends = matches!(answer, Grpc::Status(_) | Grpc::Http(_));
                let mut body = respond.send_response(head.body(()).expect("a head"), ends).expect("sent");
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().expect("a value"));
                match answer {
                    Grpc::Serving(message) => {
                        body.send_data(Bytes::from_static(message), false).expect("sent");
                        body.send_trailers(trailers).expect("sent");
                    }
                    Grpc::Endless => body.send_data(Bytes::from(vec![0; 20_000]), true).expect("sent"),
                    Grpc::Broken => body.send_reset(h2::Reason::INTERNAL_ERROR),
                    Grpc::Status(_) | Grpc::Http(_) => {}
                }
            };
            serve_h2(stream, answer).await;
        };
        let probe = Probe::Grpc { at, service: "a.B1".to_owned() };
        let looking = look(probe, LIMIT);
        let result = tokio::select! {
            result = looking => result,
            () = async { served.await; std::future::pending::<()>().await } => unreachable!("it is pending"),
        };
        check("gRPC", &result, expected);
    }
}

fn exec(words: &[&str]) -> Probe {
    Probe::Exec(Exec { command: words.iter().map(ToString::to_string).collect(), user: None })
}

#[tokio::test]
async fn a_command_passes_by_its_exit_code_and_little_of_what_it_prints_is_kept() {
    let shell = |script: &str| exec(&["/bin/sh", "-c", script]);
    for (probe, expected) in [
        (exec(&["/bin/true"]), None),
        (exec(&["/bin/false"]), Some("exit status: 1")),
        (exec(&["/no/such/program"]), Some("/no/such/program: ")),
        (shell("echo broken pipe >&2; exit 3"), Some("exit status: 3: broken pipe")),
        (shell("kill -9 $$"), Some("signal: 9")),
        // No shell reads the words.
        (exec(&["/bin/echo", "$HOME;false"]), None),
        // More than a pipe holds does not hold it up.
        (shell("head -c 1000000 /dev/zero | tr '\\0' x; exit 1"), Some("exit status: 1: xxx")),
        // Nothing of the agent's environment reaches it.
        (shell("test \"$(env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= | cut -d= -f1)\" = PATH"), None),
        (shell("test \"$(pwd)\" = /"), None),
        (shell("read line; test -z \"$line\""), None),
        // What it leaves behind is not waited for.
        (shell("sleep 3 & exit 1"), Some("exit status: 1")),
    ] {
        let began = Instant::now();
        let result = look(probe.clone(), LIMIT).await;
        check(&format!("{probe:?}"), &result, expected);
        assert!(result.err().is_none_or(|reason| reason.len() < 2 * super::super::MAX_REASON));
        assert!(began.elapsed() < LIMIT, "{probe:?}");
    }
}

#[tokio::test]
async fn a_command_is_nobody_where_the_agent_can_become_somebody_else() {
    let nobody = "test \"$(id -u)$(id -G)\" = 6553465534";
    let result = look(exec(&["/bin/sh", "-c", nobody]), LIMIT).await;
    match RunAs::of_this_process() {
        RunAs::Anybody => assert_eq!(result, Ok(())),
        RunAs::Oneself { .. } => check("it stays who it is", &result, Some("exit status: 1")),
    }
}

#[tokio::test]
async fn a_command_whose_time_is_over_is_killed_with_everything_that_it_began() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("set");
    let pids = directory.path().join("pids");
    // A shell, its child, and a grandchild that outlives its parent.
    let script =
        format!("echo $$ >> {0}; (sleep 1000 & echo $! >> {0}) ; echo waiting; sleep 1000", pids.display());
    let limit = Duration::from_secs(2);
    let result = look(exec(&["/bin/sh", "-c", &script]), limit).await;
    check("it hangs", &result, Some("no answer within 2s: waiting"));
    let told = std::fs::read_to_string(&pids).expect("it ran");
    let pids: Vec<u32> = told.lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(pids.len(), 2, "{told}");
    let all_gone = async {
        while pids.iter().any(|pid| is_running(*pid)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, all_gone).await.expect("they are gone");
}

/// Whether it runs; one that ended and is not waited for by its new parent does not.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_look_that_is_given_up_takes_its_command_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("set");
    let file = directory.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 1000", file.display());
    let looking = tokio::spawn(async move { look(exec(&["/bin/sh", "-c", &script]), LIMIT * 60).await });
    let pid = async {
        loop {
            if let Ok(pid) = std::fs::read_to_string(&file) {
                return pid.trim().parse().expect("a number");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let pid = timeout(LIMIT, pid).await.expect("it runs");
    looking.abort();
    let gone = async {
        while is_running(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("it is gone");
}

#[tokio::test]
async fn a_unit_passes_where_systemd_says_that_it_is_active() {
    let directory = tempfile::tempdir().expect("a directory");
    let systemctl = directory.path().join("systemctl");
    let script = "#!/bin/sh\ntest \"$*\" = 'is-active -- orders.service' && echo active && exit 0\necho inactive; exit 3\n";
    // Written by another process: a file that this one has open for writing, or a child that it just forked, is busy.
    let mut write = std::process::Command::new("/bin/sh");
    write.args(["-c", "printf %s \"$1\" > \"$2\"; chmod 755 \"$2\"", "sh", script]).arg(&systemctl);
    assert!(write.status().expect("a shell").success());
    let systemctl = systemctl.to_str().expect("text").to_owned();
    let prober = Prober { systemctl, ..prober() };
    for (unit, expected) in [("orders.service", None), ("other.service", Some("exit status: 3: inactive"))] {
        let unit = crate::attribution::UnitName::new(unit).expect("a unit");
        check("a unit", &prober.look(&service(), &Probe::Unit(unit), LIMIT).await, expected);
    }
    let missing = Prober { systemctl: "/no/systemctl".to_owned(), ..prober };
    let unit = crate::attribution::UnitName::new("orders.service").expect("a unit");
    check("no systemd", &missing.look(&service(), &Probe::Unit(unit), LIMIT).await, Some("/no/systemctl: "));
}
