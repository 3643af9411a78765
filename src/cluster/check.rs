//! Checks the machines of a cluster one by one, as an operator would: whether each joins, its release, its clock, its
//! certificate, and the rates of its link.
//!
//! Invariant: a check ends at its limit, whatever the machines do, and leaves nothing behind on them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::bounded;

use super::link::{Link, Payload, Response, TrafficClass};
use super::master::{Cluster, Seats};
use super::no_thread;
use super::rates::bytes_per_s;
use super::wire::{Answer, HostInfo, Request};
use crate::array::Values;
use crate::conv::{ConvParams, ConvShape};
use crate::dates::{certificate_notice, since_1970};
use crate::error::{Error, Result};
use crate::worker::{CancelToken, FilterKey, SubtaskShape, Task, Worker};

/// Difference of two clocks from which it is a problem: certificates are refused before they begin.
const MOST_SKEW: Duration = Duration::from_mins(1);
/// Time in which machines connect and ask whether they are taken.
const GREETINGS: Duration = Duration::from_secs(2);
/// Number of questions from which the round trip is taken.
const ROUNDS: usize = 5;
/// Sides of the pictures that are sent: 256 KiB, and 4 MiB where the first takes less than [`SHORT`].
const SIDES: [usize; 2] = [256, 1024];
const SHORT: Duration = Duration::from_millis(100);
/// Filters of the measurement of what comes back, each of which makes a picture of the first side.
const BACK: usize = 16;

/// A machine that was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineCheck {
    /// Its name.
    pub machine: String,
    /// Everything that is wrong, each with what to change; empty if nothing is.
    pub problems: Vec<String>,
    /// What it says of itself and of its link, if it has joined.
    pub found: Option<MachineFacts>,
}

/// What was found of a machine that has joined.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineFacts {
    /// Its version of fcdcc.
    pub version: String,
    /// Number of devices that it lends.
    pub devices: usize,
    /// Time of a question and its answer: the least of several.
    pub round_trip: Option<Duration>,
    /// Bytes a second that a large slab and large results took, there and back.
    pub rates: Option<[f64; 2]>,
    /// Seconds by which its clock is ahead of this one.
    pub clock_ahead_s: f64,
    /// When its certificate ends, in seconds since 1970, if it has one.
    pub certificate_end: Option<i64>,
}

impl Cluster {
    /// Checks `machines`, and all others that have joined or were refused, within about `limit`. Half of the time is for
    /// machines to join.
    ///
    /// Each machine is sent at most 9 MiB, and sends back 8.
    #[must_use]
    pub fn check(&self, machines: &[String], limit: Duration) -> Vec<MachineCheck> {
        let start = Instant::now();
        self.shared.wait_for(start + limit / 2, None, |registry| {
            machines.iter().all(|machine| registry.devices(machine).is_some()).then_some(())
        });
        let joined = self.members().into_iter().map(|member| member.machine);
        let names: BTreeSet<String> = machines.iter().cloned().chain(joined).collect();
        let end = start + limit;
        let mut checked: Vec<MachineCheck> = std::thread::scope(|scope| {
            let checks: Vec<_> =
                names.into_iter().map(|name| scope.spawn(move || self.check_one(name, end))).collect();
            // A check that panics is a defect, which must not look like a machine in order.
            checks.into_iter().map(|check| check.join().expect("checks do not panic")).collect()
        });
        // Machines that are not named may still connect and be refused.
        std::thread::sleep((start + GREETINGS).min(end).saturating_duration_since(Instant::now()));
        for refused in self.refused() {
            if checked.iter().all(|check| check.machine != refused.name) {
                let problems = vec![format!("it was refused: {}", refused.why)];
                checked.push(MachineCheck { machine: refused.name, problems, found: None });
            }
        }
        checked
    }

