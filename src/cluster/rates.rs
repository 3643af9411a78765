//! The rates of the links to machines, measured while they work.
//!
//! Relevant if you want to know what a rate of [`Cluster::link_speeds`](super::Cluster::link_speeds) means. Each direction of
//! the link to a machine has a meter. Every message with bulk data has two times, at which it was given to the network and at
//! which it arrived, each by the clock of its side. The least difference of the two, taken from the questions that machines
//! are asked four times a second, is the delay of a message without bulk data and the difference of the clocks in one. A
//! message was therefore *carried* from when it would have arrived without its bulk data, or from when the message before it
//! arrived if that was later, until it arrived. The rate is that of bytes carried and time of carrying.
//!
//! Invariant: each moment counts once, however many transfers wait for each other, and only while something is carried.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use super::wire::Answer;
use crate::sync::locked;

/// Messages of fewer bytes are no measure of a rate.
const BULK_BYTES: usize = 16 << 10;
/// A sample has at least this many bytes, and takes [`SAMPLE_US`] or has [`LARGE_SAMPLE_BYTES`].
const SAMPLE_BYTES: u64 = 256 << 10;
const SAMPLE_US: u64 = 2_000;
const LARGE_SAMPLE_BYTES: u64 = 4 << 20;
/// The rate is the median of this many samples.
const SAMPLES: usize = 15;
/// Age at which a least difference of the clocks is replaced by a newer one: clocks drift. It is used for twice this time.
const FRESH_US: i64 = 4_000_000;

/// Measured rates of the link to a machine. `None` where too little was transferred so far: about 256 KiB in messages of at
/// least 16 KiB.
///
/// A rate is that of all transfers of this master in one direction together, over the time in which there was one: transfers
/// that share the link, and waiting for each other, do not make it smaller. Everything between the two processes counts as
/// the link: the network, encryption, and copying the data. It is the median of the last 15 samples of 256 KiB or more. Where
/// several machines are behind one cable, it is what this machine got of the cable beside the others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LinkSpeed {
    /// Bytes a second to the machine: slabs and filters.
    pub up_bytes_per_s: Option<f64>,
    /// Bytes a second from the machine: sub-results.
    pub down_bytes_per_s: Option<f64>,
}

/// Microseconds by a clock of this process that never goes back.
pub(super) fn clock_us() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64
}

/// Bytes a second of a transfer; shorter times than ten microseconds are no measure.
pub(super) fn bytes_per_s(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.max(Duration::from_micros(10)).as_secs_f64()
}

/// The meters of both directions of the link to a machine.
#[derive(Debug, Default)]
pub(super) struct LinkMeter {
    up: Mutex<Direction>,
    down: Mutex<Direction>,
}

impl LinkMeter {
    /// Records a question that left at `sent_us`, was answered at `there_us` by the machine's clock, and whose answer arrived
    /// now. Neither had bulk data.
    pub(super) fn exchanged(&self, sent_us: u64, there_us: u64, now_us: u64) {
        locked(&self.up).carried(sent_us, there_us, 0);
        locked(&self.down).carried(there_us, now_us, 0);
    }

    /// Records an answer with `down` bytes of bulk data that arrived now, to a request with `up` bytes that left at `sent_us`.
    pub(super) fn answered(&self, answer: &Answer, (sent_us, up): (u64, usize), down: usize) {
        match answer {
            Answer::Ack { at_us, .. } | Answer::Accepted { at_us } => {
                locked(&self.up).carried(sent_us, *at_us, up);
            }
            Answer::Part { progress, .. } => {
                locked(&self.down).carried(progress.at_us, clock_us(), down);
            }
            Answer::Bytes { at_us, .. } => locked(&self.down).carried(*at_us, clock_us(), down),
            _ => {}
        }
    }

    pub(super) fn speed(&self) -> LinkSpeed {
        LinkSpeed { up_bytes_per_s: locked(&self.up).rate(), down_bytes_per_s: locked(&self.down).rate() }
    }
}

/// The meter of one direction. Times are microseconds, by the clocks of the sending and of the receiving side.
#[derive(Debug, Default)]
struct Direction {
    least: Least,
    /// When the last message with bulk data arrived.
    last: i64,
    /// Bytes and time of the next sample.
    bytes: u64,
    us: u64,
    samples: VecDeque<f64>,
}

/// The least difference between the times of arrival and of departure of recent messages.
#[derive(Debug, Default)]
struct Least {
    /// The least since the time, and that of the period before.
    now: Option<(i64, i64)>,
    before: Option<i64>,
}

impl Least {
    fn get(&self) -> Option<i64> {
        self.now.map(|(least, _)| least).into_iter().chain(self.before).min()
    }

    fn observe(&mut self, difference: i64, at: i64) {
        self.now = match self.now {
            // A clock that went back belongs to a machine that does not tell the truth.
            Some((least, since)) if at.saturating_sub(since) < FRESH_US && at >= since => {
                Some((least.min(difference), since))
            }
            old => {
                self.before = old.map(|(least, _)| least);
                Some((difference, at))
            }
        };
    }
}

