//! Whatever the bytes, what agents pass on has one reading. Mutated requests go to the caller's agent, and to the called
//! side's; behind them two readers that nobody here wrote, h11 and nginx, read what came (tests/peers/differential.py),
//! and must agree with the agent's own log about every request, its body and its end.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use baremesh_tests::{Host, output_of, run};

use crate::pair::{Pair, virtual_addresses};

/// How many requests are sent to each agent, and the seed that decides what they are: other ones for longer runs.
const CASES: &str = "BAREMESH_DIFFERENTIAL_CASES";
const SEED: &str = "BAREMESH_DIFFERENTIAL_SEED";

/// Where the called host keeps what was read, as a program there sees it.
const KEPT: &str = "/run/baremesh/differential";

fn peer(host: &Host, arguments: &[&str]) -> Command {
    let mut python = host.command("python3");
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/differential.py")).args(arguments);
    python
}

fn nginx() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found =
        env::split_paths(&path).chain(["/usr/sbin".into()]).map(|directory| directory.join("nginx"));
    found.find(|file| file.is_file()).expect("this story needs nginx: Debian's nginx-light")
}

#[test]
fn whatever_the_bytes_agents_h11_and_nginx_read_the_same() {
    let cases = env::var(CASES).unwrap_or_else(|_| "1000".to_owned());
    let seed = env::var(SEED).unwrap_or_else(|_| "baremesh".to_owned());
    let pair = Pair::new("differential");
    let mut python = pair.web.host.command("python3");
    python.args(["-c", "import h11"]);
    assert!(run(python).status.success(), "this story needs python3 with h11: `pip install h11`");
    let kept = pair.store.host.path(KEPT);
    std::fs::create_dir(&kept).expect("the host's runtime directory");
    let nginx = nginx();
    let serve = peer(&pair.store.host, &["serve", KEPT, &nginx.to_string_lossy()]);
    pair.store.host.spawn("nginx", serve).wait_for_output("serving");
    pair.store.register("shop", ["--port", "80:8080", "--protocol", "http"]);
    pair.web.wait_for_endpoints("shop.default", 1);
    // Who has no agent is taken too, so that the called side's agent can be spoken to without the caller's.
    pair.mesh.enforce("[[PeerAuthentication]]\nname = \"all\"\nnamespace = \"mesh-system\"\nmtls = { mode = \"PERMISSIVE\" }\n");
    // The others change no path either.
    pair.mesh.enforce("[[MeshConfig]]\npathNormalization = { normalization = \"NONE\" }\n");
    let stranger = pair.mesh.net.host("stranger", 9);
    let virtual_address = virtual_addresses(&pair.web, "shop")[0].to_string();
    let real_address = pair.store.host.v4().to_string();
    let senders = [
        (&pair.web.host, format!("{seed}/caller"), virtual_address, "80"),
        (&stranger, format!("{seed}/called"), real_address, "8080"),
    ];
    for (host, seed, address, port) in &senders {
        let said = output_of(peer(host, &["send", KEPT, seed, &cases, address, port]));
        assert_eq!(said, format!("seed {seed}: {cases} cases sent"));
    }
    // Stopped in good order, it has written all that it knows.
    pair.store.stop_agent();
    let log = pair.store.host.directory().join("differential.log");
    let lines: Vec<_> = pair.store.log().iter().map(ToString::to_string).collect();
    std::fs::write(&log, lines.join("\n")).expect("the host's directory");
    let mut judge = Command::new("python3");
    judge.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/differential.py"));
    judge.arg("judge").args([&kept, &log]);
    let judged = run(judge);
    assert!(
        judged.status.success(),
        "{SEED}={seed} {CASES}={cases}: {}{}",
        String::from_utf8_lossy(&judged.stdout),
        String::from_utf8_lossy(&judged.stderr)
    );
}
