use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::*;
use crate::http::RequestHead;
use crate::identity::Identity;
use crate::name::Label;
use crate::pattern::{Match, Pattern};
use crate::service::Protocol;
use crate::token::{Claim, Token};
use crate::workload::Labels;

fn label(text: &str) -> Label {
    Label::new(text).expect("a label")
}

fn matching<T>(any_of: Vec<T>, none_of: Vec<T>) -> Match<T> {
    Match { any_of, none_of }
}

fn patterns(any_of: &[&str], none_of: &[&str]) -> Match<Pattern> {
    let read = |texts: &[&str]| texts.iter().map(|text| Pattern::new(text)).collect();
    matching(read(any_of), read(none_of))
}

fn paths(any_of: &[&str], none_of: &[&str]) -> Match<PathPattern> {
    let read = |texts: &[&str]| texts.iter().map(|text| PathPattern::new(text).expect("a path")).collect();
    matching(read(any_of), read(none_of))
}

fn from(source: Source) -> Rule {
    Rule { from: vec![source], ..Rule::default() }
}

fn to(operation: Operation) -> Rule {
    Rule { to: vec![operation], ..Rule::default() }
}

fn when(condition: Condition) -> Rule {
    Rule { when: vec![condition], ..Rule::default() }
}

fn principals(any_of: &[&str], none_of: &[&str]) -> Rule {
    from(Source { principals: patterns(any_of, none_of), ..Source::default() })
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Arc<AuthorizationPolicy> {
    let key = Key::new(label("shop"), label(name));
    let enforcement = Enforcement::Enforced;
    Arc::new(AuthorizationPolicy {
        key,
        selector: None,
        action,
        enforcement,
        rules,
        response: None,
        provider: None,
    })
}

fn dry(mut policy: Arc<AuthorizationPolicy>) -> Arc<AuthorizationPolicy> {
    Arc::make_mut(&mut policy).enforcement = Enforcement::DryRun;
    policy
}

fn set(policies: &[Arc<AuthorizationPolicy>]) -> PolicySet {
    let (namespace, root) = (label("shop"), label("mesh-system"));
    PolicySet::new(PolicySet::select(policies, &namespace, &Labels::new(), &root).cloned().collect())
}

fn connection(source: Option<&Identity>) -> Connection<'_> {
    Connection {
        source,
        source_ip: "10.0.0.1".parse().expect("an address"),
        destination_ip: "10.0.0.2".parse().expect("an address"),
        destination_port: 8080,
        server_name: ServerName::None,
    }
}

fn identity(text: &str) -> Identity {
    Identity::parse(&format!("spiffe://td/{text}")).expect("an identity")
}

const WEB: Option<&str> = Some("ns/shop/sa/web");
const OTHER: Option<&str> = Some("ns/shop/sa/other");

/// Whether bytes of a caller go on.
fn check(policies: &[Arc<AuthorizationPolicy>], caller: Option<&str>, allowed: bool) {
    let caller = caller.map(identity);
    let (set, connection) = (set(policies), connection(caller.as_ref()));
    let decision = set.decide(Facts { connection, carried: Carried::Bytes });
    assert_eq!(decision.verdict.allows(), allowed, "{caller:?}: {}", decision.verdict);
}

/// A request of `shop/web`: method, authority, target, and fields.
fn head(method: &str, authority: &str, target: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead {
        method: method.into(),
        authority: authority.into(),
        target: target.into(),
        ..RequestHead::default()
    };
    for (name, value) in fields {
        head.headers.append(name, value.as_bytes()).expect("a field");
    }
    head
}

fn goes_on(policies: &[Arc<AuthorizationPolicy>], head: &RequestHead, token: Option<&Token>) -> bool {
    let (caller, remote_ip) = (identity("ns/shop/sa/web"), IpAddr::from([192, 0, 2, 7]));
    let request = Request { head, token, remote_ip, allowed_by: &[] };
    let facts = Facts { connection: connection(Some(&caller)), carried: Carried::Request(&request) };
    set(policies).decide(facts).verdict.allows()
}

