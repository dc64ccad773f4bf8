//! What the JSON of a token says. Each member of an object stands in it once: of two readers of one that stands there
//! twice, one may take the first and one the last.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use baremesh_model::token::{Claim, Token};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::jws::payload_members;
use super::{CLOCK_LEEWAY, Refusal};

/// The deepest nesting that is read.
const MAX_DEPTH: usize = 16;

/// The members of an object.
pub(super) type Members = BTreeMap<String, Claim>;

/// The members of a text that is one JSON object and nothing else.
pub(super) fn members(text: &[u8]) -> Option<Members> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Value { depth: 0 }.deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    match value {
        Claim::Map(members) => Some(members),
        _ => None,
    }
}

/// Reads a payload as a token's, whose signature is somebody else's to look at.
pub fn token(payload: &[u8]) -> Result<Token, Refusal> {
    let claims = payload_members(payload)?;
    let text = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(Claim::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Refusal::BadPayload),
    };
    let audiences = match claims.get("aud") {
        None => Vec::new(),
        Some(Claim::Text(one)) => vec![one.clone()],
        Some(Claim::List(list)) => {
            let texts = list.iter().map(|one| match one {
                Claim::Text(text) => Ok(text.clone()),
                _ => Err(Refusal::BadPayload),
            });
            texts.collect::<Result<_, _>>()?
        }
        Some(_) => return Err(Refusal::BadPayload),
    };
    text("jti")?;
    seconds(&claims, "iat")?;
    let (issuer, subject) = (text("iss")?.unwrap_or_default(), text("sub")?.unwrap_or_default());
    // Of another type it is no presenter, and no fault: only OpenID's tokens have it.
    let presenter = text("azp").unwrap_or_default();
    Ok(Token { issuer, subject, audiences, presenter, claims })
}

/// Whether a token is one of this moment (RFC 7519, sections 4.1.4 and 4.1.5). One that says nothing is, as in Envoy.
pub fn is_of_now(token: &Token, now: SystemTime) -> Result<(), Refusal> {
    let leeway = CLOCK_LEEWAY.as_secs_f64();
    let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
    if seconds(&token.claims, "nbf")?.is_some_and(|from| now + leeway < from) {
        return Err(Refusal::NotYetValid);
    }
    if seconds(&token.claims, "exp")?.is_some_and(|until| now >= until + leeway) {
        return Err(Refusal::Expired);
    }
    Ok(())
}

/// A NumericDate: a number that is not negative. A text of digits, or `null`, is none.
fn seconds(claims: &Members, name: &str) -> Result<Option<f64>, Refusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(Claim::Number(number)) => match number.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(Some(seconds)),
            _ => Err(Refusal::BadPayload),
        },
        Some(_) => Err(Refusal::BadPayload),
    }
}

/// Has claims that are lists separated by spaces be lists.
pub(super) fn split_at_spaces<'a>(token: &mut Token, names: impl Iterator<Item = &'a str>) {
    for name in names {
        if let Some(claim) = token.claims.get_mut(name)
            && let Claim::Text(text) = claim
        {
            *claim =
                Claim::List(text.split_ascii_whitespace().map(|one| Claim::Text(one.to_owned())).collect());
        }
    }
}

/// A claim as a field's value: texts as they are, numbers and truth values as JSON has them; nothing else is written.
pub(crate) fn field_value(claim: &Claim) -> Option<String> {
    match claim {
        Claim::Text(text) | Claim::Number(text) => Some(text.clone()),
        Claim::Bool(value) => Some(value.to_string()),
        Claim::Null | Claim::List(_) | Claim::Map(_) => None,
    }
}

