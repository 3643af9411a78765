//! Reassembles an object from its chunks.
//!
//! Invariant: the bytes received are a prefix without gaps, and every chunk of slabs matched its checksum. Any other chunk
//! is refused and changes nothing. Filters are hashed as they arrive.

use std::time::Instant;

use super::super::budget::Reservation;
use super::super::link::Payload;
use super::super::narrow;
use super::super::wire::{ContentId, Spec};
use crate::array::{DType, Values, WireFormat};

pub(super) struct Reassembly {
    values: Values,
    /// Hashes filters, which have no checksums; `None` for slabs.
    hasher: Option<Box<blake3::Hasher>>,
    received: u64,
    /// Time at which the last chunk arrived.
    pub(super) touched: Instant,
    reservation: Reservation,
}

impl Reassembly {
    /// Room for an object of the size reserved, in a buffer from `make`; `None` if the size is no whole number of elements.
    pub(super) fn new(
        dtype: DType,
        reservation: Reservation,
        make: impl FnOnce(DType, usize) -> Values,
    ) -> Option<Self> {
        let size = dtype.size_bytes() as u64;
        let elems = usize::try_from(reservation.bytes() / size).ok()?;
        let whole = reservation.bytes().is_multiple_of(size);
        whole.then(|| Self {
            values: make(dtype, elems),
            hasher: None,
            received: 0,
            touched: Instant::now(),
            reservation,
        })
    }

    /// Marks the object as filters with this `spec`.
    pub(super) fn of_filters(self, spec: &Spec) -> Self {
        Self { hasher: Some(Box::new(ContentId::begin(spec))), ..self }
    }

    /// The identifier of complete filters; `None` for slabs.
    pub(super) fn content(&self) -> Option<ContentId> {
        self.hasher.as_deref().map(ContentId::end)
    }

    pub(super) fn total(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Offset of the first missing byte.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Adds a chunk and returns the offset of the first byte still missing. A chunk that was received before is ignored.
    ///
    /// # Errors
    /// Why the chunk is invalid.
    pub(super) fn accept(
        &mut self,
        offset: u64,
        payload: &Payload,
        crc: u32,
        format: WireFormat,
    ) -> Result<u64, String> {
        let (len, total) = (narrow::widened(format, payload.len()) as u64, self.total());
        if format.is_narrow() && (self.values.dtype() != DType::F32 || self.hasher.is_some()) {
            return Err(format!("a chunk in {format} of an object that travels in full width"));
        }
        let end = offset.checked_add(len).filter(|end| *end <= total);
        let Some(end) = end else { return Err(format!("a chunk of {len} at {offset} of {total} bytes")) };
        if offset > self.received {
            return Err(format!("a chunk at {offset} where {} was expected", self.received));
        }
        if end <= self.received {
            return Ok(self.received);
        }
        if offset < self.received {
            return Err(format!("a chunk at {offset} overlaps with what ends at {}", self.received));
        }
        // The end is within the values, whose bytes are in memory and therefore within usize.
        let into = &mut self.values.as_bytes_mut()[self.received as usize..end as usize];
        if let Some(hasher) = &mut self.hasher {
            let mut at = 0;
            payload.each(|slice| {
                hasher.update(slice);
                into[at..at + slice.len()].copy_from_slice(slice);
                at += slice.len();
            });
        } else {
            match narrow::read(payload, format, into) {
                Some(got) if got == crc => {}
                Some(got) => return Err(format!("checksum {got:08x} where {crc:08x} was announced")),
                None => return Err(format!("a chunk of {len} at {offset} does not hold whole elements")),
            }
        }
        self.received = end;
        self.touched = Instant::now();
        Ok(end)
    }

    /// The whole object if it is complete, otherwise `self`.
    pub(super) fn finish(self) -> Result<(Values, Reservation), Self> {
        if self.received == self.total() { Ok((self.values, self.reservation)) } else { Err(self) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::cluster::budget::Budget;
    use crate::cluster::narrow::Copies;

    const FULL: WireFormat = WireFormat::Full;

    fn payload(bytes: &[u8]) -> (Payload, u32) {
        let payload = Payload::from(bytes.to_vec());
        let crc = payload.crc();
        (payload, crc)
    }

    #[test]
    fn only_the_next_chunk_with_its_checksum_is_taken() {
        let budget = Budget::new(100);
        assert!(Reassembly::new(DType::F32, budget.reserve(10).unwrap(), Values::zeros).is_none());
        let mut object = Reassembly::new(DType::F32, budget.reserve(8).unwrap(), Values::zeros).unwrap();
        let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let (first, crc) = payload(&bytes[..5]);
        assert!(object.accept(0, &first, crc ^ 1, FULL).is_err());
        assert!(object.accept(4, &first, crc, FULL).is_err());
        assert!(object.accept(u64::MAX, &first, crc, FULL).is_err());
        assert_eq!(object.accept(0, &first, crc, FULL), Ok(5));
        assert_eq!(object.accept(0, &first, crc, FULL), Ok(5), "sent again");
        let (rest, crc) = payload(&bytes[5..]);
        assert!(object.accept(4, &rest, crc, FULL).is_err(), "overlap");
        let Err(mut object) = object.finish() else { panic!("three bytes are missing") };
        assert_eq!(object.accept(5, &rest, crc, FULL), Ok(8));
        let (long, crc) = payload(&[0]);
        assert!(object.accept(8, &long, crc, FULL).is_err());
        let (values, reservation) = object.finish().ok().unwrap();
        assert_eq!(values, Values::F32(vec![1.5, -2.0]));
        drop(reservation);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn narrow_chunks_fill_twice_their_size_and_only_slabs_of_f32_have_them() {
        let budget = Budget::new(100);
        let values = [1.0_f32, 0.1, -3.0];
        let cut = Copies::default().cut(bytemuck::cast_slice(&values), WireFormat::F16);
        let room = |dtype, bytes| Reassembly::new(dtype, budget.reserve(bytes).unwrap(), Values::zeros);
        let mut object = room(DType::F32, 12).unwrap();
        assert!(object.accept(0, &cut.payload, cut.crc ^ 1, cut.format).is_err());
        assert!(object.accept(8, &cut.payload, cut.crc, cut.format).is_err(), "beyond the end");
        assert_eq!(object.accept(0, &cut.payload, cut.crc, cut.format), Ok(12));
        let Ok((Values::F32(came), _)) = object.finish() else { panic!("it is complete") };
        assert_eq!((came[0], came[2]), (1.0, -3.0));
        assert!(came[1] != 0.1 && (came[1] - 0.1).abs() < 1e-4);
        let mut wide = room(DType::F64, 16).unwrap();
        let refused = wide.accept(0, &cut.payload, cut.crc, cut.format);
        assert!(refused.unwrap_err().contains("full width"));
        // A wide chunk that ends within an element, and a narrow one after it.
        let mut object = room(DType::F32, 16).unwrap();
        let (odd, crc) = payload(&[0; 2]);
        assert_eq!(object.accept(0, &odd, crc, FULL), Ok(2));
        assert!(object.accept(2, &cut.payload, cut.crc, cut.format).is_err());
    }
}
