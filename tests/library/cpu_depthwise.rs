//! The CPU convolution of depthwise layers against its definition: widths around a vector's, inputs of each output, and
//! results that are bit-identical at every position.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use fcdcc::array::Element;
use fcdcc::conv::{ConvKernel, ConvParams, ConvPath, ConvShape, Scratch, reference};
use fcdcc_test_support::every_row;

/// Small integers: their sums are exact in both types.
fn whole<T: Element>(len: usize, step: usize) -> Vec<T> {
    (0..len).map(|i| T::from_f64((i * step % 17) as f64 - 8.0)).collect()
}

/// Numbers whose sums depend on the order of the terms.
fn uneven<T: Element>(len: usize, step: usize) -> Vec<T> {
    (0..len).map(|i| T::from_f64(((i * step % 1009) as f64 - 504.0) / 7.0)).collect()
}

fn run<T: Element>(shape: &ConvShape, x: &[T], k: &[T], threads: usize) -> Vec<Vec<T>> {
    run_all(&ConvKernel::new(shape), x, k, threads)
}

/// The outputs of all banks in `k`, with NaN written to the buffers before.
pub(crate) fn run_all<T: Element>(kernel: &ConvKernel, x: &[T], k: &[T], threads: usize) -> Vec<Vec<T>> {
    let shape = kernel.shape();
    let banks: Vec<_> = k.chunks(shape.weight_elems()).map(|bank| kernel.pack(bank).unwrap()).collect();
    let mut outputs = vec![vec![T::from_f64(f64::NAN); shape.output_elems()]; banks.len()];
    let mut views: Vec<&mut [T]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    let banks: Vec<_> = banks.iter().collect();
    kernel.run(&mut Scratch::new(), x, &banks, &mut views, threads, &|| false).unwrap();
    outputs
}

fn check<T: Element>(shape: &ConvShape) {
    let (x, k) = (whole::<T>(shape.input_elems(), 5), whole::<T>(shape.weight_elems(), 7));
    let want = reference(shape, &x, &k, None).unwrap();
    for threads in [1, 2] {
        assert_eq!(run(shape, &x, &k, threads), [&want[..]], "{} on {threads} threads: {shape:?}", T::DTYPE);
    }
}

#[test]
fn every_shape_agrees_with_the_definition() {
    let sides = [1, 2, 3, 5, 7, 8, 9, 14, 15, 16, 17, 18, 19, 31, 33, 37, 50];
    let pads = [vec![0], vec![1], vec![0, 0, 1, 1], vec![2, 0, 1, 3], vec![0, 19, 3, 0]];
    let (mut direct, mut others) = (0, 0);
    for (at, height) in sides.into_iter().enumerate() {
        for (step, width) in sides.into_iter().enumerate() {
            for (pad, padding) in pads.iter().enumerate() {
                for stride in [1, 2] {
                    // Not every combination: every value of an axis meets every value of each other axis.
                    let (multiplier, batch) = (1 + (at + step + pad) % 3, 1 + (at + pad) % 2);
                    let dilation = if (at + step) % 5 == 4 { 2 } else { 1 };
                    let params = ConvParams::default().padding(padding.clone()).stride([stride]);
                    let params = params.dilation([dilation]).groups(3);
                    let (input, weight) = ([batch, 3, height, width], [3 * multiplier, 1, 3, 3]);
                    let Ok(shape) = ConvShape::new(&input, &weight, &params) else { continue };
                    let counted = if ConvKernel::new(&shape).path() == ConvPath::Depthwise {
                        &mut direct
                    } else {
                        &mut others
                    };
                    *counted += 1;
                    check::<f32>(&shape);
                    check::<f64>(&shape);
                }
            }
        }
    }
    assert!(direct > 1000 && others > 200, "{direct} {others}");
}

#[test]
fn only_what_is_seen_gets_into_an_output() {
    let rows = [
        ([5, 6], 2, vec![0]),
        ([5, 6], 1, vec![1]),
        ([4, 19], 1, vec![1]),
        ([6, 38], 2, vec![1, 0]),
        ([4, 8], 2, vec![1]),
    ];
    every_row(rows, |(side, stride, padding)| {
        let params = ConvParams::default().groups(3).stride([stride]).padding(padding);
        let shape = ConvShape::new(&[1, 3, side[0], side[1]], &[3, 1, 3, 3], &params).unwrap();
        assert_eq!(ConvKernel::new(&shape).path(), ConvPath::Depthwise);
        let k = whole::<f32>(shape.weight_elems(), 7);
        for at in 0..shape.input_elems() {
            let mut x = whole::<f32>(shape.input_elems(), 5);
            x[at] = f32::NAN;
            let want = reference(&shape, &x, &k, None).unwrap();
            let got = run(&shape, &x, &k, 1).remove(0);
            let same = got.iter().zip(&want).all(|(got, want)| got == want || got.is_nan() && want.is_nan());
            assert!(same, "NaN at {at}: {got:?} instead of {want:?}; {shape:?}");
        }
    });
}

#[test]
fn bits_depend_neither_on_threads_nor_on_banks() {
    let rows = [(7, 1, 1), (14, 2, 1), (33, 1, 0), (40, 2, 0), (112, 1, 1)];
    every_row(rows, |(side, stride, padding)| {
        let params = ConvParams::default().groups(5).stride([stride]).padding([padding]);
        let shape = ConvShape::new(&[2, 5, side, side], &[10, 1, 3, 3], &params).unwrap();
        let (x, k) = (uneven::<f32>(shape.input_elems(), 31), uneven::<f32>(3 * shape.weight_elems(), 57));
        let alone: Vec<_> =
            k.chunks(shape.weight_elems()).map(|bank| run(&shape, &x, bank, 1).remove(0)).collect();
        for threads in [1, 2, 3, 16] {
            assert_eq!(run(&shape, &x, &k, threads), alone);
        }
    });
}

#[test]
fn bits_do_not_depend_on_the_place() {
    // Rows of one value each: all columns without padding have the same sums, anywhere in a vector.
    for width in 3..80 {
        for stride in [1, 2] {
            let params = ConvParams::default().groups(2).stride([stride]).padding([1]);
            let shape = ConvShape::new(&[1, 2, 40, width], &[2, 1, 3, 3], &params).unwrap();
            let rows = uneven::<f32>(80, 31);
            let x: Vec<f32> = rows.iter().flat_map(|value| std::iter::repeat_n(*value, width)).collect();
            let y = run(&shape, &x, &uneven(18, 57), 1).remove(0);
            for row in y.chunks(shape.output[2]) {
                let inner = &row[1..=(width - 2) / stride];
                assert!(inner.iter().all(|value| value.to_bits() == inner[0].to_bits()), "{width}: {row:?}");
            }
        }
    }
}
