//! Reads `.npy` arrays as streams: first the header, then the elements, without a copy of the bytes. Writes arrays.
//!
//! Invariant: nothing is allocated by the size in a header before that size was compared with the file or with the
//! available memory.

use std::io::{Read, Write};

use fcdcc::Result;
use ndarray::{ArrayD, IxDyn, ShapeBuilder};

use super::content::NPY;
use super::npy_header::{Header, unquoted};
use fcdcc::memory;

/// Maximum length of a header. (By default, numpy itself refuses more than 10,000 bytes.)
const MOST_HEADER: usize = 1 << 20;
/// Bytes read at once; a multiple of every element size.
const CHUNK: usize = 1 << 16;

/// Element types that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

/// numpy's type letters with sizes.
const KINDS: [(&str, Kind); 12] = [
    ("f2", Kind::F16),
    ("f4", Kind::F32),
    ("f8", Kind::F64),
    ("i1", Kind::I8),
    ("i2", Kind::I16),
    ("i4", Kind::I32),
    ("i8", Kind::I64),
    ("u1", Kind::U8),
    ("u2", Kind::U16),
    ("u4", Kind::U32),
    ("u8", Kind::U64),
    ("b1", Kind::Bool),
];

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }
}

/// An array whose header has been read.
pub(crate) struct Npy<R> {
    pub(crate) kind: Kind,
    big_endian: bool,
    shape: Vec<usize>,
    fortran: bool,
    elems: usize,
    data: R,
}

impl<R: Read> Npy<R> {
    /// Reads the header. `length`: total bytes, if known. `bad` makes an error from its cause.
    pub(crate) fn open(
        mut source: R,
        length: Option<u64>,
        bad: &dyn Fn(String) -> fcdcc::Error,
    ) -> Result<Self> {
        let (bytes, start) = header(&mut source, length).map_err(bad)?;
        let Header { descr, fortran, shape } = Header::parse(&bytes[start..]).map_err(|e| {
            bad(format!("is not a .npy array that can be read ({}): save it with numpy.save", brief(&e)))
        })?;
        let Some((kind, big_endian)) = kind(unquoted(&descr)) else {
            return Err(bad(format!(
                "holds {} where floats, integers or truth values (numpy's f2, f4, f8, i1 to i8, u1 to u8, b1) were \
                 expected: convert it with .astype('float32')",
                brief(&descr)
            )));
        };
        let elems = shape.iter().try_fold(1usize, |product, axis| product.checked_mul(*axis));
        let needed = elems.and_then(|elems| elems.checked_mul(kind.bytes()));
        let (Some(elems), Some(needed)) = (elems, needed) else {
            return Err(bad(format!("has shape {shape:?}, more than memory can hold: write it again")));
        };
        if let Some(length) = length {
            let there = length.saturating_sub(bytes.len() as u64);
            if there != needed as u64 {
                return Err(bad(damaged(&there.to_string(), &shape, needed)));
            }
        }
        Ok(Self { kind, big_endian, shape, fortran, elems, data: source })
    }

    /// Reads the elements; `of` makes each from its `N` bytes in little-endian order and its position in the file.
    pub(crate) fn decode<T, const N: usize>(
        self,
        bad: &dyn Fn(String) -> fcdcc::Error,
        mut of: impl FnMut([u8; N], usize) -> Result<T, String>,
    ) -> Result<ArrayD<T>> {
        let Self { big_endian, shape, fortran, elems, mut data, .. } = self;
        let needed = elems * N;
        let held = elems.saturating_mul(size_of::<T>());
        memory::require_all(&format!("an array of shape {shape:?}"), held as u64)
            .map_err(|e| bad(e.to_string()))?;
        let mut values: Vec<T> = Vec::new();
        values.try_reserve_exact(elems).map_err(|e| bad(format!("cannot be held: {e}")))?;
        let mut chunk = vec![0; CHUNK.min(needed)];
        let mut there = 0;
        while there < needed {
            let step = CHUNK.min(needed - there);
            let read =
                fill(&mut data, &mut chunk[..step]).map_err(|e| bad(format!("cannot be read: {e}")))?;
            there += read;
            if read < step {
                return Err(bad(damaged(&there.to_string(), &shape, needed)));
            }
            for bytes in chunk[..step].as_chunks_mut::<N>().0 {
                if big_endian {
                    bytes.reverse();
                }
                let value = of(*bytes, values.len()).map_err(bad)?;
                values.push(value);
            }
        }
        // Only reading past the data shows whether the stream ends here.
        if fill(&mut data, &mut [0]).map_err(|e| bad(format!("cannot be read: {e}")))? > 0 {
            return Err(bad(damaged(&format!("more than {needed}"), &shape, needed)));
        }
        ArrayD::from_shape_vec(IxDyn(&shape).set_f(fortran), values)
            .map_err(|e| bad(format!("has an impossible shape {shape:?}: {e}")))
    }
}

/// Types of elements that are written.
pub(crate) trait Stored: Copy {
    /// numpy's name.
    const DESCR: &'static str;
    /// The bytes of one element.
    type Bytes: AsRef<[u8]>;
    fn bytes(self) -> Self::Bytes;
}

macro_rules! stored {
    ($($type:ty, $descr:literal;)*) => {$(
        impl Stored for $type {
            const DESCR: &'static str = $descr;
            type Bytes = [u8; size_of::<$type>()];

            fn bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }
        }
    )*};
}

stored! {
    half::f16, "<f2";
    f32, "<f4";
    f64, "<f8";
    i8, "|i1";
    i16, "<i2";
    i32, "<i4";
    i64, "<i8";
    u8, "|u1";
    u16, "<u2";
    u32, "<u4";
    u64, "<u8";
}

