//! Bad links between a master and its machines: loss, delay, reordering, partitions of one direction, black holes; over TCP
//! and over QUIC. Each machine is a process behind a relay of its own.
//!
//! In every case each run must be right in every element, computed by the workers, and end within its deadline.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; what was seen is told"
)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use fcdcc::{Completion, Error, OnShortfall};
use fcdcc_test_support::relay::{Counts, Direction, Link, Path};
use libtest_mimic::{Failed, Trial};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::star::{DEADLINE, Ran, Star, Transport, coded};

type Outcome = Result<(), Failed>;

/// Machines connect to the master.
const TO_MACHINE: Direction = Direction::ToClient;
const FROM_MACHINE: Direction = Direction::ToTarget;
/// Machines of a star. With two devices each, two may be missing.
const MACHINES: usize = 4;
/// A machine that does not answer is suspected after 1 s, on an idle machine.
const SUSPECTED: Duration = Duration::from_secs(8);
/// A machine behind a link that was cut for a short time works again within this time.
const BACK: Duration = Duration::from_secs(8);
/// The same after it was given up: both sides may close their connection before they make another.
const BACK_AFTER_LOSS: Duration = Duration::from_secs(20);
/// Time for which an outage is watched.
const WATCHED: Duration = Duration::from_millis(700);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Links that take a little time, with a seed for each machine.
fn good(machine: usize) -> Link {
    Link::both_ways(100 + machine as u64, Path { delay: ms(2), ..Path::default() })
}

/// The longest run, told.
fn longest(runs: &[Ran]) -> &str {
    runs.iter().max_by_key(|ran| ran.took).map_or("none", |ran| &ran.story)
}

fn users(runs: &[Ran]) -> BTreeSet<usize> {
    runs.iter().flat_map(|ran| ran.used.iter().copied()).collect()
}

/// What the relays counted in both directions.
fn both_ways(star: &Star) -> [Counts; 2] {
    Direction::BOTH.map(|direction| star.counts(direction))
}

/// Packets are lost, late, doubled and in another order: every run is right, and in time.
fn packets_are_lost_late_and_in_another_order(transport: Transport) -> Outcome {
    let path = |loss| Path { loss, delay: ms(20), jitter: ms(10), ..Path::default() };
    // The first connections are made over such links too.
    let star = Star::new(transport, MACHINES, |machine| Link::both_ways(machine as u64, path(0.01)));
    let lossless = Path { duplication: 0.1, delay: ms(1), jitter: ms(30), ..Path::default() };
    let limited = Path { rate: Some(1 << 20), ..path(0.01) };
    for (what, path) in
        [("loss 1 %", path(0.01)), ("loss 5 %", path(0.05)), ("doubled", lossless), ("1 MiB/s", limited)]
    {
        let before = both_ways(&star);
        for (machine, relay) in star.relays.iter().enumerate() {
            relay.become_link(Link::both_ways(10 + machine as u64, path));
        }
        let runs = star.run_for(ms(1500))?;
        println!("{transport:?}, {what}: {} runs, longest {}", runs.len(), longest(&runs));
        for (before, after) in before.iter().zip(both_ways(&star)) {
            let story = format!("{what}: {before:?}, then {after:?}");
            assert!(after.delayed > before.delayed && after.left > before.left, "{story}");
            assert!(path.loss == 0.0 || after.lost > before.lost, "{story}");
            match transport {
                Transport::Tcp => assert!(after.split > before.split, "{story}"),
                Transport::Quic => {
                    assert!(after.reordered > before.reordered, "{story}");
                    assert!(path.duplication == 0.0 || after.duplicated > before.duplicated, "{story}");
                }
            }
        }
    }
    assert_eq!(star.counts(TO_MACHINE).cut + star.counts(FROM_MACHINE).cut, 0, "no outage was planned");
    Ok(())
}

/// Cuts the links of `machines` in the middle of a run, until they are suspected and for a while longer. Returns the runs.
fn cut(star: &Star, machines: &[usize], directions: &[Direction]) -> Result<Vec<Ran>, Failed> {
    let cut: BTreeSet<usize> = machines.iter().copied().collect();
    let dropped = |machine: &usize| -> u64 {
        directions.iter().map(|direction| star.relays[*machine].counts(*direction).cut).sum()
    };
    let before: Vec<u64> = machines.iter().map(dropped).collect();
    for machine in machines {
        star.relays[*machine].cut_between(directions, ms(30), SUSPECTED + BACK);
    }
    let mut runs = star.run_until("suspicion", SUSPECTED, |_| star.silent().is_superset(&cut))?;
    let others = star.run_for(WATCHED)?;
    // The control: the relay does cut. And the other machines do the work.
    assert!(users(&others).is_disjoint(&cut), "{cut:?} works behind a cut: {:?}", users(&others));
    let after: Vec<u64> = machines.iter().map(dropped).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| after > before), "{before:?}, then {after:?}");
    runs.extend(others);
    Ok(runs)
}

