//! The agent dies without a word: `open` services go on as without a mesh, `closed` ones are refused, and nobody who
//! takes the agent's ports gets anything.

use baremesh_tests::{
    Host, Load, Member, Mesh, Process, exit, exit_code_of, is_root, needs_root, output_of, run, wait_until,
};
use serde_json::Value;

fn state(member: &Member) -> String {
    let output = run(member.host.baremesh(["capture", "status", "--output", "json"]));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    status["state"].as_str().unwrap_or_default().to_owned()
}

/// A caller, an echo on all addresses of its host as `store`, and a host without an agent.
fn three(mesh: &Mesh, when_gone: &str) -> (Member, Member, Host) {
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "[::]:7000"]);
    store.register("store", ["--port", "80:7000", "--when-gone", when_gone]);
    // Where no name server is, a host says so at once, and a name without an agent fails at once.
    web.host.set_nameserver(mesh.control.v4());
    web.wait_for_endpoints("store.default", 1);
    let (bare, real) = (mesh.net.host("bare", 9), store.host.v4().to_string());
    // Rules follow a registration a moment later, and an agent that is killed before is followed by those of before.
    wait_until("what comes to it is captured", || call(&bare, &real, "7000", "strict") != exit::DONE);
    wait_until("what goes there is captured", || call(&web.host, &real, "7000", "here") == exit::DONE);
    (web, store, bare)
}

fn call(from: &Host, to: &str, port: &str, text: &str) -> u8 {
    exit_code_of(from.shop(["call", "--timeout", "5", to, port, text]))
}

/// Another user who tries to have the agent's ports, without a pause, from before its death.
struct Squatter(Vec<Process>);

impl Squatter {
    fn on(host: &Host) -> Self {
        let squat = |port: u16| {
            let line = format!("while :; do baremesh demo-shop echo 0.0.0.0:{port} 2>/dev/null; done");
            let mut command = host.command_as(4711, "sh");
            command.args(["-c", &line]);
            host.spawn(&format!("squatter-{port}"), command)
        };
        Self([15001, 15006, 15008].map(squat).into())
    }

    fn wait_until_it_has_the_ports(&self) {
        self.0.iter().for_each(|process| process.wait_for_output("listening on"));
    }

    fn received_nothing(&self) {
        let received: Vec<_> =
            self.0.iter().filter(|process| process.stdout().contains("connection from")).collect();
        assert!(received.is_empty(), "{}", received[0].stdout());
    }
}

#[test]
fn open_services_go_on_as_without_a_mesh_and_their_names_fail() {
    let mesh = Mesh::new("open");
    let (web, store, bare) = three(&mesh, "open");
    let real = store.host.v4().to_string();
    assert_ne!(call(&bare, &real, "7000", "strict"), exit::DONE);
    store.kill_agent();
    wait_until("the guard has released it", || state(&store) == "missing");
    assert_eq!(call(&bare, &real, "7000", "released"), exit::DONE);
    assert_eq!(call(&bare, &store.host.v6().to_string(), "7000", "released"), exit::DONE);
    assert_eq!(call(&store.host, "127.0.0.1", "7000", "released"), exit::DONE);
    assert_ne!(call(&web.host, "store", "80", "no tunnel"), exit::DONE);
    // The caller's agent dies too: names and virtual addresses fail, real addresses are reached in plaintext.
    let virtual_address =
        web.ask("/services").expect("services")[0]["addresses"][0].as_str().expect("an address").to_owned();
    web.kill_agent();
    wait_until("the guard has released the caller", || state(&web) == "missing");
    assert_ne!(call(&web.host, "store", "80", "no name"), exit::DONE);
    assert_ne!(call(&web.host, &virtual_address, "80", "no such address"), exit::DONE);
    assert_eq!(call(&web.host, &real, "7000", "as before the mesh"), exit::DONE);

    store.start();
    web.start();
    assert_eq!(call(&web.host, "store", "80", "back"), exit::DONE);
    assert_ne!(call(&bare, &real, "7000", "strict again"), exit::DONE);
}

