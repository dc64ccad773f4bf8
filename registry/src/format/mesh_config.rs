//! `MeshConfig`: what holds for the whole mesh.

use baremesh_model::access_log::{AccessLogFormat, TextFormat};
use baremesh_model::http::PathNormalization;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::Domain;
use baremesh_model::peer_authentication::MtlsMode;
use baremesh_model::virtual_address::VirtualRanges;
use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::{Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::fields::{Field, enforced, no_effect, refused};
use super::peer_authentication::{mode_name, named_mode};
use super::virtual_service::{decode_retries, encode_retries};
use super::{extension_provider, federation};
use crate::diagnostic::quote;

const HTTP: &str = "not read yet: routes and DestinationRules say it";
const CLUSTER: &str = "it is about a Kubernetes cluster or Istio's own control plane";
const TRACING: &str = "tracing is not supported yet";
const TELEMETRY: &str = "metrics are scraped and the access log goes to the journal";
const ENVOY: &str = "it sets up Envoy, which is not there; agents are set up by their own file";

/// The fields of the kind.
pub(super) static FIELDS: &[Field] = &[
    enforced("trustDomain", "the trust domain of every identity; `mesh.internal` unless set"),
    enforced("domain", "the DNS domain of services; `mesh.internal` unless set"),
    enforced(
        "rootNamespace",
        "the namespace whose policies are for the whole mesh; `mesh-system` unless set",
    ),
    enforced("defaultMtlsMode", "PERMISSIVE (default), STRICT or DISABLE, where no PeerAuthentication says"),
    enforced("virtualRanges", "where services' virtual addresses come from"),
    enforced("virtualRanges.v4", "an IPv4 block of /8 to /30; `240.240.0.0/16` unless set"),
    enforced("virtualRanges.v6", "an IPv6 block of /16 to /120, or `off`; `fdba:4e3e:5400::/64` unless set"),
    enforced("defaultHttpRetryPolicy", "how requests are tried again whose route has no `retries`"),
    enforced("defaultHttpRetryPolicy.attempts", "tries after the first; 0: none"),
    enforced("defaultHttpRetryPolicy.perTryTimeout", "for one try; the route's timeout without"),
    enforced("defaultHttpRetryPolicy.retryOn", "what is tried again; what nobody saw, unless set"),
    enforced("defaultHttpRetryPolicy.backoff", "what the first wait is shorter than; `25ms` unless set"),
    enforced(
        "defaultHttpRetryPolicy.retryIgnorePreviousHosts",
        "whether endpoints that were tried are avoided",
    ),
    enforced("defaultHttpRetryPolicy.retryRemoteLocalities", "other localities are tried too"),
    enforced("accessLogEncoding", "JSON (default) or TEXT"),
    enforced("accessLogFormat", "a text of Envoy's operators, with TEXT alone; Istio's default unless set"),
    enforced("pathNormalization", "what is done to paths before policies, limits and routes see them"),
    enforced(
        "pathNormalization.normalization",
        "NONE, BASE (default; also DEFAULT), MERGE_SLASHES or DECODE_AND_MERGE_SLASHES",
    ),
    enforced("federation", "other trust domains whose identities are taken (docs/federation.md)"),
    enforced("federation[].trustDomain", "its name"),
    enforced(
        "federation[].bundleFile",
        "its roots, in PEM or as a SPIFFE bundle: a file of the control host, by its absolute path",
    ),
    enforced("federation[].bundleUrl", "the same, from an `https` server"),
    enforced(
        "federation[].bundleAuthorities",
        "a PEM file, on the control host, of the authorities that vouch for that server; the system's unless set",
    ),
    enforced(
        "federation[].refresh",
        "how often the roots are read anew, `10s` to `24h`; as the bundle itself says unless set, else `5m`",
    ),
    no_effect(
        "outboundTrafficPolicy",
        "what is outside of the mesh is let through (ALLOW_ANY); REGISTRY_ONLY is not enforced yet",
    ),
    no_effect(
        "inboundTrafficPolicy",
        "connections that are not the mesh's reach the service as PeerAuthentication says",
    ),
    no_effect("enableAutoMtls", "it is always on: endpoints with an agent are reached over mutual TLS"),
    no_effect("meshMTLS", "tunnels are TLS 1.3 always"),
    no_effect("tlsDefaults", "TLS towards endpoints without an agent is what their DestinationRule says"),
    no_effect(
        "trustDomainAliases",
        "identities of this trust domain are taken, and of those in `federation`",
    ),
    no_effect("caCertificates", "roots of other trust domains come by `federation`"),
    no_effect("certificates", CLUSTER),
    no_effect("h2UpgradePolicy", HTTP),
    no_effect("accessLogFile", "the access log goes to the journal"),
    no_effect("enableEnvoyAccessLogService", ENVOY),
    no_effect("disableEnvoyListenerLog", ENVOY),
    enforced("extensionProviders", "who may be asked by CUSTOM policies, at most 64"),
    enforced("extensionProviders[].name", "what policies call it"),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp",
        "it is asked over HTTP: 200 lets a request go on, 5xx is a failure, all else refuses it",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.service",
        "a service of the mesh, `localhost`, an address, or another host's name of three labels or more; a namespace may stand before it with a slash",
    ),
    enforced("extensionProviders[].envoyExtAuthzHttp.port", "the port"),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.timeout",
        "how long an answer may take, at most `600s`; `10s` unless set, where Istio waits for 600 s",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.failOpen",
        "true: what it says nothing of goes on; refused without",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.statusOnError",
        "the status of a request that it says nothing of, as a text; `403` unless set",
    ),
    no_effect(
        "extensionProviders[].envoyExtAuthzHttp.clearRouteCache",
        "routes are chosen where a request is made, and the provider is asked where it arrives",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.includeRequestBodyInCheck",
        "has the provider see the body",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.includeRequestBodyInCheck.maxRequestBytes",
        "how much of it, at most 1048576 bytes; a request with more is refused with 413",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.includeRequestBodyInCheck.allowPartialMessage",
        "true: of a longer one the provider sees the start",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.includeRequestBodyInCheck.packAsBytes",
        "true: over gRPC it stands in `raw_body`; in `body` without",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.pathPrefix",
        "what stands before the path of the request",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.includeRequestHeadersInCheck",
        "fields of the request that it sees besides `authorization`: `x-a`, `x-*`, `*-a`",
    ),
    refused(
        "extensionProviders[].envoyExtAuthzHttp.includeHeadersInCheck",
        "use `includeRequestHeadersInCheck`",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.includeAdditionalHeadersInCheck",
        "fields that it is sent besides, with their values",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.headersToUpstreamOnAllow",
        "fields of its answer that take the place of those of the request; what the caller wrote there goes, unless the provider saw it",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.headersToDownstreamOnAllow",
        "fields of its answer that the answer to the caller gets",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.headersToDownstreamOnDeny",
        "fields of its answer that a refused caller sees, besides `location`, `www-authenticate` and `content-type`; all of them without",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzHttp.cache",
        "has answers kept, for questions that are the same in all that the provider sees",
    ),
    enforced("extensionProviders[].envoyExtAuthzHttp.cache.ttl", "for how long, at most `1h`"),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc",
        "it is asked over gRPC, by `envoy.service.auth.v3.Authorization/Check`",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.service",
        "a service of the mesh, `localhost`, an address, or another host's name of three labels or more; a namespace may stand before it with a slash",
    ),
    enforced("extensionProviders[].envoyExtAuthzGrpc.port", "the port"),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.timeout",
        "how long an answer may take, at most `600s`; `10s` unless set, where Istio waits for 600 s",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.failOpen",
        "true: what it says nothing of goes on; refused without",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.statusOnError",
        "the status of a request that it says nothing of, as a text; `403` unless set",
    ),
    no_effect(
        "extensionProviders[].envoyExtAuthzGrpc.clearRouteCache",
        "routes are chosen where a request is made, and the provider is asked where it arrives",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.includeRequestBodyInCheck",
        "has the provider see the body",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes",
        "how much of it, at most 1048576 bytes; a request with more is refused with 413",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.includeRequestBodyInCheck.allowPartialMessage",
        "true: of a longer one the provider sees the start",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.includeRequestBodyInCheck.packAsBytes",
        "true: over gRPC it stands in `raw_body`; in `body` without",
    ),
    enforced(
        "extensionProviders[].envoyExtAuthzGrpc.cache",
        "has answers kept, for questions that are the same in all that the provider sees",
    ),
    enforced("extensionProviders[].envoyExtAuthzGrpc.cache.ttl", "for how long, at most `1h`"),
    no_effect("extensionProviders[].zipkin", TRACING),
    no_effect("extensionProviders[].lightstep", TRACING),
    no_effect("extensionProviders[].datadog", TRACING),
    no_effect("extensionProviders[].opencensus", TRACING),
    no_effect("extensionProviders[].skywalking", TRACING),
    no_effect("extensionProviders[].opentelemetry", TRACING),
    no_effect("extensionProviders[].stackdriver", TRACING),
    no_effect("extensionProviders[].prometheus", TELEMETRY),
    no_effect("extensionProviders[].envoyHttpAls", TELEMETRY),
    no_effect("extensionProviders[].envoyTcpAls", TELEMETRY),
    no_effect("extensionProviders[].envoyOtelAls", TELEMETRY),
    no_effect("extensionProviders[].envoyFileAccessLog", TELEMETRY),
    no_effect("extensionProviders[].sds", TELEMETRY),
    no_effect("defaultProviders", TRACING),
    no_effect("enableTracing", "tracing is not supported yet"),
    no_effect("connectTimeout", "connecting is given up after the agent's own limit"),
    no_effect("tcpKeepalive", "keepalives are the agent's own"),
    no_effect("protocolDetectionTimeout", "ports declared `auto` are looked at for 3 s"),
    no_effect("dnsRefreshRate", "names of providers are looked up every 30 s, endpoints have addresses"),
    no_effect(
        "localityLbSetting",
        "DestinationRules say it (`trafficPolicy.loadBalancer.localityLbSetting`)",
    ),
    no_effect("serviceScopeConfigs", CLUSTER),
    no_effect("serviceSettings", CLUSTER),
    enforced("defaultConfig", "what holds for every agent"),
    enforced("defaultConfig.gatewayTopology", "what stands before services"),
    enforced(
        "defaultConfig.gatewayTopology.numTrustedProxies",
        "how many proxies before a service are believed in `x-forwarded-for`, from its right; 0 unless set",
    ),
    no_effect(
        "defaultConfig.gatewayTopology.forwardClientCertDetails",
        "`x-forwarded-client-cert` is what was proved, always (SANITIZE_SET)",
    ),
    no_effect(
        "defaultConfig.gatewayTopology.proxyProtocol",
        "callers' PROXY protocol is not read: programs get what was sent",
    ),
    no_effect("defaultConfig.configPath", ENVOY),
    no_effect("defaultConfig.binaryPath", ENVOY),
    no_effect("defaultConfig.serviceCluster", ENVOY),
    no_effect("defaultConfig.drainDuration", ENVOY),
    no_effect("defaultConfig.discoveryAddress", ENVOY),
    no_effect("defaultConfig.zipkinAddress", ENVOY),
    no_effect("defaultConfig.statsdUdpAddress", ENVOY),
    no_effect("defaultConfig.proxyAdminPort", ENVOY),
    no_effect("defaultConfig.controlPlaneAuthPolicy", ENVOY),
    no_effect("defaultConfig.customConfigFile", ENVOY),
    no_effect("defaultConfig.statNameLength", ENVOY),
    no_effect("defaultConfig.concurrency", ENVOY),
    no_effect("defaultConfig.proxyBootstrapTemplatePath", ENVOY),
    no_effect("defaultConfig.interceptionMode", ENVOY),
    no_effect("defaultConfig.tracing", ENVOY),
    no_effect("defaultConfig.sds", ENVOY),
    no_effect("defaultConfig.envoyAccessLogService", ENVOY),
    no_effect("defaultConfig.envoyMetricsService", ENVOY),
    no_effect("defaultConfig.proxyMetadata", ENVOY),
    no_effect("defaultConfig.runtimeValues", ENVOY),
    no_effect("defaultConfig.statusPort", ENVOY),
    no_effect("defaultConfig.extraStatTags", ENVOY),
    no_effect("defaultConfig.proxyStatsMatcher", ENVOY),
    no_effect("defaultConfig.terminationDrainDuration", ENVOY),
    no_effect("defaultConfig.meshId", ENVOY),
    no_effect("defaultConfig.readinessProbe", ENVOY),
    no_effect("defaultConfig.holdApplicationUntilProxyStarts", ENVOY),
    no_effect("defaultConfig.caCertificatesPem", ENVOY),
    no_effect("defaultConfig.image", ENVOY),
    no_effect("defaultConfig.privateKeyProvider", ENVOY),
    no_effect("defaultConfig.proxyHeaders", ENVOY),
    no_effect("defaultConfig.fileFlushInterval", ENVOY),
    no_effect("defaultConfig.fileFlushMinSizeKb", ENVOY),
    no_effect("defaultConfig.statsCompression", ENVOY),
    no_effect("defaultConfig.availabilityZone", ENVOY),
    no_effect("proxyListenPort", ENVOY),
    no_effect("proxyInboundListenPort", ENVOY),
    no_effect("proxyHttpPort", ENVOY),
    no_effect("enablePrometheusMerge", ENVOY),
    no_effect("verifyCertificateAtClient", "certificates are always verified"),
    no_effect("discoverySelectors", CLUSTER),
    no_effect("configSources", CLUSTER),
    no_effect("ingressClass", CLUSTER),
    no_effect("ingressService", CLUSTER),
    no_effect("ingressControllerMode", CLUSTER),
    no_effect("ingressSelector", CLUSTER),
    no_effect("defaultServiceExportTo", "every service is seen by all of the mesh"),
    no_effect("defaultVirtualServiceExportTo", "every resource is seen by all of the mesh"),
    no_effect("defaultDestinationRuleExportTo", "every resource is seen by all of the mesh"),
];

