//! `WorkloadGroup`: the template of registrations.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use baremesh_model::health::{Schedule, Thresholds};
use baremesh_model::workload::Locality;
use baremesh_model::workload_group::{HttpGet, Look, Probe, ProbePort, WorkloadGroup};
use serde_json::{Map, Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::durations;
use super::fields::{Field, enforced, no_effect, refused};
use super::tree::Value;
use super::workload_entry::{encode_locality, ports, weight};
use super::{duration, json};
use crate::diagnostic::quote;

const OWN: &str = "the address is the host's own: its registration or agent.toml says it";
const PROBED: &str = "a port of the registration, by number or name; its first without";

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("metadata", "what registrations that name the group are given"),
    enforced("metadata.labels", "labels; those of `template` and of the registration go before them"),
    no_effect("metadata.annotations", "the mesh reads no annotation of a registration"),
    enforced("template", "a WorkloadEntry without its address: what a registration leaves unsaid"),
    refused("template.address", OWN),
    refused("template.otherAddresses", OWN),
    enforced(
        "template.ports",
        "port names of the service to the ports that programs listen on: `baremesh service register --group` begins \
         with them, and where a host delivers to stays as registered",
    ),
    enforced("template.labels", "labels, for selectors and subsets"),
    enforced("template.locality", "region/zone/subzone"),
    enforced("template.weight", "share of the connections relative to the other endpoints"),
    enforced("template.serviceAccount", "the account that they run as; must be that of their service"),
    no_effect("template.network", "every workload is taken to be reachable at its address"),
    enforced("probe", "how they are looked at, without a check of the registration's own"),
    enforced(
        "probe.initialDelaySeconds",
        "how long after its registration it is first looked at; 0 unless set",
    ),
    enforced("probe.timeoutSeconds", "how long one look may take, 1 to 300; 1 unless set"),
    enforced("probe.periodSeconds", "from one look to the next; 10 unless set"),
    enforced("probe.successThreshold", "so many passes in a row make it healthy, 1 to 100; 1 unless set"),
    enforced("probe.failureThreshold", "so many failures in a row make it unhealthy, 1 to 100; 3 unless set"),
    enforced("probe.httpGet", "an answer of 200 to 399 to a GET"),
    enforced("probe.httpGet.path", "what is asked for; `/` unless set"),
    enforced("probe.httpGet.port", PROBED),
    refused("probe.httpGet.host", "a host looks at its own service alone: remove it"),
    enforced("probe.httpGet.scheme", "HTTP (default) or HTTPS, whoever answers"),
    enforced("probe.httpGet.httpHeaders", "headers besides the usual ones"),
    enforced("probe.httpGet.httpHeaders[].name", "its name"),
    enforced("probe.httpGet.httpHeaders[].value", "its value"),
    enforced("probe.tcpSocket", "a connection that is taken"),
    refused("probe.tcpSocket.host", "a host looks at its own service alone: remove it"),
    enforced("probe.tcpSocket.port", PROBED),
    enforced("probe.grpc", "grpc.health.v1.Health/Check, answered with SERVING"),
    enforced("probe.grpc.port", PROBED),
    enforced("probe.grpc.service", "the service that is asked about; the server as a whole without"),
    enforced("probe.ttl", "the service says for itself that it is well, at least this often; alone"),
    refused(
        "probe.exec",
        "no resource makes hosts run a command: write it on the host, as `baremesh service register --check-exec` does",
    ),
    refused(
        "probe.unit",
        "which unit is looked at is the host's own to say: `baremesh service register --check-unit`",
    ),
];

pub(super) fn decode(
    d: &mut Decoder<'_>,
    metadata: &Metadata<'_>,
    spec: &Fields<'_>,
) -> Option<WorkloadGroup> {
    let of_metadata = optional(spec.take("metadata"), |at| {
        let fields = d.fields(&at)?;
        optional(fields.take("labels"), |at| d.labels(&at))
    });
    let mut group = optional(spec.take("template"), |at| template(d, metadata, &at));
    if let Some(None) = group {
        group = Some(Some(empty(metadata)));
    }
    let probe = optional(spec.take("probe"), |at| probe(d, &at));
    let mut group = group??;
    let mut labels = of_metadata?.flatten().unwrap_or_default();
    labels.append(&mut group.labels);
    Some(WorkloadGroup { labels, probe: probe?, ..group })
}