/// Whether a rule matches a request, both ways round.
fn check_rule(rule: &Rule, head: &RequestHead, token: Option<&Token>, matches: bool) {
    let allow = goes_on(&[policy("p", Action::Allow, vec![rule.clone()])], head, token);
    let deny = goes_on(&[policy("p", Action::Deny, vec![rule.clone()])], head, token);
    assert_eq!((allow, deny), (matches, !matches), "{rule:?} on {head:?}");
}

#[test]
fn denials_come_first_and_allowances_close_the_rest() {
    let allow_web = policy("allow-web", Action::Allow, vec![principals(&["td/ns/shop/sa/web"], &[])]);
    let deny_web = policy("deny-web", Action::Deny, vec![principals(&["*/sa/web"], &[])]);
    check(&[], WEB, true);
    check(std::slice::from_ref(&allow_web), WEB, true);
    check(std::slice::from_ref(&allow_web), OTHER, false);
    check(&[allow_web, deny_web], WEB, false);
    check(&[policy("nothing", Action::Allow, vec![])], WEB, false);
    check(&[policy("all", Action::Allow, vec![Rule::default()])], None, true);
}

#[test]
fn identity_rules_fail_closed_without_an_identity() {
    let rule = |any_of: &[&str], none_of: &[&str]| vec![principals(any_of, none_of)];
    check(&[policy("p", Action::Allow, rule(&["td/ns/shop/sa/web"], &[]))], None, false);
    check(&[policy("p", Action::Allow, rule(&["*"], &[]))], None, false);
    check(&[policy("p", Action::Deny, rule(&["td/ns/shop/sa/web"], &[]))], None, false);
    check(&[policy("p", Action::Deny, rule(&["*"], &[]))], None, true);
    check(&[policy("p", Action::Deny, rule(&[], &["*"]))], None, false);
    check(&[policy("p", Action::Deny, rule(&[], &["*"]))], WEB, true);
    check(&[policy("p", Action::Deny, rule(&[], &["td/ns/shop/sa/web"]))], None, false);
}

#[test]
fn audit_and_dry_run_decide_nothing_and_are_noted() {
    let audit = policy("audit", Action::Audit, vec![Rule::default()]);
    let deny = dry(policy("deny", Action::Deny, vec![Rule::default(), Rule::default()]));
    let allow = dry(policy("allow", Action::Allow, vec![Rule::default()]));
    let caller = identity("ns/shop/sa/web");
    let told = |policies: &[Arc<AuthorizationPolicy>]| {
        let set = set(policies);
        let decision = set.decide(Facts { connection: connection(Some(&caller)), carried: Carried::Bytes });
        assert_eq!(decision.verdict, Verdict::AllowedByDefault);
        (decision.notes.len(), decision.dry_run.map(|verdict| verdict.to_string()))
    };
    let denied = Some("denied by AuthorizationPolicy shop/deny".to_owned());
    assert_eq!(told(&[audit.clone(), deny, allow.clone()]), (3, denied));
    assert_eq!(told(&[audit]), (1, None));
    assert_eq!(told(&[allow]).1, Some("allowed by AuthorizationPolicy shop/allow".to_owned()));
    // What an ALLOW in dry run does not name would be refused with it, and nothing matches to be noted.
    let nobody = dry(policy("nobody", Action::Allow, vec![principals(&["nobody"], &[])]));
    assert_eq!(told(&[nobody]), (0, Some("no ALLOW policy of the workload matches".to_owned())));
}

#[test]
fn ports_addresses_and_conditions_hold_together() {
    let rule = |port: u16, block: &str| Rule {
        to: vec![Operation { ports: matching(vec![port], vec![]), ..Operation::default() }],
        when: vec![Condition::SourceIp(matching(vec![block.parse().expect("a block")], vec![]))],
        ..Rule::default()
    };
    check(&[policy("p", Action::Allow, vec![rule(8080, "10.0.0.0/8")])], WEB, true);
    check(&[policy("p", Action::Allow, vec![rule(8081, "10.0.0.0/8")])], WEB, false);
    check(&[policy("p", Action::Allow, vec![rule(8080, "192.168.0.0/16")])], WEB, false);
}

