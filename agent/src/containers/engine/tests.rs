use super::*;

/// Docker 20.10 and later, cut to what differs: the default bridge, one with a name of its own, one without, and no bridge.
const DOCKER_NETWORKS: &str = r#"[
    {"Name":"bridge","Id":"f2de39df4171b0dc801e8002d1d999b77256983dfc63041c0f34030aa3977566","Created":"2016-10-19T06:21:00.416543526Z","Scope":"local","Driver":"bridge","EnableIPv6":false,"Internal":false,"Attachable":false,"Ingress":false,"IPAM":{"Driver":"default","Config":[{"Subnet":"172.17.0.0/16"}]},"Options":{"com.docker.network.bridge.default_bridge":"true","com.docker.network.bridge.name":"docker0","com.docker.network.driver.mtu":"1500"},"Labels":{}},
    {"Name":"shop","Id":"7d86d31b1478e7cca9ebed7e73aa0fdeec46c5ca29497431d3007d2d9e15ed99","Scope":"local","Driver":"bridge","IPAM":{"Driver":"default","Options":{},"Config":[{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.1"}]},"Options":{},"Labels":null},
    {"Name":"named","Id":"aa86d31b1478e7cca9ebed7e73aa0fdeec46c5ca29497431d3007d2d9e15ed00","Driver":"bridge","Options":{"com.docker.network.bridge.name":"br-named"}},
    {"Name":"none","Id":"e086a3893b05ab69242d3c44e49483a3bbbd3a26b46baa8f61ab797c1088d794","Scope":"local","Driver":"null","IPAM":{"Driver":"default","Config":[]},"Options":{}},
    {"Name":"host","Id":"13e871235c677f196c4e1ecebb9dc733b9b2d2ab589e30c539efeda84a24215e","Scope":"local","Driver":"host","IPAM":{"Driver":"default","Config":[]},"Options":null}
]"#;

const DOCKER_CONTAINERS: &str = r#"[
    {"Id":"8dfafdbc3a40","Names":["/boring_feynman"],"Image":"ubuntu:latest","ImageID":"d74508fb6632491cea586a1fd7d748dfc5274cd6fdfedee309ecdcbc2bf5cb82","Command":"echo 1","Created":1367854155,"State":"running","Status":"Up 2 hours","Ports":[{"PrivatePort":2222,"PublicPort":3333,"Type":"tcp"}],"Labels":{"com.example.vendor":"Acme","app":"cart"},"HostConfig":{"NetworkMode":"default"},"NetworkSettings":{"Networks":{"bridge":{"IPAMConfig":null,"NetworkID":"f2de39df4171b0dc801e8002d1d999b77256983dfc63041c0f34030aa3977566","EndpointID":"2cdc4edb1ded3631c81f57966563e5c8525b81121bb3706a9a9a3ae102711f3f","Gateway":"172.17.0.1","IPAddress":"172.17.0.2","IPPrefixLen":16,"IPv6Gateway":"","GlobalIPv6Address":"fd17::2","GlobalIPv6PrefixLen":64,"MacAddress":"02:42:ac:11:00:02"},"shop":{"NetworkID":"7d86d31b1478e7cca9ebed7e73aa0fdeec46c5ca29497431d3007d2d9e15ed99","IPAddress":"172.18.0.9","GlobalIPv6Address":""}}},"Mounts":[]},
    {"Id":"9cd87474be90","Names":["/coolName"],"Created":1367854155,"Labels":{},"HostConfig":{"NetworkMode":"host"},"NetworkSettings":{"Networks":{"host":{"NetworkID":"13e871235c677f196c4e1ecebb9dc733b9b2d2ab589e30c539efeda84a24215e","IPAddress":"","GlobalIPv6Address":""}}}},
    {"Id":"3176a2479c92","Names":null,"Labels":null,"NetworkSettings":{"Networks":{}}}
]"#;

/// As podman 4.3.1 answers, cut.
const PODMAN_NETWORKS: &str = r#"[
    {"name":"front","id":"eeb988da211c3154a494a521b63dd0d699a6e8e0e239d1377f99fc7da9deacd9","driver":"bridge","network_interface":"podman1","created":"2026-11-29T11:02:21.99440311Z","subnets":[{"subnet":"10.90.0.0/24","gateway":"10.90.0.1"},{"subnet":"fd90::/64","gateway":"fd90::1"}],"ipv6_enabled":true,"internal":false,"dns_enabled":true,"ipam_options":{"driver":"host-local"}},
    {"name":"podman","id":"2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9","driver":"bridge","network_interface":"podman0","subnets":[{"subnet":"10.88.0.0/16","gateway":"10.88.0.1"}],"ipv6_enabled":false,"internal":false,"dns_enabled":false},
    {"name":"wire","id":"00","driver":"macvlan","network_interface":"eth0"}
]"#;

const PODMAN_CONTAINERS: &str = r#"[{"Id":"2b838e980d0ac3ef200e76cec878d7d031bfb6e088e3519d8613f76e4194cd59","Names":["/b"],"Image":"","ImageID":"sha256:","Command":"/bin/sleep 1000","Created":1795950142,"Ports":[],"Labels":{"app":"cart","x":""},"State":"running","Status":"Up Less than a second","NetworkSettings":{"Networks":{"front":{"IPAMConfig":null,"Links":null,"Aliases":["2b838e980d0a"],"NetworkID":"front","EndpointID":"","Gateway":"10.90.0.1","IPAddress":"10.90.0.2","IPPrefixLen":24,"IPv6Gateway":"fd90::1","GlobalIPv6Address":"fd90::2","GlobalIPv6PrefixLen":64,"MacAddress":"f6:f3:f8:b1:72:94","DriverOpts":null}}},"Mounts":[],"Name":"","Config":null,"NetworkingConfig":null,"Platform":null,"AdjustCPUShares":false}]"#;

/// What runs, of images without labels, and what is left out.
fn listed(kind: Kind, networks: &str, list: &str) -> Result<(Vec<Running>, Vec<String>), Unreadable> {
    let bridges = bridges(kind, networks.as_bytes())?;
    let listed = containers(list.as_bytes(), &bridges)?;
    let running = listed.containers.into_iter().map(|found| found.given(Some(&BTreeMap::new())));
    Ok((running.collect(), bridges.left_out.into_iter().chain(listed.left_out).collect()))
}

fn check(kind: Kind, networks: &str, list: &str, expected: Result<&[&str], &str>) {
    match (listed(kind, networks, list), expected) {
        (Ok((running, _)), Ok(lines)) => {
            let line = |one: &Running| {
                let labels: Vec<_> = one.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let on = |place: &Container| {
                    let addresses: Vec<_> = place.addresses.iter().map(ToString::to_string).collect();
                    format!(" {} {}", place.interface, addresses.join("+"))
                };
                let places: String = one.places.iter().map(on).collect();
                format!("{} [{}]{places}", one.name, labels.join(" "))
            };
            assert_eq!(running.iter().map(line).collect::<Vec<_>>(), lines);
        }
        (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
        (read, _) => panic!("{list}: {read:?}"),
    }
}

#[test]
fn containers_are_found_on_the_bridges_of_their_networks() {
    check(
        Kind::Docker,
        DOCKER_NETWORKS,
        DOCKER_CONTAINERS,
        Ok(&[
            "boring_feynman [app=cart com.example.vendor=Acme] br-7d86d31b1478 172.18.0.9 docker0 172.17.0.2+fd17::2",
            "coolName []",
            "3176a2479c92 []",
        ]),
    );
    let named = DOCKER_CONTAINERS
        .replace("7d86d31b1478e7cca9ebed7e73aa0fdeec46c5ca29497431d3007d2d9e15ed99", "named");
    check(
        Kind::Docker,
        DOCKER_NETWORKS,
        &named,
        Ok(&[
            "boring_feynman [app=cart com.example.vendor=Acme] br-named 172.18.0.9 docker0 172.17.0.2+fd17::2",
            "coolName []",
            "3176a2479c92 []",
        ]),
    );
    check(
        Kind::Podman,
        PODMAN_NETWORKS,
        PODMAN_CONTAINERS,
        Ok(&["b [app=cart x=] podman1 10.90.0.2+fd90::2"]),
    );
    let wire = PODMAN_CONTAINERS.replace("\"front\"", "\"wire\"");
    check(Kind::Podman, PODMAN_NETWORKS, &wire, Ok(&["b [app=cart x=]"]));
    check(Kind::Docker, "[]", "[]", Ok(&[]));
}

#[test]
fn what_no_engine_says_is_an_error_with_its_place() {
    for (networks, list, part) in [
        ("{}", "[]", "the engine's networks"),
        ("[]", "{\"message\":\"page not found\"}", "the engine's containers"),
        ("[]", "[{\"Names\":[]}]", "missing field `Id`"),
        ("[]", "[{\"Id\":\"x\",\"Labels\":{\"a\":7}}]", "the engine's containers"),
        ("[]", "", "EOF"),
    ] {
        check(Kind::Docker, networks, list, Err(part));
    }
    let many = format!("[{}]", vec!["{\"Id\":\"x\"}"; MAX_CONTAINERS + 1].join(","));
    check(Kind::Docker, "[]", &many, Err("4097 of them"));
    // A label that is longer than any that can be named is left out; so are link-local addresses, which are nobody's.
    let long = format!("[{{\"Id\":\"x\",\"Labels\":{{\"a\":\"{}\",\"b\":\"1\"}}}}]", "v".repeat(MAX_LABEL));
    check(Kind::Docker, "[]", &long, Ok(&["x [b=1]"]));
    let local = DOCKER_CONTAINERS.replace("fd17::2", "fe80::2");
    let (running, _) = listed(Kind::Docker, DOCKER_NETWORKS, &local).expect("containers");
    assert_eq!(running[0].places[1].addresses.len(), 1);
}

#[test]
fn what_is_odd_is_left_out_and_the_others_are_not() {
    let long = "n".repeat(MAX_NAME + 1);
    for (from, to, part) in [
        ("172.17.0.2", "172.17.0.2/16", "the container boring_feynman: `172.17.0.2/16` is no address"),
        ("/boring_feynman", &long, "the container `8dfafdbc3a40` has a name of 257 bytes"),
        ("8dfafdbc3a40", "", "an ID of 0 bytes"),
        ("8dfafdbc3a40", &long, "an ID of 257 bytes"),
    ] {
        let list = DOCKER_CONTAINERS.replace(from, to);
        let (running, left_out) = listed(Kind::Docker, DOCKER_NETWORKS, &list).expect("containers");
        let names: Vec<_> = running.iter().map(|one| &*one.name).collect();
        assert_eq!(names, ["coolName", "3176a2479c92"], "{to}");
        assert!(left_out.len() == 1 && left_out[0].contains(part), "{left_out:?}");
    }
    let networks = DOCKER_NETWORKS.replace("br-named", "br named").replace("\"named\"", "\"na\\nmed\"");
    let (running, left_out) = listed(Kind::Docker, &networks, DOCKER_CONTAINERS).expect("containers");
    assert_eq!(running[0].places.len(), 2);
    assert!(left_out.len() == 1 && left_out[0].contains("the network `na\\nmed`: "), "{left_out:?}");
}

#[test]
fn the_labels_of_an_image_are_not_its_containers_own() {
    // Docker's answer and podman's, cut: `Config` has the image's labels in either.
    let docker = r#"{"Id":"sha256:d74508fb6632491cea586a1fd7d748dfc5274cd6fdfedee309ecdcbc2bf5cb82","RepoTags":["ubuntu:latest"],"ContainerConfig":{"Labels":null},"Config":{"Cmd":["sh"],"Labels":{"app":"cart","tier":"shop"}},"Architecture":"amd64"}"#;
    let podman = r#"{"Id":"sha256:9b1c","RepoTags":["localhost/shop:latest"],"Container":"","ContainerConfig":null,"Config":{"Cmd":["/bin/sleep"],"Labels":{"app":"cart","tier":"shop"},"OnBuild":null},"Os":"linux"}"#;
    let list = |labels: &str| DOCKER_CONTAINERS.replace("\"app\":\"cart\"", labels);
    for image in [docker, podman] {
        let of_image = image_labels(image.as_bytes()).expect("labels");
        for (labels, expected) in [
            (r#""app":"cart""#, "com.example.vendor=Acme"),
            (r#""app":"orders","tier":"shop""#, "app=orders com.example.vendor=Acme"),
        ] {
            let bridges = bridges(Kind::Docker, DOCKER_NETWORKS.as_bytes()).expect("bridges");
            let listed = containers(list(labels).as_bytes(), &bridges).expect("containers").containers;
            assert_eq!(
                listed[0].image(),
                Some("d74508fb6632491cea586a1fd7d748dfc5274cd6fdfedee309ecdcbc2bf5cb82")
            );
            let given = |of_image: Option<&BTreeMap<String, String>>| {
                let labels = listed[0].clone().given(of_image).labels;
                labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
            };
            assert_eq!(given(Some(&of_image)), expected);
            assert_eq!(given(None), "", "nobody knows whose they are");
            // Where no label matters, no image does; podman's without one have none.
            assert_eq!((listed[1].image(), listed[2].image()), (None, None));
        }
    }
    let rootfs = containers(
        PODMAN_CONTAINERS.as_bytes(),
        &bridges(Kind::Podman, PODMAN_NETWORKS.as_bytes()).expect("bridges"),
    );
    assert_eq!(rootfs.expect("containers").containers[0].image(), None);
    for (image, part) in [
        ("{}".to_owned(), "no `Config`"),
        (r#"{"Config":{"Labels":[]}}"#.to_owned(), "an image"),
        (format!("{{\"Config\":{{\"Labels\":{{{}}}}}}}", many_labels()), "bytes of labels"),
    ] {
        let error = image_labels(image.as_bytes()).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    }
    let long = format!(r#"{{"Config":{{"Labels":{{"a":"{}","b":"1"}}}}}}"#, "v".repeat(MAX_IMAGE_LABELS));
    assert_eq!(image_labels(long.as_bytes()).expect("labels").len(), 1);
    assert_eq!(image_labels(br#"{"Config":{"Labels":null}}"#), Ok(BTreeMap::new()));
    assert_eq!(image_question("sha256:9b1c").as_deref(), Ok("/images/sha256:9b1c/json"));
    for id in ["../containers", "a b", "a/json?x=", &"a".repeat(MAX_NAME + 1)] {
        assert!(image_question(id).is_err(), "{id}");
    }
}

/// More than an image may have, each of a length that can be named.
fn many_labels() -> String {
    let label = |number: usize| format!("\"{number}\":\"{}\"", "v".repeat(1000));
    (0..300).map(label).collect::<Vec<_>>().join(",")
}

#[test]
fn podman_says_who_it_is() {
    for (version, expected) in [
        (
            r#"{"Platform":{"Name":"linux/amd64/debian-12"},"Components":[{"Name":"Podman Engine","Version":"4.3.1"}],"Version":"4.3.1","ApiVersion":"1.41"}"#,
            Kind::Podman,
        ),
        (
            r#"{"Platform":{"Name":"Docker Engine - Community"},"Components":[{"Name":"Engine","Version":"24.0.7"},{"Name":"containerd","Version":"1.6.26"}],"Version":"24.0.7"}"#,
            Kind::Docker,
        ),
        (r#"{"Version":"1.13","Components":null}"#, Kind::Docker),
    ] {
        assert_eq!(kind(version.as_bytes()), Ok(expected));
    }
    assert!(kind(b"page not found").is_err());
}

#[test]
fn an_end_is_told_from_what_else_happens() {
    let ended = |id: &str| Event::Ended(id.to_owned());
    for (line, expected) in [
        (
            r#"{"status":"die","id":"4d50","from":"ubuntu","Type":"container","Action":"die","Actor":{"ID":"4d50","Attributes":{"app":"cart","exitCode":"137","image":"","name":"b"}},"scope":"local","time":1795949723,"timeNano":1795949723707193551}"#,
            ended("4d50"),
        ),
        // Docker's, and podman's.
        (
            r#"{"Type":"network","Action":"disconnect","Actor":{"ID":"7dc8","Attributes":{"container":"4d50","name":"bridge","type":"bridge"}},"scope":"local","time":1461943105}"#,
            ended("4d50"),
        ),
        (
            r#"{"status":"disconnect","id":"4d50","Type":"network","Action":"disconnect","Actor":{"ID":"4d50","Attributes":{"containerExitCode":"0","image":"","name":"b","podId":""}}}"#,
            ended("4d50"),
        ),
        (
            r#"{"Type":"network","Action":"connect","Actor":{"ID":"7dc8","Attributes":{"container":"4d50"}}}"#,
            Event::Changed,
        ),
        (r#"{"Type":"container","Action":"start","Actor":{"ID":"4d50"}}"#, Event::Changed),
        (r#"{"Type":"container","Action":"die"}"#, Event::Changed),
        (r#"{"Type":"container","Action":"exec_create: sh -c true","Actor":{"ID":"4d50"}}"#, Event::Nothing),
        (r#"{"Type":"container","Action":"health_status: healthy","Actor":{"ID":"4d50"}}"#, Event::Nothing),
        (r#"{"Type":"image","Action":"pull"}"#, Event::Nothing),
        ("{}", Event::Nothing),
    ] {
        assert_eq!(event(line.as_bytes()), Ok(expected), "{line}");
    }
    for line in ["", "[]", "die", r#"{"Type":7}"#, r#"{"Actor":{"ID":{}}}"#] {
        assert!(event(line.as_bytes()).is_err(), "{line}");
    }
}
