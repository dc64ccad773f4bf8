//! Entries of `tls` and `tcp`: where connections go.

use std::sync::Arc;

use baremesh_model::virtual_service::{HostPattern, TcpRoute, TlsMatch, TlsRoute};

use super::http::{Headers, split};
use super::{Named, host, matching};
use crate::diagnostic::quote;
use crate::format::decode::{At, Decoder, optional};

/// One entry of `tcp`.
pub(super) fn tcp(d: &mut Decoder<'_>, at: &At<'_>, named: Named<'_>) -> Option<Arc<TcpRoute>> {
    let fields = d.fields(at)?;
    let matches = optional(fields.take("match"), |at| {
        d.each(&at, |d, at| {
            let fields = matching::understood(d, at)?;
            matching::connection(d, &fields, named)
        })
    });
    let split = d.required(&fields, "route").and_then(|at| split(d, &at, Headers::None));
    Some(Arc::new(TcpRoute { matches: matches?.unwrap_or_default(), split: split? }))
}

/// One entry of `tls`, of a resource for these hosts.
pub(super) fn tls(
    d: &mut Decoder<'_>,
    at: &At<'_>,
    named: Named<'_>,
    hosts: &[HostPattern],
) -> Option<Arc<TlsRoute>> {
    let fields = d.fields(at)?;
    let matches = d.required(&fields, "match").and_then(|at| {
        let matches = d.each(&at, |d, at| tls_match(d, at, named, hosts))?;
        if matches.is_empty() {
            d.invalid(&at, "TLS route must have at least one match condition", "");
            return None;
        }
        Some(matches)
    });
    let split = d.required(&fields, "route").and_then(|at| split(d, &at, Headers::None));
    Some(Arc::new(TlsRoute { matches: matches?, split: split? }))
}

fn tls_match(d: &mut Decoder<'_>, at: &At<'_>, named: Named<'_>, hosts: &[HostPattern]) -> Option<TlsMatch> {
    let fields = matching::understood(d, at)?;
    let names = match fields.take("sni_hosts") {
        Some(at) => Some(at),
        None => d.required(&fields, "sniHosts"),
    };
    let sni_hosts = names.and_then(|at| {
        let names = d.each(&at, |d, at| sni_host(d, at, hosts))?;
        if names.is_empty() {
            d.invalid(&at, "TLS match must have at least one SNI host", "");
            return None;
        }
        Some(names)
    });
    let connection = matching::connection(d, &fields, named);
    Some(TlsMatch { sni_hosts: sni_hosts?, connection: connection? })
}

/// A server name, which must be one of the hosts that the resource is for. Short names are not seen on the wire.
fn sni_host(d: &mut Decoder<'_>, at: &At<'_>, hosts: &[HostPattern]) -> Option<HostPattern> {
    let name = host(d, at)?;
    if hosts.iter().any(|host| host.covers(&name)) {
        return Some(name);
    }
    let of = hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = format!(
        "SNI host {} is not a compatible subset of any of the virtual service hosts: [{of}]",
        quote(&name.to_string())
    );
    d.invalid(at, message, "name one of the hosts, or add it to `hosts`");
    None
}