/// Heals the links of `machines` and runs until all of them are used again; returns the time that took.
fn heal(star: &Star, machines: &[usize], limit: Duration) -> Result<Duration, Failed> {
    let healed = Instant::now();
    for machine in machines {
        star.relays[*machine].heal();
    }
    let mut missing: BTreeSet<usize> = machines.iter().copied().collect();
    star.run_until("they work again", limit, |ran| {
        missing.retain(|machine| !ran.iter().any(|ran| ran.used.contains(machine)));
        missing.is_empty()
    })?;
    Ok(healed.elapsed())
}

/// One direction alone is cut, for one machine and then for another: they are suspected, the others do the work, and they
/// work again once the link is healed.
fn one_direction_is_cut_and_healed(transport: Transport) -> Outcome {
    let star = Star::new(transport, MACHINES, good);
    for (machine, direction) in [(1, TO_MACHINE), (2, FROM_MACHINE)] {
        let runs = cut(&star, &[machine], &[direction])?;
        let back = heal(&star, &[machine], BACK)?;
        println!("{transport:?}, {direction:?}: longest {}, back after {back:?}", longest(&runs));
    }
    Ok(())
}

/// Two of four machines vanish in black holes at once, which is all that the code tolerates, and come back. Then one vanishes
/// for longer than the lease, and counts as lost.
fn machines_vanish_in_black_holes_and_come_back(transport: Transport) -> Outcome {
    /// Longer than the silence after which a machine is given up.
    const LONG: Duration = Duration::from_millis(4500);
    let star = Star::new(transport, MACHINES, good);
    let runs = cut(&star, &[0, 3], &Direction::BOTH)?;
    let back = heal(&star, &[0, 3], BACK)?;
    println!("{transport:?}, two of four: longest {}, back after {back:?}", longest(&runs));
    let began = Instant::now();
    let mut runs = cut(&star, &[2], &Direction::BOTH)?;
    runs.extend(star.run_for(LONG.saturating_sub(began.elapsed()))?);
    let given_up = |at: usize| star.pool.lost(fcdcc::WorkerId(at)).is_some();
    runs.extend(star.run_until("it is given up", SUSPECTED, |_| given_up(4) && given_up(5))?);
    let back = heal(&star, &[2], BACK_AFTER_LOSS)?;
    println!("{transport:?}, given up: longest {}, back after {back:?}", longest(&runs));
    Ok(())
}

/// With more machines behind a cut than the code tolerates, a run ends as its options say, within its deadline.
fn more_cuts_than_tolerated_end_as_the_options_say(transport: Transport) -> Outcome {
    const SHORT: Duration = Duration::from_secs(1);
    let star = Star::new(transport, MACHINES, good);
    let short = |on_shortfall| star.prepare(coded([4, 4]).deadline(SHORT).on_shortfall(on_shortfall));
    let (fails, local, again) =
        (short(OnShortfall::Fail), short(OnShortfall::Local), short(OnShortfall::Redispatch));
    let input = star.layers[0].input.view();
    for layer in [&fails, &local, &again] {
        assert_eq!(layer.run(input.clone())?.report.completion, Completion::Exact, "before anything is cut");
    }
    for relay in &star.relays[..3] {
        relay.cut(&[FROM_MACHINE]);
    }
    let started = Instant::now();
    let refused = fails.run(input.clone()).err().ok_or("three of four machines cannot be reached")?;
    let took = started.elapsed();
    assert!(
        matches!(refused, Error::Shortfall { .. }) && (SHORT..DEADLINE).contains(&took),
        "{took:?}: {refused}"
    );
    for (layer, cut) in [(&local, 3), (&again, 4)] {
        star.relays[..cut].iter().for_each(|relay| relay.cut(&Direction::BOTH));
        let started = Instant::now();
        let run = layer.run(input.clone())?;
        let took = started.elapsed();
        assert!(
            run.report.completion == Completion::ExactLocally && took < SHORT,
            "{took:?}: {:#?}",
            run.report
        );
    }
    let back = heal(&star, &[0, 1, 2, 3], BACK_AFTER_LOSS)?;
    println!("{transport:?}, all cut: back after {back:?}");
    Ok(())
}

/// The seed alone decides what happens to a packet, and the relay counts what it does.
fn a_seed_repeats_its_decisions() {
    let path = Path { loss: 0.05, duplication: 0.1, delay: ms(20), jitter: ms(10), ..Path::default() };
    let link = Link::both_ways(7, path);
    let fates = |link: Link, direction| (0..20_000).map(|n| link.fate(direction, n)).collect::<Vec<_>>();
    let own = fates(link, TO_MACHINE);
    assert_eq!(own, fates(link, TO_MACHINE));
    assert_ne!(own, fates(link, FROM_MACHINE), "directions differ");
    assert_ne!(own, fates(Link { seed: 8, ..link }, TO_MACHINE), "seeds differ");
    // Five standard deviations of a binomial distribution.
    for (what, got, of) in [
        ("lost", own.iter().filter(|fate| fate.lost).count(), 0.05),
        ("doubled", own.iter().filter(|fate| fate.copy.is_some()).count(), 0.1),
        ("late", own.iter().filter(|fate| fate.delay > ms(25)).count(), 0.5),
    ] {
        let (mean, deviation) = (20_000.0 * of, (20_000.0_f64 * of * (1.0 - of)).sqrt());
        assert!((got as f64 - mean).abs() < 5.0 * deviation, "{got} are {what} where about {mean} should be");
    }
    assert!(own.iter().all(|fate| (ms(20)..=ms(30)).contains(&fate.delay)));
}

