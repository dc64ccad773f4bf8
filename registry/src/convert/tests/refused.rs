use super::*;

fn check(json: &str, default_policy: Option<DefaultPolicy>, expected: &str) {
    let refused = converted(json, &options(default_policy, &PORTS)).expect_err(json);
    let text: Vec<String> = refused.iter().map(|refusal| format!("{refusal} ({})", refusal.help)).collect();
    assert!(text.iter().any(|line| line.contains(expected)), "{expected}: {text:#?}");
}

#[test]
fn kinds_and_fields_that_cannot_be_said_are_named_with_a_way_out() {
    let check = |json: &str, expected: &str| check(json, None, expected);
    for kind in ["ingress-gateway", "terminating-gateway", "mesh", "jwt-provider", "api-gateway", "new-kind"]
    {
        check(&format!(r#"{{"Kind": "{kind}", "Name": "x"}}"#), &format!("{kind} x: entries of this kind"));
    }
    check("web\ndb\n", "is not JSON");
    check("7", "not an entry");
    check(r#"{"a": 1}"#, "none of these");
    check(r#"{"Kind": "service-defaults"}"#, "without a name");
    check(r#"{"Kind": "service-defaults", "Name": "Web_1"}"#, "RFC 1123");
    let twice = r#"{"Kind": "service-resolver", "Name": "web"}"#;
    check(&format!("{twice}{twice}"), "stands there twice");
    for (field, expected) in [
        (r#""Brandnew": 1"#, "`Brandnew`: is not a field"),
        (r#""Protocol": 7"#, "`Protocol`: is not a text"),
        (r#""Namespace": "team""#, "`Namespace`: is Consul Enterprise's"),
        (r#""MaxInboundConnections": 5"#, "limit the callers"),
        (r#""RateLimits": {"InstanceLevel": {"RequestsPerSecond": 5}}"#, "write a RateLimit"),
        (r#""MeshGateway": {"Mode": "local"}"#, "`MeshGateway.Mode`"),
        (r#""Expose": {"Checks": true}"#, "docs/health.md"),
        (r#""EnvoyExtensions": [{"Name": "builtin/lua"}]"#, "no Envoy"),
        (r#""ExternalSNI": "a.b""#, "tls.sni"),
        (r#""UpstreamConfig": {"Defaults": {"Limits": {"MaxConnections": 0}}}"#, "0 lets nothing through"),
        (r#""UpstreamConfig": {"Defaults": {"EnvoyClusterJSON": "{}"}}"#, "no Envoy"),
        (
            r#""UpstreamConfig": {"Overrides": [{"Name": "db", "PassiveHealthCheck": {"EnforcingConsecutive5xx": 50}}]}"#,
            "`UpstreamConfig.Overrides[0].PassiveHealthCheck.EnforcingConsecutive5xx`: what fails is left out always or never",
        ),
    ] {
        check(&format!(r#"{{"Kind": "service-defaults", "Name": "web", {field}}}"#), expected);
    }
}

#[test]
fn chains_that_cannot_be_said_are_named_with_a_way_out() {
    let resolver = |fields: &str, expected: &str| {
        check(&format!(r#"{{"Kind": "service-resolver", "Name": "web", {fields}}}"#), None, expected);
    };
    resolver(
        r#""Failover": {"*": {"Datacenters": ["dc2"]}}"#,
        "`Failover`: calls do not go to another service",
    );
    resolver(r#""Redirect": {"Datacenter": "dc2", "Service": "db"}"#, "docs/federation.md");
    resolver(r#""Redirect": {"ServiceSubset": "v1"}"#, "goes round in a circle");
    resolver(r#""DefaultSubset": "v1""#, "has no subset v1");
    resolver(r#""Subsets": {"v1": {"Filter": "Service.Tags contains a"}}"#, "does not say which labels");
    resolver(r#""LoadBalancer": {"Policy": "maglev"}"#, "a key is one thing");
    resolver(
        r#""LoadBalancer": {"Policy": "ring_hash", "RingHashConfig": {"MaximumRingSize": 9}}"#,
        "MaximumRingSize",
    );
    resolver(r#""RequestTimeout": "3s""#, "carries bytes");
    let http = |entry: &str, expected: &str| {
        let protocol = r#"{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}"#;
        check(&format!("{protocol}{entry}"), None, expected);
    };
    let router = |inner: &str, expected: &str| {
        http(&format!(r#"{{"Kind": "service-router", "Name": "web", "Routes": [{inner}]}}"#), expected);
    };
    router(r#"{"Destination": {"IdleTimeout": "3s"}}"#, "`Routes[0].Destination.IdleTimeout`");
    router(r#"{"Destination": {"RequestHeaders": {"Set": {"a": "%START_TIME%"}}}}"#, "variables of Envoy's");
    router(r#"{"Destination": {"RetryOn": ["retriable-headers"]}}"#, "VirtualService web: cannot be made");
    router(r#"{"Match": {"HTTP": {"Header": [{"Name": "a"}]}}}"#, "is to match in no way");
    router(r#"{"Match": {"HTTP": {"PathRegex": "("}}}"#, "VirtualService web: cannot be made");
    router(r#"{"Destination": {"ServiceSubset": "v9"}}"#, "has no subset v9");
    http(r#"{"Kind": "service-splitter", "Name": "web", "Splits": [{"Weight": 50}]}"#, "do not make up 100");
    let circle = r#"{"Kind": "service-splitter", "Name": "web", "Splits": [{"Weight": 100, "Service": "next"}]}
        {"Kind": "service-splitter", "Name": "next", "Splits": [{"Weight": 100, "Service": "web"}]}"#;
    http(circle, "in a circle");
    check(
        r#"{"Kind": "service-splitter", "Name": "web", "Splits": [{"Weight": 100}]}"#,
        None,
        "web speaks tcp",
    );
    let unknown = r#"{"Kind": "service-defaults", "Name": "nowhere", "Protocol": "http"}"#;
    check(unknown, None, "give --port nowhere=PORT");
}

#[test]
fn intentions_that_cannot_be_said_are_named_with_a_way_out() {
    let check = |sources: &str, default_policy, expected: &str| {
        let entry = format!(
            r#"{{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}}
               {{"Kind": "service-intentions", "Name": "web", "Sources": [{sources}]}}"#
        );
        check(&entry, default_policy, expected);
    };
    let deny = Some(DefaultPolicy::Deny);
    check(r#"{"Name": "a", "Action": "allow"}"#, None, "give --default-policy");
    check(r#"{"Name": "a", "Action": "maybe"}"#, deny, "neither `allow` nor `deny`");
    check(r#"{"Name": "a", "Action": "allow", "Peer": "east"}"#, deny, "docs/federation.md");
    check(
        r#"{"Name": "a", "Action": "allow"}, {"Name": "a", "Action": "deny"}"#,
        deny,
        "the same source and destination",
    );
    for (http, expected) in [
        (r#""PathRegex": "/a|/b""#, "`Sources[0].Permissions[0].HTTP.PathRegex`: is a regular expression"),
        (r#""PathExact": "/a*""#, "no plain characters"),
        (r#""Header": [{"Name": "x", "Contains": "a"}]"#, "within another"),
        (r#""Header": [{"Name": "x", "Regex": "a+"}]"#, "is a regular expression"),
        (r#""Header": [{"Name": "x", "Exact": "a", "IgnoreCase": true}]"#, "with case"),
        (r#""Methods": ["get"]"#, "no method"),
    ] {
        let source =
            format!(r#"{{"Name": "a", "Permissions": [{{"Action": "allow", "HTTP": {{{http}}}}}]}}"#);
        check(&source, deny, expected);
    }
    let jwt = r#"{"Name": "a", "Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/"}, "JWT": {"Providers": [{"Name": "okta"}]}}]}"#;
    check(jwt, deny, "write a RequestAuthentication");
    // Consul's two enforcers take these in two ways.
    let twofold = r#"{"Name": "*", "Action": "deny"}]}
        {"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "a", "Action": "allow"}"#;
    check(twofold, deny, "write the intention a => web itself");
    let asks = |x: usize| {
        let header = |y: usize| format!(r#"{{"Name": "x-{x}-{y}", "Exact": "a"}}"#);
        format!(
            r#"{{"Action": "deny", "HTTP": {{"Header": [{},{},{},{}]}}}}"#,
            header(0),
            header(1),
            header(2),
            header(3)
        )
    };
    let many = format!(
        r#"{{"Name": "a", "Permissions": [{},{},{},{},{},{{"Action": "allow", "HTTP": {{"PathPrefix": "/"}}}}]}}"#,
        asks(0),
        asks(1),
        asks(2),
        asks(3),
        asks(4)
    );
    check(&many, deny, "come to more than 256 rules");
}

#[test]
fn permissions_need_a_service_that_speaks_http() {
    let entry = r#"{"Kind": "service-intentions", "Name": "web", "Sources": [
        {"Name": "a", "Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/"}}]}]}"#;
    check(entry, Some(DefaultPolicy::Deny), "give the service-defaults of web");
    let tcp = r#"{"Kind": "service-defaults", "Name": "web", "Protocol": "tcp"}"#;
    check(&format!("{entry}{tcp}"), Some(DefaultPolicy::Deny), "web speaks tcp");
}
