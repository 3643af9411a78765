//! Layers computed by the reference, subtask by subtask, for tests that decode every responder set.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use fcdcc::SubtaskId;
use fcdcc::array::Element;
use fcdcc::coding::{Code, CodeKind, Decoder, Epilogue, SubResult, decode, encode_filters, encode_input};
use fcdcc::conv::{ConvShape, reference};
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};

use fcdcc_test_support::{normal, relative_l2};

/// A layer with all sub-results computed.
pub(crate) struct Computed<T> {
    pub(crate) code: Code,
    pub(crate) tiling: OutputTiling,
    pub(crate) results: Vec<Vec<T>>,
    pub(crate) bias: Vec<T>,
    pub(crate) truth: Vec<T>,
}

impl<T: Element> Computed<T> {
    pub(crate) fn new(
        kind: CodeKind,
        shape: &ConvShape,
        k_a: usize,
        k_b: usize,
        n: usize,
        seed: u64,
    ) -> Self {
        let (input, weight): (Vec<T>, Vec<T>) =
            (normal(shape.input_elems(), seed), normal(shape.weight_elems(), seed + 1));
        let bias = normal(shape.out_channels, seed + 2);
        let code = Code::new(kind, k_a, k_b, n).unwrap();
        let slabs = InputPartition::new(shape, k_a).unwrap();
        let filters = FilterPartition::new(shape, k_b).unwrap();
        let conv = slabs.slab_conv(filters.bank_channels());
        let mut results = Vec::new();
        for (i, coded) in encode_input(&code, shape, &slabs, &input, Vec::new()).iter().enumerate() {
            let coded_banks = encode_filters(&code, &filters, &weight, &[], SubtaskId(i));
            for slab in coded.chunks(conv.input_elems()) {
                for bank in coded_banks.chunks(conv.weight_elems()) {
                    results.push(reference(&conv, slab, bank, None).unwrap());
                }
            }
        }
        let truth = reference(shape, &input, &weight, Some(&bias)).unwrap();
        Self { tiling: OutputTiling::new(shape, &slabs, &filters), code, results, bias, truth }
    }

    pub(crate) fn result(&self, of: SubResult) -> &[T] {
        &self.results[(of.subtask.0 * self.code.l_a() + of.slab) * self.code.l_b() + of.bank]
    }

    pub(crate) fn decode(&self, decoder: &Decoder) -> Vec<T> {
        let results: Vec<&[T]> = decoder.inputs().iter().map(|of| self.result(*of)).collect();
        let mut output = vec![T::from_f64(f64::NAN); self.truth.len()];
        decode(
            decoder,
            &self.tiling,
            &results,
            Epilogue { bias: Some(&self.bias), ..Epilogue::default() },
            &mut output,
        )
        .unwrap();
        output
    }

    /// Error and condition number of decoding from whole subtasks.
    pub(crate) fn error(&self, subtasks: &[usize]) -> (f64, f64) {
        let decoder = Decoder::for_subtasks(&self.code, subtasks).unwrap();
        (relative_l2(&self.decode(&decoder), &self.truth), decoder.condition())
    }
}
