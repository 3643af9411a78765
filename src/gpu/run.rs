//! Runs a subtask: uploads slabs, submits work, reads sub-results back.
//!
//! Sub-results requested one by one get a submission each (or several, if one would take too long). If all sub-results
//! are wanted, they share submissions as long as these stay small ([`Grouping`]). At most two submissions are in
//! flight: while one computes, the host writes the slabs of the next and reads the results of the last. Buffers and
//! bind groups are reused by later runs.
//!
//! Invariant: a run waits for its submissions before it returns. So between calls the device is idle, no output buffer
//! is mapped, and every buffer may be replaced.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use super::conv::{ConvEngine, ConvFilters, encode};
use super::device::Caps;
use super::f16::narrow;
use super::plan::ConvPlan;
use super::timing::RunTiming;
use crate::array::{Element, Values, check_elems, check_indices};
use crate::error::{Error, Result};

/// Submissions in flight: one computes while the host reads back or prepares the next.
const IN_FLIGHT: usize = 2;

/// Sub-results share a submission up to this fraction of its maximum size: large enough to amortize the cost of a
/// submission (some 0.1 ms of 5), and small enough that parts of a large subtask are read back while the rest is
/// computed.
const SHARED_PART: u64 = 8;
/// Bytes of outputs after which readback should begin.
const SHARED_BYTES: u64 = 4 << 20;
/// Maximum number of sub-results of one submission; each has its own output buffer, so that none waits for another.
const SHARED_RESULTS: u64 = 64;

/// The number of sub-results that share a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grouping {
    /// Each has its own submission and is returned before the submission after the next begins.
    Each,
    /// The number of sub-results of a submission.
    Together(usize),
}

impl Grouping {
    /// The grouping if all sub-results are wanted.
    pub(super) fn all(plan: &ConvPlan, caps: &Caps) -> Self {
        if plan.submissions.len() > 1 {
            return Self::Each;
        }
        let by_work = caps.submission_macs / SHARED_PART / plan.macs().max(1);
        let by_bytes = SHARED_BYTES / plan.output_bytes.max(1);
        match by_work.min(by_bytes).min(SHARED_RESULTS) {
            0 | 1 => Self::Each,
            #[expect(clippy::cast_possible_truncation, reason = "at most SHARED_RESULTS")]
            many => Self::Together(many as usize),
        }
    }

    fn size(self) -> usize {
        match self {
            Self::Each => 1,
            Self::Together(many) => many,
        }
    }

    /// Number of output buffers that a run of `results` sub-results needs.
    pub(super) fn outputs(self, results: usize) -> usize {
        (IN_FLIGHT * self.size()).min(results.next_multiple_of(self.size())).max(1)
    }
}

/// The part of a submission that belongs to one sub-result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// The sub-result, slab * banks + bank.
    index: usize,
    /// The number of its output buffer.
    output: usize,
    /// Its steps of the plan.
    steps: Range<usize>,
    /// Whether these are the first and the last steps of the sub-result.
    first: bool,
    last: bool,
}

/// The submissions of a run, in order.
fn submissions(plan: &ConvPlan, order: &[usize], grouping: Grouping) -> Vec<Vec<Part>> {
    let outputs = grouping.outputs(order.len());
    let last = plan.submissions.len() - 1;
    let part = |turn: usize, index: usize, number: usize| Part {
        index,
        output: turn % outputs,
        steps: plan.submissions[number].clone(),
        first: number == 0,
        last: number == last,
    };
    let turns: Vec<(usize, usize)> = order.iter().copied().enumerate().collect();
    match grouping {
        Grouping::Each => turns
            .iter()
            .flat_map(|(turn, index)| (0..=last).map(|number| vec![part(*turn, *index, number)]))
            .collect(),
        Grouping::Together(many) => turns
            .chunks(many)
            .map(|group| group.iter().map(|(turn, index)| part(*turn, *index, 0)).collect())
            .collect(),
    }
}

/// The submissions that have not been waited for, oldest first.
type InFlight = VecDeque<(Vec<Part>, wgpu::SubmissionIndex)>;

/// The request of a run.
struct Task<'a, T> {
    filters: &'a ConvFilters,
    slabs: &'a [T],
    stop: &'a dyn Fn() -> bool,
    emit: &'a mut dyn FnMut(usize, Values),
    /// Whether each slab is on the device.
    written: Vec<bool>,
    timing: RunTiming,
}

