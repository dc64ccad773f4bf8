//! The table of fields. A traffic policy stands in four places, and what it takes is written once.

use crate::format::fields::{Field, enforced, refused};

const CRL: &str =
    "revocation lists are not read: let certificates live shortly, or trust an authority of your own";

/// What a policy takes wherever it stands: `$at` is its place, with the dot behind it.
macro_rules! common {
    ($at:literal) => {
        &[
            enforced(concat!($at, "loadBalancer"), "choosing an endpoint"),
            enforced(
                concat!($at, "loadBalancer.simple"),
                "LEAST_REQUEST (default), ROUND_ROBIN, RANDOM or PASSTHROUGH, which is LEAST_REQUEST behind a virtual address",
            ),
            enforced(concat!($at, "loadBalancer.consistentHash"), "the same endpoint for the same key"),
            enforced(concat!($at, "loadBalancer.consistentHash.httpHeaderName"), "the key is a header"),
            enforced(concat!($at, "loadBalancer.consistentHash.httpCookie"), "the key is a cookie"),
            enforced(concat!($at, "loadBalancer.consistentHash.httpCookie.name"), "its name"),
            enforced(concat!($at, "loadBalancer.consistentHash.httpCookie.path"), "path of a generated one"),
            enforced(
                concat!($at, "loadBalancer.consistentHash.httpCookie.ttl"),
                "a request without the cookie is given one that lives so long; 0s for the session",
            ),
            enforced(
                concat!($at, "loadBalancer.consistentHash.httpCookie.attributes"),
                "further attributes of a generated one",
            ),
            enforced(concat!($at, "loadBalancer.consistentHash.httpCookie.attributes[].name"), "such as SameSite"),
            enforced(concat!($at, "loadBalancer.consistentHash.httpCookie.attributes[].value"), "such as Strict"),
            enforced(
                concat!($at, "loadBalancer.consistentHash.useSourceIp"),
                "the key is the caller's address; the only one for connections that are not HTTP's",
            ),
            enforced(
                concat!($at, "loadBalancer.consistentHash.httpQueryParameterName"),
                "the key is a query parameter",
            ),
            enforced(concat!($at, "loadBalancer.consistentHash.ringHash"), "by a ring (default)"),
            enforced(
                concat!($at, "loadBalancer.consistentHash.ringHash.minimumRingSize"),
                "the fewest points on it; 1024",
            ),
            enforced(concat!($at, "loadBalancer.consistentHash.maglev"), "by Maglev's table"),
            enforced(
                concat!($at, "loadBalancer.consistentHash.maglev.tableSize"),
                "its size, a prime of at most 5000011; 65537",
            ),
            enforced(
                concat!($at, "loadBalancer.consistentHash.minimumRingSize"),
                "the older name of `ringHash.minimumRingSize`",
            ),
            enforced(
                concat!($at, "loadBalancer.warmup"),
                "new endpoints take their share little by little; for LEAST_REQUEST and ROUND_ROBIN",
            ),
            enforced(concat!($at, "loadBalancer.warmup.duration"), "how long it takes"),
            enforced(concat!($at, "loadBalancer.warmup.minimumPercent"), "the share at the beginning; 10"),
            enforced(concat!($at, "loadBalancer.warmup.aggression"), "1 (default) grows evenly, more sooner"),
            enforced(concat!($at, "loadBalancer.warmupDurationSecs"), "the older name of `warmup.duration`"),
            enforced(
                concat!($at, "loadBalancer.localityLbSetting"),
                "near endpoints before far ones; with `outlierDetection` it is so without being set",
            ),
            enforced(concat!($at, "loadBalancer.localityLbSetting.enabled"), "false: as if all were as near"),
            enforced(
                concat!($at, "loadBalancer.localityLbSetting.distribute"),
                "weights of localities; the first whose `from` is the caller's",
            ),
            enforced(
                concat!($at, "loadBalancer.localityLbSetting.distribute[].from"),
                "the caller's `region/zone/sub-zone`, or `*` in the last place",
            ),
            enforced(
                concat!($at, "loadBalancer.localityLbSetting.distribute[].to"),
                "localities to weights of 1 to 100, which make up 100",
            ),
            enforced(
                concat!($at, "loadBalancer.localityLbSetting.failover"),
                "where a region's calls go when it fails; only with `outlierDetection`",
            ),
            enforced(concat!($at, "loadBalancer.localityLbSetting.failover[].from"), "the caller's region"),
            enforced(concat!($at, "loadBalancer.localityLbSetting.failover[].to"), "the one that takes its calls"),
            enforced(
                concat!($at, "loadBalancer.localityLbSetting.failoverPriority"),
                "labels that make an endpoint near, the most important first; only with `outlierDetection`",
            ),
            enforced(concat!($at, "connectionPool"), "limits; over one, the caller is refused at once"),
            enforced(concat!($at, "connectionPool.tcp"), "of connections"),
            enforced(
                concat!($at, "connectionPool.tcp.maxConnections"),
                "connections at once from this host; no limit unless set",
            ),
            enforced(concat!($at, "connectionPool.tcp.connectTimeout"), "10s unless the agent says otherwise"),
            enforced(
                concat!($at, "connectionPool.tcp.tcpKeepalive"),
                "for endpoints without an agent; tunnels between agents have their own",
            ),
            enforced(concat!($at, "connectionPool.tcp.tcpKeepalive.probes"), "the system's unless set"),
            enforced(concat!($at, "connectionPool.tcp.tcpKeepalive.time"), "the system's unless set"),
            enforced(concat!($at, "connectionPool.tcp.tcpKeepalive.interval"), "the system's unless set"),
            enforced(concat!($at, "connectionPool.tcp.maxConnectionDuration"), "no limit unless set"),
            enforced(concat!($at, "connectionPool.tcp.idleTimeout"), "1h; 0s for no limit"),
            enforced(concat!($at, "connectionPool.http"), "of requests"),
            enforced(
                concat!($at, "connectionPool.http.http1MaxPendingRequests"),
                "requests that may wait for a connection; no limit unless set",
            ),
            enforced(
                concat!($at, "connectionPool.http.http2MaxRequests"),
                "requests at once, of whichever version of HTTP; no limit unless set",
            ),
            enforced(
                concat!($at, "connectionPool.http.maxRequestsPerConnection"),
                "requests after which a connection is closed; no limit unless set",
            ),
            enforced(concat!($at, "connectionPool.http.maxRetries"), "retries at once; no limit unless set"),
            enforced(
                concat!($at, "connectionPool.http.idleTimeout"),
                "how long a connection may have no request; 1h, 0s for no limit",
            ),
            enforced(
                concat!($at, "connectionPool.http.h2UpgradePolicy"),
                "UPGRADE: HTTP/2 is spoken to endpoints of `http` ports; DO_NOT_UPGRADE, DEFAULT: as the port says",
            ),
            enforced(
                concat!($at, "connectionPool.http.useClientProtocol"),
                "true: endpoints are spoken to in the version that the caller speaks",
            ),
            enforced(
                concat!($at, "connectionPool.http.maxConcurrentStreams"),
                "requests at once on one HTTP/2 connection",
            ),
            enforced(concat!($at, "outlierDetection"), "leaving out endpoints that fail"),
            enforced(
                concat!($at, "outlierDetection.consecutive5xxErrors"),
                "5xx answers or failed connects in a row; 5, and 0 switches it off",
            ),
            enforced(
                concat!($at, "outlierDetection.consecutiveGatewayErrors"),
                "502, 503, 504 or failed connects in a row; off unless set",
            ),
            enforced(
                concat!($at, "outlierDetection.splitExternalLocalOriginErrors"),
                "true: failures without an answer are counted apart",
            ),
            enforced(
                concat!($at, "outlierDetection.consecutiveLocalOriginFailures"),
                "failures without an answer in a row, where they are counted apart; 5",
            ),
            refused(concat!($at, "outlierDetection.consecutiveErrors"), "use `consecutiveGatewayErrors`"),
            enforced(
                concat!($at, "outlierDetection.interval"),
                "for each such time without an ejection one is forgotten; 10s",
            ),
            enforced(
                concat!($at, "outlierDetection.baseEjectionTime"),
                "as often as the endpoint was left out, 300s at most; 30s",
            ),
            enforced(
                concat!($at, "outlierDetection.maxEjectionPercent"),
                "how many may be left out; 10, which is none of fewer than ten",
            ),
            enforced(
                concat!($at, "outlierDetection.minHealthPercent"),
                "while fewer are well, all are used; 0 switches it off",
            ),
            enforced(
                concat!($at, "tls"),
                "how endpoints without an agent are reached; those with one always over mutual TLS",
            ),
            enforced(
                concat!($at, "tls.mode"),
                "DISABLE (default: plaintext), SIMPLE, MUTUAL, or ISTIO_MUTUAL: only endpoints with an agent",
            ),
            enforced(concat!($at, "tls.clientCertificate"), "a file of the caller's host, for MUTUAL"),
            enforced(concat!($at, "tls.privateKey"), "a file of the caller's host, for MUTUAL"),
            enforced(
                concat!($at, "tls.caCertificates"),
                "a file of the caller's host; without it the authorities that the system trusts",
            ),
            enforced(
                concat!($at, "tls.credentialName"),
                "a folder of /etc/baremesh/credentials with ca.crt, and tls.crt and tls.key for MUTUAL",
            ),
            enforced(
                concat!($at, "tls.subjectAltNames"),
                "names of which the server's certificate must show one; that of `sni` unless set",
            ),
            enforced(concat!($at, "tls.sni"), "the name that is asked for; the service's host unless set"),
            enforced(concat!($at, "tls.insecureSkipVerify"), "true: whoever answers is taken"),
            refused(concat!($at, "tls.caCrl"), CRL),
        ]
    };
}

