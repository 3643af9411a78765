//! The CPU convolution against its naive definition, for every path and element type.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::sync::atomic::{AtomicUsize, Ordering};

use fcdcc::array::{Element, Values};
use fcdcc::conv::{ConvKernel, ConvParams, ConvPath, ConvShape, Filters, Scratch, conv_uncoded, reference};
use fcdcc::worker::{CancelToken, CpuWorker, FilterKey, Order, SubtaskShape, Task, Worker};
use fcdcc::{Error, SubtaskId};
use fcdcc_test_support::every_row;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The maximum rounding error of each output element: a sum of K products in any order, fused or not, is off by at most
/// about K * eps / 2 times the sum of the products' magnitudes. Twice that includes the rounding of the reference.
struct Bound<T> {
    want: Vec<T>,
    allowed: Vec<f64>,
}

impl<T: Element> Bound<T> {
    fn new(shape: &ConvShape, x: &[T], k: &[T], bias: Option<&[T]>) -> Self {
        let abs = |v: &[T]| v.iter().map(|v| v.to_f64().abs()).collect::<Vec<f64>>();
        let bias_abs = bias.map(abs);
        let magnitude = reference(shape, &abs(x), &abs(k), bias_abs.as_deref()).unwrap();
        let terms = shape.reduction() as f64 + 1.0;
        Self {
            want: reference(shape, x, k, bias).unwrap(),
            allowed: magnitude.iter().map(|m| terms * T::EPSILON * m).collect(),
        }
    }

    fn check(&self, got: &[T]) -> Result<(), String> {
        assert_eq!(got.len(), self.want.len());
        for (at, ((got, want), allowed)) in got.iter().zip(&self.want).zip(&self.allowed).enumerate() {
            let off = (got.to_f64() - want.to_f64()).abs();
            // A NaN must not count as a small error.
            if off.is_nan() || off > *allowed {
                return Err(format!("element {at} is {got} instead of {want}, {allowed:e} were allowed"));
            }
        }
        Ok(())
    }
}

/// The documented tolerance for C = 512 3x3 filters on unit-normal data in f32.
const DEEP_LAYER_TOLERANCE: f64 = 1e-5;

fn never() -> bool {
    false
}

fn normals<T: Element>(len: usize, seed: u64) -> Vec<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len)
        .map(|_| {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
            T::from_f64(radius * (std::f64::consts::TAU * rng.random::<f64>()).cos())
        })
        .collect()
}

fn relative_error<T: Element>(got: &[T], want: &[T]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut off, mut size) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        off += (g.to_f64() - w.to_f64()).powi(2);
        size += w.to_f64().powi(2);
    }
    (off / size).sqrt()
}

/// Runs the kernel into outputs poisoned with NaN.
fn run<T: Element>(shape: &ConvShape, x: &[T], k: &[T], threads: usize) -> Vec<T> {
    let mut y = vec![T::from_f64(f64::NAN); shape.output_elems()];
    let kernel = ConvKernel::new(shape);
    let k = kernel.pack(k).unwrap();
    kernel.run(&mut Scratch::new(), x, &[&k], &mut [&mut y], threads, &never).unwrap();
    y
}

fn check<T: Element>(shape: &ConvShape) -> Result<(), String> {
    let (x, k) = (normals::<T>(shape.input_elems(), 1), normals::<T>(shape.weight_elems(), 2));
    let bound = Bound::new(shape, &x, &k, None);
    for threads in [1, 2] {
        bound
            .check(&run(shape, &x, &k, threads))
            .map_err(|why| format!("{} on {threads} threads: {why}; {shape:?}", T::DTYPE))?;
    }
    Ok(())
}

type Case = (&'static [usize], &'static [usize], ConvParams, ConvPath);

