//! A disk that is full stops no traffic, and damages nothing.

use baremesh_tests::{Host, Member, Mesh, output_of, run, wait_for_errors, wait_until};

/// Moves the host's state to a small disk of its own.
fn give_small_disk(host: &Host) {
    output_of(host.sh(
        "cp -a /var/lib/baremesh /run/baremesh/state && mount -t tmpfs -o size=4m,mode=700 tmpfs /var/lib/baremesh \
         && cp -a /run/baremesh/state/. /var/lib/baremesh/ && rm -r /run/baremesh/state",
    ));
}

/// Fills it to the last byte.
fn fill(host: &Host) {
    // What is written at that time gives room back when it takes the place of what was there.
    wait_until("there is no room left", || {
        run(host.sh("rm -f /var/lib/baremesh/more; cat /dev/zero >> /var/lib/baremesh/fill"));
        !run(host.sh("echo more > /var/lib/baremesh/more")).status.success()
    });
    output_of(host.sh("rm -f /var/lib/baremesh/more"));
}

fn service(name: &str, address: &str) -> String {
    format!(
        "[[Service]]\nname = \"{name}\"\nports = [{{ port = 80 }}]\n[[WorkloadEntry]]\nname = \"{name}\"\naddress = \"{address}\"\nlabels = {{ app = \"{name}\" }}\n"
    )
}

fn knows(member: &Member, service: &str) -> bool {
    member.endpoints(&format!("{service}.default")).is_some()
}

#[test]
fn an_agent_with_a_full_disk_serves_and_keeps_its_old_state() {
    let mesh = Mesh::new("full");
    let (web, store) = (mesh.member("web", 1, &[]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    web.wait_for_endpoints("store.default", 1);
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "before"])), "before");
    web.wait_until_kept("store");
    web.stop_agent();
    give_small_disk(&web.host);
    web.start();
    fill(&web.host);
    mesh.apply(&service("news", "10.77.0.9"));
    wait_until("a new state is in force all the same", || knows(&web, "news"));
    wait_for_errors(&web.host, "agent", &["No space left"]);
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "full"])), "full");
    mesh.kill_control();
    web.kill_agent();
    web.start();
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "from the old state"])), "from the old state");
    assert!(!knows(&web, "news"), "this was never written");

    output_of(web.host.sh("rm /var/lib/baremesh/fill"));
    mesh.start_control();
    wait_until("it learns of it again", || knows(&web, "news"));
}

#[test]
fn a_control_server_with_a_full_disk_serves_and_says_so() {
    let mesh = Mesh::new("full-control");
    let (web, store) = (mesh.member("web", 1, &[]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    web.wait_for_endpoints("store.default", 1);
    let unused = mesh.token(&["late"]);
    mesh.kill_control();
    give_small_disk(&mesh.control);
    mesh.start_control();
    fill(&mesh.control);
    let refused = run(mesh.control.baremesh(["token", "create"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && !said.contains("bm1."), "{said}");
    // A token that cannot be marked as used lets nobody in.
    let late = mesh.net.host("late", 3);
    let join =
        |host: &Host| run(host.baremesh(["join", "10.77.0.200", "--token", &unused, "--host", "late"]));
    assert_eq!(join(&late).status.code(), Some(1));
    web.kill_agent();
    web.start();
    wait_until("hosts connect as before", || {
        web.status().is_some_and(|status| status["source"]["connected"] == true)
    });
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "full"])), "full");

    output_of(mesh.control.sh("rm /var/lib/baremesh/fill"));
    wait_until("the token was not spent", || join(&late).status.success());
    mesh.token(&[]);
}