#[test]
fn closed_services_are_refused_until_the_agent_is_back() {
    let mesh = Mesh::new("closed");
    let (web, store, bare) = three(&mesh, "closed");
    store.kill_agent();
    wait_until("the guard has closed it", || state(&store) == "gone");
    let (v4, v6) = (store.host.v4().to_string(), store.host.v6().to_string());
    for (from, to) in
        [(&bare, &*v4), (&bare, &*v6), (&store.host, &*v4), (&store.host, "127.0.0.1"), (&store.host, "::1")]
    {
        assert_eq!(call(from, to, "7000", "closed"), exit::NO_CONNECTION, "{} to {to}", from.name());
    }
    assert_ne!(call(&web.host, "store", "80", "closed"), exit::DONE);
    assert_ne!(call(&web.host, &v4, "7000", "closed"), exit::DONE);
    store.start();
    wait_until("calls go well again", || call(&web.host, "store", "80", "back") == exit::DONE);
    assert_eq!(state(&store), "in-place");
    assert_ne!(call(&bare, &v4, "7000", "strict again"), exit::DONE);
}

#[test]
fn another_user_who_takes_the_ports_of_a_dead_agent_receives_nothing() {
    needs_root!("two uids");
    for when_gone in ["open", "closed"] {
        let mesh = Mesh::new("squat");
        let (web, store, bare) = three(&mesh, when_gone);
        let load = Load::start(&web.host, "store", 80);
        let squatters = [Squatter::on(&store.host), Squatter::on(&web.host)];
        load.wait_for_more(10);
        store.kill_agent();
        web.kill_agent();
        squatters.iter().for_each(Squatter::wait_until_it_has_the_ports);
        let before = load.failures().len();
        wait_until("calls were tried meanwhile", || load.failures().len() > before + 3);
        for host in [&web.host, &store.host, &bare] {
            for (to, port) in
                [("store", "80"), ("10.77.0.2", "7000"), ("fd77::2", "7000"), ("127.0.0.1", "7000")]
            {
                call(host, to, port, "for nobody else");
            }
        }
        for port in ["15001", "15006", "15008"].iter().filter(|_| when_gone == "closed") {
            assert_eq!(call(&bare, "10.77.0.2", port, "an agent's peer"), exit::NO_CONNECTION);
        }
        squatters.iter().for_each(Squatter::received_nothing);
    }
}

#[test]
fn nothing_leaks_while_agents_are_killed_and_started_under_load() {
    let mesh = Mesh::new("leak");
    let (web, store, bare) = three(&mesh, "closed");
    bare.serve("echo", ["echo", "0.0.0.0:9000"]);
    let bystander = store.host.spawn("hold", store.host.shop(["hold", &bare.v4().to_string(), "9000"]));
    bystander.wait_for_output("open");
    let load = Load::start(&web.host, "store", 80);
    let wire = mesh.net.capture();
    for turn in 0..6 {
        let (killed, other) = if turn % 2 == 0 { (&store, &web) } else { (&web, &store) };
        let tried = load.done() + load.failures().len();
        killed.kill_agent();
        wait_until("calls are tried meanwhile", || load.done() + load.failures().len() > tried + 5);
        killed.start();
        other.wait_until_ready();
        load.wait_for_more(5);
    }
    let wire = wire.stop().off_loopback();
    assert!(wire.contains("exchange "), "the recorder saw nothing at all");
    assert!(!wire.contains("call-"), "{}", wire.find("call-").expect("a sighting"));
    assert!(bystander.is_running(), "a connection that was none of the mesh's ended: {}", bystander.stdout());
    drop(load);
}

#[test]
fn a_caller_s_real_addresses_leak_nothing_while_its_agent_is_killed_and_started() {
    let mesh = Mesh::new("real");
    let web = mesh.member("web", 1, &["web"]);
    let store = mesh.member("store", 2, &["store"]);
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "7000"]);
    web.register("web", ["--port", "81", "--user", "0"]);
    web.wait_for_endpoints("store.default", 1);
    wait_until("it is captured", || call(&web.host, "10.77.0.2", "7000", "x") == exit::DONE);
    wait_until("it is on the disk", || {
        let state = std::fs::read(web.host.path("/var/lib/baremesh/last-good.state")).unwrap_or_default();
        String::from_utf8_lossy(&state).contains("10.77.0.2")
    });
    let load = Load::start(&web.host, "10.77.0.2", 7000);
    let wire = mesh.net.capture();
    for _ in 0..3 {
        let tried = load.done() + load.failures().len();
        web.kill_agent();
        wait_until("calls are tried meanwhile", || load.done() + load.failures().len() > tried + 5);
        web.start();
        load.wait_for_more(5);
    }
    let wire = wire.stop().off_loopback();
    assert!(!wire.contains("call-"), "{}", wire.find("call-").expect("a sighting"));
}

