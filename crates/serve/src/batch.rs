//! Which waiting requests are computed together: a pure rule.
//!
//! Relevant if you want to change how batches are formed. Time enters as the age of the oldest request.
//!
//! Invariant: a batch never exceeds the largest size, unless a single request does, and requests keep their order.

use std::time::Duration;

use crate::config::Batching;

/// One waiting request, as the rule sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Its items.
    pub(crate) items: usize,
    /// Whether it may share a run with the first one: items of the same shape.
    pub(crate) like_first: bool,
}

/// What to do with the requests of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Compute this many, from the first on.
    Run(usize),
    /// More requests may come: look again after this time.
    Wait(Duration),
    /// There are none.
    Idle,
}

/// Decides for `waiting`, whose first has waited for `age`.
///
/// Without batching every request is a run of its own. With it the requests from the first on that fit into one run are
/// candidates. They run at once if no further one can join, or if some of them make up a preferred size: then those of the
/// largest such size. Else they wait until the first has waited for the largest delay.
pub(crate) fn decide(batching: Option<&Batching>, waiting: &[Waiting], age: Duration) -> Decision {
    let Some(first) = waiting.first() else { return Decision::Idle };
    let Some(batching) = batching else { return Decision::Run(1) };
    if first.items >= batching.max_size {
        return Decision::Run(1);
    }
    let (mut total, mut fitting, mut preferred) = (0, 0, 0);
    for request in waiting {
        if !request.like_first || total + request.items > batching.max_size {
            break;
        }
        total += request.items;
        fitting += 1;
        if batching.preferred_sizes.contains(&total) {
            preferred = fitting;
        }
    }
    if preferred > 0 {
        return Decision::Run(preferred);
    }
    if fitting < waiting.len() || age >= batching.max_delay {
        return Decision::Run(fitting);
    }
    Decision::Wait(batching.max_delay.saturating_sub(age))
}

/// The size for which `items` are computed: the smallest preferred one that holds them. The rest is filled up.
pub(crate) fn padded(batching: Option<&Batching>, items: usize) -> usize {
    let sizes = batching.map_or(&[][..], |batching| &batching.preferred_sizes);
    if items == 1 { 1 } else { sizes.iter().copied().find(|size| *size >= items).unwrap_or(items) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn rule(preferred: &[usize]) -> Batching {
        Batching { max_size: 8, preferred_sizes: preferred.to_vec(), max_delay: 5 * MS }
    }

    fn waiting(items: &[usize]) -> Vec<Waiting> {
        items.iter().map(|items| Waiting { items: *items, like_first: true }).collect()
    }

    #[test]
    fn batches_take_preferred_sizes_or_the_largest_after_the_delay() {
        let batching = rule(&[4, 8]);
        let rows: [(&[usize], u32, Decision); 10] = [
            (&[], 0, Decision::Idle),
            (&[1], 0, Decision::Wait(5 * MS)),
            (&[1], 2, Decision::Wait(3 * MS)),
            (&[1, 1], 5, Decision::Run(2)),
            (&[1, 1, 1, 1], 0, Decision::Run(4)),
            // The largest preferred size, not the first.
            (&[2, 2, 3, 1], 0, Decision::Run(4)),
            (&[2, 2, 3], 0, Decision::Run(2)),
            // No further one fits.
            (&[3, 3, 3], 0, Decision::Run(2)),
            (&[8, 1], 0, Decision::Run(1)),
            (&[11], 0, Decision::Run(1)),
        ];
        for (items, age, expected) in rows {
            assert_eq!(
                decide(Some(&batching), &waiting(items), age * MS),
                expected,
                "{items:?} after {age} ms"
            );
        }
        assert_eq!(decide(None, &waiting(&[1, 1]), Duration::ZERO), Decision::Run(1));
    }

    #[test]
    fn another_shape_ends_a_batch() {
        let mut requests = waiting(&[1, 1, 1, 1]);
        requests[2].like_first = false;
        assert_eq!(decide(Some(&rule(&[4, 8])), &requests, Duration::ZERO), Decision::Run(2));
    }

    #[test]
    fn sizes_are_filled_up_to_preferred_ones() {
        let batching = rule(&[4, 8]);
        let sizes = [1, 2, 4, 5, 9].map(|items| padded(Some(&batching), items));
        assert_eq!(sizes, [1, 4, 4, 8, 9]);
        assert_eq!(padded(None, 3), 3);
    }
}
