//! The system's allocator with counters: live blocks, live bytes, and large blocks allocated so far.

#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks from this size on count as large.
pub const LARGE: usize = 64 << 10;

static LARGE_BLOCKS: AtomicUsize = AtomicUsize::new(0);
static MADE: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);
static MADE_BYTES: AtomicUsize = AtomicUsize::new(0);
static FREED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Counts for the whole process, so a test that counts has a binary of its own.
pub struct Counting;

/// Large blocks allocated so far.
pub fn large_blocks() -> usize {
    LARGE_BLOCKS.load(Ordering::Relaxed)
}

/// Live blocks of any size.
pub fn live_blocks() -> usize {
    MADE.load(Ordering::Relaxed).saturating_sub(FREED.load(Ordering::Relaxed))
}

/// Bytes of the live blocks.
pub fn live_bytes() -> usize {
    MADE_BYTES.load(Ordering::Relaxed).saturating_sub(FREED_BYTES.load(Ordering::Relaxed))
}

fn made(size: usize) {
    LARGE_BLOCKS.fetch_add(usize::from(size >= LARGE), Ordering::Relaxed);
    MADE.fetch_add(1, Ordering::Relaxed);
    MADE_BYTES.fetch_add(size, Ordering::Relaxed);
}

fn freed(size: usize) {
    FREED.fetch_add(1, Ordering::Relaxed);
    FREED_BYTES.fetch_add(size, Ordering::Relaxed);
}

// SAFETY: every call goes unchanged to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        made(layout.size());
        // SAFETY: the caller upholds the contract of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        made(layout.size());
        // SAFETY: the caller upholds the contract of `System.alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        made(size);
        freed(layout.size());
        // SAFETY: the caller upholds the contract of `System.realloc`; `block` came from `System`, as all blocks do.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: the caller upholds the contract of `System.dealloc`; `block` came from `System`, as all blocks do.
        unsafe { System.dealloc(block, layout) }
    }
}
