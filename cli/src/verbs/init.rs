//! `baremesh init`: a mesh is made. Everything that can fail is done aside; then it is moved into place, the certificate
//! authority after the resources, so that an attempt that fails leaves nothing behind, and one that was cut off
//! leaves nothing that the next would stumble over.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use baremesh_agent::config::Directories;
use baremesh_agent::machine;
use baremesh_ca::authority::{Authority, Place, ROOT_KEY};
use baremesh_ca::client::CONTROL_PORT;
use baremesh_ca::file::{PUBLIC, SECRET, read_secret, write_atomically};
use baremesh_ca::ledger::{Ledger, TokenHost};
use baremesh_ca::service::{CaService, Settings, TOKEN_LIFETIME, TokenRequest};
use baremesh_ca::token::Token;
use baremesh_model::grant::{AddressGrant, Grant};
use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::{Domain, Key, Label, TrustDomain};
use baremesh_registry::files::ResourceDirectory;
use baremesh_registry::resource::mesh_config_key;
use clap::Args;
use serde_json::json;

use super::aside::Aside;
use super::server::Denied;
use super::{Global, passphrase};
use crate::control::{CONTROL_FILE, DATABASE, consul_settings_of, make_directory};
use crate::output::{Output, remark, say, say_json};

const LONG_ABOUT: &str = "\
Make a mesh on this host, which becomes its control host: the certificate authority, the resources that hold from the
beginning (mutual TLS everywhere, nobody is let in without), and a token with which the first host can join.

Names cannot be changed later without issuing every identity anew; the defaults serve a mesh that stands alone.

The root's key is at STATE-DIR/ca/root.key, or where --offline-root says. It signs an intermediate once a year and can be
kept elsewhere meanwhile; the control server says in time when it is needed.";

const EXAMPLES: &str = "\
Examples:
  baremesh init
  baremesh init --trust-domain prod.example.com --domain prod.internal --address control.example.com:15012
  baremesh init --ca-cert chain.pem --ca-key ca.key --trust-domain prod.example.com
  baremesh init --offline-root /media/safe/root.key --ca-passphrase-file /run/keys/passphrase
  systemd-ask-password | baremesh init --ca-passphrase-file -
  baremesh init --service '*.shop'                      the first token lets its host run anything in `shop`";

