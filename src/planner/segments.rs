//! Chooses where each segment of a model is computed, by predicted time.
//!
//! A model that is cut into *pieces* is a chain: each piece reads what the one before it made. A *segment* is a range of
//! pieces that is computed in one way ([`Place`]): on this machine, coded layer by layer, or whole by workers that hold it.
//! [`plan_segments`] finds the segments with the shortest time of one request, or with the highest rate of many.
//!
//! Relevant if you want to know why a model is divided as it is.
//!
//! Invariant: no plan of the same pieces is predicted to be better, in particular not the whole model in any one way.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;

use super::chain::{Chain, Objective, Place, SegmentAlternative, SegmentOptions};
use super::load::{Load, Loads};
use crate::error::{Error, Result};

/// Maximum number of ways to compute the first pieces that are kept beside each other. More than any model needs: ways that
/// are worse in every respect are dropped first.
const MOST_KEPT: usize = 128;
/// Those that are worse are dropped whenever there are more than this many.
const MANY: usize = 4 * MOST_KEPT;

/// One segment of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentPlan {
    /// Its pieces.
    pub pieces: Range<usize>,
    /// Where it is computed.
    pub place: Place,
    /// Predicted seconds of one request.
    pub latency_s: f64,
    /// For a replicated segment the workers that hold it, as indices of [`SegmentOptions::workers`].
    pub workers: Vec<usize>,
    /// The segment in each of the places.
    pub alternatives: Vec<SegmentAlternative>,
    /// The reason, readable.
    pub why: String,
}

/// A plan of all pieces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChainPlan {
    /// What it was chosen for.
    pub objective: Objective,
    /// The segments, in order.
    pub segments: Vec<SegmentPlan>,
    /// Predicted seconds of one request.
    pub latency_s: f64,
    /// Predicted seconds between two requests of many in flight.
    pub period_s: f64,
    /// What limits the rate of requests.
    pub bottleneck: &'static str,
    /// The whole model in each of the places.
    pub whole: Vec<SegmentAlternative>,
}

/// The best segments.
///
/// # Errors
/// [`Error::Mismatch`] unless a chain has one number of elements more than pieces, and each piece a time for each worker.
pub fn plan_segments(chain: &Chain, options: &SegmentOptions) -> Result<ChainPlan> {
    if chain.elems.len() != chain.pieces.len() + 1 {
        let help = "give those before, between and after the pieces";
        let expected = chain.pieces.len() + 1;
        return Err(Error::mismatch("numbers of elements of a chain", chain.elems.len(), expected, help));
    }
    let workers = options.workers.len();
    if let Some(piece) = chain.pieces.iter().find(|piece| piece.on_workers.len() != workers) {
        let help = "give a time for each worker that takes parts";
        return Err(Error::mismatch("times of a piece on workers", piece.on_workers.len(), workers, help));
    }
    let loads = Loads::new(chain, options);
    let steps = search(&loads, chain.pieces.len(), options.objective);
    Ok(describe(&loads, &steps, options))
}

/// A range of pieces in one place.
type Step = (Range<usize>, Place);

/// A way to compute the first pieces.
#[derive(Clone)]
struct Partial {
    load: Load,
    /// The step that ended it, and the index of the way that it went on from, among those that end where it begins.
    last: Option<(Step, usize)>,
    steps: usize,
}

impl Partial {
    /// What is compared: the objective, then the other one, then the number of steps.
    fn key(&self, objective: Objective) -> [f64; 3] {
        let (latency, period) = (self.load.latency_s, self.load.period_s());
        match objective {
            Objective::Latency => [latency, period, self.steps as f64],
            Objective::Throughput => [period, latency, self.steps as f64],
        }
    }
}

