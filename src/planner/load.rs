//! How a segment loads this machine, its links and the workers.
//!
//! Relevant if you want to know why a plan is predicted to reach a rate of requests. Of many requests in flight, each takes
//! its time from this machine, from the two directions of its link, and from the workers together. The next request comes out
//! when the busiest of them is free again.
//!
//! Invariant: loads of segments add up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::chain::{Chain, Piece, Place, SegmentAlternative, SegmentOptions};
use crate::worker::LOCAL_HOST;

/// Seconds that one request takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Load {
    /// From its arrival to its answer, if it is alone.
    pub(super) latency_s: f64,
    /// Of this machine.
    here_s: f64,
    /// Of the link of this machine, there.
    send_s: f64,
    /// Of the link of this machine, back.
    receive_s: f64,
    /// Of all workers together.
    workers_s: f64,
    /// Bytes of the parts that workers hold.
    pub(super) held: u64,
}

impl Load {
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            latency_s: self.latency_s + other.latency_s,
            here_s: self.here_s + other.here_s,
            send_s: self.send_s + other.send_s,
            receive_s: self.receive_s + other.receive_s,
            workers_s: self.workers_s + other.workers_s,
            held: self.held.saturating_add(other.held),
        }
    }

    fn resources(&self) -> [(&'static str, f64); 4] {
        [
            ("this machine", self.here_s),
            ("this machine's link, sending", self.send_s),
            ("this machine's link, receiving", self.receive_s),
            ("the workers", self.workers_s),
        ]
    }

    /// Time between two of many requests.
    pub(super) fn period_s(&self) -> f64 {
        self.resources().into_iter().fold(0.0, |most, (_, s)| f64::max(most, s))
    }

    /// What is busiest.
    pub(super) fn bottleneck(&self) -> &'static str {
        let busiest = self.resources().into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        busiest.map_or("this machine", |(name, _)| name)
    }

    /// Whether the load is at most another one in every respect.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        let pairs = self.resources().into_iter().zip(other.resources());
        self.latency_s <= other.latency_s
            && self.held <= other.held
            && pairs.into_iter().all(|((_, own), (_, other))| own <= other)
    }
}

/// Loads that were computed before: by range, and by the number of workers that have room.
pub(super) type Known = HashMap<(Range<usize>, usize), Option<Load>>;

/// Sums over the first pieces.
#[derive(Default)]
struct Sums {
    local_s: Vec<f64>,
    coded_s: Vec<f64>,
    coded_here_s: Vec<f64>,
    memory: Vec<u64>,
    /// By worker.
    on_workers: Vec<Vec<f64>>,
}

/// The loads of the segments of a chain.
pub(super) struct Loads<'a> {
    chain: &'a Chain,
    options: &'a SegmentOptions,
    sums: Sums,
    /// The workers on other machines, those with the most room first.
    away: Vec<usize>,
}

fn running<T: Copy>(zero: T, items: impl Iterator<Item = T>, plus: impl Fn(T, T) -> T) -> Vec<T> {
    let mut sums = vec![zero];
    for item in items {
        sums.push(plus(sums[sums.len() - 1], item));
    }
    sums
}

impl<'a> Loads<'a> {
    pub(super) fn new(chain: &'a Chain, options: &'a SegmentOptions) -> Self {
        let pieces = &chain.pieces;
        let seconds = |of: &dyn Fn(&Piece) -> f64| running(0.0, pieces.iter().map(of), |a, b| a + b);
        let sums = Sums {
            local_s: seconds(&|piece| piece.local_s),
            coded_s: seconds(&|piece| piece.coded_s),
            coded_here_s: seconds(&|piece| piece.coded_here_s),
            memory: running(0, pieces.iter().map(|piece| piece.memory_bytes), u64::saturating_add),
            on_workers: (0..options.workers.len())
                .map(|worker| seconds(&|piece| piece.on_workers[worker]))
                .collect(),
        };
        let mut away: Vec<usize> =
            (0..options.workers.len()).filter(|at| options.workers[*at].machine != LOCAL_HOST).collect();
        let room = |at: &usize| options.workers[*at].memory_bytes.unwrap_or(u64::MAX);
        away.sort_by_key(|at| std::cmp::Reverse(room(at)));
        Self { chain, options, sums, away }
    }

    /// All pieces.
    pub(super) fn all(&self) -> Range<usize> {
        0..self.chain.pieces.len()
    }

    fn of_range(sums: &[f64], pieces: &Range<usize>) -> f64 {
        (sums[pieces.end] - sums[pieces.start]).max(0.0)
    }

    /// Whether a segment takes as long coded as on the host: then no layer of it is coded.
    pub(super) fn is_same_coded(&self, pieces: &Range<usize>) -> bool {
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b;
        let pieces = self.chain.pieces[pieces.clone()].iter();
        pieces.into_iter().all(|own| same(own.coded_s, own.local_s) && same(own.coded_here_s, own.local_s))
    }

