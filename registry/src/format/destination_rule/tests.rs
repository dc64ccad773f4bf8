//! What is read, what is refused and with which words.

use std::time::Duration;

use super::*;
use crate::format::Form;
use crate::resource::Resource;

fn parsed(form: Form, text: &str) -> Result<DestinationRule, Vec<String>> {
    let parsed = form.parse(text, "x");
    if parsed.failed() {
        return Err(parsed.findings.iter().map(ToString::to_string).collect());
    }
    match parsed.resources.into_iter().next().map(|located| located.value) {
        Some(Resource::DestinationRule(rule)) => Ok(*rule),
        other => panic!("{other:?}"),
    }
}

/// A rule for `orders` with this policy.
fn policy(policy: &str) -> Result<DestinationRule, Vec<String>> {
    parsed(
        Form::Toml,
        &format!("[[DestinationRule]]\nname = \"a\"\nhost = \"orders\"\ntrafficPolicy = {policy}\n"),
    )
}

#[test]
fn reads_what_istio_writes() {
    let rule = parsed(
        Form::Yaml,
        "apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: helloworld
  namespace: shop
spec:
  host: helloworld.sample.svc.cluster.local
  exportTo: ['.', web]
  workloadSelector:
    matchLabels: {app: web}
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 100, connectTimeout: 30ms, tcpKeepalive: {time: 7200s, interval: 75s}}
      http: {http2MaxRequests: 1000, maxRequestsPerConnection: 10}
    loadBalancer:
      simple: ROUND_ROBIN
      localityLbSetting:
        enabled: true
        failover: [{from: region1, to: region2}]
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 1m}
    retryBudget: {percent: 12.5}
    portLevelSettings:
    - port: {number: 443}
      tls: {mode: DISABLE}
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      loadBalancer:
        consistentHash:
          httpCookie: {name: user, ttl: 0s}
  - name: all
",
    );
    let rule = rule.expect("a rule");
    let effective = rule.policy.effective(rule.subsets[0].policy.as_ref(), 80);
    assert_eq!(effective.limits.connect_timeout, Some(Duration::from_millis(30)));
    assert_eq!(effective.outlier.as_ref().map(|outlier| outlier.consecutive_5xx), Some(1));
    assert_eq!(effective.retry_budget.map(|budget| budget.percent.to_string()).as_deref(), Some("12.5"));
    let written = format!("{:?}", effective.load_balancer.algorithm);
    assert!(written.contains("Cookie") && written.contains("1024"), "{written}");
    assert!(effective.load_balancer.locality.is_none(), "a subset's balancing replaces the rule's, whole");
    assert!(rule.policy.effective(None, 443).outlier.is_none(), "a port's settings replace the rule's");
    assert_eq!(rule.export_to, ExportTo::Only(vec![Label::new("web").expect("a label")]));
}

