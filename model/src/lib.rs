//! The nouns and the pure decisions of the mesh. Nothing in this crate reads a file, opens a socket, knows a
//! wire format or asks the clock: every function decides from its arguments, and every type is valid by
//! construction.

/// What a line of the access log looks like.
pub mod access_log;
/// Which addresses lead to whoever calls them, and which to nobody.
pub mod address;
/// Who may call whom: authorization policies and the decision they come to.
pub mod authorization;
/// Which endpoint takes the next connection.
pub mod balance;
/// Numbers with a fraction.
pub mod decimal;
/// How a service is called: subsets, balancing, limits, TLS.
pub mod destination_rule;
/// Connections that arrived, and what policies do with them.
pub mod flow;
/// Where the endpoints of a service are, and nothing else of them.
pub mod endpoint_addresses;
/// What leaves the mesh through gateway hosts: Gateway.
pub mod gateway;
/// What a host may be: grants of services to hosts.
pub mod grant;
/// Asking others whether a request goes on: Envoy's external authorization.
pub mod external_authorization;
/// What gRPC puts into HTTP heads.
pub mod grpc;
/// Whether a workload is fit to be called: what results of checks come to.
pub mod health;
/// HTTP messages without a wire.
pub mod http;
/// SPIFFE identities, and which of them the mesh keeps for itself.
pub mod identity;
/// The whole, validated set that everything else is compiled from.
pub mod mesh;
/// Mesh-wide settings.
pub mod mesh_config;
/// Other trust domains.
pub mod federation;
/// RFC 1123 labels, trust domains, service names and the forms in which people write them.
pub mod name;
/// Networks, and the gateways between them.
pub mod network;
/// Operators: roles, and what each may do.
pub mod operator;
/// What workloads may open connections to.
pub mod outbound;
/// Leaving out endpoints that fail.
pub mod outlier;
/// Value patterns that policies match with: exact, prefix, suffix, presence.
pub mod pattern;
/// Whether plaintext is taken: PeerAuthentication and its precedence.
pub mod peer_authentication;
/// How many requests are let through: limits, their arithmetic and their bounded memory.
pub mod rate_limit;
/// Regular expressions of RE2's syntax, in linear time.
pub mod re2;
/// Which tokens workloads take: RequestAuthentication.
pub mod request_authentication;
/// How many requests may be retries.
pub mod retry_budget;
/// Services and their ports.
pub mod service;
/// Hosts that no Service stands for: ServiceEntry.
pub mod service_entry;
/// Which services a workload calls.
pub mod sidecar;
/// How routes match texts: exact, prefix, regex, presence.
pub mod string_match;
/// What a verified token says of who sends a request.
pub mod token;
/// Virtual addresses: the ranges, and the assignment by hash.
pub mod virtual_address;
/// Routes of requests and connections: VirtualService.
pub mod virtual_service;
/// Workloads: where a service runs, and how it is reached.
pub mod workload;
/// The template of registrations.
pub mod workload_group;