    /// The load of a segment, where workers hold `held` bytes already; `None` if it cannot be computed there.
    pub(super) fn of(
        &self,
        pieces: &Range<usize>,
        place: Place,
        held: u64,
        known: &mut Known,
    ) -> Option<Load> {
        let of = |sums: &[f64]| Self::of_range(sums, pieces);
        match place {
            Place::Host => {
                let local_s = of(&self.sums.local_s);
                Some(Load { latency_s: local_s, here_s: local_s, ..Load::default() })
            }
            Place::Coded => {
                let (latency_s, here_s) = (of(&self.sums.coded_s), of(&self.sums.coded_here_s));
                Some(Load { latency_s, here_s, workers_s: (latency_s - here_s).max(0.0), ..Load::default() })
            }
            Place::Replicated => {
                let room = self.room(pieces, held);
                *known.entry((pieces.clone(), room)).or_insert_with(|| self.replicated(pieces, room).ok())
            }
        }
    }

    /// Number of workers on other machines that have room for a segment beside what they hold.
    fn room(&self, pieces: &Range<usize>, held: u64) -> usize {
        let memory = self.sums.memory[pieces.end].saturating_sub(self.sums.memory[pieces.start]);
        let needed = held.saturating_add(memory);
        let fits = |at: &usize| self.options.workers[*at].memory_bytes.is_none_or(|room| room >= needed);
        self.away.partition_point(fits)
    }

    /// The workers that hold a segment.
    pub(super) fn holders(&self, pieces: &Range<usize>, held: u64) -> Vec<usize> {
        let mut holders = self.away[..self.room(pieces, held)].to_vec();
        holders.sort_unstable();
        holders
    }

    /// The load of a segment that the first `room` workers hold; an error that says why they cannot.
    fn replicated(&self, pieces: &Range<usize>, room: usize) -> Result<Load, String> {
        let ends = (self.chain.elems[pieces.start], self.chain.elems[pieces.end]);
        let (Some(up), Some(down)) = ends else {
            return Err("workers take arrays of f32 and f64 of fixed shape only".to_owned());
        };
        let holders = &self.away[..room];
        self.suffice(holders)?;
        let (mut fastest_s, mut by_machine) = (f64::INFINITY, BTreeMap::<&str, (f64, f64)>::new());
        for at in holders {
            let worker = &self.options.workers[*at];
            let (there_s, back_s) = (up * worker.rates.upload_s, down * worker.rates.download_s);
            let compute_s = Self::of_range(&self.sums.on_workers[*at], pieces);
            let busy_s = (worker.rates.call_s + there_s + compute_s + back_s).max(f64::MIN_POSITIVE);
            fastest_s = fastest_s.min(busy_s);
            // The workers of a machine share its link.
            let (rate, link_s) = by_machine.entry(&worker.machine).or_default();
            (*rate, *link_s) = (*rate + 1.0 / busy_s, link_s.max(there_s).max(back_s));
        }
        let rate: f64 = by_machine
            .into_values()
            .map(|(rate, link_s)| if link_s > 0.0 { rate.min(1.0 / link_s) } else { rate })
            .sum();
        let (network, layer_s) = (self.options.rates.network, self.options.rates.host.layer_s);
        Ok(Load {
            latency_s: layer_s + fastest_s,
            here_s: layer_s,
            send_s: network.map_or(0.0, |network| up * network.send_s),
            receive_s: network.map_or(0.0, |network| down * network.receive_s),
            workers_s: 1.0 / rate,
            held: self.sums.memory[pieces.end].saturating_sub(self.sums.memory[pieces.start]),
        })
    }

    /// Whether some of these workers may be late or lost; an error that says why not.
    fn suffice(&self, holders: &[usize]) -> Result<(), String> {
        let needed = self.options.tolerate.saturating_add(1);
        let machines = |of: &[usize]| {
            of.iter().map(|at| self.options.workers[*at].machine.as_str()).collect::<HashSet<_>>().len()
        };
        if self.away.is_empty() {
            let here = "they share the cores of this machine";
            let none = "none takes parts";
            return Err(if self.options.workers.is_empty() { none } else { here }.to_owned());
        }
        // If all workers are on one machine, it cannot be tolerated that it is lost.
        let (there, what) = if machines(&self.away) > 1 {
            (machines(holders), "machines")
        } else {
            (holders.len(), "workers")
        };
        if there >= needed {
            return Ok(());
        }
        let room = if holders.len() < self.away.len() { " with room for it" } else { "" };
        Err(format!(
            "{needed} {what} must hold it, so that {} may be late, and {there}{room} can",
            needed - 1
        ))
    }

    /// A segment in one of the places, as if it were alone.
    pub(super) fn alternative(&self, pieces: &Range<usize>, place: Place) -> SegmentAlternative {
        let load = match place {
            Place::Replicated => self.replicated(pieces, self.room(pieces, 0)),
            Place::Host | Place::Coded => {
                self.of(pieces, place, 0, &mut Known::new()).ok_or_else(String::new)
            }
        };
        let (load, why_not) = match load {
            Ok(load) => (Some(load), None),
            Err(why) => (None, Some(why)),
        };
        SegmentAlternative {
            place,
            latency_s: load.map(|load| load.latency_s),
            period_s: load.map(|load| load.period_s()),
            why_not,
        }
    }
}
