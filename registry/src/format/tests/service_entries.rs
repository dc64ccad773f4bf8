//! What a ServiceEntry may say, as Istio's validation has it.

use super::*;

fn entry(spec: &str) -> Parsed {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e}}\nspec: {{{spec}}}\n"
    );
    yaml::parse(&text, "e.yaml")
}

#[test]
fn what_does_not_fit_together_is_refused_with_its_reason() {
    let check = |spec: &str, expected: &str| {
        let parsed = entry(spec);
        let errors: Vec<_> = parsed.findings.iter().filter(|finding| finding.is_error()).collect();
        match expected {
            "" => assert!(errors.is_empty(), "{spec}: {errors:?}"),
            part => assert!(
                errors.iter().any(|error| error.message.contains(part)),
                "{spec} should be refused with {part}: {errors:?}"
            ),
        }
    };
    let port = "ports: [{number: 80, name: http, protocol: HTTP}]";
    check("", "`hosts` is required");
    check("hosts: []", "at least one host");
    check("hosts: ['*']", "hostname cannot be wildcard");
    check("hosts: ['foo*']", "is not a host");
    check("hosts: ['*-a.example.com']", "a wildcard is `*.` and a domain");
    check("hosts: [db]", "one label");
    check("hosts: [10.0.0.1]", "an IP address is no host");
    check("hosts: [a.example.com, A.example.com]", "twice");
    check("hosts: [a.example.com]", "");
    check(&format!("hosts: ['*.com'], {port}"), "");
    for (addresses, expected) in [
        ("1.2.3.4/99", "not an IP address or a CIDR"),
        ("127.0.0.1", "no address of another host"),
        ("0.0.0.0/0", "every address"),
        ("1.1.1.1/32", ""),
        ("10.1.2.3/16", ""),
        ("'001:db8::'", ""),
        ("1.1.1.1/32, 001:db8::", ""),
    ] {
        check(&format!("hosts: [a.example.com], addresses: [{addresses}]"), expected);
    }
    check(
        "hosts: [a.example.com], addresses: [10.0.0.0/8], resolution: DNS",
        "only for NONE/STATIC resolution types",
    );
    check("hosts: [a.b], ports: [{number: 99999, name: a}]", "port must be between 1 and 65535");
    check("hosts: [a.b], ports: [{number: 1, name: a}, {number: 2, name: a}]", "Duplicate value");
    check("hosts: [a.b], ports: [{number: 1, name: a}, {number: 1, name: b}]", "Duplicate value");
    check("hosts: [a.b], ports: [{number: 1, protocol: UDP}]", "TCP alone");
    check("hosts: [a.b], ports: [{number: 1, protocol: ''}]", "");
    check("hosts: [a.b], endpoints: [{address: 1.2.3.4}]", "NONE mode cannot set endpoints");
    check("hosts: [a.b], workloadSelector: {}", "");
    check("hosts: [a.b], workloadSelector: {labels: {val: '*'}}", "wildcards are not supported");
    check("hosts: [a.b], resolution: STATIC, endpoints: [{address: b.example.com}]", "need DNS");
    check("hosts: [a.b], resolution: STATIC, endpoints: [{address: 'unix:///run/a.sock'}]", "Unix socket");
    check("hosts: [a.b], resolution: DNS, endpoints: [{address: b.example.com}, {address: 1.2.3.4}]", "");
    check("hosts: ['*.a.b'], resolution: DNS", "a wildcard has no address");
    check("hosts: ['*.a.b'], resolution: DNS, endpoints: [{address: b.example.com}]", "");
    check(
        "hosts: [a.b], resolution: DNS_ROUND_ROBIN, endpoints: [{address: b.c}, {address: c.d}]",
        "0 or 1 endpoint",
    );
    check("hosts: ['*.a.b'], resolution: DYNAMIC_DNS, ports: [{number: 443, protocol: TLS}]", "");
    check("hosts: ['*.a.b'], resolution: DYNAMIC_DNS, ports: [{number: 443, protocol: TCP}]", "plain TCP");
    check("hosts: ['*.a.b'], resolution: DYNAMIC_DNS, endpoints: [{address: b.c}]", "has no endpoints");
    check(
        "hosts: [a.b], resolution: STATIC, endpoints: [{address: 1.2.3.4}], workloadSelector: {labels: {a: b}}",
        "only one of WorkloadSelector or Endpoints",
    );
    check(
        "hosts: [a.b], resolution: STATIC, ports: [{number: 80, name: http}], endpoints: [{address: 1.2.3.4, ports: {https: 443}}]",
        "does not define",
    );
    check("hosts: [a.b], resolution: SOMETIMES", "is not one of NONE, STATIC");
    check("hosts: [a.b], location: ELSEWHERE", "MESH_EXTERNAL or MESH_INTERNAL");
    check("hosts: [a.b], virtualAddresses: {b.c: [240.240.0.1]}", "not among `hosts`");
}

#[test]
fn what_istio_assigned_is_taken_from_the_status() {
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\n\
        spec: {hosts: [a.example.com], resolution: DNS}\n\
        status: {addresses: [{host: a.example.com, value: 240.240.0.1}, {host: a.example.com, value: '2001:2::1'}]}\n";
    let parsed = yaml::parse(text, "e.yaml");
    assert!(parsed.findings.is_empty(), "{:?}", parsed.findings);
    let Resource::ServiceEntry(entry) = &parsed.resources[0].value else { panic!("another kind") };
    assert_eq!(entry.assigned["a.example.com"].len(), 2);
}
