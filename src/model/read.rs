//! Reads the message of an ONNX file within limits.
//!
//! Relevant if you want to know which files are refused before they are decoded.
//!
//! Invariant: no more than the limit of the format is read, and memory is required before it is taken.

use std::io::{Read, Take};
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude::Framework;

use super::guard::{guarded, refused};
use super::round::{self, HalfType};
use super::{
    branch, deform, external, loops, numbers, prelu, resize, sequences, shift, transpose, upsample, whole,
    wire,
};
use crate::error::{Error, Result};
use crate::files::Input;
use crate::memory;

/// Maximum size of a model file, which is the limit of its format.
const MOST_FILE_BYTES: u64 = 1 << 31;

/// Checks the first byte and the length of a model file. Gives the length, if it is known before reading.
pub(super) fn admitted(name: &str, file: &mut Input) -> Result<Option<u64>> {
    // No message begins with a zero byte, and endless files such as /dev/zero often do.
    if file.head(1)?.first() == Some(&0) {
        return Err(refused(name, "is not an ONNX model: it begins with a zero byte"));
    }
    let length = file.length();
    if let Some(length) = length.filter(|length| *length > MOST_FILE_BYTES) {
        return Err(too_long(name, &format!("has {length} bytes")));
    }
    // The data are in memory twice for a while: as file contents, and as tensors.
    memory::require(&format!("reading {name}"), length.unwrap_or(0).saturating_mul(2))?;
    Ok(length)
}

/// tract's reader of ONNX files.
pub(super) fn framework() -> Onnx {
    // Value hints in the file may use symbolic sizes; here every size becomes a number.
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    onnx.provider = Arc::new(external::Resolver);
    onnx
}

/// Reads the message of a model file, and its size in bytes.
pub(super) fn message(
    name: &str,
    onnx: &Onnx,
    source: &mut dyn Read,
    length: Option<u64>,
) -> Result<(ModelProto, u64)> {
    let mut source = Source { bytes: source.take(MOST_FILE_BYTES + 1), length };
    let mut bytes = Vec::new();
    let read = source.read_to_end(&mut bytes);
    let size = bytes.len() as u64;
    if size > MOST_FILE_BYTES {
        return Err(too_long(name, "goes on"));
    }
    let damaged =
        |cause: &str| refused(name, &format!("is not an ONNX model, or is damaged ({size} bytes): {cause}"));
    read.map_err(|error| damaged(&error.to_string()))?;
    memory::require(&format!("decoding {name}"), wire::decoded_bytes(&bytes))?;
    let proto = guarded(name, || onnx.proto_model_for_read(&mut Whole(bytes)));
    Ok((proto.map_err(|error| damaged(&cause(&error)))?, size))
}

/// Reads a file of bounded length into memory of exactly that length, without over-allocation.
struct Source<'a> {
    bytes: Take<&'a mut dyn Read>,
    length: Option<u64>,
}

impl Source<'_> {
    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
        if let Some(length) = self.length.and_then(|length| usize::try_from(length).ok()) {
            buffer.try_reserve_exact(length)?;
        }
        self.bytes.read_to_end(buffer)
    }
}

/// Bytes that are passed on without a copy to a reader that wants all of them.
struct Whole(Vec<u8>);

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(self.0.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }

    fn read_to_end(&mut self, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
        let count = self.0.len();
        if buffer.is_empty() {
            *buffer = std::mem::take(&mut self.0);
        } else {
            buffer.append(&mut self.0);
        }
        Ok(count)
    }
}

fn too_long(name: &str, what: &str) -> Error {
    let cause = format!(
        "{what} where an ONNX file has at most {MOST_FILE_BYTES} bytes: keep its weights in files beside it (external data)"
    );
    refused(name, &cause)
}

pub(super) fn cause(error: &Error) -> String {
    match error {
        Error::Model { cause, .. } => cause.to_string(),
        other => other.to_string(),
    }
}

/// Adds the operators of this crate to those of tract.
pub(super) fn register(onnx: &mut Onnx) {
    onnx.op_register.insert(branch::NAME, branch::parse);
    onnx.op_register.insert(deform::SAMPLING, deform::parse);
    onnx.op_register.insert(loops::NAME, loops::parse);
    numbers::register(&mut onnx.op_register);
    onnx.op_register.insert(prelu::NAME, prelu::parse);
    onnx.op_register.insert(resize::NAME, resize::parse);
    onnx.op_register.insert(sequences::REVERSED, sequences::parse_reversed);
    onnx.op_register.insert(sequences::ENDED, sequences::parse_outputs);
    onnx.op_register.insert(sequences::RESTORED, sequences::parse_outputs);
    onnx.op_register.insert(sequences::WHOLE, sequences::parse_whole);
    onnx.op_register.insert(shift::NAME, shift::parse);
    onnx.op_register.insert(transpose::NAME, transpose::parse);
    onnx.op_register.insert(upsample::LINEAR, upsample::parse_linear);
    onnx.op_register.insert(whole::NAME, whole::parse);
    for half in [HalfType::F16, HalfType::Bf16] {
        onnx.op_register.insert(half.operator(), round::parse);
    }
}
