//! Every call that the control server takes, each with who may make it. Nothing is reached but through these tables: a
//! call that is not in them does not exist, and one that is has a rule.

use baremesh_ca::protocol::{CERTIFICATES_PATH, JOIN_PATH};
use baremesh_model::operator::Need;
use baremesh_registry::control::flows::FLOWS_PATH;
use baremesh_registry::control::ownership::ADDRESSES_PATH;
use baremesh_registry::control::reach::REACH_PATH;
use http::Method;

/// The path of the control protocol.
pub(super) const STATE_PATH: &str = "/v1/state";

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Whoever brings a join token, certificate or not.
    Token,
    /// A host that is a member, with its node credential.
    Node,
    /// The same, or one whose node credential has ended: the authority lets that be renewed for a while, and nothing else.
    NodeOrEnded,
    /// An operator whose role meets the need; at the socket, root and the group.
    Operator(Need),
}

/// What a host may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostCall {
    Join,
    Certificates,
    State,
    Addresses,
    Flows,
    Reach,
}

/// What an operator may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Status,
    Resources,
    Analyze,
    Hosts,
    Versions,
    Mtls,
    Simulate,
    Apply,
    Delete,
    Rollback,
    CreateToken,
    Tokens,
    DeleteToken,
    RevokeHost,
    RevokedCertificates,
    RevokeCertificates,
    Authority,
    Bundle,
    Rotate,
    RequestChain,
    InstallChain,
    DropRoot,
    ClearAlarm,
    AddOperator,
    Operators,
    RemoveOperator,
    Audit,
}

/// A call with its rule.
#[derive(Debug)]
pub(super) struct Endpoint<C> {
    pub(super) method: Method,
    /// `{}` stands for one name.
    pub(super) path: &'static str,
    pub(super) access: Access,
    pub(super) call: C,
}

const fn of<C>(method: Method, path: &'static str, access: Access, call: C) -> Endpoint<C> {
    Endpoint { method, path, access, call }
}

const VIEW: Access = Access::Operator(Need::View);
const CHANGE: Access = Access::Operator(Need::Change);
const ADMINISTER: Access = Access::Operator(Need::Administer);

/// The calls of hosts, at the server's port.
pub(super) static OF_HOSTS: [Endpoint<HostCall>; 6] = [
    of(Method::POST, JOIN_PATH, Access::Token, HostCall::Join),
    of(Method::POST, CERTIFICATES_PATH, Access::NodeOrEnded, HostCall::Certificates),
    of(Method::POST, STATE_PATH, Access::Node, HostCall::State),
    of(Method::POST, ADDRESSES_PATH, Access::Node, HostCall::Addresses),
    of(Method::POST, FLOWS_PATH, Access::Node, HostCall::Flows),
    of(Method::POST, REACH_PATH, Access::Node, HostCall::Reach),
];

/// The orders of operators, at the socket, and below `ORDERS_PATH` at the server's port.
pub(super) static OF_OPERATORS: [Endpoint<Verb>; 27] = [
    of(Method::GET, "/status", VIEW, Verb::Status),
    of(Method::GET, "/resources", VIEW, Verb::Resources),
    of(Method::POST, "/analyze", VIEW, Verb::Analyze),
    of(Method::GET, "/hosts", VIEW, Verb::Hosts),
    of(Method::GET, "/versions", VIEW, Verb::Versions),
    of(Method::GET, "/certificates/revoked", VIEW, Verb::RevokedCertificates),
    of(Method::GET, "/ca", VIEW, Verb::Authority),
    of(Method::GET, "/ca/bundle", VIEW, Verb::Bundle),
    of(Method::GET, "/mtls", VIEW, Verb::Mtls),
    of(Method::POST, "/simulate", VIEW, Verb::Simulate),
    of(Method::POST, "/apply", CHANGE, Verb::Apply),
    of(Method::POST, "/delete", CHANGE, Verb::Delete),
    of(Method::POST, "/rollback", CHANGE, Verb::Rollback),
    of(Method::POST, "/token", ADMINISTER, Verb::CreateToken),
    of(Method::GET, "/tokens", ADMINISTER, Verb::Tokens),
    of(Method::DELETE, "/tokens/{}", ADMINISTER, Verb::DeleteToken),
    of(Method::POST, "/hosts/{}/revoke", ADMINISTER, Verb::RevokeHost),
    of(Method::POST, "/certificates/revoke", ADMINISTER, Verb::RevokeCertificates),
    of(Method::POST, "/ca/rotate", ADMINISTER, Verb::Rotate),
    of(Method::POST, "/ca/csr", ADMINISTER, Verb::RequestChain),
    of(Method::POST, "/ca/chain", ADMINISTER, Verb::InstallChain),
    of(Method::POST, "/ca/drop-root", ADMINISTER, Verb::DropRoot),
    of(Method::POST, "/alarm/clear", ADMINISTER, Verb::ClearAlarm),
    of(Method::POST, "/operators", ADMINISTER, Verb::AddOperator),
    of(Method::GET, "/operators", ADMINISTER, Verb::Operators),
    of(Method::DELETE, "/operators/{}", ADMINISTER, Verb::RemoveOperator),
    of(Method::GET, "/audit", ADMINISTER, Verb::Audit),
];

