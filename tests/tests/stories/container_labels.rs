//! Containers that podman runs are services by their labels, wherever it puts them. The engine is a real one, on a host of
//! the story's: its networks and rules are that host's alone.

use std::process::Command;

use baremesh_tests::{
    Host, Member, Mesh, Process, exit, exit_code_of, needs_root, output_of, run, wait_until,
};

use crate::diagnosed::{named, over, seen};

/// Where podman listens unless it is told otherwise.
const SOCKET: &str = "/run/podman/podman.sock";

/// What podman is told: it takes part in nothing of the machine's, and sets no limits that a test machine may not set.
const CONFIG: &str = "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[network]\nnetwork_backend = \"netavark\"\n\
    [containers]\ncgroups = \"disabled\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";

/// The engine keeps everything on the host, and sees one cgroup hierarchy, as on a host of today.
const PODMAN: &str = "podman --root /run/engine/root --runroot /run/engine/run --tmpdir /run/engine/tmp \
    --network-config-dir /run/engine/networks --storage-driver vfs";

/// podman on a host.
struct Engine<'a> {
    host: &'a Host,
    service: Process,
    /// Has the mounts that the engine sees, whether it runs or not.
    mounts: Process,
}

impl<'a> Engine<'a> {
    fn on(host: &'a Host) -> Self {
        // What a container sees is the machine's programs, read-only, and ours.
        output_of(host.sh(&format!(
            "set -e; mkdir -p /run/podman /run/engine/rootfs; cd /run/engine/rootfs; mkdir -p usr proc sys dev etc run tmp
            for link in bin lib lib64 sbin; do ln -s usr/$link $link; done; touch baremesh
            printf '{CONFIG}' > /run/engine/containers.conf"
        )));
        let mut mounts = host.command("unshare");
        mounts.args(["--mount", "--propagation", "private", "sh", "-c"]).arg(
            "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && echo up && exec sleep infinity",
        );
        let mounts = host.spawn("mounts", mounts);
        mounts.wait_for_output("up");
        let service = Self::start(host, &mounts);
        Self { host, service, mounts }
    }

    fn start(host: &Host, mounts: &Process) -> Process {
        output_of(host.sh(&format!("rm -f {SOCKET}")));
        let service =
            host.spawn("engine", podman(host, mounts, &format!("system service --time 0 unix://{SOCKET}")));
        wait_until("the engine answers", || {
            run(host.sh(&format!("curl -sf --max-time 5 --unix-socket {SOCKET} http://engine/_ping")))
                .status
                .success()
        });
        service
    }

    /// As on the engine's own command line.
    fn podman(&self, line: &str) -> Command {
        podman(self.host, &self.mounts, line)
    }

    /// A container with an echo at port 7000, and its address. It ends by itself where nobody ends it.
    fn run(&self, name: &str, options: &str) -> String {
        self.run_of("--rootfs /run/engine/rootfs", name, options)
    }

    /// One of an image.
    fn run_of(&self, image: &str, name: &str, options: &str) -> String {
        let program = "timeout 900 /baremesh demo-shop echo 0.0.0.0:7000";
        output_of(self.podman(&format!(
            "run --detach --name {name} {options} --volume /usr:/usr:ro --volume $(command -v baremesh):/baremesh:ro \
             {image} {program}"
        )));
        self.address(name)
    }

    /// An image with this label, of what every container sees.
    fn publish(&self, image: &str, label: &str) {
        output_of(self.host.sh("tar -C /run/engine/rootfs -cf /run/engine/image.tar ."));
        output_of(self.podman(&format!("import --change 'LABEL {label}' /run/engine/image.tar {image}")));
    }

    fn address(&self, name: &str) -> String {
        let format = "'{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}'";
        output_of(self.podman(&format!("inspect --format {format} {name}"))).trim().to_owned()
    }

    fn stop(&self, name: &str) {
        output_of(self.podman(&format!("stop --time 0 {name}")));
    }

    /// A call out of a container.
    fn call(&self, name: &str, to: &str, port: u16, text: &str) -> Command {
        let pid = output_of(self.podman(&format!("inspect --format '{{{{.State.Pid}}}}' {name}")));
        self.host.sh(&format!(
            "exec nsenter --net=/proc/{}/ns/net baremesh demo-shop call --timeout 20 {to} {port} {text}",
            pid.trim()
        ))
    }

    fn calls(&self, name: &str) -> bool {
        exit_code_of(self.call(name, "store.mesh.internal", 80, "x")) == exit::DONE
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // Its containers are in networks of their own, and would outlive the host.
        let _ = self.podman("rm --all --force --time 0").output();
    }
}

fn podman(host: &Host, mounts: &Process, line: &str) -> Command {
    let mut podman = host.sh(&format!("exec nsenter --mount=/proc/{}/ns/mnt {PODMAN} {line}", mounts.pid()));
    podman.env("CONTAINERS_CONF", "/run/engine/containers.conf");
    podman
}

