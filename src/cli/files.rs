//! Arrays and reports on disk. Output appears complete or not at all.

use std::io::{BufWriter, Write};
use std::path::Path;

#[cfg(feature = "onnx")]
use fcdcc::model::Tensor;
use fcdcc::{Element, Error, Result};
use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use ndarray_npy::WriteNpyExt;
use ndarray_npy::npy::header::{Header, Layout};

fn bad(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::File { path: path.display().to_string(), cause: cause.to_string(), input: true }
}

/// A `.npy` file taken apart: element type, shape and the bytes of the data, as many as the shape needs.
struct Npy {
    /// As numpy writes it, such as `<f4`.
    descriptor: String,
    shape: Vec<usize>,
    layout: Layout,
    data: Vec<u8>,
}

impl Npy {
    /// Reads a file whose element type must be one of `known`, (descriptor, bytes).
    fn read(path: &Path, known: &[(&str, usize)]) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| bad(path, format!("cannot be read: {e}")))?;
        let mut rest = bytes.as_slice();
        check_header_length(&bytes).map_err(|cause| bad(path, cause))?;
        let header = Header::from_reader(&mut rest).map_err(|e| {
            bad(path, format!("is not a .npy array ({}): save it with numpy.save", brief(&e)))
        })?;
        let descriptor = header.type_descriptor.to_string().trim_matches('\'').to_owned();
        let Some((_, size)) = known.iter().find(|(name, _)| *name == descriptor) else {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            return Err(bad(
                path,
                format!(
                    "holds {descriptor} where {} (numpy's names; f4 is float32, < little-endian) was expected: \
                     convert it with .astype('<f4')",
                    names.join(" or ")
                ),
            ));
        };
        let expected = header.shape.iter().try_fold(*size, |product: usize, axis| product.checked_mul(*axis));
        if expected != Some(rest.len()) {
            let expected =
                expected.map_or_else(|| "more than memory can hold".to_owned(), |e| format!("{e}"));
            return Err(bad(
                path,
                format!(
                    "has {} bytes of data where shape {:?} needs {expected}: the file is truncated or damaged; write it again",
                    rest.len(),
                    header.shape
                ),
            ));
        }
        let start = bytes.len() - rest.len();
        let mut data = bytes;
        data.drain(..start);
        Ok(Self { descriptor, shape: header.shape, layout: header.layout, data })
    }

    fn array<T>(&self, path: &Path, values: Vec<T>) -> Result<ArrayD<T>> {
        let layout = IxDyn(&self.shape).set_f(matches!(self.layout, Layout::Fortran));
        ArrayD::from_shape_vec(layout, values)
            .map_err(|e| bad(path, format!("has an impossible shape {:?}: {e}", self.shape)))
    }

    /// The elements, each made from its `N` bytes.
    fn decoded<T, const N: usize>(&self, path: &Path, of: fn([u8; N]) -> T) -> Result<ArrayD<T>> {
        let (chunks, _) = self.data.as_chunks::<N>();
        self.array(path, chunks.iter().map(|bytes| of(*bytes)).collect())
    }
}

/// Reads a `.npy` array of little-endian f32 or f64, converted to `T`.
///
/// # Errors
/// [`Error::File`] naming both sides: not a .npy file, another element type, or another number of bytes than the
/// header announces.
pub(crate) fn read_array<T: Element>(path: &Path) -> Result<ArrayD<T>> {
    let npy = Npy::read(path, &[("<f4", 4), ("<f8", 8)])?;
    if npy.descriptor == "<f4" {
        return npy.decoded(path, |bytes| T::from_f64(f64::from(f32::from_le_bytes(bytes))));
    }
    let values: Vec<T> = (0..npy.data.len() / 8).map(|i| T::from_f64(f64_at(&npy.data, i))).collect();
    if let Some(index) = values.iter().position(|v| v.to_f64().is_infinite())
        && let Some(value) = Some(f64_at(&npy.data, index)).filter(|v| v.is_finite())
    {
        return Err(bad(
            path,
            format!(
                "holds {value:e} at flat index {index}, more than {} can hold: use --precision f64",
                T::DTYPE
            ),
        ));
    }
    npy.array(path, values)
}

/// Reads a `.npy` array of any element type that models take.
///
/// # Errors
/// Those of [`read_array`].
#[cfg(feature = "onnx")]
pub(crate) fn read_tensor(path: &Path) -> Result<Tensor> {
    let known = [("<f4", 4), ("<f8", 8), ("<i4", 4), ("<i8", 8), ("|i1", 1), ("|u1", 1), ("|b1", 1)];
    let npy = Npy::read(path, &known)?;
    Ok(match npy.descriptor.as_str() {
        "<f4" => npy.decoded(path, f32::from_le_bytes)?.into(),
        "<f8" => npy.decoded(path, f64::from_le_bytes)?.into(),
        "<i4" => npy.decoded(path, i32::from_le_bytes)?.into(),
        "<i8" => npy.decoded(path, i64::from_le_bytes)?.into(),
        "|i1" => npy.decoded(path, i8::from_le_bytes)?.into(),
        "|u1" => npy.decoded(path, u8::from_le_bytes)?.into(),
        _ => npy.decoded(path, |[byte]: [u8; 1]| byte != 0)?.into(),
    })
}

