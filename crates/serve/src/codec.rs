//! The codec of gRPC messages: protobuf, with a limit on how many parts one has.
//!
//! Relevant if you want to know why a small message cannot take a lot of memory. An empty part takes two bytes on the wire
//! and a hundred times that in memory; so the parts are counted before they are decoded.
//!
//! Invariant: a message with more than [`MOST_PARTS`] parts is never decoded.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec as TonicCodec, DecodeBuf, Decoder as TonicDecoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Most parts of a message: inputs, outputs, parameters, strings.
const MOST_PARTS: usize = 16_384;
/// The field of messages that hold parts themselves: `ModelInferRequest.inputs`, and `contents` within one.
const HOLDS_PARTS: u64 = 5;
/// How deep parts are counted: the message, its inputs, their contents.
const DEPTH: usize = 3;

/// Encodes `T` and decodes `U`.
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> TonicCodec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Decodes messages of few enough parts.
pub(crate) struct Decoder<U>(ProstDecoder<U>);

impl<U: Message + Default> TonicDecoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // One message, which lies in one piece.
        if buffer.chunk().len() != buffer.remaining() {
            return Err(Status::internal("a message in pieces: a defect, please report it"));
        }
        let mut left = MOST_PARTS;
        if !count(buffer.chunk(), DEPTH, &mut left) {
            return Err(Status::invalid_argument(format!(
                "the message has more than {MOST_PARTS} inputs, outputs, parameters and strings: send fewer at once"
            )));
        }
        self.0.decode(buffer)
    }
}

/// Takes the parts of `message` off `left`; false where there are more. What is no protobuf is left to the decoder, which
/// refuses it at the same place.
fn count(message: &[u8], depth: usize, left: &mut usize) -> bool {
    let mut rest = message;
    while let Some(tag) = varint(&mut rest) {
        let skipped = match tag & 7 {
            0 => varint(&mut rest).is_some(),
            1 => skip(&mut rest, 8).is_some(),
            5 => skip(&mut rest, 4).is_some(),
            2 => {
                let length = varint(&mut rest).and_then(|length| usize::try_from(length).ok());
                let part = length.and_then(|length| skip(&mut rest, length));
                let Some(part) = part else { return true };
                if *left == 0 {
                    return false;
                }
                *left -= 1;
                if tag >> 3 == HOLDS_PARTS && depth > 1 && !count(part, depth - 1, left) {
                    return false;
                }
                true
            }
            // Groups, which the messages here do not have.
            _ => return true,
        };
        if !skipped {
            return true;
        }
    }
    true
}

fn skip<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (part, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(part)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::pb::model_infer_request::InferInputTensor;
    use crate::grpc::pb::{InferTensorContents, ModelInferRequest};

    fn parts(message: &[u8]) -> Option<usize> {
        let mut left = MOST_PARTS;
        count(message, DEPTH, &mut left).then(|| MOST_PARTS - left)
    }

    #[test]
    fn parts_are_counted_where_they_take_memory() {
        let contents = |count| InferTensorContents {
            bytes_contents: vec![bytes::Bytes::new(); count],
            ..InferTensorContents::default()
        };
        let input = |count| InferInputTensor {
            name: "x".to_owned(),
            shape: vec![1, 2, 3],
            contents: Some(contents(count)),
            ..InferInputTensor::default()
        };
        let message = |inputs, strings| ModelInferRequest {
            model_name: "m".to_owned(),
            inputs: vec![input(strings); inputs],
            raw_input_contents: vec![bytes::Bytes::from(vec![0xff; 100]); 2],
            ..ModelInferRequest::default()
        };
        // The name, two raw contents, and two inputs with a name, a shape, contents and three strings each.
        assert_eq!(parts(&message(2, 3).encode_to_vec()), Some(3 + 2 * (4 + 3)));
        assert_eq!(parts(&message(1, MOST_PARTS).encode_to_vec()), None);
        assert_eq!(parts(&[0x2a, 0].repeat(MOST_PARTS)), Some(MOST_PARTS));
        assert_eq!(parts(&[0x2a, 0].repeat(MOST_PARTS + 1)), None);
        // Damaged ones end the count.
        for damaged in [&[0xff; 20][..], &[0x2a, 9, 0], &[0x2a], &[0x0b], &[0x09, 0]] {
            assert_eq!(parts(damaged), Some(0), "{damaged:?}");
        }
    }
}
