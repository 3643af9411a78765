//! Minimal filtering on the CPU against the definition: within its error bound for data of every kind, the same bits for
//! any number of banks and threads, and NaN and infinity where the definition has them.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::sync::atomic::{AtomicUsize, Ordering};

use fcdcc::array::Element;
use fcdcc::coding::{FILTERING_CPU, Rounding};
use fcdcc::conv::{ConvKernel, ConvParams, ConvPath, ConvShape, Scratch, reference};
use fcdcc::{CodeKind, CodedConv, CpuWorker, Error, LayerOptions, Pool};
use fcdcc_test_support::every_row;
use ndarray::ArrayD;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cpu_depthwise::run_all;

fn shape(input: [usize; 4], weight: [usize; 4], params: &ConvParams) -> ConvShape {
    let shape = ConvShape::new(&input, &weight, params).unwrap();
    assert_eq!(ConvKernel::with_filtering(&shape).path(), ConvPath::Filtering, "{shape:?}");
    shape
}

fn uniform<T: Element>(len: usize, rng: &mut ChaCha8Rng) -> Vec<T> {
    (0..len).map(|_| T::from_f64(rng.random_range(-1.0..1.0))).collect()
}

fn run<T: Element>(shape: &ConvShape, x: &[T], k: &[T], threads: usize) -> Vec<Vec<T>> {
    run_all(&ConvKernel::with_filtering(shape), x, k, threads)
}

/// The largest error of an output, relative to its windowwise bound.
fn error<T: Element>(shape: &ConvShape, x: &[T], k: &[T], got: &[T]) -> f64 {
    let exact = |values: &[T]| values.iter().map(|value| value.to_f64()).collect::<Vec<f64>>();
    let want = reference(shape, &exact(x), &exact(k), None).unwrap();
    let rounding = Rounding { filtering: FILTERING_CPU, ..Rounding::plain::<T>(shape.reduction()) };
    let ([_, h, w], [_, rows, columns]) = (shape.input, shape.output);
    let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let mut largest = 0.0_f64;
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        let (channel, y, x0) = (at / (rows * columns), at / columns % rows, at % columns);
        let (image, out) = (channel / shape.out_channels, channel % shape.out_channels);
        let filter = &k[out * group_in * 9..][..group_in * 9];
        let sum: f64 = filter.iter().map(|value| value.to_f64().abs()).sum();
        let first = (image * shape.groups + out / group_out) * group_in;
        let mut window = 0.0_f64;
        for c in first..first + group_in {
            for (dy, dx) in (0..3).flat_map(|dy| (0..3).map(move |dx| (dy, dx))) {
                let row = i64::try_from(y).unwrap() + dy - i64::try_from(shape.pad_begin[1]).unwrap();
                let column = i64::try_from(x0).unwrap() + dx - i64::try_from(shape.pad_begin[2]).unwrap();
                let (Ok(row), Ok(column)) = (usize::try_from(row), usize::try_from(column)) else { continue };
                if row < h && column < w {
                    window = window.max(x[(c * h + row) * w + column].to_f64().abs());
                }
            }
        }
        let off = (got.to_f64() - want).abs();
        let least = rounding.underflow(window, sum);
        let allowed = (rounding.windowwise(1.0, 1.0) + least) * window * sum;
        largest = largest.max(if off == 0.0 { 0.0 } else { off / allowed });
        assert!(!off.is_nan(), "element {at} is {got}: {shape:?}");
    }
    largest
}

/// Shapes of every kind: odd and even planes, padding, groups, several images, several parts and passes.
fn shapes() -> Vec<ConvShape> {
    let p = ConvParams::default;
    vec![
        shape([1, 64, 8, 10], [64, 64, 3, 3], &p()),
        shape([1, 65, 9, 11], [69, 65, 3, 3], &p().padding([1])),
        shape([2, 72, 7, 7], [67, 72, 3, 3], &p().padding([1])),
        shape([1, 128, 10, 13], [128, 64, 3, 3], &p().padding([0, 1, 2, 0]).groups(2)),
        shape([1, 64, 27, 3], [64, 64, 3, 3], &p().padding([1, 1, 1, 0])),
        shape([1, 140, 15, 14], [66, 140, 3, 3], &p().padding([1])),
        shape([1, 260, 8, 9], [64, 260, 3, 3], &p().padding([2])),
        shape([1, 64, 41, 43], [65, 64, 3, 3], &p().padding([1])),
        shape([1, 64, 3, 1030], [64, 64, 3, 3], &p()),
        shape([1, 64, 1, 40], [64, 64, 3, 3], &p().padding([2])),
    ]
}

#[test]
fn every_shape_stays_within_its_bound_and_gives_the_same_bits_on_any_number_of_threads() {
    fn check<T: Element>(shape: &ConvShape) {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (x, k) = (uniform::<T>(shape.input_elems(), &mut rng), uniform(shape.weight_elems(), &mut rng));
        let got = run(shape, &x, &k, 1);
        let error = error(shape, &x, &k, &got[0]);
        assert!(error <= 1.0 && error > 0.0, "{error}: {shape:?}");
        for threads in 2..=4 {
            assert_eq!(run(shape, &x, &k, threads), got, "{threads} threads: {shape:?}");
        }
    }
    every_row(shapes(), |shape| {
        check::<f32>(&shape);
        check::<f64>(&shape);
    });
}

