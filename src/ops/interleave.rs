//! Interleaves the phases of a transposed convolution.

use super::share::share;
use crate::array::Element;

/// The number of axes, leading ones of size 1 included.
const AXES: usize = 3;

/// Outputs of one phase along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseRun {
    /// The number of the phase.
    pub phase: usize,
    /// Index of the first output in the phase.
    pub from: usize,
    /// Index of the first output in the axis.
    pub to: usize,
    /// Distance of the outputs in the axis, at least 1.
    pub step: usize,
    /// The number of outputs.
    pub count: usize,
}

impl PhaseRun {
    /// The index in the phase of position `at` of the axis.
    fn source(&self, at: usize) -> Option<usize> {
        let distance = at.checked_sub(self.to)?;
        let index = distance / self.step;
        (distance.is_multiple_of(self.step) && index < self.count).then(|| self.from + index)
    }
}

/// Merges `[N, O * phases, from...]` to `[N, O, to...]`: along each axis, each output position copies an element of a
/// phase or holds a fill value. With runs that cover the output this is the operator depth-to-space.
///
/// # Examples
///
/// ```
/// use fcdcc::ops::{Interleave, PhaseRun};
///
/// // Two phases of three elements along one axis, and a last element that has none.
/// let one = vec![PhaseRun { phase: 0, from: 0, to: 0, step: 1, count: 1 }];
/// let run = |phase| PhaseRun { phase, from: 0, to: phase, step: 2, count: 3 };
/// let interleave = Interleave::new([1, 1, 2], [1, 1, 3], [1, 1, 7], [one.clone(), one, vec![run(0), run(1)]]);
/// let mut output = [0.0; 7];
/// interleave.run(&[1.0, 3.0, 5.0, 2.0, 4.0, 6.0], &[0.5], &mut output);
/// assert_eq!(output, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interleave {
    phases: [usize; AXES],
    from: [usize; AXES],
    to: [usize; AXES],
    runs: [Vec<PhaseRun>; AXES],
    /// Whether the runs cover the last axis.
    covered: bool,
}

impl Interleave {
    /// `phases` and `from` are the number of phases and their size on each axis, `to` is the size of the output. No
    /// position may be in two of the runs of an axis. The phases of several axes are numbered row-major.
    ///
    /// # Panics
    /// When a run is outside its phase or outside the output.
    #[must_use]
    pub fn new(
        phases: [usize; AXES],
        from: [usize; AXES],
        to: [usize; AXES],
        runs: [Vec<PhaseRun>; AXES],
    ) -> Self {
        for (axis, runs) in runs.iter().enumerate() {
            for run in runs.iter().filter(|run| run.count > 0) {
                let last = (run.count - 1).checked_mul(run.step).and_then(|last| last.checked_add(run.to));
                let fits = run.phase < phases[axis] && run.from + run.count <= from[axis] && run.step > 0;
                assert!(fits && last.is_some_and(|last| last < to[axis]), "{run:?} is outside axis {axis}");
            }
        }
        let covered = runs[2].iter().map(|run| run.count).sum::<usize>() == to[2];
        Self { phases, from, to, runs, covered }
    }

