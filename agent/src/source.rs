//! Where the mesh comes from. A source hands whole, validated meshes to the publisher, and goes on trying when it
//! cannot: until then the last good state serves.

/// A directory of resource files.
pub mod files;
/// The control server.
pub mod control;
