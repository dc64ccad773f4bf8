//! What signs the mesh's certificates is replaced while the mesh is in use.

use std::fs;

use baremesh_tests::{Load, Member, Mesh, exit_code_of, output_of, wait_until};
use serde_json::Value;

/// A caller and an echo, each a service of its own.
fn two(mesh: &Mesh) -> (Member, Member) {
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    web.register("web", ["--port", "80", "--user", "0"]);
    store.register("store", ["--port", "80:7000"]);
    web.wait_for_endpoints("store.default", 1);
    (web, store)
}

/// What `baremesh ca` says, with these arguments.
#[track_caller]
fn ca<const N: usize>(mesh: &Mesh, arguments: [&str; N]) -> Value {
    let arguments = ["ca"].into_iter().chain(arguments).chain(["-o", "json"]);
    serde_json::from_str(&output_of(mesh.control.baremesh(arguments))).expect("JSON")
}

/// The roots that are trusted, by what each is for.
#[track_caller]
fn roots(mesh: &Mesh) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let said = ca(mesh, ["show"]);
    let all = said["roots"].as_array().cloned().unwrap_or_default();
    all.iter().map(|root| (text(&root["standing"]), text(&root["fingerprint"]))).collect()
}

/// How many roots a member trusts.
fn trusted(member: &Member) -> usize {
    let pem = fs::read_to_string(member.host.path("/var/lib/baremesh/node/roots.pem")).unwrap_or_default();
    pem.matches("BEGIN CERTIFICATE").count()
}

/// Certificates of seconds, so that a day's renewals pass in a minute; meanwhile the intermediate and then the root are
/// replaced, and the old root is dropped. No call fails.
#[test]
fn intermediate_and_root_are_replaced_under_load_and_no_call_fails() {
    let mesh = Mesh::with_control_arguments("new-root", &["--workload-lifetime", "8"]);
    let (web, store) = two(&mesh);
    let load = Load::start(&web.host, "store", 80);
    let serials = |member: &Member| -> usize {
        let log = member
            .log()
            .into_iter()
            .filter_map(|line| line["peer_certificate_serial"].as_str().map(str::to_owned));
        log.collect::<std::collections::BTreeSet<_>>().len()
    };
    load.wait_for_more(10);
    ca(&mesh, ["rotate", "--intermediate"]);
    let seen = serials(&store);
    wait_until("certificates of the new intermediate are in use", || serials(&store) >= seen + 2);

    let before = roots(&mesh)[0].1.clone();
    ca(&mesh, ["rotate", "--root", "--within", "1h"]);
    wait_until("the new root signs", || roots(&mesh).first().is_some_and(|(_, now)| *now != before));
    assert_eq!(roots(&mesh)[1], ("before".to_owned(), before.clone()));
    for member in [&web, &store] {
        assert_eq!(trusted(member), 2, "both are trusted before anything is signed by the new one");
    }
    // Dropped when nothing in use leads to it: node credentials, too, are renewed for that.
    let drop = || mesh.control.baremesh(["ca", "drop-root", &before[..16]]);
    wait_until("the root of before can be dropped", || exit_code_of(drop()) == 0);
    mesh.wait_until_in_force();
    for member in [&web, &store] {
        assert_eq!(trusted(member), 1);
    }
    let seen = serials(&store);
    wait_until("certificates of the new root are in use", || serials(&store) >= seen + 3);
    load.wait_for_more(10);
    assert_eq!(load.stop(), Vec::<String>::new());

    // A restart on either side finds it as it was left.
    mesh.kill_control();
    store.kill_agent();
    store.start();
    web.wait_for_endpoints("store.default", 1);
    mesh.start_control();
    wait_until("hosts are back at the control server", || {
        [&web, &store]
            .iter()
            .all(|member| member.status().is_some_and(|status| status["source"]["connected"] == true))
    });
    output_of(web.host.shop(["call", "store", "80", "after"]));
}

/// A host that is away while the root is replaced finds its way back by the root that it knows; so does one with a token
/// from before. A root in use cannot be dropped by accident, nor the one that signs at all.
#[test]
fn a_host_that_was_away_while_the_root_was_replaced_comes_back() {
    let mesh = Mesh::new("away-root");
    let (web, store) = two(&mesh);
    let token = mesh.token(&["late"]);
    store.stop_agent();
    let before = roots(&mesh)[0].1.clone();
    ca(&mesh, ["rotate", "--root"]);
    wait_until("the new root signs", || roots(&mesh).first().is_some_and(|(_, now)| *now != before));
    assert_eq!(trusted(&store), 1, "it has not heard of it");
    for (root, reason) in
        [(before.as_str(), "in use"), (roots(&mesh)[0].1.as_str(), "signs"), ("0000000000", "no root")]
    {
        let refused = mesh.control.baremesh(["ca", "drop-root", root]).output().expect("it runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(reason), "{said}");
    }
    store.start();
    wait_until("it has heard of the new root", || trusted(&store) == 2);
    web.wait_for_endpoints("store.default", 1);
    output_of(web.host.shop(["call", "store", "80", "back"]));
    let late = mesh.net.host("late", 9);
    let address = mesh.control.v4().to_string();
    output_of(late.baremesh(["join", &address, "--token", &token, "--host", "late"]));
    let late = Member::of(late);
    late.configure("");
    late.start();
    assert_eq!(trusted(&late), 2);
}