#[test]
fn selection_goes_by_namespace_root_and_labels() {
    let mut other = (*policy("p", Action::Allow, vec![])).clone();
    other.key.namespace = label("elsewhere");
    check(&[Arc::new(other.clone())], WEB, true);
    other.key.namespace = label("mesh-system");
    check(&[Arc::new(other.clone())], WEB, false);
    other.selector = Some([("app".into(), "orders".into())].into());
    check(&[Arc::new(other)], WEB, true);
}

#[test]
fn methods_paths_and_hosts_are_matched() {
    let path = |any_of: &[&str], none_of: &[&str]| {
        to(Operation { paths: paths(any_of, none_of), ..Operation::default() })
    };
    let host = |any_of: &[&str], none_of: &[&str]| {
        to(Operation { hosts: patterns(any_of, none_of), ..Operation::default() })
    };
    let method = |any_of: &[&str], none_of: &[&str]| {
        to(Operation { methods: patterns(any_of, none_of), ..Operation::default() })
    };
    let get = head("GET", "Shop.mesh:8080", "/admin/users?x=/public", &[]);
    for (rule, matches) in [
        (path(&["/admin/users"], &[]), true),
        (path(&["/admin/users?x=/public"], &[]), false),
        (path(&["*/public"], &[]), false),
        (path(&["/admin/*"], &[]), true),
        (path(&["/Admin/*"], &[]), false),
        (path(&["*"], &["/admin/*"]), false),
        (path(&["/admin/{*}"], &[]), true),
        (path(&[], &["/public"]), true),
        (host(&["shop.mesh"], &[]), true),
        (host(&["SHOP.*"], &[]), true),
        (host(&["shop.mesh:8080"], &[]), true),
        (host(&["shop.mesh:80"], &[]), false),
        (host(&["*.mesh"], &[]), true),
        (host(&[], &["shop.mesh"]), false),
        (method(&["GET"], &[]), true),
        (method(&["get"], &[]), false),
        (method(&["*"], &["GET", "HEAD"]), false),
    ] {
        check_rule(&rule, &get, None, matches);
    }
    check_rule(&host(&["shop.mesh"], &[]), &head("GET", "shop.mesh.:80", "/", &[]), None, true);
    check_rule(&host(&["*"], &[]), &head("GET", "", "/", &[]), None, false);
}

#[test]
fn every_line_of_a_field_counts() {
    let header = |any_of: &[&str], none_of: &[&str]| {
        when(Condition::RequestHeader("x-role".into(), patterns(any_of, none_of)))
    };
    let decided = |rule: &Rule, lines: &[&str]| {
        let fields: Vec<_> = lines.iter().map(|line| ("x-role", *line)).collect();
        let head = head("GET", "shop", "/", &fields);
        let goes_on = |action| goes_on(&[policy("p", action, vec![rule.clone()])], &head, None);
        (goes_on(Action::Allow), goes_on(Action::Deny))
    };
    let (user, no_admin) = (header(&["user"], &[]), header(&[], &["admin"]));
    assert_eq!(decided(&user, &["user"]), (true, false));
    assert_eq!(decided(&user, &["user", "admin"]), (false, false), "neither side is talked round");
    assert_eq!(decided(&user, &["admin"]), (false, true));
    assert_eq!(decided(&user, &["user,admin"]), (false, true), "a line is one value");
    assert_eq!(decided(&user, &[]), (false, true));
    assert_eq!(decided(&no_admin, &[]), (true, false));
    assert_eq!(decided(&no_admin, &["user", "admin"]), (false, false));
    assert_eq!(decided(&header(&["*"], &[]), &[""]), (true, false), "there, if empty");
    assert_eq!(decided(&header(&[], &["*"]), &[]), (true, false), "not there");
    let pseudo = when(Condition::RequestHeader(":path".into(), patterns(&["/a?b"], &[])));
    check_rule(&pseudo, &head("GET", "shop", "/a?b", &[]), None, true);
}

