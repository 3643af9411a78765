//! How large chunks are and how long they are waited for, by how fast a link takes them.
//!
//! A chunk is what cannot be overtaken, and what must be taken before the connection counts as broken: small on slow links,
//! large where they are fast. The engine keeps the timer of a request until its limit has passed, however soon the answer
//! comes: short limits where many requests are made.

use std::time::Duration;

use super::wire::MAX_CHUNK_BYTES;

const LEAST_BYTES: usize = 16 << 10;
const FIRST_BYTES: usize = 64 << 10;
/// A chunk that is acknowledged sooner may be twice as large.
const SOON: Duration = Duration::from_millis(25);
/// One that takes longer is to be half as large.
const LATE: Duration = Duration::from_millis(250);

/// A chunk is waited for so many times as long as the slowest of late.
const PATIENCE: u32 = 40;
/// Within these bounds.
const LEAST_LIMIT: Duration = Duration::from_secs(5);
const MOST_LIMIT: Duration = Duration::from_mins(1);

/// The size of the next chunk, and how long it is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkSizer {
    bytes: usize,
    /// What the slowest chunk took, less and less with every one that is faster; `None` while it is not known.
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

    /// How long a part of a result is waited for.
    pub(super) fn limit(self) -> Duration {
        self.slowest.map_or(MOST_LIMIT, |slowest| (slowest * PATIENCE).clamp(LEAST_LIMIT, MOST_LIMIT))
    }

    /// A chunk did not come in time: nothing is known of the link any more.
    pub(super) fn failed(&mut self) {
        self.slowest = None;
    }

    /// A chunk was acknowledged, or came, `after` so long.
    pub(super) fn acknowledged(&mut self, after: Duration) {
        // Longer than any limit is as good as it.
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