#[test]
fn refuses_what_istio_does() {
    let check = |text: &str, expected: &str| match policy(text) {
        Ok(rule) => panic!("{text} was taken: {rule:?}"),
        Err(findings) => {
            assert!(findings.iter().any(|finding| finding.contains(expected)), "{text}: {findings:?}");
        }
    };
    let warmup = |fields: &str| format!("{{ loadBalancer = {{ warmup = {{ {fields} }} }} }}");
    let at = "`trafficPolicy.loadBalancer.warmup.";
    check(
        &warmup("duration = \"300s\", minimumPercent = 150.0"),
        &format!("{at}minimumPercent`: Invalid value"),
    );
    check(&warmup("minimumPercent = 5.0"), &format!("{at}duration`: Required value"));
    check(&warmup("duration = \"300s\", aggression = -0.1"), &format!("{at}aggression`: Invalid value"));
    check("{}", "traffic policy must have at least one field");
    check("{ connectionPool = {} }", "connection pool must have at least one field");
    check("{ connectionPool = { tcp = { maxConnections = -1 } } }", "Invalid value: -1");
    check("{ connectionPool = { tcp = { connectTimeout = \"0s\" } } }", "greater than 1ms");
    check("{ connectionPool = { tcp = { connectTimeout = \"5\" } } }", "is not a duration");
    check("{ outlierDetection = { maxEjectionPercent = 101 } }", "between 0 and 100");
    check(
        "{ outlierDetection = { consecutiveLocalOriginFailures = 3 } }",
        "split external local origin errors",
    );
    check("{ outlierDetection = { consecutiveErrors = 3 } }", "refused");
    check("{ loadBalancer = { simple = \"FASTEST\" } }", "Unsupported value");
    check(
        "{ loadBalancer = { simple = \"RANDOM\", consistentHash = { useSourceIp = true } } }",
        "only one of",
    );
    let hash = |fields: &str| format!("{{ loadBalancer = {{ consistentHash = {{ {fields} }} }} }}");
    check(&hash("maglev = {}"), "a hash key is required");
    check(&hash("useSourceIp = false"), "a hash key is required");
    check(&hash("httpHeaderName = \"a b\""), "not the name of a header");
    check(&hash("httpHeaderName = \"a\", useSourceIp = true"), "only one of");
    check(&hash("useSourceIp = true, maglev = { tableSize = 65536 }"), "prime");
    check(
        &hash("httpCookie = { ttl = \"1s\" }"),
        "`trafficPolicy.loadBalancer.consistentHash.httpCookie.name` is required",
    );
    let locality = |fields: &str| format!("{{ loadBalancer = {{ localityLbSetting = {{ {fields} }} }} }}");
    let to = "distribute = [{ from = \"eu/*\", to = { \"eu/*\" = 60, \"us/*\" = 30 } }]";
    check(&locality(to), "total locality weight 90 != 100");
    let full = "distribute = [{ from = \"eu/*\", to = { \"eu/*\" = 100 } }]";
    check(&locality(&format!("{full}, failoverPriority = [\"v\"]")), "can not simultaneously");
    check(&locality("failover = [{ from = \"eu\", to = \"eu\" }]"), "different regions");
    check(&locality("failover = [{ from = \"eu/*\", to = \"us\" }]"), "should not contain");
    let both =
        "failover = [{ from = \"eu\", to = \"us\" }], failoverPriority = [\"topology.istio.io/subzone\"]";
    check(&locality(both), "can not simultaneously set 'failover' and topology label");
    check("{ portLevelSettings = [{ tls = { mode = \"DISABLE\" } }] }", "port` is required");
    check("{ portLevelSettings = [{ port = { number = 80 } }, { port = { number = 80 } }] }", "set twice");
    check("{ tls = { mode = \"MUTUAL\" } }", "requires a client certificate");
    check("{ tls = { mode = \"SIMPLE\", caCertificates = \"ca.pem\" } }", "whole path");
    check("{ tls = { mode = \"SIMPLE\", credentialName = \"../x\" } }", "not the name of a credential");
    check("{ tls = { mode = \"SIMPLE\", caCrl = \"/x\" } }", "refused");
    check("{ tunnel = { targetHost = \"a\", targetPort = 1, protocol = \"POST\" } }", "use CONNECT");
    check("{ tunnel = { targetHost = \"*.a\", targetPort = 1 } }", "neither a host name nor an address");
    check("{ tunnel = { targetHost = \"a\" } }", "`trafficPolicy.tunnel.targetPort` is required");
    check("{ tunnel = { targetPort = 1 } }", "`trafficPolicy.tunnel.targetHost` is required");
    check("{ loadBalancing = { simple = \"RANDOM\" } }", "did you mean");
}

#[test]
fn refuses_what_names_nothing() {
    let check = |text: &str, expected: &str| {
        let found = parsed(Form::Toml, &format!("[[DestinationRule]]\nname = \"a\"\n{text}\n"));
        let findings = found.expect_err(text);
        assert!(findings.iter().any(|finding| finding.contains(expected)), "{text}: {findings:?}");
    };
    check("trafficPolicy = { tls = { mode = \"DISABLE\" } }", "`host` is required");
    check("host = \"a*b\"", "is not a host");
    check("host = \"a\"\nsubsets = [{ name = \"x\" }, { name = \"x\" }]", "named twice");
    check("host = \"a\"\nsubsets = [{ labels = { v = \"1\" } }]", "name` is required");
    check("host = \"a\"\nsubsets = [{ name = \"a b\" }]", "subset name is invalid");
    check("host = \"a\"\nexportTo = [\"*\", \"web\"]", "stands alone");
}

#[test]
fn what_a_mode_does_not_use_is_said() {
    let check = |tls: &str, expected: usize| {
        let text = format!(
            "[[DestinationRule]]\nname = \"a\"\nhost = \"b\"\ntrafficPolicy = {{ tls = {{ {tls} }} }}\n"
        );
        let parsed = Form::Toml.parse(&text, "x");
        assert!(!parsed.failed() && parsed.findings.len() == expected, "{:?}", parsed.findings);
        assert!(parsed.findings.iter().all(|finding| finding.to_string().contains("no effect in this mode")));
    };
    check("mode = \"ISTIO_MUTUAL\", sni = \"c\"", 1);
    let client = "clientCertificate = \"/c.pem\", privateKey = \"/k.pem\"";
    check(&format!("mode = \"SIMPLE\", sni = \"c\", {client}"), 2);
    check(&format!("mode = \"MUTUAL\", sni = \"c\", {client}"), 0);
}