#[test]
fn an_agent_that_dies_is_back_within_seconds() {
    let mesh = Mesh::new("back");
    let (web, store, _bare) = three(&mesh, "closed");
    for _ in 0..3 {
        store.kill_agent();
        let start = std::time::Instant::now();
        store.start();
        wait_until("calls go well again", || call(&web.host, "store", "80", "back") == exit::DONE);
        assert!(start.elapsed() < std::time::Duration::from_secs(10), "it took {:?}", start.elapsed());
    }
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "well"])), "well");
}

#[test]
fn an_agent_that_lost_its_state_lets_nothing_out_before_it_has_one_again() {
    let mesh = Mesh::new("lost");
    let web = mesh.member("web", 1, &["web", "late"]);
    let store = mesh.member("store", 2, &["store"]);
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "7000"]);
    let bare = mesh.net.host("bare", 9);
    web.host.serve("own", ["echo", "[::]:81"]);
    web.register("web", ["--port", "81"]);
    web.wait_for_endpoints("store.default", 1);
    let load = Load::start(&web.host, "10.77.0.2", 7000);
    let (wire, tried) = (mesh.net.capture(), || load.done() + load.failures().len());
    let wait_for_tries = || {
        let before = tried();
        wait_until("calls are tried meanwhile", || tried() > before + 5);
    };
    // Twice with the guard's help; then as if the whole group of processes had been killed, so that the old rules stand.
    for turn in 0..3 {
        let saved = web.host.path("/var/lib/baremesh/last-good.state");
        wait_until("the state is saved", || saved.exists());
        mesh.kill_control();
        if turn == 2 {
            output_of(web.host.sh(&format!("kill -KILL $(cat /proc/{}/task/*/children)", web.agent_pid())));
        }
        web.kill_agent();
        wait_for_tries();
        std::fs::remove_file(saved).expect("a saved state");
        web.start_without_waiting();
        wait_until("the agent answers", || web.status().is_some());
        assert_eq!(
            (state(&web).as_str(), web.status().expect("a status")["ready"].as_bool()),
            ("gone", Some(false))
        );
        wait_for_tries();
        // Its own service is closed as well, and so is one that is registered only now.
        if turn == 0 {
            web.host.serve("late", ["echo", "[::]:82"]);
            assert_eq!(call(&bare, "10.77.0.1", "82", "not registered"), exit::DONE);
            output_of(web.host.baremesh(["service", "register", "late", "--port", "82"]));
            // Rules follow a registration a moment later.
            wait_until("it is closed too", || {
                call(&bare, "10.77.0.1", "82", "closed") == exit::NO_CONNECTION
            });
        }
        for port in ["81", "82"] {
            assert_eq!(call(&bare, "10.77.0.1", port, "closed"), exit::NO_CONNECTION, "{port}");
            assert_eq!(call(&web.host, "127.0.0.1", port, "closed"), exit::NO_CONNECTION, "{port}");
        }
        let tried_out = run(web.host.baremesh(["capture", "apply", "--confirm", "5s"]));
        assert!(String::from_utf8_lossy(&tried_out.stderr).contains("knows no state of the mesh yet"));
        mesh.start_control();
        web.wait_until_ready();
        assert_eq!(state(&web), "in-place");
        load.wait_for_more(5);
    }
    let wire = wire.stop().off_loopback();
    assert!(!wire.contains("call-"), "{}", wire.find("call-").expect("a sighting"));
}

#[test]
fn an_agent_that_never_had_a_state_closes_its_own_services_at_once() {
    let mesh = Mesh::new("never");
    let bare = mesh.net.host("bare", 9);
    let web = mesh.net.host("web", 1);
    web.set_nameserver(mesh.control.v4());
    output_of(web.baremesh(["join", "10.77.0.200", "--token", &mesh.token(&["web", "free"])]));
    let web = Member::of(web);
    for (name, port, when_gone) in [("web", "81", "closed"), ("free", "82", "open")] {
        web.host.serve(name, ["echo", &format!("[::]:{port}")]);
        output_of(web.host.baremesh(["service", "register", name, "--port", port, "--when-gone", when_gone]));
    }
    mesh.kill_control();
    assert_eq!(call(&bare, "10.77.0.1", "81", "as before the mesh"), exit::DONE);
    web.start_without_waiting();
    wait_until("its rules stand", || state(&web) == "gone");
    assert_eq!(call(&bare, "10.77.0.1", "81", "closed"), exit::NO_CONNECTION);
    assert_eq!(call(&bare, "10.77.0.1", "82", "open"), exit::DONE);
    web.stop_agent();
    assert_eq!(state(&web), "gone", "it leaves them behind");
    web.start_without_waiting();
    mesh.start_control();
    web.wait_until_ready();
    assert_eq!(state(&web), "in-place");
}