#[test]
fn tokens_are_matched_by_their_claims() {
    let text = |text: &str| Claim::Text(text.to_owned());
    let groups = Claim::List(vec![text("admin"), text("user")]);
    let realm = Claim::Map(BTreeMap::from([("groups".to_owned(), groups)]));
    let token = Token {
        issuer: "https://issuer".to_owned(),
        subject: "jason".to_owned(),
        audiences: vec!["a".to_owned(), "b".to_owned()],
        presenter: Some("app".to_owned()),
        claims: BTreeMap::from([
            ("realm".to_owned(), realm),
            ("n".to_owned(), Claim::Number("1".to_owned())),
        ]),
    };
    let claim = |path: &[&str], any_of: &[&str], none_of: &[&str]| {
        let path = path.iter().map(|name| Arc::from(*name)).collect();
        when(Condition::RequestClaim(path, patterns(any_of, none_of)))
    };
    let principal = |any_of: &[&str], none_of: &[&str]| {
        from(Source { request_principals: patterns(any_of, none_of), ..Source::default() })
    };
    let get = head("GET", "shop", "/", &[]);
    for (rule, with, without) in [
        (principal(&["https://issuer/jason"], &[]), true, false),
        (principal(&["https://issuer/*"], &[]), true, false),
        (principal(&["*"], &[]), true, false),
        (principal(&[], &["*"]), false, true),
        (principal(&[], &["https://issuer/jason"]), false, true),
        (when(Condition::RequestPrincipal(patterns(&["*/jason"], &[]))), true, false),
        (when(Condition::RequestAudiences(patterns(&["b"], &[]))), true, false),
        (when(Condition::RequestAudiences(patterns(&[], &["b"]))), false, true),
        (when(Condition::RequestPresenter(patterns(&["app"], &[]))), true, false),
        (claim(&["realm", "groups"], &["admin"], &[]), true, false),
        (claim(&["realm", "groups"], &[], &["admin"]), false, true),
        (claim(&["realm"], &["*"], &[]), false, false),
        (claim(&["n"], &["1"], &[]), false, false),
    ] {
        check_rule(&rule, &get, Some(&token), with);
        check_rule(&rule, &get, None, without);
    }
}

#[test]
fn remote_addresses_are_the_requests_own() {
    let rule = |block: &str| {
        let blocks = matching(vec![block.parse().expect("a block")], vec![]);
        from(Source { remote_ip_blocks: blocks, ..Source::default() })
    };
    let get = head("GET", "shop", "/", &[]);
    check_rule(&rule("192.0.2.0/24"), &get, None, true);
    check_rule(&rule("10.0.0.0/8"), &get, None, false);
    check(&[policy("p", Action::Allow, vec![rule("10.0.0.0/8")])], WEB, true);
}

#[test]
fn server_names_are_any_of_the_services() {
    let rule = |name: &str| when(Condition::ConnectionSni(patterns(&[name], &[])));
    let names = ["web.shop.mesh.internal".into(), "outbound_.80_._.web.shop.svc.cluster.local".into()];
    let caller = identity("ns/shop/sa/web");
    let decided = |name: &str, action, server_name| {
        let connection = Connection { server_name, ..connection(Some(&caller)) };
        let set = set(&[policy("p", action, vec![rule(name)])]);
        set.decide(Facts { connection, carried: Carried::Bytes }).verdict.allows()
    };
    let service = ServerName::Service(&names);
    assert!(decided("*.web.shop.svc.cluster.local", Action::Allow, service));
    assert!(decided("web.shop.mesh.internal", Action::Allow, service));
    assert!(!decided("never", Action::Allow, service));
    assert!(!decided("*", Action::Allow, ServerName::None));
    for action in [Action::Allow, Action::Deny] {
        let is_allow = action == Action::Allow;
        assert_eq!(decided("*.example", action, ServerName::Asked("shop.example")), is_allow);
        assert_eq!(decided("web.shop.mesh.internal", action, ServerName::Asked("shop.example")), !is_allow);
        assert!(decided("never", action, ServerName::Pending), "what is to come decides");
    }
    // Not read is not known: neither side is opened by it.
    assert!(!decided("never", Action::Allow, ServerName::Unread));
    assert!(!decided("never", Action::Deny, ServerName::Unread));
}