    fn check_one(&self, machine: String, end: Instant) -> MachineCheck {
        let infos = self.members().into_iter().filter(|member| member.machine == machine);
        let (ready, mut problems): (Vec<_>, Vec<_>) = {
            let (ready, problems) = infos.map(|member| member.info).partition::<Vec<_>, _>(Result::is_ok);
            (ready.into_iter().flatten().collect(), problems.into_iter().filter_map(Result::err).collect())
        };
        let Some(info) = ready.first() else {
            if problems.is_empty() {
                problems.push(self.why_missing(&machine));
            }
            return MachineCheck { machine, problems, found: None };
        };
        let (round_trip, clock_ahead_s) = self.round_trip(info, end);
        let found = MachineFacts {
            version: info.version.clone(),
            devices: info.devices.len(),
            round_trip,
            rates: match self.rates(&machine, round_trip.unwrap_or_default(), end) {
                Ok(rates) => Some(rates),
                Err(error) => {
                    problems.push(format!("its link could not be measured: {error}"));
                    None
                }
            },
            clock_ahead_s,
            certificate_end: info.certificate_until_unix_s,
        };
        problems.extend(found.problems());
        let lost = info.devices.iter().filter_map(|device| Some((device, device.lost.as_ref()?)));
        problems.extend(lost.map(|(device, cause)| format!("its device {} is lost: {cause}", device.name)));
        MachineCheck { machine, problems, found: Some(found) }
    }

    /// Why nothing is seen of a machine, as far as this side knows, and what to look at.
    fn why_missing(&self, machine: &str) -> String {
        if let Some(refused) = self.refused().into_iter().find(|refused| refused.name == machine) {
            return format!("it was refused: {}", refused.why);
        }
        if let Some(by) = self.refused_by().into_iter().next() {
            return format!("it has not joined; {} refuses this master: {}", by.name, by.why);
        }
        let links = || self.shared.links.iter();
        let places = |connects: bool| -> String {
            let places =
                links().filter(|link| link.connects() == connects).map(|link| link.place().to_owned());
            places.collect::<Vec<_>>().join(", ")
        };
        let way = match (links().any(|link| !link.connects()), links().any(Link::connects)) {
            (true, false) => {
                format!("it has not connected to {}: does its worker connect there", places(false))
            }
            _ => format!("it was not found over {}: does its worker listen there", places(true)),
        };
        format!(
            "{way}, under this name and in this cluster? Is the port open (UDP for quic/), and did one authority sign the \
             certificates of both sides? The worker's log says more"
        )
    }

    /// The least time of a question and its answer, and by how many seconds the other clock is ahead.
    fn round_trip(&self, info: &HostInfo, end: Instant) -> (Option<Duration>, f64) {
        let key = self.shared.keys.worker(&info.name, info.boot).info();
        let Some(link) = self.shared.registry().link(&info.name, info.boot) else { return (None, 0.0) };
        let mut best: Option<(Duration, f64)> = None;
        for _ in 0..ROUNDS {
            let left = end.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
            let (sender, answer) = bounded(1);
            let (asked, since) = (since_1970(SystemTime::now()), Instant::now());
            let said = move |said| {
                if let Response::Answer(Answer::Info(info), _) = said {
                    // Only the first answer counts.
                    let _ = sender.try_send(info.clock_unix_ms);
                }
            };
            let request = self.shared.call(Request::Info);
            let asking = self.shared.links[link].ask(
                &key,
                request,
                Payload::empty(),
                TrafficClass::Control,
                left,
                said,
            );
            if asking.is_err() || left.is_zero() {
                break;
            }
            let Ok(clock_ms) = answer.recv_timeout(left) else { continue };
            let took = since.elapsed();
            let ahead = clock_ms as f64 / 1e3 - (asked + took / 2).as_secs_f64();
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, ahead));
            }
        }
        (best.map(|(took, _)| took), best.map_or(0.0, |(_, ahead)| ahead))
    }

    /// Bytes a second there and back, measured on a thread of its own: a device that hangs must not delay the check.
    fn rates(&self, machine: &str, round_trip: Duration, end: Instant) -> Result<[f64; 2]> {
        let (cluster, machine, cancel) = (self.clone(), machine.to_owned(), CancelToken::new());
        let (sender, measured) = bounded(1);
        let token = cancel.clone();
        let measuring = move || {
            let rates =
                cluster.device(&machine).and_then(|mut device| rates(device.as_mut(), round_trip, &token));
            // After the end there is no receiver.
            let _ = sender.send(rates);
        };
        std::thread::Builder::new().name("fcdcc check".to_owned()).spawn(measuring).map_err(no_thread)?;
        measured.recv_deadline(end).unwrap_or_else(|_| {
            cancel.cancel();
            Err(Error::Unavailable {
                what: "a measurement of its link in time".to_owned(),
                help: "allow more time, or look why it is so slow".into(),
            })
        })
    }

    /// A device of a machine, as a worker.
    fn device(&self, machine: &str) -> Result<Box<dyn Worker>> {
        let seats = Seats { machine: Some(machine.to_owned()), count: Some(1), ..Seats::default() };
        let worker = self.workers(&[seats], Duration::from_millis(500)).into_iter().next();
        let reason =
            worker.as_ref().map_or_else(|| Some("it has none".to_owned()), |w| w.unavailable_reason());
        match (worker, reason) {
            (Some(worker), None) => Ok(worker),
            (_, reason) => Err(Error::Unavailable {
                what: format!("a device of {machine} ({})", reason.unwrap_or_default()),
                help: "try again when it is idle".into(),
            }),
        }
    }
}

