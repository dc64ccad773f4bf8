//! What a request or connection does not have that a match asks for. It is how matching itself answers, so that who explains
//! a route says what the route did.

use std::fmt;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::host::HostPattern;
use super::scope::Gateway;
use crate::name::Label;
use crate::string_match::StringMatch;
use crate::token::ClaimPath;
use crate::workload::Labels;

/// The first of a match's conditions that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet<'a> {
    /// `gateways`
    Gateways(&'a [Gateway]),
    /// `sourceLabels`
    SourceLabels(&'a Labels),
    /// `sourceNamespace`
    SourceNamespace(&'a Label),
    /// `port`
    Port(NonZeroU16),
    /// `uri`
    Uri(&'a StringMatch),
    /// `scheme`
    Scheme(&'a StringMatch),
    /// `method`
    Method(&'a StringMatch),
    /// `authority`
    Authority(&'a StringMatch),
    /// `headers`: a field's name, and what it must be.
    Header(&'a str, &'a StringMatch),
    /// `withoutHeaders`: a field's name, and what it must not be.
    WithoutHeader(&'a str, &'a StringMatch),
    /// `queryParams`: a parameter's name, and what it must be.
    QueryParam(&'a str, &'a StringMatch),
    /// `headers`: a claim, as `@request.auth.claims[…]`, and what it must be.
    Claim(&'a ClaimPath, &'a StringMatch),
    /// `withoutHeaders`: a claim, and what it must not be.
    WithoutClaim(&'a ClaimPath, &'a StringMatch),
    /// `sniHosts`
    SniHosts(&'a [HostPattern]),
    /// `destinationSubnets`
    DestinationSubnets(&'a [IpNet]),
}

impl fmt::Display for Unmet<'_> {
    /// What is asked for, as `uri /v2*` or `headers end-user = jason`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateways(all) => write!(f, "gateways {}", list(all.iter())),
            Self::SourceLabels(labels) => {
                let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
                write!(f, "sourceLabels {}", list(labels))
            }
            Self::SourceNamespace(namespace) => write!(f, "sourceNamespace {namespace}"),
            Self::Port(port) => write!(f, "port {port}"),
            Self::Uri(asked) => write!(f, "uri {asked}"),
            Self::Scheme(asked) => write!(f, "scheme {asked}"),
            Self::Method(asked) => write!(f, "method {asked}"),
            Self::Authority(asked) => write!(f, "authority {asked}"),
            Self::Header(name, asked) => write!(f, "headers {name} = {asked}"),
            Self::WithoutHeader(name, asked) => write!(f, "withoutHeaders {name} = {asked}"),
            Self::QueryParam(name, asked) => write!(f, "queryParams {name} = {asked}"),
            Self::Claim(path, asked) => write!(f, "headers @request.auth.claims{path} = {asked}"),
            Self::WithoutClaim(path, asked) => {
                write!(f, "withoutHeaders @request.auth.claims{path} = {asked}")
            }
            Self::SniHosts(hosts) => write!(f, "sniHosts {}", list(hosts.iter())),
            Self::DestinationSubnets(subnets) => {
                write!(f, "destinationSubnets {}", list(subnets.iter()))
            }
        }
    }
}

fn list(items: impl Iterator<Item = impl fmt::Display>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