#[test]
fn the_server_name_is_that_of_the_applications_own_tls_where_some_is_carried() {
    let (caller, names) = (identity("ns/shop/sa/web"), ["web.shop.mesh.internal".into()]);
    let of = |protocol, carried, hello: &Hello| {
        format!("{:?}", server_name((Some(&caller), &names), protocol, carried, hello))
    };
    let named = Hello::Named("a.example".into());
    let of_service = format!("{:?}", ServerName::Service(&names));
    for protocol in [Protocol::Tls, Protocol::Https, Protocol::Auto] {
        for (hello, expected) in [
            (&named, "Asked(\"a.example\")"),
            (&Hello::Nameless, "None"),
            (&Hello::Absent, &*of_service),
            (&Hello::Pending, "Pending"),
            (&Hello::Unread, "Unread"),
        ] {
            assert_eq!(of(protocol, Carried::Bytes, hello), expected, "{protocol:?}");
        }
    }
    for protocol in [Protocol::Tcp, Protocol::Http, Protocol::Grpc] {
        assert_eq!(of(protocol, Carried::opening(protocol), &Hello::Pending), of_service);
    }
    assert_eq!(of(Protocol::Auto, Carried::Requests, &Hello::Pending), "Pending");
    assert_eq!(of(Protocol::Auto, Carried::Requests, &Hello::Unread), of_service, "requests came");
    let without = server_name((None, &names), Protocol::Tls, Carried::Bytes, &Hello::Absent);
    assert!(matches!(without, ServerName::None));
}

#[test]
fn what_is_no_request_is_refused_by_what_is_known() {
    let get = Operation {
        methods: patterns(&["GET"], &[]),
        ports: matching(vec![8080], vec![]),
        ..Operation::default()
    };
    let other_port = Operation { ports: matching(vec![1], vec![]), ..get.clone() };
    let caller = identity("ns/shop/sa/web");
    let decided = |action, rule: Rule| {
        let set = set(&[policy("p", action, vec![rule])]);
        let allows =
            |carried| set.decide(Facts { connection: connection(Some(&caller)), carried }).verdict.allows();
        (allows(Carried::Bytes), allows(Carried::Requests))
    };
    assert_eq!(decided(Action::Allow, to(get.clone())), (false, true), "only a request can be GET");
    assert_eq!(decided(Action::Allow, to(other_port.clone())), (false, false), "no request changes the port");
    assert_eq!(decided(Action::Deny, to(get.clone())), (false, true));
    assert_eq!(decided(Action::Deny, to(other_port)), (true, true));
    assert_eq!(decided(Action::Deny, principals(&["*/web"], &[])), (false, false));
    let two = Rule {
        to: vec![get, Operation { ports: matching(vec![8080], vec![]), ..Operation::default() }],
        ..Rule::default()
    };
    assert_eq!(decided(Action::Deny, two), (false, false), "its second operation asks for no request");
}

#[test]
fn refusals_name_their_policy_and_say_what_it_says() {
    let mut deny =
        (*policy("no-admin", Action::Deny, vec![principals(&["x"], &[]), Rule::default()])).clone();
    deny.response = DenyResponse::new(404, Some("not found".into()));
    let set = set(&[Arc::new(deny)]);
    let verdict = set.decide(Facts { connection: connection(None), carried: Carried::Bytes }).verdict;
    // The caller has no identity, and the first rule takes it for `x`.
    assert_eq!(verdict.details(), "rbac_access_denied_matched_policy[ns[shop]-policy[no-admin]-rule[0]]");
    let response = verdict.response().expect("the policy has one");
    assert_eq!((response.status(), response.body()), (404, Some("not found")));
    assert_eq!(Verdict::NotAllowed.details(), "rbac_access_denied_matched_policy[none]");
    for (status, length) in [(399, 0), (600, 0), (403, DenyResponse::MAX_BODY + 1)] {
        assert_eq!(DenyResponse::new(status, Some("x".repeat(length).into())), None);
    }
}