/// Dynamic programming over the pieces: of the ways to compute the first of them, those are kept that no other one is at least
/// as good as in every respect.
fn search(loads: &Loads<'_>, pieces: usize, objective: Objective) -> Vec<Step> {
    let start = Partial { load: Load::default(), last: None, steps: 0 };
    let mut ends: Vec<Vec<Partial>> = vec![Vec::new(); pieces + 1];
    ends[0].push(start);
    let mut known = HashMap::new();
    for from in 0..pieces {
        let here = std::mem::take(&mut ends[from]);
        let here = kept(here, objective);
        for (index, partial) in here.iter().enumerate() {
            for place in Place::ALL {
                // The first two places are chosen piece by piece.
                let most = if place == Place::Replicated { pieces } else { from + 1 };
                for (to, end) in ends.iter_mut().enumerate().take(most + 1).skip(from + 1) {
                    let load = loads.of(&(from..to), place, partial.load.held, &mut known);
                    let Some(load) = load else { continue };
                    let last = Some(((from..to, place), index));
                    end.push(Partial { load: partial.load.plus(&load), last, steps: partial.steps + 1 });
                }
            }
        }
        ends[from] = here;
        for end in ends[from + 1..].iter_mut().filter(|end| end.len() > MANY) {
            *end = kept(std::mem::take(end), objective);
        }
    }
    let last = kept(std::mem::take(&mut ends[pieces]), objective);
    let mut steps = Vec::new();
    let mut at = last.first();
    while let Some((step, before)) = at.and_then(|partial| partial.last.as_ref()) {
        steps.push(step.clone());
        at = ends[step.0.start].get(*before);
    }
    steps.reverse();
    // Where some ways were dropped, the whole model in one place may be better.
    let whole = Place::ALL.iter().filter_map(|place| {
        let load = loads.of(&loads.all(), *place, 0, &mut known)?;
        Some((Partial { load, last: None, steps: 1 }, vec![(loads.all(), *place)]))
    });
    let found = last.first().map(|partial| (partial.clone(), joined(steps, loads)));
    let by_key = |(a, _): &(Partial, Vec<Step>), (b, _): &(Partial, Vec<Step>)| {
        a.key(objective).partial_cmp(&b.key(objective)).unwrap_or(Ordering::Equal)
    };
    found.into_iter().chain(whole).min_by(by_key).map(|(_, steps)| steps).unwrap_or_default()
}

/// Those ways that no other one is at least as good as, the best first.
fn kept(mut all: Vec<Partial>, objective: Objective) -> Vec<Partial> {
    all.sort_by(|a, b| a.key(objective).partial_cmp(&b.key(objective)).unwrap_or(Ordering::Equal));
    let mut kept: Vec<Partial> = Vec::new();
    for partial in all {
        let as_good = |other: &Partial| match objective {
            Objective::Latency => {
                other.load.latency_s <= partial.load.latency_s && other.load.held <= partial.load.held
            }
            Objective::Throughput => other.load.is_within(&partial.load),
        };
        if kept.len() < MOST_KEPT && !kept.iter().any(as_good) {
            kept.push(partial);
        }
    }
    kept
}

/// Joins steps in the same place. A step on the host beside a coded one is joined to it if none of its layers is coded.
fn joined(steps: Vec<Step>, loads: &Loads<'_>) -> Vec<Step> {
    let mut joined: Vec<Step> = Vec::new();
    for (pieces, place) in steps {
        if let Some((own, before)) = joined.last_mut()
            && own.end == pieces.start
            && place != Place::Replicated
            && *before != Place::Replicated
        {
            let stays = |pieces: &Range<usize>| loads.is_same_coded(pieces);
            if *before == place || (place == Place::Host && stays(&pieces)) {
                own.end = pieces.end;
                continue;
            }
            if *before == Place::Host && stays(own) {
                (*before, own.end) = (place, pieces.end);
                continue;
            }
        }
        joined.push((pieces, place));
    }
    joined
}