/// What a policy takes that ports do not replace.
macro_rules! whole {
    ($at:literal) => {
        &[
            enforced(
                concat!($at, "portLevelSettings"),
                "what replaces balancing, pools, outlier detection and TLS of a port, whole",
            ),
            enforced(concat!($at, "portLevelSettings[].port"), "the port that callers name"),
            enforced(concat!($at, "portLevelSettings[].port.number"), "its number"),
            enforced(concat!($at, "retryBudget"), "how many requests may be retries; replaces `maxRetries`"),
            enforced(concat!($at, "retryBudget.percent"), "of the requests in flight or waiting; 20"),
            enforced(
                concat!($at, "retryBudget.minRetryConcurrency"),
                "retries that are allowed however few requests there are; 3",
            ),
            enforced(
                concat!($at, "tunnel"),
                "the endpoints are HTTP proxies, and connections that are carried as bytes go through them",
            ),
            enforced(concat!($at, "tunnel.protocol"), "CONNECT (default); POST is refused"),
            enforced(
                concat!($at, "tunnel.targetHost"),
                "what the proxy is to connect to: a name or an address",
            ),
            enforced(concat!($at, "tunnel.targetPort"), "the port there"),
            enforced(
                concat!($at, "proxyProtocol"),
                "the called program is told the caller's address ahead of the connection's bytes",
            ),
            enforced(concat!($at, "proxyProtocol.version"), "V1 (default) or V2"),
        ]
    };
}

