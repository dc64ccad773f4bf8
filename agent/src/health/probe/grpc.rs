//! `grpc.health.v1.Health/Check` (grpc.io, "GRPC Health Checking Protocol"), in plaintext over HTTP/2. Its two messages
//! have one field each, so that they are written and read here.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use baremesh_model::grpc::GrpcStatus;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Method, Request, StatusCode, Version, header};
use tokio::net::TcpStream;

use super::http::closed;
use super::{MAX_HEAD, USER_AGENT};

/// Most bytes of an answer's message: one number, and what later versions may add.
const MAX_MESSAGE: usize = 4096;
/// The bytes before a message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;
/// What `HealthCheckResponse.ServingStatus` has names for.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: u64 = 1;

/// Asks about `service`.
pub(super) async fn check(
    socket: TcpStream,
    at: SocketAddr,
    service: &str,
    limit: Duration,
) -> Result<(), String> {
    let shaken =
        h2::client::Builder::new().max_header_list_size(MAX_HEAD as u32).handshake::<_, Bytes>(socket).await;
    let (sender, connection) = shaken.map_err(|error| format!("HTTP/2 with {at}: {error}"))?;
    let asking = async {
        let mut sender = sender.ready().await.map_err(io::Error::other)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{at}/grpc.health.v1.Health/Check"))
            .version(Version::HTTP_2)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, USER_AGENT)
            .header("grpc-timeout", format!("{}m", limit.as_millis()))
            .body(())
            .map_err(io::Error::other)?;
        let (answer, mut body) = sender.send_request(request, false).map_err(io::Error::other)?;
        body.send_data(message(service), true).map_err(io::Error::other)?;
        let answer = answer.await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(judge(answer).await)
    };
    tokio::select! {
        biased;
        judged = asking => judged.unwrap_or_else(|error| Err(format!("asking {at}: {error}"))),
        ended = connection => Err(format!("asking {at}: {}", ended.err().map_or_else(closed, io::Error::other))),
    }
}

/// `HealthCheckRequest`, with its prefix.
fn message(service: &str) -> Bytes {
    let mut field = BytesMut::new();
    if !service.is_empty() {
        // Field 1, length-delimited.
        field.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            field.put_u8((length as u8 & 0x7f) | 0x80);
            length >>= 7;
        }
        field.put_u8(length as u8);
        field.put_slice(service.as_bytes());
    }
    let mut message = BytesMut::with_capacity(PREFIX + field.len());
    message.put_u8(0);
    message.put_u32(u32::try_from(field.len()).unwrap_or(u32::MAX));
    message.put_slice(&field);
    message.freeze()
}

async fn judge(answer: http::Response<RecvStream>) -> Result<(), String> {
    let (head, mut body) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Err(format!("it answered {}: is a gRPC server there?", head.status));
    }
    // An error has its status in the head, and nothing after it.
    status(&head.headers, "the server")?;
    let mut read = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| format!("the answer broke off: {error}"))?;
        if read.len() + data.len() > PREFIX + MAX_MESSAGE {
            return Err(format!("the answer is longer than {MAX_MESSAGE} bytes"));
        }
        // The stream's window is larger than what is read at most.
        read.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.map_err(|error| format!("the answer broke off: {error}"))?;
    let trailers = trailers.ok_or("the answer ended without a status")?;
    if !status(&trailers, "the server")? {
        return Err("the answer ended without a status".to_owned());
    }
    match serving_status(read.freeze()) {
        Some(SERVING) => Ok(()),
        Some(other) => {
            let name = usize::try_from(other).ok().and_then(|index| STATUSES.get(index));
            Err(format!("it says {}", name.map_or_else(|| other.to_string(), ToString::to_string)))
        }
        None => Err("the answer is no HealthCheckResponse".to_owned()),
    }
}

/// Whether there is a status; one that is no success is the error.
fn status(headers: &HeaderMap, who: &str) -> Result<bool, String> {
    let Some(value) = headers.get("grpc-status") else { return Ok(false) };
    let code = value.to_str().ok().and_then(|text| text.parse::<u8>().ok());
    match code {
        Some(0) => Ok(true),
        Some(5) => Err("the server does not know this service (NOT_FOUND)".to_owned()),
        Some(12) => {
            Err("the server has no health service (UNIMPLEMENTED): add grpc.health.v1 to it".to_owned())
        }
        code => {
            let name = code.and_then(GrpcStatus::new).map_or("no status of gRPC's", GrpcStatus::name);
            Err(format!("{who} answered {name}"))
        }
    }
}

/// `HealthCheckResponse.status`, 0 where it is not set. `None` is no such message.
fn serving_status(mut read: Bytes) -> Option<u64> {
    let (compressed, length) = (read.try_get_u8().ok()?, read.try_get_u32().ok()?);
    if compressed != 0 || usize::try_from(length).ok()? != read.len() {
        return None;
    }
    let mut status = 0;
    while read.has_remaining() {
        let tag = varint(&mut read)?;
        let value = match tag & 7 {
            0 => varint(&mut read)?,
            1 => read.try_get_u64_le().ok()?,
            2 => {
                let length = usize::try_from(varint(&mut read)?).ok()?;
                if length > read.len() {
                    return None;
                }
                read.advance(length);
                0
            }
            5 => u64::from(read.try_get_u32_le().ok()?),
            _ => return None,
        };
        // Field 1, a number. The last one counts.
        if tag == 0x08 {
            status = value;
        }
    }
    Some(status)
}

fn varint(read: &mut Bytes) -> Option<u64> {
    let mut number = 0;
    for shift in (0..70).step_by(7) {
        let byte = read.try_get_u8().ok()?;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        number |= bits.checked_shl(shift).filter(|_| shift < 63 || bits <= 1)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a program answers is read or refused.
        #[test]
        fn garbage_is_no_answer_and_no_panic(body in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut message = vec![0, 0, 0, 0, u8::try_from(body.len()).expect("short")];
            message.extend_from_slice(&body);
            let read = serving_status(message.into());
            prop_assert!(body.is_empty() || body[0] & 7 <= 5 || read.is_none());
            let _ = serving_status(body.into());
        }
    }

    #[test]
    fn requests_are_what_protobuf_makes_of_them() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("a.B")[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        let long = message(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 0x01, 0x2f, 0x0a, 0xac, 0x02]);
        assert_eq!(long.len(), 308);
    }

    #[test]
    fn answers_are_read_as_protobuf_has_them() {
        let check = |body: &[u8], expected: Option<u64>| {
            let mut message = vec![0, 0, 0, 0, u8::try_from(body.len()).expect("short")];
            message.extend_from_slice(body);
            assert_eq!(serving_status(message.into()), expected, "{body:?}");
        };
        check(&[], Some(0));
        check(&[0x08, 1], Some(1));
        check(&[0x08, 2], Some(2));
        check(&[0x08, 2, 0x08, 1], Some(1));
        // Fields of later versions.
        check(&[0x12, 2, b'h', b'i', 0x08, 1, 0x18, 0xff, 0x7f, 0x25, 0, 0, 0, 0], Some(1));
        check(&[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1], Some(1 << 63));
        for bad in [
            &[0x08][..],
            &[0x08, 0x80],
            &[0x12, 9, b'h'],
            &[0x0b],
            &[0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2],
            &[0xff; 12],
        ] {
            check(bad, None);
        }
        for bad in [&b""[..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1], &[0, 0, 0, 0, 0, 0]] {
            assert_eq!(serving_status(Bytes::copy_from_slice(bad)), None, "{bad:?}");
        }
    }
}
