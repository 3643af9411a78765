//! Errors of real convolutions: encodes a layer, computes every subtask, and decodes the output from one responder set
//! after the other.
//!
//! The reference is the uncoded convolution, in f64, of the numbers that were encoded (for f32: after rounding them).
//! Invariant: the same seed gives the same numbers for every code.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use fcdcc::array::Element;
use fcdcc::coding::{Code, Decoder, Epilogue, decode, encode_filters, encode_input, error_bound};
use fcdcc::conv::{ConvKernel, ConvShape, Scratch, conv_uncoded};
use fcdcc::error::{Error, Result};
use fcdcc::ids::SubtaskId;
use fcdcc::internal::normal;
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};

/// Unit-normal input and filters of one layer, with the reference output.
#[derive(Clone, Debug)]
pub struct Numbers<T> {
    shape: ConvShape,
    input: Vec<T>,
    weight: Vec<T>,
    truth: Vec<f64>,
}

/// Distance of an output from the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    /// Mean squared error.
    pub mse: f64,
    /// Norm of the error over the norm of the truth.
    pub relative_l2: f64,
}

impl<T: Element> Numbers<T> {
    /// The numbers of `seed`.
    ///
    /// # Errors
    /// The errors of the convolution.
    pub fn new(shape: &ConvShape, seed: u64) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut normal =
            |len: usize| -> Vec<T> { (0..len).map(|_| T::from_f64(normal(&mut random))).collect() };
        let (input, weight) = (normal(shape.input_elems()), normal(shape.weight_elems()));
        let wide = |values: &[T]| values.iter().map(|v| v.to_f64()).collect::<Vec<_>>();
        let threads = rayon::current_num_threads();
        let truth = conv_uncoded(shape, &wide(&input), &wide(&weight), None, threads, &|| false)?;
        Ok(Self { shape: shape.clone(), input, weight, truth })
    }

    /// Deviation of `output` from the reference; infinite if a number is not finite.
    fn deviation(&self, output: &[T]) -> Deviation {
        let (mut error, mut norm) = (0.0, 0.0);
        for (got, want) in output.iter().zip(&self.truth) {
            error += (got.to_f64() - want).powi(2);
            norm += want * want;
        }
        let worst_if_nan = |v: f64| if v.is_nan() { f64::INFINITY } else { v };
        Deviation {
            mse: worst_if_nan(error / self.truth.len() as f64),
            relative_l2: worst_if_nan((error / norm).sqrt()),
        }
    }

    /// Deviation of the uncoded convolution in `T`.
    ///
    /// # Errors
    /// The errors of the convolution.
    pub fn uncoded(&self) -> Result<Deviation> {
        let threads = rayon::current_num_threads();
        let output = conv_uncoded(&self.shape, &self.input, &self.weight, None, threads, &|| false)?;
        Ok(self.deviation(&output))
    }

    /// Error bound of a code with this condition number.
    #[must_use]
    pub fn bound(&self, condition: f64) -> f64 {
        error_bound(condition, T::EPSILON, self.shape.reduction())
    }
}

/// A layer with all sub-results computed.
#[derive(Clone, Debug)]
pub struct Computed<'a, T> {
    numbers: &'a Numbers<T>,
    code: &'a Code,
    tiling: OutputTiling,
    /// Sub-results by subtask, then slab, then bank.
    results: Vec<Vec<T>>,
    output: Vec<T>,
}

impl<'a, T: Element> Computed<'a, T> {
    /// Encodes `numbers` with `code` and computes all n subtasks on the threads of the current rayon pool.
    ///
    /// # Errors
    /// An error if the layer cannot be split into the partitions of the code.
    pub fn new(numbers: &'a Numbers<T>, code: &'a Code) -> Result<Self> {
        let shape = &numbers.shape;
        let slabs = InputPartition::new(shape, code.k_a())?;
        let filters = FilterPartition::new(shape, code.k_b())?;
        let kernel = ConvKernel::new(&slabs.slab_conv(filters.bank_channels()));
        let (part, slab, bank) =
            (kernel.shape().output_elems(), kernel.shape().input_elems(), kernel.shape().weight_elems());
        let coded = encode_input(code, shape, &slabs, &numbers.input, Vec::new());
        let subtask = |scratch: &mut Scratch<T>, (i, coded): (usize, &Vec<T>)| -> Result<Vec<Vec<T>>> {
            let coded_banks = encode_filters(code, &filters, &numbers.weight, &[], SubtaskId(i));
            let coded_banks =
                coded_banks.chunks(bank).map(|bank| kernel.pack(bank)).collect::<Result<Vec<_>>>()?;
            let mut results = vec![vec![T::default(); part]; code.l_a() * code.l_b()];
            for (input, results) in coded.chunks(slab).zip(results.chunks_mut(code.l_b())) {
                let mut input = kernel.one_input(scratch, input, 1);
                for (bank, output) in coded_banks.iter().zip(results) {
                    input.run(bank, output, &|| false)?;
                }
            }
            Ok(results)
        };
        let results: Vec<Vec<Vec<T>>> =
            coded.par_iter().enumerate().map_init(Scratch::new, subtask).collect::<Result<_>>()?;
        Ok(Self {
            numbers,
            code,
            tiling: OutputTiling::new(shape, &slabs, &filters),
            results: results.into_iter().flatten().collect(),
            output: vec![T::default(); shape.output_elems()],
        })
    }

