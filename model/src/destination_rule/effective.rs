//! What holds for a subset and a port. Istio's rule: a subset's policy replaces the rule's own field by field; a port's
//! settings replace balancing, pools, outlier detection and TLS together, and what they leave out has its default.

use std::time::Duration;

use super::{
    ClientTls, ConnectionPool, H2Upgrade, Keepalive, LoadBalancer, ProxyProtocol, TrafficPolicy, Tunnel,
};
use crate::outlier::OutlierDetection;
use crate::retry_budget::RetryBudget;

/// What holds for one port of a service, or of one of its subsets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectivePolicy {
    /// Choosing an endpoint.
    pub load_balancer: LoadBalancer,
    /// Limits of connections and requests.
    pub limits: Limits,
    /// Leaving out endpoints that fail.
    pub outlier: Option<OutlierDetection>,
    /// TLS towards endpoints without an agent; without it they are reached in plaintext.
    pub tls: Option<ClientTls>,
    /// How many of the requests in flight may be retries; replaces `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Sends the caller's address ahead.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The endpoints are HTTP proxies, and connections that are carried as bytes go through them.
    pub tunnel: Option<Tunnel>,
}

/// Limits with their defaults. A time of `None` is the agent's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub max_connections: u32,
    /// How long a connect may take.
    pub connect_timeout: Option<Duration>,
    /// Asking a quiet peer whether it lives.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may last.
    pub max_connection_duration: Option<Duration>,
    /// How long a connection that is not HTTP's may be quiet.
    pub tcp_idle_timeout: Option<Duration>,
    /// Requests that may wait for a connection.
    pub http1_max_pending_requests: u32,
    /// Requests at once.
    pub http2_max_requests: u32,
    /// Requests after which a connection is closed.
    pub max_requests_per_connection: u32,
    /// Retries at once.
    pub max_retries: u32,
    /// How long an HTTP connection may have no request.
    pub http_idle_timeout: Option<Duration>,
    /// Requests at once on one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Whether HTTP/1.1 is carried over HTTP/2.
    pub h2_upgrade: H2Upgrade,
    /// The version that the caller spoke is spoken to the endpoint.
    pub use_client_protocol: bool,
}

/// What stands for "for ever" where a time of zero says so: longer than any process lives.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Default for Limits {
    fn default() -> Self {
        Self::from(&ConnectionPool::default())
    }
}

impl From<&ConnectionPool> for Limits {
    fn from(ConnectionPool { tcp, http }: &ConnectionPool) -> Self {
        // In Istio's protos 0 and nothing are the same: no limit.
        let or_none = |number: Option<u32>| number.filter(|number| *number > 0).unwrap_or(u32::MAX);
        let idle = |time: Option<Duration>| time.map(|time| if time.is_zero() { FOR_EVER } else { time });
        Self {
            max_connections: or_none(tcp.max_connections),
            connect_timeout: tcp.connect_timeout,
            keepalive: tcp.keepalive,
            max_connection_duration: tcp.max_connection_duration,
            tcp_idle_timeout: idle(tcp.idle_timeout),
            http1_max_pending_requests: or_none(http.http1_max_pending_requests),
            http2_max_requests: or_none(http.http2_max_requests),
            max_requests_per_connection: or_none(http.max_requests_per_connection),
            max_retries: or_none(http.max_retries),
            http_idle_timeout: idle(http.idle_timeout),
            max_concurrent_streams: or_none(http.max_concurrent_streams),
            h2_upgrade: http.h2_upgrade,
            use_client_protocol: http.use_client_protocol,
        }
    }
}

/// The layers, the strongest last: the rule's own policy, its port, the subset's policy, its port.
#[derive(Clone, Copy, Default)]
struct Layers<'a> {
    load_balancer: Option<&'a LoadBalancer>,
    connection_pool: Option<&'a ConnectionPool>,
    outlier: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTls>,
    retry_budget: Option<RetryBudget>,
    proxy_protocol: Option<ProxyProtocol>,
    tunnel: Option<&'a Tunnel>,
}

