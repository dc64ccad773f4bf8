//! Where a request comes from: what proxies before say in `x-forwarded-for`, as far as they are trusted; and what stands
//! behind a body.

use std::net::SocketAddr;

use baremesh_tests::{Member, Refusal, wait_until};

use crate::attack::{End, Line, Target, status_of};
use crate::pair::virtual_addresses;

/// Where the host of `web` is, whose programs and thieves call here.
const WEB: &str = "10.77.0.1";

/// What a line is answered to a request with these fields.
fn ask(mut line: Line<'_>, fields: &str) -> Option<u16> {
    line.say(format!("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{fields}\r\n").as_bytes());
    let (heard, end) = line.hear_to_the_end();
    assert_ne!(end, End::Reset, "{fields}: {heard}");
    status_of(&heard)
}

fn from(block: &str) -> String {
    format!("rules = [{{ from = [{{ source = {{ remoteIpBlocks = [\"{block}\"] }} }}] }}]")
}

/// So many trusted proxies, and a policy with these lines.
fn settings(trusted: u32, policy: &str) -> String {
    format!(
        "[[MeshConfig]]\ndefaultConfig = {{ gatewayTopology = {{ numTrustedProxies = {trusted} }} }}\n\
         [[AuthorizationPolicy]]\nname = \"shop\"\nselector = {{ matchLabels = {{ app = \"shop\" }} }}\n{policy}\n"
    )
}

/// A program of a host calls the service by its name.
fn dial(member: &Member) -> Line<'static> {
    let address = SocketAddr::new(virtual_addresses(member, "shop")[0], 80);
    Line::Socket(member.host.connect(address).expect("the agent takes it"))
}

#[test]
fn where_a_request_comes_from_is_what_trusted_proxies_say_and_nobody_else() {
    let target = Target::new("xff");
    let tunnel = target.tunnel();
    let forged = "X-Forwarded-For: 6.6.6.6\r\nx_forwarded_for: 6.6.6.7\r\nX-Forwarded-For: 192.0.2.7\r\n";
    // The program is told by the agent alone, and a rule goes by what it is told.
    let check_at = |reporter: &str, line: Line<'_>, fields: &str, expected: Option<&str>| {
        target.program.forget();
        let by_policy = ["rbac_access_denied_matched_policy[none]"];
        let refusal = Refusal::of_request(reporter, "403", &by_policy);
        let times = usize::from(expected.is_none());
        let status = target.pair.store.refuses(&refusal, times, || ask(line, fields));
        assert_eq!(status, Some(if expected.is_some() { 200 } else { 403 }), "{fields}");
        let heard = target.program.heard();
        let told: Vec<_> = heard
            .lines()
            .filter(|line| line.to_lowercase().replace('_', "-").starts_with("x-forwarded-for"))
            .collect();
        let expected: Vec<_> = expected.iter().map(|list| format!("x-forwarded-for: {list}")).collect();
        assert_eq!(told, expected, "{fields}");
    };
    let check = |line: Line<'_>, fields: &str, expected: Option<&str>| {
        check_at("destination", line, fields, expected);
    };
    target.pair.mesh.enforce(&settings(0, "rules = [{}]"));
    for line in [target.enter(&tunnel), target.dial()] {
        check(line, forged, Some(WEB));
    }
    let of_itself = dial(&target.pair.store);
    let Line::Socket(socket) = &of_itself else { unreachable!("it is one") };
    let own = socket.local_addr().expect("it is bound").ip().to_string();
    check(of_itself, forged, Some(&own));
    target.pair.mesh.enforce(&settings(0, &from("192.0.2.7")));
    check(target.enter(&tunnel), forged, None);
    check(target.dial(), forged, None);
    // Within a host its agent is the caller's.
    check_at("source", dial(&target.pair.store), forged, None);
    // One proxy is believed: what it wrote last, and not what it was given before.
    target.pair.mesh.enforce(&settings(1, &from("192.0.2.7")));
    check(target.enter(&tunnel), forged, Some("192.0.2.7, 10.77.0.1"));
    check(target.dial(), forged, Some("192.0.2.7, 10.77.0.1"));
    check(dial(&target.pair.store), forged, Some(&format!("192.0.2.7, {own}")));
    check(target.enter(&tunnel), "X-Forwarded-For: 192.0.2.7, 6.6.6.6\r\n", None);
    check(target.enter(&tunnel), "X-Forwarded-For: 192.0.2.7, nobody\r\n", None);
    check(target.enter(&tunnel), "X_Forwarded_For: 192.0.2.7\r\n", None);
    check(target.enter(&tunnel), "X-Forwarded-For: 192.0.2.7\r\nConnection: x-forwarded-for\r\n", None);
    target.pair.mesh.enforce(&settings(1, &from("10.77.0.1")));
    check(target.enter(&tunnel), "", Some(WEB));
    check(target.enter(&tunnel), "X-Forwarded-For: 192.0.2.7\r\nConnection: x-forwarded-for\r\n", Some(WEB));
    check(target.enter(&tunnel), "X-Forwarded-For: unknown\r\n", Some(WEB));
    check(target.enter(&tunnel), forged, None);
}

#[test]
fn no_trailer_says_what_the_agent_says() {
    let target = Target::new("trailers");
    target.pair.mesh.enforce(
        "[[RequestAuthentication]]\nname = \"shop\"\nselector = { matchLabels = { app = \"shop\" } }\n\
         jwtRules = [{ issuer = \"i\", jwks = '{\"keys\": []}', fromHeaders = [{ name = \"x-token\" }], \
         outputPayloadToHeader = \"x-payload\", outputClaimToHeaders = [{ header = \"x-user_id\", claim = \"sub\" }] }]\n",
    );
    let tunnel = target.tunnel();
    let trailers = "X-User_Id: admin\r\nx-user-id: admin\r\nX_User_ID: admin\r\nX-Payload: e30\r\nx_payload: e30\r\n\
                    X-Token: t\r\nX_Token: t\r\nx-forwarded-for: 6.6.6.6\r\nx_forwarded_client_cert: me\r\nX-Sum: 7\r\n";
    for mut line in [target.enter(&tunnel), target.dial(), dial(&target.pair.store)] {
        target.program.forget();
        let head = "POST / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        line.say(format!("{head}2\r\nhi\r\n0\r\n{trailers}\r\n").as_bytes());
        let (heard, _) = line.hear_to_the_end();
        assert_eq!(status_of(&heard), Some(200), "{heard}");
        wait_until("all of it has come", || target.program.heard().contains("\r\n0\r\n"));
        let heard = target.program.heard();
        let (_, behind) = heard.split_once("\r\n0\r\n").unwrap_or_default();
        assert_eq!(behind, "x-sum: 7\r\n\r\n", "{heard}");
    }
}