/// Make a mesh on this host
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Init {
    /// The trust domain of every identity [default: mesh.internal]
    #[arg(long, value_name = "DOMAIN", value_parser = Domain::new)]
    trust_domain: Option<TrustDomain>,
    /// The DNS domain of services [default: mesh.internal]
    #[arg(long, value_name = "DOMAIN", value_parser = Domain::new)]
    domain: Option<Domain>,
    /// The mesh's name, which every metric carries [default: baremesh]
    #[arg(long, value_parser = Label::new)]
    name: Option<Label>,
    /// Take over a certificate authority: a PEM file with its certificate first and its root last
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Seal the authority's keys by the passphrase in this file (one line, 12 bytes at least, mode 0600); `-` is the standard
    /// input. It opens --ca-key as well
    #[arg(long, value_name = "FILE")]
    ca_passphrase_file: Option<String>,
    /// Write the root's key to this file, on another medium for instance, and keep none here
    #[arg(long, value_name = "FILE", conflicts_with = "ca_cert")]
    offline_root: Option<PathBuf>,
    /// A service that the first host to join may run; can be given several times, `*` for any run of characters
    #[arg(long = "service", value_name = "NAME[.NAMESPACE]", value_parser = Grant::parse)]
    services: Vec<Grant>,
    /// An address or CIDR block at which that host may say that it is, although it does not speak to this one from
    /// there (NAT, a container); can be given several times
    #[arg(long = "grant-address", value_name = "ADDRESS|CIDR", value_parser = AddressGrant::parse)]
    granted_addresses: Vec<AddressGrant>,
    /// Have Consul as the registry, at this address (such as http://127.0.0.1:8500); can be given several times. CONFIG-DIR/control.toml
    /// is written, and takes what else is to be said of it: token, certificates
    #[arg(long, value_name = "URL")]
    consul: Vec<String>,
    /// Where hosts reach this one, for the line that is printed [default: this machine's name, port 15012]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

impl Init {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let directories = global.directories();
        refuse_over_existing(&directories)?;
        let (config, texts) = self.resources(&directories)?;
        make_directory(&directories.state, 0o700)?;
        make_directory(&directories.registry(), 0o755)?;
        let aside = Aside::new(&directories.state, ".init-")?;
        let token = self.make_authority(aside.path(), &config)?;
        let offline = self.take_root_away(aside.path())?;
        if let Err(error) = self.move_into_place(&directories, aside.path(), &texts) {
            // The key of a mesh that never was.
            offline.iter().for_each(|path| _ = fs::remove_file(path));
            return Err(error);
        }
        let address = self.address.unwrap_or_else(|| format!("{}:{CONTROL_PORT}", machine::name()));
        match global.output {
            Output::Json => say_json(&json!({
                "trustDomain": config.trust_domain.as_str(),
                "domain": config.domain.as_str(),
                "address": address,
                "token": token.reveal(),
            })),
            _ => {
                let root = offline.unwrap_or_else(|| directories.authority().join(ROOT_KEY));
                say_next(&directories, &config, (&address, &token), &root)
            }
        }
    }

    /// The settings of the mesh, and the files that are to be written: none of what the operator wrote already.
    fn resources(&self, directories: &Directories) -> anyhow::Result<(MeshConfig, Vec<(PathBuf, String)>)> {
        let registry = directories.registry();
        let mut texts = Vec::new();
        let loaded = match registry.exists() {
            true => ResourceDirectory::new(&registry).load().map_err(Denied::from)?,
            false => Default::default(),
        };
        let config = match loaded.places.get(&ResourceId { kind: Kind::MeshConfig, key: mesh_config_key() }) {
            Some(place) => self.agree(loaded.mesh.config.clone(), place)?,
            None => {
                let config = self.config();
                texts.push((free(registry.join("mesh.toml"))?, mesh_text(&config)));
                config
            }
        };
        let root = &config.root_namespace;
        let written = loaded.mesh.peer_authentications.iter();
        let mut mesh_wide =
            written.filter(|policy| policy.key.namespace == *root && policy.selector.is_none());
        if mesh_wide.next().is_none() {
            let key = Key::new(root.clone(), Label::new("default")?);
            texts.push((free(registry.join("mtls.toml"))?, strict_text(&key)));
        }
        if !self.consul.is_empty() {
            texts.push((free(directories.config.join(CONTROL_FILE))?, consul_text(&self.consul)?));
        }
        Ok((config, texts))
    }

    fn config(&self) -> MeshConfig {
        let default = MeshConfig::default();
        MeshConfig {
            name: self.name.clone().unwrap_or(default.name.clone()),
            trust_domain: self.trust_domain.clone().unwrap_or(default.trust_domain.clone()),
            domain: self.domain.clone().unwrap_or(default.domain.clone()),
            ..default
        }
    }

    /// Takes the settings that are written already, unless the command line says otherwise.
    fn agree(&self, written: MeshConfig, place: &str) -> anyhow::Result<MeshConfig> {
        let differs =
            |asked: &Option<Domain>, found: &Domain| asked.as_ref().is_some_and(|asked| asked != found);
        if differs(&self.trust_domain, &written.trust_domain)
            || differs(&self.domain, &written.domain)
            || self.name.as_ref().is_some_and(|name| *name != written.name)
        {
            bail!(
                "the MeshConfig at {place} names the mesh otherwise than the command line: change one of the two"
            );
        }
        Ok(written)
    }

    /// Makes the authority, the ledger and the first token below `aside`.
    fn make_authority(&self, aside: &Path, config: &MeshConfig) -> anyhow::Result<Token> {
        let now = SystemTime::now();
        let passphrase = self.ca_passphrase_file.as_deref().map(passphrase::read).transpose()?;
        let (place, domain) = (Place::new(&aside.join("ca"), passphrase), &config.trust_domain);
        let authority = match (&self.ca_cert, &self.ca_key) {
            (Some(certificates), Some(key)) => Authority::adopt(place, certificates, key, domain, now)?,
            _ => Authority::create(place, domain, now)?,
        };
        let ledger = Ledger::open(&aside.join(DATABASE))?;
        let service = CaService::new(authority, ledger, Settings::default());
        let request = TokenRequest {
            host: TokenHost::Any,
            grants: self.services.clone(),
            addresses: self.granted_addresses.clone(),
            lifetime: TOKEN_LIFETIME,
            who: "init".to_owned(),
        };
        Ok(service.create_token(request, now)?)
    }

    /// Puts the root's key where it is to be kept, and returns where.
    fn take_root_away(&self, aside: &Path) -> anyhow::Result<Option<PathBuf>> {
        let Some(path) = &self.offline_root else { return Ok(None) };
        let key = aside.join("ca").join(ROOT_KEY);
        // `link` and rename do not reach another medium; a file that is there may be another mesh's.
        if path.symlink_metadata().is_ok() {
            bail!("{} is there already: it may be the root's key of another mesh", path.display());
        }
        write_atomically(path, &read_secret(&key)?, SECRET)?;
        fs::remove_file(&key).with_context(|| format!("{} cannot be removed", key.display()))?;
        Ok(Some(path.clone()))
    }

    /// Moves everything into place. The authority makes the mesh exist, so it goes after the resources that it needs;
    /// without the database, which goes last, only the first token would be missing.
    fn move_into_place(
        &self,
        directories: &Directories,
        aside: &Path,
        texts: &[(PathBuf, String)],
    ) -> anyhow::Result<()> {
        let mut written = Vec::new();
        let moved = (|| -> anyhow::Result<()> {
            for (path, text) in texts {
                write_atomically(path, text.as_bytes(), PUBLIC)?;
                written.push(path);
            }
            // Together they must be what a control server takes.
            ResourceDirectory::new(&directories.registry()).load().map_err(Denied::from)?;
            let authority = directories.authority();
            fs::rename(aside.join("ca"), &authority)
                .with_context(|| format!("{} cannot be put in place", authority.display()))
        })();
        if let Err(error) = moved {
            written.iter().for_each(|path| _ = fs::remove_file(path));
            return Err(error);
        }
        let database = directories.state.join(DATABASE);
        let placed = fs::rename(aside.join(DATABASE), &database)
            .and_then(|()| fs::File::open(&directories.state)?.sync_all());
        placed.with_context(|| {
            format!(
                "the mesh is made, but {} could not be put in place: start `baremesh control`, and make a token with `baremesh token \
                 create`",
                database.display()
            )
        })
    }
}

