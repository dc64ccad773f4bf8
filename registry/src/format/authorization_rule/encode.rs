//! Writing a rule.

use baremesh_model::authorization::{Condition, Operation, Rule, ServiceAccount, Source};
use baremesh_model::pattern::Match;
use serde_json::{Map, Value as Json};

/// A rule as a document has it.
pub(in crate::format) fn encode(rule: &Rule) -> Json {
    let mut out = Map::new();
    let mut put = |key: &str, items: Vec<Json>| {
        if !items.is_empty() {
            out.insert(key.into(), items.into());
        }
    };
    put("from", rule.from.iter().map(|source| wrap("source", encode_source(source))).collect());
    put("to", rule.to.iter().map(|operation| wrap("operation", encode_operation(operation))).collect());
    put("when", rule.when.iter().map(encode_condition).collect());
    Json::Object(out)
}

fn wrap(key: &str, value: Map<String, Json>) -> Json {
    Json::Object(Map::from_iter([(key.to_owned(), Json::Object(value))]))
}

fn encode_source(source: &Source) -> Map<String, Json> {
    let mut out = Map::new();
    put_match(&mut out, ("principals", "notPrincipals"), &source.principals, ToString::to_string);
    put_match(&mut out, ("namespaces", "notNamespaces"), &source.namespaces, ToString::to_string);
    put_match(&mut out, ("serviceAccounts", "notServiceAccounts"), &source.service_accounts, account_text);
    put_match(&mut out, ("trustDomains", "notTrustDomains"), &source.trust_domains, ToString::to_string);
    put_match(&mut out, ("ipBlocks", "notIpBlocks"), &source.ip_blocks, ToString::to_string);
    let remote = ("remoteIpBlocks", "notRemoteIpBlocks");
    put_match(&mut out, remote, &source.remote_ip_blocks, ToString::to_string);
    let principals = ("requestPrincipals", "notRequestPrincipals");
    put_match(&mut out, principals, &source.request_principals, ToString::to_string);
    out
}

fn encode_operation(operation: &Operation) -> Map<String, Json> {
    let mut out = Map::new();
    put_match(&mut out, ("hosts", "notHosts"), &operation.hosts, ToString::to_string);
    put_match(&mut out, ("ports", "notPorts"), &operation.ports, ToString::to_string);
    put_match(&mut out, ("methods", "notMethods"), &operation.methods, ToString::to_string);
    put_match(&mut out, ("paths", "notPaths"), &operation.paths, ToString::to_string);
    out
}

fn encode_condition(condition: &Condition) -> Json {
    let mut out = Map::new();
    let mut values = |key: &str, put: &dyn Fn(&mut Map<String, Json>)| {
        put(&mut out);
        out.insert("key".into(), key.into());
    };
    fn texts<T: ToString>(asked: &Match<T>) -> impl Fn(&mut Map<String, Json>) {
        move |out| put_match(out, ("values", "notValues"), asked, ToString::to_string)
    }
    match condition {
        Condition::SourceIp(asked) => values("source.ip", &texts(asked)),
        Condition::RemoteIp(asked) => values("remote.ip", &texts(asked)),
        Condition::SourceNamespace(asked) => values("source.namespace", &texts(asked)),
        Condition::SourcePrincipal(asked) => values("source.principal", &texts(asked)),
        Condition::SourceServiceAccount(asked) => values("source.serviceAccount", &|out| {
            put_match(out, ("values", "notValues"), asked, account_text);
        }),
        Condition::SourceTrustDomain(asked) => values("source.trustDomain", &texts(asked)),
        Condition::DestinationIp(asked) => values("destination.ip", &texts(asked)),
        Condition::DestinationPort(asked) => values("destination.port", &texts(asked)),
        Condition::ConnectionSni(asked) => values("connection.sni", &texts(asked)),
        Condition::RequestHeader(name, asked) => values(&format!("request.headers[{name}]"), &texts(asked)),
        Condition::RequestPrincipal(asked) => values("request.auth.principal", &texts(asked)),
        Condition::RequestAudiences(asked) => values("request.auth.audiences", &texts(asked)),
        Condition::RequestPresenter(asked) => values("request.auth.presenter", &texts(asked)),
        Condition::RequestClaim(path, asked) => {
            let names: String = path.iter().map(|name| format!("[{name}]")).collect();
            values(&format!("request.auth.claims{names}"), &texts(asked));
        }
    }
    Json::Object(out)
}

fn account_text(account: &ServiceAccount) -> String {
    format!("{}/{}", account.namespace, account.account)
}

fn put_match<T>(
    out: &mut Map<String, Json>,
    (any_of, none_of): (&str, &str),
    asked: &Match<T>,
    text: impl Fn(&T) -> String,
) {
    for (key, list) in [(any_of, &asked.any_of), (none_of, &asked.none_of)] {
        if !list.is_empty() {
            let list: Vec<Json> = list.iter().map(|item| text(item).into()).collect();
            out.insert(key.into(), list.into());
        }
    }
}