pub(super) fn decode(d: &mut Decoder<'_>, metadata: &Metadata<'_>, spec: &Fields<'_>) -> Option<MeshConfig> {
    let default = MeshConfig::default();
    let name = optional(metadata.name.clone(), |at| d.label(&at));
    let trust_domain = optional(spec.take("trustDomain"), |at| domain(d, &at));
    let domain = optional(spec.take("domain"), |at| domain(d, &at));
    let root = optional(spec.take("rootNamespace"), |at| d.label(&at));
    let mode = optional(spec.take("defaultMtlsMode"), |at| mode(d, &at));
    let ranges = optional(spec.take("virtualRanges"), |at| ranges(d, &at));
    let retries = optional(spec.take("defaultHttpRetryPolicy"), |at| decode_retries(d, &at));
    let normalization = optional(spec.take("pathNormalization"), |at| {
        let fields = d.fields(&at)?;
        optional(fields.take("normalization"), |at| normalization(d, &at))
    });
    let trusted_proxies = optional(spec.take("defaultConfig"), |at| trusted_proxies(d, &at));
    let own = trust_domain.clone().flatten().unwrap_or_else(|| default.trust_domain.clone());
    let federation = optional(spec.take("federation"), |at| federation::decode(d, &at, &own));
    let access_log = access_log(d, spec);
    let providers = optional(spec.take("extensionProviders"), |at| extension_provider::decode(d, &at));
    Some(MeshConfig {
        name: name?.unwrap_or(default.name),
        trust_domain: trust_domain?.unwrap_or(default.trust_domain),
        domain: domain?.unwrap_or(default.domain),
        root_namespace: root?.unwrap_or(default.root_namespace),
        default_mtls: mode?.unwrap_or(default.default_mtls),
        virtual_ranges: ranges?.unwrap_or_default(),
        default_retries: retries?,
        access_log: access_log?,
        path_normalization: normalization?.flatten().unwrap_or_default(),
        extension_providers: providers?.unwrap_or_default(),
        trusted_proxies: trusted_proxies?.unwrap_or(default.trusted_proxies),
        federation: federation?.unwrap_or_default(),
    })
}

