//! mesh_config
