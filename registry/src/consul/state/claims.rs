//! Who has which address and port. What operators wrote comes before the catalog: what would not hold together with it is left
//! out, so that no state fails because of what somebody registered.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use baremesh_model::identity::Identity;
use baremesh_model::name::{Key, Label};
use baremesh_model::network::may_meet;
use baremesh_model::service::Service;
use baremesh_model::workload::{Tunnel, Workload};

use super::services::Known;
use super::{Declared, Report};

/// The identity that an endpoint shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    namespace: Label,
    account: Label,
    federated: Option<Identity>,
}

impl Owner {
    fn of(service: &Service) -> Self {
        let (namespace, account) = (service.key.namespace.clone(), service.service_account.clone());
        Self { namespace, account, federated: service.federated.clone() }
    }
}

/// Whose each address and port is, in which network.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<SocketAddr, Vec<(Option<Label>, Owner)>>);

impl Claims {
    /// The claims of all that operators wrote. A service of the catalog that does not agree with it is taken out.
    pub(super) fn declared(
        catalog: &mut BTreeMap<Key, Known>,
        declared: &Declared,
        report: &mut Report,
    ) -> Self {
        let mut claims = Self::default();
        for service in declared.services.values() {
            for workload in tunnelled(declared, service) {
                // Two of theirs that disagree are for whoever makes the mesh to refuse.
                let _ = claims.claim(service, workload);
            }
        }
        catalog.retain(|key, known| {
            let agrees = if known.is_implied { claims.agree(&known.service, declared) } else { Ok(()) };
            let agrees = agrees.map_err(|why| report.leave_out(key.to_string(), why));
            agrees.is_ok()
        });
        claims
    }

    /// Takes the addresses of what operators wrote for a service that only the catalog names; or says what is in the way.
    fn agree(&mut self, service: &Service, declared: &Declared) -> Result<(), String> {
        let other =
            declared.workloads.iter().filter(|workload| workload.serves(service)).find_map(|workload| {
                let stated =
                    workload.service_account.as_ref().filter(|stated| **stated != service.service_account);
                Some((&workload.key, stated?))
            });
        if let Some((key, stated)) = other {
            return Err(format!(
                "the WorkloadEntry {key} runs as `{stated}`, and the service would be `{}`: a Service resource says which it is",
                service.service_account
            ));
        }
        let own: Vec<_> = tunnelled(declared, service).collect();
        let taken = own.iter().find_map(|workload| Some((&workload.key, self.taken(service, workload)?)));
        if let Some((key, at)) = taken {
            return Err(format!(
                "the WorkloadEntry {key} would be of it, and {at} is another identity's already"
            ));
        }
        own.into_iter().for_each(|workload| self.add(service, workload));
        Ok(())
    }

    /// Takes the addresses and ports of a workload, all of them or none.
    pub(super) fn claim(&mut self, service: &Service, workload: &Workload) -> Result<(), SocketAddr> {
        match self.taken(service, workload) {
            Some(at) => Err(at),
            None => {
                self.add(service, workload);
                Ok(())
            }
        }
    }

    fn taken(&self, service: &Service, workload: &Workload) -> Option<SocketAddr> {
        let owner = Owner::of(service);
        let network = workload.network.as_ref();
        let is_others = |at: &SocketAddr| {
            let there = self.0.get(at).into_iter().flatten();
            there.filter(|(other, _)| may_meet(other.as_ref(), network)).any(|(_, other)| *other != owner)
        };
        service.ports.iter().flat_map(|port| workload.endpoints(port)).find(is_others)
    }

    fn add(&mut self, service: &Service, workload: &Workload) {
        let claim = (workload.network.clone(), Owner::of(service));
        for at in service.ports.iter().flat_map(|port| workload.endpoints(port)) {
            let there = self.0.entry(at).or_default();
            if !there.contains(&claim) {
                there.push(claim.clone());
            }
        }
    }
}

fn tunnelled<'a>(declared: &'a Declared, service: &'a Service) -> impl Iterator<Item = &'a Workload> {
    let all = declared.workloads.iter().map(|workload| &**workload);
    all.filter(move |workload| workload.tunnel == Tunnel::Hbone && workload.serves(service))
}
