//! Reads arrays from `.npy` and `.npz` files and writes `.npy` files.

use std::io::{Cursor, Read, Seek};
use std::path::Path;

use fcdcc::files::{Input, Output};
#[cfg(feature = "onnx")]
use fcdcc::model::Tensor;
use fcdcc::{Element, Error, Result};
use half::f16;
use ndarray::ArrayD;
use zip::ZipArchive;

use super::content::{self, Content, HEAD};
use super::npy::{self, Kind, Npy, Stored};
use fcdcc::memory;

/// Maximum bytes of an archive that comes through a pipe and must be buffered as a whole.
const MOST_PIPED: u64 = 4 << 30;

fn bad(name: &str, cause: String) -> Error {
    Error::File { path: name.to_owned(), cause, input: true }
}

/// A file and the array to read from it.
pub(crate) struct Source<'a> {
    input: Input,
    content: Content,
    /// The names to select from an archive of several arrays.
    wanted: &'a [&'a str],
}

impl<'a> Source<'a> {
    /// Opens `path`, `-` for standard input.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be opened.
    pub(crate) fn open(path: &Path, wanted: &'a [&'a str]) -> Result<Self> {
        let mut input = Input::open(path)?;
        let content = content::of(input.head(HEAD)?);
        Ok(Self { input, content, wanted })
    }

    /// A source with known content.
    #[cfg(feature = "onnx")]
    pub(crate) fn new(input: Input, content: Content, wanted: &'a [&'a str]) -> Self {
        Self { input, content, wanted }
    }

    /// Reads the header and passes the array to `take`, with a function that makes errors.
    fn read<T>(
        self,
        take: impl FnOnce(Npy<&mut dyn Read>, &dyn Fn(String) -> Error) -> Result<T>,
    ) -> Result<T> {
        let Self { mut input, content, wanted } = self;
        let name = input.name().to_owned();
        let fail = |cause: String| bad(&name, cause);
        match content {
            Content::Npy => {
                let length = input.length();
                take(Npy::open(&mut input as &mut dyn Read, length, &fail)?, &fail)
            }
            Content::Zip => {
                if let Some(file) = input.reopen()? {
                    return from_archive(std::io::BufReader::new(file), &name, wanted, take);
                }
                let most =
                    memory::available().map_or(MOST_PIPED, |available| available.bytes.min(MOST_PIPED));
                let bytes = input.into_bytes(most, "give the archive as a file")?;
                from_archive(Cursor::new(bytes), &name, wanted, take)
            }
            other => Err(fail(format!(
                "is not a .npy or .npz array but {}: save it with numpy.save or numpy.savez",
                other.describe()
            ))),
        }
    }
}

/// Reads one array of an archive.
fn from_archive<T>(
    archive: impl Read + Seek,
    name: &str,
    wanted: &[&str],
    take: impl FnOnce(Npy<&mut dyn Read>, &dyn Fn(String) -> Error) -> Result<T>,
) -> Result<T> {
    let fail = |cause: String| bad(name, cause);
    let damaged = |e: zip::result::ZipError| fail(format!("is a damaged zip archive ({e}): write it again"));
    let mut archive = ZipArchive::new(archive).map_err(damaged)?;
    let names: Vec<String> =
        archive.file_names().map(|name| name.map(Into::into)).collect::<Result<_, _>>().map_err(damaged)?;
    let arrays: Vec<&str> = names.iter().filter_map(|file| file.strip_suffix(".npy")).collect();
    let chosen = match arrays.as_slice() {
        [] => {
            let files = names.len();
            let torch = names.iter().any(|file| file.ends_with("data.pkl"));
            let what = if torch { "a checkpoint of PyTorch" } else { "a zip archive" };
            return Err(fail(format!(
                "is {what} of {files} files without a .npy array: save arrays with numpy.save or numpy.savez"
            )));
        }
        [only] => only,
        several => several.iter().find(|array| wanted.contains(*array)).ok_or_else(|| {
            let listed: Vec<&str> = several.iter().take(8).copied().collect();
            let more = if several.len() > listed.len() { ", ..." } else { "" };
            fail(format!(
                "holds {} arrays ({}{more}) and none called {}: save the one that is meant by itself",
                several.len(),
                listed.join(", "),
                wanted.join(" or ")
            ))
        })?,
    };
    let fail = |cause: String| bad(&format!("{name}/{chosen}"), cause);
    let mut entry = archive.by_name(&format!("{chosen}.npy")).map_err(damaged)?;
    // The archive's length is only compared with the header; nothing is allocated by it.
    let length = entry.size();
    take(Npy::open(&mut entry as &mut dyn Read, Some(length), &fail)?, &fail)
}

