//! What a gateway host does not do: it leads nobody where no resource leads, nothing but its own configuration makes it one,
//! and who is held to the registry has no way beside it.

use baremesh_tests::{run, wait_until};
use serde_json::Value;

use crate::egress_gateway::{API, GATEWAY, WEB, Way, api, leaving};
use crate::impostor::{bundle_of, stolen};
use crate::name_server::NameServer;
use crate::raw_peer;

/// Where names that are not the mesh's are asked for.
const DNS: &str = "[dns]\nupstreams = [\"10.77.0.53:53\"]\n";

#[test]
fn nothing_pushed_makes_a_host_a_gateway_and_a_gateway_leads_a_member_nowhere_else() {
    let way = Way::new("gw-only");
    // An ordinary host, whose service has the very label.
    let store = way.mesh.member("store", 5, &["store"]);
    let _store = store.host.serve("web", ["web", "store", "127.0.0.1:8080"]);
    store.register("store", ["--port", "80:8080", "--protocol", "http", "--label", "istio=egressgateway"]);
    let refused = run(store.host.baremesh([
        "service",
        "register",
        "store",
        "--gateway",
        "--port",
        "80",
        "--protocol",
        "http",
    ]));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("role = \"gateway\""), "{said}");
    way.web.wait_for_endpoints("store.default", 1);
    let server = API.replace("[\"api.example.com\"]", "[\"api.example.com\", \"loop.example.com\"]");
    way.mesh.enforce(
        &(api()
            + &leaving(&server)
            + "[[VirtualService]]\nname = \"loop\"\nhosts = [\"loop.example.com\"]\ngateways = [\"leaving\"]\n\
               http = [{ route = [{ destination = { host = \"egress\", port = { number = 80 } } }] }]\n"),
    );
    way.wait_for_gateway();
    let asked = ["--timeout", "30", "--header", "Host: api.example.com"];
    let answer = way.web.host.get(&["--timeout", "30"], "http://store/own");
    assert_eq!(answer.instance.as_deref(), Some("store"), "{answer:?}");
    // Who dials the gateway itself gets what it lists, and nothing else: neither the mesh's services, nor its own host's ports.
    let answer = way.web.host.get(&asked, "http://egress/direct");
    assert!(answer.body.starts_with(GATEWAY), "{answer:?}");
    for host in ["169.254.169.254", "127.0.0.1:15020", "10.77.0.5", "egress"] {
        let header = format!("Host: {host}");
        let answer = way.web.host.get(&["--timeout", "30", "--header", &header], "http://egress/led");
        assert_eq!(answer.status, Some(404), "{host}: {answer:?}");
    }
    // A peer that asks the agent for tunnels as it likes.
    let certificate = stolen(&way.web.host.path("/var/lib/baremesh/certificates/default.web.pem"));
    let connect = |authority: &str| {
        let (from, to) = (&way.web.host, way.gateway.host.v4());
        raw_peer::connect(from, to, "egress", &certificate, bundle_of(&way.mesh), authority)
    };
    assert_eq!(connect("10.77.0.2:80"), Some(200), "the way as such is open");
    let ask = |host: &str| {
        let (from, to) = (&way.web.host, way.gateway.host.v4());
        let request = format!("GET /raw HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let at = (to, "egress", "10.77.0.2:80");
        raw_peer::ask(from, at, (&certificate, bundle_of(&way.mesh)), request).unwrap_or_default()
    };
    let answer = ask("api.example.com");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(GATEWAY), "{answer}");
    for host in ["store.default.mesh.internal", "store", "egress", "api.example.com.", "other.example.com"] {
        let answer = ask(host);
        let is_refused = answer.starts_with("HTTP/1.1 404") && !answer.contains("store");
        let is_same = host == "api.example.com." && answer.contains(GATEWAY);
        assert!(is_refused || is_same, "{host}: {answer}");
    }
    let answer = ask("loop.example.com");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    way.gateway.wait_for_log("no circle", |line| line["response_code_details"] == "gateway_loop");
    for authority in
        ["10.77.0.65:8080", "api.example.com:80", "10.77.0.2:81", "127.0.0.1:80", "10.77.0.5:8080"]
    {
        let answer = connect(authority);
        assert!(answer.is_none_or(|status| status >= 400), "{authority} was answered with {answer:?}");
    }
}

#[test]
fn who_is_held_to_the_registry_reaches_the_outside_through_the_gateway_alone() {
    let way = Way::with_config("gw-held", DNS);
    let name_server = way.mesh.net.host("names", 53);
    let names = NameServer::on(&name_server);
    names.say("outside.example", &[[10, 77, 0, 65]]);
    // An address that is written in the registry may be dialled; what DNS says is reached by the host's name alone.
    let api = api().replace("STATIC", "DNS").replace("10.77.0.65", "outside.example");
    way.mesh.enforce(
        &(api
            + &leaving(API)
            + "[[MeshConfig]]\noutboundTrafficPolicy = { mode = \"REGISTRY_ONLY\" }\n\
               [[Sidecar]]\nname = \"default\"\nnamespace = \"default\"\n\
               egress = [{ hosts = [\"./egress.default.mesh.internal\", \"*/api.example.com\"] }]\n"),
    );
    way.wait_for_gateway();
    wait_until("the rules hold the caller", || !way.get("http://10.77.0.65:8080/").is_ok());
    // Neither by the host's address nor under another name.
    for (host, url) in [
        ("api.example.com", "http://10.77.0.65:8080/"),
        ("api.example.com", "http://10.77.0.65:80/"),
        ("other.example.com", "http://api.example.com/"),
    ] {
        let header = format!("Host: {host}");
        let answer = way.web.host.get(&["--timeout", "30", "--header", &header], url);
        assert!(!answer.body.starts_with(&format!("{WEB}\n")), "{answer:?}");
    }
    let outside = |line: &Value| line["upstream_host"] == "10.77.0.65:8080";
    assert!(!way.web.log().iter().any(outside), "nothing left from the caller's own host");
    assert!(way.gateway.log().iter().any(outside));
}

#[test]
fn no_other_spelling_of_a_host_leaves_past_a_policy_that_names_it() {
    let way = Way::new("gw-spelled");
    let named =
        |text: String| text.replace("api.example.com", "partner.com").replace("\"api\"", "\"partner\"");
    let server = API.replace("[\"api.example.com\"]", "[\"api.example.com\", \"partner.com\"]");
    way.mesh.enforce(&(api() + &named(api()) + &leaving(&server)));
    way.wait_for_gateway();
    let asked = |host: &str| {
        let header = format!("Host: {host}");
        way.web.host.get(&["--timeout", "30", "--header", &header], "http://egress/spelled")
    };
    wait_until("it leaves", || asked("partner.com").body.starts_with(GATEWAY));
    way.mesh.enforce(
        "[[AuthorizationPolicy]]\nname = \"no-partner\"\nselector = { matchLabels = { istio = \"egressgateway\" } }\n\
         action = \"DENY\"\nrules = [{ to = [{ operation = { hosts = [\"partner.com\"] } }] }]\n",
    );
    wait_until("the policy holds", || asked("partner.com").status == Some(403));
    for (host, status) in [
        ("PARTNER.com.:80", 403),
        ("partner.com..", 400),
        (".partner.com", 400),
        ("partner.com.mesh.internal", 404),
        ("partner.com.svc.cluster.local", 404),
    ] {
        let answer = asked(host);
        assert_eq!(answer.status, Some(status), "{host}: {answer:?}");
    }
    assert!(asked("api.example.com").body.starts_with(GATEWAY));
}
