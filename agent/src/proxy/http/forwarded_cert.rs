//! What a program of this host is told of who calls it, in `x-forwarded-client-cert`: the form in which Istio has Envoy
//! write it (`By`, `Hash`, `Subject`, `URI`), as far as it was proved.

use baremesh_model::http::Headers;
use baremesh_model::http::headers::may_be_read_as;
use baremesh_model::identity::Identity;

/// Where the called side learns who calls (Envoy's name).
const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// A caller whose identity is known.
#[derive(Debug, Clone, Copy)]
pub struct Proved<'a> {
    /// Whose it is.
    pub identity: &'a Identity,
    /// The SHA-256 of the certificate that it showed, in hexadecimal. Within a host the kernel vouches instead.
    pub certificate: Option<&'a str>,
}

/// Tells a program of `callee` who calls. What the caller wrote there itself is not believed, nor what some programs read
/// as the same name.
pub fn introduce(headers: &mut Headers, source: Option<Proved<'_>>, callee: &Identity) {
    headers.retain(|name| !may_be_read_as(name.as_bytes(), CLIENT_CERT));
    let Some(Proved { identity, certificate }) = source else { return };
    let hash = certificate.map(|hash| format!("Hash={hash};")).unwrap_or_default();
    // Certificates of members have an empty subject, and Envoy writes that too.
    let proved = format!("By={callee};{hash}Subject=\"\";URI={identity}");
    // An identity's URI has no character that a field may not have.
    let _ = headers.set(CLIENT_CERT, proved.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_proved_stands_in_istios_form_and_what_was_claimed_is_gone() {
        let identity = |name: &str| Identity::parse(&format!("spiffe://mesh/ns/a/sa/{name}")).expect("one");
        let (web, orders) = (identity("web"), identity("orders"));
        let check = |source, expected: Option<&str>| {
            let mut headers = Headers::default();
            for name in [
                "x-forwarded-client-cert",
                "x_forwarded_client-cert",
                "x-forwarded_client_cert",
                "x.forwarded.client.cert",
                "X~Forwarded-Client'Cert",
            ] {
                headers.append(name, b"URI=spiffe://mesh/ns/a/sa/admin").expect("a field");
            }
            introduce(&mut headers, source, &orders);
            assert_eq!(headers.text("x-forwarded-client-cert").as_deref(), expected);
            assert_eq!(headers.len(), usize::from(expected.is_some()));
        };
        check(None, None);
        check(
            Some(Proved { identity: &web, certificate: Some("ab12") }),
            Some("By=spiffe://mesh/ns/a/sa/orders;Hash=ab12;Subject=\"\";URI=spiffe://mesh/ns/a/sa/web"),
        );
        check(
            Some(Proved { identity: &web, certificate: None }),
            Some("By=spiffe://mesh/ns/a/sa/orders;Subject=\"\";URI=spiffe://mesh/ns/a/sa/web"),
        );
    }
}
