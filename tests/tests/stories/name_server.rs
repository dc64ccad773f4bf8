//! A name server outside the mesh, whose answers a story changes as it goes.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use baremesh_tests::Host;

#[derive(Default)]
struct Told {
    answers: HashMap<String, Vec<[u8; 4]>>,
    asked: HashMap<String, usize>,
}

/// A name server: of names that it was told nothing about it says that they do not exist.
pub struct NameServer(Arc<Mutex<Told>>);

impl NameServer {
    /// One that listens on a host, over UDP.
    pub fn on(host: &Host) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let (socket, known) = (host.bind_udp((Ipv4Addr::UNSPECIFIED, 53)), Arc::clone(&told));
        // Ends with the process.
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let answer = answer(&buffer[..length], &known);
                let _ = socket.send_to(&answer, from);
            }
        });
        Self(told)
    }

    /// From now on a name has these addresses; none: there is no such name.
    pub fn say(&self, name: &str, addresses: &[[u8; 4]]) {
        self.0.lock().expect("no panic").answers.insert(name.to_owned(), addresses.to_vec());
    }

    /// How often a name's IPv4 addresses were asked for.
    pub fn asked_for(&self, name: &str) -> usize {
        self.0.lock().expect("no panic").asked.get(name).copied().unwrap_or_default()
    }
}

/// The answer to a question, good for one second.
fn answer(question: &[u8], told: &Mutex<Told>) -> Vec<u8> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..at + 1 + length]).to_lowercase());
        at += length + 1;
    }
    let (name, is_a) = (labels.join("."), question[at + 1..at + 3] == [0, 1]);
    let mut told = told.lock().expect("no panic");
    if is_a {
        *told.asked.entry(name.clone()).or_default() += 1;
    }
    let known = told.answers.get(&name).filter(|addresses| !addresses.is_empty());
    let addresses = known.filter(|_| is_a).cloned().unwrap_or_default();
    let code = if known.is_some() { 0 } else { 3 };
    let count = u8::try_from(addresses.len()).expect("a few");
    let mut answer = [&question[..2], &[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]].concat();
    answer.extend(&question[12..at + 5]);
    for address in addresses {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address);
    }
    answer
}
