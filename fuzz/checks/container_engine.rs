//! What a container engine answers: its networks, its containers, an event and an image, a zero byte between them. The first byte says
//! which engine it is. What is taken is told to the agent, which takes it as it was read.

use baremesh_agent::containers::engine::{
    Found, Kind, bridges, containers, event, image_labels, image_question, kind,
};
use baremesh_agent::containers::wire::Told;

pub fn check(data: &[u8]) {
    let Some((which, answers)) = data.split_first() else { return };
    let mut answers = answers.split(|byte| *byte == 0);
    let mut next = || answers.next().unwrap_or_default();
    let (networks, list, happened, image) = (next(), next(), next(), next());
    let engine = if which % 2 == 0 { Kind::Docker } else { Kind::Podman };
    let _ = kind(networks);
    let _ = event(happened);
    let image = image_labels(image);
    let Ok(listed) = bridges(engine, networks).and_then(|bridges| containers(list, &bridges)) else {
        return;
    };
    listed.containers.iter().filter_map(Found::image).for_each(|id| drop(image_question(id)));
    let running: Vec<_> =
        listed.containers.into_iter().map(|found| found.given(image.as_ref().ok())).collect();
    let line =
        serde_json::to_vec(&Told::new("/run/docker.sock", running.iter())).expect("what is read can be told");
    assert!(!line.contains(&b'\n'), "a list is one line");
    assert_eq!(Told::read(&line), Ok(("/run/docker.sock".to_owned(), running)));
}