/// One value.
#[derive(Clone, Copy)]
struct Value {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Claim;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Claim, D::Error> {
        if self.depth > MAX_DEPTH {
            return Err(D::Error::custom("nested too deep"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Claim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Claim, E> {
        Ok(Claim::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Claim, E> {
        Ok(Claim::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Claim, E> {
        Ok(Claim::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Claim, E> {
        Ok(Claim::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Claim, E> {
        Ok(Claim::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Claim, E> {
        Ok(Claim::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Claim, A::Error> {
        let (mut list, within) = (Vec::new(), Self { depth: self.depth + 1 });
        while let Some(item) = items.next_element_seed(within)? {
            list.push(item);
        }
        Ok(Claim::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Claim, A::Error> {
        let (mut map, within) = (BTreeMap::new(), Self { depth: self.depth + 1 });
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(within)?;
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a member stands there twice"));
            }
        }
        Ok(Claim::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_of_the_wrong_type_are_no_token() {
        for good in [
            "{}",
            r#"{"iss":"i","sub":"s","aud":"a","exp":1,"nbf":1.5,"iat":0,"jti":"j","azp":"p"}"#,
            r#"{"aud":["a","b"],"azp":7,"x":{"y":[null,true,-1,1e3]}}"#,
        ] {
            assert!(token(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in [
            "",
            "7",
            "[]",
            "null",
            "{",
            "{}x",
            r#"{"iss":7}"#,
            r#"{"iss":null}"#,
            r#"{"sub":["s"]}"#,
            r#"{"aud":7}"#,
            r#"{"aud":[7]}"#,
            r#"{"aud":{"a":"b"}}"#,
            r#"{"jti":7}"#,
            r#"{"iat":"1"}"#,
            r#"{"sub":"a","sub":"b"}"#,
            r#"{"x":{"a":1,"a":2}}"#,
            "{\"sub\":\"\\ud800\"}",
        ] {
            assert_eq!(token(bad.as_bytes()).map(|_| ()), Err(Refusal::BadPayload), "{bad}");
        }
        assert!(token(b"{\"sub\":\"\xff\"}").is_err(), "not UTF-8");
        let deep = |depth: usize| format!("{{\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(token(deep(MAX_DEPTH).as_bytes()).is_ok());
        assert!(token(deep(MAX_DEPTH + 1).as_bytes()).is_err());
        assert!(token(deep(100_000).as_bytes()).is_err());
    }

    #[test]
    fn a_token_has_its_time_and_clocks_may_be_off_by_a_minute() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let check = |payload: &str, expected| {
            let found = token(payload.as_bytes()).and_then(|token| is_of_now(&token, now));
            assert_eq!(found, expected, "{payload}");
        };
        check("{}", Ok(()));
        check(r#"{"exp":1000001,"nbf":1000000}"#, Ok(()));
        check(r#"{"exp":999941}"#, Ok(()));
        check(r#"{"exp":999940}"#, Err(Refusal::Expired));
        check(r#"{"exp":0}"#, Err(Refusal::Expired));
        check(r#"{"nbf":1000060}"#, Ok(()));
        check(r#"{"nbf":1000061}"#, Err(Refusal::NotYetValid));
        for bad in ["\"2000000\"", "null", "true", "-1", "[2000000]", "{}"] {
            check(&format!(r#"{{"exp":{bad}}}"#), Err(Refusal::BadPayload));
            check(&format!(r#"{{"nbf":{bad}}}"#), Err(Refusal::BadPayload));
        }
    }

    #[test]
    fn scopes_are_lists_and_fields_take_what_is_one_value() {
        let mut read = token(br#"{"scope":"a  b","other":"a b","n":1}"#).expect("a token");
        split_at_spaces(&mut read, ["scope", "n", "absent"].into_iter());
        assert!(read.claims["scope"].any_text(|text| text == "b"));
        assert!(read.claims["other"].any_text(|text| text == "a b"));
        let values =
            |text: &str| token(text.as_bytes()).expect("a token").claims.get("x").and_then(field_value);
        assert_eq!(values(r#"{"x":"a b"}"#).as_deref(), Some("a b"));
        assert_eq!(values(r#"{"x":7}"#).as_deref(), Some("7"));
        assert_eq!(values(r#"{"x":false}"#).as_deref(), Some("false"));
        assert_eq!(values(r#"{"x":["a"]}"#), None);
        assert_eq!(values(r#"{"x":null}"#), None);
    }
}