/// Inputs and filters that make rounding large, or whose magnitudes differ widely.
fn wild(kind: &str, shape: &ConvShape, rng: &mut ChaCha8Rng) -> (Vec<f32>, Vec<f32>) {
    let (mut x, mut k) =
        (uniform::<f32>(shape.input_elems(), rng), uniform::<f32>(shape.weight_elems(), rng));
    let power = |value: f32, by: i32| value * 2.0_f32.powi(by);
    match kind {
        "positive" => [&mut x, &mut k].into_iter().flatten().for_each(|value| *value = value.abs()),
        "corners" => {
            let small = k.iter_mut().enumerate().filter(|(at, _)| ![0, 8].contains(&(at % 9)));
            small.for_each(|(_, value)| *value *= 1e-3);
        }
        "powers" => {
            for value in x.iter_mut().chain(&mut k) {
                *value = power(value.signum(), -rng.random_range(0..20));
            }
        }
        "outliers" => (0..5).for_each(|_| x[rng.random_range(0..shape.input_elems())] = 1e6),
        "tiny" => x.iter_mut().chain(&mut k).for_each(|value| *value = power(*value, -60)),
        "huge" => x.iter_mut().chain(&mut k).for_each(|value| *value = power(*value, 55)),
        "denormal" => x.iter_mut().for_each(|value| *value = power(*value, -130)),
        "zeros" => x.iter_mut().step_by(2).for_each(|value| *value = 0.0),
        _ => {}
    }
    (x, k)
}

#[test]
fn wild_data_stay_within_the_bound_of_each_window() {
    let shape = shape([1, 64, 9, 10], [64, 64, 3, 3], &ConvParams::default().padding([1]));
    let kinds = ["even", "positive", "corners", "powers", "outliers", "tiny", "huge", "denormal", "zeros"];
    every_row(kinds, |kind| {
        for seed in 0..4 {
            let (x, k) = wild(kind, &shape, &mut ChaCha8Rng::seed_from_u64(seed));
            let got = &run(&shape, &x, &k, 1)[0];
            let error = |got: &[f32]| error(&shape, &x, &k, got);
            assert!(error(got) <= 1.0, "{kind}: {}", error(got));
            let mut broken = got.clone();
            broken[got.len() / 2] *= 1.001;
            broken[got.len() / 2] += broken.iter().fold(0.0_f32, |most, value| most.max(value.abs())) * 1e-3;
            assert!(error(&broken) > 1.0, "{kind}");
        }
    });
}

#[test]
fn banks_together_and_one_by_one_give_the_same_bits() {
    every_row(shapes().into_iter().take(5), |shape| {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let x = uniform::<f32>(shape.input_elems(), &mut rng);
        let k = uniform::<f32>(3 * shape.weight_elems(), &mut rng);
        let together = run(&shape, &x, &k, 1);
        for (bank, got) in k.chunks(shape.weight_elems()).zip(&together) {
            assert_eq!(run(&shape, &x, bank, 1)[0], *got);
        }
        for threads in [1, 2] {
            let (kernel, mut scratch) = (ConvKernel::with_filtering(&shape), Scratch::new());
            let mut one = kernel.one_input(&mut scratch, &x, threads);
            for (index, (bank, got)) in k.chunks(shape.weight_elems()).zip(&together).enumerate() {
                let mut output = vec![f32::NAN; shape.output_elems()];
                let bank = kernel.pack(bank).unwrap();
                // A call that was stopped must not pass for one that staged the input.
                if index == 1 {
                    let asked = AtomicUsize::new(0);
                    let stop = || asked.fetch_add(1, Ordering::Relaxed) >= 1;
                    assert!(matches!(one.run(&bank, &mut output, &stop), Err(Error::Cancelled)));
                }
                one.run(&bank, &mut output, &|| false).unwrap();
                assert_eq!(output, *got, "bank {index}, {threads} threads: {shape:?}");
            }
        }
    });
}

#[test]
fn a_layer_passes_nan_and_infinity_to_the_outputs_that_see_them() {
    let shape = shape([1, 64, 12, 12], [64, 64, 3, 3], &ConvParams::default().padding([1]));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let array = |sizes: Vec<usize>, values: Vec<f32>| ArrayD::from_shape_vec(sizes, values).unwrap();
    let weight = array(vec![64, 64, 3, 3], uniform(shape.weight_elems(), &mut rng));
    let pool = Pool::new(CpuWorker::fleet(2)).unwrap();
    let options = LayerOptions::default().code(CodeKind::Uncoded).tolerate(0);
    let params = ConvParams::default().padding([1]);
    let layer = CodedConv::builder(&pool, &[1, 64, 12, 12], weight.view()).params(params).options(options);
    let layer = layer.prepare().unwrap();
    for (odd, position) in [(f32::NAN, [4, 4]), (f32::INFINITY, [5, 7]), (f32::NEG_INFINITY, [0, 11])] {
        let mut x = array(vec![1, 64, 12, 12], uniform(shape.input_elems(), &mut rng));
        x[[0, 9, position[0], position[1]]] = odd;
        let got = layer.run(x.view()).unwrap().output;
        for o in 0..64 {
            for y in 0..12_usize {
                for column in 0..12_usize {
                    let sees = y.abs_diff(position[0]) <= 1 && column.abs_diff(position[1]) <= 1;
                    let value = got[[0, o, y, column]];
                    let as_defined = match sees {
                        true if odd.is_nan() => value.is_nan(),
                        true => value.is_infinite(),
                        false => value.is_finite(),
                    };
                    assert!(as_defined, "{odd} at {position:?}: {value} at {y}, {column}");
                }
            }
        }
    }
}
