//! Reassembles an object from its chunks.
//!
//! Invariant: the bytes received are a prefix without gaps, and every chunk of slabs matched its checksum. Any other chunk
//! is refused and changes nothing. Filters are hashed as they arrive.

use std::time::Instant;

use super::super::budget::Reservation;
use super::super::link::Payload;
use super::super::wire::{ContentId, Spec};
use crate::array::{DType, Values};

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
    pub(super) fn accept(&mut self, offset: u64, payload: &Payload, crc: u32) -> Result<u64, String> {
        let (len, total) = (payload.len() as u64, self.total());
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
            let got = payload.copy_and_check(into);
            if got != crc {
                return Err(format!("checksum {got:08x} where {crc:08x} was announced"));
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
        assert!(object.accept(0, &first, crc ^ 1).is_err());
        assert!(object.accept(4, &first, crc).is_err());
        assert!(object.accept(u64::MAX, &first, crc).is_err());
        assert_eq!(object.accept(0, &first, crc), Ok(5));
        assert_eq!(object.accept(0, &first, crc), Ok(5), "sent again");
        let (rest, crc) = payload(&bytes[5..]);
        assert!(object.accept(4, &rest, crc).is_err(), "overlap");
        let Err(mut object) = object.finish() else { panic!("three bytes are missing") };
        assert_eq!(object.accept(5, &rest, crc), Ok(8));
        let (long, crc) = payload(&[0]);
        assert!(object.accept(8, &long, crc).is_err());
        let (values, reservation) = object.finish().ok().unwrap();
        assert_eq!(values, Values::F32(vec![1.5, -2.0]));
        drop(reservation);
        assert_eq!(budget.used(), 0);
    }
}