#[test]
fn of_twenty_thousand_rules_few_are_asked() {
    // All name the same caller, and each something of its own.
    let operation = |asked: Operation| vec![asked];
    let rule = |number: usize, own: usize| {
        let mut rule = principals(&["td/ns/shop/sa/web"], &[]);
        let path =
            |text: String| operation(Operation { paths: paths(&[&text], &[]), ..Operation::default() });
        match own % 6 {
            0 => {
                let hosts = patterns(&[&format!("{own}.host{number}")], &[]);
                rule.to = operation(Operation { hosts, ..Operation::default() });
            }
            1 => rule.to = path(format!("/{number}/{own}/*")),
            2 => rule.to = path(format!("/{number}/{own}")),
            3 => rule.to = path(format!("*.{number}.{own}")),
            4 => {
                let tenant = patterns(&[&format!("{number}.{own}")], &[]);
                rule.when = vec![Condition::RequestHeader("x-tenant".into(), tenant)];
            }
            _ => {
                let network = format!("10.{}.{}.{own}/32", number / 256, number % 256);
                rule.from[0].ip_blocks = matching(vec![network.parse().expect("a network")], vec![]);
            }
        }
        rule
    };
    let rules = |number| (0..20).map(|own| rule(number, own)).collect();
    let policies: Vec<_> = (0..1000).map(|number| policy("p", Action::Allow, rules(number))).collect();
    let index = index::RuleIndex::new(&policies, |_| true);
    let caller = identity("ns/shop/sa/web");
    for (path, host, tenant, source_ip, expected) in [
        ("/7/2", "x", "", [10, 255, 0, 1], 1),
        ("/999/1/x", "x", "", [10, 255, 0, 1], 1),
        ("/", "6.host3", "", [10, 255, 0, 1], 1),
        ("/x.3.9", "x", "", [10, 255, 0, 1], 1),
        ("/", "x", "5.4", [10, 255, 0, 1], 1),
        ("/", "x", "5.5", [10, 3, 231, 5], 1),
        ("/", "x", "", [10, 255, 0, 1], 0),
    ] {
        let head = head("GET", host, path, &[("x-tenant", tenant)]);
        let request =
            Request { head: &head, token: None, remote_ip: IpAddr::from([10, 0, 0, 1]), allowed_by: &[] };
        let connection = Connection { source_ip: source_ip.into(), ..connection(Some(&caller)) };
        let facts = Facts { connection, carried: Carried::Request(&request) };
        let mut asked = 0;
        index.each(facts, |_| asked += 1);
        assert_eq!(asked, expected, "{host}{path} {tenant} {source_ip:?}");
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    fn of<T: Clone + std::fmt::Debug + 'static>(all: Vec<T>) -> impl Strategy<Value = Match<T>> {
        let one = proptest::sample::select(all);
        (vec(one.clone(), 0..3), vec(one, 0..2)).prop_map(|(any_of, none_of)| Match { any_of, none_of })
    }
    let texts = |all: &[&str]| of(all.iter().map(|text| Pattern::new(text)).collect());
    let accounts =
        ["web", "other"].map(|account| ServiceAccount { namespace: label("shop"), account: label(account) });
    let networks = ["10.0.0.0/8", "10.0.0.1/32", "10.0.0.1/31", "192.0.2.0/24", "::/0"];
    let networks = || of(networks.iter().map(|text| text.parse().expect("a network")).collect());
    let source = (
        texts(&["td/ns/shop/sa/web", "td/ns/shop/sa/other", "other/ns/shop/sa/web", "*/web", "x", "*"]),
        texts(&["shop", "else", "*p", "*"]),
        of(accounts.to_vec()),
        networks(),
        texts(&["i/s", "i/*", "x"]),
    );
    let source =
        source.prop_map(|(principals, namespaces, service_accounts, ip_blocks, request_principals)| Source {
            principals,
            namespaces,
            service_accounts,
            ip_blocks,
            request_principals,
            ..Source::default()
        });
    let paths = ["/a", "/a*", "/a/b", "/a/*", "*b", "*", "/{*}/b", "/*"];
    let paths = of(paths.iter().map(|text| PathPattern::new(text).expect("a path")).collect());
    let operation =
        (texts(&["Shop", "shop:80", "*p", "sho*", "x"]), of(vec![8080, 1]), texts(&["GET", "POST"]), paths);
    let operation =
        operation.prop_map(|(hosts, ports, methods, paths)| Operation { hosts, ports, methods, paths });
    let condition = prop_oneof![
        texts(&["v", "w", "*"]).prop_map(|values| Condition::RequestHeader("x".into(), values)),
        texts(&["shop", "x"]).prop_map(|values| Condition::RequestHeader("host".into(), values)),
        texts(&["shop", "else"]).prop_map(Condition::SourceNamespace),
        texts(&["td/ns/shop/sa/web", "x"]).prop_map(Condition::SourcePrincipal),
        of(accounts.to_vec()).prop_map(Condition::SourceServiceAccount),
        networks().prop_map(Condition::SourceIp),
        of(vec![8080, 1]).prop_map(Condition::DestinationPort),
        texts(&["i/s", "x"]).prop_map(Condition::RequestPrincipal),
    ];
    (vec(source, 0..3), vec(operation, 0..3), vec(condition, 0..2)).prop_map(|(from, to, when)| Rule {
        from,
        to,
        when,
    })
}

