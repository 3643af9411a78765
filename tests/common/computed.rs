//! Layers computed by the reference, subtask by subtask, for tests that decode every responder set.

use fcdcc::array::Element;
use fcdcc::coding::{Code, CodeKind, Decoder, Epilogue, SubResult, decode, encode_filters, encode_input};
use fcdcc::conv::{ConvShape, reference};
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};

use super::{normal, relative_l2};

/// A layer with all sub-results computed.
pub struct Computed<T> {
    pub code: Code,
    pub tiling: OutputTiling,
    pub results: Vec<Vec<T>>,
    pub bias: Vec<T>,
    pub truth: Vec<T>,
}

impl<T: Element> Computed<T> {
    pub fn new(kind: CodeKind, shape: &ConvShape, k_a: usize, k_b: usize, n: usize, seed: u64) -> Self {
        let (input, weight): (Vec<T>, Vec<T>) =
            (normal(shape.input_elems(), seed), normal(shape.weight_elems(), seed + 1));
        let bias = normal(shape.out_channels, seed + 2);
        let code = Code::new(kind, k_a, k_b, n).unwrap();
        let slabs = InputPartition::new(shape, k_a).unwrap();
        let filters = FilterPartition::new(shape, k_b).unwrap();
        let conv = slabs.slab_conv(filters.bank_channels());
        let mut results = Vec::new();
        for (i, coded) in encode_input(&code, shape, &slabs, &input, Vec::new()).iter().enumerate() {
            let coded_banks = encode_filters(&code, &filters, &weight, &[], i);
            for slab in coded.chunks(conv.input_elems()) {
                for bank in coded_banks.chunks(conv.weight_elems()) {
                    results.push(reference(&conv, slab, bank, None).unwrap());
                }
            }
        }
        let truth = reference(shape, &input, &weight, Some(&bias)).unwrap();
        Self { tiling: OutputTiling::new(shape, &slabs, &filters), code, results, bias, truth }
    }

    pub fn result(&self, of: SubResult) -> &[T] {
        &self.results[(of.subtask * self.code.l_a() + of.slab) * self.code.l_b() + of.bank]
    }

    pub fn decode(&self, decoder: &Decoder) -> Vec<T> {
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
    pub fn error(&self, subtasks: &[usize]) -> (f64, f64) {
        let decoder = Decoder::for_subtasks(&self.code, subtasks).unwrap();
        (relative_l2(&self.decode(&decoder), &self.truth), decoder.condition())
    }
}