const PARTS: [&[Field]; 7] = [
    TOP,
    common!("trafficPolicy."),
    whole!("trafficPolicy."),
    common!("trafficPolicy.portLevelSettings[]."),
    common!("subsets[].trafficPolicy."),
    whole!("subsets[].trafficPolicy."),
    common!("subsets[].trafficPolicy.portLevelSettings[]."),
];

const TOP: &[Field] = &[
    enforced("host", "the service: its name, a host name, `*.` and a domain, or `*`"),
    enforced("trafficPolicy", "what holds for every subset and port that says nothing else"),
    enforced("subsets", "named parts of the service's endpoints, for routes"),
    enforced("subsets[].name", "the name that routes use"),
    enforced("subsets[].labels", "labels that an endpoint must carry, all of them"),
    enforced("subsets[].trafficPolicy", "what differs from the rule's; the rest is inherited"),
    enforced("exportTo", "namespaces whose callers it is for: names, `.` for its own, `*` (default) for all"),
    enforced("workloadSelector", "the callers of its own namespace that it is for"),
    enforced("workloadSelector.matchLabels", "labels that a caller must carry, all of them"),
];

const COUNT: usize = {
    let (mut count, mut part) = (0, 0);
    while part < PARTS.len() {
        count += PARTS[part].len();
        part += 1;
    }
    count
};

/// The parts one after the other.
const fn all() -> [Field; COUNT] {
    let mut all = [TOP[0]; COUNT];
    let (mut at, mut part) = (0, 0);
    while part < PARTS.len() {
        let mut index = 0;
        while index < PARTS[part].len() {
            all[at] = PARTS[part][index];
            (at, index) = (at + 1, index + 1);
        }
        part += 1;
    }
    all
}

static ALL: [Field; COUNT] = all();

/// The fields of the kind.
pub(in crate::format) static FIELDS: &[Field] = &ALL;
