//! Configuration files, whole ones and wrong ones.

use super::*;

fn parse(text: &str) -> Result<AgentConfig, String> {
    AgentConfig::parse(text, Directories::default(), Path::new("agent.toml"))
        .map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = parse("").expect("the defaults");
    assert_eq!(config.source, SourceConfig::Control);
    assert_eq!(config.ports, Ports::default());
    assert_eq!(config.dns, DnsMode::OfThisHost);
    assert!(config.capture);
}

#[test]
fn reads_every_part() {
    let config = parse(
        "host = \"h1\"\naddresses = [\"10.0.0.1\", \"fd00::1\"]\n[registry]\nsource = \"files\"\n\
         [proxy]\nworkers = 3\n[dns]\nmode = \"nameserver\"\nupstreams = [\"10.0.0.2:53\"]\n\
         [telemetry]\naccess_log = \"/var/log/x\"\n[capture]\noutbound = \"all\"\nssh_ports = [2222]\n",
    )
    .expect("a configuration");
    assert_eq!(config.source, SourceConfig::Files("/etc/baremesh/registry".into()));
    assert_eq!((config.workers, config.dns), (3, DnsMode::Nameserver));
    assert_eq!(config.outbound, Outbound::All);
}

#[test]
fn refuses_what_it_does_not_know_and_says_where() {
    for (text, part) in [
        ("[dns]\nmode = \"magic\"", "line 2"),
        ("[capture]\nenbled = true", "enbled"),
        ("host = \"A b\"", "host:"),
        ("addresses = [\"127.0.0.1\"]", "127.0.0.1"),
        ("[proxy]\nidle_timeout_seconds = 0", "timeout of 0"),
        ("[telemetry]\naccess_log = \"yes\"", "access_log"),
        ("[consul]\nprefix = \"x\"", "source = \"consul\""),
        (
            "[registry]\nsource = \"consul\"\n[consul]\naddresses = [\"http://10.0.0.1:8500\"]",
            "allow_plaintext",
        ),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.starts_with("agent.toml: ") && error.contains(part), "{text}: {error}");
    }
}
