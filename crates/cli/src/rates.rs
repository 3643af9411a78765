//! The planner's rates: measured once on workers of each kind, then kept in a file.

use std::collections::BTreeMap;

use fcdcc::array::DType;
use fcdcc::conv::ConvShape;
use fcdcc::planner::{Calibration, Rates, Work, WorkerRates, calibrate};
use fcdcc::worker::{LOCAL_HOST, SubtaskShape, WorkerInfo, WorkerKind};
use fcdcc::{ConvParams, Result, Worker};

use super::Console;
use super::kept_rates::{self, Calibrate, Measuring, key, over_wire};
use super::links::Links;
use super::progress::Bar;

/// What [`of`] finds, and the rates of each worker over its link.
pub(crate) struct Measured {
    pub(crate) rates: Rates,
    /// Those of a typical worker for one that could not be measured.
    #[cfg_attr(not(feature = "onnx"), expect(dead_code, reason = "for parts of models"))]
    pub(crate) workers: Vec<WorkerRates>,
}

/// The rates of the workers of a pool that is about to be made, of which `tolerate` may be late. Workers of one kind and
/// device are assumed to be alike, but for the links to their machines. Where workers differ, those of the last one count
/// for which a layer waits if the slowest are late.
///
/// # Errors
/// The worker's error if rates must be measured and cannot be.
pub(crate) fn of(
    workers: &mut [Box<dyn Worker>],
    dtype: DType,
    tolerate: usize,
    measuring: Measuring,
    console: Console,
) -> Result<Rates> {
    each(workers, dtype, tolerate, measuring, console).map(|measured| measured.rates)
}

/// As [`of`], with the rates of each worker.
///
/// # Errors
/// Those of [`of`].
pub(crate) fn each(
    workers: &mut [Box<dyn Worker>],
    dtype: DType,
    tolerate: usize,
    measuring: Measuring,
    console: Console,
) -> Result<Measured> {
    let infos: Vec<WorkerInfo> = workers.iter().map(|worker| worker.info()).collect();
    let threads_here = infos.iter().any(|info| info.host == LOCAL_HOST && info.kind == WorkerKind::Cpu);
    let cores = threads_here.then(|| std::thread::available_parallelism().map_or(1, usize::from));
    let builtin = || {
        let rates = Rates { cores, ..Rates::default() };
        Measured { rates, workers: vec![rates.worker; infos.len()] }
    };
    if measuring.how == Calibrate::Never {
        return Ok(builtin());
    }
    let known = kept_rates::known();
    let mut kinds: BTreeMap<String, Option<Calibration>> = BTreeMap::new();
    for (worker, info) in workers.iter_mut().zip(&infos) {
        let kind = kind_of(info, dtype);
        if (dtype == DType::F32 || info.f64) && !kinds.contains_key(&kind) {
            let key = key(&kind, dtype);
            let kept = known.rates.get(&key).filter(|_| measuring.how == Calibrate::Auto).copied();
            let found = match kept {
                None if measuring.may_measure() => {
                    let found = measured(worker.as_mut(), &kind, dtype, cores, measuring.how, console)?;
                    if let Some(found) = found {
                        kept_rates::add(|cache| {
                            cache.rates.insert(key, found);
                        });
                    }
                    found
                }
                kept => kept,
            };
            kinds.insert(kind, found);
        }
    }
    let Some(first) = kinds.values().flatten().next().copied() else {
        return Ok(builtin());
    };
    let device =
        |info: &WorkerInfo| kinds.get(&kind_of(info, dtype)).copied().flatten().map(|c| c.rates.worker);
    let links = Links::find(workers, &infos, dtype, &device, measuring, &known, console)?;
    if let Some(links) = links.as_ref().filter(|links| links.is_new) {
        kept_rates::add(|cache| links.add_to(cache));
    }
    let over = |info: &WorkerInfo| {
        let link = links.as_ref().and_then(|links| links.to(&info.host));
        device(info).map(|device| link.map_or(device, |link| device.over(link)))
    };
    let worker = last_needed(&mut infos.iter().filter_map(over).collect::<Vec<_>>(), tolerate)?;
    let workers = infos.iter().map(|info| over(info).unwrap_or(worker)).collect();
    let network = links.as_ref().map(|links| links.network);
    Ok(Measured { rates: Rates { cores, worker, network, ..first.rates }, workers })
}

/// The rates of the worker that a layer waits for last if the `tolerate` slowest are late. `all`: at least one.
fn last_needed(all: &mut [WorkerRates], tolerate: usize) -> Result<WorkerRates> {
    let conv = ConvShape::new(&[1, 64, 30, 58], &[32, 64, 3, 3], &ConvParams::default())?;
    let typical = Work::of(&SubtaskShape { conv, slabs: 1, banks: 1, plain: false });
    all.sort_by(|a, b| a.seconds(&typical).total_cmp(&b.seconds(&typical)));
    Ok(all[all.len().saturating_sub(1 + tolerate)])
}

/// What workers that compute alike have in common.
fn kind_of(info: &WorkerInfo, dtype: DType) -> String {
    format!("{} {}{}", info.kind.name(), info.device, over_wire(info, dtype))
}

/// Measures a worker; `None` if that fails and need not succeed.
fn measured(
    worker: &mut dyn Worker,
    kind: &str,
    dtype: DType,
    cores: Option<usize>,
    how: Calibrate,
    console: Console,
) -> Result<Option<Calibration>> {
    let bar = Bar::new(console, "measuring");
    bar.steps(0, 1, kind);
    let measured = match dtype {
        DType::F32 => calibrate::<f32>(worker, cores),
        DType::F64 => calibrate::<f64>(worker, cores),
    };
    match measured {
        Ok(measured) => Ok(Some(measured)),
        // Runs tolerate failed workers, so the planner ignores them.
        Err(error) if how == Calibrate::Auto => {
            tracing::warn!(kind, %error, "could not be measured");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_worker_that_a_layer_waits_for_counts() {
        let fast = Rates::default().worker;
        let slow = WorkerRates { mac_s: 10.0 * fast.mac_s, ..fast };
        let all = || vec![fast, slow, fast, fast, slow, fast];
        assert_eq!(last_needed(&mut all(), 2).unwrap(), fast);
        assert_eq!(last_needed(&mut all(), 1).unwrap(), slow);
        assert_eq!(last_needed(&mut all(), 9).unwrap(), fast);
    }
}
