//! Questions of containers: what they ask any server on port 53 is brought to the addresses that this host has on their
//! bridge. Bridges come and go with their engine, so they are looked for as long as the server runs. A socket there takes
//! what arrives on the bridge and nothing else, and a bridge that the network outside is part of has none: the server is
//! there for this host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use if_addrs::get_if_addrs;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::counters::LogGate;
use super::server::Server;
use crate::beat;
use crate::capture::Interface;

/// How often bridges are looked for.
const LOOK: Duration = Duration::from_secs(2);

/// Where a container's question arrives: a bridge, by its name and the number that another of the same name has not, and
/// an address of this host's there.
type Place = (Interface, Option<u32>, IpAddr);

/// Serves the bridges until told to stop.
pub(super) async fn serve(
    server: Arc<Server>,
    (bridges, port): (Vec<Interface>, u16),
    mut stop: watch::Receiver<bool>,
) {
    let mut serving: BTreeMap<Place, JoinSet<()>> = BTreeMap::new();
    let log = LogGate::new();
    loop {
        let wanted = places(&bridges).unwrap_or_default();
        // Those of a bridge that went are dead.
        serving.retain(|place, _| wanted.contains(place));
        for place in wanted {
            if serving.contains_key(&place) {
                continue;
            }
            let (interface, _, address) = &place;
            match super::bind_pair((*address, port).into(), Some(interface.as_str())) {
                Ok((udp, tcp)) => {
                    tracing::info!(%interface, %address, "names are answered to containers");
                    let mut loops = JoinSet::new();
                    loops.spawn(server.clone().serve_udp(udp, stop.clone()));
                    loops.spawn(server.clone().serve_tcp(tcp, stop.clone()));
                    serving.insert(place, loops);
                }
                Err(error) => {
                    if log.opens() {
                        tracing::warn!(%interface, %address, %error, "names cannot be answered to containers");
                    }
                }
            }
        }
        tokio::select! {
            _ = stop.changed() => break,
            () = beat::next(LOOK) => {}
        }
    }
    for loops in serving.values_mut() {
        while loops.join_next().await.is_some() {}
    }
}

/// The addresses that this host has on the bridges.
fn places(bridges: &[Interface]) -> io::Result<BTreeSet<Place>> {
    let mut places = BTreeSet::new();
    for found in get_if_addrs()? {
        let Some(interface) = bridges.iter().find(|bridge| bridge.as_str() == found.name) else { continue };
        let link_local = matches!(found.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !link_local && !interface.leads_outside() {
            places.insert((interface.clone(), found.index, found.ip()));
        }
    }
    Ok(places)
}