    /// Whether the output equals the input.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        let whole = |axis: usize| PhaseRun { phase: 0, from: 0, to: 0, step: 1, count: self.to[axis] };
        let copies = |axis: usize| match self.runs[axis][..] {
            [run] => whole(axis) == PhaseRun { step: if run.count == 1 { 1 } else { run.step }, ..run },
            _ => false,
        };
        self.phases == [1; AXES] && self.from == self.to && (0..AXES).all(copies)
    }

    /// The number of elements of the output for one channel of one item.
    #[must_use]
    pub fn plane(&self) -> usize {
        self.to.iter().product()
    }

    /// Writes `output` `[N, O, to...]` from `input` `[N, O * phases, from...]`; elements without a phase get the value of
    /// `fill` for their channel, `[O]`.
    pub fn run<T: Element>(&self, input: &[T], fill: &[f64], output: &mut [T]) {
        let (count, plane) = (self.phases.iter().product::<usize>(), self.from.iter().product::<usize>());
        let channels = output.len() / self.plane().max(1);
        assert_eq!(channels * self.plane(), output.len(), "an output of another length");
        assert_eq!(channels * count * plane, input.len(), "input and output differ in channels");
        let [_, phase_rows, phase_columns] = self.phases;
        let [layers, rows, columns] = self.to;
        let source = |axis: usize, at: usize| {
            self.runs[axis].iter().find_map(|run| Some((run.phase, run.source(at)?)))
        };
        share(output, columns, 2, |first, piece| {
            for (index, to) in piece.chunks_exact_mut(columns.max(1)).enumerate() {
                let (channel, row) = ((first + index) / rows, (first + index) % rows);
                let (channel, layer) = (channel / layers, channel % layers);
                let source = source(0, layer).zip(source(1, row));
                if !self.covered || source.is_none() {
                    to.fill(T::from_f64(fill[channel % fill.len()]));
                }
                let Some(((layer_phase, layer), (row_phase, row))) = source else { continue };
                for run in self.runs[2].iter().filter(|run| run.count > 0) {
                    let phase = (layer_phase * phase_rows + row_phase) * phase_columns + run.phase;
                    let row = (layer * self.from[1] + row) * self.from[2];
                    let from = &input[(channel * count + phase) * plane + row + run.from..][..run.count];
                    for (to, from) in to[run.to..].iter_mut().step_by(run.step).zip(from) {
                        *to = *from;
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(count: usize) -> Vec<PhaseRun> {
        vec![PhaseRun { phase: 0, from: 0, to: 0, step: 1, count }]
    }

    #[test]
    fn only_a_copy_is_an_identity() {
        let of = |columns: Vec<PhaseRun>, to: usize| {
            Interleave::new([1; 3], [1, 2, 5], [1, 2, to], [line(1), line(2), columns]).is_identity()
        };
        assert!(of(line(5), 5));
        assert!(!of(line(4), 5));
        assert!(!of(line(4), 4));
        assert!(!of(line(5), 6));
        assert!(!of(vec![PhaseRun { step: 2, ..line(5)[0] }], 9));
        assert!(!of(Vec::new(), 5));
        let single = vec![PhaseRun { step: 7, ..line(1)[0] }];
        assert!(Interleave::new([1; 3], [1; 3], [1; 3], [line(1), line(1), single]).is_identity());
    }

    /// Rows and columns without a phase, phases in any order, enough elements for several threads.
    #[test]
    fn every_element_comes_from_its_phase() {
        let run = |phase, from, to, step, count| PhaseRun { phase, from, to, step, count };
        let rows = vec![run(1, 3, 0, 2, 30), run(0, 0, 5, 2, 33)];
        let columns = vec![run(2, 1, 4, 3, 39), run(0, 0, 2, 3, 40)];
        let (from, to) = ([1, 33, 40], [1, 75, 121]);
        let interleave = Interleave::new([1, 2, 3], from, to, [line(1), rows.clone(), columns.clone()]);
        let (channels, plane) = (4, 33 * 40);
        let input: Vec<f64> = (0..channels * 6 * plane).map(|index| index as f64).collect();
        let mut want: Vec<f64> =
            (0..channels * 75 * 121).map(|index| [-1.0, -2.0][index / (75 * 121) % 2]).collect();
        let mut reached = 0;
        for channel in 0..channels {
            for (r, c) in rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c))) {
                for (i, j) in (0..r.count).flat_map(|i| (0..c.count).map(move |j| (i, j))) {
                    let to = (channel * 75 + r.to + i * r.step) * 121 + c.to + j * c.step;
                    let phase = channel * 6 + r.phase * 3 + c.phase;
                    want[to] = input[phase * plane + (r.from + i) * 40 + c.from + j];
                    reached += 1;
                }
            }
        }
        assert!(reached > 10_000 && reached < want.len());
        let mut output = vec![0.0; want.len()];
        interleave.run(&input, &[-1.0, -2.0], &mut output);
        assert_eq!(output, want);
    }

    #[test]
    #[should_panic(expected = "outside axis 2")]
    fn a_run_outside_the_output_is_refused() {
        let long = vec![PhaseRun { phase: 0, from: 0, to: 1, step: 2, count: 3 }];
        drop(Interleave::new([1; 3], [1, 1, 3], [1, 1, 5], [line(1), line(1), long]));
    }
}