fn cases() -> Vec<Case> {
    use ConvPath::{Dense, Depthwise, InPlace, Staged};
    let p = ConvParams::default;
    vec![
        // Rank 1, 2, 3; odd channel counts.
        (&[1, 3, 40], &[7, 3, 5], p(), InPlace),
        (&[1, 3, 40], &[2, 3, 5], p(), InPlace),
        (&[2, 5, 9, 11], &[6, 5, 3, 3], p(), InPlace),
        (&[2, 3, 6, 7, 8], &[5, 3, 2, 3, 3], p(), InPlace),
        (&[2, 3, 6, 7, 8], &[2, 3, 2, 3, 3], p(), InPlace),
        // Stride, dilation, padding, alone and together.
        (&[1, 4, 17, 19], &[9, 4, 3, 3], p().stride([2, 3]), Staged),
        (&[1, 4, 17, 19], &[9, 4, 3, 3], p().dilation([3, 2]), InPlace),
        (&[1, 4, 17, 19], &[9, 4, 3, 3], p().padding([1]), Staged),
        (&[1, 4, 9, 10], &[9, 4, 3, 4], p().padding([2, 0, 1, 3]), Staged),
        (&[2, 4, 17, 19], &[9, 4, 3, 4], p().stride([3, 2]).dilation([2, 3]).padding([4, 0, 1, 5]), Staged),
        (&[2, 4, 17, 19], &[2, 4, 3, 4], p().stride([3, 2]).dilation([2, 3]).padding([4, 0, 1, 5]), Staged),
        (&[1, 2, 5, 9, 8], &[6, 2, 3, 3, 2], p().stride([1, 2, 3]).padding([1, 1, 0]), Staged),
        (&[1, 2, 7, 9, 8], &[1, 2, 3, 3, 2], p().stride([2, 2, 3]).dilation([2, 1, 2]).padding([1]), Staged),
        (&[1, 1, 4], &[5, 1, 3], p().padding([9, 9]), Staged),
        (&[1, 6, 12, 13], &[8, 6, 3, 3], p().stride([4]).dilation([2]).padding([3]), Staged),
        // Exactly as many points as a vector, one fewer, and one vector more.
        (&[1, 3, 18], &[9, 3, 3], p(), InPlace),
        (&[1, 3, 17], &[9, 3, 3], p(), Staged),
        (&[1, 3, 4, 4], &[9, 3, 1, 1], p(), InPlace),
        (&[1, 3, 3, 5], &[9, 3, 1, 1], p(), Staged),
        (&[1, 3, 34], &[9, 3, 3], p(), InPlace),
        // Every number of channels in a block, with every width of a remaining tile.
        (&[1, 2, 18], &[1, 2, 3], p(), InPlace),
        (&[1, 2, 51], &[2, 2, 3], p(), InPlace),
        (&[1, 2, 83], &[3, 2, 3], p(), InPlace),
        (&[1, 2, 99], &[4, 2, 3], p(), InPlace),
        (&[1, 2, 115], &[5, 2, 3], p(), InPlace),
        (&[1, 2, 131], &[6, 2, 3], p(), InPlace),
        (&[1, 2, 66], &[7, 2, 3], p(), InPlace),
        (&[1, 2, 98], &[15, 2, 3], p(), InPlace),
        (&[1, 2, 98], &[16, 2, 3], p(), InPlace),
        (&[1, 2, 95], &[6, 1, 3], p().groups(2).padding([1]), Staged),
        // Panels: rows shorter than a vector and longer, remaining channels and points, one run more than a whole one.
        (&[1, 40, 9, 11], &[37, 40, 3, 3], p().padding([1]), Staged),
        (&[1, 43, 7, 7], &[33, 43, 3, 1], p().padding([1, 0]), Staged),
        (&[2, 33, 40], &[50, 33, 5], p(), InPlace),
        (&[1, 140, 7, 7], &[38, 140, 1, 1], p(), InPlace),
        (&[1, 140, 3, 5], &[35, 140, 1, 1], p(), Staged),
        (&[1, 32, 5, 6, 7], &[34, 32, 2, 3, 2], p().padding([1]), Staged),
        (&[1, 32, 17, 19], &[48, 32, 3, 3], p().stride([2]).padding([1]), Staged),
        (
            &[1, 32, 23, 18],
            &[32, 32, 3, 3],
            p().stride([3, 1]).dilation([2, 3]).padding([2, 0, 3, 1]),
            Staged,
        ),
        (&[1, 64, 10, 21], &[66, 32, 3, 3], p().groups(2), InPlace),
        // Several bands, within which panels begin and end.
        (&[1, 64, 61, 67], &[32, 64, 3, 3], p().padding([1]), Staged),
        // Enough points for threads to share them: in place, staged, with a stride, of several images.
        (&[2, 33, 500], &[50, 33, 5], p(), InPlace),
        (&[1, 32, 41, 43], &[48, 32, 3, 3], p().padding([1]).stride([2]), Staged),
        (&[2, 36, 21, 23], &[34, 36, 3, 2], p().padding([1, 0]), Staged),
        // Groups and depthwise, with a channel multiplier.
        (&[2, 6, 8, 9], &[18, 2, 3, 3], p().groups(3), InPlace),
        (&[2, 6, 8, 9], &[6, 2, 3, 3], p().groups(3).padding([1]), Staged),
        (&[1, 16, 14, 14], &[16, 1, 3, 3], p().groups(16).padding([1]).stride([2]), Depthwise),
        (&[1, 5, 30, 31], &[10, 1, 5, 5], p().groups(5), InPlace),
        (&[2, 5, 30, 31], &[10, 1, 3, 3], p().groups(5), Depthwise),
        (&[1, 5, 30, 31], &[10, 1, 3, 3], p().groups(5).dilation([2]), InPlace),
        (&[1, 5, 30, 31], &[10, 1, 3, 3], p().groups(5).stride([1, 2]), Staged),
        // 1x1: in place, strided, padded, grouped.
        (&[2, 19, 13, 11], &[23, 19, 1, 1], p(), InPlace),
        (&[1, 19, 13, 11], &[23, 19, 1, 1], p().stride([2]), Staged),
        (&[1, 19, 6, 5], &[23, 19, 1, 1], p().padding([1]).stride([3, 2]), Staged),
        (&[2, 8, 9], &[12, 4, 1], p().groups(2), Staged),
        (&[1, 8, 9, 9], &[8, 1, 1, 1], p().groups(8), InPlace),
        // One output point: kernel = input, a single point, remainders past the kernel, taps on padding.
        (&[3, 4, 5, 6], &[10, 4, 5, 6], p(), Dense),
        (&[5, 30, 1, 1], &[11, 30, 1, 1], p(), Dense),
        (&[1, 30, 1], &[11, 30, 1], p(), Dense),
        (&[2, 4, 5, 5], &[6, 2, 3, 3], p().stride([4]).groups(2), Dense),
        (&[2, 4, 2, 2], &[6, 4, 3, 3], p().padding([1, 1, 0, 0]), Dense),
        (&[2, 4, 5, 5], &[6, 4, 3, 3], p().dilation([2]), Dense),
        // Several strips, several bands, and sums of several runs.
        (&[1, 70, 33, 34], &[10, 70, 3, 3], p(), InPlace),
        (&[1, 3, 227, 227], &[16, 3, 11, 11], p().stride([4]), Staged),
        (&[1, 60, 70, 71], &[3, 60, 3, 3], p().padding([1]), Staged),
        (&[1, 80, 90, 41], &[2, 80, 3, 3], p().padding([1, 2]).stride([2]), Staged),
    ]
}

