//! Refusals. The code is stable: scripts, metrics and the other side's log go by it.

use baremesh_model::identity::Identity;
use baremesh_model::name::Label;
use http::StatusCode;

use super::{MAX_BATCH, MAX_OPERATOR_LIFETIME, MAX_TOKEN_LIFETIME};
use crate::authority::AuthorityError;
use crate::key::KeyError;
use crate::ledger::{LedgerError, MAX_VALID_OF_HOST, TokenRefusal};
use crate::revocation::MAX_REVOKED;
use crate::tls::NODE_GRACE;
use crate::token::TokenError;

/// Why the authority does not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The body is not a request.
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    /// There is no such call.
    #[error("there is no such call: is this host's version of baremesh newer than the control server's?")]
    NoSuchCall,
    /// The text is not a token.
    #[error(transparent)]
    NotAToken(#[from] TokenError),
    /// The token is not redeemed.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// A token cannot last that long, or no time at all.
    #[error("a token lasts between a second and {} days", MAX_TOKEN_LIFETIME.as_secs() / 86_400)]
    TokenLifetime,
    /// The signing request is refused.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// More identities at once than one request carries.
    #[error("a request asks for 1 to {MAX_BATCH} certificates, not {0}")]
    BatchSize(usize),
    /// A host has more certificates than it can need.
    #[error(
        "host {0} has {MAX_VALID_OF_HOST} valid certificates, and gets no more before some of them have ended: \
         `baremesh host revoke {0}` shuts it out if it was taken over"
    )]
    TooManyValid(Label),
    /// The caller shows no certificate.
    #[error(
        "this call needs a credential: a host's own (run `baremesh join` on it), or an operator's (`--credential`)"
    )]
    NoCredential,
    /// The caller shows a certificate that is no node credential.
    #[error("{0} is no node credential of this mesh: only a host's agent may make this call")]
    NotANode(Identity),
    /// The caller shows no operator's credential.
    #[error("{0} is no operator's credential: `baremesh operator add` on the control host makes one")]
    NotAnOperator(Identity),
    /// The operator is not known.
    #[error("there is no operator {0}, or it was removed: `baremesh operator add {0}` on the control host")]
    OperatorUnknown(Label),
    /// The operator has another credential since.
    #[error(
        "operator {0} was given another credential since this one, or this one has ended: only the latest is valid"
    )]
    OperatorSuperseded(Label),
    /// The credential was taken back.
    #[error(
        "the credential of operator {0} was revoked: `baremesh operator add {0} --replace` makes another"
    )]
    OperatorRevoked(Label),
    /// There is an operator of that name.
    #[error(
        "there is an operator {0} already: `--replace` gives another credential and role, and ends the one before"
    )]
    OperatorExists(Label),
    /// An operator's credential cannot last that long, or no time at all.
    #[error("an operator's credential lasts between a second and {} days", MAX_OPERATOR_LIFETIME.as_secs() / 86_400)]
    OperatorLifetime,
    /// The host is not known.
    #[error("host {0} has not joined here, or was removed: run `baremesh join` on it with a new token")]
    HostUnknown(Label),
    /// The host was shut out.
    #[error(
        "host {0} was revoked: to let it in again, use a token from `baremesh token create --rejoin {0}`"
    )]
    HostRevoked(Label),
    /// The credential itself was taken back.
    #[error(
        "this credential of host {0} was revoked: to let the host in again, use a token from `baremesh token create --rejoin {0}`"
    )]
    CredentialRevoked(Label),
    /// The credential has ended, and is good for its own renewal at most.
    #[error(
        "the node credential of host {0} has ended: it renews itself for {days} days after its end; later the host joins again, with a token from `baremesh token create --rejoin {0}`",
        days = NODE_GRACE.as_secs() / 86_400
    )]
    CredentialExpired(Label),
    /// Nothing that was issued and has not ended is meant.
    #[error("no certificate that was issued here and has not ended is meant by {0}")]
    NothingToRevoke(String),
    /// More than one list holds.
    #[error(
        "{0} certificates would be revoked at a time, and a list holds {MAX_REVOKED}: wait until some have ended"
    )]
    TooManyRevoked(usize),
    /// Another machine has joined under the name since.
    #[error("host {0} has joined anew since this credential was issued: only the later one is valid")]
    Superseded(Label),
    /// Not an identity of this mesh.
    #[error("{0} is not of this mesh's trust domain")]
    OtherTrustDomain(Identity),
    /// An identity that the mesh keeps for itself.
    #[error("{0} is reserved: no host can be granted it")]
    Reserved(Identity),
    /// The host was not granted the identity.
    #[error(
        "host {host} was not granted {identity}: add it to a HostGrant (`services = [\"{account}.{namespace}\"]`) or use a token with `--service {account}.{namespace}`",
        account = identity.service_account(), namespace = identity.namespace()
    )]
    NotGranted {
        /// Who asked.
        host: Label,
        /// For what.
        identity: Identity,
    },
    /// The authority cannot do it now; what exactly is wrong stands in its own log.
    #[error("the certificate authority cannot answer right now: its log on the control host says why")]
    Unavailable,
}

