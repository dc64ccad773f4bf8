//! Whether a registration fits: the Service that it names, what other hosts registered under the same name, and
//! who else is at its addresses. A mesh that agents would refuse as a whole must never come of one registration,
//! so every fault that such a set could have is refused here, to the host that would cause it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use baremesh_model::identity::Identity;
use baremesh_model::name::{Key, Label};
use baremesh_model::service::{Protocol, Service};

use super::addresses::AddressError;
use super::registration::{Registration, RegistrationError};

/// Most registrations of a host.
pub const MAX_REGISTRATIONS: usize = 256;

/// Says which identities a host may be given.
pub type Allowed<'a> = &'a dyn Fn(&Label, &Identity) -> bool;

/// Why a registration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum Refusal {
    #[error(transparent)]
    Invalid(#[from] RegistrationError),
    #[error("a host has at most {MAX_REGISTRATIONS} registrations: deregister some")]
    TooMany,
    #[error("the service is registered twice on this host: remove one of the two")]
    Twice,
    #[error("host {host} may not serve {identity}: grant it with a token's --service or a HostGrant")]
    NotGranted { host: Label, identity: Identity },
    #[error("serviceAccount `{stated}` disagrees with `{expected}` of {origin}: correct one of the two")]
    AccountDisagrees { stated: Label, expected: Label, origin: Origin },
    #[error("{origin} has no port {port}: add it there, or register without it")]
    PortUnknown { port: u16, origin: Origin },
    #[error("{origin} has a port {port} as well: every endpoint serves all ports, so register it too")]
    PortMissing { port: u16, origin: Origin },
    #[error("port {port} speaks {expected} in {origin} and {stated} here: make them the same")]
    ProtocolDiffers { port: u16, stated: Protocol, expected: Protocol, origin: Origin },
    #[error("port {port} is named `{expected}` in {origin} and `{stated}` here: make them the same")]
    NameDiffers { port: u16, stated: String, expected: String, origin: Origin },
    #[error(
        "port {port} goes to {expected} in {origin} and to {stated} here: make them the same, or give the port a name in both"
    )]
    TargetDiffers { port: u16, stated: u16, expected: u16, origin: Origin },
    #[error("{address} port {port} serves {other} already: two identities cannot share an address and port")]
    EndpointTaken { address: IpAddr, port: u16, other: Key },
    #[error("WorkloadEntry {workload} serves it as `{stated}`, not as `{expected}`: correct one of the two")]
    WorkloadDisagrees { workload: Key, stated: Label, expected: Label },
    #[error("the workload's name `{0}` is taken: rename the service or the host")]
    NameTaken(Label),
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// What a registration was compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The Service resource.
    Declared(Key),
    /// The registration of another host.
    Host(Label),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Declared(key) => write!(f, "Service {key}"),
            Self::Host(host) => write!(f, "the registration of host {host}"),
        }
    }
}

/// Whether a registration can be an endpoint of a Service that a resource declares. What it does not state is
/// the Service's.
pub fn fits_declared(registration: &Registration, service: &Service) -> Result<(), Refusal> {
    if let Some(identity) = &service.federated {
        return Err(RegistrationError::Federated(identity.clone()).into());
    }
    let origin = Origin::Declared(service.key.clone());
    let mut filled = registration.implicit_service();
    if registration.service_account.is_none() {
        filled.service_account = service.service_account.clone();
    }
    for (port, stated) in filled.ports.iter_mut().zip(&registration.ports) {
        let Some(declared) = service.port(port.port.get()) else { continue };
        port.protocol = stated.protocol.unwrap_or(declared.protocol);
        port.name = stated.name.clone().or_else(|| declared.name.clone());
    }
    agrees(&filled, service, &origin)
}

/// Whether two registrations of one service, on two hosts, come to the same Service.
pub fn fits_registered(
    registration: &Registration,
    other: &Registration,
    host: &Label,
) -> Result<(), Refusal> {
    agrees(&registration.implicit_service(), &other.implicit_service(), &Origin::Host(host.clone()))
}

fn agrees(service: &Service, expected: &Service, origin: &Origin) -> Result<(), Refusal> {
    let origin = || origin.clone();
    if service.service_account != expected.service_account {
        return Err(Refusal::AccountDisagrees {
            stated: service.service_account.clone(),
            expected: expected.service_account.clone(),
            origin: origin(),
        });
    }
    if let Some(missing) = expected.ports.iter().find(|port| service.port(port.port.get()).is_none()) {
        return Err(Refusal::PortMissing { port: missing.port.get(), origin: origin() });
    }
    for here in &service.ports {
        let port = here.port.get();
        let there = expected.port(port).ok_or_else(|| Refusal::PortUnknown { port, origin: origin() })?;
        if here.protocol != there.protocol {
            let (stated, expected) = (here.protocol, there.protocol);
            return Err(Refusal::ProtocolDiffers { port, stated, expected, origin: origin() });
        }
        if here.name != there.name {
            let text = |name: &Option<std::sync::Arc<str>>| name.as_deref().unwrap_or_default().to_owned();
            let (stated, expected) = (text(&here.name), text(&there.name));
            return Err(Refusal::NameDiffers { port, stated, expected, origin: origin() });
        }
        // A workload maps ports by their names, so that without one the target cannot differ.
        if here.target_port != there.target_port && here.name.is_none() {
            let (stated, expected) = (here.target_port.get(), there.target_port.get());
            return Err(Refusal::TargetDiffers { port, stated, expected, origin: origin() });
        }
    }
    Ok(())
}

