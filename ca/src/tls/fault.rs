//! What a failed handshake means for an operator. The alerts on the wire say little; here the same error becomes
//! a sentence with what to look at next.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error};
use rustls_pki_types::UnixTime;

use super::PeerError;
use crate::clock::in_words;

/// A handshake's error as a log should show it.
pub fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => describe_certificate(error),
        Error::AlertReceived(alert) => describe_alert(*alert),
        Error::NoCertificatesPresented => {
            "the peer showed no certificate: is it a member of this mesh?".to_owned()
        }
        Error::NoApplicationProtocol => "the peer does not speak HTTP/2: is it an agent?".to_owned(),
        Error::InvalidMessage(_) => "the peer does not speak TLS: is it an agent?".to_owned(),
        Error::PeerIncompatible(_) => format!("the peer does not speak the mesh's TLS 1.3 ({error})"),
        other => other.to_string(),
    }
}

/// The same for the error that a TLS stream returns, which may have nothing to do with TLS.
pub fn describe_io(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(tls) => describe(tls),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection during the handshake: its log says why".to_owned()
        }
        None => error.to_string(),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the peer's certificate expired {} ago by this host's clock: compare the clocks of both hosts (`timedatectl`), and see \
             whether the peer reaches `baremesh control`",
            apart(*not_after, *time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the peer's certificate becomes valid in {} by this host's clock: this host's clock is behind, or the control \
             server's ahead (`timedatectl`)",
            apart(*time, *not_before)
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the peer's certificate does not chain to a root of this mesh: it is of another mesh, or forged"
                .to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the peer's certificate is not meant for this side of TLS (extended key usage)".to_owned()
        }
        CertificateError::BadEncoding => "the peer's certificate cannot be read as X.509".to_owned(),
        CertificateError::Other(inner) => match inner.0.downcast_ref::<PeerError>() {
            Some(peer) => peer.to_string(),
            None => format!("the peer's certificate is refused: {}", inner.0),
        },
        other => format!("the peer's certificate is refused: {other}"),
    }
}

fn describe_alert(alert: AlertDescription) -> String {
    let said = match alert {
        AlertDescription::CertificateExpired => {
            "this host's certificate is outside its dates there: compare the clocks (`timedatectl`), and see `baremesh certs`"
        }
        AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::DecryptError => {
            "it does not trust this host's certificate: is it of the same mesh?"
        }
        AlertDescription::CertificateRequired => "it wants a certificate, and this host showed none",
        AlertDescription::UnrecognisedName => "it has no certificate for the name that was asked for",
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "it refused this host's certificate: its log says why"
        }
        AlertDescription::UnsupportedCertificate => {
            "this host's certificate is not meant for this side of TLS"
        }
        _ => return format!("the peer ended the handshake ({alert:?}): its log says why"),
    };
    format!("the peer ended the handshake: {said} ({alert:?})")
}

fn apart(earlier: UnixTime, later: UnixTime) -> String {
    in_words(Duration::from_secs(later.as_secs().saturating_sub(earlier.as_secs())))
}
