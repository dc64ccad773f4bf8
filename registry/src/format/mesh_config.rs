//! `MeshConfig`: what holds for the whole mesh.

use baremesh_model::access_log::{AccessLogFormat, TextFormat};
use baremesh_model::http::PathNormalization;
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::Domain;
use baremesh_model::outbound::OutboundPolicy;
use baremesh_model::peer_authentication::MtlsMode;
use baremesh_model::virtual_address::VirtualRanges;
use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::{Value as Json, json};

use super::decode::{At, Decoder, Fields, optional};
use super::document::Metadata;
use super::peer_authentication::{mode_name, named_mode};
use super::virtual_service::{decode_retries, encode_retries};
use super::{extension_provider, federation, networks, outbound_policy};
use crate::diagnostic::quote;

/// The table of fields.
mod table;

pub(super) use table::FIELDS;

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
    let networks = optional(spec.take("networks"), |at| networks::decode(d, &at));
    let access_log = access_log(d, spec);
    let outbound = optional(spec.take("outboundTrafficPolicy"), |at| outbound_policy::decode(d, &at));
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
        networks: networks?.unwrap_or_default(),
        outbound: outbound?.unwrap_or_default(),
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
    if !config.networks.is_empty() {
        json["networks"] = networks::encode(&config.networks);
    }
    if config.outbound != OutboundPolicy::default() {
        json["outboundTrafficPolicy"] = outbound_policy::encode(config.outbound);
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