/// Who shows which identity at an address and port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The service that is served there.
    pub service: Key,
    /// The account that it is served as, in the service's namespace.
    pub account: Label,
    /// The host that registered it.
    pub host: Label,
    /// The network that the host is in, where it says so.
    pub network: Option<Label>,
}

impl Claim {
    /// Whether two claims to one place can stand: they show one identity.
    pub fn same_identity(&self, namespace: &Label, account: &Label) -> bool {
        self.service.namespace == *namespace && self.account == *account
    }
}

/// The claims by address and port, whatever the network.
#[derive(Debug, Clone, Default)]
pub struct Claims(BTreeMap<(IpAddr, u16), BTreeSet<Claim>>);

impl Claims {
    /// Adds what a registration claims.
    pub fn add(&mut self, claim: &Claim, registration: &Registration) {
        for place in places(registration) {
            self.0.entry(place).or_default().insert(claim.clone());
        }
    }

    /// Removes what a host's registration claimed.
    pub fn remove(&mut self, host: &Label, registration: &Registration) {
        for place in places(registration) {
            let Some(claims) = self.0.get_mut(&place) else { continue };
            claims.retain(|claim| claim.host != *host || claim.service != registration.service);
            if claims.is_empty() {
                self.0.remove(&place);
            }
        }
    }

    /// The hosts that claim an address, at whatever port.
    pub fn hosts_at(&self, address: IpAddr) -> impl Iterator<Item = &Label> {
        self.0
            .range((address, 0)..=(address, u16::MAX))
            .flat_map(|(_, claims)| claims)
            .map(|claim| &claim.host)
    }

    /// The claims to a place.
    pub fn at(&self, place: (IpAddr, u16)) -> impl Iterator<Item = &Claim> {
        self.0.get(&place).into_iter().flatten()
    }
}

/// Every address and port that a registration claims.
pub fn places(registration: &Registration) -> impl Iterator<Item = (IpAddr, u16)> {
    registration
        .addresses
        .iter()
        .flat_map(|address| registration.ports.iter().map(|port| (*address, port.target_port.get())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn registration(ports: &Value, account: Option<&str>) -> Registration {
        let mut raw = json!({ "service": "orders.shop", "ports": ports, "addresses": ["10.0.0.7"] });
        if let Some(account) = account {
            raw["serviceAccount"] = account.into();
        }
        Registration::read(&raw).expect("a registration")
    }

    fn web() -> Value {
        json!([{ "port": 80, "targetPort": 8080, "protocol": "http", "name": "web" }])
    }

    fn check(ports: &Value, account: Option<&str>, declared: &str, registered: &str) {
        let host = Label::new("h2").expect("a label");
        let (here, there) = (registration(ports, account), registration(&web(), Some("clerk")));
        let results = [
            ("declared", fits_declared(&here, &there.implicit_service()), declared),
            ("registered", fits_registered(&here, &there, &host), registered),
        ];
        for (with, result, expected) in results {
            let found = result.err().map(|refusal| refusal.to_string()).unwrap_or_default();
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{with}: {found}");
        }
    }

    #[test]
    fn compares_with_the_service_and_with_other_hosts() {
        check(&web(), Some("clerk"), "", "");
        check(&web(), None, "", "`orders` disagrees with `clerk` of the registration of host h2");
        check(&web(), Some("root"), "of Service orders.shop", "disagrees");
        let least = json!([{ "port": 80, "targetPort": 8080 }]);
        check(&least, Some("clerk"), "", "speaks http in the registration of host h2 and tcp here");
        let tcp = json!([{ "port": 80, "targetPort": 8080, "protocol": "tcp", "name": "web" }]);
        check(&tcp, Some("clerk"), "speaks http in Service", "speaks http");
        let moved = json!([{ "port": 80, "targetPort": 9090, "protocol": "http", "name": "web" }]);
        check(&moved, Some("clerk"), "", "");
        let named = json!([{ "port": 80, "targetPort": 8080, "protocol": "http", "name": "api" }]);
        check(&named, Some("clerk"), "named `web`", "named `web`");
        let other = json!([{ "port": 81, "protocol": "http" }]);
        check(&other, Some("clerk"), "port 80 as well", "port 80 as well");
        let more = json!([
            { "port": 80, "targetPort": 8080, "protocol": "http", "name": "web" }, { "port": 81 },
        ]);
        check(&more, Some("clerk"), "has no port 81", "has no port 81");
    }

    #[test]
    fn an_unnamed_port_has_one_target() {
        let host = Label::new("h2").expect("a label");
        let here = registration(&json!([{ "port": 80, "targetPort": 1 }]), None);
        let there = registration(&json!([{ "port": 80, "targetPort": 2 }]), None);
        let refusal = fits_registered(&here, &there, &host).expect_err("two targets");
        assert!(refusal.to_string().contains("give the port a name"), "{refusal}");
    }
}
