use super::*;

fn written(toml: &str) -> Result<LocalService, String> {
    let written: Written = toml::from_str(toml).map_err(|error| error.to_string())?;
    LocalService::try_from(&written).map_err(|fault| fault.to_string())
}

#[test]
fn fills_in_what_is_usual() {
    let local =
        written("name = \"orders\"\nports = [{ port = 80, targetPort = 8080 }]").expect("a registration");
    assert_eq!(local.key.to_string(), "orders.default");
    assert_eq!(local.ports[0].deliver.to_string(), "127.0.0.1:8080");
    assert_eq!(local.when_gone, WhenGone::Closed);
    assert!(local.matcher.is_none());
}

#[test]
fn refuses_what_would_hurt() {
    for (toml, part) in [
        ("name = \"a\"\nports = []", "at least one port"),
        ("name = \"a\"\nports = [{ port = 22 }]", "SSH"),
        ("name = \"a\"\nports = [{ port = 80, deliver = \"127.0.0.1:22\" }]", "SSH"),
        ("name = \"a\"\nports = [{ port = 123 }]", "NTP"),
        ("name = \"a\"\nports = [{ port = 15008 }]", "agent's own"),
        ("name = \"a\"\nports = [{ port = 80, deliver = \"0.0.0.0:80\" }]", "no address"),
        ("name = \"a\"\nports = [{ port = 80 }, { port = 80 }]", "twice"),
        ("name = \"A\"\nports = [{ port = 80 }]", "not a valid name"),
        ("name = \"a\"\nnamespace = \"hosts\"\nports = [{ port = 80 }]", "mesh's own"),
        ("name = \"a\"\nports = [{ port = 80 }]\nuser = 0\nbogus = 1", "bogus"),
        ("name = \"a\"\nports = [{ port = 80, protocol = \"udp\" }]", "not a protocol"),
    ] {
        let error = written(toml).expect_err(toml);
        assert!(error.contains(part), "{toml}: {error}");
    }
}

#[test]
fn nothing_is_registered_at_a_port_of_ssh() {
    let directory = tempfile::tempdir().expect("a directory");
    let ssh = Terms { ssh_ports: [2222, 2223].into(), ..Terms::default() };
    for (ports, refused) in [
        ("{ port = 2222 }", true),
        ("{ port = 80, targetPort = 2223 }", true),
        ("{ port = 80, deliver = \"127.0.0.1:2222\" }", true),
        ("{ port = 81 }, { port = 80, targetPort = 2222 }", true),
        ("{ port = 2222, targetPort = 8080 }", false),
    ] {
        let written: Written =
            toml::from_str(&format!("name = \"a\"\nports = [{ports}]")).expect("a registration");
        let registered = register(directory.path(), &written, &ssh).map_err(|error| error.to_string());
        assert_eq!(registered.is_err(), refused, "{ports}: {registered:?}");
        assert!(registered.err().is_none_or(|error| error.contains("`ssh_ports` in agent.toml")));
        // Registered before the port was SSH's, or by hand.
        register(directory.path(), &written, &Terms::default()).expect("registered");
        let read = read_all(directory.path(), &ssh).map_err(|error| error.to_string());
        assert_eq!(read.is_err(), refused, "{ports}: {read:?}");
    }
}

#[test]
fn a_set_is_taken_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let read = |toml: &str| toml::from_str::<Written>(toml).expect("a registration");
    let (none, register) = (Terms::default(), |directory: &Path, written: &Written| {
        register(directory, written, &Terms::default())
    });
    let read_all = |directory: &Path| read_all(directory, &none);
    let orders = read("name = \"orders\"\nports = [{ port = 8080 }]\nuser = 7");
    register(directory.path(), &orders).expect("registered");
    let same_port = read("name = \"web\"\nports = [{ port = 8080 }]");
    assert!(matches!(register(directory.path(), &same_port), Err(RegistrationError::Conflict { .. })));
    let same_user = read("name = \"web\"\nports = [{ port = 80 }]\nuser = 7");
    assert!(matches!(register(directory.path(), &same_user), Err(RegistrationError::Conflict { .. })));
    register(directory.path(), &orders).expect("registered again");
    assert_eq!(read_all(directory.path()).expect("a set").len(), 1);
    std::fs::write(directory.path().join("bad.toml"), "name = ").expect("written");
    assert!(matches!(read_all(directory.path()), Err(RegistrationError::Content { .. })));
    std::fs::remove_file(directory.path().join("bad.toml")).expect("removed");
    let key = Key::new(default_namespace(), Label::new("orders").expect("a label"));
    deregister(directory.path(), &key).expect("deregistered");
    assert!(matches!(deregister(directory.path(), &key), Err(RegistrationError::Unknown(_))));
}

#[test]
fn a_gateway_is_registered_where_the_host_says_it_is_one_and_has_no_program() {
    let gateway = "name = \"egress\"\nnamespace = \"mesh-system\"\ngateway = true\n";
    let ports = "ports = [{ port = 80, protocol = \"http\" }, { port = 443, protocol = \"tls\" }]\n";
    for (more, part) in [
        ("ports = [{ port = 80 }]", "says what it carries"),
        ("ports = [{ port = 80, protocol = \"auto\" }]", "says what it carries"),
        ("ports = [{ port = 80, protocol = \"http\", deliver = \"127.0.0.1:80\" }]", "remove `deliver`"),
        ("user = 7\nports = [{ port = 80, protocol = \"http\" }]", "remove `user`"),
        ("group = \"a\"\nports = [{ port = 80, protocol = \"http\" }]", "remove `group`"),
    ] {
        let error = written(&format!("{gateway}{more}")).expect_err(more);
        assert!(error.contains(part), "{more}: {error}");
    }
    let local = written(&format!("{gateway}{ports}")).expect("a registration");
    assert_eq!(local.labels().get("istio").map(|value| &**value), Some("egressgateway"));
    let own = written(&format!("{gateway}{ports}labels = {{ istio = \"own\" }}")).expect("a registration");
    assert_eq!(own.labels().get("istio").map(|value| &**value), Some("own"));
    let directory = tempfile::tempdir().expect("a directory");
    let read: Written = toml::from_str(&format!("{gateway}{ports}")).expect("a registration");
    let of = |role| Terms { role, ..Terms::default() };
    let refused = register(directory.path(), &read, &of(HostRole::Member)).expect_err("it is no gateway");
    assert!(refused.to_string().contains("role = \"gateway\""), "{refused}");
    register(directory.path(), &read, &of(HostRole::Gateway)).expect("registered");
    let another = "name = \"other\"\ngateway = true\nports = [{ port = 5432, protocol = \"tcp\" }]";
    let another: Written = toml::from_str(another).expect("a registration");
    register(directory.path(), &another, &of(HostRole::Gateway)).expect("neither is delivered anywhere");
    assert_eq!(read_all(directory.path(), &of(HostRole::Gateway)).expect("a set").len(), 2);
    assert!(read_all(directory.path(), &of(HostRole::Member)).is_err());
}