    /// Deviation of the output that is decoded from the subtasks `responders`; infinite if their recovery matrix is so
    /// badly conditioned that no decoder accepts it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for too few responders.
    pub fn deviation(&mut self, responders: &[usize]) -> Result<Deviation> {
        let decoder = match Decoder::for_subtasks(self.code, responders) {
            Err(Error::Singular { .. }) => {
                return Ok(Deviation { mse: f64::INFINITY, relative_l2: f64::INFINITY });
            }
            decoder => decoder?,
        };
        let (l_a, l_b) = (self.code.l_a(), self.code.l_b());
        let at = |of: &fcdcc::coding::SubResult| (of.subtask.0 * l_a + of.slab) * l_b + of.bank;
        let results: Vec<&[T]> = decoder.inputs().iter().map(|of| &self.results[at(of)][..]).collect();
        decode(&decoder, &self.tiling, &results, Epilogue::default(), &mut self.output)?;
        Ok(self.numbers.deviation(&self.output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::{Room, comparable};
    use fcdcc::coding::CodeKind;
    use fcdcc::conv::{ConvParams, reference};

    fn shape() -> ConvShape {
        ConvShape::new(&[1, 5, 17, 12], &[16, 5, 3, 3], &ConvParams::default().padding([1])).unwrap()
    }

    fn within_bounds<T: Element>(kind: CodeKind) {
        let numbers = Numbers::<T>::new(&shape(), 4).unwrap();
        let code = comparable(kind, 6, 4, Room { rows: 17, channels: 16 }).unwrap();
        let mut computed = Computed::new(&numbers, &code).unwrap();
        for set in [[0, 1, 2, 3], [0, 2, 4, 5], [1, 2, 3, 5]] {
            let (found, bound) = (computed.deviation(&set).unwrap(), numbers.bound(code.condition(&set)));
            assert!(found.relative_l2 <= bound && found.relative_l2 > 0.0, "{kind}: {found:?}, {bound}");
            // Unit-normal operands: the variance of an output is about the number of its terms.
            let square = found.mse / found.relative_l2.powi(2);
            assert!((20.0..60.0).contains(&square), "{square}");
        }
        // Negative controls: one wrong element, results of another input, and a decoder of another code.
        computed.results[0][0] = T::from_f64(computed.results[0][0].to_f64() + 1.0);
        let wrong = |computed: &mut Computed<T>, set: &[usize]| {
            let bound = numbers.bound(code.condition(set));
            assert!(computed.deviation(set).unwrap().relative_l2 > 30.0 * bound, "{kind}");
        };
        wrong(&mut computed, &[0, 1, 2, 3]);
        assert!(computed.deviation(&[1, 2, 3, 4]).unwrap().relative_l2 < 1e-3);
        // Eight subtasks, because rotation codes of six and of seven subtasks are the same.
        let other = Code::new(kind, code.k_a(), code.k_b(), 8).unwrap();
        let mut perturbed = Computed::new(&numbers, &code).unwrap();
        perturbed.code = &other;
        wrong(&mut perturbed, &[1, 2, 3, 5]);
    }

    #[test]
    fn errors_stay_below_their_bound_and_wrong_results_do_not() {
        for kind in [CodeKind::Crme, CodeKind::Chebyshev, CodeKind::Vandermonde, CodeKind::KhatriRao] {
            within_bounds::<f32>(kind);
            within_bounds::<f64>(kind);
        }
    }

    #[test]
    fn truth_is_the_convolution_and_what_does_not_decode_is_infinitely_wrong() {
        let numbers = Numbers::<f64>::new(&shape(), 1).unwrap();
        let naive = reference(&shape(), &numbers.input, &numbers.weight, None).unwrap();
        assert!(numbers.deviation(&naive).relative_l2 < 1e-14);
        assert_eq!(numbers.uncoded().unwrap().mse, 0.0);
        let f32_error = Numbers::<f32>::new(&shape(), 1).unwrap().uncoded().unwrap().relative_l2;
        assert!(f32_error > 1e-8 && f32_error < 1e-6, "{f32_error}");
        assert_eq!(numbers.deviation(&vec![f64::NAN; naive.len()]).relative_l2, f64::INFINITY);
        let code = Code::new(CodeKind::Crme, 2, 16, 9).unwrap();
        let mut computed = Computed::new(&numbers, &code).unwrap();
        let twice = [0, 0, 1, 2, 3, 4, 5, 6];
        assert_eq!(computed.deviation(&twice).unwrap().mse, f64::INFINITY);
        assert!(computed.deviation(&[0, 1]).is_err());
    }
}
