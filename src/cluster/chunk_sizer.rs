//! The size and the time limit of transfer chunks, adapted to the speed of a link.
//!
//! A chunk cannot be overtaken, and it must be taken before the connection counts as broken: chunks are small on slow links
//! and large on fast ones. The engine keeps the timer of a request until its limit has passed, however soon the answer
//! comes, so limits are short where many requests are made.

use std::time::Duration;

use super::wire::MAX_CHUNK_BYTES;

const LEAST_BYTES: usize = 16 << 10;
const FIRST_BYTES: usize = 64 << 10;
/// A chunk acknowledged within this time allows chunks of twice the size.
const SOON: Duration = Duration::from_millis(25);
/// A chunk that takes longer than this halves the size.
const LATE: Duration = Duration::from_millis(250);

/// Time limit of a chunk, as a multiple of the slowest recent chunk.
const PATIENCE: u32 = 40;
/// Bounds of that time limit.
const LEAST_LIMIT: Duration = Duration::from_secs(5);
const MOST_LIMIT: Duration = Duration::from_mins(1);

/// The size of the next chunk, and its time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkSizer {
    bytes: usize,
    /// Time of the slowest recent chunk, which decays with every faster one; `None` while unknown.
    slowest: Option<Duration>,
}

impl Default for ChunkSizer {
    fn default() -> Self {
        Self { bytes: FIRST_BYTES, slowest: None }
    }
}

impl ChunkSizer {
    pub(super) fn chunk_bytes(self) -> usize {
        self.bytes
    }

    /// Time limit for one chunk of a sub-result.
    pub(super) fn limit(self) -> Duration {
        self.slowest.map_or(MOST_LIMIT, |slowest| (slowest * PATIENCE).clamp(LEAST_LIMIT, MOST_LIMIT))
    }

    /// Records that a chunk missed its limit: the speed of the link is unknown again.
    pub(super) fn failed(&mut self) {
        self.slowest = None;
    }

    /// Records that a chunk was acknowledged, or received, after the time `after`.
    pub(super) fn acknowledged(&mut self, after: Duration) {
        // Times beyond the largest limit count as that limit.
        let after = after.min(MOST_LIMIT);
        self.slowest = Some(self.slowest.map_or(after, |slowest| after.max(slowest * 7 / 8)));
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
        let mut pace = ChunkSizer::default();
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

    #[test]
    fn limits_are_short_where_chunks_are_fast_and_long_where_they_are_not() {
        let mut pace = ChunkSizer::default();
        assert_eq!(pace.limit(), MOST_LIMIT, "nothing is known");
        pace.acknowledged(Duration::from_millis(1));
        assert_eq!(pace.limit(), LEAST_LIMIT);
        pace.acknowledged(Duration::from_secs(1));
        assert_eq!(pace.limit(), Duration::from_secs(40));
        pace.acknowledged(Duration::MAX);
        assert_eq!(pace.limit(), MOST_LIMIT);
        for _ in 0..100 {
            pace.acknowledged(Duration::from_millis(1));
        }
        assert_eq!(pace.limit(), LEAST_LIMIT, "what was slow long ago is forgotten");
        pace.failed();
        assert_eq!(pace.limit(), MOST_LIMIT);
    }
}