impl ConvEngine {
    /// Convolves `slabs` slabs `[N, C, spatial...]`, one after the other in `values`, with the banks of `filters`:
    /// result `slab * banks + bank` is `[N, O, spatial...]`. Computes the results in `order`, or all in ascending
    /// order, and passes each with its index to `emit` as soon as it is available. Results in `order` are passed one by
    /// one, each while the next is computed; all results are passed in groups. `stop` is checked between submissions.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a wrong number or type of elements; [`Error::InvalidParameter`] for an order with an
    /// index beyond the results; [`Error::Cancelled`] when `stop` returned true; [`Error::Gpu`] when the device fails,
    /// after which [`GpuDevice::lost`](super::GpuDevice::lost) tells whether it was lost.
    pub fn run(
        &mut self,
        filters: &ConvFilters,
        slabs: usize,
        values: &Values,
        order: Option<&[usize]>,
        stop: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        if values.dtype() != filters.dtype() {
            return Err(Error::mismatch(
                "element type of the coded slabs",
                values.dtype(),
                filters.dtype(),
                "slabs and installed filters must be of one type",
            ));
        }
        let results = slabs * filters.banks();
        let grouping = match order {
            Some(_) => Grouping::Each,
            None => Grouping::all(filters.plan(), self.gpu.caps()),
        };
        let order = order.map_or_else(|| Cow::Owned((0..results).collect()), Cow::Borrowed);
        check_indices(&order, results)?;
        match values {
            Values::F32(values) => self.run_typed(filters, slabs, values, &order, grouping, stop, emit),
            Values::F64(values) => self.run_typed(filters, slabs, values, &order, grouping, stop, emit),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "those of `run`, and what it made of them")]
    fn run_typed<T: Element>(
        &mut self,
        filters: &ConvFilters,
        slabs: usize,
        values: &[T],
        order: &[usize],
        grouping: Grouping,
        stop: &dyn Fn() -> bool,
        emit: &mut dyn FnMut(usize, Values),
    ) -> Result<()> {
        let started = Instant::now();
        let plan = filters.plan();
        check_elems("elements of the coded slabs", values.len(), slabs * plan.shape.input_elems())?;
        if stop() {
            return Err(Error::Cancelled);
        }
        self.gpu.check()?;
        self.reserve(plan, slabs, grouping.outputs(order.len()))?;
        if let Some(clock) = &mut self.clock {
            clock.reset();
        }
        let written = vec![false; slabs];
        let mut task = Task { filters, slabs: values, stop, emit, written, timing: RunTiming::default() };
        let mut in_flight = VecDeque::with_capacity(IN_FLIGHT);
        let outcome = self.pump(&mut task, submissions(plan, order, grouping), &mut in_flight);
        // Also after an error or a cancellation, so that the next run finds an idle device and usable buffers.
        let drained = if in_flight.is_empty() { Ok(()) } else { self.gpu.wait(None) };
        for (parts, _) in in_flight {
            for part in parts {
                self.outputs[part.output].release();
            }
        }
        for (slab, written) in self.slabs.iter_mut().zip(&task.written) {
            if *written {
                slab.prepare();
            }
        }
        let mut timing = task.timing;
        let clocked = match &mut self.clock {
            Some(clock) => clock.take(&self.gpu).map(Some),
            None => Ok(None),
        };
        timing.wall_s = started.elapsed().as_secs_f64();
        outcome.and(drained)?;
        timing.device_s = clocked?;
        self.timing = timing;
        Ok(())
    }

    fn pump<T: Element>(
        &mut self,
        task: &mut Task<'_, T>,
        submissions: Vec<Vec<Part>>,
        in_flight: &mut InFlight,
    ) -> Result<()> {
        for parts in submissions {
            if (task.stop)() {
                return Err(Error::Cancelled);
            }
            let submission = self.submit(task, &parts)?;
            in_flight.push_back((parts, submission));
            self.gpu.check()?;
            if in_flight.len() == IN_FLIGHT {
                self.retire(task, in_flight)?;
            }
        }
        while !in_flight.is_empty() {
            if (task.stop)() {
                return Err(Error::Cancelled);
            }
            self.retire(task, in_flight)?;
        }
        Ok(())
    }

    /// Uploads the slabs that `parts` need and submits their steps.
    fn submit<T: Element>(
        &mut self,
        task: &mut Task<'_, T>,
        parts: &[Part],
    ) -> Result<wgpu::SubmissionIndex> {
        let filters = task.filters;
        let plan = filters.plan();
        let slab_elems = plan.shape.input_elems();
        let mut encoder = self.encoder("sub-results");
        for part in parts {
            let at = part.index / filters.banks();
            if !task.written[at] {
                let since = Instant::now();
                let slab = &task.slabs[at * slab_elems..][..slab_elems];
                let bytes = if plan.variant.half {
                    narrow("a coded slab", bytemuck::cast_slice(slab), &mut self.narrowed)?;
                    bytemuck::cast_slice(&self.narrowed)
                } else {
                    bytemuck::cast_slice(slab)
                };
                task.written[at] = true;
                self.slabs[at].write(&self.gpu, bytes)?;
                self.slabs[at].begin(&mut encoder, plan.slab_bytes);
                task.timing.upload_s += since.elapsed().as_secs_f64();
            }
            if self.poison && part.first {
                let nan = vec![T::from_f64(f64::NAN); plan.shape.output_elems()];
                let output = self.outputs[part.output].buffer();
                self.gpu.queue.write_buffer(output, 0, bytemuck::cast_slice(&nan));
                for (kept, bytes) in
                    [(&self.transformed, plan.transformed_bytes), (&self.sums, plan.sums_bytes)]
                {
                    if let (Some(kept), true) = (kept, bytes > 0) {
                        // Bytes that form a NaN in either type.
                        let bytes = usize::try_from(bytes).expect("an adapter binds less than memory holds");
                        self.gpu.queue.write_buffer(kept, 0, &vec![0xff; bytes]);
                    }
                }
            }
        }
        let mut work = Vec::with_capacity(parts.len());
        for part in parts {
            let bindings = self.bind(filters, part.index, part.output);
            task.timing.dispatches += part.steps.len();
            work.push((bindings, part.steps.clone()));
        }
        let timestamps = match &mut self.clock {
            Some(clock) => Some(clock.pass(&self.gpu)?),
            None => None,
        };
        encode(&mut encoder, filters, &work, timestamps);
        for part in parts.iter().filter(|part| part.last) {
            self.outputs[part.output].finish(&mut encoder, plan.output_bytes);
        }
        let submission = self.gpu.queue.submit([encoder.finish()]);
        task.timing.submissions += 1;
        // The wait for the submission then also completes the mappings.
        for part in parts.iter().filter(|part| part.last) {
            self.outputs[part.output].prepare(plan.output_bytes);
        }
        Ok(submission)
    }