impl Stored for bool {
    const DESCR: &'static str = "|b1";
    type Bytes = [u8; 1];

    fn bytes(self) -> Self::Bytes {
        [u8::from(self)]
    }
}

/// Writes an array in row-major order, as numpy does: format version 1, with the data aligned to 64 bytes.
pub(crate) fn write<T: Stored>(out: &mut dyn Write, array: &ArrayD<T>) -> std::io::Result<()> {
    const ALIGNED: usize = 64;
    let sizes: Vec<String> = array.shape().iter().map(|size| format!("{size}, ")).collect();
    let sizes = sizes.concat();
    let (descr, sizes) = (T::DESCR, sizes.trim_end());
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // Before it: 6 bytes that name the format, 2 of the version, 2 of its own length. After it: the end of the line.
    let unaligned = 10 + header.len() + 1;
    header.extend(std::iter::repeat_n(' ', unaligned.next_multiple_of(ALIGNED) - unaligned));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(std::io::Error::other)?;
    out.write_all(NPY)?;
    out.write_all(&[1, 0])?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut bytes = Vec::with_capacity(CHUNK);
    for value in array {
        bytes.extend_from_slice(value.bytes().as_ref());
        if bytes.len() >= CHUNK {
            out.write_all(&bytes)?;
            bytes.clear();
        }
    }
    out.write_all(&bytes)
}

fn damaged(there: &str, shape: &[usize], needed: usize) -> String {
    format!(
        "has {there} bytes of data where shape {shape:?} needs {needed}: the file is truncated or damaged; write it again"
    )
}

/// The element type of a descriptor such as `<f4`, and whether it is big-endian.
fn kind(descriptor: &str) -> Option<(Kind, bool)> {
    let (order, name) = descriptor.split_at_checked(1)?;
    let (_, kind) = KINDS.iter().find(|(known, _)| *known == name)?;
    match order {
        "<" | "|" => Some((*kind, false)),
        ">" => Some((*kind, true)),
        "=" => Some((*kind, cfg!(target_endian = "big"))),
        _ => None,
    }
}

/// Reads the bytes up to the end of the header, and where its dictionary starts; checks the length before allocating it.
fn header(source: &mut impl Read, length: Option<u64>) -> Result<(Vec<u8>, usize), String> {
    let unread = |e: std::io::Error| format!("cannot be read: {e}");
    let mut bytes = vec![0; 12];
    let read = fill(source, &mut bytes[..10]).map_err(unread)?;
    if read < 10 || !bytes.starts_with(NPY) {
        return Err(format!(
            "has {read} bytes where a .npy header needs at least 10: save it with numpy.save"
        ));
    }
    if !(1..=3).contains(&bytes[6]) {
        return Err(format!(
            "is of version {} of the .npy format where 1 to 3 can be read: save it with numpy.save",
            bytes[6]
        ));
    }
    let (start, size) = if bytes[6] == 1 {
        (10, usize::from(u16::from_le_bytes([bytes[8], bytes[9]])))
    } else {
        if fill(source, &mut bytes[10..]).map_err(unread)? < 2 {
            return Err(
                "has 10 bytes where a .npy header needs at least 12: save it with numpy.save".to_owned()
            );
        }
        (12, u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize)
    };
    let needed = start + size;
    let short = |there: u64| {
        format!(
            "has {there} bytes where its header needs {needed}: the file is truncated or not a .npy array; write it again"
        )
    };
    if let Some(length) = length.filter(|length| *length < needed as u64) {
        return Err(short(length));
    }
    if size > MOST_HEADER {
        return Err(format!(
            "has a header of {size} bytes where at most {MOST_HEADER} are read: write it again"
        ));
    }
    bytes.resize(needed, 0);
    let read = fill(source, &mut bytes[start..]).map_err(unread)?;
    if read < size { Err(short((start + read) as u64)) } else { Ok((bytes, start)) }
}

/// Reads until `buffer` is full or the source ends.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match source.read(&mut buffer[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// A message with at most a short part of the header that it quotes.
fn brief(message: &impl std::fmt::Display) -> String {
    const MOST: usize = 200;
    let text = message.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

#[cfg(all(test, feature = "onnx"))]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use half::f16;

    use super::*;

    fn read(bytes: &[u8]) -> Result<ArrayD<f16>> {
        let bad = |cause: String| fcdcc::Error::File { path: "x".to_owned(), cause, input: true };
        let npy = Npy::open(bytes, Some(bytes.len() as u64), &bad)?;
        assert_eq!(npy.kind, Kind::F16);
        npy.decode::<f16, 2>(&bad, |bytes, _| Ok(f16::from_le_bytes(bytes)))
    }

    #[test]
    fn half_floats_come_back_bit_by_bit() {
        for shape in [vec![], vec![0], vec![5], vec![2, 3], vec![1, 40_000], vec![1; 30]] {
            let values = (0..shape.iter().product::<usize>()).map(|i| f16::from_f64(0.37 * i as f64 - 1.0));
            let array = ArrayD::from_shape_vec(shape.clone(), values.collect()).unwrap();
            let mut bytes = Vec::new();
            write(&mut bytes, &array).unwrap();
            // Where numpy puts the data.
            let header = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            assert_eq!((header % 64, bytes.len() - header), (0, 2 * array.len()), "{shape:?}");
            assert_eq!(read(&bytes).unwrap(), array);
            // Negative controls: another last bit, and a lost byte.
            if let Some(last) = bytes.last_mut().filter(|_| !array.is_empty()) {
                *last ^= 1;
                assert_ne!(read(&bytes).unwrap(), array);
                bytes.pop();
                assert!(read(&bytes).is_err());
            }
        }
    }
}