fn trusted_proxies(d: &mut Decoder<'_>, at: &At<'_>) -> Option<u32> {
    let fields = d.fields(at)?;
    let topology = optional(fields.take("gatewayTopology"), |at| {
        let fields = d.fields(&at)?;
        optional(fields.take("numTrustedProxies"), |at| {
            let number = d.integer(&at)?;
            let count = u32::try_from(number).ok();
            if count.is_none() {
                let help = "write how many proxies stand before services; 0: none is believed";
                d.invalid(&at, format!("{number} is no number of proxies"), help);
            }
            count
        })
    });
    Some(topology?.flatten().unwrap_or_default())
}

/// The modes by name; `DEFAULT` is Istio's word for the one that is.
const MODES: [(&str, PathNormalization); 4] = [
    ("NONE", PathNormalization::None),
    ("BASE", PathNormalization::Base),
    ("MERGE_SLASHES", PathNormalization::MergeSlashes),
    ("DECODE_AND_MERGE_SLASHES", PathNormalization::DecodeAndMergeSlashes),
];

fn normalization(d: &mut Decoder<'_>, at: &At<'_>) -> Option<PathNormalization> {
    let text = d.text(at)?;
    let found = match text {
        "DEFAULT" => Some(PathNormalization::default()),
        text => MODES.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode),
    };
    if found.is_none() {
        let help = "use NONE, BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES";
        d.invalid(at, format!("{} is no way to normalise paths", quote(text)), help);
    }
    found
}