impl Direction {
    /// Records a message. The times of the other side may be anything.
    fn carried(&mut self, sent_us: u64, arrived_us: u64, bytes: usize) {
        let bounded = |us: u64| i64::try_from(us).unwrap_or(i64::MAX);
        let (sent, arrived) = (bounded(sent_us), bounded(arrived_us));
        let known = self.least.get();
        self.least.observe(arrived.saturating_sub(sent), arrived);
        if bytes < BULK_BYTES {
            return;
        }
        let before = std::mem::replace(&mut self.last, arrived);
        // Without anything to compare with, the message was carried for an unknown time.
        let Some(least) = known else { return };
        let from = sent.saturating_add(least).max(before);
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.us = self.us.saturating_add(u64::try_from(arrived.saturating_sub(from)).unwrap_or(0));
        let enough = self.us >= SAMPLE_US || self.bytes >= LARGE_SAMPLE_BYTES;
        if self.bytes >= SAMPLE_BYTES && enough {
            if self.samples.len() == SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back(bytes_per_s(self.bytes, Duration::from_micros(self.us)));
            (self.bytes, self.us) = (0, 0);
        }
    }

    /// The median of the samples.
    fn rate(&self) -> Option<f64> {
        let mut samples: Vec<f64> = self.samples.iter().copied().collect();
        samples.sort_by(f64::total_cmp);
        samples.get(samples.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 4e6;
    /// The clock of the receiving side is behind.
    const AHEAD: u64 = 5_000_000;
    const LATENCY: u64 = 20_000;

    /// A link that carries one message after the other.
    struct Link {
        free: u64,
        meter: Direction,
        /// The sum of the times of all transfers, each by itself.
        each_us: u64,
        bytes: u64,
    }

    impl Link {
        fn new() -> Self {
            let mut link = Self { free: 0, meter: Direction::default(), each_us: 0, bytes: 0 };
            link.send(10, 0);
            link
        }

        /// Sends a message at a time; returns when it has arrived.
        fn send(&mut self, at: u64, bytes: usize) -> u64 {
            let takes = Duration::from_secs_f64(bytes as f64 / RATE).as_micros() as u64;
            self.free = self.free.max(at) + takes;
            let arrived = self.free + LATENCY;
            self.meter.carried(at + AHEAD, arrived, bytes);
            self.each_us += arrived - at;
            self.bytes += bytes as u64;
            arrived
        }

        fn measured(&self) -> f64 {
            self.meter.rate().expect("enough was sent")
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 0.02
    }

    #[test]
    fn transfers_that_wait_for_each_other_and_long_ways_do_not_spoil_the_rate() {
        let mut link = Link::new();
        let mut at = 1_000;
        for _ in 0..50 {
            // Six at once, then nothing for a while.
            let arrived = [60 << 10, 20 << 10, 64 << 10, 17 << 10, 64 << 10, 64 << 10]
                .map(|bytes| link.send(at, bytes));
            // A question that is asked again and again, since clocks drift.
            link.send(arrived[5] + 100_000, 0);
            at = arrived[5] + 300_000;
        }
        assert!(close(link.measured(), RATE), "{}", link.measured());
        // Negative control: the same transfers, each by itself.
        let each = bytes_per_s(link.bytes, Duration::from_micros(link.each_us));
        assert!(each < RATE / 3.0, "{each}");
    }

    #[test]
    fn single_messages_are_measured_without_the_delay_of_the_way() {
        let mut link = Link::new();
        for number in 0..100_u64 {
            link.send(1_000_000 * number, 32 << 10);
            link.send(1_000_000 * number + 500_000, 0);
        }
        assert!(close(link.measured(), RATE), "{}", link.measured());
    }

    #[test]
    fn small_messages_and_few_bytes_are_no_measure() {
        let mut link = Link::new();
        for number in 0..1000 {
            link.send(number * 1000, BULK_BYTES - 1);
        }
        assert_eq!(link.meter.rate(), None);
        link.send(2_000_000, 128 << 10);
        assert_eq!(link.meter.rate(), None);
        link.send(3_000_000, 128 << 10);
        assert!(link.meter.rate().is_some());
    }

    #[test]
    fn the_rate_follows_the_link_and_one_outlier_does_not_change_it() {
        let mut meter = Direction::default();
        let mut now = 0;
        let mut send = |meter: &mut Direction, takes: u64, bytes: usize| {
            now += 1_000_000;
            meter.carried(now, now, 0);
            meter.carried(now, now + takes, bytes);
        };
        for _ in 0..SAMPLES {
            send(&mut meter, 100_000, 1 << 20);
        }
        send(&mut meter, 900_000, 1 << 20);
        assert!(close(meter.rate().unwrap_or_default(), 1.048_576e7), "{meter:?}");
        for _ in 0..SAMPLES {
            send(&mut meter, 200_000, 1 << 20);
        }
        assert!(close(meter.rate().unwrap_or_default(), 5.242_88e6), "{meter:?}");
        assert!(meter.samples.len() <= SAMPLES);
    }

    #[test]
    fn times_of_a_machine_that_make_no_sense_do_no_harm() {
        let mut meter = Direction::default();
        for at in [0, u64::MAX, 1, u64::MAX / 2, 0] {
            for _ in 0..20 {
                meter.carried(7, at, 1 << 20);
                meter.carried(at, 7, 1 << 20);
            }
        }
        assert!(meter.rate().is_none_or(f64::is_finite));
    }
}
