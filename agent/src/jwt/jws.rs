//! The compact form of a signed token (RFC 7515, section 7.1), read strictly: each part is base64url without padding and
//! without bits left over, the header is one JSON object with each member once, and what it may ask for is little. A
//! token never says by which key, or by what kind of key, it is to be trusted: `alg` must be that of the key.

use baremesh_model::token::Claim;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::claims::{self, Members};
use super::keys::KeySet;
use super::verified::Name;
use super::{MAX_CHECKS, MAX_TOKEN, Refusal};

/// The most keys that one token is tried with.
const MAX_TRIED: usize = 8;
/// Header members by which a token would bring its own key, say where one is, or ask for what is not understood here
/// (RFC 7515, section 4.1; RFC 7797).
const REFUSED: [&str; 7] = ["crit", "jwk", "jku", "x5c", "x5u", "b64", "zip"];

/// How a token is signed (RFC 7518, section 3.1; RFC 8037). What is signed with a shared secret, or with none, is none of
/// these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the registry's.
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    /// The algorithm of this name, in exactly this case.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A token whose form is right and whose signature nobody has looked at.
#[derive(Debug)]
pub struct Compact<'a> {
    /// How it says that it is signed.
    pub algorithm: Algorithm,
    /// Which key it names.
    pub key_id: Option<String>,
    /// The payload as it stands in the token.
    pub payload_part: &'a str,
    text: &'a str,
    signed: &'a [u8],
    signature: Vec<u8>,
}

/// How many signatures may still be checked for a request.
#[derive(Debug)]
pub struct Checks(usize);

impl Default for Checks {
    fn default() -> Self {
        Self(MAX_CHECKS)
    }
}

impl<'a> Compact<'a> {
    /// Reads a token.
    pub fn parse(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > MAX_TOKEN {
            return Err(Refusal::BadFormat);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload_part), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::BadFormat);
        };
        let header = claims::members(&decoded(header)?).ok_or(Refusal::BadHeader)?;
        let algorithm = match header.get("alg") {
            Some(Claim::Text(name)) => Algorithm::named(name).ok_or(Refusal::BadAlgorithm)?,
            _ => return Err(Refusal::BadAlgorithm),
        };
        if REFUSED.iter().any(|member| header.contains_key(*member)) {
            return Err(Refusal::OwnKey);
        }
        let key_id = match header.get("kid") {
            None => None,
            Some(Claim::Text(id)) => Some(id.clone()),
            Some(_) => return Err(Refusal::BadKeyId),
        };
        let signature = decoded(signature)?;
        let signed = &text.as_bytes()[..text.rfind('.').unwrap_or_default()];
        Ok(Self { algorithm, key_id, payload_part, text, signed, signature })
    }

    /// The payload, which nobody vouches for before `verify` did.
    pub fn payload(&self) -> Result<Vec<u8>, Refusal> {
        decoded(self.payload_part)
    }

    /// Whether one of the keys signed it: of those with exactly its key id, where it names one.
    pub fn verify(&self, keys: &KeySet) -> Result<(), Refusal> {
        self.verify_within(keys, &mut Checks::default())
    }

    /// The same, as one of the tokens of a request. One that the same keys were found to have signed before is known.
    pub(super) fn verify_within(&self, keys: &KeySet, checks: &mut Checks) -> Result<(), Refusal> {
        let name = Name::of(self.text);
        if keys.verified.knows(&name) {
            return Ok(());
        }
        self.check(keys, checks)?;
        keys.verified.remember(&name);
        Ok(())
    }

    fn check(&self, keys: &KeySet, Checks(left): &mut Checks) -> Result<(), Refusal> {
        let fitting = keys.keys.iter().filter(|key| {
            self.key_id.as_ref().is_none_or(|id| key.id.as_ref() == Some(id)) && key.fits(self.algorithm)
        });
        let mut tried = fitting.take(MAX_TRIED).peekable();
        if tried.peek().is_none() {
            return Err(Refusal::NoSuchKey);
        }
        for key in tried {
            *left = left.checked_sub(1).ok_or(Refusal::TooMany)?;
            if key.verifies(self.algorithm, self.signed, &self.signature) {
                return Ok(());
            }
        }
        Err(Refusal::BadSignature)
    }
}

/// The members of a payload: one JSON object with each member once.
pub(super) fn payload_members(payload: &[u8]) -> Result<Members, Refusal> {
    claims::members(payload).ok_or(Refusal::BadPayload)
}