fn any_policies() -> impl Strategy<Value = Vec<Arc<AuthorizationPolicy>>> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Audit)];
    let one = (action, any::<bool>(), vec(any_rule(), 0..4)).prop_map(|(action, is_dry, rules)| {
        let policy = policy("p", action, rules);
        if is_dry { dry(policy) } else { policy }
    });
    vec(one, 0..8)
}

/// The first policy of a kind, and its rule, that matches when all are asked in their order.
fn first<'a>(
    policies: &'a [Arc<AuthorizationPolicy>],
    (action, enforcement): (Action, Enforcement),
    facts: Facts<'a>,
) -> Option<(*const AuthorizationPolicy, usize)> {
    let chosen =
        policies.iter().filter(|policy| policy.action == action && policy.enforcement == enforcement);
    let mut chosen =
        chosen.map(|policy| (&raw const **policy, policy.unmet(facts).position(|unmet| unmet.is_none())));
    chosen.find_map(|(policy, rule)| Some((policy, rule?)))
}

proptest! {
    /// What is looked up is what is found by asking every rule in turn.
    #[test]
    fn looking_up_finds_what_asking_all_finds(
        policies in any_policies(),
        caller in proptest::sample::select(vec![None, Some("ns/shop/sa/web"), Some("ns/else/sa/web")]),
        authority in proptest::sample::select(vec!["shop", "SHOP.:80", "shop:80", "x", ""]),
        path in proptest::sample::select(vec!["/a", "/a/b", "/b", "*", "", "/ab?/a"]),
        method in proptest::sample::select(vec!["GET", "PUT"]),
        fields in vec(proptest::sample::select(vec![("x", "v"), ("x", "w"), ("y", "v")]), 0..3),
        has_token in any::<bool>(),
        stage in 0..3_u8,
    ) {
        let caller = caller.map(identity);
        let head = head(method, authority, path, &fields);
        let token = Token {
            issuer: "i".into(),
            subject: "s".into(),
            audiences: vec![],
            presenter: None,
            claims: BTreeMap::new(),
        };
        let token = has_token.then_some(&token);
        let request = Request { head: &head, token, remote_ip: IpAddr::from([10, 0, 0, 1]), allowed_by: &[] };
        let carried = [Carried::Bytes, Carried::Requests, Carried::Request(&request)][usize::from(stage)];
        let facts = Facts { connection: connection(caller.as_ref()), carried };
        let set = PolicySet::new(policies.clone());
        let decision = set.decide(facts);
        let denied = first(&policies, (Action::Deny, Enforcement::Enforced), facts);
        let allowed = first(&policies, (Action::Allow, Enforcement::Enforced), facts);
        let told = match decision.verdict {
            Verdict::DeniedBy(matched) => (Some((&raw const *matched.policy, matched.rule)), None),
            Verdict::AllowedBy(matched) => (None, Some((&raw const *matched.policy, matched.rule))),
            Verdict::AllowedByDefault | Verdict::NotAllowed => (None, None),
        };
        let expected = if denied.is_some() { (denied, None) } else { (None, allowed) };
        prop_assert_eq!(told, expected);
        let noted = policies.iter().filter(|policy| {
            let decides = policy.enforcement == Enforcement::Enforced && policy.action != Action::Audit;
            !decides && policy.unmet(facts).any(|unmet| unmet.is_none())
        });
        let is_begun = matches!(carried, Carried::Requests) && decision.verdict.allows();
        let noted = if is_begun { 0 } else { noted.count() };
        prop_assert_eq!(decision.notes.len(), noted);
    }
}