/// Bytes a second to a device and back.
fn rates(device: &mut dyn Worker, round_trip: Duration, cancel: &CancelToken) -> Result<[f64; 2]> {
    let rate = |bytes: usize, took: Duration| bytes_per_s(bytes as u64, took.saturating_sub(round_trip));
    let (mut there, mut first) = (0.0, Duration::ZERO);
    for side in SIDES {
        // Of each block of 64 x 64 one element comes back.
        let took = time(device, [side, 1, 64], cancel)?;
        there = rate(4 * side * side, took);
        if side == SIDES[0] {
            first = took;
        }
        if took > SHORT {
            break;
        }
    }
    let took = time(device, [SIDES[0], BACK, 1], cancel)?;
    let back = rate(4 * BACK * SIDES[0] * SIDES[0], took.saturating_sub(first) + round_trip);
    Ok([there, back])
}

impl MachineFacts {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let own = env!("CARGO_PKG_VERSION");
        if self.version != own {
            problems.push(format!(
                "it runs fcdcc {}, this side {own}: run the same release on both",
                self.version
            ));
        }
        if self.clock_ahead_s.abs() > MOST_SKEW.as_secs_f64() {
            let (ahead, way) =
                (self.clock_ahead_s.abs(), if self.clock_ahead_s > 0.0 { "ahead" } else { "behind" });
            problems.push(format!(
                "its clock is {ahead:.0} s {way}: set the clocks, certificates depend on them"
            ));
        }
        let notice = |end| certificate_notice("its certificate", end, SystemTime::now());
        problems.extend(self.certificate_end.and_then(notice));
        problems
    }
}

/// The shorter of two times of a subtask with `side * side` elements and `filters` filters of one element.
fn time(
    device: &mut dyn Worker,
    [side, filters, stride]: [usize; 3],
    cancel: &CancelToken,
) -> Result<Duration> {
    let params = ConvParams::default().stride([stride]);
    let conv = ConvShape::new(&[1, 1, side, side], &[filters, 1, 1, 1], &params)?;
    let shape = SubtaskShape { conv, slabs: 1, banks: 1, plain: false };
    let slabs = Values::F32((0..shape.upload_elems()).map(|at| (at % 251) as f32).collect());
    device.install(FilterKey::PROBE, &shape, Values::F32(vec![1.0; shape.filter_elems()]))?;
    let mut least = Ok(Duration::MAX);
    for _ in 0..2 {
        let start = Instant::now();
        let done = device.execute(Task::new(FilterKey::PROBE, &slabs, cancel), &mut |_, _| {});
        least = least.and_then(|least| done.map(|()| least.min(start.elapsed())));
    }
    device.remove(FilterKey::PROBE);
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_says_what_to_change() {
        let now = i64::try_from(since_1970(SystemTime::now()).as_secs()).unwrap_or_default();
        let days = |days: i64| now + days * 24 * 60 * 60;
        let good = MachineFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            devices: 1,
            round_trip: None,
            rates: None,
            clock_ahead_s: -59.0,
            certificate_end: Some(days(15)),
        };
        assert_eq!(good.problems(), [""; 0]);
        for (bad, part) in [
            (MachineFacts { version: "0.0.0".to_owned(), ..good.clone() }, "it runs fcdcc 0.0.0"),
            (MachineFacts { clock_ahead_s: -61.0, ..good.clone() }, "61 s behind: set the clocks"),
            (MachineFacts { clock_ahead_s: 1e4, ..good.clone() }, "10000 s ahead"),
            (
                MachineFacts { certificate_end: Some(days(13) + 60), ..good.clone() },
                "its certificate ends in 13 days: renew it",
            ),
        ] {
            let problems = bad.problems();
            assert!(problems.len() == 1 && problems[0].contains(part), "{problems:?}");
        }
    }
}
