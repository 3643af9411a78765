//! Synthetic results of a layer, for tests that need thousands of them: random parts, their exact combinations, and
//! simulated rounding errors of workers.

use rand::{Rng, RngExt, seq::index};

use super::code::{Code, SubResult};
use super::sketch::{Sketch, Sketcher};
use crate::array::Element;

/// The fault of one group. Sizes are relative (L2, over all results of the group).
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    None,
    /// Errors in all elements, independent of each other.
    Noise(usize, f64),
    /// One element.
    Spike(usize, f64),
    /// All elements too large.
    Scale(usize, f64),
    /// One element is not a number.
    Lost(usize),
}

pub(super) struct Synthetic {
    pub(super) inputs: Vec<SubResult>,
    /// The worker that computed each result: here its subtask.
    pub(super) groups: Vec<usize>,
    sketcher: Sketcher,
    exact: Vec<Vec<f64>>,
}

impl Synthetic {
    /// A random set of `responders` subtasks, in random order.
    pub(super) fn random(code: &Code, responders: usize, elems: usize, random: &mut impl Rng) -> Self {
        let subtasks = index::sample(random, code.n(), responders).into_vec();
        let inputs = code.sub_results_of(&subtasks);
        let parts: Vec<f64> = (0..code.k_a() * code.k_b() * elems).map(|_| normal(random)).collect();
        let result = |of: &SubResult| {
            let mut sum = vec![0.0; elems];
            for (weight, part) in code.recovery_column(*of).zip(parts.chunks_exact(elems)) {
                sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += weight * value);
            }
            sum
        };
        Self {
            groups: inputs.iter().map(|of| of.subtask.0).collect(),
            exact: inputs.iter().map(result).collect(),
            sketcher: Sketcher::new(elems, random.next_u64()),
            inputs,
        }
    }

    pub(super) fn subtasks(&self) -> Vec<usize> {
        let mut subtasks = self.groups.clone();
        subtasks.dedup();
        subtasks
    }

    pub(super) fn scale(&mut self, factor: f64) {
        self.exact.iter_mut().flatten().for_each(|value| *value *= factor);
    }

    /// Multiplies every result by its own factor.
    pub(super) fn scale_each(&mut self, factor: impl Fn(&SubResult) -> f64) {
        for (input, values) in self.inputs.iter().zip(&mut self.exact) {
            let factor = factor(input);
            for value in values {
                *value *= factor;
            }
        }
    }

    /// Drops the results that are not among `inputs`.
    pub(super) fn keep(&mut self, inputs: &[SubResult]) {
        let kept: Vec<usize> = (0..self.inputs.len()).filter(|m| inputs.contains(&self.inputs[*m])).collect();
        self.groups = kept.iter().map(|m| self.groups[*m]).collect();
        self.exact = kept.iter().map(|m| self.exact[*m].clone()).collect();
        self.inputs = kept.iter().map(|m| self.inputs[*m]).collect();
    }

    pub(super) fn sketches<T: Element>(
        &self,
        reduction: usize,
        fault: Fault,
        random: &mut impl Rng,
    ) -> Vec<Sketch> {
        self.faulty::<T>(reduction, &[fault], random)
    }

    /// Sketches of the results as returned by workers of type T that sum `reduction` terms for each element.
    ///
    /// The relative rms error is taken as `EPSILON sqrt(reduction) / 8`, about what f32 convolutions of 27 to 4608
    /// terms measure; the result is then rounded.
    pub(super) fn faulty<T: Element>(
        &self,
        reduction: usize,
        faults: &[Fault],
        random: &mut impl Rng,
    ) -> Vec<Sketch> {
        let rounding = T::EPSILON * (reduction as f64).sqrt() / 8.0;
        let rms = |values: &[f64]| {
            let largest = values.iter().fold(f64::MIN_POSITIVE, |largest, value| value.abs().max(largest));
            let mean =
                values.iter().map(|value| (value / largest).powi(2)).sum::<f64>() / values.len() as f64;
            largest * mean.sqrt()
        };
        let mut results: Vec<Vec<f64>> = self.exact.clone();
        for values in &mut results {
            let size = rms(values) * rounding;
            for value in values {
                *value += size * normal(random);
            }
        }
        for fault in faults {
            let (group, size) = match *fault {
                Fault::None => continue,
                Fault::Noise(group, size) | Fault::Spike(group, size) | Fault::Scale(group, size) => {
                    (group, size)
                }
                Fault::Lost(group) => (group, f64::NAN),
            };
            let members: Vec<usize> = (0..self.groups.len()).filter(|m| self.groups[*m] == group).collect();
            let all: Vec<f64> = members.iter().flat_map(|m| &self.exact[*m]).copied().collect();
            let error: Vec<f64> = match fault {
                Fault::Noise(..) => {
                    let error: Vec<f64> = all.iter().map(|_| normal(random)).collect();
                    let unit = size * rms(&all) / rms(&error);
                    error.iter().map(|value| unit * value).collect()
                }
                Fault::Scale(..) => all.iter().map(|value| size * value).collect(),
                _ => {
                    let mut error = vec![0.0; all.len()];
                    error[random.random_range(0..all.len())] = size * rms(&all) * (all.len() as f64).sqrt();
                    error
                }
            };
            for (m, error) in members.iter().zip(error.chunks_exact(self.sketcher.elems())) {
                results[*m].iter_mut().zip(error).for_each(|(value, error)| *value += error);
            }
        }
        let rounded = |values: &Vec<f64>| values.iter().map(|value| T::from_f64(*value)).collect::<Vec<T>>();
        results.iter().map(|values| self.sketcher.sketch(&rounded(values))).collect()
    }
}

/// Nearly normal, mean 0 and variance 1: the sum of four uniform numbers, from one draw.
fn normal(random: &mut impl Rng) -> f64 {
    let bits = random.next_u64();
    let sum: f64 = (0..4).map(|at| (bits >> (16 * at) & 0xffff) as f64).sum();
    (sum / 65536.0 - 2.0 + 2.0 / 65536.0) * 3.0_f64.sqrt()
}
