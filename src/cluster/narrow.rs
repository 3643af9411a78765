//! Elements on the wire: in full width, or as 16-bit numbers.
//!
//! [`Copies`] converts a piece of an object while it copies and checksums it, and [`read`] converts it back. Every message
//! says in its header how its payload is written, since numbers that do not fit into 16 bits travel in full width although
//! the pool asks for less: infinities and NaN, numbers too large for the format, and payloads in which every number is so
//! small that the format would cut off digits.
//!
//! Invariant: each number of a narrow payload is off by at most half of the format's epsilon, relative to itself or to the
//! format's smallest normal number, and no number of the payload is infinite.

use std::sync::Arc;

use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::link::Payload;
use crate::array::WireFormat;

/// Bytes that are converted, copied and checksummed while they are in the cache.
const PIECE: usize = 32 << 10;

/// How many bytes of an object a payload of `bytes` holds.
pub(super) fn widened(format: WireFormat, bytes: usize) -> usize {
    if format.is_narrow() { 2 * bytes } else { bytes }
}

/// Pieces of objects that are being sent. Buffers are reused once they have been sent: fresh memory costs more than the copy.
#[derive(Default)]
pub(super) struct Copies {
    buffers: Vec<Arc<Vec<u8>>>,
    most: usize,
}

/// A payload, its CRC-32, and how it is written.
pub(super) struct Cut {
    pub(super) payload: Payload,
    pub(super) crc: u32,
    pub(super) format: WireFormat,
}

impl Copies {
    /// Keeps at most `most` buffers.
    pub(super) fn new(most: usize) -> Self {
        Self { buffers: Vec::new(), most }
    }

    /// Copies `bytes`, elements of an object, in `format` if they fit into it. 16-bit formats are for whole f32 elements, as
    /// aligned as those; anything else stays as it is.
    pub(super) fn cut(&mut self, bytes: &[u8], format: WireFormat) -> Cut {
        let free = self.buffers.iter_mut().position(|buffer| Arc::get_mut(buffer).is_some());
        let mut buffer = free.map(|at| self.buffers.swap_remove(at)).unwrap_or_default();
        let (mut crc, mut used) = (0, WireFormat::Full);
        if let Some(own) = Arc::get_mut(&mut buffer) {
            (crc, used) = write(bytes, format, own);
        }
        if self.buffers.len() < self.most {
            self.buffers.push(Arc::clone(&buffer));
        }
        Cut { payload: Bytes::from_owner(Sent(buffer)).into(), crc, format: used }
    }
}

/// A part of a result, whose memory is sent as it is where it stays in full width.
pub(super) fn cut(copies: &mut Copies, bytes: Bytes, format: WireFormat) -> Cut {
    if format.is_narrow() {
        return copies.cut(&bytes, format);
    }
    let payload = Payload::from(bytes);
    Cut { crc: payload.crc(), payload, format }
}

/// A buffer that is being sent.
struct Sent(Arc<Vec<u8>>);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Writes `bytes` to `to` in `format` if they fit into it, else in full width. Returns the CRC-32 of what was written, and
/// its format.
fn write(bytes: &[u8], format: WireFormat, to: &mut Vec<u8>) -> (u32, WireFormat) {
    to.clear();
    if format.is_narrow()
        && let Ok(values) = bytemuck::try_cast_slice::<u8, f32>(bytes)
        && let Some(crc) = write_narrow(values, format, to)
    {
        return (crc, format);
    }
    to.clear();
    let mut hasher = crc32fast::Hasher::new();
    for piece in bytes.chunks(PIECE) {
        to.extend_from_slice(piece);
        hasher.update(piece);
    }
    (hasher.finalize(), WireFormat::Full)
}

