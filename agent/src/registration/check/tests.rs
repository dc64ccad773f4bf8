use baremesh_model::health::Thresholds;

use super::*;
use crate::registration::file::Written;
use crate::registration::{LocalService, file};

const SERVICE: &str = r#"
name = "orders"
user = 997
ports = [
  { port = 80, targetPort = 8080, protocol = "http", name = "web" },
  { port = 81, targetPort = 8081, protocol = "grpc", deliver = "10.0.3.7:9000" },
]
"#;

fn read(check: &str) -> Result<Check, String> {
    let written: Written = toml::from_str(&format!("{SERVICE}{check}")).map_err(|error| error.to_string())?;
    let local = LocalService::try_from(&written).map_err(|fault| fault.to_string())?;
    local.check.map(|check| Check::clone(&check)).ok_or_else(|| "no check".to_owned())
}

fn get(check: &str) -> HttpGet {
    match read(check).expect(check).probe {
        Probe::HttpGet(get) => get,
        other => panic!("{check}: {other:?}"),
    }
}

#[test]
fn what_is_not_written_is_as_kubernetes_has_it() {
    let check = read("[check]\nhttpGet = {}").expect("a check");
    assert_eq!(check.schedule, Schedule::default());
    assert_eq!(check.schedule.period, Duration::from_secs(10));
    assert_eq!(check.thresholds, Thresholds { success: 1, failure: 3 });
    let get = get("[check]\nhttpGet = {}");
    assert_eq!((get.at.to_string().as_str(), get.path.as_str()), ("127.0.0.1:8080", "/"));
    assert_eq!((get.scheme, get.http2), (Scheme::Http, false));
    assert_eq!(read(""), Err("no check".to_owned()));
}

#[test]
fn everything_can_be_written() {
    let check = read(
        "[check]\ninitialDelay = \"5s\"\ntimeout = \"0.5s\"\nperiod = \"2s\"\nsuccessThreshold = 2\nfailureThreshold = 4\n\
         [check.httpGet]\npath = \"/healthz?full=1\"\nport = \"web\"\nscheme = \"HTTPS\"\n\
         httpHeaders = [{ name = \"Host\", value = \"orders\" }]",
    )
    .expect("a check");
    let schedule = &check.schedule;
    let times = [schedule.initial_delay, schedule.timeout, schedule.period].map(|time| time.as_millis());
    assert_eq!((times, check.thresholds), ([5000, 500, 2000], Thresholds { success: 2, failure: 4 }));
    let Probe::HttpGet(get) = check.probe else { panic!("{:?}", check.probe) };
    assert_eq!((get.scheme, get.path.as_str()), (Scheme::Https, "/healthz?full=1"));
    assert_eq!(get.headers["host"], "orders");
    let probe = |text: &str| read(text).expect(text).probe;
    let grpc = Probe::Grpc { at: "10.0.3.7:9000".parse().expect("an address"), service: "a.B".into() };
    assert_eq!(probe("[check]\ngrpc = { port = 81, service = \"a.B\" }"), grpc);
    let command = vec!["/bin/true".to_owned(), "-x".to_owned()];
    let exec = Probe::Exec(Exec { command, user: Some(997) });
    assert_eq!(probe("[check]\nexec = { command = [\"/bin/true\", \"-x\"] }"), exec);
    assert_eq!(probe("[check]\nttl = \"30s\""), Probe::Ttl(Duration::from_secs(30)));
    assert_eq!(probe("[check]\nunit = \"orders.service\"").kind(), "unit");
}

#[test]
fn a_port_is_looked_at_where_it_is_delivered() {
    for (port, at, http2) in [
        ("80", "127.0.0.1:8080", false),
        ("8080", "127.0.0.1:8080", false),
        ("\"web\"", "127.0.0.1:8080", false),
        ("81", "10.0.3.7:9000", true),
        ("8081", "10.0.3.7:9000", true),
        // A port that is not the mesh's, such as one for its operators.
        ("9901", "127.0.0.1:9901", false),
    ] {
        let get = get(&format!("[check]\nhttpGet = {{ port = {port} }}"));
        assert_eq!((get.at.to_string().as_str(), get.http2), (at, http2), "{port}");
    }
}

#[test]
fn a_bad_check_is_refused_with_its_line_and_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("default.orders.toml");
    // The table stands in line 8 of the file.
    for (check, line, parts) in [
        ("[check]", 8, ["check:", "write one of"]),
        ("[check]\nhttpGet = {}\ntcpSocket = {}", 8, ["check:", "leave one of"]),
        ("[check]\nhttpGet = { path = \"healthz\" }", 9, ["check.httpGet.path", "begins with `/`"]),
        ("[check]\nhttpGet = { path = \"/a b\" }", 9, ["check.httpGet.path", "no path"]),
        ("[check]\nhttpGet = { port = \"api\" }", 9, ["check.httpGet.port", "name it in `ports`"]),
        ("[check]\nhttpGet = { port = 15008 }", 9, ["check.httpGet.port", "one of the service's"]),
        ("[check]\nhttpGet = { port = 0 }", 9, ["port = 0", "1 to 65535"]),
        ("[check]\nhttpGet = { scheme = \"FTP\" }", 9, ["scheme = \"FTP\"", "HTTPS"]),
        (
            "[check.httpGet]\nhttpHeaders = [{ name = \"Te\", value = \"x\" }]",
            9,
            ["check.httpGet.httpHeaders", "take it out"],
        ),
        ("[check]\ntcpSocket = {}\nperiod = \"10\"", 10, ["check.period", "write such as `10s`"]),
        ("[check]\ntcpSocket = {}\nperiod = \"0s\"", 10, ["check.period", "within 0.1s and"]),
        ("[check]\ntcpSocket = {}\ntimeout = \"1h\"", 10, ["check.timeout", "and 300s"]),
        ("[check]\ntcpSocket = {}\nfailureThreshold = 0", 10, ["check.failureThreshold", "1 to 100"]),
        ("[check]\ntcpSocket = {}\nsuccessThreshold = -1", 10, ["successThreshold = -1", "u32"]),
        ("[check]\ntcpSocket = {}\ninterval = \"1s\"", 10, ["interval", "expected one of"]),
        ("[check]\nexec = { command = [] }", 9, ["check.exec.command", "whole path"]),
        ("[check]\nexec = { command = [\"true\"] }", 9, ["check.exec.command", "whole path"]),
        ("[check]\nexec = { command = [\"/a\\u0000\"] }", 9, ["check.exec.command", "zero byte"]),
        ("[check]\nexec = \"/bin/true\"", 9, ["exec =", "expected"]),
        ("[check]\nttl = \"30s\"\nperiod = \"1s\"", 9, ["check.ttl", "take it out"]),
        ("[check]\nttl = \"0.5s\"", 9, ["check.ttl", "within 1s and"]),
        ("[check]\nunit = \"orders\"", 9, ["check.unit", "orders"]),
    ] {
        std::fs::write(&path, format!("{SERVICE}{check}\n")).expect("written");
        let error = file::read(&path).expect_err(check).to_string();
        assert!(error.contains("default.orders.toml"), "{check}: {error}");
        assert!(error.contains(&format!("line {line}")), "{check}: {error} should name line {line}");
        for part in parts {
            assert!(error.contains(part), "{check}: {error} should say {part}");
        }
    }
}
