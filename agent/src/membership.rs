//! What a host has from joining a mesh: its name, its node credential, what it trusts, and where its control server
//! is. It stands below the state directory and is all that the agent needs to start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use baremesh_ca::client::Joined;
use baremesh_ca::file::{FileError, PUBLIC, SECRET, read, read_secret, write_atomically};
use baremesh_ca::issued::Issued;
use baremesh_ca::tls::TrustBundle;
use baremesh_model::name::{Domain, Label, TrustDomain};
use serde::{Deserialize, Serialize};

/// Key and chain of the node credential.
const NODE_FILE: &str = "node.pem";
/// The roots that the host trusts.
const ROOTS_FILE: &str = "roots.pem";
/// Names and addresses.
const MESH_FILE: &str = "mesh.toml";

/// Why a membership could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The host has not joined.
    #[error("this host has not joined a mesh: `baremesh join ADDRESS --token TOKEN` (nothing at {0})")]
    NotJoined(PathBuf),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error("{path}: {fault}; join the mesh again with a token made by `baremesh token create --rejoin`")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
}

#[derive(Serialize, Deserialize)]
struct RawMesh {
    host: String,
    trust_domain: String,
    control: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

/// A host's membership in a mesh.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The host's name.
    pub host: Label,
    /// The control server's address, as it was given at join.
    pub control: String,
    /// The domain of service names, where the mesh has set one.
    pub domain: Option<Domain>,
    /// What the host trusts.
    pub bundle: Arc<TrustBundle>,
    /// The node credential.
    pub node: Arc<Issued>,
}

impl Membership {
    /// The membership that `joined` makes, with the control server at `control`.
    pub fn new(joined: Joined, control: &str) -> Self {
        Self {
            host: joined.host,
            control: control.to_owned(),
            domain: joined.domain,
            bundle: Arc::new(joined.bundle),
            node: Arc::new(joined.node),
        }
    }

    /// Writes all of it to `directory`. The credential goes last: where it stands, the rest does.
    pub fn save(&self, directory: &Path) -> Result<(), MembershipError> {
        let raw = RawMesh {
            host: self.host.to_string(),
            trust_domain: self.bundle.trust_domain().to_string(),
            control: self.control.clone(),
            domain: self.domain.as_ref().map(ToString::to_string),
        };
        let path = directory.join(MESH_FILE);
        let content = |error: toml::ser::Error| MembershipError::Content { path, fault: error.to_string() };
        let text = toml::to_string(&raw).map_err(content)?;
        write_atomically(&directory.join(MESH_FILE), text.as_bytes(), PUBLIC)?;
        save_roots(directory, &self.bundle)?;
        save_node(directory, &self.node)
    }

    /// Reads what `save` wrote.
    pub fn load(directory: &Path) -> Result<Self, MembershipError> {
        let path = directory.join(MESH_FILE);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.is_missing() => return Err(MembershipError::NotJoined(directory.to_owned())),
            Err(error) => return Err(error.into()),
        };
        let content = |path: &Path, fault: String| MembershipError::Content { path: path.to_owned(), fault };
        let text = String::from_utf8(text).map_err(|error| content(&path, error.to_string()))?;
        let raw: RawMesh = toml::from_str(&text).map_err(|error| content(&path, error.to_string()))?;
        let host = Label::new(&raw.host).map_err(|error| content(&path, error.to_string()))?;
        let trust_domain =
            TrustDomain::new(&raw.trust_domain).map_err(|error| content(&path, error.to_string()))?;
        let domain = raw.domain.as_deref().map(Domain::new).transpose();
        let domain = domain.map_err(|error| content(&path, error.to_string()))?;
        let roots = directory.join(ROOTS_FILE);
        let bundle = TrustBundle::from_pem(trust_domain, &read(&roots)?);
        let bundle = bundle.map_err(|error| content(&roots, error.to_string()))?;
        let node = directory.join(NODE_FILE);
        let pem =
            String::from_utf8(read_secret(&node)?).map_err(|error| content(&node, error.to_string()))?;
        let issued = Issued::from_pem(&pem).map_err(|error| content(&node, error.to_string()))?;
        Ok(Self { host, control: raw.control, domain, bundle: Arc::new(bundle), node: Arc::new(issued) })
    }
}

/// Replaces the roots that the host trusts.
pub fn save_roots(directory: &Path, bundle: &TrustBundle) -> Result<(), MembershipError> {
    Ok(write_atomically(&directory.join(ROOTS_FILE), bundle.to_pem().as_bytes(), PUBLIC)?)
}

/// Replaces the node credential after a renewal.
pub fn save_node(directory: &Path, node: &Issued) -> Result<(), MembershipError> {
    Ok(write_atomically(&directory.join(NODE_FILE), node.to_pem().as_bytes(), SECRET)?)
}
