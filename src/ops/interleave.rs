//! Interleaves the phases of a transposed convolution.

use super::share::share;
use crate::array::Element;

/// The number of axes, leading ones of size 1 included.
const AXES: usize = 3;

/// A position of an axis of the output: the phase and the index in it, or `None` for an element that no phase has.
type Source = Option<(usize, usize)>;

/// Successive outputs of one phase along the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    phase: usize,
    /// Index of the first one in the phase.
    from: usize,
    /// Index of the first one in the output, and the distance to the next one.
    to: usize,
    step: usize,
    count: usize,
}

/// Merges `[N, O * phases, from...]` to `[N, O, to...]`: along each axis, each output position copies an element of a
/// phase or holds a fill value. With as many phases as block elements this is the operator depth-to-space.
///
/// # Examples
///
/// ```
/// use fcdcc::ops::Interleave;
///
/// // Two phases of three elements along one axis, and a last element that has none.
/// let sources = (0..7).map(|i| (i < 6).then_some((i % 2, i / 2))).collect();
/// let interleave = Interleave::new([1, 1, 2], [1, 1, 3], &[vec![Some((0, 0))], vec![Some((0, 0))], sources]);
/// let mut output = [0.0; 7];
/// interleave.run(&[1.0, 3.0, 5.0, 2.0, 4.0, 6.0], &[0.5], &mut output);
/// assert_eq!(output, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interleave {
    phases: [usize; AXES],
    from: [usize; AXES],
    to: [usize; AXES],
    layers: Vec<Source>,
    rows: Vec<Source>,
    /// The last axis.
    runs: Vec<Run>,
    /// Whether the runs cover the last axis.
    covered: bool,
}

impl Interleave {
    /// `sources` gives for each axis the source of each output position; `phases` and `from` are the number of phases and
    /// their size on each axis. Phases are numbered row-major.
    ///
    /// # Panics
    /// When a source is outside its phase.
    #[must_use]
    pub fn new(phases: [usize; AXES], from: [usize; AXES], sources: &[Vec<Source>; AXES]) -> Self {
        for (axis, sources) in sources.iter().enumerate() {
            let inside = |&(phase, at): &(usize, usize)| phase < phases[axis] && at < from[axis];
            assert!(sources.iter().flatten().all(inside), "a source outside its phase on axis {axis}");
        }
        let [layers, rows, columns] = sources;
        let to = [layers.len(), rows.len(), columns.len()];
        let covered = columns.iter().all(Option::is_some);
        Self { phases, from, to, layers: layers.clone(), rows: rows.clone(), runs: runs(columns), covered }
    }

    /// Whether the output equals the input.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        let same = |sources: &[Source]| sources.iter().enumerate().all(|(at, s)| *s == Some((0, at)));
        let whole = Run { phase: 0, from: 0, to: 0, step: 1, count: self.to[2] };
        let columns = self.runs == [whole];
        self.phases == [1; AXES] && self.from == self.to && same(&self.layers) && same(&self.rows) && columns
    }

    /// The number of elements of the output for one channel of one item.
    #[must_use]
    pub fn plane(&self) -> usize {
        self.to.iter().product()
    }

    /// Writes `output` `[N, O, to...]` from `input` `[N, O * phases, from...]`; elements without a source get the value of
    /// `fill` for their channel, `[O]`.
    pub fn run<T: Element>(&self, input: &[T], fill: &[f64], output: &mut [T]) {
        let (count, plane) = (self.phases.iter().product::<usize>(), self.from.iter().product::<usize>());
        let channels = output.len() / self.plane().max(1);
        assert_eq!(channels * self.plane(), output.len(), "an output of another length");
        assert_eq!(channels * count * plane, input.len(), "input and output differ in channels");
        let [_, phase_rows, phase_columns] = self.phases;
        let [layers, rows, columns] = self.to;
        share(output, columns, 2, |first, piece| {
            for (index, to) in piece.chunks_exact_mut(columns.max(1)).enumerate() {
                let (channel, row) = ((first + index) / rows, (first + index) % rows);
                let (channel, layer) = (channel / layers, channel % layers);
                let source = self.layers[layer].zip(self.rows[row]);
                if !self.covered || source.is_none() {
                    to.fill(T::from_f64(fill[channel % fill.len()]));
                }
                let Some(((layer_phase, layer), (row_phase, row))) = source else { continue };
                for run in &self.runs {
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

/// The sources of an axis as runs with constant steps.
fn runs(sources: &[Source]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    // The run that each phase continues.
    let mut latest = std::collections::HashMap::new();
    for (to, source) in sources.iter().enumerate() {
        let Some((phase, from)) = *source else { continue };
        if let Some(run) = latest.get(&phase).and_then(|index: &usize| runs.get_mut(*index)) {
            let step = if run.count == 1 { to - run.to } else { run.step };
            if from == run.from + run.count && to == run.to + run.count * step {
                (run.step, run.count) = (step, run.count + 1);
                continue;
            }
        }
        latest.insert(phase, runs.len());
        runs.push(Run { phase, from, to, step: 1, count: 1 });
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_is_an_identity() {
        let line = |count: usize| (0..count).map(|at| Some((0, at))).collect::<Vec<_>>();
        let of = |sources: [Vec<Source>; 3], from| Interleave::new([1; 3], from, &sources).is_identity();
        assert!(of([line(1), line(2), line(5)], [1, 2, 5]));
        assert!(of([line(1), line(1), line(1)], [1; 3]));
        assert!(!of([line(1), line(2), line(4)], [1, 2, 5]));
        let mut holed = line(5);
        holed[4] = None;
        assert!(!of([line(1), line(2), holed], [1, 2, 5]));
        let mut swapped = line(5);
        swapped.swap(1, 2);
        assert!(!of([line(1), line(2), swapped], [1, 2, 5]));
    }

    /// Sources in any order, rows and channels without a source, enough elements for several threads.
    #[test]
    fn every_element_comes_from_its_source() {
        let (phases, from) = ([1, 2, 3], [1, 33, 40]);
        let rows: Vec<Source> = (0..66).map(|y| (y % 7 != 3).then_some((y % 2, y / 2))).collect();
        let columns: Vec<Source> = (0..120).map(|x| (x % 11 != 5).then_some((x * 2 % 3, 39 - x / 3))).collect();
        let interleave = Interleave::new(phases, from, &[vec![Some((0, 0))], rows.clone(), columns.clone()]);
        let (channels, plane) = (4, 33 * 40);
        let input: Vec<f64> = (0..channels * 6 * plane).map(|index| index as f64).collect();
        let mut output = vec![0.0; channels * 66 * 120];
        interleave.run(&input, &[-1.0, -2.0], &mut output);
        for (index, value) in output.iter().enumerate() {
            let (channel, y, x) = (index / (66 * 120), index / 120 % 66, index % 120);
            let want = match (rows[y], columns[x]) {
                (Some((p, r)), Some((q, c))) => input[(channel * 6 + p * 3 + q) * plane + r * 40 + c],
                _ => [-1.0, -2.0][channel % 2],
            };
            assert_eq!(value.to_bits(), want.to_bits(), "channel {channel}, row {y}, column {x}");
        }
    }
}
