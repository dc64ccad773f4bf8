//! What single values look like. A field is found by the end of its path, so that what several kinds share is written once.
//! That every field has a shape, and that the reader refuses what has another, is held by tests.

use baremesh_model::mesh::Kind;
use serde_json::{Value as Json, json};

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A text.
    Text,
    /// A text, such as these.
    Like(&'static [&'static str]),
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// A number and a unit, such as `10s`.
    Duration,
    /// `true` or `false`.
    Boolean,
    /// A whole number from `.0` to `.1`.
    Integer(i64, i64),
    /// A number from 0 to this.
    Number(i64),
    /// A list of texts.
    Texts,
    /// Names to texts.
    Labels,
    /// Names to lists of texts.
    TextLists,
    /// Names to whole numbers from `.0` to `.1`.
    Integers(i64, i64),
    /// A port by its number or its name.
    PortOrName,
}

use Shape::{
    Boolean, Choice, Duration, Integer, Integers, Labels, Like, Number, PortOrName, Text, TextLists, Texts,
};

const PORT: Shape = Integer(1, 65535);
const COUNT: Shape = Integer(0, i32::MAX as i64);
const SOME: Shape = Integer(1, i32::MAX as i64);
const SMALL: Shape = Integer(0, 65535);
const PERCENT: Shape = Integer(0, 100);
const WEIGHT: Shape = Integer(0, u32::MAX as i64);
const STATUS: Shape = Integer(200, 599);
const ENTRY_PROTOCOLS: Shape =
    Like(&["HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP", "MONGO", "MYSQL", "REDIS"]);