fn empty(metadata: &Metadata<'_>) -> WorkloadGroup {
    WorkloadGroup {
        key: metadata.key.clone(),
        labels: Default::default(),
        ports: Default::default(),
        locality: None,
        weight: None,
        service_account: None,
        probe: None,
    }
}

fn template(d: &mut Decoder<'_>, metadata: &Metadata<'_>, at: &At<'_>) -> Option<WorkloadGroup> {
    let fields = d.fields(at)?;
    let ports = optional(fields.take("ports"), |at| ports(d, &at));
    let labels = optional(fields.take("labels"), |at| d.labels(&at));
    let locality = optional(fields.take("locality"), |at| d.text(&at).map(Locality::parse));
    let weight = optional(fields.take("weight"), |at| weight(d, &at));
    let account = optional(fields.take("serviceAccount"), |at| d.label(&at));
    Some(WorkloadGroup {
        labels: labels?.unwrap_or_default(),
        ports: ports?.unwrap_or_default(),
        locality: locality?,
        weight: weight?,
        service_account: account?,
        ..empty(metadata)
    })
}

/// A day: the longest period, first delay and time to live of a check.
const MAX_PERIOD: i64 = 24 * 3600;
/// The longest time that a look may take, in seconds.
const MAX_TIMEOUT: i64 = 300;
/// The most results in a row that can be asked for.
const MAX_THRESHOLD: i64 = 100;

const LOOKS: [&str; 4] = ["httpGet", "tcpSocket", "grpc", "ttl"];

fn probe(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Probe> {
    let fields = d.fields(at)?;
    let mut number = |key: &str, least: i64, most: i64| {
        optional(fields.take(key), |at| match d.integer(&at)? {
            number if (least..=most).contains(&number) => Some(number.unsigned_abs()),
            number => {
                d.invalid(&at, format!("{number} is not within {least} and {most}"), "");
                None
            }
        })
    };
    let delay = number("initialDelaySeconds", 0, MAX_PERIOD);
    let timeout = number("timeoutSeconds", 1, MAX_TIMEOUT);
    let period = number("periodSeconds", 1, MAX_PERIOD);
    let success = number("successThreshold", 1, MAX_THRESHOLD);
    let failure = number("failureThreshold", 1, MAX_THRESHOLD);
    let written: Vec<_> = LOOKS.iter().filter_map(|key| fields.take(key).map(|at| (*key, at))).collect();
    let look = match written.as_slice() {
        [(key, at)] => look(d, key, at),
        [] => {
            d.invalid(at, "says nothing to look at", "write one of httpGet, tcpSocket, grpc, ttl");
            None
        }
        [_, (_, at), ..] => {
            d.invalid(at, "a probe looks at one thing", "leave one of httpGet, tcpSocket, grpc, ttl");
            None
        }
    };
    if let (Some(Look::Ttl(_)), true) = (&look, fields.len() > 1) {
        d.invalid(
            at,
            "with `ttl` nothing else means anything: the service's word holds at once",
            "leave `ttl` alone",
        );
        return None;
    }
    let (usual, default) = (Thresholds::default(), Schedule::default());
    let seconds = |read: Option<u64>, default| read.map_or(default, Duration::from_secs);
    let times =
        |read: Option<u64>, default| read.map_or(default, |read| u32::try_from(read).unwrap_or(u32::MAX));
    Some(Probe {
        schedule: Schedule {
            initial_delay: seconds(delay?, default.initial_delay),
            timeout: seconds(timeout?, default.timeout),
            period: seconds(period?, default.period),
        },
        thresholds: Thresholds {
            success: times(success?, usual.success),
            failure: times(failure?, usual.failure),
        },
        look: look?,
    })
}

fn look(d: &mut Decoder<'_>, key: &str, at: &At<'_>) -> Option<Look> {
    if key == "ttl" {
        let ttl = duration::duration(d, at)?;
        if ttl < Duration::from_secs(1) || ttl > Duration::from_secs(MAX_PERIOD.unsigned_abs()) {
            d.invalid(at, "is not within 1s and 24h", "");
            return None;
        }
        return Some(Look::Ttl(ttl));
    }
    let fields = d.fields(at)?;
    let port = optional(fields.take("port"), |at| port(d, &at));
    match key {
        "httpGet" => {
            let path = optional(fields.take("path"), |at| path(d, &at));
            let https = optional(fields.take("scheme"), |at| scheme(d, &at));
            let headers = optional(fields.take("httpHeaders"), |at| d.each(&at, header));
            Some(Look::HttpGet(HttpGet {
                path: path?.unwrap_or_else(|| "/".into()),
                port: port?,
                https: https?.unwrap_or(false),
                headers: headers?.unwrap_or_default(),
            }))
        }
        "tcpSocket" => Some(Look::TcpSocket { port: port? }),
        _ => {
            let service = optional(fields.take("service"), |at| d.any_text(&at).map(Arc::from));
            Some(Look::Grpc { port: port?, service: service?.unwrap_or_default() })
        }
    }
}

fn port(d: &mut Decoder<'_>, at: &At<'_>) -> Option<ProbePort> {
    match &at.node.value {
        Value::Text(name) if !name.is_empty() => Some(match name.parse::<NonZeroU16>() {
            Ok(number) => ProbePort::Number(number),
            Err(_) => ProbePort::Name(Arc::clone(name)),
        }),
        _ => d.port(at).map(ProbePort::Number),
    }
}

fn path(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !text.starts_with('/') || text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        d.invalid(at, "is no path", "write one that begins with `/`, such as `/healthz`");
        return None;
    }
    Some(text.into())
}

