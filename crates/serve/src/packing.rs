//! Packed bodies over HTTP: `gzip`, and `deflate` in its zlib form.
//!
//! Relevant if you want to know which encodings a client may use, and how a small body that unpacks to a large one is
//! refused: the limit of a body holds for what it unpacks to, and unpacking stops there.
//!
//! Invariant: no more than the limit and one byte is ever unpacked.

use std::io::{Read, Write};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::error::ApiError;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Deflate,
}

impl Packing {
    /// The name in headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Gzip, Self::Deflate].into_iter().find(|packing| packing.name().eq_ignore_ascii_case(name))
    }

    /// The packing of a request's body.
    ///
    /// # Errors
    /// 415 for one that is not known here, or several at once.
    pub(crate) fn of_body(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(None) };
        let name = value.to_str().unwrap_or_default().trim();
        if name.is_empty() || name.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        Self::named(name).map(Some).ok_or_else(|| {
            let text = format!("Content-Encoding {value:?} is not supported: use gzip, deflate or none");
            ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
        })
    }

    /// The packing that a client accepts for an answer, gzip first.
    pub(crate) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let values: Vec<&str> = headers
            .get_all(header::ACCEPT_ENCODING)
            .iter()
            .filter_map(|value: &HeaderValue| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        let accepts = |packing: &Self| {
            values.iter().any(|value| {
                let mut parts = value.split(';').map(str::trim);
                let named = parts.next().and_then(Self::named) == Some(*packing);
                let refused = parts.any(|part| {
                    part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
                });
                named && !refused
            })
        };
        [Self::Gzip, Self::Deflate].into_iter().find(accepts)
    }

    /// The body that `packed` holds, at most `limit` bytes long.
    ///
    /// # Errors
    /// 413 for one that is longer, 400 for one that is damaged.
    pub(crate) fn unpack(self, packed: &[u8], limit: usize) -> Result<Vec<u8>, ApiError> {
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let mut body = Vec::new();
        let read = match self {
            Self::Gzip => MultiGzDecoder::new(packed).take(most).read_to_end(&mut body),
            Self::Deflate => ZlibDecoder::new(packed).take(most).read_to_end(&mut body),
        };
        read.map_err(|e| ApiError::bad(format!("the body is not {}: {e}", self.name())))?;
        if body.len() > limit {
            return Err(ApiError::too_large(limit));
        }
        Ok(body)
    }

    /// Packs an answer.
    ///
    /// # Errors
    /// 500, which memory alone could cause.
    pub(crate) fn pack(self, body: &[u8]) -> Result<Vec<u8>, ApiError> {
        let packed = match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
        };
        packed.map_err(|e| ApiError::internal(format!("the answer could not be packed: {e}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn bodies_come_back_and_the_limit_is_of_the_unpacked_bytes() {
        let body = b"abcabcabc".repeat(1000);
        for packing in [Packing::Gzip, Packing::Deflate] {
            let packed = packing.pack(&body).unwrap();
            assert!(packed.len() < body.len() / 10);
            assert_eq!(packing.unpack(&packed, body.len()).unwrap(), body);
            assert_eq!(packing.unpack(&packed, body.len() - 1).unwrap_err().status, 413);
            let cut = packing.unpack(&packed[..packed.len() / 2], body.len()).unwrap_err();
            assert_eq!(cut.status, 400);
            assert_eq!(packing.unpack(b"no such thing", 100).unwrap_err().status, 400);
        }
    }

    #[test]
    fn encodings_are_read_from_headers() {
        let of_body = |value| Packing::of_body(&headers(header::CONTENT_ENCODING, value));
        assert_eq!(of_body("GZip").unwrap(), Some(Packing::Gzip));
        assert_eq!(of_body("identity").unwrap(), None);
        assert_eq!(Packing::of_body(&HeaderMap::new()).unwrap(), None);
        for other in ["br", "gzip, gzip"] {
            assert_eq!(of_body(other).unwrap_err().status, 415);
        }
        let accepted = |value| Packing::accepted(&headers(header::ACCEPT_ENCODING, value));
        assert_eq!(accepted("deflate, gzip"), Some(Packing::Gzip));
        assert_eq!(accepted("gzip;q=0, deflate;q=0.5"), Some(Packing::Deflate));
        assert_eq!(accepted("br, *"), None);
        assert_eq!(Packing::accepted(&HeaderMap::new()), None);
    }
}