/// Reads an array of any element type, converted to `T`: floats are rounded, booleans become 0 and 1.
///
/// # Errors
/// [`Error::File`] naming both sides: not an array, an unsupported element type, a number of bytes other than the header
/// announces, or a number beyond the range of `T`.
pub(crate) fn read_array<T: Element>(path: &Path, wanted: &[&str]) -> Result<ArrayD<T>> {
    Source::open(path, wanted)?.read(|npy, bad| {
        macro_rules! of {
            ($size:literal, $value:expr) => {
                npy.decode::<T, $size>(bad, |bytes, index| {
                    let value: f64 = $value(bytes);
                    let converted = T::from_f64(value);
                    if converted.to_f64().is_infinite() && value.is_finite() {
                        return Err(format!(
                            "holds {value:e} at flat index {index}, more than {} can hold: use --precision f64",
                            T::DTYPE
                        ));
                    }
                    Ok(converted)
                })
            };
        }
        match npy.kind {
            Kind::F16 => of!(2, |b| f64::from(f16::from_le_bytes(b))),
            Kind::F32 => of!(4, |b| f64::from(f32::from_le_bytes(b))),
            Kind::F64 => of!(8, f64::from_le_bytes),
            Kind::I8 => of!(1, |b| f64::from(i8::from_le_bytes(b))),
            Kind::I16 => of!(2, |b| f64::from(i16::from_le_bytes(b))),
            Kind::I32 => of!(4, |b| f64::from(i32::from_le_bytes(b))),
            Kind::I64 => of!(8, |b| i64::from_le_bytes(b) as f64),
            Kind::U8 => of!(1, |b| f64::from(u8::from_le_bytes(b))),
            Kind::U16 => of!(2, |b| f64::from(u16::from_le_bytes(b))),
            Kind::U32 => of!(4, |b| f64::from(u32::from_le_bytes(b))),
            Kind::U64 => of!(8, |b| u64::from_le_bytes(b) as f64),
            Kind::Bool => of!(1, |[byte]: [u8; 1]| f64::from(u8::from(byte != 0))),
        }
    })
}

/// Reads an array of any element type.
///
/// # Errors
/// The errors of [`read_array`].
#[cfg(feature = "onnx")]
pub(crate) fn read_tensor(source: Source<'_>) -> Result<Tensor> {
    source.read(|npy, bad| {
        macro_rules! of {
            ($size:literal, $type:ty, $value:expr) => {
                npy.decode::<$type, $size>(bad, |bytes, _| Ok($value(bytes))).map(Tensor::from)
            };
        }
        match npy.kind {
            Kind::F16 => of!(2, f16, f16::from_le_bytes),
            Kind::F32 => of!(4, f32, f32::from_le_bytes),
            Kind::F64 => of!(8, f64, f64::from_le_bytes),
            Kind::I8 => of!(1, i8, i8::from_le_bytes),
            Kind::I16 => of!(2, i16, i16::from_le_bytes),
            Kind::I32 => of!(4, i32, i32::from_le_bytes),
            Kind::I64 => of!(8, i64, i64::from_le_bytes),
            Kind::U8 => of!(1, u8, u8::from_le_bytes),
            Kind::U16 => of!(2, u16, u16::from_le_bytes),
            Kind::U32 => of!(4, u32, u32::from_le_bytes),
            Kind::U64 => of!(8, u64, u64::from_le_bytes),
            Kind::Bool => of!(1, bool, |[byte]: [u8; 1]| byte != 0),
        }
    })
}

/// Writes any tensor as `.npy`; bf16, which numpy does not have, becomes f32.
#[cfg(feature = "onnx")]
pub(crate) fn write_tensor(output: Output, tensor: &Tensor) -> Result<()> {
    output.write(|out| match tensor {
        Tensor::F16(array) => npy::write(out, array),
        Tensor::BF16(array) => npy::write(out, &array.mapv(f32::from)),
        Tensor::F32(array) => npy::write(out, array),
        Tensor::F64(array) => npy::write(out, array),
        Tensor::I16(array) => npy::write(out, array),
        Tensor::I32(array) => npy::write(out, array),
        Tensor::I64(array) => npy::write(out, array),
        Tensor::I8(array) => npy::write(out, array),
        Tensor::U8(array) => npy::write(out, array),
        Tensor::U16(array) => npy::write(out, array),
        Tensor::U32(array) => npy::write(out, array),
        Tensor::U64(array) => npy::write(out, array),
        Tensor::Bool(array) => npy::write(out, array),
        other => {
            let cause = format!("{} arrays cannot be written as .npy", other.dtype());
            Err(std::io::Error::other(cause))
        }
    })
}

/// Writes a `.npy` array.
pub(crate) fn write_array<T: Stored>(output: Output, array: &ArrayD<T>) -> Result<()> {
    output.write(|out| npy::write(out, array))
}

/// Writes raw bytes.
pub(crate) fn write_bytes(output: Output, bytes: &[u8]) -> Result<()> {
    output.write(|out| out.write_all(bytes))
}

/// Writes a report as JSON.
pub(crate) fn write_report(output: Output, report: &impl serde::Serialize) -> Result<()> {
    output.write(|out| {
        serde_json::to_writer_pretty(&mut *out, report)?;
        writeln!(out)
    })
}
