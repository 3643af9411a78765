//! Measures the links to workers on other machines with a few transfers, in some tenths of a second.
//!
//! Relevant if you want to know where predicted transfer times come from. Invariant: only [`FilterKey::PROBE`] is installed on
//! a worker, and it is removed again; a transfer that does not end is cancelled at [`LIMIT`].

use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};

use super::calibrate::numbers;
use super::network::{LinkRates, Network};
use super::work::{Work, WorkerRates};
use crate::array::{DType, Element, Values};
use crate::conv::{ConvParams, ConvShape};
use crate::error::{Error, Message, Parameter, Result};
use crate::worker::{CancelToken, FilterKey, SubtaskShape, Task, Worker};

/// Time limit of one measurement.
const LIMIT: Duration = Duration::from_secs(10);
/// Transfers are made this long, so that starting and ending them hardly counts.
const LONG_S: f64 = 0.03;
/// A transfer at least this long is measured.
const LONG_ENOUGH_S: f64 = 0.015;
/// Bounds of the elements of a transfer.
const LEAST_ELEMS: usize = 1 << 14;
const MOST_ELEMS: usize = 1 << 22;
/// Number of times that a transfer is made longer.
const GROWTHS: usize = 6;
/// Measurements of which the fastest counts.
const REPEATS: usize = 3;
/// Side of the planes that are sent.
const SIDE: usize = 64;
const PLANE: usize = SIDE * SIDE;
/// Links whose transfers take up to this many times as long as predicted, or as little, are as they were measured.
const AGREES: f64 = 2.0;
/// Difference of times that means nothing.
const NOTHING_S: f64 = 2e-3;

/// Elements of a transfer, in whole planes.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// No data worth mentioning.
    Call,
    Up(usize),
    Down(usize),
    /// So many there, then as many back.
    Both(usize),
}

impl Load {
    fn shape(self) -> Result<SubtaskShape> {
        let planes = |elems: usize| elems / PLANE;
        // A stride keeps what comes back small.
        let (channels, filters, side, stride) = match self {
            Self::Call => (1, 1, 2, 1),
            Self::Up(elems) => (planes(elems), 1, SIDE, 16),
            Self::Down(elems) => (1, planes(elems), SIDE, 1),
            Self::Both(elems) => (planes(elems), planes(elems), SIDE, 1),
        };
        let params = ConvParams::default().stride([stride]);
        let conv = ConvShape::new(&[1, channels, side, side], &[filters, channels, 1, 1], &params)?;
        Ok(SubtaskShape { conv, slabs: 1, banks: 1, plain: false })
    }
}

/// A number of elements in whole planes, from `least` to [`MOST_ELEMS`].
fn whole(elems: f64, least: usize) -> usize {
    let bounded = elems.clamp(least as f64, MOST_ELEMS as f64);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within these bounds")]
    let whole = bounded as usize;
    whole / PLANE * PLANE
}

/// Seconds that a worker needs for a subtask whose data are there already.
fn compute_s(device: &WorkerRates, work: &Work) -> f64 {
    (device.seconds(work) - device.transfer_s(work) - device.call_s).max(0.0)
}

fn values(dtype: DType, len: usize) -> Values {
    match dtype {
        DType::F32 => f32::wrap(numbers(len)),
        DType::F64 => f64::wrap(numbers(len)),
    }
}