fn domain(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Domain> {
    let text = d.text(at)?;
    d.named(at, Domain::new(text))
}

fn mode(d: &mut Decoder<'_>, at: &At<'_>) -> Option<MtlsMode> {
    let text = d.text(at)?;
    named_mode(d, at, text)
}

fn access_log(d: &mut Decoder<'_>, spec: &Fields<'_>) -> Option<AccessLogFormat> {
    let is_text = optional(spec.take("accessLogEncoding"), |at| match d.text(&at)? {
        "JSON" => Some(false),
        "TEXT" => Some(true),
        other => {
            d.invalid(
                &at,
                format!("{} is not an encoding of the access log", quote(other)),
                "use JSON or TEXT",
            );
            None
        }
    })?
    .unwrap_or(false);
    let format = optional(spec.take("accessLogFormat"), |at| {
        // An empty text is what leaving it out means.
        let text = d.any_text(&at)?;
        if text.is_empty() {
            return Some(TextFormat::default());
        }
        if !is_text {
            d.invalid(&at, "a format is for text", "set `accessLogEncoding` to TEXT, or leave it out");
            return None;
        }
        let read = TextFormat::parse(text);
        read.map_err(|error| d.invalid(&at, error.to_string(), "see docs/telemetry.md for the operators"))
            .ok()
    })?;
    Some(if is_text { AccessLogFormat::Text(format.unwrap_or_default()) } else { AccessLogFormat::Json })
}

fn ranges(d: &mut Decoder<'_>, at: &At<'_>) -> Option<VirtualRanges> {
    let fields = d.fields(at)?;
    let default = VirtualRanges::default();
    let v4 = optional(fields.take("v4"), |at| range_v4(d, &at));
    let v6 = optional(fields.take("v6"), |at| range_v6(d, &at));
    Some(VirtualRanges { v4: v4?.unwrap_or(default.v4), v6: v6?.unwrap_or(default.v6) })
}

fn range_v4(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Ipv4Net> {
    let text = d.text(at)?;
    let range = text.parse::<Ipv4Net>().ok().filter(|range| (8..=30).contains(&range.prefix_len()));
    let usable = |range: &Ipv4Net| {
        let first = range.network();
        !(first.is_loopback() || first.is_multicast() || first.is_link_local() || first.octets()[0] == 0)
    };
    let range = range.map(|range| range.trunc()).filter(usable);
    if range.is_none() {
        let message = format!("{} is not an IPv4 block of /8 to /30 that hosts can route", quote(text));
        d.invalid(at, message, "write such as `240.240.0.0/16`");
    }
    range
}

fn range_v6(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Option<Ipv6Net>> {
    let text = d.text(at)?;
    if text == "off" {
        return Some(None);
    }
    let range = text.parse::<Ipv6Net>().ok().filter(|range| (16..=120).contains(&range.prefix_len()));
    let usable = |range: &Ipv6Net| {
        let first = range.network();
        // Below 2000::/3 lie the mapped and special addresses, from fe80:: the link's and multicast.
        let head = first.segments()[0];
        (0x2000..0xfe80).contains(&head)
    };
    let range = range.map(|range| range.trunc()).filter(usable);
    if range.is_none() {
        let message = format!("{} is not an IPv6 block of /16 to /120 that hosts can route", quote(text));
        d.invalid(at, message, "write such as `fdba:4e3e:5400::/64`, or `off`");
    }
    range.map(Some)
}

pub(super) fn encode(config: &MeshConfig) -> Json {
    let ranges = &config.virtual_ranges;
    let mut json = json!({
        "trustDomain": config.trust_domain.as_str(),
        "domain": config.domain.as_str(),
        "rootNamespace": config.root_namespace.as_str(),
        "defaultMtlsMode": mode_name(Some(config.default_mtls)),
        "virtualRanges": {
            "v4": ranges.v4.to_string(),
            "v6": ranges.v6.map_or_else(|| "off".to_owned(), |range| range.to_string()),
        },
    });
    let is_set = |(_, mode): &&(&str, PathNormalization)| {
        *mode == config.path_normalization && *mode != PathNormalization::default()
    };
    if let Some((name, _)) = MODES.iter().find(is_set) {
        json["pathNormalization"] = json!({ "normalization": name });
    }
    if config.trusted_proxies > 0 {
        json["defaultConfig"] = json!({ "gatewayTopology": { "numTrustedProxies": config.trusted_proxies } });
    }
    if !config.extension_providers.is_empty() {
        let all = config.extension_providers.iter().map(|provider| extension_provider::encode(provider));
        json["extensionProviders"] = all.collect();
    }
    if !config.federation.is_empty() {
        json["federation"] = federation::encode(&config.federation);
    }
    if let Some(retries) = &config.default_retries {
        json["defaultHttpRetryPolicy"] = encode_retries(retries);
    }
    if let AccessLogFormat::Text(format) = &config.access_log {
        json["accessLogEncoding"] = json!("TEXT");
        if *format != TextFormat::default() {
            json["accessLogFormat"] = json!(format.to_string());
        }
    }
    json
}