/// Writes f32 elements in 16 bits and returns the CRC-32; `None`, with `to` in any state, if they do not fit.
fn write_narrow(values: &[f32], format: WireFormat, to: &mut Vec<u8>) -> Option<u32> {
    /// Magnitudes from here on round to infinity.
    const OVERFLOW_F16: f32 = 65520.0;
    const OVERFLOW_BF16: f32 = f32::from_bits(0x7f7f_8000);
    let (least, overflow) = match format {
        WireFormat::Full => return None,
        WireFormat::F16 => (f32::from(f16::MIN_POSITIVE), OVERFLOW_F16),
        WireFormat::Bf16 => (f32::MIN_POSITIVE, OVERFLOW_BF16),
    };
    let mut hasher = crc32fast::Hasher::new();
    let mut most = 0;
    to.resize(2 * values.len(), 0);
    let pieces = to.chunks_mut(PIECE);
    for (from, to) in values.chunks(PIECE / 2).zip(pieces) {
        // Magnitudes are ordered as their bits are; NaN comes last.
        most = from.iter().map(|value| value.to_bits() & 0x7fff_ffff).fold(most, u32::max);
        if most >= overflow.to_bits() {
            return None;
        }
        convert(from, format, to);
        hasher.update(to);
    }
    let tiny = most > 0 && most < least.to_bits();
    (!tiny).then(|| hasher.finalize())
}

/// Rounds to the nearest number of a 16-bit format, ties to even.
fn convert(from: &[f32], format: WireFormat, to: &mut [u8]) {
    let mut rounded = [0_u16; 256];
    for (from, to) in from.chunks(rounded.len()).zip(to.chunks_mut(2 * rounded.len())) {
        let rounded = &mut rounded[..from.len()];
        if format == WireFormat::F16 {
            bytemuck::cast_slice_mut::<u16, f16>(rounded).convert_from_f32_slice(from);
        } else {
            bytemuck::cast_slice_mut::<u16, bf16>(rounded).convert_from_f32_slice(from);
        }
        to.copy_from_slice(bytemuck::cast_slice(rounded));
    }
}

/// Copies a payload to `to`, which is as long as the elements are in full width, and returns its CRC-32; `None` if the
/// payload has another length. After `None` the content of `to` is arbitrary. 16-bit formats are for f32 elements.
pub(super) fn read(payload: &Payload, format: WireFormat, to: &mut [u8]) -> Option<u32> {
    if widened(format, payload.len()) != to.len() {
        return None;
    }
    if !format.is_narrow() {
        return Some(payload.copy_and_check(to));
    }
    let mut to = bytemuck::try_cast_slice_mut::<u8, f32>(to).ok()?;
    let mut hasher = crc32fast::Hasher::new();
    // The engine may divide a payload anywhere, also within an element.
    let mut odd = None;
    payload.each(|mut slice| {
        hasher.update(slice);
        if let Some(low) = odd.take() {
            let Some((high, rest)) = slice.split_first() else {
                odd = Some(low);
                return;
            };
            slice = rest;
            to = expand(&[low, *high], format, std::mem::take(&mut to));
        }
        let whole = slice.len() / 2 * 2;
        to = expand(&slice[..whole], format, std::mem::take(&mut to));
        odd = slice.get(whole).copied();
    });
    Some(hasher.finalize())
}