fn decoded(part: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::BadBase64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::testing::{Signer, token_of};

    fn parse(header: &str) -> Result<Algorithm, Refusal> {
        let token = token_of(header, "{}", b"signature");
        Compact::parse(&token).map(|compact| compact.algorithm)
    }

    #[test]
    fn a_header_asks_for_little_and_says_it_once() {
        for (header, expected) in [
            (r#"{"alg":"ES256"}"#, Ok(Algorithm::Es256)),
            (r#"{"alg":"RS512","typ":"at+jwt","kid":"a","x5t":"b"}"#, Ok(Algorithm::Rs512)),
            (r#"{"alg":"none"}"#, Err(Refusal::BadAlgorithm)),
            (r#"{"alg":"None"}"#, Err(Refusal::BadAlgorithm)),
            (r#"{"alg":"HS256"}"#, Err(Refusal::BadAlgorithm)),
            (r#"{"alg":"es256"}"#, Err(Refusal::BadAlgorithm)),
            (r#"{"alg":["ES256"]}"#, Err(Refusal::BadAlgorithm)),
            (r#"{}"#, Err(Refusal::BadAlgorithm)),
            (r#"{"alg":"ES256","alg":"none"}"#, Err(Refusal::BadHeader)),
            (r#"{"alg":"ES256"} "#, Ok(Algorithm::Es256)),
            (r#"{"alg":"ES256"}x"#, Err(Refusal::BadHeader)),
            (r#"["ES256"]"#, Err(Refusal::BadHeader)),
            ("", Err(Refusal::BadHeader)),
            (r#"{"alg":"ES256","kid":7}"#, Err(Refusal::BadKeyId)),
            (r#"{"alg":"ES256","kid":null}"#, Err(Refusal::BadKeyId)),
            (r#"{"alg":"ES256","crit":["exp"]}"#, Err(Refusal::OwnKey)),
            (r#"{"alg":"ES256","crit":[]}"#, Err(Refusal::OwnKey)),
            (r#"{"alg":"ES256","jwk":{}}"#, Err(Refusal::OwnKey)),
            (r#"{"alg":"ES256","jku":"https://evil"}"#, Err(Refusal::OwnKey)),
            (r#"{"alg":"ES256","x5u":"https://evil"}"#, Err(Refusal::OwnKey)),
            (r#"{"alg":"ES256","x5c":[]}"#, Err(Refusal::OwnKey)),
            (r#"{"alg":"ES256","b64":false}"#, Err(Refusal::OwnKey)),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn the_form_has_three_parts_of_canonical_base64url() {
        let good = token_of(r#"{"alg":"ES256"}"#, "{}", b"signature");
        assert!(Compact::parse(&good).is_ok());
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        for (bad, expected) in [
            (String::new(), Refusal::BadFormat),
            (signed.to_owned(), Refusal::BadFormat),
            (format!("{good}."), Refusal::BadFormat),
            (format!(".{good}"), Refusal::BadFormat),
            (format!("{good}="), Refusal::BadBase64),
            (format!("{good} "), Refusal::BadBase64),
            (format!(" {good}"), Refusal::BadBase64),
            (format!("{signed}.{signature}+"), Refusal::BadBase64),
            (format!("{signed}.YR"), Refusal::BadBase64),
            (format!("{good}{}", "a".repeat(MAX_TOKEN)), Refusal::BadFormat),
        ] {
            assert_eq!(Compact::parse(&bad).map(|_| ()), Err(expected), "{bad:.80}");
        }
    }

    #[test]
    fn a_signature_is_taken_of_the_named_key_alone() {
        let (a, b) = (Signer::es256("a"), Signer::es256("b"));
        let set = KeySet::parse(&Signer::jwks(&[&a, &b])).expect("a set");
        let check = |token: &str, expected| {
            let verified = Compact::parse(token).and_then(|compact| compact.verify(&set));
            assert_eq!(verified, expected, "{token}");
        };
        check(&a.sign("{}"), Ok(()));
        check(&a.sign_with(r#"{"alg":"ES256"}"#, "{}"), Ok(()));
        check(&a.sign_with(r#"{"alg":"ES256","kid":"b"}"#, "{}"), Err(Refusal::BadSignature));
        check(&a.sign_with(r#"{"alg":"ES256","kid":"../a"}"#, "{}"), Err(Refusal::NoSuchKey));
        check(&a.sign_with(r#"{"alg":"ES256","kid":"A"}"#, "{}"), Err(Refusal::NoSuchKey));
        check(&a.sign_with(r#"{"alg":"ES256","kid":""}"#, "{}"), Err(Refusal::NoSuchKey));
        check(&a.sign_with(r#"{"alg":"ES384","kid":"a"}"#, "{}"), Err(Refusal::NoSuchKey));
        check(&a.sign_with(r#"{"alg":"RS256","kid":"a"}"#, "{}"), Err(Refusal::NoSuchKey));
        check(&Signer::es256("a").sign("{}"), Err(Refusal::BadSignature));
        let token = a.sign(r#"{"sub":"jason"}"#);
        let mut parts: Vec<&str> = token.split('.').collect();
        let other = URL_SAFE_NO_PAD.encode(r#"{"sub":"admin"}"#);
        parts[1] = &other;
        check(&parts.join("."), Err(Refusal::BadSignature));
    }

    #[test]
    fn a_signature_is_checked_once_and_none_more_often_than_a_request_may_cause() {
        let signers: Vec<Signer> = (0..MAX_TRIED).map(|number| Signer::es256(&number.to_string())).collect();
        let jwks = Signer::jwks(&signers.iter().collect::<Vec<_>>());
        let set = KeySet::parse(&jwks).expect("a set");
        let unnamed = |signer: &Signer, number: usize| {
            signer.sign_with(r#"{"alg":"ES256"}"#, &format!("{{\"n\":{number}}}"))
        };
        let check = |token: &str, set: &KeySet, checks: &mut Checks, expected, left| {
            let verified = Compact::parse(token).and_then(|compact| compact.verify_within(set, checks));
            assert_eq!((verified, checks.0), (expected, left), "{token}");
        };
        let (last, stranger) = (&signers[MAX_TRIED - 1], Signer::es256("0"));
        let mut checks = Checks::default();
        check(&unnamed(last, 1), &set, &mut checks, Ok(()), MAX_CHECKS - MAX_TRIED);
        check(&unnamed(last, 2), &set, &mut checks, Ok(()), MAX_CHECKS - 2 * MAX_TRIED);
        check(&unnamed(last, 3), &set, &mut checks, Err(Refusal::TooMany), 0);
        check(&unnamed(last, 3), &set, &mut Checks::default(), Ok(()), MAX_CHECKS - MAX_TRIED);
        // What is forged is never known.
        for _ in 0..2 {
            let mut checks = Checks::default();
            check(
                &unnamed(&stranger, 1),
                &set,
                &mut checks,
                Err(Refusal::BadSignature),
                MAX_CHECKS - MAX_TRIED,
            );
        }
        let token = signers[0].sign("{}");
        check(&token, &set, &mut Checks::default(), Ok(()), MAX_CHECKS - 1);
        // Again it costs nothing, also where nothing is left; with another payload it is another.
        check(&token, &set, &mut Checks(0), Ok(()), 0);
        let mut parts: Vec<&str> = token.split('.').collect();
        let other = URL_SAFE_NO_PAD.encode(r#"{"sub":"admin"}"#);
        parts[1] = &other;
        check(&parts.join("."), &set, &mut Checks::default(), Err(Refusal::BadSignature), MAX_CHECKS - 1);
        // Other keys know nothing of it.
        let others = KeySet::parse(&Signer::jwks(&[&stranger])).expect("a set");
        check(&token, &others, &mut Checks::default(), Err(Refusal::BadSignature), MAX_CHECKS - 1);
    }

    /// The least of many runs each, so that it does not matter what else the machine does. Printed with `--no-capture`.
    #[test]
    fn a_token_that_is_known_costs_a_fraction_of_one_that_is_not() {
        let signers: Vec<Signer> = (0..MAX_TRIED).map(|number| Signer::rs256(&number.to_string())).collect();
        let jwks = Signer::jwks(&signers.iter().collect::<Vec<_>>());
        let least = |token: &str, set: &dyn Fn() -> Option<KeySet>| {
            let known = KeySet::parse(&jwks).expect("a set");
            let runs = (0..100).map(|_| {
                let fresh = set();
                let compact = Compact::parse(token).expect("a token");
                let began = std::time::Instant::now();
                compact.verify(fresh.as_ref().unwrap_or(&known)).expect("signed");
                began.elapsed()
            });
            runs.min().expect("some")
        };
        let fresh = || KeySet::parse(&jwks).ok();
        let payload = r#"{"iss":"https://login.example","sub":"jason","aud":"orders","exp":4102444800}"#;
        let last = &signers[MAX_TRIED - 1];
        let (named, unnamed) = (last.sign(payload), last.sign_with(r#"{"alg":"RS256"}"#, payload));
        let [with, without, known] =
            [least(&named, &fresh), least(&unnamed, &fresh), least(&unnamed, &|| None)];
        eprintln!(
            "RS256: with its key's name {with:?}, without among {MAX_TRIED} {without:?}, known {known:?}"
        );
        assert!(known * 4 < without, "{known:?} and {without:?}");
    }

    #[test]
    fn no_other_spelling_of_a_token_is_taken() {
        let signer = Signer::es256("a");
        let set = KeySet::parse(&Signer::jwks(&[&signer])).expect("a set");
        let token = signer.sign(r#"{"iss":"i","sub":"jason"}"#);
        let taken = |token: &str| Compact::parse(token).and_then(|compact| compact.verify(&set)).is_ok();
        assert!(taken(&token));
        for at in 0..token.len() {
            for other in ['A', 'Q', '9', '-', '_', '.', '=', '%', ' '] {
                let mut changed = token.clone();
                changed.replace_range(at..=at, &other.to_string());
                assert!(changed == token || !taken(&changed), "{changed}");
            }
            let mut shorter = token.clone();
            shorter.remove(at);
            assert!(!taken(&shorter), "{shorter}");
        }
    }
}