/// Writes any tensor as `.npy`.
#[cfg(feature = "onnx")]
pub(crate) fn write_tensor(path: &Path, tensor: &Tensor) -> Result<()> {
    write_whole(path, |out| {
        match tensor {
            Tensor::F32(array) => array.write_npy(out),
            Tensor::F64(array) => array.write_npy(out),
            Tensor::I32(array) => array.write_npy(out),
            Tensor::I64(array) => array.write_npy(out),
            Tensor::I8(array) => array.write_npy(out),
            Tensor::U8(array) => array.write_npy(out),
            Tensor::Bool(array) => array.write_npy(out),
            other => return Err(format!("{} arrays cannot be written as .npy", other.dtype())),
        }
        .map_err(|e| e.to_string())
    })
}

/// Writes bytes as they are.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |out| out.write_all(bytes).map_err(|e| e.to_string()))
}

fn f64_at(bytes: &[u8], index: usize) -> f64 {
    let at = 8 * index;
    f64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// A parser's message without most of a header that it quotes.
fn brief(message: &impl std::fmt::Display) -> String {
    const MOST: usize = 200;
    let text = message.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// The header's own length field is checked against the file before anything of that length is allocated.
fn check_header_length(bytes: &[u8]) -> Result<(), String> {
    let field = match bytes.get(6) {
        Some(1) => bytes.get(8..10).map(|b| (10, usize::from(u16::from_le_bytes([b[0], b[1]])))),
        Some(_) => bytes.get(8..12).map(|b| (12, u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)),
        None => None,
    };
    match field {
        Some((start, length)) if start + length <= bytes.len() => Ok(()),
        Some((start, length)) => Err(format!(
            "has {} bytes where its header needs {}: the file is truncated or not a .npy array; write it again",
            bytes.len(),
            start + length
        )),
        None => Err(format!(
            "has {} bytes where a .npy header needs at least 10: save it with numpy.save",
            bytes.len()
        )),
    }
}

/// Checks, before any work is done, that `path` can be written later.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let folder = folder(path);
    if !folder.is_dir() {
        return Err(bad(path, format!("its folder {} does not exist: create it first", folder.display())));
    }
    if path.is_dir() {
        return Err(bad(path, "is a folder: name a file"));
    }
    Ok(())
}

/// Checks that the report would not take the place of the output.
pub(crate) fn check_distinct(output: &Path, report: &Path) -> Result<()> {
    // The folders exist: `check_writable` came before.
    let whole = |path: &Path| folder(path).canonicalize().ok().zip(path.file_name().map(ToOwned::to_owned));
    if whole(output) == whole(report) {
        return Err(bad(report, "is both --output and --report: name two files"));
    }
    Ok(())
}

/// Checks that `path` is a folder, or can be made one.
pub(crate) fn check_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return Err(bad(path, "is a file: name a folder"));
    }
    let above = folder(path);
    if above.is_dir() {
        return Ok(());
    }
    Err(bad(path, format!("its folder {} does not exist: create it first", above.display())))
}

/// Makes a folder that [`check_folder`] has approved of.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::File {
        path: path.display().to_string(),
        cause: format!("cannot be made: {e}"),
        input: false,
    })
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes beside `path`, then renames.
fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), String>) -> Result<()> {
    let failed = |cause: String| Error::File { path: path.display().to_string(), cause, input: false };
    let mut file = tempfile::Builder::new()
        .prefix(".fcdcc-")
        .tempfile_in(folder(path))
        .map_err(|e| failed(format!("cannot be written: {e}")))?;
    let mut buffered = BufWriter::new(file.as_file_mut());
    write(&mut buffered).map_err(failed)?;
    buffered.flush().map_err(|e| failed(e.to_string()))?;
    drop(buffered);
    share(file.as_file());
    file.persist(path).map_err(|e| failed(format!("cannot be put in place: {}", e.error)))?;
    Ok(())
}

/// Temporary files are private; an output file should be readable like any other.
#[cfg(unix)]
fn share(file: &std::fs::File) {
    use std::os::unix::fs::PermissionsExt;
    // Best effort: the data is there either way.
    let _ = file.set_permissions(std::fs::Permissions::from_mode(0o644));
}

#[cfg(not(unix))]
fn share(_: &std::fs::File) {}

/// Writes a `.npy` array.
pub(crate) fn write_array<T: Element + ndarray_npy::WritableElement>(
    path: &Path,
    array: &ArrayD<T>,
) -> Result<()> {
    write_whole(path, |out| array.write_npy(out).map_err(|e| e.to_string()))
}

/// Writes a report as JSON.
pub(crate) fn write_report(path: &Path, report: &impl serde::Serialize) -> Result<()> {
    write_whole(path, |out| {
        serde_json::to_writer_pretty(&mut *out, report).map_err(|e| e.to_string())?;
        writeln!(out).map_err(|e| e.to_string())
    })
}
