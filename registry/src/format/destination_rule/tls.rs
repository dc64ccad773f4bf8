//! `tls`: how endpoints without an agent are reached.

use std::sync::Arc;

use baremesh_model::destination_rule::{ClientCertificate, ClientTls, ServerCheck, Trust, Verify};
use serde_json::Value as Json;

use super::values::{Out, choice};
use crate::diagnostic::{Code, quote};
use crate::format::decode::{At, Decoder, Fields, optional};

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

const MODES: [(&str, Mode); 4] = [
    ("DISABLE", Mode::Disable),
    ("SIMPLE", Mode::Simple),
    ("MUTUAL", Mode::Mutual),
    ("ISTIO_MUTUAL", Mode::IstioMutual),
];

pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<ClientTls> {
    let fields = d.fields(at)?;
    let mode = optional(fields.take("mode"), |at| choice(d, &at, &MODES))?.unwrap_or(Mode::Disable);
    let written = Written::decode(d, &fields)?;
    match mode {
        Mode::Disable | Mode::IstioMutual => {
            let help = "DISABLE makes no TLS, and between agents the identities say whom to trust";
            warn_without_effect(d, &fields, &[&OF_THE_CLIENT[..], &OF_THE_SERVER].concat(), help);
            Some(if mode == Mode::Disable { ClientTls::Disable } else { ClientTls::IstioMutual })
        }
        Mode::Simple => {
            let help = "a client certificate is shown in mode MUTUAL alone";
            warn_without_effect(d, &fields, &OF_THE_CLIENT, help);
            written.server(d, at).map(ClientTls::Simple)
        }
        Mode::Mutual => {
            let client = written.client(d, at);
            let server = written.server(d, at);
            Some(ClientTls::Mutual(client?, server?))
        }
    }
}

/// The fields as written.
struct Written {
    certificate: Option<Arc<str>>,
    key: Option<Arc<str>>,
    authorities: Option<Arc<str>>,
    credential: Option<Arc<str>>,
    sni: Option<Arc<str>>,
    names: Vec<Arc<str>>,
    verify: Verify,
}

impl Written {
    fn decode(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Self> {
        let mut file = |key| optional(fields.take(key), |at| file(d, &at));
        let (certificate, key, authorities) =
            (file("clientCertificate"), file("privateKey"), file("caCertificates"));
        let credential = optional(fields.take("credentialName"), |at| credential(d, &at));
        let sni = optional(fields.take("sni"), |at| host(d, &at));
        let names = optional(fields.take("subjectAltNames"), |at| d.each(&at, alternative_name));
        let skip = optional(fields.take("insecureSkipVerify"), |at| d.boolean(&at));
        Some(Self {
            certificate: certificate?,
            key: key?,
            authorities: authorities?,
            credential: credential?,
            sni: sni?,
            names: names?.unwrap_or_default(),
            verify: if skip?.unwrap_or(false) { Verify::Nothing } else { Verify::Full },
        })
    }

    fn client(&self, d: &mut Decoder<'_>, at: &At<'_>) -> Option<ClientCertificate> {
        match (&self.credential, &self.certificate, &self.key) {
            (Some(name), None, None) => Some(ClientCertificate::Credential(Arc::clone(name))),
            (None, Some(certificate), Some(key)) => {
                Some(ClientCertificate::Files { certificate: Arc::clone(certificate), key: Arc::clone(key) })
            }
            (None, ..) => {
                let help = "set `credentialName`, or `clientCertificate` and `privateKey`";
                d.invalid(at, "mode MUTUAL requires a client certificate and its private key", help);
                None
            }
            (Some(_), ..) => {
                let help = "remove one of the two";
                d.invalid(at, "only one of `credentialName` and files of certificates can be set", help);
                None
            }
        }
    }

    fn server(&self, d: &mut Decoder<'_>, at: &At<'_>) -> Option<ServerCheck> {
        let trust = match (&self.credential, &self.authorities) {
            (Some(_), Some(_)) => {
                let help = "put the authorities into the credential's `ca.crt`";
                d.invalid(at, "only one of `credentialName` and `caCertificates` can be set", help);
                return None;
            }
            (Some(name), None) => Trust::Credential(Arc::clone(name)),
            (None, Some(file)) => Trust::File(Arc::clone(file)),
            (None, None) => Trust::System,
        };
        let subject_alt_names = self.names.clone();
        Some(ServerCheck { trust, sni: self.sni.clone(), subject_alt_names, verify: self.verify })
    }
}

/// What a client shows, in mode MUTUAL.
const OF_THE_CLIENT: [&str; 2] = ["clientCertificate", "privateKey"];

/// How a server is checked, in modes SIMPLE and MUTUAL.
const OF_THE_SERVER: [&str; 5] =
    ["caCertificates", "credentialName", "sni", "subjectAltNames", "insecureSkipVerify"];

/// Fields that the mode does not use.
fn warn_without_effect(d: &mut Decoder<'_>, fields: &Fields<'_>, keys: &[&str], help: &str) {
    for at in keys.iter().filter_map(|key| fields.take(key)) {
        let message = format!("{} is accepted and has no effect in this mode", quote(&at.path));
        d.findings.warning(at.node.span, Code::NoEffect, message, help);
    }
}

/// A file of the caller's host.
fn file(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if !text.starts_with('/') {
        d.invalid(at, format!("{} is not the whole path of a file", quote(text)), "let it begin with /");
        return None;
    }
    Some(text.into())
}

/// A folder's name within the credentials directory, and never a way out of it.
fn credential(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.starts_with('.') || text.len() > 253 || !text.bytes().all(fits) {
        let message = format!("{} is not the name of a credential", quote(text));
        d.invalid(
            at,
            message,
            "name a folder of /etc/baremesh/credentials: letters, digits, `-`, `_` and `.`",
        );
        return None;
    }
    Some(text.into())
}

/// A name that certificates show: a host's, or an address.
fn alternative_name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Some(address.to_string().into());
    }
    if text.contains("://") {
        let help = "name a host: members of the mesh are told by their identities, and need no `tls`";
        d.invalid(at, format!("{} is a URI", quote(text)), help);
        return None;
    }
    host(d, at)
}

fn host(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Arc<str>> {
    let text = d.text(at)?;
    match baremesh_model::destination_rule::HostPattern::new(text) {
        Ok(host) if host.suffix().is_none() => Some(host.as_str().into()),
        _ => {
            d.invalid(at, format!("{} is not a host name", quote(text)), "");
            None
        }
    }
}

pub(super) fn encode(tls: &ClientTls) -> Json {
    let mut out = Out::default();
    out.put("mode", tls.mode());
    let server = match tls {
        ClientTls::Disable | ClientTls::IstioMutual => return out.object(),
        ClientTls::Simple(server) | ClientTls::Mutual(_, server) => server,
    };
    if let ClientTls::Mutual(ClientCertificate::Files { certificate, key }, _) = tls {
        out.put("clientCertificate", &**certificate);
        out.put("privateKey", &**key);
    }
    match &server.trust {
        Trust::System => {}
        Trust::File(file) => out.put("caCertificates", &**file),
        Trust::Credential(name) => out.put("credentialName", &**name),
    }
    out.put_text("sni", server.sni.as_ref());
    if !server.subject_alt_names.is_empty() {
        let names: Vec<&str> = server.subject_alt_names.iter().map(|name| &**name).collect();
        out.put("subjectAltNames", names);
    }
    if server.verify == Verify::Nothing {
        out.put("insecureSkipVerify", true);
    }
    out.object()
}
