//! Every story, in one test binary: it links once, and stories run side by side.

#[path = "stories/pair.rs"]
mod pair;
#[path = "stories/peer.rs"]
mod peer;
#[path = "stories/town.rs"]
mod town;
#[path = "stories/signer.rs"]
mod signer;
#[path = "stories/raw_peer.rs"]
mod raw_peer;
#[path = "stories/impostor.rs"]
mod impostor;
#[path = "stories/attack.rs"]
mod attack;
#[path = "stories/frames.rs"]
mod frames;
#[path = "stories/issuer.rs"]
mod issuer;

#[path = "stories/addresses.rs"]
mod addresses;
#[path = "stories/agent_killed.rs"]
mod agent_killed;
#[path = "stories/analysis.rs"]
mod analysis;
#[path = "stories/authority_changes.rs"]
mod authority_changes;
#[path = "stories/authorization.rs"]
mod authorization;
#[path = "stories/bridges.rs"]
mod bridges;
#[path = "stories/broken_ends.rs"]
mod broken_ends;
#[path = "stories/calls_by_name.rs"]
mod calls_by_name;
#[path = "stories/capture_rules.rs"]
mod capture_rules;
#[path = "stories/certificates.rs"]
mod certificates;
#[path = "stories/command_line.rs"]
mod command_line;
#[path = "stories/consul.rs"]
mod consul;
#[path = "stories/consul_attacked.rs"]
mod consul_attacked;
#[path = "stories/consul_called.rs"]
mod consul_called;
#[path = "stories/consul_config.rs"]
mod consul_config;
#[path = "stories/consul_leader.rs"]
mod consul_leader;
#[path = "stories/consul_outage.rs"]
mod consul_outage;
#[path = "stories/consul_secured.rs"]
mod consul_secured;
#[path = "stories/container_labels.rs"]
mod container_labels;
#[path = "stories/containers.rs"]
mod containers;
#[path = "stories/control_attacked.rs"]
mod control_attacked;
#[path = "stories/control_away.rs"]
mod control_away;
#[path = "stories/demo_tells_the_truth.rs"]
mod demo_tells_the_truth;
#[path = "stories/destination_rules.rs"]
mod destination_rules;
#[path = "stories/differential.rs"]
mod differential;
#[path = "stories/disk_full.rs"]
mod disk_full;
#[path = "stories/dns_answers.rs"]
mod dns_answers;
#[path = "stories/diagnosed.rs"]
mod diagnosed;
#[path = "stories/doctor.rs"]
mod doctor;
#[path = "stories/doctor_faults.rs"]
mod doctor_faults;
#[path = "stories/draining.rs"]
mod draining;
#[path = "stories/egress.rs"]
mod egress;
#[path = "stories/egress_gateway.rs"]
mod egress_gateway;
#[path = "stories/encrypts_plain_tcp.rs"]
mod encrypts_plain_tcp;
#[path = "stories/enrolment.rs"]
mod enrolment;
#[path = "stories/explains_calls.rs"]
mod explains_calls;
#[path = "stories/ext_authz_differential.rs"]
mod ext_authz_differential;
#[path = "stories/external_authorization.rs"]
mod external_authorization;
#[path = "stories/federation.rs"]
mod federation;
#[path = "stories/files.rs"]
mod files;
#[path = "stories/gateway_bounds.rs"]
mod gateway_bounds;
#[path = "stories/health.rs"]
mod health;
#[path = "stories/forwarded.rs"]
mod forwarded;
#[path = "stories/foresight.rs"]
mod foresight;
#[path = "stories/hosts_are_real.rs"]
mod hosts_are_real;
#[path = "stories/http2_floods.rs"]
mod http2_floods;
#[path = "stories/http_cardinality.rs"]
mod http_cardinality;
#[path = "stories/http_edges.rs"]
mod http_edges;
#[path = "stories/http_grpc.rs"]
mod http_grpc;
#[path = "stories/http_limits.rs"]
mod http_limits;
#[path = "stories/http_messages.rs"]
mod http_messages;
#[path = "stories/http_patience.rs"]
mod http_patience;
#[path = "stories/http_retries.rs"]
mod http_retries;
#[path = "stories/http_routing.rs"]
mod http_routing;
#[path = "stories/http_streams.rs"]
mod http_streams;
#[path = "stories/identities.rs"]
mod identities;
#[path = "stories/impersonation.rs"]
mod impersonation;
#[path = "stories/led_astray.rs"]
mod led_astray;
#[path = "stories/load.rs"]
mod load;
#[path = "stories/local_attackers.rs"]
mod local_attackers;
#[path = "stories/lossy.rs"]
mod lossy;
#[path = "stories/malformed_requests.rs"]
mod malformed_requests;
#[path = "stories/meets_envoy.rs"]
mod meets_envoy;
#[path = "stories/memory_limit.rs"]
mod memory_limit;
#[path = "stories/name_server.rs"]
mod name_server;
#[path = "stories/names.rs"]
mod names;
#[path = "stories/networks.rs"]
mod networks;
#[path = "stories/operators.rs"]
mod operators;
#[path = "stories/policies.rs"]
mod policies;
#[path = "stories/privileges.rs"]
mod privileges;
#[path = "stories/rate_limits.rs"]
mod rate_limits;
#[path = "stories/refuses_certificates.rs"]
mod refuses_certificates;
#[path = "stories/revocation.rs"]
mod revocation;
#[path = "stories/server_names.rs"]
mod server_names;
#[path = "stories/shared_ledger.rs"]
mod shared_ledger;
#[path = "stories/shared_ledger_in_consul.rs"]
mod shared_ledger_in_consul;
#[path = "stories/shop_without_a_mesh.rs"]
mod shop_without_a_mesh;
#[path = "stories/slow_peers.rs"]
mod slow_peers;
#[path = "stories/smuggling.rs"]
mod smuggling;
#[path = "stories/strict_and_permissive.rs"]
mod strict_and_permissive;
#[path = "stories/subscriptions.rs"]
mod subscriptions;
#[path = "stories/survives_exhaustion.rs"]
mod survives_exhaustion;
#[path = "stories/takes_over.rs"]
mod takes_over;
#[path = "stories/tcp_is_tcp.rs"]
mod tcp_is_tcp;
#[path = "stories/telemetry.rs"]
mod telemetry;
#[path = "stories/tokens.rs"]
mod tokens;
#[path = "stories/virtual_addresses.rs"]
mod virtual_addresses;
#[path = "stories/registrations.rs"]
mod registrations;
#[path = "stories/registry_only.rs"]
mod registry_only;
#[path = "stories/sidecars.rs"]
mod sidecars;
#[path = "stories/workload_groups.rs"]
mod workload_groups;
