//! peer_authentication
