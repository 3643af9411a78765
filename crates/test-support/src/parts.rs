//! A format of files of parts of models, with a compiler, for tests without ONNX.
//!
//! The part has two inputs x and y of the same length, and the outputs a x + b and x + y.

use std::sync::Arc;
use std::time::Duration;

use fcdcc::array::{DType, Values};
use fcdcc::worker::{CompiledPart, PartArray, PartCompiler, PartFile, PartSignature};
use fcdcc::{CancelToken, Error, Result};

/// What a file says.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    pub a: f32,
    pub b: f32,
    /// Length of each input and output.
    pub elems: usize,
    /// How long it takes.
    pub millis: u64,
}

impl Affine {
    pub fn file(&self) -> PartFile {
        self.file_with(0)
    }

    /// A file with this number of bytes that mean nothing.
    pub fn file_with(&self, padding: usize) -> PartFile {
        let Self { a, b, elems, millis } = self;
        let mut bytes = format!("affine {a} {b} {elems} {millis}\n").into_bytes();
        bytes.extend((0..padding).map(|i| u8::try_from(i * i % 251).unwrap()));
        PartFile { memory_bytes: bytes.len() as u64 + 8 * *elems as u64, bytes: bytes.into() }
    }

    pub fn inputs(&self, seed: u64) -> Arc<[Values]> {
        let values = |seed| Values::F32(crate::normal(self.elems, seed));
        [values(seed), values(seed + 1000)].into()
    }

    pub fn outputs(&self, inputs: &[Values]) -> Vec<Values> {
        let [Values::F32(x), Values::F32(y)] = inputs else { panic!("two arrays of f32") };
        let first = x.iter().map(|x| self.a * x + self.b).collect();
        vec![Values::F32(first), Values::F32(x.iter().zip(y).map(|(x, y)| x + y).collect())]
    }
}

pub struct AffineCompiler;

/// The compiler as workers take it.
pub fn compiler() -> Arc<dyn PartCompiler> {
    Arc::new(AffineCompiler)
}

struct Compiled {
    what: Affine,
    signature: PartSignature,
    memory_bytes: u64,
}

impl PartCompiler for AffineCompiler {
    fn compile(&self, file: &PartFile, _: usize) -> Result<Box<dyn CompiledPart>> {
        let bad = |cause: &str| Error::Model { model: "part".to_owned(), cause: cause.into() };
        let line = file.bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = std::str::from_utf8(line).map_err(|_| bad("no text"))?;
        let words: Vec<&str> = line.split(' ').collect();
        let ["affine", a, b, elems, millis] = words[..] else { return Err(bad("no affine function")) };
        let what = (|| {
            Some(Affine {
                a: a.parse().ok()?,
                b: b.parse().ok()?,
                elems: elems.parse().ok()?,
                millis: millis.parse().ok()?,
            })
        })();
        let what = what.ok_or_else(|| bad("numbers that are none"))?;
        let array = || PartArray { dtype: DType::F32, shape: vec![1, what.elems] };
        let signature = PartSignature { inputs: vec![array(), array()], outputs: vec![array(), array()] };
        Ok(Box::new(Compiled { what, signature, memory_bytes: file.memory_bytes }))
    }
}

impl CompiledPart for Compiled {
    fn signature(&self) -> &PartSignature {
        &self.signature
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn run(&mut self, inputs: &[Values], cancel: &CancelToken) -> Result<Vec<Values>> {
        if cancel.sleep(Duration::from_millis(self.what.millis)) {
            return Err(Error::Cancelled);
        }
        Ok(self.what.outputs(inputs))
    }
}
