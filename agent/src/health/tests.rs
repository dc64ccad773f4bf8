use std::net::SocketAddr;

use baremesh_model::mesh::{Mesh, Parts};
use baremesh_model::name::Label;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::health::commands::Commands;
use crate::health::probe::RunAs;
use crate::originate::Originations;
use crate::proxy::socket::Mark;
use crate::registration::file::Written;
use crate::snapshot::Host;

/// Long for a machine under load; nothing waits that long unless it failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn registration(text: &str) -> Arc<LocalService> {
    let written: Written = toml::from_str(text).expect("a registration");
    Arc::new(LocalService::try_from(&written).expect("a service"))
}

/// A service `name` on `at` with this check, looked at every tenth of a second.
fn checked(name: &str, at: SocketAddr, check: &str) -> Arc<LocalService> {
    let often = if check.contains("ttl") { "" } else { "period = \"0.1s\"\nfailureThreshold = 2\n" };
    registration(&format!(
        "name = \"{name}\"\nports = [{{ port = {0}, deliver = \"{at}\" }}]\n[check]\n{often}{check}\n",
        at.port()
    ))
}

fn key(name: &str) -> Key {
    Key::new(baremesh_model::name::default_namespace(), Label::new(name).expect("a label"))
}

struct Run {
    checks: Arc<Checks>,
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    _task: tokio::task::JoinHandle<()>,
}

impl Run {
    fn of(services: &[Arc<LocalService>]) -> Self {
        let mut parts = Parts::default();
        // Room for a thousand names whose addresses are hashes.
        parts.config.virtual_ranges.v4 = "240.0.0.0/8".parse().expect("a range");
        let mesh = Mesh::assemble(parts).expect("a mesh");
        let addresses = vec!["10.0.0.1".parse().expect("an address")];
        let host =
            Host { name: Label::new("h1").expect("a label"), addresses, why: "".into(), network: None };
        let metrics = Metrics::new("mesh");
        let originations = Arc::new(Originations::new("/nowhere".into()));
        let publisher =
            Publisher::new((mesh, 1), services, (host, 15008), originations, Arc::clone(&metrics));
        let publisher = publisher.expect("published");
        let prober = Prober::new(Mark(None), Commands::Here(RunAs::of_this_process())).expect("a prober");
        let checks = Checks::new(Arc::clone(&publisher), prober, Arc::clone(&metrics));
        let task = tokio::spawn(Arc::clone(&checks).run());
        Self { checks, publisher, metrics, _task: task }
    }

    /// What the snapshot has of the service's only endpoint.
    fn health(&self, name: &str) -> Option<Health> {
        let snapshot = self.publisher.snapshot().load_full();
        Some(snapshot.service(&key(name))?.ports[0].endpoints.first()?.health)
    }