#[test]
fn every_shape_agrees_with_the_definition() {
    every_row(cases(), |(input, weight, params, path)| {
        let shape = ConvShape::new(input, weight, &params).unwrap();
        assert_eq!(ConvKernel::new(&shape).path(), path, "{shape:?}");
        check::<f32>(&shape).unwrap();
        check::<f64>(&shape).unwrap();
    });
}

#[test]
fn one_wrong_element_is_noticed() {
    every_row(cases(), |(input, weight, params, _)| {
        let shape = ConvShape::new(input, weight, &params).unwrap();
        let (x, k) = (normals::<f32>(shape.input_elems(), 1), normals::<f32>(shape.weight_elems(), 2));
        let bound = Bound::new(&shape, &x, &k, None);
        let mut got = run(&shape, &x, &k, 1);
        bound.check(&got).unwrap();
        let middle = got.len() / 2;
        got[middle] += (shape.reduction() as f32).sqrt();
        assert!(bound.check(&got).is_err(), "{shape:?}");
        got[middle] = f32::NAN;
        assert!(bound.check(&got).is_err(), "{shape:?}");
    });
}

#[test]
fn a_deep_layer_in_f32_keeps_five_digits() {
    let params = ConvParams::default().padding([1]);
    every_row([2, 24], |out| {
        let shape = ConvShape::new(&[1, 512, 10, 10], &[out, 512, 3, 3], &params).unwrap();
        let (x, k) = (normals::<f32>(shape.input_elems(), 3), normals::<f32>(shape.weight_elems(), 4));
        let error = relative_error(&run(&shape, &x, &k, 1), &reference(&shape, &x, &k, None).unwrap());
        assert!(error < DEEP_LAYER_TOLERANCE, "{error:e}");
    });
}