impl<'a> Layers<'a> {
    fn under(self, policy: &'a TrafficPolicy, port: u16) -> Self {
        let merged = Self {
            load_balancer: policy.load_balancer.as_ref().or(self.load_balancer),
            connection_pool: policy.connection_pool.as_ref().or(self.connection_pool),
            outlier: policy.outlier_detection.as_ref().or(self.outlier),
            tls: policy.tls.as_ref().or(self.tls),
            retry_budget: policy.retry_budget.or(self.retry_budget),
            proxy_protocol: policy.proxy_protocol.or(self.proxy_protocol),
            tunnel: policy.tunnel.as_ref().or(self.tunnel),
        };
        match policy.ports.get(&port) {
            Some(port) => Self {
                load_balancer: port.load_balancer.as_ref(),
                connection_pool: port.connection_pool.as_ref(),
                outlier: port.outlier_detection.as_ref(),
                tls: port.tls.as_ref(),
                ..merged
            },
            None => merged,
        }
    }
}

impl TrafficPolicy {
    /// What holds for a port that callers name, under this policy and that of a subset.
    pub fn effective(&self, subset: Option<&Self>, port: u16) -> EffectivePolicy {
        let own = Layers::default().under(self, port);
        let all = subset.map_or(own, |subset| own.under(subset, port));
        EffectivePolicy {
            load_balancer: all.load_balancer.cloned().unwrap_or_default(),
            limits: all.connection_pool.map(Limits::from).unwrap_or_default(),
            outlier: all.outlier.cloned(),
            tls: all.tls.cloned(),
            retry_budget: all.retry_budget,
            proxy_protocol: all.proxy_protocol,
            tunnel: all.tunnel.cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Algorithm, PortPolicy, TcpPool};
    use super::*;

    fn balanced(algorithm: Algorithm) -> Option<LoadBalancer> {
        Some(LoadBalancer { algorithm, ..LoadBalancer::default() })
    }

    fn pool(max: u32) -> Option<ConnectionPool> {
        let tcp = TcpPool { max_connections: Some(max), ..TcpPool::default() };
        Some(ConnectionPool { tcp, ..ConnectionPool::default() })
    }

    #[test]
    fn subsets_inherit_and_ports_replace() {
        let rule = TrafficPolicy {
            load_balancer: balanced(Algorithm::RoundRobin),
            connection_pool: pool(10),
            tls: Some(ClientTls::Disable),
            retry_budget: Some(RetryBudget::default()),
            ports: [(80, PortPolicy { connection_pool: pool(20), ..PortPolicy::default() })].into(),
            ..TrafficPolicy::default()
        };
        let subset = TrafficPolicy {
            load_balancer: balanced(Algorithm::Random),
            ports: [(81, PortPolicy { connection_pool: pool(30), ..PortPolicy::default() })].into(),
            ..TrafficPolicy::default()
        };
        let check = |subset: Option<&TrafficPolicy>, port, algorithm: Algorithm, max, tls: bool| {
            let found = rule.effective(subset, port);
            assert_eq!(found.load_balancer.algorithm, algorithm, "{port}");
            assert_eq!((found.limits.max_connections, found.tls.is_some()), (max, tls), "{port}");
            assert_eq!(found.retry_budget, Some(RetryBudget::default()));
        };
        check(None, 8080, Algorithm::RoundRobin, 10, true);
        check(None, 80, Algorithm::LeastRequest, 20, false);
        check(Some(&subset), 8080, Algorithm::Random, 10, true);
        check(Some(&subset), 80, Algorithm::Random, 20, false);
        check(Some(&subset), 81, Algorithm::LeastRequest, 30, false);
    }

    #[test]
    fn zero_is_no_limit() {
        let mut found = pool(0).expect("a pool");
        found.http.max_retries = Some(0);
        found.http.idle_timeout = Some(Duration::ZERO);
        let limits = Limits::from(&found);
        assert_eq!((limits.max_connections, limits.max_retries), (u32::MAX, u32::MAX));
        assert_eq!(limits.http_idle_timeout, Some(FOR_EVER));
        assert_eq!(limits.tcp_idle_timeout, None);
    }
}