const MTLS: Shape = Choice(&["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]);
const PROTOCOLS: Shape =
    Like(&["tcp", "tls", "http", "http2", "grpc", "https", "mongo", "mysql", "redis", "auto"]);
const WHEN: Shape = Like(&[
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "remote.ip",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.headers[x-role]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[groups]",
]);

/// Fields of one kind, by their whole path or its end.
const OF_KIND: &[(Kind, &str, Shape)] = &[
    (Kind::Service, "protocol", PROTOCOLS),
    (Kind::Service, "appProtocol", PROTOCOLS),
    (Kind::Service, "selector", Labels),
    (Kind::WorkloadEntry, "ports", Integers(1, 65535)),
    (Kind::WorkloadEntry, "host", Text),
    (Kind::WorkloadEntry, "weight", Integer(1, u32::MAX as i64)),
    (Kind::PeerAuthentication, "mode", MTLS),
    (Kind::DestinationRule, "tls.mode", Choice(&["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"])),
    (Kind::DestinationRule, "retryBudget.percent", Number(100)),
    (Kind::DestinationRule, "distribute[].to", Integers(1, 100)),
    (Kind::AuthorizationPolicy, "ports", Texts),
    (Kind::AuthorizationPolicy, "response.status", Integer(400, 599)),
    (Kind::AuthorizationPolicy, "response.body", Text),
    (Kind::WorkloadEntry, "health", Choice(&["healthy", "unhealthy"])),
    (Kind::RateLimit, "limit.requests", SOME),
    (Kind::RateLimit, "limit.per", Duration),
    (Kind::RateLimit, "limit.burst", SOME),
    (Kind::RateLimit, "key[].header", Text),
    (Kind::RateLimit, "key[].claim", Text),
    (Kind::RequestAuthentication, "fromHeaders[].name", Text),
    (Kind::RequestAuthentication, "header", Text),
    (Kind::ServiceEntry, "protocol", ENTRY_PROTOCOLS),
    (Kind::ServiceEntry, "location", Choice(&["MESH_EXTERNAL", "MESH_INTERNAL"])),
    (Kind::ServiceEntry, "resolution", Choice(&["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"])),
    (Kind::ServiceEntry, "endpoints[].ports", Integers(1, 65535)),
    (Kind::ServiceEntry, "endpoints[].weight", WEIGHT),
    (Kind::ServiceEntry, "virtualAddresses", TextLists),
    (Kind::MeshConfig, "outboundTrafficPolicy.mode", Choice(&["ALLOW_ANY", "REGISTRY_ONLY"])),
    (Kind::Sidecar, "protocol", ENTRY_PROTOCOLS),
    (Kind::Sidecar, "captureMode", Choice(&["DEFAULT"])),
    (Kind::Sidecar, "defaultEndpoint", Text),
    (Kind::Sidecar, "outboundTrafficPolicy.mode", Choice(&["ALLOW_ANY", "REGISTRY_ONLY"])),
    (Kind::Gateway, "selector", Labels),
    (Kind::Gateway, "protocol", Choice(&["HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP"])),
    (Kind::Gateway, "tls.mode", Choice(&["PASSTHROUGH", "ISTIO_MUTUAL"])),
    (Kind::WorkloadGroup, "template.ports", Integers(1, 65535)),
    (Kind::WorkloadGroup, "port", PortOrName),
    (Kind::WorkloadGroup, "scheme", Choice(&["HTTP", "HTTPS", "http", "https"])),
    (Kind::WorkloadGroup, "httpHeaders[].value", Text),
    (Kind::WorkloadGroup, "initialDelaySeconds", Integer(0, 86_400)),
    (Kind::WorkloadGroup, "timeoutSeconds", Integer(1, 300)),
    (Kind::WorkloadGroup, "periodSeconds", Integer(1, 86_400)),
    (Kind::WorkloadGroup, "successThreshold", Integer(1, 100)),
    (Kind::WorkloadGroup, "failureThreshold", Integer(1, 100)),
];

/// Fields by the end of their path.
const ENDS: &[(&str, Shape)] = &[
    ("trustDomain", Text),
    ("domain", Text),
    ("rootNamespace", Text),
    ("defaultMtlsMode", Choice(&["DISABLE", "PERMISSIVE", "STRICT"])),
    ("virtualRanges.v4", Text),
    ("virtualRanges.v6", Text),
    ("port", PORT),
    ("number", PORT),
    ("subjectAltNames", Texts),
    ("bundleFile", Like(&["/etc/baremesh/federation/partner.pem"])),
    ("bundleUrl", Like(&["https://partner.example/bundle.json"])),
    ("bundleAuthorities", Text),
    ("refresh", Duration),
    ("network", Text),
    ("targetPort", PORT),
    ("name", Text),
    ("namespace", Text),
    ("serviceAccount", Text),
    ("addresses", Texts),
    ("address", Text),
    ("otherAddresses", Texts),
    ("service", Text),
    ("services", Texts),
    ("labels", Labels),
    ("matchLabels", Labels),
    ("sourceLabels", Labels),
    ("sourceNamespace", Text),
    ("locality", Like(&["eu-west/a/rack-1"])),
    ("weight", WEIGHT),
    ("tunnel", Choice(&["hbone", "plain"])),
    ("hosts", Texts),
    ("gateways", Texts),
    ("exportTo", Texts),
    ("sniHosts", Texts),
    ("sni_hosts", Texts),
    ("destinationSubnets", Texts),
    ("exact", Text),
    ("prefix", Text),
    ("regex", Text),
    ("ignoreUriCase", Boolean),
    ("host", Text),
    ("subset", Text),
    ("set", Labels),
    ("add", Labels),
    ("remove", Texts),
    ("uri", Text),
    ("prefixRewrite", Text),
    ("authority", Text),
    ("derivePort", Choice(&["FROM_REQUEST_PORT", "FROM_PROTOCOL_DEFAULT"])),
    ("scheme", Choice(&["http", "https"])),
    ("redirectCode", Integer(301, 308)),
    ("directResponse.status", STATUS),
    ("string", Text),
    ("bytes", Text),
    ("uriRegexRewrite.match", Text),
    ("uriRegexRewrite.rewrite", Text),
    ("timeout", Duration),
    ("attempts", COUNT),
    ("perTryTimeout", Duration),
    (
        "retryOn",
        Like(&["connect-failure,refused-stream,503", "5xx", "gateway-error", "reset", "unavailable"]),
    ),
    ("retryRemoteLocalities", Boolean),
    ("retryIgnorePreviousHosts", Boolean),
    ("backoff", Duration),
    ("fixedDelay", Duration),
    ("percentage.value", Number(100)),
    ("mirrorPercentage.value", Number(100)),
    ("percent", PERCENT),
    ("mirrorPercent", PERCENT),
    ("httpStatus", STATUS),
    ("grpcStatus", Like(&["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])),
    ("allowOrigin", Texts),
    ("allowMethods", Texts),
    ("allowHeaders", Texts),
    ("exposeHeaders", Texts),
    ("maxAge", Duration),
    ("allowCredentials", Boolean),
    ("unmatchedPreflights", Choice(&["FORWARD", "IGNORE"])),
    ("action", Choice(&["ALLOW", "DENY", "AUDIT", "CUSTOM"])),
    ("dryRun", Boolean),
    ("principals", Texts),
    ("notPrincipals", Texts),
    ("namespaces", Texts),
    ("notNamespaces", Texts),
    ("serviceAccounts", Texts),
    ("notServiceAccounts", Texts),
    ("trustDomains", Texts),
    ("notTrustDomains", Texts),
    ("ipBlocks", Texts),
    ("notIpBlocks", Texts),
    ("notPorts", Texts),
    ("remoteIpBlocks", Texts),
    ("notRemoteIpBlocks", Texts),
    ("requestPrincipals", Texts),
    ("notRequestPrincipals", Texts),
    ("notHosts", Texts),
    ("methods", Texts),
    ("notMethods", Texts),
    ("paths", Texts),
    ("notPaths", Texts),
    ("when[].key", WHEN),
    ("values", Texts),
    ("notValues", Texts),
    (
        "simple",
        Choice(&["LEAST_REQUEST", "ROUND_ROBIN", "RANDOM", "PASSTHROUGH", "LEAST_CONN", "UNSPECIFIED"]),
    ),
    ("httpHeaderName", Text),
    ("path", Text),
    ("ttl", Duration),
    ("attributes[].value", Text),
    ("useSourceIp", Boolean),
    ("httpQueryParameterName", Text),
    ("minimumRingSize", COUNT),
    ("tableSize", COUNT),
    ("duration", Duration),
    ("minimumPercent", Number(100)),
    ("aggression", Number(i32::MAX as i64)),
    ("warmupDurationSecs", Duration),
    ("localityLbSetting.enabled", Boolean),
    ("from", Text),
    ("to", Text),
    ("failoverPriority", Texts),
    ("maxConnections", COUNT),
    ("connectTimeout", Duration),
    ("probes", COUNT),
    ("time", Duration),
    ("interval", Duration),
    ("maxConnectionDuration", Duration),
    ("idleTimeout", Duration),
    ("http1MaxPendingRequests", COUNT),
    ("http2MaxRequests", COUNT),
    ("maxRequestsPerConnection", COUNT),
    ("maxRetries", COUNT),
    ("maxConcurrentStreams", COUNT),
    ("consecutive5xxErrors", SMALL),
    ("consecutiveGatewayErrors", SMALL),
    ("splitExternalLocalOriginErrors", Boolean),
    ("consecutiveLocalOriginFailures", SMALL),
    ("baseEjectionTime", Duration),
    ("maxEjectionPercent", PERCENT),
    ("minHealthPercent", PERCENT),
    ("clientCertificate", Text),
    ("privateKey", Text),
    ("caCertificates", Text),
    ("credentialName", Text),
    ("subjectAltNames", Texts),
    ("sni", Text),
    ("insecureSkipVerify", Boolean),
    ("minRetryConcurrency", COUNT),
    ("proxyProtocol.version", Choice(&["V1", "V2"])),
    ("tunnel.protocol", Choice(&["CONNECT"])),
    ("tunnel.targetHost", Text),
    ("h2UpgradePolicy", Choice(&["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"])),
    ("useClientProtocol", Boolean),
    (
        "pathNormalization.normalization",
        Choice(&["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]),
    ),
    ("numTrustedProxies", WEIGHT),
    ("accessLogEncoding", Choice(&["JSON", "TEXT"])),
    ("accessLogFormat", Text),
    ("failOpen", Boolean),
    ("statusOnError", Like(&["403", "503"])),
    ("maxRequestBytes", Integer(1, 1_048_576)),
    ("allowPartialMessage", Boolean),
    ("packAsBytes", Boolean),
    ("pathPrefix", Text),
    ("includeRequestHeadersInCheck", Texts),
    ("includeAdditionalHeadersInCheck", Labels),
    ("headersToUpstreamOnAllow", Texts),
    ("headersToDownstreamOnAllow", Texts),
    ("headersToDownstreamOnDeny", Texts),
    ("issuer", Text),
    ("audiences", Texts),
    ("jwksUri", Like(&["https://issuer.example/keys"])),
    ("jwks", Text),
    ("jwksFile", Text),
    ("fromParams", Texts),
    ("fromCookies", Texts),
    ("outputPayloadToHeader", Text),
    ("claim", Text),
    ("forwardOriginalToken", Boolean),
    ("requireToken", Boolean),
    ("spaceDelimitedClaims", Texts),
];

/// Fields without which a resource is refused.
pub(super) const REQUIRED: [(Kind, &str); 42] = [
    (Kind::Service, "ports"),
    (Kind::Service, "ports[].port"),
    (Kind::WorkloadEntry, "address"),
    (Kind::HostGrant, "host"),
    (Kind::DestinationRule, "host"),
    (Kind::DestinationRule, "subsets[].name"),
    (Kind::VirtualService, "http[].route[].destination"),
    (Kind::DestinationRule, "trafficPolicy.tunnel.targetHost"),
    (Kind::DestinationRule, "trafficPolicy.tunnel.targetPort"),
    (Kind::DestinationRule, "subsets[].trafficPolicy.tunnel.targetHost"),
    (Kind::DestinationRule, "subsets[].trafficPolicy.tunnel.targetPort"),
    (Kind::AuthorizationPolicy, "rules[].when[].key"),
    (Kind::AuthorizationPolicy, "provider.name"),
    (Kind::MeshConfig, "extensionProviders[].name"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzHttp.service"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzHttp.port"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzHttp.includeRequestBodyInCheck.maxRequestBytes"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzHttp.cache.ttl"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzGrpc.service"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzGrpc.port"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes"),
    (Kind::MeshConfig, "extensionProviders[].envoyExtAuthzGrpc.cache.ttl"),
    (Kind::RateLimit, "limit"),
    (Kind::RateLimit, "limit.requests"),
    (Kind::RateLimit, "limit.per"),
    (Kind::RequestAuthentication, "jwtRules[].issuer"),
    (Kind::RequestAuthentication, "jwtRules[].fromHeaders[].name"),
    (Kind::RequestAuthentication, "jwtRules[].outputClaimToHeaders[].header"),
    (Kind::RequestAuthentication, "jwtRules[].outputClaimToHeaders[].claim"),
    (Kind::ServiceEntry, "hosts"),
    (Kind::ServiceEntry, "ports[].number"),
    (Kind::ServiceEntry, "endpoints[].address"),
    (Kind::WorkloadGroup, "probe.httpGet.httpHeaders[].name"),
    (Kind::Sidecar, "egress[].hosts"),
    (Kind::Sidecar, "ingress[].port"),
    (Kind::Sidecar, "ingress[].port.number"),
    (Kind::Gateway, "selector"),
    (Kind::Gateway, "servers"),
    (Kind::Gateway, "servers[].port"),
    (Kind::Gateway, "servers[].port.number"),
    (Kind::Gateway, "servers[].port.protocol"),
    (Kind::Gateway, "servers[].hosts"),
];

/// Words that may stand in a list in the place of an object.
pub(super) fn words_of(kind: Kind, path: &str) -> Option<&'static [&'static str]> {
    (kind == Kind::RateLimit && path == "key").then_some(&["sourceIdentity", "remoteAddress", "path"])
}

/// Whether a field with fields below its entries has names for them, and is no list.
pub(super) fn is_map(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    matches!(name, "headers" | "withoutHeaders" | "queryParams" | "portLevelMtls")
}

/// The shape of a field without fields below it.
pub(super) fn shape_of(kind: Kind, path: &str) -> Option<Shape> {
    let ends =
        |end: &str| path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    let of_kind = OF_KIND.iter().find(|(of, end, _)| *of == kind && ends(end)).map(|(_, _, shape)| *shape);
    of_kind.or_else(|| ENDS.iter().find(|(end, _)| ends(end)).map(|(_, shape)| *shape))
}

/// Go's durations, as Istio writes them.
const DURATION: &str = "^(0|([0-9]*\\.?[0-9]*(ns|us|µs|ms|s|m|h))+)$";

impl Shape {
    pub(super) fn schema(self) -> Json {
        match self {
            Text => json!({ "type": "string" }),
            Like(examples) => json!({ "type": "string", "examples": examples }),
            Choice(choices) => json!({ "enum": choices }),
            Duration => {
                json!({ "type": "string", "pattern": DURATION, "examples": ["10s", "1.5s", "250ms", "1h"] })
            }
            Boolean => json!({ "type": "boolean" }),
            Integer(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Number(most) => json!({ "type": "number", "minimum": 0, "maximum": most }),
            Texts => json!({ "type": "array", "items": { "type": "string" } }),
            Labels => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
            TextLists => {
                let texts = json!({ "type": "array", "items": { "type": "string" } });
                json!({ "type": "object", "additionalProperties": texts })
            }
            Integers(least, most) => {
                let number = json!({ "type": "integer", "minimum": least, "maximum": most });
                json!({ "type": "object", "additionalProperties": number })
            }
            PortOrName => {
                json!({ "type": ["integer", "string"], "minimum": 1, "maximum": 65535, "minLength": 1 })
            }
        }
    }
}