/// Connections that are accepted by the kernel for `port` of an agent that takes none, and whose bytes have arrived.
fn waiting_in_line(host: &Host, port: u16) -> usize {
    let is_waiting = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let ours = words.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")));
        ours && words.get(3) == Some(&"01")
            && words.get(4).is_some_and(|queues| !queues.ends_with(":00000000"))
    };
    output_of(host.sh("cat /proc/net/tcp /proc/net/tcp6")).lines().filter(|line| is_waiting(line)).count()
}

#[test]
fn callers_of_an_agent_that_is_killed_are_told_at_once() {
    for when_gone in ["open", "closed"] {
        let mesh = Mesh::new("told");
        let (web, store, bare) = three(&mesh, when_gone);
        web.register("web", ["--port", "81", "--when-gone", when_gone]);
        let services = web.ask("/services").expect("services");
        let store_entry =
            services.as_array().expect("a list").iter().find(|s| s["service"] == "store.default");
        let virtual_address = store_entry.expect("the store")["addresses"][0].as_str().expect("an address");
        // The agents stand still: what is opened now waits in line, as what is opened in the moment of their death.
        let signal = |member: &Member, name: &str| {
            output_of(member.host.sh(&format!("kill -{name} {}", member.agent_pid())));
        };
        [&web, &store].iter().for_each(|member| signal(member, "STOP"));
        let call = |from: &Host, to: &str, port: &str| {
            from.spawn("told", from.shop(["call", "--timeout", "60", to, port, "is anybody there?"]))
        };
        let outbound = [call(&web.host, virtual_address, "80"), call(&web.host, "10.77.0.2", "7000")];
        let inbound = [call(&bare, "10.77.0.2", "7000"), call(&bare, "fd77::2", "7000")];
        wait_until("they wait in line", || {
            (waiting_in_line(&web.host, 15001), waiting_in_line(&store.host, 15006)) == (2, 2)
        });
        let killed = std::time::Instant::now();
        [&web, &store].iter().for_each(|member| member.kill_agent());
        for process in outbound.iter().chain(&inbound) {
            assert_eq!(process.wait().code(), Some(exit::CUT.into()), "{when_gone}: {}", process.stderr());
        }
        assert!(killed.elapsed() < std::time::Duration::from_secs(10), "{when_gone}: {:?}", killed.elapsed());
    }
}

#[test]
fn an_agent_whose_port_is_taken_says_by_whom_and_closed_services_stay_closed() {
    let mesh = Mesh::new("taken");
    let (web, store, bare) = three(&mesh, "closed");
    store.kill_agent();
    wait_until("the guard has closed it", || state(&store) == "gone");
    let uid = if is_root() { 4711 } else { 0 };
    // The ports are the guard's until its last moment.
    let mut taken = None;
    wait_until("somebody else has the port", || {
        let mut command =
            if uid == 0 { store.host.command("baremesh") } else { store.host.command_as(uid, "baremesh") };
        command.args(["demo-shop", "echo", "[::]:15001"]);
        let thief = store.host.spawn("thief", command);
        wait_until("it has the port, or not", || thief.has_said("listening on") || !thief.is_running());
        taken = Some(thief).filter(|thief| thief.is_running());
        taken.is_some()
    });
    let thief = taken.expect("it was waited for");
    let agent = store.host.spawn("another-agent", store.host.baremesh(["agent"]));
    // Which process it is, another user's, is not for who has given up CAP_SYS_PTRACE.
    let said = format!("port 15001 is taken by a process of user {uid}");
    agent.wait_for_output(&said);
    assert!(store.host.connect(([127, 0, 0, 1], 15021)).is_err(), "nobody says that it is ready");
    let refused = || call(&bare, &store.host.v4().to_string(), "7000", "closed") == exit::NO_CONNECTION;
    assert!(refused());
    assert_eq!(agent.wait().code(), Some(1));
    let error = agent.stderr().lines().last().unwrap_or_default().to_owned();
    assert!(error.starts_with("error: ") && error.contains(&said) && error.contains("agent.toml"), "{error}");
    assert!(refused() && state(&store) == "gone" && !thief.stdout().contains("connection from"));
    thief.kill();
    thief.wait();
    store.start();
    wait_until("calls go well again", || call(&web.host, "store", "80", "back") == exit::DONE);
}
