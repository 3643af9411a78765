//! Shares work among the cores: the calling thread works too.
//!
//! A parallel loop that a thread outside rayon's pool starts is computed by the pool alone, while that thread sleeps. On a
//! machine whose cores have gone to sleep, waking two threads one after the other takes as long as many a layer. Here
//! the calling thread takes one piece of work after the other, and the threads of the pool help as soon as they are
//! awake.
//!
//! Relevant if you want to change how loops use the cores.
//!
//! Invariant: after a return without error every item was given to the work exactly once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::Result;
use crate::sync::locked;

/// The threads that help: one less than the threads of rayon's pool, so that no idle one takes the core of a caller.
static HELPERS: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let count = threads().checked_sub(1).filter(|count| *count > 0)?;
    ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|index| format!("fcdcc help-{index}"))
        .build()
        .ok()
});

/// Calls `work` once with each item, on as many threads at a time as there are `states`, each of which one thread has for
/// itself. After an error no further item is begun.
///
/// # Errors
/// The first error of `work`.
pub(crate) fn try_share<S: Send, I: Send>(
    states: impl IntoIterator<Item = S>,
    items: impl Iterator<Item = I> + Send,
    work: impl Fn(&mut S, I) -> Result<()> + Sync,
) -> Result<()> {
    let mut states = states.into_iter();
    let Some(mut own) = states.next() else { return Ok(()) };
    let (items, failed, error) = (Mutex::new(items), AtomicBool::new(false), Mutex::new(None));
    let drain = |state: &mut S| {
        // Bound first: a loop condition would hold the lock while it works.
        let next = || locked(&items).next().filter(|_| !failed.load(Ordering::Relaxed));
        while let Some(item) = next() {
            if let Err(first) = work(state, item) {
                failed.store(true, Ordering::Relaxed);
                locked(&error).get_or_insert(first);
            }
        }
    };
    let drain = &drain;
    if let Some(helpers) = &*HELPERS {
        helpers.in_place_scope(|scope| {
            for mut state in states {
                scope.spawn(move |_| drain(&mut state));
            }
            drain(&mut own);
        });
    } else {
        drain(&mut own);
    }
    error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Calls `work` once with each item, on up to `threads` threads.
pub(crate) fn share<I: Send>(
    threads: usize,
    items: impl ExactSizeIterator<Item = I> + Send,
    work: impl Fn(I) + Sync,
) {
    let threads = threads.clamp(1, items.len().max(1));
    if threads == 1 {
        return items.for_each(work);
    }
    let states = std::iter::repeat_n((), threads);
    let shared = try_share(states, items, |(), item| {
        work(item);
        Ok(())
    });
    debug_assert!(shared.is_ok(), "the work returns no error");
}

/// Threads that share work: those of the current rayon pool.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn every_item_is_worked_on_once_and_every_state_used_by_one_thread_at_a_time() {
        for threads in [1, 2, 5] {
            let mut items = vec![0_u32; 1000];
            let mut counts = vec![0_usize; threads];
            try_share(counts.iter_mut(), items.iter_mut(), |count, item| {
                **count += 1;
                *item += 1;
                Ok(())
            })
            .unwrap();
            assert!(items.iter().all(|item| *item == 1));
            assert_eq!(counts.iter().sum::<usize>(), 1000);
            share(threads, items.iter_mut(), |item| *item += 1);
            assert!(items.iter().all(|item| *item == 2));
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        let worked = std::sync::atomic::AtomicUsize::new(0);
        let result = try_share([(), ()], 0..1_000_000, |(), item| {
            worked.fetch_add(1, Ordering::Relaxed);
            if item == 7 { Err(Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(worked.into_inner() < 1_000_000);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let outcome = std::panic::catch_unwind(|| share(2, 0..10, |item| assert!(item < 5, "item {item}")));
        assert!(outcome.is_err());
    }
}
