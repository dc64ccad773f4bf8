//! Routes and blocks of `match` that take nothing, because those before them take all of it.

use baremesh_model::mesh::Kind;
use baremesh_model::string_match::{Case, StringMatch};
use baremesh_model::virtual_service::{
    Gateway, HttpEntry, HttpMatch, Scope, TcpMatch, TlsMatch, VirtualService,
};
use baremesh_model::workload::selects;

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::Code;

/// Blocks of one list that later ones are compared with; a list with more is generated, and compared in part.
const MAX_BLOCKS: usize = 1000;

/// One route as far as it is about what it takes.
struct Route<'s, M> {
    blocks: &'s [M],
    /// Whether it takes what it matches; one that delegates leaves that to others.
    takes: bool,
}

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    for service in &known.parts.virtual_services {
        let root = Place::of(Kind::VirtualService, &service.key);
        let http: Vec<_> = service.http.iter().map(route_of).collect();
        in_list(report, (&root, "http"), &http, |a, b| covers_requests(a, b, service));
        let tls: Vec<_> =
            service.tls.iter().map(|route| Route { blocks: &route.matches, takes: true }).collect();
        in_list(report, (&root, "tls"), &tls, |a, b| covers_tls(a, b, service));
        let tcp: Vec<_> =
            service.tcp.iter().map(|route| Route { blocks: &route.matches, takes: true }).collect();
        in_list(report, (&root, "tcp"), &tcp, |a, b| covers_connections(a, b, service));
    }
}

fn route_of(entry: &HttpEntry) -> Route<'_, HttpMatch> {
    match entry {
        HttpEntry::Route(route) => Route { blocks: &route.matches, takes: true },
        HttpEntry::Delegate(delegation) => Route { blocks: &delegation.matches, takes: false },
    }
}