    async fn until(&self, name: &str, health: Health) {
        let mut changed = self.publisher.changed();
        let waiting = async {
            while self.health(name) != Some(health) {
                changed.changed().await.expect("a publisher");
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{name} never became {health}"));
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics.render(None).lines().any(|found| found == line)
    }
}

/// Answers every request with a status that can be changed.
async fn serve() -> (SocketAddr, Arc<Mutex<&'static str>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("an address");
    let status = Arc::new(Mutex::new("200 OK"));
    let told = Arc::clone(&status);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 2048];
            let _ = stream.read(&mut head).await;
            let status = *told.lock().expect("a lock");
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (at, status)
}

#[tokio::test]
async fn a_service_is_healthy_while_its_check_passes_and_says_why_when_not() {
    let (at, status) = serve().await;
    let run = Run::of(&[checked("web", at, "httpGet = {}")]);
    assert_eq!(run.health("web"), Some(Health::Unhealthy), "before there is a result");
    run.until("web", Health::Healthy).await;
    assert!(run.metric("baremesh_health_check_up{service=\"web.default\"} 1"));
    *status.lock().expect("a lock") = "503 Service Unavailable";
    run.until("web", Health::Unhealthy).await;
    let report = run.checks.report(&key("web")).expect("a report");
    assert_eq!((report.check.as_str(), report.health.as_str()), ("httpGet", "unhealthy"));
    assert!(report.reason.is_some_and(|reason| reason.contains("answered 503")));
    assert!(run.metric("baremesh_health_check_up{service=\"web.default\"} 0"));
    *status.lock().expect("a lock") = "204 No Content";
    run.until("web", Health::Healthy).await;
    // With the registration, everything about it goes.
    run.publisher.take_registrations(&[]).expect("taken");
    let gone = async {
        while run.checks.report(&key("web")).is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("its check ends");
    assert!(!run.metrics.render(None).contains("web.default"));
}

#[tokio::test]
async fn a_look_that_hangs_holds_up_no_other_and_none_that_is_gone_says_anything() {
    // Takes connections, and says nothing.
    let hanging = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (at, _) = serve().await;
    let silent = hanging.local_addr().expect("an address");
    let hangs = checked("hangs", silent, "timeout = \"300s\"\nhttpGet = {}");
    let mut services = vec![hangs, checked("web", at, "httpGet = {}")];
    let run = Run::of(&services);
    run.until("web", Health::Healthy).await;
    let accepted = timeout(PATIENCE, hanging.accept()).await.expect("it is looked at").expect("accepted");
    assert_eq!(run.health("hangs"), Some(Health::Unhealthy));
    // Registered anew elsewhere while the look is under way: that look ends and its result is nobody's.
    services[0] = checked("hangs", serve().await.0, "httpGet = {}");
    run.publisher.take_registrations(&services).expect("taken");
    run.until("hangs", Health::Healthy).await;
    let (mut stream, _) = accepted;
    let _ = stream.write_all(b"HTTP/1.1 500 No\r\n\r\n").await;
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection of a look that is given up is closed");
    assert_eq!(run.health("hangs"), Some(Health::Healthy));
}

#[tokio::test]
async fn what_takes_calls_goes_on_while_it_is_registered_anew_with_another_check() {
    let (at, _) = serve().await;
    let plain =
        registration(&format!("name = \"web\"\nports = [{{ port = {}, deliver = \"{at}\" }}]\n", at.port()));
    let run = Run::of(&[plain]);
    assert_eq!(run.health("web"), Some(Health::Healthy), "without a check it always is");
    let nowhere = "initialDelay = \"1h\"\nhttpGet = { path = \"/x\" }";
    run.publisher.take_registrations(&[checked("web", at, nowhere)]).expect("taken");
    assert_eq!(run.health("web"), Some(Health::Healthy));
    // Elsewhere it is another program, of which nothing is known.
    let elsewhere = SocketAddr::new(at.ip(), at.port() ^ 1);
    run.publisher.take_registrations(&[checked("web", elsewhere, nowhere)]).expect("taken");
    assert_eq!(run.health("web"), Some(Health::Unhealthy));
}

#[tokio::test]
async fn the_first_results_are_waited_for_and_those_that_are_to_come_late_are_not() {
    let (at, _) = serve().await;
    let late = checked("late", SocketAddr::new(at.ip(), 9), "initialDelay = \"1h\"\ntcpSocket = {}");
    let run = Run::of(&[checked("web", at, "httpGet = {}"), late]);
    timeout(PATIENCE, run.checks.first_results()).await.expect("they come");
    assert_eq!((run.health("web"), run.health("late")), (Some(Health::Healthy), Some(Health::Unhealthy)));
    let none = Run::of(&[]);
    timeout(PATIENCE, none.checks.first_results()).await.expect("there is nothing to wait for");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_speaks_for_itself_is_healthy_until_it_is_silent() {
    let at = "127.0.0.1:9".parse().expect("an address");
    let run = Run::of(&[
        checked("cron", at, "ttl = \"30s\""),
        checked("web", "127.0.0.1:10".parse().expect("an address"), "initialDelay = \"1h\"\ntcpSocket = {}"),
    ]);
    assert_eq!(run.checks.heartbeat(&key("cron"), Ok(())), Ok(Health::Healthy));
    run.until("cron", Health::Healthy).await;
    sleep(Duration::from_secs(20)).await;
    run.checks.heartbeat(&key("cron"), Ok(())).expect("taken");
    sleep(Duration::from_secs(29)).await;
    assert_eq!(run.health("cron"), Some(Health::Healthy), "the second word counts from when it came");
    run.until("cron", Health::Unhealthy).await;
    let report = run.checks.report(&key("cron")).expect("a report");
    assert_eq!(report.reason.as_deref(), Some("nothing was heard from it for 30s"));
    run.checks.heartbeat(&key("cron"), Ok(())).expect("taken");
    run.until("cron", Health::Healthy).await;
    let note = "x".repeat(10_000) + "\n";
    assert_eq!(run.checks.heartbeat(&key("cron"), Err(note)), Ok(Health::Unhealthy));
    run.until("cron", Health::Unhealthy).await;
    let reason = run.checks.report(&key("cron")).and_then(|report| report.reason);
    assert_eq!(reason.map(|reason| reason.len()), Some(MAX_REASON));
    for (name, expected) in [("web", "--check-ttl"), ("nobody", "is not registered")] {
        let error = run.checks.heartbeat(&key(name), Ok(())).expect_err(name).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A thousand checks of one host, half of which hang: the others have their results all the same.
#[tokio::test]
async fn a_thousand_checks_do_not_wait_for_each_other() {
    let (at, _) = serve().await;
    let hanging = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = hanging.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hanging.accept().await {
            held.push(stream);
        }
    });
    let service = |n: u16| {
        let at = if n.is_multiple_of(2) { at } else { silent };
        registration(&format!(
            "name = \"s{n}\"\nports = [{{ port = {}, deliver = \"{at}\" }}]\n\
             [check]\ntimeout = \"300s\"\nhttpGet = {{ port = {} }}\n",
            20_000 + n,
            at.port()
        ))
    };
    let run = Run::of(&(0..1000).map(service).collect::<Vec<_>>());
    for n in (0..1000).step_by(2) {
        run.until(&format!("s{n}"), Health::Healthy).await;
    }
    assert_eq!(run.health("s1"), Some(Health::Unhealthy));
}
