//! virtual_address