impl Refusal {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::NoSuchCall => "no_such_call",
            Self::NotAToken(_) => "token_malformed",
            Self::Token(TokenRefusal::Unknown) => "token_unknown",
            Self::Token(TokenRefusal::Expired { .. }) => "token_expired",
            Self::Token(TokenRefusal::Used) => "token_used",
            Self::Token(TokenRefusal::OtherHost { .. }) => "token_other_host",
            Self::Token(TokenRefusal::HostTaken(_)) => "host_taken",
            Self::Token(TokenRefusal::HostRevoked(_)) | Self::HostRevoked(_) => "host_revoked",
            Self::CredentialRevoked(_) => "credential_revoked",
            Self::CredentialExpired(_) => "credential_expired",
            Self::NothingToRevoke(_) => "nothing_to_revoke",
            Self::TooManyRevoked(_) => "too_many_revoked",
            Self::TokenLifetime => "token_lifetime",
            Self::Key(_) => "request_refused",
            Self::BatchSize(_) => "batch_size",
            Self::TooManyValid(_) => "too_many_certificates",
            Self::NoCredential => "no_credential",
            Self::NotANode(_) => "not_a_node",
            Self::NotAnOperator(_) => "not_an_operator",
            Self::OperatorUnknown(_) => "operator_unknown",
            Self::OperatorSuperseded(_) => "operator_superseded",
            Self::OperatorRevoked(_) => "operator_revoked",
            Self::OperatorExists(_) => "operator_exists",
            Self::OperatorLifetime => "operator_lifetime",
            Self::HostUnknown(_) => "host_unknown",
            Self::Superseded(_) => "superseded",
            Self::OtherTrustDomain(_) => "other_trust_domain",
            Self::Reserved(_) => "reserved",
            Self::NotGranted { .. } => "not_granted",
            Self::Unavailable => "unavailable",
        }
    }

    /// The status of the HTTP answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_)
            | Self::NotAToken(_)
            | Self::Key(_)
            | Self::TokenLifetime
            | Self::OperatorLifetime => StatusCode::BAD_REQUEST,
            Self::NoSuchCall | Self::NothingToRevoke(_) => StatusCode::NOT_FOUND,
            Self::BatchSize(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyValid(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::NoCredential => StatusCode::UNAUTHORIZED,
            Self::Token(TokenRefusal::Used | TokenRefusal::HostTaken(_))
            | Self::TooManyRevoked(_)
            | Self::OperatorExists(_) => StatusCode::CONFLICT,
            Self::Token(_)
            | Self::NotANode(_)
            | Self::NotAnOperator(_)
            | Self::OperatorUnknown(_)
            | Self::OperatorSuperseded(_)
            | Self::OperatorRevoked(_)
            | Self::HostUnknown(_)
            | Self::HostRevoked(_)
            | Self::CredentialRevoked(_)
            | Self::CredentialExpired(_)
            | Self::Superseded(_)
            | Self::OtherTrustDomain(_)
            | Self::Reserved(_)
            | Self::NotGranted { .. } => StatusCode::FORBIDDEN,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Puts the reason in the log and keeps it from the caller, who may be a stranger.
    pub(crate) fn unavailable(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "the certificate authority cannot answer");
        Self::Unavailable
    }
}

impl From<LedgerError> for Refusal {
    fn from(error: LedgerError) -> Self {
        Self::unavailable(&error)
    }
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        Self::unavailable(&error)
    }
}
