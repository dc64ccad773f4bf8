use super::*;
use crate::analysis::Subject;
use crate::diagnostic::{Diagnostic, Severity};
use crate::format::{Form, to_toml};

/// Random intentions, decided on by an evaluator of Consul's rules and by our policies.
mod differential;
/// What is refused, and why.
mod refused;

fn options(default_policy: Option<DefaultPolicy>, ports: &[(&str, u16)]) -> Options {
    let ports = ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
    Options { namespace: baremesh_model::name::default_namespace(), default_policy, ports }
}

fn converted(json: &str, options: &Options) -> Result<Converted, Vec<Refusal>> {
    consul(&[("input.json".to_owned(), json.to_owned())], options)
}

/// The resources as TOML, which must read as the same and hold together without an error.
fn toml(json: &str, options: &Options) -> String {
    let made = converted(json, options).unwrap_or_else(|refusals| panic!("{refusals:#?}"));
    let text: Vec<String> = made.resources.iter().map(to_toml).collect();
    let text = text.join("\n");
    let parsed = Form::Toml.parse(&text, "made.toml");
    let read: Vec<Resource> = parsed.resources.iter().map(|located| located.value.clone()).collect();
    assert_eq!(read, made.resources, "{text}");
    let findings = Subject::default().with(vec![parsed]).judge();
    // Endpoints are registered by hosts, which an analysis of files does not know.
    let errors: Vec<String> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(Diagnostic::headline)
        .filter(|line| !line.contains("IST0173"))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}\n{text}");
    text
}

const CHAIN: &str = r#"[
  {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}, "MutualTLSMode": "strict",
   "MeshGateway": {}, "Expose": {}, "TransparentProxy": {}, "CreateIndex": 7, "ModifyIndex": 9},
  {"Kind": "service-router", "Name": "web", "Routes": [
    {"Match": {"HTTP": {"PathPrefix": "/admin", "Methods": ["GET", "POST"],
       "Header": [{"Name": "X-Debug", "Exact": "1", "Invert": true}, {"Name": "x-end", "Suffix": ".a"}],
       "QueryParam": [{"Name": "q", "Present": true}]}},
     "Destination": {"Service": "admin", "PrefixRewrite": "/", "RequestTimeout": "15s", "NumRetries": 3,
       "RetryOnConnectFailure": true, "RetryOnStatusCodes": [502, 503], "Namespace": "default",
       "RequestHeaders": {"Set": {"x-from": "web"}, "Remove": ["x-old"]}}},
    {"Match": {"HTTP": {"PathExact": "/v2"}}, "Destination": {"ServiceSubset": "v2"}}
  ]},
  {"Kind": "service-splitter", "Name": "web", "Splits": [
    {"Weight": 90.5, "ServiceSubset": "v1", "ResponseHeaders": {"Add": {"x-v": "1"}}},
    {"Weight": 9.5, "Service": "next"}
  ]},
  {"Kind": "service-splitter", "Name": "next", "Splits": [
    {"Weight": 50, "Service": "next"}, {"Weight": 50, "Service": "admin"}
  ]},
  {"Kind": "service-resolver", "Name": "web", "DefaultSubset": "v1", "ConnectTimeout": "1500ms", "RequestTimeout": "2s",
   "Subsets": {"v1": {"Filter": "Service.Meta.version == v1"},
               "v2": {"Filter": "Service.Meta.version == \"v2\" and Service.Meta.beta == yes", "OnlyPassing": true}},
   "LoadBalancer": {"Policy": "ring_hash", "RingHashConfig": {"MinimumRingSize": 2048},
     "HashPolicies": [{"Field": "cookie", "FieldValue": "session", "CookieConfig": {"TTL": "1h0m0s", "Path": "/"}}]}},
  {"Kind": "service-resolver", "Name": "old", "Redirect": {"Service": "web", "ServiceSubset": "v2"}},
  {"Kind": "service-resolver", "Name": "next", "RequestTimeout": 2000000000},
  {"Kind": "service-resolver", "Name": "admin", "RequestTimeout": "2s"},
  {"Kind": "service-defaults", "Name": "db", "Protocol": "tcp"},
  {"Kind": "service-resolver", "Name": "db", "Redirect": {"Service": "db2"}},
  {"Kind": "service-defaults", "Name": "db2", "Protocol": "tcp"},
  {"Kind": "service-defaults", "Name": "web", "Protocol": "http", "UpstreamConfig": {
    "Defaults": {"ConnectTimeoutMs": 700, "Limits": {"MaxConnections": 10}},
    "Overrides": [{"Name": "admin", "PassiveHealthCheck": {"Interval": 10000000000, "MaxFailures": 3,
      "EnforcingConsecutive5xx": 100, "MaxEjectionPercent": 100, "BaseEjectionTime": "20s"}}]}}
]"#;

