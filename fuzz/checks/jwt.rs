//! A token as a caller sends it, and a set of keys as a server serves it. The first byte says which.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use baremesh_agent::jwt::MAX_TOKEN;
use baremesh_agent::jwt::claims;
use baremesh_agent::jwt::jws::Compact;
use baremesh_agent::jwt::keys::{KeySet, MAX_KEYS};
use baremesh_model::token::Claim;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The public key of RFC 7515, appendix A.3, and that of RFC 8037, appendix A.
const KEYS: &str = r#"{"keys":[
    {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
     "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
    {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
/// What RFC 7515, appendix A.3, and RFC 8037, appendix A.4, sign with them: nobody else can sign anything.
const SIGNED: [&str; 2] = [
    "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
];

static SET: LazyLock<KeySet> = LazyLock::new(|| KeySet::parse(KEYS).expect("two keys"));

pub fn check(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if kind % 2 == 0 { token(text) } else { set(text) }
}

fn token(text: &str) {
    let Ok(compact) = Compact::parse(text) else {
        assert!(!SIGNED.contains(&text), "what is signed is not read");
        return;
    };
    assert!(text.len() <= MAX_TOKEN && text.split('.').count() == 3, "another form passes");
    assert_eq!(
        compact.verify(&SET).is_ok(),
        SIGNED.contains(&text),
        "taken without a signature, or not taken with one"
    );
    let Ok(payload) = compact.payload() else { return };
    assert_eq!(URL_SAFE_NO_PAD.encode(&payload), compact.payload_part, "two spellings of one payload");
    let Ok(token) = claims::token(&payload) else { return };
    let text_of = |name: &str| match token.claims.get(name) {
        None => String::new(),
        Some(Claim::Text(text)) => text.clone(),
        Some(other) => panic!("{name} is {other:?}"),
    };
    assert_eq!((&token.issuer, &token.subject), (&text_of("iss"), &text_of("sub")));
    let late = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
    if claims::is_of_now(&token, late).is_ok() {
        let early = claims::is_of_now(&token, SystemTime::UNIX_EPOCH);
        assert!(
            early.is_ok() || token.claims.contains_key("nbf"),
            "a token that never ends begins some time"
        );
    }
}

fn set(text: &str) {
    let Ok(set) = KeySet::parse_any(text) else { return };
    assert!(set.keys.len() <= MAX_KEYS, "more keys than are looked at");
    assert_eq!(KeySet::parse(text).is_ok(), !set.keys.is_empty() || set.left_out.is_empty());
    for signed in SIGNED {
        let compact = Compact::parse(signed).expect("a token");
        if compact.verify(&set).is_ok() {
            let known = [
                "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            ];
            assert!(known.iter().any(|x| text.contains(x)), "verified with another key");
        }
    }
}