#[test]
fn the_local_convolution_adds_the_bias() {
    every_row([[2, 2, 3, 3], [9, 2, 3, 3]], |weight| {
        let params = ConvParams::default().padding([1]).stride([2]);
        let shape = ConvShape::new(&[2, 2, 9, 8], &weight, &params).unwrap();
        let x = normals::<f64>(shape.input_elems(), 1);
        let k = normals::<f64>(shape.weight_elems(), 2);
        let b = normals::<f64>(shape.out_channels, 3);
        let bound = Bound::new(&shape, &x, &k, Some(&b));
        bound.check(&conv_uncoded(&shape, &x, &k, Some(&b), 1, &never).unwrap()).unwrap();
        assert!(bound.check(&conv_uncoded(&shape, &x, &k, None, 1, &never).unwrap()).is_err());
        assert!(matches!(
            conv_uncoded(&shape, &x, &k, Some(&b[1..]), 1, &never),
            Err(Error::Mismatch { .. })
        ));
        assert!(matches!(conv_uncoded(&shape, &x, &k, None, 1, &|| true), Err(Error::Cancelled)));
    });
}

/// One shape for each code path.
fn one_of_each_path() -> Vec<ConvShape> {
    let shapes: Vec<ConvShape> =
        [([2, 6, 1, 1], [9, 6, 1, 1]), ([2, 6, 9, 9], [9, 6, 3, 3]), ([2, 6, 4, 4], [9, 6, 3, 3])]
            .iter()
            .map(|(input, weight)| ConvShape::new(input, weight, &ConvParams::default()).unwrap())
            .collect();
    let paths: Vec<_> = shapes.iter().map(|shape| ConvKernel::new(shape).path()).collect();
    assert_eq!(paths, [ConvPath::Dense, ConvPath::InPlace, ConvPath::Staged]);
    shapes
}

#[test]
fn several_banks_give_what_each_gives_alone() {
    let params = ConvParams::default().padding([1]);
    let panels = ConvShape::new(&[1, 40, 21, 21], &[35, 40, 3, 3], &params).unwrap();
    every_row(one_of_each_path().into_iter().chain([panels]), |shape| {
        let x = normals::<f32>(shape.input_elems(), 1);
        let k = normals::<f32>(3 * shape.weight_elems(), 2);
        let banks: Vec<&[f32]> = k.chunks(shape.weight_elems()).collect();
        let mut together = vec![vec![f32::NAN; shape.output_elems()]; 3];
        let kernel = ConvKernel::new(&shape);
        let packed: Vec<Filters<f32>> = banks.iter().map(|bank| kernel.pack(bank).unwrap()).collect();
        let packed: Vec<&Filters<f32>> = packed.iter().collect();
        for threads in 1..=3 {
            let mut views: Vec<&mut [f32]> = together.iter_mut().map(Vec::as_mut_slice).collect();
            kernel.run(&mut Scratch::new(), &x, &packed, &mut views, threads, &never).unwrap();
            for (bank, got) in banks.iter().zip(&together) {
                assert_eq!(*got, run(&shape, &x, bank, 1), "{shape:?}");
            }
        }
    });
}

