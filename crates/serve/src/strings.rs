//! BYTES tensors: elements of any length, such as encoded pictures and the labels of classes.
//!
//! Relevant if you want to know how such elements travel. As bytes each has its length before it, 4 bytes little-endian. In
//! JSON an element of a request is base64, since pictures are not text; those of an answer are text.
//!
//! Invariant: a [`Strings`] holds as many elements as its shape announces.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::datatype::{Numbers, elements};
use crate::error::ApiError;

/// The name of the datatype.
pub(crate) const BYTES: &str = "BYTES";
/// Most elements of a tensor: an empty one takes fewer bytes on the wire than in memory.
pub(crate) const MOST: usize = 4096;
/// Bytes of a length.
const LENGTH: usize = 4;

/// A tensor of strings of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strings {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<Bytes>,
}

impl Strings {
    /// A tensor of a request.
    ///
    /// # Errors
    /// 400 where the shape announces another number of elements.
    pub(crate) fn new(name: &str, shape: &[usize], values: Vec<Bytes>) -> Result<Self, ApiError> {
        let (needed, got) = (elements(name, shape)?, values.len());
        if got > MOST {
            return Err(too_many(name));
        }
        if got != needed {
            return Err(ApiError::bad(format!(
                "input {name} has {got} elements where its shape {shape:?} needs {needed}: send exactly its elements"
            )));
        }
        Ok(Self { shape: shape.to_vec(), values })
    }

    /// A tensor whose elements follow one another, each after its length.
    ///
    /// # Errors
    /// 400 where a length goes beyond the end, or the shape announces another number of elements.
    pub(crate) fn from_bytes(name: &str, shape: &[usize], mut bytes: Bytes) -> Result<Self, ApiError> {
        let mut values = Vec::new();
        while !bytes.is_empty() {
            let Some((length, _)) = bytes.split_first_chunk::<LENGTH>() else {
                let left = bytes.len();
                let text =
                    format!("input {name} ends with {left} bytes where a length of {LENGTH} was expected");
                return Err(ApiError::bad(text));
            };
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let left = bytes.len() - LENGTH;
            if length > left {
                return Err(ApiError::bad(format!(
                    "input {name} has an element of {length} bytes where {left} bytes are left"
                )));
            }
            if values.len() == MOST {
                return Err(too_many(name));
            }
            let _ = bytes.split_to(LENGTH);
            values.push(bytes.split_to(length));
        }
        Self::new(name, shape, values)
    }

    /// A tensor whose elements are base64 in JSON.
    ///
    /// # Errors
    /// 400 where they are not, or the shape announces another number of elements.
    pub(crate) fn from_json(name: &str, shape: &[usize], data: Numbers) -> Result<Self, ApiError> {
        let Numbers::Texts(texts) = data else {
            return Err(ApiError::bad(format!("input {name} has no strings where {BYTES} was announced")));
        };
        let decode = |text: &String| {
            STANDARD.decode(text).map(Bytes::from).map_err(|e| {
                ApiError::bad(format!(
                    "input {name} has a string that is not base64 ({e}): encode pictures as base64, or send them \
                     with binary_data_size"
                ))
            })
        };
        Self::new(name, shape, texts.iter().map(decode).collect::<Result<_, _>>()?)
    }
}

fn too_many(name: &str) -> ApiError {
    ApiError::bad(format!(
        "input {name} has more than {MOST} strings, the most of one tensor: send fewer at once"
    ))
}

/// Appends texts as the elements of a BYTES tensor.
pub(crate) fn write_texts(texts: &[String], to: &mut Vec<u8>) {
    for text in texts {
        // Labels are lines of a file that was read within its limit.
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        to.extend(length.to_le_bytes());
        to.extend(&text.as_bytes()[..length as usize]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn elements_come_after_their_lengths_and_as_base64() {
        let mut bytes = Vec::new();
        write_texts(&["ab".to_owned(), String::new(), "c".to_owned()], &mut bytes);
        assert_eq!(bytes, b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c");
        let read = Strings::from_bytes("x", &[3, 1], Bytes::from(bytes.clone())).unwrap();
        assert_eq!((read.shape, read.values), (vec![3, 1], vec!["ab".into(), "".into(), "c".into()]));
        let json = Numbers::Texts(vec!["YWI=".to_owned()]);
        assert_eq!(Strings::from_json("x", &[1], json).unwrap().values, ["ab"]);
        let rows = [
            (
                Strings::from_bytes("x", &[2], Bytes::from(bytes.clone())),
                "3 elements where its shape [2] needs 2",
            ),
            (
                Strings::from_bytes("x", &[1], Bytes::from(bytes[..5].to_vec())),
                "2 bytes where 1 bytes are left",
            ),
            (Strings::from_bytes("x", &[1], Bytes::from(bytes[..3].to_vec())), "ends with 3 bytes"),
            (Strings::from_bytes("x", &[1], Bytes::from_static(&[0xff; 9])), "4294967295 bytes where 5"),
            (Strings::from_json("x", &[1], Numbers::Texts(vec!["?".to_owned()])), "not base64"),
            (Strings::from_json("x", &[1], Numbers::Ints(vec![1])), "no strings"),
            (Strings::from_bytes("x", &[MOST + 1], Bytes::from(vec![0; 4 * MOST + 4])), "more than 4096"),
            (Strings::new("x", &[MOST + 1], vec![Bytes::new(); MOST + 1]), "more than 4096"),
        ];
        for (read, part) in rows {
            let error = read.unwrap_err().message;
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
