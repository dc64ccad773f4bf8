//! Issuers of tests: keys that sign, and tokens that they signed.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// One key of an issuer.
pub(crate) struct Signer {
    id: String,
    pair: Pair,
}

enum Pair {
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// A token of these parts, whoever signed it.
pub(crate) fn token_of(header: &str, payload: &str, signature: &[u8]) -> String {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}.{}", part(header.as_bytes()), part(payload.as_bytes()), part(signature))
}

impl Signer {
    /// A fresh key for ES256.
    pub(crate) fn es256(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self { id: id.to_owned(), pair: Pair::Es256(pair) }
    }

    /// A fresh key for RS256.
    pub(crate) fn rs256(id: &str) -> Self {
        Self { id: id.to_owned(), pair: Pair::Rs256(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")) }
    }

    /// A fresh key for EdDSA.
    pub(crate) fn eddsa(id: &str) -> Self {
        Self { id: id.to_owned(), pair: Pair::EdDsa(Ed25519KeyPair::generate().expect("a key")) }
    }

    fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Es256(_) => "ES256",
            Pair::Rs256(_) => "RS256",
            Pair::EdDsa(_) => "EdDSA",
        }
    }

    /// The coordinates of its point, for keys on P-256.
    pub(crate) fn point(&self) -> (String, String) {
        let Pair::Es256(pair) = &self.pair else { panic!("another kind of key") };
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y))
    }

    /// Its public key as a JWK.
    pub(crate) fn jwk(&self) -> String {
        let id = &self.id;
        match &self.pair {
            Pair::Es256(_) => {
                let (x, y) = self.point();
                format!(r#"{{"kty":"EC","crv":"P-256","kid":"{id}","x":"{x}","y":"{y}"}}"#)
            }
            Pair::Rs256(pair) => {
                let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                let (n, e) = (URL_SAFE_NO_PAD.encode(n), URL_SAFE_NO_PAD.encode(e));
                format!(r#"{{"kty":"RSA","kid":"{id}","n":"{n}","e":"{e}"}}"#)
            }
            Pair::EdDsa(pair) => {
                let x = URL_SAFE_NO_PAD.encode(pair.public_key());
                format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{id}","x":"{x}"}}"#)
            }
        }
    }

    /// The JWK set of these keys.
    pub(crate) fn jwks(all: &[&Self]) -> String {
        let keys: Vec<String> = all.iter().map(|signer| signer.jwk()).collect();
        format!(r#"{{"keys":[{}]}}"#, keys.join(","))
    }

    /// A token with this payload.
    pub(crate) fn sign(&self, payload: &str) -> String {
        let header = format!(r#"{{"alg":"{}","kid":"{}"}}"#, self.algorithm(), self.id);
        self.sign_with(&header, payload)
    }

    /// A token with this header, whatever it says.
    pub(crate) fn sign_with(&self, header: &str, payload: &str) -> String {
        let unsigned = token_of(header, payload, b"");
        let message = unsigned.trim_end_matches('.').as_bytes();
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Es256(pair) => pair.sign(&random, message).expect("signed").as_ref().to_vec(),
            Pair::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::Rs256(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).expect("signed");
                signature
            }
        };
        token_of(header, payload, &signature)
    }
}

/// A server on loopback that answers each request by its path, with all bytes of an answer.
pub(crate) async fn serve(
    answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = std::sync::Arc::new(answer);
    let serving = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = std::sync::Arc::clone(&answer);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let line = String::from_utf8_lossy(&head).into_owned();
                let path = line.split(' ').nth(1).unwrap_or_default();
                // A client that has enough closes before all is written.
                let _ = socket.write_all(&answer(path)).await;
            });
        }
    });
    (address, serving)
}

/// An answer of a server.
pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