fn refuse_over_existing(directories: &Directories) -> anyhow::Result<()> {
    let authority = directories.authority();
    if authority.exists() {
        bail!(
            "there is a mesh on this host already ({}): `baremesh control` serves it, `baremesh token create` lets hosts in",
            authority.display()
        );
    }
    let database = directories.state.join(DATABASE);
    if database.exists() {
        bail!(
            "{} is that of a mesh whose certificate authority is gone: bring `ca` back from a backup, or move the file away",
            database.display()
        );
    }
    Ok(())
}

/// The control server's configuration with Consul at these addresses.
fn consul_text(addresses: &[String]) -> anyhow::Result<String> {
    let shown: Vec<_> = addresses.iter().map(|address| format!("{address:?}")).collect();
    let text = format!(
        "[registry]\nsource = \"consul\"\n\n# token_file, ca_certificates, certificate, key, datacenter, prefix: docs/consul.md\n[consul]\naddresses = [{}]\n",
        shown.join(", ")
    );
    consul_settings_of(&text).context("--consul")?;
    Ok(text)
}

/// A path that no file has yet.
fn free(path: PathBuf) -> anyhow::Result<PathBuf> {
    if path.exists() {
        bail!(
            "{} is there and says something else: move it away, or add what is missing to it",
            path.display()
        );
    }
    Ok(path)
}

fn mesh_text(config: &MeshConfig) -> String {
    format!(
        "# What holds for the whole mesh. All fields: baremesh reference\n\
         [[MeshConfig]]\n\
         name = \"{}\"\n\n\
         # The trust domain of every identity: spiffe://{}/ns/NAMESPACE/sa/ACCOUNT. It is the certificate authority's and\n\
         # cannot be changed here.\n\
         trustDomain = \"{}\"\n\n\
         # The DNS domain of services: NAME.NAMESPACE.{}, and NAME.{} in the namespace `default`.\n\
         domain = \"{}\"\n",
        config.name, config.trust_domain, config.trust_domain, config.domain, config.domain, config.domain
    )
}

fn strict_text(key: &Key) -> String {
    format!(
        "# Services of the mesh take connections over mutual TLS alone. PERMISSIVE takes plaintext as well, for the time of\n\
         # moving in: for one service, with a PeerAuthentication of its namespace and a selector, rather than here for all.\n\
         [[PeerAuthentication]]\n\
         name = \"{}\"\n\
         # The root namespace: what stands in it is for the whole mesh.\n\
         namespace = \"{}\"\n\
         mtls = {{ mode = \"STRICT\" }}\n",
        key.name, key.namespace
    )
}

fn say_next(
    directories: &Directories,
    config: &MeshConfig,
    (address, token): (&str, &Token),
    root: &Path,
) -> anyhow::Result<()> {
    say(format_args!(
        "The mesh {} is made (services under {}).\n\
         \n\
         1. Serve it on this host:\n     \
         systemctl enable --now baremesh-control            (or: baremesh control)\n\
         \n\
         2. Let the first host in; this token works once, within the hour:\n     \
         baremesh join {address} --token {}\n\
         \n\
         3. For every other host, this one included, make a token of its own:\n     \
         baremesh token create --service NAME.NAMESPACE",
        config.trust_domain,
        config.domain,
        token.reveal(),
    ))?;
    remark(format_args!(
        "\nThe root's key is {}: it can be kept in a safe place until it is asked for.\nResources are in {}.",
        root.display(),
        directories.registry().display()
    ));
    Ok(())
}

#[cfg(test)]
mod tests;
