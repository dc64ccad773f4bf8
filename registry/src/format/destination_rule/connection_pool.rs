//! `connectionPool`.

use baremesh_model::destination_rule::{ConnectionPool, H2Upgrade, HttpPool, Keepalive, TcpPool};
use serde_json::Value as Json;

use super::values::{Out, choice, count, duration, time};
use crate::format::decode::{At, Decoder, optional};

const UPGRADES: [(&str, H2Upgrade); 3] = [
    ("DEFAULT", H2Upgrade::Default),
    ("DO_NOT_UPGRADE", H2Upgrade::DoNotUpgrade),
    ("UPGRADE", H2Upgrade::Upgrade),
];

pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<ConnectionPool> {
    let fields = d.fields(at)?;
    if fields.is_empty() {
        d.invalid(at, "connection pool must have at least one field", "set `tcp` or `http`, or remove it");
        return None;
    }
    let tcp = optional(fields.take("tcp"), |at| tcp(d, &at));
    let http = optional(fields.take("http"), |at| http(d, &at));
    Some(ConnectionPool { tcp: tcp?.unwrap_or_default(), http: http?.unwrap_or_default() })
}

fn tcp(d: &mut Decoder<'_>, at: &At<'_>) -> Option<TcpPool> {
    let fields = d.fields(at)?;
    let max_connections = optional(fields.take("maxConnections"), |at| count(d, &at));
    let connect_timeout = optional(fields.take("connectTimeout"), |at| time(d, &at));
    let keepalive = optional(fields.take("tcpKeepalive"), |at| keepalive(d, &at));
    let max_duration = optional(fields.take("maxConnectionDuration"), |at| time(d, &at));
    let idle_timeout = optional(fields.take("idleTimeout"), |at| duration(d, &at));
    Some(TcpPool {
        max_connections: max_connections?,
        connect_timeout: connect_timeout?,
        keepalive: keepalive?,
        max_connection_duration: max_duration?,
        idle_timeout: idle_timeout?,
    })
}

fn keepalive(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Keepalive> {
    let fields = d.fields(at)?;
    let probes = optional(fields.take("probes"), |at| count(d, &at));
    let idle = optional(fields.take("time"), |at| time(d, &at));
    let interval = optional(fields.take("interval"), |at| time(d, &at));
    Some(Keepalive { probes: probes?, time: idle?, interval: interval? })
}

fn http(d: &mut Decoder<'_>, at: &At<'_>) -> Option<HttpPool> {
    let fields = d.fields(at)?;
    let pending = optional(fields.take("http1MaxPendingRequests"), |at| count(d, &at));
    let requests = optional(fields.take("http2MaxRequests"), |at| count(d, &at));
    let per_connection = optional(fields.take("maxRequestsPerConnection"), |at| count(d, &at));
    let retries = optional(fields.take("maxRetries"), |at| count(d, &at));
    let idle_timeout = optional(fields.take("idleTimeout"), |at| duration(d, &at));
    let h2_upgrade = optional(fields.take("h2UpgradePolicy"), |at| choice(d, &at, &UPGRADES));
    let use_client_protocol = optional(fields.take("useClientProtocol"), |at| d.boolean(&at));
    let streams = optional(fields.take("maxConcurrentStreams"), |at| count(d, &at));
    Some(HttpPool {
        http1_max_pending_requests: pending?,
        http2_max_requests: requests?,
        max_requests_per_connection: per_connection?,
        max_retries: retries?,
        idle_timeout: idle_timeout?,
        h2_upgrade: h2_upgrade?.unwrap_or_default(),
        use_client_protocol: use_client_protocol?.unwrap_or(false),
        max_concurrent_streams: streams?,
    })
}

pub(super) fn encode(pool: &ConnectionPool) -> Json {
    let ConnectionPool { tcp, http } = pool;
    let mut out = Out::default();
    let mut part = Out::default();
    part.put_some("maxConnections", tcp.max_connections);
    part.put_time("connectTimeout", tcp.connect_timeout);
    part.put_some("tcpKeepalive", tcp.keepalive.map(encode_keepalive));
    part.put_time("maxConnectionDuration", tcp.max_connection_duration);
    part.put_time("idleTimeout", tcp.idle_timeout);
    // One of the two is there at least.
    out.put("tcp", part.object());
    let mut part = Out::default();
    part.put_some("http1MaxPendingRequests", http.http1_max_pending_requests);
    part.put_some("http2MaxRequests", http.http2_max_requests);
    part.put_some("maxRequestsPerConnection", http.max_requests_per_connection);
    part.put_some("maxRetries", http.max_retries);
    part.put_time("idleTimeout", http.idle_timeout);
    let named = UPGRADES.iter().find(|(_, policy)| *policy == http.h2_upgrade);
    part.put_some("h2UpgradePolicy", named.filter(|(name, _)| *name != "DEFAULT").map(|(name, _)| *name));
    part.put_some("useClientProtocol", http.use_client_protocol.then_some(true));
    part.put_some("maxConcurrentStreams", http.max_concurrent_streams);
    out.put_some("http", part.some());
    out.object()
}

fn encode_keepalive(keepalive: Keepalive) -> Json {
    let mut out = Out::default();
    out.put_some("probes", keepalive.probes);
    out.put_time("time", keepalive.time);
    out.put_time("interval", keepalive.interval);
    out.object()
}