/// Seconds from the common start of all transfers to the end of each.
fn at_once(workers: &mut [&mut dyn Worker], loads: &[Load], dtype: DType) -> Result<Vec<f64>> {
    let shapes = loads.iter().map(|load| load.shape()).collect::<Result<Vec<_>>>()?;
    let cancel = CancelToken::new();
    let end = Instant::now() + LIMIT;
    std::thread::scope(|scope| {
        let stop = |error: Error| {
            cancel.cancel();
            error
        };
        let (ready, all_ready) = unbounded();
        let (sender, ended) = unbounded();
        // The transfers start when this is dropped.
        let (hold, start) = bounded::<()>(0);
        for (at, (worker, shape)) in workers.iter_mut().zip(&shapes).enumerate() {
            let (ready, sender, start, cancel) = (ready.clone(), sender.clone(), start.clone(), &cancel);
            let transfer = move || {
                let slabs = values(dtype, shape.upload_elems());
                let installed = worker.install(FilterKey::PROBE, shape, values(dtype, shape.filter_elems()));
                // The receiver may be gone: the caller has given up at the limit.
                let _ = ready.send(());
                let _ = start.recv();
                let since = Instant::now();
                let done = installed.and_then(|()| {
                    worker.execute(Task::new(FilterKey::PROBE, &slabs, cancel), &mut |_, values| drop(values))
                });
                let took = since.elapsed().as_secs_f64();
                worker.remove(FilterKey::PROBE);
                let _ = sender.send((at, done.map(|()| took)));
            };
            let thread = std::thread::Builder::new().name("fcdcc links".to_owned());
            thread.spawn_scoped(scope, transfer).map_err(|error| stop(no_thread(&error)))?;
        }
        for _ in &shapes {
            all_ready.recv_deadline(end).map_err(|_| stop(too_slow()))?;
        }
        drop(hold);
        let mut times = vec![0.0; shapes.len()];
        for _ in &shapes {
            let (at, took) = ended.recv_deadline(end).map_err(|_| stop(too_slow()))?;
            times[at] = took.map_err(stop)?;
        }
        Ok(times)
    })
}

fn too_slow() -> Error {
    Error::Timeout {
        what: "measuring the links to other machines".to_owned(),
        limit: LIMIT,
        help: Message::from("give partitions, or use ").and(Parameter::DefaultRates),
    }
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::Unavailable {
        what: format!("a thread for measuring links ({error})"),
        help: "the system is out of threads".into(),
    }
}

/// The shortest of several times.
fn shortest(worker: &mut dyn Worker, load: Load, dtype: DType) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..REPEATS {
        least = least.min(at_once(&mut [worker], &[load], dtype)?[0]);
    }
    Ok(least)
}

/// Rates of the link to the machine of `worker`, for elements of type `dtype` in the format in which they travel. `device`:
/// the rates of such a worker, of which the link's part does not matter.
///
/// # Errors
/// The worker's error, or [`Error::Timeout`] when one transfer takes longer than ten seconds.
pub fn calibrate_link(worker: &mut dyn Worker, dtype: DType, device: &WorkerRates) -> Result<LinkRates> {
    let call_s = {
        let compute = compute_s(device, &Work::of(&Load::Call.shape()?));
        (shortest(worker, Load::Call, dtype)? - compute).max(1e-9)
    };
    let mut rate = |load: fn(usize) -> Load| -> Result<f64> {
        let mut elems = LEAST_ELEMS;
        // Time of the transfer alone, for one more measurement.
        let own = |took: f64, elems: usize| -> Result<f64> {
            let work = Work::of(&load(elems).shape()?);
            Ok((took - call_s - compute_s(device, &work)).max(1e-7))
        };
        for _ in 0..GROWTHS {
            let took = own(at_once(&mut [&mut *worker], &[load(elems)], dtype)?[0], elems)?;
            if took >= LONG_ENOUGH_S || elems == MOST_ELEMS {
                break;
            }
            // Reckoned by the time of a short transfer, a long one would be too long by far.
            let factor = (LONG_S / took).clamp(2.0, 8.0);
            elems = whole(elems as f64 * factor, LEAST_ELEMS);
        }
        Ok(own(shortest(worker, load(elems), dtype)?, elems)? / elems as f64)
    };
    Ok(LinkRates { call_s, upload_s: rate(Load::Up)?, download_s: rate(Load::Down)? })
}

