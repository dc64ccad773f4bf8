//! A URI name of a peer's certificate, read as a SPIFFE identity.

use baremesh_model::identity::{Identity, RESERVED_NAMESPACES};
use http::Uri;

/// The longest: a domain of 253 bytes, two labels of 63, and what stands between them.
const LONGEST: usize = "spiffe://".len() + 253 + "/ns/".len() + 63 + "/sa/".len() + 63;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = Identity::parse(text);
    assert_eq!(read.is_ok(), is_identity(text), "two readers differ about {text:?}");
    let Ok(identity) = read else { return };
    // One spelling: policies, certificates and logs compare it byte for byte.
    assert_eq!(identity.to_string(), text, "it is written otherwise");
    assert_eq!(format!("spiffe://{}", identity.principal()), text);
    assert!(text.len() <= LONGEST, "{} bytes", text.len());
    // A server name is of one identity.
    let name = identity.server_name();
    let [account, namespace, domain] = name.splitn(3, '.').collect::<Vec<_>>()[..] else {
        panic!("{name} has too few parts");
    };
    assert_eq!(format!("spiffe://{domain}/ns/{namespace}/sa/{account}"), text, "{name} is another's");
    let kinds = [identity.as_node(), identity.as_host(), identity.as_operator()];
    assert!(kinds.iter().flatten().count() <= 1, "two kinds at once");
    assert_eq!(identity.is_reserved(), RESERVED_NAMESPACES.contains(&namespace));
    assert!(
        identity.is_reserved() || kinds.iter().all(Option::is_none),
        "one of the mesh's own is not reserved"
    );
}

/// The same, read by a library that knows URIs and nothing of SPIFFE.
fn is_identity(text: &str) -> bool {
    // It folds the scheme's and takes much in paths; an identity has neither.
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'/' | b':');
    if !text.bytes().all(plain) || text.len() > LONGEST {
        return false;
    }
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some("spiffe"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let mut path = uri.path().strip_prefix('/').unwrap_or_default().split('/');
    let (ns, namespace, sa, account) = (path.next(), path.next(), path.next(), path.next());
    let label = |text: &str| {
        let inner = text.trim_matches('-');
        !text.is_empty() && text.len() <= 63 && inner == text && !text.contains(['.', ':', '/'])
    };
    (ns, sa, path.next()) == (Some("ns"), Some("sa"), None)
        && namespace.is_some_and(label)
        && account.is_some_and(label)
        && authority.as_str().len() <= 253
        && authority.as_str().split('.').all(label)
}
