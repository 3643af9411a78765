//! What the codes themselves cost and promise: processor time of encoding and decoding, condition numbers.

use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::real::LayerCase;
use super::record::{CodecCost, Conditions};
use super::stats;
use crate::array::{Element, Values};
use crate::coding::{Code, Decoder, Epilogue, decode, encode_distinct, encode_filters};
use crate::engine::LayerOptions;
use crate::error::Result;
use crate::partition::{FilterPartition, InputPartition, OutputTiling};
use crate::planner::subtask_shape;
use crate::worker::{CancelToken, CpuWorker, FilterKey, Order, Worker};

/// What is timed is repeated for so long.
const TIMED_MS: f64 = 10.0;
/// All responder sets are looked at up to this number, else so many that are drawn and the runs of missing neighbours.
const MOST_SETS: usize = 5000;
const DRAWN_SETS: usize = 1000;
/// A singular value decomposition of k x k takes about k cubed steps: sets are drawn for so many in all.
const STEPS: f64 = 2e10;

/// Processor time of encoding, decoding and of all subtasks of a layer, on one CPU worker after the other: the scheduler's
/// own time is not in it. `None` where processor time cannot be measured.
///
/// # Errors
/// Those of the code and the worker.
pub fn codec_cost<T: Element>(case: &LayerCase<T>, options: &LayerOptions) -> Result<Option<CodecCost>> {
    if cpu_ms().is_nan() {
        return Ok(None);
    }
    let shape = &case.shape;
    let (k_a, k_b) = options.partitions.unwrap_or((1, 1));
    let code = Code::new(options.code, k_a, k_b, options.subtasks.unwrap_or(1))?;
    let (slabs, filters) = (InputPartition::new(shape, k_a)?, FilterPartition::new(shape, k_b)?);
    let tiling = OutputTiling::new(shape, &slabs, &filters);
    let subtask = subtask_shape(shape, &code)?;
    let input = case.input.as_slice().expect("made in row-major order");

    let mut coded = Vec::new();
    let encode_cpu_ms = timed(|| {
        coded = encode_distinct(&code, shape, &slabs, input, std::mem::take(&mut coded));
        Ok(())
    })?;
    let banks = filters.split(&case.weight);
    let indices: Vec<usize> = (0..subtask.sub_results()).collect();
    let order = if options.partial { Order::Each(&indices) } else { Order::All };
    let mut worker = CpuWorker::new("codec", 1);
    let mut outputs: Vec<Vec<Vec<T>>> = Vec::with_capacity(code.n());
    let mut compute_cpu_ms = 0.0;
    for (index, slabs) in coded.iter().cycle().take(code.n()).enumerate() {
        let key = FilterKey { layer: 0, subtask: index };
        worker.install(key, &subtask, T::wrap(encode_filters(&code, &filters, &banks, index)))?;
        let slabs = T::wrap(slabs.clone());
        let mut parts: Vec<Vec<T>> = vec![Vec::new(); subtask.sub_results()];
        compute_cpu_ms += timed(|| {
            worker.execute(key, &slabs, order, &CancelToken::new(), &mut |index, values: Values| {
                parts[index] = T::take(values).unwrap_or_default();
            })
        })?;
        worker.remove(key);
        outputs.push(parts);
    }
    // The first: those missing are neighbours, which is as badly conditioned as it gets.
    let chosen: Vec<usize> = (0..code.recovery_threshold()).collect();
    let decoder = Decoder::for_subtasks(&code, &chosen)?;
    let parts: Vec<&[T]> = decoder
        .inputs()
        .iter()
        .map(|of| outputs[of.subtask][of.slab * code.l_b() + of.bank].as_slice())
        .collect();
    let mut output = vec![T::default(); shape.output_elems()];
    let decode_cpu_ms =
        timed(|| decode(&decoder, &tiling, &parts, Epilogue { bias: None, clamp: None }, &mut output))?;
    let total_cpu_ms = encode_cpu_ms + compute_cpu_ms + decode_cpu_ms;
    Ok(Some(CodecCost { name: case.name.clone(), encode_cpu_ms, decode_cpu_ms, total_cpu_ms }))
}

/// Processor time of one call, after one that warms up.
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

/// Processor time of this process, all threads together; NaN where it cannot be measured.
#[cfg(unix)]
fn cpu_ms() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

#[cfg(not(unix))]
fn cpu_ms() -> f64 {
    f64::NAN
}

/// Condition numbers of a code over the sets of delta subtasks: all of them where they are few, else drawn ones and every
/// run of neighbours missing. `None` for codes too large to look at.
#[must_use]
pub fn conditions(code: &Code, seed: u64) -> Option<Conditions> {
    let (n, delta) = (code.n(), code.recovery_threshold());
    let exhaustive = binomial(n, delta).is_some_and(|sets| sets <= MOST_SETS);
    let mut found = Vec::new();
    if exhaustive {
        let mut set: Vec<usize> = (0..delta).collect();
        loop {
            found.push(code.condition(&set));
            // The next set in lexicographic order.
            let Some(at) = (0..delta).rev().find(|at| set[*at] < n - delta + at) else { break };
            set[at] += 1;
            for next in at + 1..delta {
                set[next] = set[next - 1] + 1;
            }
        }
    } else {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let affordable = (STEPS / ((code.k_a() * code.k_b()) as f64).powi(3)) as usize;
        if affordable < n {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..DRAWN_SETS.min(affordable) {
            let mut set = index::sample(&mut rng, n, delta).into_vec();
            set.sort_unstable();
            found.push(code.condition(&set));
        }
        for first in 0..n {
            let mut set: Vec<usize> = (0..delta).map(|i| (first + i) % n).collect();
            set.sort_unstable();
            found.push(code.condition(&set));
        }
    }
    found.sort_by(f64::total_cmp);
    let quantile = |q| stats::quantile(&found, q);
    Some(Conditions {
        code: code.kind().to_string(),
        n,
        recovery_threshold: delta,
        k_a: code.k_a(),
        k_b: code.k_b(),
        sets: found.len(),
        exhaustive,
        median: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        worst: quantile(1.0),
    })
}

fn binomial(n: usize, k: usize) -> Option<usize> {
    let k = k.min(n - k);
    (0..k).try_fold(1_usize, |product, i| Some(product.checked_mul(n - i)? / (i + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coding::CodeKind;

    #[test]
    fn few_sets_are_all_looked_at_and_many_are_drawn() {
        let code = |k_a, k_b, n| Code::new(CodeKind::Crme, k_a, k_b, n).unwrap();
        let few = conditions(&code(4, 4, 6), 0).unwrap();
        assert_eq!((few.sets, few.exhaustive), (15, true));
        assert!(1.0 <= few.median && few.median <= few.p99 && few.p99 <= few.worst && few.worst < 100.0);
        let worst = (0..6).flat_map(|a| (a + 1..6).map(move |b| (a, b))).map(|(a, b)| {
            let set: Vec<usize> = (0..6).filter(|i| ![a, b].contains(i)).collect();
            code(4, 4, 6).condition(&set)
        });
        assert_eq!(few.worst, worst.fold(0.0, f64::max));
        let many = conditions(&code(4, 8, 20), 0).unwrap();
        assert_eq!((many.sets, many.exhaustive), (1020, false));
        assert_eq!(conditions(&code(4, 8, 20), 0).unwrap(), many);
        assert_eq!((binomial(20, 8), binomial(6, 6), binomial(5, 0)), (Some(125_970), Some(1), Some(1)));
    }
}