/// What the links of several machines carry at the same time. `workers`: one worker of each machine; `links`: the rates of
/// their links, each alone in use; `all`: the number of workers on these machines.
///
/// # Errors
/// [`Error::Mismatch`] unless there is a link for each worker; those of [`calibrate_link`].
pub fn calibrate_network(
    workers: &mut [&mut dyn Worker],
    links: &[LinkRates],
    dtype: DType,
    all: usize,
) -> Result<Network> {
    if workers.len() != links.len() {
        let help = "give the rates of each worker's link";
        return Err(Error::mismatch("number of links", links.len(), workers.len(), help));
    }
    let mut together = |load: fn(usize) -> Load, alone: fn(&LinkRates) -> f64| -> Result<f64> {
        let elems = |link: &LinkRates| whole(LONG_S / alone(link), LEAST_ELEMS);
        let loads: Vec<Load> = links.iter().map(|link| load(elems(link))).collect();
        let (mut sum, mut in_turn, mut side_by_side) = (0.0, 0.0, 0.0_f64);
        for link in links {
            let one = elems(link) as f64;
            sum += one;
            in_turn += one * alone(link);
            side_by_side = side_by_side.max(one * alone(link));
        }
        let mut least = f64::INFINITY;
        for _ in 0..REPEATS {
            let times = at_once(workers, &loads, dtype)?;
            let last = times.iter().zip(links).map(|(took, link)| took - link.call_s);
            least = least.min(last.fold(0.0, f64::max));
        }
        // Links that share nothing take as long as the slowest, those that share everything as long as one after the other.
        Ok(least.clamp(side_by_side, in_turn) / sum.max(1.0))
    };
    Ok(Network {
        machines: links.len(),
        workers: all,
        send_s: together(Load::Up, |link| link.upload_s)?,
        receive_s: together(Load::Down, |link| link.download_s)?,
    })
}

