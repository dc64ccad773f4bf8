//! The recorded wire: what a program wrote to its socket is looked for in every packet between the hosts.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};

use crate::demo::hosts::Pcap;
use crate::demo::stage::{Stage, run};

/// What goes over the programs' sockets, to orders and back.
const ASKED: &str = "order tea";
const ANSWERED: &str = "ordered tea: 350 pence";
/// The part of the answer that the catalog has sent to orders, on another wire.
const PRICE: &str = "tea: 350 pence";

/// What is sent without the mesh, to prove that the recorder would have seen the others.
const IN_THE_CLEAR: &str = "these words go round the mesh";
/// Where: a port of the control host, which is no service.
const CLEAR_PORT: u16 = 7000;

/// Enough for connections to both hosts that run orders.
const CALLS: usize = 8;

/// The mesh's port on the wire.
const HBONE_PORT: u16 = 15008;

pub(super) fn no_payload_between_hosts(stage: &Stage<'_>) -> Result<Vec<String>> {
    let clear = stage.control.v4().to_string();
    let echo = stage.control.serve("echo", ["echo", &format!("{clear}:{CLEAR_PORT}")])?;
    let (on_host, on_wire) = (stage.web.host.capture()?, stage.net.capture()?);
    for _ in 0..CALLS {
        let answer = stage.order(&stage.web)?.success("the call to orders")?;
        ensure!(answer == ANSWERED, "orders answered {answer:?}, and {ANSWERED:?} was expected");
    }
    let call = stage.web.host.shop(["call", &clear, &CLEAR_PORT.to_string(), IN_THE_CLEAR]);
    run(&stage.patience, call)?.success("the call round the mesh")?;
    let (on_host, on_wire) = (on_host.stop()?, on_wire.stop()?);
    echo.kill();
    let all = on_host.packets().len();
    ensure!(on_host.holes() == 0, "the recording on web has holes, and so proves nothing");
    let off_loopback = on_host.clone().off_loopback();
    let local = all - off_loopback.packets().len();
    for text in [ASKED, ANSWERED] {
        ensure!(
            on_host.contains(text),
            "{text:?} is not in what the program on web sent: {all} packets recorded"
        );
    }
    for text in [ASKED, PRICE] {
        absent(text, &off_loopback, "leaving web")?;
        absent(text, &on_wire, "between the hosts")?;
    }
    let (packets, ports) = judge(&on_wire)?;
    Ok(vec![
        format!("web's loopback has \"{ASKED}\" and \"{ANSWERED}\", as its program wrote and read them"),
        format!(
            "{packets} packets between the hosts, all ports and families, none missed: neither is in any"
        ),
        format!("their ports: {ports}; {local} packets stayed on web"),
        format!(
            "the recorder sees what is in the clear: \"{IN_THE_CLEAR}\", sent to a host without the mesh"
        ),
    ])
}

fn absent(text: &str, recorded: &Pcap, place: &str) -> Result<()> {
    match recorded.find(text) {
        None => Ok(()),
        Some(sighting) => bail!("{text:?} was seen {place}, in the clear: {sighting}"),
    }
}

/// How many packets there are, and the servers' ports, after it is sure that nothing was missed.
fn judge(on_wire: &Pcap) -> Result<(usize, String)> {
    let holes = on_wire.holes();
    ensure!(holes == 0, "the recording has {holes} holes, and so proves nothing");
    ensure!(
        on_wire.contains(IN_THE_CLEAR),
        "the recorder missed {IN_THE_CLEAR:?}, which was sent in the clear, and so proves nothing"
    );
    let flows = on_wire.flows();
    let tunnelled = flows.iter().any(|flow| flow.destination.port() == HBONE_PORT);
    tunnelled
        .then_some(())
        .with_context(|| format!("nothing went to port {HBONE_PORT}: where did the calls go?"))?;
    // Of the two ports of a conversation the server's is the lower one here: clients' begin at 32768.
    let ports: BTreeSet<u16> =
        flows.iter().map(|flow| flow.source.port().min(flow.destination.port())).collect();
    let name = |port: &u16| match *port {
        HBONE_PORT => format!("{port} (mutual TLS)"),
        15012 => format!("{port} (control)"),
        CLEAR_PORT => format!("{port} (in the clear)"),
        _ => port.to_string(),
    };
    Ok((on_wire.packets().len(), ports.iter().map(name).collect::<Vec<_>>().join(", ")))
}