/// Outages at random times, of one machine or of two, while layers run; prints how long the runs took. The environment
/// variables `FCDCC_OUTAGES` and `FCDCC_CHAOS_SEED` give the number of outages and the seed.
fn a_soak_of_outages(transport: Transport) -> Outcome {
    /// Runs that take longer are told.
    const SLOW: Duration = Duration::from_millis(500);
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (outages, seed) = (number("FCDCC_OUTAGES", 100), number("FCDCC_CHAOS_SEED", 20_261_129));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let star = Star::new(transport, MACHINES, good);
    star.run_for(ms(500))?;
    let (mut times, mut backs, mut slow, mut locally) = (Vec::new(), Vec::new(), 0, 0);
    for outage in 0..outages {
        let first = random.random_range(0..MACHINES);
        let mut missing = BTreeSet::from([first]);
        if random.random_range(0..3) == 0 {
            missing.insert((first + random.random_range(1..MACHINES)) % MACHINES);
        }
        // Most outages are shorter than the silence after which a machine is given up.
        let lasts = ms(if outage % 8 == 7 { 6000 } else { random.random_range(200..3800) });
        let directions: &[Direction] = match random.random_range(0..4) {
            0 => &[TO_MACHINE],
            1 => &[FROM_MACHINE],
            _ => &Direction::BOTH,
        };
        let after = ms(random.random_range(0..150));
        let (began, what) = (Instant::now() + after, format!("{missing:?} {directions:?} for {lasts:?}"));
        for machine in &missing {
            star.relays[*machine].cut_between(directions, after, lasts);
        }
        let ended = began + lasts;
        while !missing.is_empty() {
            for ran in star.run_anywhere()? {
                let now = Instant::now();
                if ran.took > SLOW || !ran.by_workers {
                    let since = now.saturating_duration_since(began);
                    println!("outage {outage} of {what}, {since:?} after its begin: {}", ran.story);
                    slow += 1;
                    locally += u64::from(!ran.by_workers);
                }
                missing.retain(|machine| now < ended || !ran.used.contains(machine));
                times.push(ran.took);
                if now > ended + BACK_AFTER_LOSS {
                    return Err(format!("{missing:?} do not work again: outage {outage} of {what}").into());
                }
            }
        }
        backs.push(Instant::now().saturating_duration_since(ended));
    }
    times.sort();
    backs.sort();
    let at = |times: &[Duration], share: usize| times[(times.len() - 1) * share / 1000];
    println!(
        "{transport:?}, seed {seed}: {outages} outages, {} runs: median {:?}, 99 % {:?}, 99.9 % {:?}, longest {:?}, {slow} \
         above {SLOW:?}, {locally} locally; back after {:?} in the median, {:?} at most",
        times.len(),
        at(&times, 500),
        at(&times, 990),
        at(&times, 999),
        at(&times, 1000),
        at(&backs, 500),
        at(&backs, 1000)
    );
    if locally == 0 { Ok(()) } else { Err(format!("{locally} runs were computed by the master").into()) }
}

pub(crate) fn trials() -> Vec<Trial> {
    let present = Command::new("openssl").arg("version").output().is_ok_and(|said| said.status.success());
    let required = std::env::var("CI").is_ok_and(|v| v == "true");
    let mut trials = vec![Trial::test("links::a_seed_repeats_its_decisions", || {
        a_seed_repeats_its_decisions();
        Ok(())
    })];
    let tests: [(&str, fn(Transport) -> Outcome, bool); 5] = [
        ("packets_are_lost_late_and_in_another_order", packets_are_lost_late_and_in_another_order, false),
        ("one_direction_is_cut_and_healed", one_direction_is_cut_and_healed, false),
        ("machines_vanish_in_black_holes_and_come_back", machines_vanish_in_black_holes_and_come_back, false),
        (
            "more_cuts_than_tolerated_end_as_the_options_say",
            more_cuts_than_tolerated_end_as_the_options_say,
            false,
        ),
        ("a_soak_of_outages", a_soak_of_outages, true),
    ];
    for (name, test, long) in tests {
        for (transport, over) in [(Transport::Tcp, "tcp"), (Transport::Quic, "quic")] {
            let lacks = transport == Transport::Quic && !present;
            let trial = Trial::test(format!("links::{name}_{over}"), move || {
                if lacks {
                    return Err("there is no openssl command, and CI=true requires one".into());
                }
                test(transport)
            });
            trials.push(trial.with_ignored_flag(long || lacks && !required));
        }
    }
    trials
}