/// The call of that method and path, with the name in the path where there is one.
pub(super) fn find<'p, C>(
    table: &'static [Endpoint<C>],
    method: &Method,
    path: &'p str,
) -> Option<(&'static Endpoint<C>, &'p str)> {
    table.iter().find_map(|endpoint| {
        let name = name_in(endpoint.path, path).filter(|_| endpoint.method == *method)?;
        Some((endpoint, name))
    })
}

/// What stands where the pattern has `{}`; nothing where it has none.
fn name_in<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let Some((before, after)) = pattern.split_once("{}") else {
        return (pattern == path).then_some("");
    };
    let name = path.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_that_of_one_call_or_of_none() {
        let found = |method: Method, path: &'static str| {
            find(&OF_OPERATORS, &method, path).map(|(endpoint, name)| (endpoint.call, name))
        };
        assert_eq!(found(Method::GET, "/tokens"), Some((Verb::Tokens, "")));
        assert_eq!(found(Method::DELETE, "/tokens/a"), Some((Verb::DeleteToken, "a")));
        assert_eq!(found(Method::POST, "/hosts/h1/revoke"), Some((Verb::RevokeHost, "h1")));
        for (method, path) in [
            (Method::POST, "/tokens"),
            (Method::GET, "/tokens/a"),
            (Method::DELETE, "/tokens/"),
            (Method::DELETE, "/tokens/a/b"),
            (Method::POST, "/hosts//revoke"),
            (Method::POST, "/hosts/revoke"),
            (Method::POST, "/apply/"),
            (Method::POST, "//apply"),
            (Method::POST, "/APPLY"),
            (Method::GET, "/status?x"),
            (Method::GET, ""),
            (Method::HEAD, "/status"),
        ] {
            assert!(found(method.clone(), path).is_none(), "{method} {path}");
        }
    }

    /// What the manual says of each call is what holds: a call without a row there fails here, and so does one whose rule
    /// was changed without saying so.
    #[test]
    fn every_call_is_in_the_manual_with_who_may_make_it() {
        let manual = include_str!("../../../docs/operators.md");
        let in_words = |access| match access {
            Access::Token => "whoever has a join token",
            Access::Node => "a host, with its node credential",
            Access::NodeOrEnded => {
                "a host, with its node credential; one that has ended renews itself for 7 days"
            }
            Access::Operator(Need::View) => "viewer, editor, admin",
            Access::Operator(Need::Change) => "editor, admin",
            Access::Operator(Need::Administer) => "admin",
        };
        let mut rows: Vec<String> = OF_HOSTS
            .iter()
            .map(|e| format!("| `{} {}` | {} |", e.method, e.path, in_words(e.access)))
            .collect();
        rows.extend(OF_OPERATORS.iter().map(|e| {
            format!("| `{} {}` | {} |", e.method, e.path.replace("{}", "NAME"), in_words(e.access))
        }));
        let written: Vec<&str> = manual
            .lines()
            .filter(|line| ["| `GET ", "| `POST ", "| `DELETE "].iter().any(|start| line.starts_with(start)))
            .collect();
        assert_eq!(written, rows, "docs/operators.md says otherwise");
    }
}