/// What tells the agent of the engine's containers.
fn follower(host: &Host) -> Process {
    let engine = format!("unix://{SOCKET}");
    host.spawn("follower", host.baremesh(["containers", "follow", "--engine", &engine]))
}

const BRIDGE: &str = "[capture]\ninterfaces = [\"podman0\"]\n";
const CART: [&str; 6] = ["--port", "81:7000", "--container-label", "app=cart", "--deliver", "container:7000"];
const CART_ID: &str = "spiffe://mesh.internal/ns/default/sa/cart";

/// The host of the containers, and one with the echo `store`.
fn two(mesh: &Mesh) -> (Member, Member) {
    let dock = mesh.member_with("dock", 1, &["cart", "till"], BRIDGE);
    let store = mesh.member("store", 2, &["store"]);
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    dock.wait_for_endpoints("store.default", 1);
    (dock, store)
}

fn in_call(store: &Member, text: &str) -> u8 {
    exit_code_of(store.host.shop(["call", "--timeout", "5", "cart.mesh.internal", "81", text]))
}

/// How many calls came to the store as the cart's.
fn as_cart(store: &Member) -> usize {
    let is_carts =
        |line: &&serde_json::Value| line["reporter"] == "destination" && line["source_principal"] == CART_ID;
    store.log().iter().filter(is_carts).count()
}

#[test]
fn a_container_is_its_service_by_label_wherever_the_engine_puts_it() {
    needs_root!("a container engine");
    let mesh = Mesh::new("labels");
    let (dock, store) = two(&mesh);
    let engine = Engine::on(&dock.host);
    let _follower = follower(&dock.host);
    dock.register("cart", CART);
    let first = engine.run("cart", "--label app=cart --label tier=shop");
    wait_until("the container calls", || engine.calls("cart"));
    let line = store.wait_for_log("the call", |line| line["reporter"] == "destination");
    assert_eq!(line["source_principal"], CART_ID);
    store.wait_for_endpoints("cart.default", 1);
    wait_until("and is called", || in_call(&store, "in") == exit::DONE);
    let listed = output_of(dock.host.baremesh(["containers", "list"]));
    assert!(listed.contains(&format!("{first} on podman0")) && listed.contains("cart.default"), "{listed}");

    // One without the label is nobody, and so is whoever gets the address next.
    engine.run("other", "--label app=other");
    assert_ne!(exit_code_of(engine.call("other", "store.mesh.internal", 80, "x")), exit::DONE);
    dock.wait_for_log("the refusal", |line| {
        line["reporter"] == "source" && line["response_code_details"] == "caller_unknown"
    });
    engine.stop("cart");
    let calls = as_cart(&store);
    assert_eq!(engine.run("next", &format!("--ip {first}")), first);
    assert_ne!(exit_code_of(engine.call("next", "store.mesh.internal", 80, "x")), exit::DONE);
    assert_ne!(in_call(&store, "in"), exit::DONE, "nothing is delivered to it either");
    assert_eq!(as_cart(&store), calls);

    // Wherever it is then, it is the service again.
    output_of(engine.podman("start cart"));
    assert_ne!(engine.address("cart"), first);
    wait_until("it calls from its new address", || engine.calls("cart"));
    wait_until("and is called there", || in_call(&store, "in") == exit::DONE);
    assert_ne!(exit_code_of(engine.call("next", "store.mesh.internal", 80, "x")), exit::DONE);
    // A neighbour of its own host dials it under the same policy: the agent takes it by the new address too.
    let direct = engine.call("other", &engine.address("cart"), 7000, "x");
    assert_ne!(exit_code_of(direct), exit::DONE);
}

#[test]
fn who_nobody_stands_by_any_more_is_nobody() {
    needs_root!("a container engine");
    let mesh = Mesh::new("labels-gone");
    let (dock, store) = two(&mesh);
    dock.register("cart", CART);
    let found = named(&dock.host, "containers_unfollowed", &[]);
    assert!(seen(&found).contains("cart.default (app=cart)"), "{found:#}");
    let engine = Engine::on(&dock.host);
    let following = follower(&dock.host);
    engine.run("cart", "--label app=cart");
    wait_until("the container calls", || engine.calls("cart"));
    store.wait_for_endpoints("cart.default", 1);
    wait_until("and is called", || in_call(&store, "in") == exit::DONE);
    over(&dock.host, &["containers_unfollowed"]);

    following.kill();
    wait_until("its calls are refused", || !engine.calls("cart"));
    dock.wait_for_log("the refusal", |line| {
        line["reporter"] == "source" && line["response_code_details"] == "caller_unknown"
    });
    wait_until("nothing is delivered to it", || in_call(&store, "in") != exit::DONE);
    named(&dock.host, "containers_unfollowed", &[]);
    let calls = as_cart(&store);
    assert!(!engine.calls("cart"));
    assert_eq!(as_cart(&store), calls);

    // Another one, or an agent that starts anew, finds everything again.
    let _following = follower(&dock.host);
    wait_until("it calls again", || engine.calls("cart"));
    wait_until("and is called again", || in_call(&store, "in") == exit::DONE);
    over(&dock.host, &["containers_unfollowed"]);
    dock.kill_agent();
    dock.start();
    wait_until("it calls through another agent", || engine.calls("cart"));
    wait_until("and is called through it", || in_call(&store, "in") == exit::DONE);

    // An engine that goes takes with it what it said, and comes back with what runs.
    engine.service.kill();
    wait_until("its calls are refused without the engine", || !engine.calls("cart"));
    let _service = Engine::start(&dock.host, &engine.mounts);
    wait_until("it calls after the engine is back", || engine.calls("cart"));
}

