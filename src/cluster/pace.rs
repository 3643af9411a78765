//! How large chunks are, by how fast a link takes them.
//!
//! A chunk is what cannot be overtaken, and what must be taken before the connection counts as broken: small on slow links,
//! large where they are fast.

use std::time::Duration;

use super::wire::MAX_CHUNK_BYTES;

const LEAST_BYTES: usize = 16 << 10;
const FIRST_BYTES: usize = 64 << 10;
/// A chunk that is acknowledged sooner may be twice as large.
const SOON: Duration = Duration::from_millis(25);
/// One that takes longer is to be half as large.
const LATE: Duration = Duration::from_millis(250);

/// The size of the next chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    bytes: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes: FIRST_BYTES }
    }
}

impl Pace {
    pub(super) fn chunk_bytes(self) -> usize {
        self.bytes
    }

    /// A chunk was acknowledged `after` so long.
    pub(super) fn acknowledged(&mut self, after: Duration) {
        if after < SOON {
            self.bytes = (self.bytes * 2).min(MAX_CHUNK_BYTES);
        } else if after > LATE {
            self.bytes = (self.bytes / 2).max(LEAST_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_on_fast_links_and_shrink_on_slow_ones() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.acknowledged(Duration::from_millis(1));
        }
        assert_eq!(pace.chunk_bytes(), MAX_CHUNK_BYTES);
        pace.acknowledged(Duration::from_millis(100));
        assert_eq!(pace.chunk_bytes(), MAX_CHUNK_BYTES);
        for _ in 0..10 {
            pace.acknowledged(Duration::from_secs(1));
        }
        assert_eq!(pace.chunk_bytes(), LEAST_BYTES);
    }
}