/// Widens 16-bit numbers to the start of `to`; returns the rest of it.
fn expand<'a>(from: &[u8], format: WireFormat, to: &'a mut [f32]) -> &'a mut [f32] {
    let (to, rest) = to.split_at_mut(from.len() / 2);
    let mut narrow = [0_u16; 256];
    for (from, to) in from.chunks(2 * narrow.len()).zip(to.chunks_mut(narrow.len())) {
        let narrow = &mut narrow[..to.len()];
        bytemuck::cast_slice_mut::<u16, u8>(narrow).copy_from_slice(from);
        if format == WireFormat::F16 {
            bytemuck::cast_slice::<u16, f16>(narrow).convert_to_f32_slice(to);
        } else {
            bytemuck::cast_slice::<u16, bf16>(narrow).convert_to_f32_slice(to);
        }
    }
    rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn there_and_back(values: &[f32], format: WireFormat) -> (Vec<f32>, WireFormat) {
        let cut = Copies::new(1).cut(bytemuck::cast_slice(values), format);
        assert_eq!(cut.payload.len(), if cut.format.is_narrow() { 2 } else { 4 } * values.len());
        assert_eq!(cut.payload.crc(), cut.crc);
        let mut back = vec![0.0_f32; values.len()];
        assert_eq!(read(&cut.payload, cut.format, bytemuck::cast_slice_mut(&mut back)), Some(cut.crc));
        (back, cut.format)
    }

    /// All finite numbers of a format, in order of their magnitude.
    fn numbers(format: WireFormat) -> Vec<f32> {
        let number = |bits| match format {
            WireFormat::F16 => f16::from_bits(bits).to_f32(),
            _ => bf16::from_bits(bits).to_f32(),
        };
        (0..0x8000).map(number).take_while(|value| value.is_finite()).collect()
    }

    #[test]
    fn every_number_of_a_format_returns_and_those_between_go_to_the_nearest_even_one() {
        for format in [WireFormat::F16, WireFormat::Bf16] {
            let all = numbers(format);
            assert!(all.len() > 30_000);
            assert_eq!(there_and_back(&all, format), (all.clone(), format));
            let (mut between, mut nearest) = (Vec::new(), Vec::new());
            for (at, pair) in all.windows(2).enumerate() {
                // Exact in f64, and in f32 but for the smallest numbers of bf16.
                let middle = f64::midpoint(f64::from(pair[0]), f64::from(pair[1]));
                #[expect(clippy::cast_possible_truncation, reason = "compared with the number")]
                let single = middle as f32;
                if f64::from(single) != middle {
                    continue;
                }
                between.extend([single.next_down(), single, single.next_up(), -single]);
                let even = pair[at % 2];
                nearest.extend([pair[0], even, pair[1], -even]);
            }
            assert_eq!(there_and_back(&between, format), (nearest.clone(), format));
            // Negative control: rounding towards zero gives other numbers.
            assert_ne!(nearest, between.iter().map(|value| truncated(*value, format)).collect::<Vec<_>>());
        }
    }

    fn truncated(value: f32, format: WireFormat) -> f32 {
        let kept = if format == WireFormat::F16 { !0x1fff } else { !0xffff };
        f32::from_bits(value.to_bits() & kept)
    }

    #[test]
    fn what_does_not_fit_travels_in_full_width() {
        let rows = [
            (vec![1.0, 65519.0], true, true),
            (vec![1.0, 65520.0], false, true),
            (vec![1.0, f32::MAX], false, false),
            (vec![1.0, f32::from_bits(0x7f7f_7fff)], false, true),
            (vec![f32::NAN, 1.0], false, false),
            (vec![f32::NEG_INFINITY, 1.0], false, false),
            (vec![6.2e-5, 1e-30, 0.0], true, true),
            (vec![6.1e-5, 1e-30, 0.0], false, true),
            (vec![1e-39, 0.0], false, false),
            (vec![0.0, -0.0], true, true),
            (vec![], true, true),
        ];
        for (values, half, brain) in rows {
            for (format, fits) in [(WireFormat::F16, half), (WireFormat::Bf16, brain)] {
                let (back, used) = there_and_back(&values, format);
                assert_eq!(used, if fits { format } else { WireFormat::Full }, "{values:?} as {format}");
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(fits || bits(&back) == bits(&values), "{values:?} as {format}");
                assert!(back.iter().all(|value| value.is_finite()) || !fits);
            }
            assert_eq!(there_and_back(&[1.0], WireFormat::Full).1, WireFormat::Full);
        }
    }

    #[test]
    fn a_payload_may_be_divided_within_an_element_and_must_have_the_right_length() {
        let values: Vec<f32> = (0..100).map(|i| i as f32 / 8.0).collect();
        let Cut { payload, crc, format } = Copies::new(1).cut(bytemuck::cast_slice(&values), WireFormat::F16);
        let mut whole = Vec::new();
        payload.each(|slice| whole.extend_from_slice(slice));
        for at in [0, 1, 2, 7, 199, 200] {
            let parts = Payload::in_parts([&whole[..at], &whole[at..]]);
            let mut back = vec![0.0_f32; 100];
            assert_eq!(read(&parts, format, bytemuck::cast_slice_mut(&mut back)), Some(crc));
            assert_eq!(back, values);
        }
        let mut short = [0.0_f32; 99];
        assert_eq!(read(&payload, format, bytemuck::cast_slice_mut(&mut short)), None);
        assert_eq!(read(&payload, WireFormat::Full, bytemuck::cast_slice_mut(&mut short)), None);
    }

    #[test]
    fn bytes_that_are_no_whole_elements_stay_as_they_are() {
        let cut = Copies::new(0).cut(&[1, 2, 3], WireFormat::F16);
        assert_eq!((cut.payload.len(), cut.format), (3, WireFormat::Full));
    }
}