#[test]
fn stopping_midway_leaves_kernel_and_scratch_usable() {
    every_row(one_of_each_path(), |shape| {
        let (x, k) = (normals::<f32>(shape.input_elems(), 1), normals::<f32>(shape.weight_elems(), 2));
        let (kernel, mut scratch) = (ConvKernel::new(&shape), Scratch::new());
        let want = run(&shape, &x, &k, 1);
        let k = kernel.pack(&k).unwrap();
        for threads in [1, 2] {
            for after in 0..3 {
                let asked = AtomicUsize::new(0);
                let stop = || asked.fetch_add(1, Ordering::Relaxed) >= after;
                let mut y = vec![f32::NAN; shape.output_elems()];
                let result = kernel.run(&mut scratch, &x, &[&k], &mut [&mut y], threads, &stop);
                // The dense path checks twice in all; every other path checks once, and then once per block of a strip.
                if kernel.path() == ConvPath::Dense && after == 2 {
                    result.unwrap();
                } else {
                    assert!(matches!(result, Err(Error::Cancelled)), "{shape:?} after {after}");
                }
            }
        }
        let mut y = vec![f32::NAN; shape.output_elems()];
        kernel.run(&mut scratch, &x, &[&k], &mut [&mut y], 1, &never).unwrap();
        assert_eq!(y, want);
    });
}

#[test]
fn slices_of_wrong_lengths_are_named() {
    every_row(one_of_each_path(), |shape| {
        let (x, k) = (vec![0.0_f32; shape.input_elems()], vec![0.0_f32; shape.weight_elems()]);
        let mut y = vec![0.0_f32; shape.output_elems()];
        let kernel = ConvKernel::new(&shape);
        assert!(kernel.pack(&k[1..]).unwrap_err().to_string().contains("weight"));
        let mut refused = |x: &[f32], banks: &[&Filters<f32>], cut: usize, word: &str| {
            let len = y.len() - cut;
            let result = kernel.run(&mut Scratch::new(), x, banks, &mut [&mut y[..len]], 1, &never);
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }) && error.to_string().contains(word), "{error}");
        };
        let k = kernel.pack(&k).unwrap();
        let other = ConvShape::new(&[2, 5, 9, 9], &[9, 5, 3, 3], &ConvParams::default()).unwrap();
        let foreign = ConvKernel::new(&other).pack(&vec![0.0_f32; other.weight_elems()]).unwrap();
        refused(&x[1..], &[&k], 0, "input");
        refused(&x, &[&foreign], 0, "weight");
        refused(&x, &[&k], 1, "output");
        refused(&x, &[&k, &k], 0, "number of outputs");
    });
}

