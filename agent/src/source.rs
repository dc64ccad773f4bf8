//! Where the mesh comes from. A source hands whole, validated meshes to the publisher, and goes on trying when it
//! cannot: until then the last good state serves.

use baremesh_ca::tls::TrustBundle;
use baremesh_model::mesh::Mesh;

/// A directory of resource files.
pub mod files;
/// The control server.
pub mod control;
/// Consul.
pub mod consul;
/// Entries of a state, put together into a mesh.
pub mod resources;

/// A mesh whose resources name another trust domain than the certificates are of would authorise nobody.
fn of_trust_domain(mesh: Mesh, bundle: &TrustBundle) -> Result<Mesh, String> {
    let (named, held) = (&mesh.config.trust_domain, bundle.trust_domain());
    if named == held {
        return Ok(mesh);
    }
    Err(format!(
        "MeshConfig names the trust domain `{named}`, but the mesh's certificates are of `{held}`: set `trustDomain`"
    ))
}
