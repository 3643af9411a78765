//! The convolution of the phases against the definition, over random parameters.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::super::reference;
use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn numbers(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.below(2001) as f64 / 1000.0 - 1.0).collect()
    }
}

fn random(random: &mut Random) -> TransposedShape {
    let rank = 1 + random.below(3);
    let (groups, group_in, group_out) = (1 + random.below(3), 1 + random.below(3), 1 + random.below(3));
    let mut axes =
        |end: usize, least: usize| (0..rank).map(|_| least + random.below(end)).collect::<Vec<_>>();
    let (size, kernel, stride) = (axes(5, 1), axes(5, 1), axes(6, 1));
    let (dilation, begins, output) = (axes(4, 1), axes(6, 0), axes(14, 1));
    let params = ConvParams { stride, dilation, padding: begins, groups };
    let input = [&[1 + random.below(2), groups * group_in][..], &size].concat();
    let weight = [&[groups * group_in, group_out][..], &kernel].concat();
    TransposedShape::new(&input, &weight, &params, &output).unwrap()
}

fn by_phases(shape: &TransposedShape, input: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let phases = shape.phases().unwrap();
    let conv = phases.conv();
    let filters: Vec<f64> = (0..conv.out_channels)
        .flat_map(|filter| (0..conv.reduction()).map(move |term| (filter, term)))
        .map(|(filter, term)| phases.source(filter, term).map_or(0.0, |index| weight[index]))
        .collect();
    let each: Vec<f64> = (0..conv.out_channels).map(|filter| bias[filter / phases.count()]).collect();
    let parts = reference(conv, input, &filters, Some(&each)).unwrap();
    let interleave = phases.interleave();
    let mut output = vec![f64::NAN; shape.output_shape().iter().product()];
    interleave.run(&parts, bias, &mut output);
    output
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    // A NaN counts as a difference.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |most, d| if d <= most { most } else { d })
}

#[test]
fn the_convolution_of_the_phases_equals_the_definition() {
    let mut generator = Random(1);
    let (mut unreached, mut without_zeros) = (0, 0);
    for case in 0..2000 {
        let shape = random(&mut generator);
        let inputs = shape.batch * shape.in_channels * shape.input.iter().product::<usize>();
        let weights =
            shape.in_channels * shape.out_channels / shape.groups * shape.kernel.iter().product::<usize>();
        let (input, mut weight) = (generator.numbers(inputs), generator.numbers(weights));
        let bias = generator.numbers(shape.out_channels);
        let truth = shape.reference(&input, &weight, &bias).unwrap();
        let got = by_phases(&shape, &input, &weight, &bias);
        assert!(difference(&got, &truth) < 1e-12, "case {case}: {shape:?}");
        let phases = shape.phases().unwrap();
        let reached = |axis: usize| phases.runs(axis).iter().map(|run| run.count).sum::<usize>();
        unreached += usize::from((0..AXES).any(|axis| reached(axis) < shape.output[axis]));
        without_zeros += usize::from(phases.conv().weight_elems() == weights);
        // Negative control: the definition with another value of a single weight that reaches the output.
        weight[0] += 0.5;
        let other = shape.reference(&input, &weight, &bias).unwrap();
        if difference(&other, &truth) > 1e-6 {
            assert!(difference(&got, &other) > 1e-6, "case {case}");
        }
    }
    assert!(unreached > 100 && without_zeros > 100, "{unreached}, {without_zeros}");
}

#[test]
fn upsampling_by_the_kernel_size_adds_no_zeros_and_no_padding() {
    let params = ConvParams::default().stride([2]);
    let shape = TransposedShape::new(&[1, 4, 7, 9], &[4, 3, 2, 2], &params, &[14, 18]).unwrap();
    let phases = shape.phases().unwrap();
    let conv = phases.conv();
    assert_eq!((conv.kernel, conv.out_channels, phases.count()), ([1, 1, 1], 12, 4));
    assert_eq!((conv.pad_begin, conv.pad_end, conv.output), ([0; 3], [0; 3], [1, 7, 9]));
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_both_numbers() {
    let new = |input: &[usize], weight: &[usize], stride: usize, groups: usize| {
        let params = ConvParams::default().stride([stride]).groups(groups);
        TransposedShape::new(input, weight, &params, &[9, 9]).unwrap_err().to_string()
    };
    for (said, words) in [
        (new(&[1, 4, 5, 5], &[3, 2, 3, 3], 2, 1), ["3", "4 (those of the input)"]),
        (new(&[1, 4, 5, 5], &[4, 2, 3, 3], 2, 3), ["groups", "4 input channels"]),
        (new(&[1, 4, 5, 5], &[4, 2, 3, 3], 0, 1), ["stride", "at least 1"]),
        (new(&[1, 4, 5, 5], &[4, 2, 3, 3], usize::MAX / 2, 1), ["spatial size", "memory"]),
        (new(&[1, 4, 0, 5], &[4, 2, 3, 3], 1, 1), ["shape of the input", "at least one"]),
        (new(&[1, 4, 5], &[4, 2, 3, 3], 1, 1), ["rank of the weight", "[4, 2, 3, 3]"]),
    ] {
        assert!(words.iter().all(|word| said.contains(word)), "{said} lacks one of {words:?}");
    }
}
