//! Where a request comes from: its protocol, client and address, and the trace that it belongs to.
//!
//! Relevant if you want to follow a request through several programs: a header (or metadata) `traceparent` of the W3C names
//! its trace and the span that sent it. The access log holds the trace, and exported spans continue it.
//!
//! Invariant: a `traceparent` that is malformed is ignored, as the specification demands, and never refuses a request.

use std::fmt::{self, Write};
use std::net::SocketAddr;

use axum::extract::Request;

use crate::protocol::Protocol;

/// The header with the trace.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// The client's end of a connection; an extension of its requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Where a request comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) protocol: Protocol,
    pub(crate) client: Option<SocketAddr>,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) trace: Option<Trace>,
}

/// The span of another program that sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) id: [u8; 16],
    pub(crate) span: [u8; 8],
    pub(crate) sampled: bool,
}

impl Origin {
    /// The origin of a request over HTTP.
    pub(crate) fn http(request: &Request) -> Self {
        let methods = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
        let named = request.method().as_str();
        Self {
            protocol: Protocol::Http,
            client: request.extensions().get::<Peer>().map(|peer| peer.0),
            method: methods.into_iter().find(|method| *method == named).unwrap_or("OTHER"),
            path: request.uri().path().to_owned(),
            trace: request.headers().get(TRACEPARENT).and_then(|value| Trace::read(value.as_bytes())),
        }
    }

    /// The origin of a call of gRPC to this method.
    pub(crate) fn grpc(path: &str, client: Option<SocketAddr>, traceparent: Option<&[u8]>) -> Self {
        Self {
            protocol: Protocol::Grpc,
            client,
            method: "POST",
            path: path.to_owned(),
            trace: traceparent.and_then(Trace::read),
        }
    }
}

impl Trace {
    /// Reads `VERSION-TRACE-SPAN-FLAGS`. Versions after 00 may have further fields.
    fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.trim();
        let mut parts = text.split('-');
        let version = bytes::<1>(parts.next()?)?;
        let (id, span, flags) =
            (bytes::<16>(parts.next()?)?, bytes::<8>(parts.next()?)?, bytes::<1>(parts.next()?)?);
        let known = version != [0xff] && (version != [0] || parts.next().is_none());
        let named = id != [0; 16] && span != [0; 8];
        (known && named).then_some(Self { id, span, sampled: flags[0] & 1 == 1 })
    }
}

/// The bytes of lower-case hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(lower) {
        return None;
    }
    let mut all = [0; N];
    for (byte, at) in all.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(all)
}

/// The trace, in hexadecimal digits.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(32);
        for byte in self.id {
            write!(text, "{byte:02x}")?;
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read_and_malformed_ones_ignored() {
        let read = |text: &str| Trace::read(text.as_bytes());
        let whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = read(whole).unwrap();
        assert_eq!(trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((trace.span[0], trace.span[7], trace.sampled), (0xb7, 0x31, true));
        assert!(!read(&whole.replace("-01", "-00")).unwrap().sampled);
        // A later version with one more field.
        assert!(read(&format!("01{}-x", &whole[2..])).is_some());
        let upper = whole.to_uppercase();
        let zero = whole.replace("b7ad6b7169203331", "0000000000000000");
        let more = format!("{whole}-x");
        let invalid = format!("ff{}", &whole[2..]);
        for bad in ["", "00", &whole[..54], &upper, &zero, &more, &invalid, "00-ä-b-c"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(Trace::read(&[0xff, 0xfe]), None);
    }
}
