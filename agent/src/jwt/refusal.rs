//! Why a token is refused, in the words that Envoy uses (its jwt_verify_lib), because clients and dashboards know them.

use baremesh_model::http::RequestHead;

use crate::proxy::http::reply::Reply;

/// The longest request URL that is repeated to a caller, in bytes.
const MAX_REALM: usize = 256;

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident: $reason:literal, $text:literal, $details:literal;)*) => {
        /// Why a token is refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[$doc])* $name,)*
        }

        impl Refusal {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The reason as metrics have it.
            pub fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }

            /// What the caller is told.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Envoy's response code details.
            pub fn details(self) -> &'static str {
                match self { $(Self::$name => concat!("jwt_authn_access_denied{", $details, "}"),)* }
            }
        }
    };
}

refusals! {
    /// There is none, and the workload asks for one.
    Missing: "missing", "Jwt is missing", "Jwt_is_missing";
    /// Not three parts with two dots, not a text, or too long.
    BadFormat: "format", "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        "Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections";
    /// A part is not base64url.
    BadBase64: "base64", "Jwt header, payload or signature is an invalid Base64url encoded",
        "Jwt_header,_payload_or_signature_is_an_invalid_Base64url_encoded";
    /// The header is no JSON object with each member once.
    BadHeader: "header", "Jwt header is an invalid JSON", "Jwt_header_is_an_invalid_JSON";
    /// `none`, a shared secret's, or one that is not known.
    BadAlgorithm: "algorithm", "Jwt header [alg] is not supported", "Jwt_header_[alg]_is_not_supported";
    /// `kid` is no text.
    BadKeyId: "key_id", "Jwt header [kid] field is not a string", "Jwt_header_[kid]_field_is_not_a_string";
    /// The token brings its own key, or says where one is, or asks for what is not understood.
    OwnKey: "own_key", "Jwt header names its own key or an extension that must be understood",
        "Jwt_header_names_its_own_key_or_an_extension_that_must_be_understood";
    /// The payload is no JSON object with each member once, or a registered claim has the wrong type.
    BadPayload: "payload", "Jwt payload is an invalid JSON", "Jwt_payload_is_an_invalid_JSON";
    /// No rule is for the issuer.
    UnknownIssuer: "issuer", "Jwt issuer is not configured", "Jwt_issuer_is_not_configured";
    /// Past `exp`.
    Expired: "expired", "Jwt is expired", "Jwt_is_expired";
    /// Before `nbf`.
    NotYetValid: "not_yet_valid", "Jwt not yet valid", "Jwt_not_yet_valid";
    /// There are no keys of the issuer.
    NoKeys: "no_keys", "Jwks remote fetch is failed", "Jwks_remote_fetch_is_failed";
    /// None of the keys goes with `kid` and `alg`.
    NoSuchKey: "no_such_key", "Jwks doesn't have key to match kid or alg from Jwt",
        "Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt";
    /// The signature is not that of a key.
    BadSignature: "signature", "Jwt verification fails", "Jwt_verification_fails";
    /// It is for somebody else.
    WrongAudience: "audience", "Audiences in Jwt are not allowed", "Audiences_in_Jwt_are_not_allowed";
    /// More tokens than are looked at, or more signatures than are checked for one request.
    TooMany: "too_many", "Found multiple Jwt tokens", "Found_multiple_Jwt_tokens";
}

impl Refusal {
    /// The answer to a request with such a token (RFC 6750, section 3). A token that is good, but for somebody else, is
    /// 403 as in Envoy.
    pub fn reply(self, head: &RequestHead) -> Reply {
        let status = if self == Self::WrongAudience { 403 } else { 401 };
        let mut reply = Reply::new(status, self.text(), "UAEX", self.details());
        // Who brought none did nothing wrong (RFC 6750, section 3.1).
        let error = if self == Self::Missing { "" } else { ", error=\"invalid_token\"" };
        let challenge = format!("Bearer realm=\"{}\"{error}", realm(head));
        // What could not stand in a field is not in it.
        let _ = reply.headers.set("www-authenticate", challenge.as_bytes());
        reply
    }
}

/// The request's URL without the query, where a token may stand.
fn realm(head: &RequestHead) -> String {
    let url = format!("{}://{}{}", head.scheme.name(), head.authority, head.path());
    let plain = |c: &char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
    url.chars().filter(plain).take(MAX_REALM).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_envoy_s_and_repeats_no_query() {
        let mut head = RequestHead {
            authority: "web:80".into(),
            target: "/a\"b?access_token=secret".into(),
            ..RequestHead::default()
        };
        let reply = Refusal::Expired.reply(&head);
        assert_eq!((reply.status, &*reply.body), (401, &b"Jwt is expired"[..]));
        assert_eq!(reply.details, "jwt_authn_access_denied{Jwt_is_expired}");
        assert_eq!(
            reply.headers.text("www-authenticate").as_deref(),
            Some("Bearer realm=\"http://web:80/ab\", error=\"invalid_token\"")
        );
        assert_eq!(reply.grpc_status(), 16);
        head.target = "/".repeat(10_000);
        let reply = Refusal::WrongAudience.reply(&head);
        assert_eq!((reply.status, reply.grpc_status()), (403, 7));
        assert!(reply.headers.bytes() < 400);
    }

    #[test]
    fn details_are_the_text_without_spaces() {
        for refusal in Refusal::ALL {
            let expected = format!("jwt_authn_access_denied{{{}}}", refusal.text().replace(' ', "_"));
            assert_eq!(refusal.details(), expected);
        }
    }
}
