//! A layer that runs again and again allocates no large block: slabs, results and outputs are used again.
//!
//! A file of its own, because the allocator that counts is everybody's in the process.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fcdcc::{CodeKind, CodedConv, ConvParams, CpuWorker, LayerOptions, Pool};
use ndarray::ArrayD;

/// From this size on a block counts.
const LARGE: usize = 64 << 10;

static LARGE_BLOCKS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts large blocks.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: likewise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: likewise; `block` came from `System`, as all blocks do.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: likewise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(size: usize) {
    LARGE_BLOCKS.fetch_add(usize::from(size >= LARGE), Ordering::Relaxed);
}

#[test]
fn a_layer_in_use_allocates_no_large_block() {
    // One at a time: what is counted is everybody's.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    let params = ConvParams::default().padding([1]);
    let input = ArrayD::from_shape_fn(vec![1, 32, 64, 64], |i| ((i[1] * 7 + i[2] * 3 + i[3]) as f32).sin());
    let weight = ArrayD::from_shape_fn(vec![32, 32, 3, 3], |i| ((i[0] * 5 + i[1] + i[2]) as f32).cos());
    for code in [CodeKind::Crme, CodeKind::Uncoded] {
        let pool = Pool::new(CpuWorker::fleet(4)).unwrap();
        // All are needed: what a straggler still holds when the next run begins would be made anew.
        let options = LayerOptions { code, tolerate: 0, hedge: None, ..LayerOptions::default() };
        let layer = CodedConv::prepare(&pool, input.shape(), weight.view(), None, &params, options).unwrap();
        let mut output = ArrayD::default(vec![0]);
        let mut blocks = |fresh: bool| {
            let before = LARGE_BLOCKS.load(Ordering::Relaxed);
            if fresh {
                output = layer.run(input.view()).unwrap().output;
            } else {
                layer.run_into(input.view(), &mut output).unwrap();
            }
            assert!(pool.wait_idle(Duration::from_secs(10)));
            LARGE_BLOCKS.load(Ordering::Relaxed) - before
        };
        let first = blocks(false);
        assert!(first > 4, "{first}: at least the output and what is sent to each");
        for _ in 0..3 {
            blocks(false);
        }
        let later: Vec<usize> = (0..5).map(|_| blocks(false)).collect();
        assert_eq!(later, [0; 5], "{code}");
        // Negative control: an output of its own is a large block.
        assert!(blocks(true) >= 1);
    }
}
