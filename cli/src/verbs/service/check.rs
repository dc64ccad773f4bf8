//! How a service is looked at, as flags of `service register`.

use baremesh_agent::registration::check::{
    Scheme, WrittenCheck, WrittenExec, WrittenGrpc, WrittenHeader, WrittenHttpGet, WrittenPortName,
    WrittenTcpSocket,
};
use clap::{ArgGroup, Args};

use super::super::values;
use crate::output::usage;

/// One kind of check, and how often it is made.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health check: while it fails, the service takes no new calls")]
#[command(group = ArgGroup::new("kind"))]
pub(super) struct CheckFlags {
    /// GET this path; 200 to 399 is healthy [default: /]
    #[arg(long = "check-http", value_name = "PATH", num_args = 0..=1, default_missing_value = "/", group = "kind")]
    http: Option<String>,
    /// The same inside TLS, whatever certificate is shown [default: /]
    #[arg(long = "check-https", value_name = "PATH", num_args = 0..=1, default_missing_value = "/", group = "kind")]
    https: Option<String>,
    /// A header of that request, Host among them; can be given several times
    #[arg(long = "check-header", value_name = "NAME=VALUE", value_parser = values::label, requires = "kind")]
    headers: Vec<(String, String)>,
    /// Connect; being taken is healthy
    #[arg(long = "check-tcp", group = "kind")]
    tcp: bool,
    /// Ask grpc.health.v1 about this service, or about the whole server
    #[arg(long = "check-grpc", value_name = "SERVICE", num_args = 0..=1, default_missing_value = "", group = "kind")]
    grpc: Option<String>,
    /// Run this program with its arguments; exit code 0 is healthy. Comes last, or ends with a `;` of its own
    #[arg(
        long = "check-exec", value_name = "PROGRAM", num_args = 1.., value_terminator = ";",
        allow_hyphen_values = true, group = "kind"
    )]
    exec: Vec<String>,
    /// Wait for `baremesh service heartbeat`, at least this often
    #[arg(long = "check-ttl", value_name = "TIME", group = "kind")]
    ttl: Option<String>,
    /// Ask systemd whether this unit is active [default: that of --unit]
    #[arg(long = "check-unit", value_name = "UNIT", num_args = 0..=1, default_missing_value = "", group = "kind")]
    check_unit: Option<String>,
    /// The port to look at, by number or name [default: the first]
    #[arg(long = "check-port", value_name = "PORT", requires = "kind")]
    port: Option<String>,
    /// From one look to the next [default: 10s]
    #[arg(long = "check-interval", value_name = "TIME", requires = "kind")]
    interval: Option<String>,
    /// How long one look may take [default: 1s]
    #[arg(long = "check-timeout", value_name = "TIME", requires = "kind")]
    timeout: Option<String>,
    /// How long after registering the first look is [default: 0s]
    #[arg(long = "check-delay", value_name = "TIME", requires = "kind")]
    delay: Option<String>,
    /// So many passes in a row make it healthy [default: 1]
    #[arg(long = "check-success", value_name = "NUMBER", requires = "kind")]
    success: Option<u32>,
    /// So many failures in a row make it unhealthy [default: 3]
    #[arg(long = "check-failure", value_name = "NUMBER", requires = "kind")]
    failure: Option<u32>,
}

impl CheckFlags {
    /// The check that they describe, for a service of this unit.
    pub(super) fn written(&self, unit: Option<&String>) -> anyhow::Result<Option<WrittenCheck>> {
        let port = || self.port.as_deref().map(read_port);
        let get = |path: &String, scheme| WrittenHttpGet {
            path: Some(path.clone()),
            port: port(),
            scheme,
            http_headers: self.headers.iter().map(header).collect(),
        };
        let http = self.http.as_ref().map(|path| get(path, None));
        let https = self.https.as_ref().map(|path| get(path, Some(Scheme::Https)));
        let unit = match (self.check_unit.as_deref(), unit) {
            (None, _) => None,
            (Some(""), Some(unit)) => Some(unit.clone()),
            (Some(""), None) => {
                return Err(usage("--check-unit needs a unit: name it there, or give --unit".to_owned()));
            }
            (Some(named), _) => Some(named.to_owned()),
        };
        let check = WrittenCheck {
            initial_delay: self.delay.clone(),
            timeout: self.timeout.clone(),
            period: self.interval.clone(),
            success_threshold: self.success,
            failure_threshold: self.failure,
            ttl: self.ttl.clone(),
            unit,
            http_get: http.or(https),
            tcp_socket: self.tcp.then(|| WrittenTcpSocket { port: port() }),
            grpc: self.grpc.as_ref().map(|service| WrittenGrpc { port: port(), service: service.clone() }),
            exec: (!self.exec.is_empty()).then(|| WrittenExec { command: self.exec.clone() }),
        };
        if !self.headers.is_empty() && check.http_get.is_none() {
            return Err(usage("--check-header goes with --check-http or --check-https".to_owned()));
        }
        let has_port = check.http_get.is_some() || check.tcp_socket.is_some() || check.grpc.is_some();
        if self.port.is_some() && !has_port {
            let text = "--check-port goes with --check-http, --check-https, --check-tcp or --check-grpc";
            return Err(usage(text.to_owned()));
        }
        Ok((check != WrittenCheck::default()).then_some(check))
    }
}

fn header((name, value): &(String, String)) -> WrittenHeader {
    WrittenHeader { name: name.clone(), value: value.clone() }
}

fn read_port(text: &str) -> WrittenPortName {
    text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
}
