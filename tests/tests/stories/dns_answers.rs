//! What the agent answers, as resolvers read it that nobody here wrote.

use std::path::Path;

use baremesh_tests::{Host, Mesh, output_of, run, wait_until};

const SERVICE: &str = "[[Service]]\nname = \"store\"\naddresses = [\"240.240.0.77\", \"fdba:4e3e:5400::77\"]\n\
                       ports = [{ port = 80, protocol = \"http\", name = \"web\" }, { port = 9090, protocol = \"tcp\" }]\n";

/// Asks everything of `server`, whose upstream is of the same process.
fn ask_everything(host: &Host, server: &str) {
    let mut needed = host.command("python3");
    needed.args(["-c", "import dns.query"]);
    assert!(run(needed).status.success(), "this story needs python3 with dnspython: `pip install dnspython`");
    let mut asking = host.command("python3");
    asking.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/dns_answers.py"));
    asking.args([server, "127.0.0.9:5300"]);
    let said = output_of(asking);
    assert!(said.ends_with("answers compared"), "{said}");
}

fn answers(mode: &str, server: &str) {
    let mesh = Mesh::new(mode);
    let config = format!("[dns]\nmode = \"{mode}\"\nport = 5353\nupstreams = [\"127.0.0.9:5300\"]\n");
    let web = mesh.member_with("web", 1, &[], &config);
    mesh.apply(SERVICE);
    let (at, port) = server.rsplit_once(':').expect("a port");
    wait_until("the service has its name", || {
        let asked = format!("dig @{at} -p {port} +short +tries=1 store.default.mesh.internal");
        let dig = web.host.sh(&asked);
        String::from_utf8_lossy(&run(dig).stdout).trim() == "240.240.0.77"
    });
    ask_everything(&web.host, server);
}

#[test]
fn answers_are_those_that_dig_and_dnspython_expect() {
    answers("nameserver", "127.0.0.1:5353");
}

/// Whoever is asked, be it nobody on the network: the question comes to the agent.
#[test]
fn captured_questions_are_answered_alike() {
    answers("capture", "10.77.0.254:53");
}
