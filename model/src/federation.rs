//! Other trust domains whose identities are verified here: SPIFFE Federation, the specification's `https_web` profile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::name::TrustDomain;
use crate::request_authentication::KeyUrl;

/// The most trust domains that are federated.
pub const MAX_FEDERATED: usize = 16;
/// How often a bundle is fetched that says nothing of it, SPIFFE Trust Domain and Bundle, section 4.1.2.
pub const REFRESH: Duration = Duration::from_secs(300);
/// The least and the most time between two fetches, whoever asks for it.
pub const REFRESH_BOUNDS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(86_400));

/// Where the roots of a trust domain are from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BundleSource {
    /// A file of the control host, by its absolute path.
    File(Arc<str>),
    /// A server.
    Url {
        /// An `https` URL.
        url: KeyUrl,
        /// A PEM file, on the control host, of the authorities that its certificate leads to; the system's without.
        authorities: Option<Arc<str>>,
    },
}

/// Another trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federated {
    /// Its name.
    pub trust_domain: TrustDomain,
    /// Where its roots are from.
    pub source: BundleSource,
    /// How often they are read anew; as the bundle itself says unless set.
    pub refresh: Option<Duration>,
}

/// Why that is no federation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say what each is.
pub enum FederationError {
    #[error("`{0}` is this mesh's own trust domain")]
    Own(TrustDomain),
    #[error("`{0}` is federated twice")]
    Twice(TrustDomain),
    #[error("{MAX_FEDERATED} trust domains at most are federated, and these are {0}")]
    TooMany(usize),
    #[error("a bundle is fetched by `https`: what comes without it may be anybody's")]
    NotHttps,
    #[error("`{0}` is no absolute path")]
    NotAbsolute(String),
    #[error("it is read every {} s to {} h", REFRESH_BOUNDS.0.as_secs(), REFRESH_BOUNDS.1.as_secs() / 3600)]
    Refresh,
}

impl BundleSource {
    /// A file of the control host.
    pub fn file(path: &str) -> Result<Self, FederationError> {
        absolute(path).map(Self::File)
    }

    /// A server, with the file of the authorities that vouch for it.
    pub fn url(url: KeyUrl, authorities: Option<&str>) -> Result<Self, FederationError> {
        if !url.is_https() {
            return Err(FederationError::NotHttps);
        }
        Ok(Self::Url { url, authorities: authorities.map(absolute).transpose()? })
    }
}

impl Federated {
    /// Another trust domain, with how often its bundle is read, if that is said.
    pub fn new(
        trust_domain: TrustDomain,
        source: BundleSource,
        refresh: Option<Duration>,
    ) -> Result<Self, FederationError> {
        let (least, most) = REFRESH_BOUNDS;
        if refresh.is_some_and(|refresh| !(least..=most).contains(&refresh)) {
            return Err(FederationError::Refresh);
        }
        Ok(Self { trust_domain, source, refresh })
    }
}

/// Checks that these can be federated together by a mesh of the trust domain `own`.
pub fn check(all: &[Federated], own: &TrustDomain) -> Result<(), FederationError> {
    if all.len() > MAX_FEDERATED {
        return Err(FederationError::TooMany(all.len()));
    }
    for (at, one) in all.iter().enumerate() {
        if one.trust_domain == *own {
            return Err(FederationError::Own(own.clone()));
        }
        if all[..at].iter().any(|before| before.trust_domain == one.trust_domain) {
            return Err(FederationError::Twice(one.trust_domain.clone()));
        }
    }
    Ok(())
}

fn absolute(path: &str) -> Result<Arc<str>, FederationError> {
    match Path::new(path).is_absolute() {
        true => Ok(path.into()),
        false => Err(FederationError::NotAbsolute(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_domain_is_federated_once_and_by_means_that_can_be_trusted() {
        let domain = |name: &str| TrustDomain::new(name).expect("a domain");
        let file = || BundleSource::file("/etc/baremesh/partner.pem").expect("a source");
        let one = |name: &str| Federated::new(domain(name), file(), None).expect("a federation");
        let expect = |names: &[&str], expected: Result<(), FederationError>| {
            let all: Vec<_> = names.iter().map(|name| one(name)).collect();
            assert_eq!(check(&all, &domain("own.test")), expected, "{names:?}");
        };
        expect(&[], Ok(()));
        expect(&["a.test", "b.test"], Ok(()));
        expect(&["a.test", "own.test"], Err(FederationError::Own(domain("own.test"))));
        expect(&["a.test", "b.test", "a.test"], Err(FederationError::Twice(domain("a.test"))));
        expect(&["a.test"; MAX_FEDERATED + 1], Err(FederationError::TooMany(MAX_FEDERATED + 1)));
        let url = |text: &str| KeyUrl::new(text).expect("a URL");
        assert!(BundleSource::url(url("https://a.test/bundle"), None).is_ok());
        assert_eq!(BundleSource::url(url("http://a.test/bundle"), None), Err(FederationError::NotHttps));
        assert!(BundleSource::url(url("https://a.test/"), Some("ca.pem")).is_err());
        assert!(BundleSource::file("partner.pem").is_err());
        for (seconds, fits) in [(9, false), (10, true), (86_400, true), (86_401, false)] {
            let made = Federated::new(domain("a.test"), file(), Some(Duration::from_secs(seconds)));
            assert_eq!(made.is_ok(), fits, "{seconds}");
        }
    }
}
