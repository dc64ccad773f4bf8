//! An issuer of tokens: a key of its own, tokens that it signs, and a server for its keys.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use baremesh_tests::Host;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What tokens of stories are issued by.
pub const ISSUER: &str = "https://issuer.example";

/// A key that signs.
pub struct Issuer {
    id: String,
    key: Key,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    P256(Box<EcdsaKeyPair>),
}

/// A part of a token.
pub fn part(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds from now, as tokens have it.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("some time yet") + seconds
}

impl Issuer {
    /// A fresh RSA key.
    pub fn rsa(id: &str) -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
        Self { id: id.to_owned(), key: Key::Rsa(Box::new(key)) }
    }

    /// A fresh key on P-256.
    pub fn p256(id: &str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self { id: id.to_owned(), key: Key::P256(Box::new(key)) }
    }

    /// Its public key.
    pub fn jwk(&self) -> String {
        let id = &self.id;
        match &self.key {
            Key::Rsa(key) => {
                let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(key.public_key());
                format!(r#"{{"kty":"RSA","kid":"{id}","use":"sig","n":"{}","e":"{}"}}"#, part(&n), part(&e))
            }
            Key::P256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                format!(r#"{{"kty":"EC","crv":"P-256","kid":"{id}","x":"{}","y":"{}"}}"#, part(x), part(y))
            }
        }
    }

    /// The set with its key alone.
    pub fn jwks(&self) -> String {
        format!(r#"{{"keys":[{}]}}"#, self.jwk())
    }

    /// A token of the issuer with these further claims, which begin with a comma, good for an hour.
    pub fn token(&self, claims: &str) -> String {
        self.sign(&format!(r#"{{"iss":"{ISSUER}","exp":{}{claims}}}"#, seconds_from_now(3600)))
    }

    /// A token with this payload.
    pub fn sign(&self, payload: &str) -> String {
        let algorithm = if matches!(self.key, Key::Rsa(_)) { "RS256" } else { "ES256" };
        self.sign_with(&format!(r#"{{"alg":"{algorithm}","kid":"{}"}}"#, self.id), payload)
    }

    /// A token with this header, whatever it says.
    pub fn sign_with(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", part(header.as_bytes()), part(payload.as_bytes()));
        let random = SystemRandom::new();
        let signature = match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).expect("signed");
                signature
            }
            Key::P256(key) => key.sign(&random, message.as_bytes()).expect("signed").as_ref().to_vec(),
        };
        format!("{message}.{}", part(&signature))
    }
}

/// A server that answers every request with the same.
pub struct KeyServer {
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    is_down: Arc<AtomicBool>,
}

impl KeyServer {
    /// One at a port of every address of a host.
    #[track_caller]
    pub fn start(host: &Host, port: u16, answer: String) -> Self {
        let listener = host.listen((Ipv4Addr::UNSPECIFIED, port));
        let server =
            Self { answer: Arc::new(Mutex::new(answer)), asked: Arc::default(), is_down: Arc::default() };
        let (answer, asked, is_down) =
            (Arc::clone(&server.answer), Arc::clone(&server.asked), Arc::clone(&server.is_down));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                asked.fetch_add(1, Ordering::Relaxed);
                if is_down.load(Ordering::Relaxed) {
                    continue;
                }
                // All of it: what is not read when the socket closes resets the connection.
                let (mut head, mut part) = (Vec::new(), [0; 4096]);
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut part) {
                        Ok(read) if read > 0 => head.extend_from_slice(&part[..read]),
                        _ => break,
                    }
                }
                let answer = answer.lock().expect("no panic").clone();
                // A client that has enough closes before all is written.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        server
    }

    /// What it answers from now on.
    pub fn answers(&self, answer: String) {
        *self.answer.lock().expect("no panic") = answer;
    }

    /// From now on it closes every connection unheard.
    pub fn goes_down(&self) {
        self.is_down.store(true, Ordering::Relaxed);
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// An answer with a set of keys.
pub fn served(jwks: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{jwks}", jwks.len())
}

/// An answer that leads elsewhere.
pub fn redirected(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}