#[test]
fn a_container_of_two_services_is_neither() {
    needs_root!("a container engine");
    let mesh = Mesh::new("labels-two");
    let (dock, store) = two(&mesh);
    let engine = Engine::on(&dock.host);
    let _follower = follower(&dock.host);
    dock.register("cart", CART);
    let address = engine.run("both", "--label app=cart --label tier=till");
    wait_until("it is the cart", || engine.calls("both"));
    dock.register("till", ["--port", "82", "--container-label", "tier=till"]);
    wait_until("it is neither", || !engine.calls("both"));
    let found = named(&dock.host, "container_contested", &[]);
    assert!(seen(&found).contains(&format!("both at {address}")), "{found:#}");
    let status = output_of(dock.host.sh("baremesh status; true"));
    assert!(status.contains("till.default is a container with tier=till: the container both"), "{status}");
    assert_ne!(in_call(&store, "in"), exit::DONE);

    output_of(dock.host.baremesh(["service", "deregister", "till"]));
    over(&dock.host, &["container_contested"]);
    wait_until("it is the cart again", || engine.calls("both"));
}

#[test]
fn an_image_says_nothing_of_who_its_containers_are() {
    needs_root!("a container engine");
    let mesh = Mesh::new("labels-image");
    let (dock, store) = two(&mesh);
    let engine = Engine::on(&dock.host);
    let _follower = follower(&dock.host);
    dock.register("cart", CART);
    engine.publish("shop", "app=cart");
    let address = engine.run_of("shop", "pulled", "--label tier=shop");
    let labels = output_of(engine.podman("inspect --format '{{.Config.Labels}}' pulled"));
    assert!(labels.contains("app:cart"), "the engine does not tell them apart: {labels}");
    let told = || {
        let listed = output_of(dock.host.baremesh(["containers", "list", "--output", "json"]));
        let engines: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        let running = engines[0]["containers"].as_array().cloned().unwrap_or_default();
        running.into_iter().find(|one| one["name"] == "pulled")
    };
    wait_until("the agent is told of it", || told().is_some());
    let told = told().expect("it is told");
    assert_eq!(told["labels"], serde_json::json!({ "tier": "shop" }), "{told:#}");
    assert!(told["service"].is_null() && told["addresses"][0] == format!("{address} on podman0"), "{told:#}");
    assert!(!engine.calls("pulled"));
    assert_ne!(in_call(&store, "in"), exit::DONE);
    // The same image where whoever runs it says so is the service.
    engine.run_of("shop", "cart", "--label app=cart --label tier=cart");
    let named = ["--port", "81:7000", "--container-label", "tier=cart", "--deliver", "container:7000"];
    dock.register("cart", named);
    wait_until("it is by a label of its own", || engine.calls("cart"));
    assert!(!engine.calls("pulled"));
    // Who joins its network is one caller with it, since podman tells the address of both.
    let beside =
        "run --detach --name beside --network container:pulled --label tier=cart --volume /usr:/usr:ro";
    output_of(engine.podman(&format!("{beside} --rootfs /run/engine/rootfs sleep 900")));
    wait_until("they are the service", || engine.calls("pulled"));
}

#[test]
fn root_alone_says_which_containers_run() {
    needs_root!("two uids");
    let mesh = Mesh::new("labels-told");
    let dock = mesh.member_with("dock", 1, &["cart"], BRIDGE);
    dock.stop_agent();
    output_of(dock.host.sh("sed '$abaremesh:x:1234:' /etc/group > /run/group && mv /run/group /etc/group"));
    dock.start();
    // A member of the group may ask what was told, and may say nothing.
    let asked = |uid: Option<u32>, options: &str| {
        let line = format!(
            "curl -s --max-time 5 -o /dev/null -w '%{{http_code}}' --unix-socket /run/baremesh/agent.sock {options} http://agent/containers"
        );
        let mut command = match uid {
            Some(uid) => dock.host.command_as(uid, "sh"),
            None => dock.host.command("sh"),
        };
        command.args(["-c", &line]);
        String::from_utf8_lossy(&run(command).stdout).into_owned()
    };
    let speaks = "-X POST -H 'Connection: Upgrade' -H 'Upgrade: baremesh-containers/1'";
    assert_eq!(asked(Some(1234), ""), "200");
    assert_eq!(asked(Some(1234), speaks), "403");
    assert_eq!(asked(None, "-X POST"), "426");
    assert_eq!(asked(None, speaks), "101");
}
