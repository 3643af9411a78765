//! Measures the cost of coding (processor time of encoding and decoding) and the condition numbers of the codes.

use super::conditions::conditions;
use super::methods::code_of;
use super::real_workers::LayerCase;
use super::responder_sets::Sampling;
use super::schema::{CodecCost, Conditions};
use fcdcc::array::{Element, Values};
use fcdcc::coding::{Code, Decoder, Epilogue, decode, encode_distinct, encode_filters};
use fcdcc::engine::LayerOptions;
use fcdcc::error::{Error, Result};
use fcdcc::ids::SubtaskId;
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};
use fcdcc::planner::subtask_shape;
use fcdcc::scaling::{FilterScales, InputScan, ScanOptions, ScanPlan, ScanRoom};
use fcdcc::worker::{CancelToken, CpuWorker, FilterKey, Order, Task, Worker};

/// Minimum duration of a timed loop.
const TIMED_MS: f64 = 10.0;
/// Up to this number of responder sets all are examined; beyond it, random sets and runs of missing neighbours.
const MOST_SETS: usize = 5000;
const DRAWN_SETS: usize = 1000;
/// Budget for examining responder sets: the condition number of a k x k matrix takes about k^3 steps.
const STEPS: f64 = 2e10;

/// Processor time of encoding, of decoding and of all subtasks of a layer, one after the other on one thread. (Threads
/// that share a core or its memory would take longer, for all three.) The scheduler's own time is not included.
/// `None` where processor time cannot be measured.
///
/// # Errors
/// The errors of the code and of the worker.
pub fn codec_cost<T: Element>(case: &LayerCase<T>, options: &LayerOptions) -> Result<Option<CodecCost>> {
    if cpu_ms().is_nan() {
        return Ok(None);
    }
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| Error::Unavailable {
        what: format!("a thread to measure encoding on ({e})"),
        help: "raise the limit of threads".into(),
    })?;
    one.install(|| on_this_thread(case, options)).map(Some)
}

fn on_this_thread<T: Element>(case: &LayerCase<T>, options: &LayerOptions) -> Result<CodecCost> {
    let shape = &case.shape;
    let code = code_of(options)?;
    let (k_a, k_b) = (code.k_a(), code.k_b());
    let (slabs, filters) = (InputPartition::new(shape, k_a)?, FilterPartition::new(shape, k_b)?);
    let tiling = OutputTiling::new(shape, &slabs, &filters);
    let subtask = subtask_shape(shape, &code)?;
    let input = case.input.as_slice().expect("made in row-major order");

    let mixed = code.kind().mixes() && k_a > 1;
    let scanned = ScanOptions { mixed, always_scaled: false, floor: 0.0 };
    let (plan, room) = (ScanPlan::new(shape, &slabs, scanned), ScanRoom::default());
    let mut scan = InputScan::default();
    let scales = FilterScales::new(&case.weight, shape.reduction());
    let mut coded = Vec::new();
    // The engine does the same: it scans the input, then encodes.
    let encode_cpu_ms = timed(|| {
        scan = plan.scan(input, &room);
        coded = encode_distinct(&code, shape, &slabs, input, &scan.slab_scales, std::mem::take(&mut coded));
        Ok(())
    })?;
    let indices: Vec<usize> = (0..subtask.sub_results()).collect();
    let order = if options.policy.partial { Order::Each(&indices) } else { Order::All };
    let mut worker = CpuWorker::new("codec", 1);
    let mut outputs: Vec<Vec<Vec<T>>> = Vec::with_capacity(code.n());
    let mut compute_cpu_ms = 0.0;
    for (index, slabs) in (0..code.n()).map(SubtaskId).zip(coded.iter().cycle()) {
        let key = FilterKey { layer: 0, subtask: index };
        let banks = encode_filters(&code, &filters, &case.weight, &scales.factors, index);
        worker.install(key, &subtask, T::wrap(banks))?;
        let slabs = T::wrap(slabs.clone());
        let mut parts: Vec<Vec<T>> = vec![Vec::new(); subtask.sub_results()];
        compute_cpu_ms += timed(|| {
            let token = CancelToken::new();
            let task = Task::new(key, &slabs, &token).with_order(order);
            worker.execute(task, &mut |index, values: Values| {
                parts[index] = T::take(values).unwrap_or_default();
            })
        })?;
        worker.remove(key);
        outputs.push(parts);
    }
    // The first delta subtasks: the missing ones are neighbours, which is the worst conditioning.
    let chosen: Vec<usize> = (0..code.recovery_threshold()).collect();
    let decoder = Decoder::for_subtasks(&code, &chosen)?;
    let parts: Vec<&[T]> = decoder
        .inputs()
        .iter()
        .map(|of| outputs[of.subtask.0][of.slab * code.l_b() + of.bank].as_slice())
        .collect();
    let mut output = vec![T::default(); shape.output_elems()];
    let epilogue =
        Epilogue { slab_scales: &scan.slab_scales, filter_undo: &scales.undo, ..Epilogue::default() };
    let decode_cpu_ms = timed(|| decode(&decoder, &tiling, &parts, epilogue, &mut output).map(|_| ()))?;
    let total_cpu_ms = encode_cpu_ms + compute_cpu_ms + decode_cpu_ms;
    Ok(CodecCost { name: case.name.clone(), encode_cpu_ms, decode_cpu_ms, total_cpu_ms })
}

/// Processor time of one call in milliseconds, after one warm-up call.
fn timed(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    let started = cpu_ms();
    let mut calls = 0.0;
    loop {
        call()?;
        calls += 1.0;
        let passed = cpu_ms() - started;
        if passed >= TIMED_MS {
            return Ok(passed / calls);
        }
    }
}

/// Processor time of all threads of this process, in milliseconds; NaN where it cannot be measured.
#[cfg(unix)]
fn cpu_ms() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

#[cfg(not(unix))]
fn cpu_ms() -> f64 {
    f64::NAN
}

/// Condition numbers of a code over as many of its responder sets as can be examined in about a second. `None` for
/// codes that are too large to examine.
#[must_use]
pub fn affordable_conditions(code: &Code, seed: u64) -> Option<Conditions> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let affordable = (STEPS / (code.recovery_threshold() as f64).powi(3)) as usize;
    if affordable < code.n() {
        return None;
    }
    let sampling = Sampling { limit: MOST_SETS.min(affordable), samples: DRAWN_SETS.min(affordable), seed };
    Some(conditions(code, &sampling))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcdcc::coding::CodeKind;

    #[test]
    fn few_sets_are_all_looked_at_many_are_drawn_and_the_largest_left_alone() {
        let of = |k_a, k_b, n| affordable_conditions(&Code::new(CodeKind::Crme, k_a, k_b, n).unwrap(), 0);
        let few = of(4, 4, 6).unwrap();
        assert_eq!((few.sets, few.exhaustive), (15, true));
        assert!(1.0 <= few.median && few.median <= few.p99 && few.p99 <= few.worst && few.worst < 100.0);
        let many = of(4, 8, 20).unwrap();
        assert!(many.sets > DRAWN_SETS && !many.exhaustive);
        assert_eq!(of(4, 8, 20).unwrap(), many);
        assert!(of(200, 100, 5200).is_none());
    }
}
