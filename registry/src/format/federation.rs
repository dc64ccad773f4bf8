//! `federation` of MeshConfig, and the identity that a Service of another mesh shows.

use baremesh_model::federation::{BundleSource, Federated, FederationError, check};
use baremesh_model::identity::Identity;
use baremesh_model::name::{Domain, TrustDomain};
use baremesh_model::request_authentication::KeyUrl;
use serde_json::{Value as Json, json};

use super::decode::{At, Decoder, optional};
use super::duration;
use crate::diagnostic::quote;

/// Reads the list; `own` is the mesh's own trust domain.
pub(super) fn decode(d: &mut Decoder<'_>, at: &At<'_>, own: &TrustDomain) -> Option<Vec<Federated>> {
    let all = d.each(at, one)?;
    said(d, at, check(&all, own))?;
    Some(all)
}

fn one(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Federated> {
    let fields = d.fields(at)?;
    let trust_domain = d.required(&fields, "trustDomain").and_then(|at| {
        let text = d.text(&at)?;
        d.named(&at, Domain::new(text))
    });
    let file = optional(fields.take("bundleFile"), |at| {
        let text = d.text(&at)?;
        said(d, &at, BundleSource::file(text))
    });
    let authorities = optional(fields.take("bundleAuthorities"), |at| d.text(&at));
    let url = optional(fields.take("bundleUrl"), |at| {
        let text = d.text(&at)?;
        match KeyUrl::new(text) {
            Ok(url) => said(d, &at, BundleSource::url(url, authorities.flatten())),
            Err(error) => {
                let help = "write such as `https://partner.example/bundle.json`";
                d.invalid(&at, format!("{}: {error}", quote(text)), help);
                None
            }
        }
    });
    let refresh = optional(fields.take("refresh"), |at| duration::positive(d, &at));
    let source = match (file?, url?) {
        (Some(source), None) | (None, Some(source)) => source,
        (Some(_), Some(_)) => {
            d.invalid(at, "`bundleFile` and `bundleUrl` cannot both be set", "keep one of them");
            return None;
        }
        (None, None) => {
            d.invalid(at, "neither `bundleFile` nor `bundleUrl` is set", "say where the roots are from");
            return None;
        }
    };
    if matches!(source, BundleSource::File(_)) && authorities?.is_some() {
        d.invalid(at, "`bundleAuthorities` are for `bundleUrl`", "take it out");
        return None;
    }
    let (trust_domain, refresh) = (trust_domain?, refresh?);
    said(d, at, Federated::new(trust_domain, source, refresh))
}

fn said<T>(d: &mut Decoder<'_>, at: &At<'_>, read: Result<T, FederationError>) -> Option<T> {
    read.map_err(|error| d.invalid(at, error.to_string(), "")).ok()
}

/// The one identity that all endpoints of a Service show which are another mesh's.
pub(super) fn alternative_name(d: &mut Decoder<'_>, at: &At<'_>) -> Option<Identity> {
    let read = d.each(at, |d, at| {
        let text = d.text(at)?;
        let read = Identity::parse(text);
        read.map_err(|error| d.invalid(at, error.to_string(), "")).ok()
    })?;
    match <[Identity; 1]>::try_from(read) {
        Ok([identity]) => Some(identity),
        Err(others) => {
            let message =
                format!("{} identities: all endpoints of a service show one and the same", others.len());
            d.invalid(at, message, "write the one, such as `spiffe://partner.example/ns/shop/sa/orders`");
            None
        }
    }
}

pub(super) fn encode(all: &[Federated]) -> Json {
    let one = |federated: &Federated| {
        let mut json = json!({ "trustDomain": federated.trust_domain.as_str() });
        match &federated.source {
            BundleSource::File(path) => json["bundleFile"] = (&**path).into(),
            BundleSource::Url { url, authorities } => {
                json["bundleUrl"] = url.as_str().into();
                if let Some(authorities) = authorities {
                    json["bundleAuthorities"] = (&**authorities).into();
                }
            }
        }
        if let Some(refresh) = federated.refresh {
            json["refresh"] = duration::text(refresh).into();
        }
        json
    };
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use crate::format::Form;
    use crate::resource::Resource;

    /// What reading the text says: nothing, or the first fault.
    fn check(text: &str, expected: &str) {
        let parsed = Form::Toml.parse(text, "x.toml");
        let found = parsed.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{text}: {found}");
    }

    #[test]
    fn a_federation_says_where_the_roots_are_from_and_nothing_twice() {
        let federation =
            |fields: &str| format!("[[MeshConfig]]\ntrustDomain = \"own.test\"\nfederation = [{fields}]\n");
        let of = |fields: &str| federation(&format!("{{ trustDomain = \"a.test\", {fields} }}"));
        check(&of("bundleFile = \"/etc/a.pem\""), "");
        check(&of("bundleUrl = \"https://a.test/bundle\", refresh = \"1m\""), "");
        check(&of("bundleUrl = \"https://a.test/bundle\", bundleAuthorities = \"/etc/ca.pem\""), "");
        check(&of("refresh = \"1m\""), "neither");
        check(&of("bundleFile = \"/a\", bundleUrl = \"https://a.test/\""), "cannot both");
        check(&of("bundleFile = \"a.pem\""), "absolute");
        check(&of("bundleUrl = \"http://a.test/\""), "https");
        check(&of("bundleUrl = \"a.test\""), "starts with neither");
        check(&of("bundleFile = \"/a\", bundleAuthorities = \"/b\""), "are for `bundleUrl`");
        check(&of("bundleFile = \"/a\", refresh = \"1s\""), "read every");
        check(&of("bundleFile = \"/a\", other = 1"), "other");
        let one = "{ trustDomain = \"a.test\", bundleFile = \"/a\" }";
        check(&federation(&format!("{one}, {one}")), "federated twice");
        check(&federation("{ trustDomain = \"own.test\", bundleFile = \"/a\" }"), "own trust domain");
    }

    #[test]
    fn a_service_of_another_mesh_shows_one_identity() {
        let service = |names: &str| {
            format!("[[Service]]\nname = \"x\"\nports = [{{ port = 80 }}]\nsubjectAltNames = [{names}]\n")
        };
        let name = "\"spiffe://a.test/ns/shop/sa/orders\"";
        check(&service(name), "");
        check(&service(""), "0 identities");
        check(&service(&format!("{name}, {name}")), "2 identities");
        check(&service("\"orders.a.test\""), "is not an identity");
        let parsed = Form::Toml.parse(&service(name), "x.toml");
        let Resource::Service(read) = &parsed.resources[0].value else { panic!("a service") };
        assert_eq!(read.federated.as_ref().map(ToString::to_string).as_deref(), Some(name.trim_matches('"')));
    }
}