/// Whether transfers take about as long as these rates say: one transfer to all machines at the same time and back, about 20
/// milliseconds long. The arguments are those of [`calibrate_network`], and its result.
///
/// # Errors
/// Those of [`calibrate_link`].
pub fn links_agree(
    workers: &mut [&mut dyn Worker],
    links: &[LinkRates],
    dtype: DType,
    network: &Network,
) -> Result<bool> {
    let machines = workers.len().max(1) as f64;
    let elems = whole(0.02 / (machines * (network.send_s + network.receive_s)), PLANE);
    let elems = elems.min(MOST_ELEMS / 16);
    let loads = vec![Load::Both(elems); workers.len()];
    let moved = loads[0].shape()?;
    let (up, down) = (moved.upload_elems() as f64, moved.download_elems() as f64);
    let one = links.iter().map(|link| link.call_s + up * link.upload_s + down * link.download_s);
    let call_s = links.iter().map(|link| link.call_s).fold(0.0, f64::max);
    let all = call_s + machines * (up * network.send_s + down * network.receive_s);
    let predicted = one.fold(all, f64::max);
    // The first of two may find the connection asleep.
    let mut took = f64::INFINITY;
    for _ in 0..2 {
        took = took.min(at_once(workers, &loads, dtype)?.into_iter().fold(0.0, f64::max));
    }
    Ok(took <= AGREES * predicted + NOTHING_S && AGREES * took + NOTHING_S >= predicted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::Rates;
    use super::*;
    use crate::sync::locked;
    use crate::worker::{CpuWorker, intercept};

    /// Seconds for an element.
    type Speed = Arc<Mutex<f64>>;

    /// A worker behind a link that takes `speed` for an element there, and twice that back. Transfers that hold the same
    /// `line` wait for each other.
    fn behind(speed: &Speed, line: &Arc<Mutex<()>>) -> Box<dyn Worker> {
        let (speed, line) = (Arc::clone(speed), Arc::clone(line));
        let worker = intercept(CpuWorker::new("far", 1)).including_probes();
        worker
            .on_execute(move |inner, task, emit| {
                let mut elems = task.slabs.len() as f64;
                let result = inner.execute(task, &mut |index, values| {
                    elems += 2.0 * values.len() as f64;
                    emit(index, values);
                });
                let _busy = locked(&line);
                std::thread::sleep(Duration::from_secs_f64(elems * *locked(&speed)));
                result
            })
            .boxed()
    }

    fn device() -> WorkerRates {
        WorkerRates { mac_s: 0.0, ..Rates::default().worker }
    }

    fn near(found: f64, want: f64) -> bool {
        // Sleeping takes longer than asked for, above all on a busy machine.
        found > 0.7 * want && found < 1.6 * want
    }

    fn lines(shared: bool) -> Vec<Arc<Mutex<()>>> {
        let one = Arc::new(Mutex::new(()));
        (0..3).map(|_| if shared { Arc::clone(&one) } else { Arc::default() }).collect()
    }

    fn borrowed(workers: &mut [Box<dyn Worker>]) -> Vec<&mut dyn Worker> {
        workers.iter_mut().map(|worker| -> &mut dyn Worker { worker.as_mut() }).collect()
    }

    #[test]
    fn a_link_is_measured_in_both_directions() {
        for speed in [4e-8, 1e-6] {
            let mut worker = behind(&Arc::new(Mutex::new(speed)), &Arc::default());
            let link = calibrate_link(worker.as_mut(), DType::F32, &device()).unwrap();
            assert!(near(link.upload_s, speed) && near(link.download_s, 2.0 * speed), "{speed} {link:?}");
            assert!(link.call_s < 5e-3, "{link:?}");
        }
    }

    #[test]
    fn links_that_share_a_line_are_slower_together_and_others_are_not() {
        let speed = 2e-7;
        let link = LinkRates { call_s: 1e-4, upload_s: speed, download_s: 2.0 * speed };
        for shared in [true, false] {
            let lines = lines(shared);
            let mut workers: Vec<_> =
                lines.iter().map(|line| behind(&Arc::new(Mutex::new(speed)), line)).collect();
            let network = calibrate_network(&mut borrowed(&mut workers), &[link; 3], DType::F32, 6).unwrap();
            assert_eq!((network.machines, network.workers), (3, 6));
            let all = if shared { speed } else { speed / 3.0 };
            assert!(near(network.send_s, all) && near(network.receive_s, 2.0 * all), "{shared} {network:?}");
        }
    }

    #[test]
    fn a_link_that_became_slower_or_faster_does_not_agree() {
        let (speed, lines) = (Arc::new(Mutex::new(2e-7)), lines(true));
        let mut workers: Vec<_> = lines.iter().map(|line| behind(&speed, line)).collect();
        let link = LinkRates { call_s: 1e-4, upload_s: 2e-7, download_s: 4e-7 };
        let network = Network { machines: 3, workers: 3, send_s: 2e-7, receive_s: 4e-7 };
        for (now, agrees) in [(2e-7, true), (1.2e-6, false), (3e-8, false), (2e-7, true)] {
            *locked(&speed) = now;
            let found = links_agree(&mut borrowed(&mut workers), &[link; 3], DType::F32, &network).unwrap();
            assert_eq!(found, agrees, "{now}");
        }
    }

    #[test]
    fn a_worker_that_fails_is_an_error_and_the_others_do_not_wait_for_it() {
        let broken = || {
            let lost = || Error::WorkerLost { worker: "broken".to_owned(), cause: "unplugged".to_owned() };
            intercept(CpuWorker::new("broken", 1))
                .including_probes()
                .on_execute(move |_, _, _| Err(lost()))
                .boxed()
        };
        let mut workers = vec![behind(&Arc::new(Mutex::new(1e-8)), &Arc::default()), broken()];
        let link = LinkRates { call_s: 1e-4, upload_s: 1e-8, download_s: 1e-8 };
        let since = Instant::now();
        let error = calibrate_network(&mut borrowed(&mut workers), &[link; 2], DType::F32, 2).unwrap_err();
        assert!(error.to_string().contains("unplugged") && since.elapsed() < LIMIT, "{error}");
        let error = calibrate_network(&mut [], &[link], DType::F32, 0).unwrap_err();
        assert!(error.to_string().contains("number of links"), "{error}");
    }

    #[test]
    fn a_transfer_that_never_ends_is_given_up() {
        let stuck = intercept(CpuWorker::new("stuck", 1)).including_probes();
        let mut stuck = stuck.on_execute(|_, task, _| {
            while !task.cancel.is_cancelled() {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Error::Cancelled)
        });
        let error = calibrate_link(&mut stuck, DType::F32, &device()).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}
