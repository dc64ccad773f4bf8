//! An operator's credential as it lies in a file: key, chain, what to take the control server by, and where that is. One
//! file, so that it can be carried to the operator's machine; mode 0600, and read only where it has that.

use std::path::Path;

use anyhow::{Context, bail};
use baremesh_ca::file::{SECRET, read_secret, write_atomically};
use baremesh_ca::issued::Issued;
use baremesh_ca::tls::TrustBundle;
use baremesh_model::name::TrustDomain;
use serde::{Deserialize, Serialize};

use crate::output::usage;

/// The first lines of the file.
const HEAD: &str =
    "# The credential of a baremesh operator: a secret. commands take it with `--credential FILE`.\n";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    trust_domain: String,
    control: String,
    /// PEM: the key, and the chain, leaf first.
    credential: String,
    /// PEM.
    roots: String,
}

/// An operator's credential.
#[derive(Debug)]
pub(super) struct Credential {
    /// The control server's address.
    pub(super) control: String,
    /// What it is taken by.
    pub(super) bundle: TrustBundle,
    /// The certificate with its key.
    pub(super) issued: Issued,
}

impl Credential {
    /// Writes it to a file, for its owner alone.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let raw = Raw {
            trust_domain: self.bundle.trust_domain().to_string(),
            control: self.control.clone(),
            credential: self.issued.to_pem(),
            roots: self.bundle.to_pem(),
        };
        let text = toml::to_string(&raw).context("the credential cannot be written as TOML")?;
        Ok(write_atomically(path, format!("{HEAD}{text}").as_bytes(), SECRET)?)
    }

    /// Reads what `save` wrote.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let bytes = read_secret(path).map_err(|error| usage(error.to_string()))?;
        let damaged = |reason: &dyn std::fmt::Display| {
            usage(format!(
                "{shown} is no operator's credential ({reason}): `baremesh operator add` makes one"
            ))
        };
        let text = String::from_utf8(bytes).map_err(|_| damaged(&"not UTF-8 text"))?;
        // The parser's own message would show the line, and with it perhaps the key.
        let raw: Raw = toml::from_str(&text).map_err(|error| damaged(&error.message()))?;
        let domain = TrustDomain::new(&raw.trust_domain).map_err(|error| damaged(&error))?;
        let bundle = TrustBundle::from_pem(domain, raw.roots.as_bytes()).map_err(|error| damaged(&error))?;
        let issued = Issued::from_pem(&raw.credential).map_err(|error| damaged(&error))?;
        if issued.identity.as_operator().is_none() {
            bail!(damaged(&format!("it is of {}", issued.identity)));
        }
        Ok(Self { control: raw.control, bundle, issued })
    }
}
