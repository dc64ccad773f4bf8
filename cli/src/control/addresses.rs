//! Which addresses are a host's: those from which it speaks to this server with its node credential. Over one session
//! it shows one of them; an agent with several opens a connection from each of the others, and asks over it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use baremesh_agent::addresses::own;
use baremesh_ca::service::Refusal;
use baremesh_model::name::Label;
use baremesh_registry::control::ownership::{AddressAnswer, AddressQuestion, MAX_ASKED};
use bytes::Bytes;
use http::{Response, StatusCode};

use super::Server;
use super::calls::refused;

/// Addresses of this server that an agent is told, at most.
const MAX_TOLD: usize = 16;

/// Answers an agent that asks which addresses are taken for its host's.
pub(super) async fn answer(server: &Arc<Server>, host: Label, from: IpAddr, body: &[u8]) -> Response<Bytes> {
    let question = serde_json::from_slice(body).ok();
    let question = question.filter(|question: &AddressQuestion| question.addresses.len() <= MAX_ASKED);
    let Some(question) = question else {
        let refusal = Refusal::Malformed(format!("it asks about {MAX_ASKED} addresses at most"));
        return refused(refusal.status(), refusal.code(), &refusal.to_string());
    };
    match server.control.show(host, spoken_from(from), question.addresses).await {
        Ok(unknown) => {
            let seen = Some(from.to_canonical());
            let answer = AddressAnswer { seen, unknown, control: reachable_at(&server.listen) };
            Response::new(serde_json::to_vec(&answer).unwrap_or_default().into())
        }
        Err(error) => {
            tracing::error!(%error, "it cannot be said which addresses are a host's");
            refused(StatusCode::SERVICE_UNAVAILABLE, "unavailable", &error.to_string())
        }
    }
}

/// The addresses that a connection from `address` shows to be the host's. One that comes from this machine, over the
/// loopback interface perhaps, is of the agent of this very host, which is at every address of it.
pub(super) fn spoken_from(address: IpAddr) -> Vec<IpAddr> {
    let address = address.to_canonical();
    let own = own().unwrap_or_default();
    match address.is_loopback() || own.contains(&address) {
        true => own,
        false => vec![address],
    }
}

/// Where this server can be reached.
fn reachable_at(listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let own = own().unwrap_or_default();
    let mut reachable = Vec::new();
    for listener in listen {
        match listener.ip().is_unspecified() {
            false => reachable.push(*listener),
            true => {
                let family = own.iter().filter(|address| address.is_ipv4() == listener.is_ipv4());
                reachable.extend(family.map(|address| SocketAddr::new(*address, listener.port())));
            }
        }
    }
    reachable.truncate(MAX_TOLD);
    reachable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_host_s_own_agent_is_at_all_of_its_addresses() {
        let own = own().expect("interfaces");
        assert_eq!(spoken_from([127, 0, 0, 1].into()), own);
        assert!(own.iter().all(|address| !address.is_loopback() && spoken_from(*address) == own));
        // TEST-NET-3 (RFC 5737) is nobody's.
        let other = IpAddr::from([203, 0, 113, 7]);
        assert_eq!(spoken_from(other), [other]);
        assert_eq!(spoken_from("::ffff:203.0.113.7".parse().expect("an address")), [other]);
    }

    #[test]
    fn tells_where_it_can_be_reached() {
        let exact = SocketAddr::from(([203, 0, 113, 7], 15012));
        assert_eq!(reachable_at(&[exact]), [exact]);
        let any = SocketAddr::from(([0, 0, 0, 0], 15012));
        assert!(reachable_at(&[any]).iter().all(|at| at.is_ipv4() && !at.ip().is_unspecified()));
    }
}
