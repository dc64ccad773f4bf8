//! Plans and the rules that they come to, side by side in `golden/`: `NAME.plan.txt`, `NAME.nft` and
//! `NAME.gone.nft`. `BAREMESH_UPDATE_GOLDEN=1` writes them anew. Each is loaded by the real nft, in a namespace.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use super::held::Held;
use super::namespace::{addresses, kinds, plan, service};
use super::{CapturePlan, DnsCapture, Interface, Outbound, Strictness, Units, WhenGone, render, render_gone};

fn plans() -> Vec<(&'static str, CapturePlan)> {
    let mut container = service("carts", 8080, Strictness::Permissive, WhenGone::Open);
    container.ports.clear();
    container.addresses = addresses(&["172.17.0.2:8080", "127.0.0.1:9000", "[fd17::2]:8080"]);
    let endpoints: BTreeSet<SocketAddr> = addresses(&["10.0.0.7:8080", "10.0.0.8:9090", "[fd09::7]:8080"]);
    let strict_closed = service("orders", 8080, Strictness::Strict, WhenGone::Closed);
    let mut strict_container = service("box", 8080, Strictness::Strict, WhenGone::Closed);
    strict_container.addresses = addresses(&["172.17.0.3:80", "[fd17::3]:80"]);
    let mut forbidden = service("shell", 22, Strictness::Strict, WhenGone::Closed);
    forbidden.ports.extend([2222, 15001, 123]);
    forbidden.addresses = addresses(&["169.254.169.254:80"]);
    // The address within the block is covered by it, and the metadata service is exempt.
    let external = [
        "10.1.0.0/16 443",
        "10.1.2.3/32 443",
        "10.1.2.3/32 80",
        "169.254.169.254/32 80",
        "2001:db8::/32 443",
    ];
    let external = external.map(|text| {
        let (network, port) = text.split_once(' ').expect("a block and a port");
        (network.parse().expect("a block"), port.parse().expect("a port"))
    });
    vec![
        ("nothing_registered_v4_only", CapturePlan { virtual_v6: None, ..plan() }),
        ("service_entries", CapturePlan { external: external.into(), ..plan() }),
        (
            "strict_closed_both_families",
            CapturePlan {
                local: vec![strict_closed.clone()],
                endpoints: endpoints.clone(),
                agent_uid: 990,
                ..plan()
            },
        ),
        ("permissive_open_by_address", CapturePlan { local: vec![container.clone()], ..plan() }),
        ("strict_closed_container", CapturePlan { local: vec![strict_container], ..plan() }),
        (
            "dns_all_mixed",
            CapturePlan {
                local: vec![strict_closed.clone(), container],
                dns: DnsCapture::Port53,
                outbound: Outbound::All,
                ssh_ports: [2222].into(),
                ..plan()
            },
        ),
        (
            "held_to_the_registry",
            CapturePlan {
                local: vec![service("orders", 8080, Strictness::Strict, WhenGone::Closed)],
                agent_uid: 990,
                held: held(&[1000, 1001]),
                held_when_gone: held(&[1000]),
                ..plan()
            },
        ),
        (
            "units_noted_by_systemd",
            CapturePlan {
                local: vec![strict_closed.clone()],
                agent_uid: 990,
                ssh_ports: [2222].into(),
                units: units(&[
                    ("closed-one", Some(WhenGone::Closed)),
                    ("open-one", Some(WhenGone::Open)),
                    ("free", None),
                    ("of-a-name-that-systemd-would-not-take", Some(WhenGone::Closed)),
                ]),
                ..plan()
            },
        ),
        (
            "containers_held_to_the_registry",
            CapturePlan {
                local: vec![strict_closed.clone()],
                agent_uid: 990,
                bridges: [bridge("docker0", &["172.17.0.2", "172.17.0.4", "fd17::2"])].into(),
                uncaptured: [bridge("br-lan", &["192.168.1.5"])].into(),
                held: held_containers(&[
                    bridge("docker0", &["172.17.0.2", "fd17::2"]),
                    bridge("br-lan", &["192.168.1.5"]),
                ]),
                held_when_gone: held_containers(&[bridge("docker0", &["172.17.0.2", "fd17::2"])]),
                ..plan()
            },
        ),
        (
            "bridges_with_containers",
            CapturePlan {
                local: vec![strict_closed],
                endpoints,
                agent_uid: 990,
                external: external.into(),
                dns: DnsCapture::Bridges,
                bridges: [
                    bridge("docker0", &["172.17.0.2", "fd17::2"]),
                    bridge("virbr0", &["192.168.122.5"]),
                    bridge("br-none", &[]),
                ]
                .into(),
                ..plan()
            },
        ),
        (
            "exempt_even_if_registered",
            CapturePlan {
                local: vec![forbidden],
                endpoints: addresses(&["10.0.0.7:22", "169.254.169.254:80", "[fd00:ec2::254]:80"]),
                ssh_ports: [2222].into(),
                ..plan()
            },
        ),
    ]
}

fn held(users: &[u32]) -> Held {
    Held { users: users.iter().copied().collect(), ..Held::default() }
}

fn units(services: &[(&str, Option<WhenGone>)]) -> Units {
    let key = |name: &str| service(name, 1, Strictness::Strict, WhenGone::Closed).name;
    services.iter().map(|(name, held)| (key(name), *held)).collect()
}

fn held_containers(containers: &[(Interface, BTreeSet<IpAddr>)]) -> Held {
    Held { containers: containers.iter().cloned().collect(), ..Held::default() }
}

/// A bridge with the addresses of its containers.
fn bridge(name: &str, containers: &[&str]) -> (Interface, BTreeSet<IpAddr>) {
    let containers = containers.iter().map(|address| address.parse().expect("an address"));
    (name.parse().expect("an interface"), containers.collect())
}

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/capture/golden").join(file)
}

fn check(file: &str, text: &str) {
    let path = golden(file);
    if std::env::var_os("BAREMESH_UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("the golden file is written");
    }
    let expected = fs::read_to_string(&path).expect("the golden file is there");
    assert!(expected == text, "{file} differs; what is rendered now:\n{text}");
}

#[test]
fn renders_what_the_golden_files_say() {
    for (name, plan) in plans() {
        check(&format!("{name}.plan.txt"), &format!("{plan:#?}\n"));
        check(&format!("{name}.nft"), &render(&plan));
        check(&format!("{name}.gone.nft"), &render_gone(&plan));
    }
}

#[test]
fn nft_takes_every_golden_file() {
    let files = fs::read_dir(golden("")).expect("the golden files are there");
    let files = files.map(|file| file.expect("an entry").path());
    let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "nft")).collect();
    assert_eq!(files.len(), 2 * plans().len());
    for kind in kinds() {
        for file in &files {
            // Twice, as a transaction must replace itself.
            let script = "nft -f \"$0\" && nft -f \"$0\"";
            let output = Command::new("unshare").args([kind, "sh", "-c", script]).arg(file).output();
            let output = output.expect("unshare runs");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "unshare {kind} nft -f {}: {error}", file.display());
        }
    }
}
