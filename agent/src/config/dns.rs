//! The table `[dns]` of `agent.toml`.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::resolved;
use crate::snapshot::ShortNames;

/// How names of the mesh are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsMode {
    /// As this host resolves names: by `Resolved` or by `Capture`.
    OfThisHost,
    /// Not at all.
    Off,
    /// To whoever asks 127.0.0.1 or ::1 on the agent's DNS port.
    Nameserver,
    /// To every program of the host: port 53 is captured.
    Capture,
    /// To every program that asks systemd-resolved, which asks the agent about the mesh's names alone.
    Resolved,
}

impl DnsMode {
    /// One of the other modes in place of `OfThisHost`.
    #[must_use]
    pub fn settled(self) -> Self {
        match self {
            Self::OfThisHost => resolved::mode_of_this_host(),
            settled => settled,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDns {
    pub(super) mode: RawDnsMode,
    pub(super) port: Option<u16>,
    pub(super) upstreams: Vec<SocketAddr>,
    short_names: Option<bool>,
}

impl RawDns {
    pub(super) fn short_names(&self) -> ShortNames {
        match self.short_names {
            None | Some(true) => ShortNames::Answered,
            Some(false) => ShortNames::Left,
        }
    }
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawDnsMode {
    #[default]
    Auto,
    Off,
    Nameserver,
    Capture,
    Resolved,
}

impl From<RawDnsMode> for DnsMode {
    fn from(raw: RawDnsMode) -> Self {
        match raw {
            RawDnsMode::Auto => Self::OfThisHost,
            RawDnsMode::Off => Self::Off,
            RawDnsMode::Nameserver => Self::Nameserver,
            RawDnsMode::Capture => Self::Capture,
            RawDnsMode::Resolved => Self::Resolved,
        }
    }
}