    /// Waits for the oldest submission and emits the sub-results that it completes.
    fn retire<T: Element>(&mut self, task: &mut Task<'_, T>, in_flight: &mut InFlight) -> Result<()> {
        let Some((parts, submission)) = in_flight.front() else { return Ok(()) };
        self.gpu.wait(Some(submission.clone()))?;
        for (number, part) in parts.iter().filter(|part| part.last).enumerate() {
            if number > 0 && (task.stop)() {
                return Err(Error::Cancelled);
            }
            let since = Instant::now();
            let elems = task.filters.plan().shape.output_elems();
            let values = self.outputs[part.output].read::<T>(&self.gpu, elems, submission)?;
            task.timing.readback_s += since.elapsed().as_secs_f64();
            (task.emit)(part.index, T::wrap(values));
        }
        in_flight.pop_front();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::DType;
    use crate::conv::{ConvParams, ConvShape};
    use crate::gpu::Kernel;

    fn plan(side: usize, caps: &Caps) -> ConvPlan {
        let shape = ConvShape::new(&[1, 8, side, side], &[8, 8, 3, 3], &ConvParams::default()).unwrap();
        ConvPlan::new(&shape, DType::F32, caps, Some(Kernel::Direct)).unwrap()
    }

    #[test]
    fn small_sub_results_share_a_submission_and_large_ones_do_not() {
        let caps = crate::gpu::plan::tests::caps();
        let small = plan(10, &caps);
        let together = Grouping::all(&small, &caps);
        assert_eq!(together, Grouping::Together(64));
        let all = submissions(&small, &[0, 1, 2, 3], together);
        assert_eq!(all.len(), 1);
        assert_eq!(
            all[0].iter().map(|p| (p.index, p.output)).collect::<Vec<_>>(),
            [(0, 0), (1, 1), (2, 2), (3, 3)]
        );
        assert!(all[0].iter().all(|p| p.first && p.last && p.steps == (0..small.steps.len())));
        // 577 * 74 * 74 = 3.0e6 multiply-adds: eight make 2.5e7.
        let middle = plan(76, &caps);
        assert_eq!(Grouping::all(&middle, &caps), Grouping::Together(7));
        // 1.4e7: one by one, so that the rest is computed while one is read back.
        assert_eq!(Grouping::all(&plan(160, &caps), &caps), Grouping::Each);
        // Large outputs with little work also go one by one.
        let wide = Caps { submission_macs: u64::MAX / 2, ..caps };
        assert_eq!(Grouping::all(&plan(400, &wide), &wide), Grouping::Each);
        // A result requested individually never waits for another.
        assert!(submissions(&small, &[2, 0], Grouping::Each).iter().all(|parts| parts.len() == 1));
    }

    #[test]
    fn no_output_is_used_again_before_it_was_read() {
        let caps = crate::gpu::plan::tests::caps();
        let small = plan(10, &caps);
        let split = plan(60, &Caps { submission_macs: 100_000, ..caps });
        assert!(split.submissions.len() > 2);
        for (plan, grouping, results) in [
            (&small, Grouping::Together(3), 10),
            (&small, Grouping::Together(3), 2),
            (&small, Grouping::Each, 5),
            (&split, Grouping::Each, 5),
            (&small, Grouping::Each, 0),
        ] {
            let order: Vec<usize> = (0..results).collect();
            let all = submissions(plan, &order, grouping);
            let mut completed = Vec::new();
            for window in all.windows(IN_FLIGHT) {
                // While the second is in flight, the outputs of the first are read.
                for part in &window[1] {
                    let other = |p: &&Part| p.output == part.output && p.index != part.index;
                    assert_eq!(window[0].iter().find(other), None);
                }
            }
            for part in all.iter().flatten() {
                assert!(part.output < grouping.outputs(results));
                if part.last {
                    completed.push(part.index);
                }
            }
            assert_eq!(completed, order);
        }
    }
}
