//! What a container engine answers: its networks, its containers and an event, a zero byte between them. The first byte says
//! which engine it is. What is taken is told to the agent, which takes it as it was read.

use baremesh_agent::containers::engine::{Kind, bridges, containers, event, kind};
use baremesh_agent::containers::wire::Told;

pub fn check(data: &[u8]) {
    let Some((which, answers)) = data.split_first() else { return };
    let mut answers = answers.split(|byte| *byte == 0);
    let mut next = || answers.next().unwrap_or_default();
    let (networks, list, happened) = (next(), next(), next());
    let engine = if which % 2 == 0 { Kind::Docker } else { Kind::Podman };
    let _ = kind(networks);
    let _ = event(happened);
    let Ok(running) = bridges(engine, networks).and_then(|bridges| containers(list, &bridges)) else {
        return;
    };
    let line =
        serde_json::to_vec(&Told::new("/run/docker.sock", running.iter())).expect("what is read can be told");
    assert!(!line.contains(&b'\n'), "a list is one line");
    assert_eq!(Told::read(&line), Ok(("/run/docker.sock".to_owned(), running)));
}