/// `covers(a, b)`: whether `a` takes all that `b` does.
fn in_list<M: Default + PartialEq>(
    report: &mut Report<'_>,
    (root, list): (&Place, &'static str),
    routes: &[Route<'_, M>],
    covers: impl Fn(&M, &M) -> bool,
) {
    let everything = M::default();
    let mut before: Vec<(usize, &M)> = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        let place = root.field(list).item(index);
        let blocks = if route.blocks.is_empty() { std::slice::from_ref(&everything) } else { route.blocks };
        let mut hidden_by = None;
        let mut hidden = 0;
        for (at, block) in blocks.iter().enumerate() {
            match before.iter().find(|(_, earlier)| covers(earlier, block)) {
                Some((by, earlier)) => {
                    (hidden, hidden_by) = (hidden + 1, Some(*by));
                    // One that takes everything hides the route, and that is said once.
                    if **earlier != everything {
                        let message = format!(
                            "`{list}[{index}].match[{at}]` takes nothing: `{list}[{by}]` takes all of it"
                        );
                        let help = "remove it, or put it before the other";
                        report.warning(&place.field("match").item(at), Code::IneffectiveMatch, message, help);
                    }
                }
                // What stands beside it in the same route takes effect with it.
                None if route.takes && before.len() < MAX_BLOCKS => before.push((index, block)),
                None => {}
            }
        }
        if let (Some(by), true) = (hidden_by, hidden == blocks.len()) {
            let message = match hidden {
                1 => format!(
                    "`{list}[{index}]` takes nothing: `{list}[{by}]` before it takes all that it matches"
                ),
                _ => format!("`{list}[{index}]` takes nothing: routes before it take all that it matches"),
            };
            let help = "put the more special routes first, and the one without `match` last";
            report.warning(&place, Code::UnreachableRoute, message, help);
        }
    }
}

fn covers_requests(a: &HttpMatch, b: &HttpMatch, of: &VirtualService) -> bool {
    let named = |a: &[(std::sync::Arc<str>, StringMatch)], b: &[(std::sync::Arc<str>, StringMatch)]| {
        a.iter().all(|(name, asked)| {
            b.iter().any(|(other, text)| other == name && covers_text(asked, text, Case::Sensitive))
        })
    };
    let same = |a: &[(std::sync::Arc<str>, StringMatch)], b: &[(std::sync::Arc<str>, StringMatch)]| {
        a.iter().all(|asked| b.contains(asked))
    };
    let text = |a: &Option<StringMatch>, b: &Option<StringMatch>| option_covers(a, b, Case::Sensitive);
    let uri = match (a.uri_case, b.uri_case) {
        (Case::Sensitive, Case::Ignored) => a.uri.is_none() || matches!(a.uri, Some(StringMatch::Present)),
        (case, _) => option_covers(&a.uri, &b.uri, case),
    };
    // With gateways of its own a block does not look at the source.
    let source = |scope: &Scope| match scope.gateways.is_empty() {
        true => scope.clone(),
        false => Scope { source_labels: Default::default(), source_namespace: None, ..scope.clone() },
    };
    uri && text(&a.scheme, &b.scheme)
        && text(&a.method, &b.method)
        && text(&a.authority, &b.authority)
        && named(&a.headers, &b.headers)
        && same(&a.without_headers, &b.without_headers)
        && named(&a.query_params, &b.query_params)
        && covers_scope(&source(&a.scope), &source(&b.scope), of)
}

fn covers_tls(a: &TlsMatch, b: &TlsMatch, of: &VirtualService) -> bool {
    // A default block is no block of a file: it stands for a route without any.
    let names = a.sni_hosts.is_empty()
        || (!b.sni_hosts.is_empty()
            && b.sni_hosts.iter().all(|name| a.sni_hosts.iter().any(|host| host.covers(name))));
    names && covers_connections(&a.connection, &b.connection, of)
}

fn covers_connections(a: &TcpMatch, b: &TcpMatch, of: &VirtualService) -> bool {
    let within = |inner: &ipnet::IpNet| a.destination_subnets.iter().any(|outer| outer.contains(inner));
    let subnets = a.destination_subnets.is_empty()
        || (!b.destination_subnets.is_empty() && b.destination_subnets.iter().all(within));
    subnets && covers_scope(&a.scope, &b.scope, of)
}

fn covers_scope(a: &Scope, b: &Scope, of: &VirtualService) -> bool {
    let gateways = |scope: &Scope| -> Vec<Gateway> {
        let all = &of.gateways;
        match scope.gateways.is_empty() {
            true => all.clone(),
            false => scope.gateways.iter().filter(|gateway| all.contains(gateway)).cloned().collect(),
        }
    };
    let (outer, inner) = (gateways(a), gateways(b));
    // One that holds nowhere is another fault.
    !inner.is_empty()
        && inner.iter().all(|gateway| outer.contains(gateway))
        && selects(&a.source_labels, &b.source_labels)
        && (a.source_namespace.is_none() || a.source_namespace == b.source_namespace)
        && (a.port.is_none() || a.port == b.port)
}

fn option_covers(a: &Option<StringMatch>, b: &Option<StringMatch>, case: Case) -> bool {
    match (a, b) {
        (None | Some(StringMatch::Present), _) => true,
        (Some(a), Some(b)) => covers_text(a, b, case),
        (Some(_), None) => false,
    }
}

/// Whether every text that `b` matches is matched by `a`; where that is not plain, it is not said.
fn covers_text(a: &StringMatch, b: &StringMatch, case: Case) -> bool {
    match (a, b) {
        (StringMatch::Present, _) => true,
        // The text that stands in `b` is the only one that it matches, or the start of all.
        (_, StringMatch::Exact(text)) => a.matches_in(text, case),
        (StringMatch::Prefix(_), StringMatch::Prefix(text)) => a.matches_in(text, case),
        (StringMatch::Regex(a), StringMatch::Regex(b)) => a.as_str() == b.as_str(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use baremesh_model::re2::Re2;

    #[test]
    fn texts_cover_texts() {
        let exact = |text: &str| StringMatch::Exact(text.into());
        let prefix = |text: &str| StringMatch::Prefix(text.into());
        let regex = |text: &str| StringMatch::Regex(Re2::new(text).expect("an expression"));
        for (a, b, expected) in [
            (exact("/a"), exact("/a"), true),
            (exact("/a"), prefix("/a"), false),
            (prefix("/a"), exact("/ab"), true),
            (prefix("/a"), prefix("/ab"), true),
            (prefix("/ab"), prefix("/a"), false),
            (regex("/a.*"), exact("/ab"), true),
            (regex("/a.*"), prefix("/a"), false),
            (regex("/a"), regex("/a"), true),
            (prefix("/"), regex("/a"), false),
            (prefix("/"), StringMatch::Present, false),
            (StringMatch::Present, regex("/a"), true),
        ] {
            assert_eq!(covers_text(&a, &b, Case::Sensitive), expected, "{a} {b}");
        }
        assert!(covers_text(&prefix("/A"), &exact("/ab"), Case::Ignored));
        assert!(!covers_text(&prefix("/A"), &exact("/ab"), Case::Sensitive));
    }
}