fn describe(loads: &Loads<'_>, steps: &[Step], options: &SegmentOptions) -> ChainPlan {
    let mut all = Load::default();
    let mut known = HashMap::new();
    let mut segments = Vec::with_capacity(steps.len());
    for (pieces, place) in steps {
        let workers = match place {
            Place::Replicated => loads.holders(pieces, all.held),
            Place::Host | Place::Coded => Vec::new(),
        };
        let load = loads.of(pieces, *place, all.held, &mut known).unwrap_or_default();
        all = all.plus(&load);
        let alternatives: Vec<SegmentAlternative> =
            Place::ALL.iter().map(|place| loads.alternative(pieces, *place)).collect();
        let why = explain(*place, &alternatives, workers.len(), options.objective);
        segments.push(SegmentPlan {
            pieces: pieces.clone(),
            place: *place,
            latency_s: load.latency_s,
            workers,
            alternatives,
            why,
        });
    }
    let whole = Place::ALL.iter().map(|place| loads.alternative(&loads.all(), *place)).collect();
    ChainPlan {
        objective: options.objective,
        segments,
        latency_s: all.latency_s,
        period_s: all.period_s(),
        bottleneck: all.bottleneck(),
        whole,
    }
}

/// The reason for a place, in one sentence.
fn explain(
    place: Place,
    alternatives: &[SegmentAlternative],
    holders: usize,
    objective: Objective,
) -> String {
    let time = |other: &SegmentAlternative| match objective {
        Objective::Latency => other.latency_s,
        Objective::Throughput => other.period_s,
    };
    let what = match objective {
        Objective::Latency => "",
        Objective::Throughput => " a request",
    };
    let said = |other: &SegmentAlternative| {
        let where_ = match other.place {
            Place::Host => "on the host",
            Place::Coded => "coded",
            Place::Replicated => "whole on a worker",
        };
        match (time(other), &other.why_not) {
            (Some(s), _) => format!("{:.2} ms{what} {where_}", s * 1e3),
            (None, Some(why)) => format!("not {where_}: {why}"),
            (None, None) => format!("not {where_}"),
        }
    };
    let own = alternatives.iter().filter(|other| other.place == place).map(said);
    let mut others: Vec<&SegmentAlternative> =
        alternatives.iter().filter(|other| other.place != place).collect();
    others.sort_by_key(|other| time(other).is_none());
    let others = others.into_iter().map(said).collect::<Vec<_>>().join("; ");
    let held = if place == Place::Replicated { format!(", held by {holders}") } else { String::new() };
    format!("{}{held}; {others}", own.collect::<String>())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::super::{LinkRates, Network, PartWorker, Piece, Rates};
    use super::*;
    use crate::worker::LOCAL_HOST;

    /// Numbers from 0 to 1.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f64 / f64::from(1 << 24)
        }

        fn below(&mut self, most: u32) -> usize {
            let drawn = self.next() * f64::from(most);
            (1..most).filter(|at| f64::from(*at) <= drawn).count()
        }
    }

    fn random(seed: u64, objective: Objective) -> (Chain, SegmentOptions) {
        let mut random = Random(seed);
        let (pieces, workers) = (1 + random.below(5), random.below(5));
        let hosts = [LOCAL_HOST, "alpha", "beta", "gamma"];
        let workers: Vec<PartWorker> = (0..workers)
            .map(|_| PartWorker {
                machine: hosts[random.below(4)].to_owned(),
                rates: Rates::default().worker.over(LinkRates {
                    call_s: random.next(),
                    upload_s: random.next(),
                    download_s: random.next(),
                }),
                memory_bytes: (random.next() < 0.5).then(|| random.below(30) as u64),
            })
            .collect();
        let piece = |random: &mut Random| {
            let (local_s, coded_s) = (3.0 * random.next(), 3.0 * random.next());
            Piece {
                local_s,
                coded_s: if random.next() < 0.3 { local_s } else { coded_s },
                coded_here_s: coded_s.min(local_s) * random.next(),
                on_workers: workers.iter().map(|_| 3.0 * random.next()).collect(),
                memory_bytes: random.below(10) as u64,
            }
        };
        let all = (0..pieces).map(|_| piece(&mut random)).collect();
        let elems = (0..=pieces).map(|_| (random.next() < 0.8).then(|| random.next())).collect();
        let network =
            Network { machines: 3, workers: workers.len(), send_s: random.next(), receive_s: random.next() };
        let rates = Rates { network: (random.next() < 0.5).then_some(network), ..Rates::default() };
        let tolerate = random.below(2);
        (Chain { pieces: all, elems }, SegmentOptions { objective, tolerate, rates, workers })
    }

    /// The best key of all ways to compute the pieces from `from` on.
    fn best(loads: &Loads<'_>, from: usize, before: &Partial, objective: Objective) -> [f64; 3] {
        let pieces = loads.all().end;
        if from == pieces {
            return before.key(objective);
        }
        let mut least = [f64::INFINITY; 3];
        for place in Place::ALL {
            for to in from + 1..=pieces {
                let load = loads.of(&(from..to), place, before.load.held, &mut HashMap::new());
                let Some(load) = load else { continue };
                let next = Partial { load: before.load.plus(&load), last: None, steps: before.steps + 1 };
                let found = best(loads, to, &next, objective);
                if found < least {
                    least = found;
                }
            }
        }
        least
    }

    #[test]
    fn no_other_plan_is_better() {
        let mut replicated = 0;
        for seed in 0..400 {
            let objective = if seed % 2 == 0 { Objective::Latency } else { Objective::Throughput };
            let (chain, options) = random(seed, objective);
            let plan = plan_segments(&chain, &options).unwrap();
            let loads = Loads::new(&chain, &options);
            let start = Partial { load: Load::default(), last: None, steps: 0 };
            let want = best(&loads, 0, &start, objective);
            let of = |latency: f64, period: f64| match objective {
                Objective::Latency => latency,
                Objective::Throughput => period,
            };
            let got = of(plan.latency_s, plan.period_s);
            assert!((got - want[0]).abs() < 1e-9, "{seed}: {got} {want:?} {plan:#?}");
            for whole in &plan.whole {
                let other = whole.latency_s.zip(whole.period_s).map(|(latency, period)| of(latency, period));
                assert!(other.is_none_or(|other| got <= other + 1e-9), "{seed}: {plan:#?}");
            }
            // The segments are all pieces in order, and each says why.
            let ends: Vec<usize> =
                plan.segments.iter().flat_map(|s| [s.pieces.start, s.pieces.end]).collect();
            assert_eq!((ends[0], ends[ends.len() - 1]), (0, chain.pieces.len()));
            assert!(ends[1..ends.len() - 1].chunks(2).all(|pair| pair[0] == pair[1]));
            assert!(plan.segments.iter().all(|segment| !segment.why.is_empty()));
            for segment in plan.segments.iter().filter(|segment| segment.place == Place::Replicated) {
                replicated += 1;
                assert!(segment.workers.len() > options.tolerate);
                assert!(segment.workers.iter().all(|at| options.workers[*at].machine != LOCAL_HOST));
            }
        }
        assert!(replicated > 20, "{replicated}");
    }

    /// Four alike pieces, and two workers on each of two machines that are `speed` times as fast as the host and whose links
    /// take `elem_s` for an element.
    fn star(speed: f64, elem_s: f64, objective: Objective) -> (Chain, SegmentOptions) {
        let piece = Piece {
            local_s: 0.01,
            coded_s: 0.009,
            coded_here_s: 0.002,
            on_workers: vec![0.01 / speed; 4],
            memory_bytes: 10,
        };
        let rates =
            Rates::default().worker.over(LinkRates { call_s: 1e-4, upload_s: elem_s, download_s: elem_s });
        let worker = |at: usize| PartWorker {
            machine: ["alpha", "alpha", "beta", "beta"][at].to_owned(),
            rates,
            memory_bytes: None,
        };
        let network = Network { machines: 2, workers: 4, send_s: elem_s / 2.0, receive_s: elem_s / 2.0 };
        let rates = Rates { network: Some(network), ..Rates::default() };
        let chain = Chain {
            pieces: vec![piece; 4],
            elems: [1000.0, 4000.0, 2000.0, 4000.0, 10.0].map(Some).to_vec(),
        };
        (chain, SegmentOptions { objective, tolerate: 1, rates, workers: (0..4).map(worker).collect() })
    }

    fn places(chain: &Chain, options: &SegmentOptions) -> Vec<(Range<usize>, Place)> {
        let plan = plan_segments(chain, options).unwrap();
        plan.segments.into_iter().map(|segment| (segment.pieces, segment.place)).collect()
    }

    #[test]
    fn slow_links_keep_everything_here_and_fast_ones_send_everything_out() {
        for objective in [Objective::Latency, Objective::Throughput] {
            let (mut chain, options) = star(3.0, 1e-3, objective);
            for piece in &mut chain.pieces {
                (piece.coded_s, piece.coded_here_s) = (piece.local_s, piece.local_s);
            }
            assert_eq!(places(&chain, &options), [(0..4, Place::Host)]);
            let (chain, options) = star(3.0, 1e-9, objective);
            assert_eq!(places(&chain, &options), [(0..4, Place::Replicated)]);
        }
        // Workers as fast as the host: one request gains nothing, many do.
        let (chain, options) = star(0.8, 1e-9, Objective::Latency);
        assert_eq!(places(&chain, &options), [(0..4, Place::Coded)]);
        let (chain, options) = star(0.8, 1e-9, Objective::Throughput);
        let plan = plan_segments(&chain, &options).unwrap();
        assert!(plan.segments.iter().any(|segment| segment.place == Place::Replicated), "{plan:#?}");
        assert!(plan.period_s < 0.0126, "{plan:#?}");
    }

    #[test]
    fn what_cannot_be_replicated_says_why() {
        let refused = |change: &dyn Fn(&mut SegmentOptions)| {
            let (chain, mut options) = star(3.0, 1e-9, Objective::Latency);
            change(&mut options);
            let plan = plan_segments(&chain, &options).unwrap();
            assert!(plan.segments.iter().all(|segment| segment.place != Place::Replicated));
            plan.whole[2].why_not.clone().unwrap()
        };
        let few = refused(&|options| options.tolerate = 2);
        assert!(few.contains("3 machines") && few.contains("and 2"), "{few}");
        let here = refused(&|options| {
            options.workers.iter_mut().for_each(|worker| worker.machine = LOCAL_HOST.to_owned());
        });
        assert!(here.contains("cores of this machine"), "{here}");
        let room = refused(&|options| options.workers.iter_mut().for_each(|own| own.memory_bytes = Some(9)));
        assert!(room.contains("room"), "{room}");
        // On one machine it is workers that may be lost.
        let (chain, mut options) = star(3.0, 1e-9, Objective::Latency);
        options.workers.truncate(2);
        let chain = Chain {
            pieces: chain.pieces.into_iter().map(|own| Piece { on_workers: vec![0.003; 2], ..own }).collect(),
            ..chain
        };
        assert_eq!(places(&chain, &options), [(0..4, Place::Replicated)]);
        options.tolerate = 2;
        assert!(
            plan_segments(&chain, &options).unwrap().whole[2].why_not.as_ref().unwrap().contains("3 workers")
        );
        assert!(plan_segments(&Chain::default(), &options).is_err());
    }

    #[test]
    fn a_large_model_is_divided_among_the_parts_that_fit() {
        let (chain, mut options) = star(3.0, 1e-9, Objective::Latency);
        options.workers.iter_mut().for_each(|own| own.memory_bytes = Some(25));
        let found = places(&chain, &options);
        assert_eq!(
            found
                .iter()
                .filter(|(_, place)| *place == Place::Replicated)
                .map(|(p, _)| p.len())
                .sum::<usize>(),
            2
        );
        assert!(options.workers.iter().all(|worker| worker.memory_bytes == Some(25)));
    }

    #[test]
    fn many_pieces_are_planned_at_once() {
        let (chain, options) = star(0.8, 1e-7, Objective::Throughput);
        let mut random = Random(1);
        let pieces = (0..40).map(|_| {
            let of = random.next();
            Piece {
                local_s: 0.01 * of,
                coded_s: 0.012 * of,
                coded_here_s: 0.004 * of,
                ..chain.pieces[0].clone()
            }
        });
        let chain = Chain {
            pieces: pieces.collect(),
            elems: (0..=40).map(|at| Some(f64::from(at % 7) * 1e4)).collect(),
        };
        let started = std::time::Instant::now();
        let plan = plan_segments(&chain, &options).unwrap();
        assert!(
            plan.whole.iter().all(|whole| whole.period_s.is_none_or(|other| plan.period_s <= other + 1e-9))
        );
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