/// A policy that has a provider asked.
fn custom(name: &str, provider: &str, rules: Vec<Rule>) -> Arc<AuthorizationPolicy> {
    let mut policy = policy(name, Action::Custom, rules);
    Arc::make_mut(&mut policy).provider = Some(provider.into());
    policy
}

/// Who is asked about a call, one after the other, while each allows it.
fn asked(policies: &[Arc<AuthorizationPolicy>], carried: Carried<'_>) -> Vec<Arc<str>> {
    let (set, mut asked) = (set(policies), Vec::new());
    let facts = Facts { connection: connection(None), carried };
    while let Some(asks) = set.asks(facts, &asked) {
        asked.push(asks.provider.into());
    }
    asked
}

#[test]
fn every_provider_whose_policies_match_is_asked_once_and_none_else() {
    let path = |path: &str| to(Operation { paths: paths(&[path], &[]), ..Operation::default() });
    let policies = [
        custom("a", "first", vec![path("/api/*")]),
        custom("b", "second", vec![path("/api/admin")]),
        custom("c", "first", vec![Rule::default()]),
        custom("d", "third", Vec::new()),
        policy("e", Action::Deny, vec![Rule::default()]),
    ];
    let of = |path: &str| {
        let head = head("GET", "orders", path, &[]);
        let request =
            Request { head: &head, token: None, remote_ip: IpAddr::from([10, 0, 0, 1]), allowed_by: &[] };
        asked(&policies, Carried::Request(&request)).iter().map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(of("/api/admin"), ["first", "second"]);
    assert_eq!(of("/api/x"), ["first"]);
    assert_eq!(of("/"), ["first"]);
    assert!(set(&policies).may_ask() && !set(&policies[3..]).may_ask());
    // What a provider refuses or not is not what other policies decide.
    assert!(!goes_on(&policies, &head("GET", "orders", "/", &[]), None));
    assert!(goes_on(&policies[..4], &head("GET", "orders", "/", &[]), None));
}

#[test]
fn bytes_are_asked_about_as_if_a_rule_had_no_field_of_requests() {
    let rule = |port: u16| {
        let ports = matching(vec![port], Vec::new());
        to(Operation { ports, paths: paths(&["/x"], &[]), ..Operation::default() })
    };
    assert_eq!(asked(&[custom("a", "p", vec![rule(8080)])], Carried::Bytes).len(), 1);
    assert!(asked(&[custom("a", "p", vec![rule(80)])], Carried::Bytes).is_empty());
    assert!(
        asked(&[custom("a", "p", vec![rule(8080)])], Carried::Requests).is_empty(),
        "each is asked about itself"
    );
    // Who calls is not known: it may be whom the rule means.
    assert_eq!(
        asked(&[custom("a", "p", vec![principals(&["td/ns/shop/sa/web"], &[])])], Carried::Bytes).len(),
        1
    );
}

#[test]
fn a_policy_without_a_provider_asks_somebody_whom_nobody_knows() {
    let policies = [policy("a", Action::Custom, vec![Rule::default()])];
    let facts = Facts { connection: connection(None), carried: Carried::Bytes };
    let set = set(&policies);
    let asks = set.asks(facts, &["p".into()]).expect("somebody is asked");
    assert_eq!(asks.provider, "");
}