const PORTS: [(&str, u16); 6] =
    [("web", 8080), ("admin", 8081), ("next", 8082), ("old", 8083), ("db", 5432), ("db2", 5433)];

/// Written anew with `UPDATE_GOLDEN=1`.
#[test]
fn routers_splitters_resolvers_and_defaults_become_these_resources() {
    let found = toml(CHAIN, &options(None, &PORTS));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/convert/tests/chain.toml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &found).expect("written");
    }
    let expected = std::fs::read_to_string(path).expect("the golden file");
    assert_eq!(found, expected);
}

#[test]
fn keys_of_hcl_lists_of_one_and_streams_of_documents_are_read_as_the_api_s() {
    let api = r#"[
      {"Kind": "service-defaults", "Name": "web", "Protocol": "http"},
      {"Kind": "service-router", "Name": "web", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/a"}},
        "Destination": {"PrefixRewrite": "/b", "RequestTimeout": "3s"}}]}]"#;
    let hcl = r#"
      {"kind": "service-defaults", "name": "web", "protocol": "HTTP"}
      {"kind": "service-router", "name": "web", "routes": [{"match": [{"http": [{"path_prefix": "/a"}]}],
        "destination": [{"prefix_rewrite": "/b", "request_timeout": "3s"}]}]}"#;
    let options = options(None, &[("web", 80)]);
    assert_eq!(toml(api, &options), toml(hcl, &options));
}

#[test]
fn ports_come_from_the_catalog_where_they_are_not_given() {
    let entry = r#"{"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"}"#;
    let expected = toml(entry, &options(None, &[("web", 9000)]));
    let catalog = r#"[{"Node": "n", "Address": "10.0.0.1", "ServiceName": "web", "ServicePort": 9000}]"#;
    assert_eq!(toml(&format!("{entry}{catalog}"), &options(None, &[])), expected);
    let health = r#"[{"Node": {"Node": "n"}, "Service": {"Service": "web", "Port": 9000}, "Checks": []}]"#;
    assert_eq!(toml(&format!("{entry}{health}"), &options(None, &[])), expected);
    let other = catalog.replace("9000", "9001");
    let refused = converted(&format!("{entry}{catalog}{other}"), &options(None, &[])).expect_err("two ports");
    assert!(refused[0].reason.contains("several ports"), "{refused:?}");
    assert_eq!(toml(&format!("{entry}{catalog}{other}"), &options(None, &[("web", 9000)])), expected);
}

#[test]
fn single_intentions_are_those_of_entries() {
    let entry = r#"{"Kind": "service-intentions", "Name": "db", "Sources": [
        {"Name": "web", "Action": "allow", "Type": "consul", "Precedence": 9, "Description": "x"},
        {"Name": "*", "Action": "deny"}]}"#;
    let single = r#"[
        {"ID": "1", "SourceNS": "default", "SourceName": "web", "DestinationNS": "default",
         "DestinationName": "db", "SourceType": "consul", "Action": "allow", "Precedence": 9, "Meta": {}},
        {"ID": "2", "SourceName": "*", "DestinationName": "db", "SourceType": "consul", "Action": "deny"}]"#;
    let options = options(Some(DefaultPolicy::Deny), &[]);
    assert_eq!(toml(entry, &options), toml(single, &options));
}