fn scheme(d: &mut Decoder<'_>, at: &At<'_>) -> Option<bool> {
    match d.text(at)? {
        "HTTP" | "http" => Some(false),
        "HTTPS" | "https" => Some(true),
        _ => {
            d.invalid(at, "is not HTTP or HTTPS", "");
            None
        }
    }
}

fn header(d: &mut Decoder<'_>, at: &At<'_>) -> Option<(Arc<str>, Arc<str>)> {
    let fields = d.fields(at)?;
    let name = d.required(&fields, "name").and_then(|at| header_name(d, &at));
    let value = optional(fields.take("value"), |at| d.any_text(&at).map(Arc::from));
    Some((name?, value?.unwrap_or_default()))
}

fn header_name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        let help = "write letters, digits and `-`, such as `x-probe`";
        d.invalid(at, format!("{} is not a header name", quote(text)), help);
        return None;
    }
    Some(text.into())
}

pub(super) fn encode(group: &WorkloadGroup) -> Json {
    let mut template = Map::new();
    if !group.ports.is_empty() {
        let ports = group.ports.iter().map(|(name, port)| (name.to_string(), port.get().into()));
        template.insert("ports".into(), Json::Object(ports.collect()));
    }
    if !group.labels.is_empty() {
        template.insert("labels".into(), json::labels(&group.labels));
    }
    if let Some(locality) = &group.locality {
        template.insert("locality".into(), encode_locality(locality).into());
    }
    if let Some(weight) = group.weight {
        template.insert("weight".into(), weight.into());
    }
    if let Some(account) = &group.service_account {
        template.insert("serviceAccount".into(), account.as_str().into());
    }
    let mut spec = Map::from_iter([("template".to_owned(), Json::Object(template))]);
    if let Some(probe) = &group.probe {
        spec.insert("probe".into(), encode_probe(probe));
    }
    Json::Object(spec)
}

fn encode_probe(probe: &Probe) -> Json {
    let port = |port: &Option<ProbePort>| match port {
        None => Map::new(),
        Some(ProbePort::Number(number)) => Map::from_iter([("port".to_owned(), number.get().into())]),
        Some(ProbePort::Name(name)) => Map::from_iter([("port".to_owned(), (&**name).into())]),
    };
    let (key, look) = match &probe.look {
        Look::Ttl(ttl) => return json!({ "ttl": durations::format(*ttl) }),
        Look::TcpSocket { port: at } => ("tcpSocket", port(at)),
        Look::Grpc { port: at, service } => {
            let mut look = port(at);
            if !service.is_empty() {
                look.insert("service".into(), (&**service).into());
            }
            ("grpc", look)
        }
        Look::HttpGet(get) => {
            let mut look = port(&get.port);
            look.insert("path".into(), (&*get.path).into());
            look.insert("scheme".into(), if get.https { "HTTPS" } else { "HTTP" }.into());
            if !get.headers.is_empty() {
                let headers = get.headers.iter();
                let headers = headers.map(|(name, value)| json!({ "name": **name, "value": **value }));
                look.insert("httpHeaders".into(), headers.collect());
            }
            ("httpGet", look)
        }
    };
    let Probe { schedule, thresholds, .. } = probe;
    json!({
        "initialDelaySeconds": schedule.initial_delay.as_secs(),
        "timeoutSeconds": schedule.timeout.as_secs(),
        "periodSeconds": schedule.period.as_secs(),
        "successThreshold": thresholds.success,
        "failureThreshold": thresholds.failure,
        key: look,
    })
}