fn any_shape() -> impl Strategy<Value = ConvShape> {
    let axis = || (1..10_usize, 1..5_usize, 1..4_usize, 1..4_usize, 0..3_usize, 0..3_usize);
    let axes = prop::collection::vec(axis(), 1..=3);
    let channels = (1..3_usize, 1..4_usize, 1..6_usize, 1..8_usize);
    (axes, channels).prop_filter_map(
        "the kernel does not fit",
        |(axes, (batch, groups, group_in, group_out))| {
            let pick = |field: fn(&(usize, usize, usize, usize, usize, usize)) -> usize| -> Vec<usize> {
                axes.iter().map(field).collect()
            };
            let input = [vec![batch, groups * group_in], pick(|a| a.0)].concat();
            let weight = [vec![groups * group_out, group_in], pick(|a| a.1)].concat();
            let params = ConvParams::default()
                .stride(pick(|a| a.2))
                .dilation(pick(|a| a.3))
                .padding([pick(|a| a.4), pick(|a| a.5)].concat())
                .groups(groups);
            ConvShape::new(&input, &weight, &params).ok()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees_with_the_definition(shape in any_shape()) {
        check::<f32>(&shape).map_err(TestCaseError::fail)?;
        check::<f64>(&shape).map_err(TestCaseError::fail)?;
    }
}

/// Computing bank after bank over one input gives the same as all together, even after a call that was stopped half way.
fn one_by_one<T: Element>(shape: &ConvShape, threads: usize) {
    let kernel = ConvKernel::new(shape);
    let weights = normals::<T>(3 * shape.weight_elems(), 2);
    let banks: Vec<Filters<T>> =
        weights.chunks_exact(shape.weight_elems()).map(|bank| kernel.pack(bank).unwrap()).collect();
    let banks: Vec<&Filters<T>> = banks.iter().collect();
    let mut scratch = Scratch::new();
    // Two inputs: the second's results must not contain anything of the first.
    for seed in [1, 7] {
        let x = normals::<T>(shape.input_elems(), seed);
        let mut together = vec![vec![T::default(); shape.output_elems()]; 3];
        let mut views: Vec<&mut [T]> = together.iter_mut().map(Vec::as_mut_slice).collect();
        kernel.run(&mut Scratch::new(), &x, &banks, &mut views, threads, &|| false).unwrap();
        let mut input = kernel.one_input(&mut scratch, &x, threads);
        let mut output = vec![T::from_f64(f64::NAN); shape.output_elems()];
        for (looks, bank) in [0, 2, 1, 0].into_iter().enumerate() {
            let asked = AtomicUsize::new(0);
            let stop = || asked.fetch_add(1, Ordering::Relaxed) == looks;
            let stopped = input.run(banks[bank], &mut output, &stop);
            assert!(matches!(stopped, Ok(()) | Err(Error::Cancelled)));
            for _ in 0..2 {
                output.fill(T::from_f64(f64::NAN));
                input.run(banks[bank], &mut output, &|| false).unwrap();
                assert_eq!(output, together[bank], "{shape:?}, bank {bank}");
            }
        }
        assert!(matches!(input.run(banks[0], &mut output[1..], &|| false), Err(Error::Mismatch { .. })));
    }
}

#[test]
fn banks_one_by_one_over_one_input_give_the_same() {
    let p = ConvParams::default;
    let rows = [
        (&[1, 5, 9, 11][..], &[6, 5, 3, 3][..], p()),
        (&[2, 6, 15, 13], &[12, 3, 3, 3], p().groups(2).stride([2, 3]).padding([2, 1])),
        (&[2, 6, 15, 13], &[8, 6, 1, 1], p().stride([2])),
        (&[1, 6, 15, 13], &[8, 6, 1, 1], p().stride([2])),
        (&[2, 4, 9, 9], &[4, 1, 3, 3], p().groups(4).stride([2])),
        (&[1, 4, 9, 9], &[4, 1, 3, 3], p().groups(4).stride([2])),
        (&[3, 4, 3, 3], &[9, 4, 3, 3], p()),
        // Staged in one band, which is kept, and in several.
        (&[1, 8, 42, 42], &[4, 8, 3, 3], p().padding([1])),
        (&[1, 64, 82, 82], &[4, 64, 3, 3], p().padding([1])),
    ];
    every_row(rows, |(input, weight, params)| {
        let shape = ConvShape::new(input, weight, &params).unwrap();
        one_by_one::<f32>(&shape, 1);
        one_by_one::<f32>(&shape, 2);
        one_by_one::<f64>(&shape, 1);
    });
}

const KEY: FilterKey = FilterKey { layer: 7, subtask: SubtaskId(3) };

fn subtask() -> SubtaskShape {
    let conv = ConvShape::new(&[2, 3, 8, 9], &[6, 3, 3, 3], &ConvParams::default()).unwrap();
    SubtaskShape { conv, slabs: 2, banks: 3, plain: false }
}

fn work<T: Element>(worker: &mut dyn Worker, shape: &SubtaskShape) {
    let slabs = normals::<T>(shape.upload_elems(), 5);
    let banks = normals::<T>(shape.filter_elems(), 6);
    worker.install(KEY, shape, T::wrap(banks.clone())).unwrap();
    let mut seen = Vec::new();
    worker
        .execute(Task::new(KEY, &T::wrap(slabs.clone()), &CancelToken::new()), &mut |index, values| {
            let (p, r) = (index / shape.banks, index % shape.banks);
            let slab = &slabs[p * shape.conv.input_elems()..][..shape.conv.input_elems()];
            let bank = &banks[r * shape.conv.weight_elems()..][..shape.conv.weight_elems()];
            let bound = Bound::new(&shape.conv, slab, bank, None);
            bound.check(values.as_slice::<T>().unwrap()).unwrap();
            seen.push(index);
        })
        .unwrap();
    assert_eq!(seen, (0..shape.sub_results()).collect::<Vec<_>>());
}

#[test]
fn a_worker_computes_every_sub_result_in_both_types() {
    for mut worker in CpuWorker::fleet(2) {
        work::<f32>(&mut *worker, &subtask());
        work::<f64>(&mut *worker, &subtask());
    }
    work::<f32>(&mut CpuWorker::new("both-cores", 2), &subtask());
    let names: Vec<String> = CpuWorker::fleet(2).iter().map(|w| w.info().name).collect();
    assert_eq!(names, ["cpu-0", "cpu-1"]);
}

#[test]
fn a_cancelled_worker_does_not_begin_the_next_slab() {
    let (mut worker, shape) = (CpuWorker::new("cpu", 1), subtask());
    let slabs = Values::F32(normals(shape.upload_elems(), 5));
    worker.install(KEY, &shape, Values::F32(normals(shape.filter_elems(), 6))).unwrap();
    // Cancelled during the emission of the first slab's last sub-result.
    let (cancel, mut emitted) = (CancelToken::new(), 0);
    let result = worker.execute(Task::new(KEY, &slabs, &cancel), &mut |index, _| {
        emitted += 1;
        if index + 1 == shape.banks {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(emitted, shape.banks);
    work::<f32>(&mut worker, &shape);
}

#[test]
fn one_by_one_the_results_are_the_same_bits() {
    let (mut worker, shape) = (CpuWorker::new("cpu", 1), subtask());
    let slabs = Values::F32(normals(shape.upload_elems(), 5));
    worker.install(KEY, &shape, Values::F32(normals(shape.filter_elems(), 6))).unwrap();
    let mut run = |order: Order<'_>| {
        let (mut seen, token) = (Vec::new(), CancelToken::new());
        let task = Task::new(KEY, &slabs, &token).with_order(order);
        worker.execute(task, &mut |i, values| seen.push((i, values))).unwrap();
        seen
    };
    let all = run(Order::All);
    for (index, values) in run(Order::Each(&[4, 0, 5, 2, 1, 3])) {
        assert_eq!(values, all[index].1, "sub-result {index}");
    }
}

#[test]
fn a_worker_names_what_does_not_fit() {
    let (mut worker, shape) = (CpuWorker::new("cpu", 1), subtask());
    let execute = |worker: &mut CpuWorker, slabs: &Values| {
        let token = CancelToken::new();
        worker.execute(Task::new(KEY, slabs, &token), &mut |_, _| {}).unwrap_err().to_string()
    };
    let short = Values::F32(vec![0.0; 3]);
    assert!(execute(&mut worker, &short).contains("no filters for subtask 3 of layer 7"));
    worker.install(KEY, &shape, Values::F32(normals(shape.filter_elems(), 6))).unwrap();
    assert!(execute(&mut worker, &short).contains("is 3 where"));
    let double = Values::F64(normals(shape.upload_elems(), 5));
    assert!(execute(&mut worker, &double).contains("f64 where f32"));
}
