//! The GPU kernels against the reference, on the available adapter.
//!
//! Without an adapter every test is shown as ignored, never as passed; with `CI=true`, a missing adapter fails them. Runs on
//! the adapter named by `WGPU_ADAPTER_NAME`, or the preferred one.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, here as under the usual harness")]

use std::cell::Cell;

use crate::support::{self, Outcome, TOLERANCE_F32, engine, random, shape, tolerance, values, widened};
use fcdcc::Error;
use fcdcc::array::{DType, Values};
use fcdcc::conv::{ConvParams, ConvShape, reference};
use fcdcc::gpu::{Candidate, ConvEngine, GpuDevice, Kernel, select};
use fcdcc_test_support::{normal, relative_l2};
use libtest_mimic::Trial;

/// Layers small enough for the reference: name, input, weight, parameters.
fn layers() -> Vec<(&'static str, ConvShape)> {
    let p = ConvParams::default;
    vec![
        ("1-D", shape(&[1, 3, 40], &[5, 3, 4], &p())),
        ("2-D, odd channels", shape(&[1, 5, 9, 11], &[17, 5, 3, 3], &p())),
        (
            "3-D, stride and dilation",
            shape(&[1, 3, 7, 8, 9], &[5, 3, 2, 3, 2], &p().stride([1, 2, 3]).dilation([2, 2, 1])),
        ),
        (
            "asymmetric stride and dilation",
            shape(&[2, 4, 17, 19], &[6, 4, 3, 2], &p().stride([2, 3]).dilation([3, 4])),
        ),
        ("groups", shape(&[1, 6, 8, 8], &[15, 2, 3, 3], &p().groups(3))),
        ("groups wider than a block", shape(&[2, 4, 6, 6], &[80, 2, 2, 2], &p().groups(2))),
        ("depthwise", shape(&[2, 7, 9, 9], &[7, 1, 3, 3], &p().groups(7))),
        ("depthwise with multiplier", shape(&[1, 5, 9, 9], &[15, 1, 3, 3], &p().groups(5).stride([2]))),
        (
            "depthwise 3x3 stride 2, batch 2",
            shape(&[2, 3, 21, 34], &[6, 1, 3, 3], &p().groups(3).stride([2])),
        ),
        ("depthwise 5x5", shape(&[1, 3, 19, 23], &[3, 1, 5, 5], &p().groups(3))),
        ("depthwise 5x5 stride 2", shape(&[2, 3, 18, 19], &[9, 1, 5, 5], &p().groups(3).stride([2]))),
        ("depthwise 7x7", shape(&[2, 3, 13, 22], &[3, 1, 7, 7], &p().groups(3))),
        ("depthwise 7x7 stride 2", shape(&[1, 3, 25, 27], &[6, 1, 7, 7], &p().groups(3).stride([2]))),
        ("depthwise 7x7, one output a plane", shape(&[1, 11, 7, 7], &[11, 1, 7, 7], &p().groups(11))),
        (
            "depthwise 2x5, strides 2 and 1",
            shape(&[1, 3, 9, 24], &[3, 1, 2, 5], &p().groups(3).stride([2, 1])),
        ),
        ("depthwise 1x1", shape(&[2, 5, 7, 9], &[5, 1, 1, 1], &p().groups(5))),
        ("depthwise 1-D", shape(&[2, 3, 31], &[6, 1, 3], &p().groups(3))),
        ("depthwise 3-D", shape(&[1, 3, 4, 7, 9], &[3, 1, 1, 3, 3], &p().groups(3))),
        ("depthwise, dilation 2", shape(&[2, 3, 15, 17], &[6, 1, 3, 3], &p().groups(3).dilation([2]))),
        ("groups of two in and three out", shape(&[2, 6, 12, 17], &[9, 2, 3, 3], &p().groups(3))),
        ("batch 2", shape(&[2, 3, 10, 10], &[9, 3, 3, 3], &p())),
        ("one channel in and out", shape(&[1, 1, 5, 5], &[1, 1, 2, 2], &p())),
        ("pointwise", shape(&[1, 33, 7, 7], &[65, 33, 1, 1], &p())),
        ("one pixel", shape(&[1, 16, 3, 3], &[16, 16, 3, 3], &p())),
        ("11x11 stride 4", shape(&[1, 3, 47, 47], &[33, 3, 11, 11], &p().stride([4]))),
        ("many columns", shape(&[1, 2, 68, 68], &[8, 2, 3, 3], &p())),
        ("large tiles of the tiled kernel", shape(&[1, 9, 65, 65], &[65, 9, 1, 1], &p())),
        ("split reduction", shape(&[1, 115, 6, 5], &[37, 115, 3, 3], &p())),
        ("split reduction of groups", shape(&[2, 130, 7, 7], &[10, 65, 3, 3], &p().groups(2).stride([2]))),
    ]
}

/// Layers whose plan is split: beyond the loop limit of lavapipe, beyond one submission, beyond one dimension of a grid.
fn split_layers() -> Vec<(&'static str, ConvShape)> {
    let p = ConvParams::default;
    vec![
        ("reduction of 73,728", shape(&[1, 8192, 3, 4], &[3, 8192, 3, 3], &p())),
        ("kernel of 70,000 taps", shape(&[1, 2, 70_001], &[4, 2, 70_000], &p())),
    ]
}

/// The largest error of all ways to run `kernel` on a layer.
fn error_of(
    engine: &mut ConvEngine,
    kernel: Kernel,
    shape: &ConvShape,
    dtype: DType,
    corruption: f64,
) -> Result<f64, Error> {
    let mut worst = 0.0_f64;
    for way in Candidate::of(kernel, shape, engine.device().caps(), dtype) {
        let error = error_as(engine, way, shape, dtype, corruption)?;
        worst = worst.max(error);
    }
    Ok(worst)
}

/// The error of one way to run a layer; `corruption` is added to one weight of the reference's copy.
fn error_as(
    engine: &mut ConvEngine,
    way: Candidate,
    shape: &ConvShape,
    dtype: DType,
    corruption: f64,
) -> Result<f64, Error> {
    let (slabs, banks) = (2, 2);
    let (x, w) = (random(slabs * shape.input_elems(), 1), random(banks * shape.weight_elems(), 2));
    engine.poison_outputs(true);
    let filters = engine.install_as(shape, slabs, banks, &values(&w, dtype), way)?;
    let mut results = Vec::new();
    engine.run(&filters, slabs, &values(&x, dtype), None, &|| false, &mut |i, v| results.push((i, v)))?;
    assert_eq!(results.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let mut worst = 0.0_f64;
    let mut w = w;
    w[shape.weight_elems() / 2] += corruption;
    for (i, result) in &results {
        let x = &x[i / banks * shape.input_elems()..][..shape.input_elems()];
        let w = &w[i % banks * shape.weight_elems()..][..shape.weight_elems()];
        let error = relative_l2(&widened(result), &reference(shape, x, w, None)?);
        worst = worst.max(error);
    }
    Ok(worst)
}

fn kernel_matches(kernel: Kernel, dtype: DType, layers: &[(&str, ConvShape)]) -> Outcome {
    let mut engine = engine()?;
    for (name, shape) in layers {
        let error = error_of(&mut engine, kernel, shape, dtype, 0.0)?;
        if error > tolerance(dtype) {
            return Err(format!("{kernel} {dtype} {name}: relative error {error:.2e}").into());
        }
    }
    Ok(())
}

fn corrupted_weight_is_noticed() -> Outcome {
    let mut engine = engine()?;
    let shape = shape(&[1, 16, 12, 12], &[17, 16, 3, 3], &ConvParams::default());
    for kernel in Kernel::ALL {
        if kernel.runs_on(engine.device().caps(), DType::F32) {
            for way in Candidate::of(kernel, &shape, engine.device().caps(), DType::F32) {
                let error = error_as(&mut engine, way, &shape, DType::F32, 0.01)?;
                assert!(error > 2.0 * TOLERANCE_F32, "{way}: {error:.2e}");
            }
        }
    }
    Ok(())
}

/// Winograd's minimal filtering over each kernel: tiles beyond either edge, batches, groups, one row, many submissions.
/// submissions.
fn winograd_matches() -> Outcome {
    let p = ConvParams::default;
    let layers = [
        ("even", shape(&[1, 16, 10, 12], &[16, 16, 3, 3], &p())),
        ("odd rows", shape(&[1, 17, 9, 8], &[19, 17, 3, 3], &p())),
        ("odd columns", shape(&[1, 20, 6, 7], &[66, 20, 3, 3], &p())),
        ("odd both, batch", shape(&[3, 16, 9, 11], &[24, 16, 3, 3], &p())),
        ("one row", shape(&[1, 16, 3, 40], &[16, 16, 3, 3], &p())),
        ("one column", shape(&[1, 16, 41, 3], &[16, 16, 3, 3], &p())),
        ("groups", shape(&[2, 48, 8, 9], &[60, 16, 3, 3], &p().groups(3))),
    ];
    for macs in [None, Some(20_000)] {
        let device = GpuDevice::open(&select(None)?[0], "test")?;
        let mut engine = ConvEngine::new(match macs {
            Some(macs) => device.with_submission_macs(macs),
            None => device,
        });
        let caps = *engine.device().caps();
        for dtype in [DType::F32, DType::F64] {
            for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.runs_on(&caps, dtype)) {
                for (name, shape) in &layers {
                    let ways = Candidate::winograd(Some(kernel), shape, &caps, dtype);
                    assert!(
                        !ways.is_empty() && ways.iter().all(|way| way.to_string().starts_with("winograd"))
                    );
                    let error = error_as(&mut engine, ways[0], shape, dtype, 0.0)?;
                    assert!(error <= tolerance(dtype), "{} {dtype} {name}: {error:.2e}", ways[0]);
                    let error = error_as(&mut engine, ways[0], shape, dtype, 0.01)?;
                    assert!(
                        error > 2.0 * TOLERANCE_F32,
                        "{} {dtype} {name}, corrupted: {error:.2e}",
                        ways[0]
                    );
                }
            }
        }
    }
    Ok(())
}

/// A NaN reaches only the outputs that depend on it, whatever else their threads read.
fn elements_reach_only_the_outputs_that_see_them() -> Outcome {
    let mut engine = engine()?;
    for (side, kernel, stride) in [(13, 3, 1), (14, 3, 2), (11, 5, 1)] {
        let params = ConvParams::default().groups(2).stride([stride]);
        let shape = shape(&[2, 2, side, side + 1], &[4, 1, kernel, kernel], &params);
        let w = random(shape.weight_elems(), 2);
        for way in Candidate::of(Kernel::Single, &shape, engine.device().caps(), DType::F32) {
            let filters = engine.install_as(&shape, 1, 1, &values(&w, DType::F32), way)?;
            for at in (0..shape.input_elems()).step_by(5).chain([shape.input_elems() - 1]) {
                let mut x = random(shape.input_elems(), 1);
                x[at] = f64::NAN;
                engine.poison_outputs(true);
                let mut got = Vec::new();
                let slab = values(&x, DType::F32);
                engine.run(&filters, 1, &slab, None, &|| false, &mut |_, v| got = widened(&v))?;
                let seen: Vec<bool> = reference(&shape, &x, &w, None)?.iter().map(|v| v.is_nan()).collect();
                assert!(got.iter().map(|v| v.is_nan()).eq(seen), "{way}: element {at}");
            }
        }
    }
    Ok(())
}

/// Each way to run `tiled` on deep, small layers with a split reduction: as accurate as sums of short runs, bit-identical
/// for any submissions, and without leftovers of another layer's sums.
fn split_reductions_are_accurate_and_repeatable() -> Outcome {
    let shape = shape(&[1, 512, 7, 6], &[70, 512, 3, 3], &ConvParams::default());
    let (x, w) = (random(shape.input_elems(), 1), random(shape.weight_elems(), 2));
    let expected = reference(&shape, &x, &w, None)?;
    let gpu = || GpuDevice::open(&select(None)?[0], "test");
    let mut engines = [ConvEngine::new(gpu()?), ConvEngine::new(gpu()?.with_submission_macs(1_000_000))];
    let ways = Candidate::of(Kernel::Tiled, &shape, engines[0].device().caps(), DType::F32);
    assert!(ways[0].to_string().ends_with("splits") && ways.len() > 3, "{ways:?}");
    // A missing sum would be detected: the tolerance is far below the share of a single product.
    let mut off = w.clone();
    off[4607] += 0.5;
    let missing = relative_l2(&reference(&shape, &x, &off, None)?, &expected);
    assert!(missing > 1e-5, "{missing:.2e}");
    for way in ways {
        let mut results: Vec<Values> = Vec::new();
        for engine in &mut engines {
            engine.poison_outputs(true);
            let filters = engine.install_as(&shape, 1, 1, &values(&w, DType::F32), way)?;
            for _ in 0..2 {
                let slabs = values(&x, DType::F32);
                engine.run(&filters, 1, &slabs, None, &|| false, &mut |_, v| results.push(v))?;
            }
        }
        let error = relative_l2(&widened(&results[0]), &expected);
        assert!(error < 1e-6, "{way}: {error:.2e}");
        assert!(results.len() == 4 && results.iter().all(|r| *r == results[0]), "{way}");
    }
    Ok(())
}

/// 16-bit slabs and filters are rounded once; sums are those of f32.
fn half_storage_rounds_and_nothing_else() -> Outcome {
    let mut engine = ConvEngine::new(GpuDevice::open(&select(None)?[0], "test")?.with_half_storage()?);
    let caps = *engine.device().caps();
    let able = || Kernel::ALL.into_iter().filter(|kernel| kernel.runs_on(&caps, DType::F32));
    let rounded =
        |numbers: &[f64]| -> Vec<f64> { numbers.iter().map(|n| half::f16::from_f64(*n).to_f64()).collect() };
    let p = ConvParams::default;
    let layers = [
        // Odd numbers of elements: buffers hold whole 32-bit words.
        shape(&[1, 5, 9, 11], &[17, 5, 3, 3], &p()),
        shape(&[1, 7, 9, 9], &[7, 1, 3, 3], &p().groups(7)),
        shape(&[1, 115, 6, 5], &[37, 115, 3, 3], &p()),
        shape(&[1, 33, 7, 7], &[65, 33, 1, 1], &p()),
    ];
    for shape in &layers {
        let (x, w) = (random(2 * shape.input_elems(), 1), random(shape.weight_elems(), 2));
        let second = |x: &[f64]| x[shape.input_elems()..].to_vec();
        let expected = reference(shape, &rounded(&second(&x)), &rounded(&w), None)?;
        let exact = reference(shape, &second(&x), &w, None)?;
        assert!(Candidate::winograd(None, shape, &caps, DType::F32).is_empty());
        for way in able().flat_map(|kernel| Candidate::of(kernel, shape, &caps, DType::F32)) {
            engine.poison_outputs(true);
            let filters = engine.install_as(shape, 2, 1, &values(&w, DType::F32), way)?;
            let mut got = Vec::new();
            engine
                .run(&filters, 2, &values(&x, DType::F32), None, &|| false, &mut |_, v| got = widened(&v))?;
            let error = relative_l2(&got, &expected);
            assert!(error <= TOLERANCE_F32, "{way}: {error:.2e}");
            // The error of rounding, to check that it happened.
            let error = relative_l2(&got, &exact);
            assert!((5e-5..1e-3).contains(&error), "{way}: {error:.2e}");
        }
    }
    Ok(())
}

fn half_storage_refuses_what_it_cannot_hold() -> Outcome {
    let mut engine = ConvEngine::new(GpuDevice::open(&select(None)?[0], "test")?.with_half_storage()?);
    let shape = shape(&[1, 2, 6, 6], &[3, 2, 3, 3], &ConvParams::default());
    let (mut x, mut w) = (random(shape.input_elems(), 1), random(shape.weight_elems(), 2));
    let refused = engine.install(&shape, 1, 1, &values(&w, DType::F64), None);
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    let filters = engine.install(&shape, 1, 1, &values(&w, DType::F32), None)?;
    let mut run = |x: &[f64]| -> Result<Vec<f64>, Error> {
        let mut got = Vec::new();
        engine.run(&filters, 1, &values(x, DType::F32), None, &|| false, &mut |_, v| got = widened(&v))?;
        Ok(got)
    };
    let before = run(&x)?;
    x[40] = 70_000.0;
    let error = run(&x).unwrap_err().to_string();
    assert!(error.contains("number 40 of a coded slab") && error.contains("65504"), "{error}");
    // The next run is not affected.
    x[40] = random(shape.input_elems(), 1)[40];
    assert_eq!(run(&x)?, before);
    w[7] = -1e6;
    let error = engine.install(&shape, 1, 1, &values(&w, DType::F32), None).unwrap_err().to_string();
    assert!(error.contains("the coded filters") && error.contains("-1e6"), "{error}");
    Ok(())
}

/// Normal data of variance 1, for which the rounding bound of an f32 worker is stated.
fn every_candidate_is_accurate_at_512_channels() -> Outcome {
    const BOUND: f64 = 1e-5;
    let mut engine = engine()?;
    let shape = shape(&[1, 512, 13, 12], &[130, 512, 3, 3], &ConvParams::default());
    let data = |elems, seed| widened(&Values::F32(normal(elems, seed)));
    let (x, mut w) = (data(shape.input_elems(), 1), data(shape.weight_elems(), 2));
    let expected = reference(&shape, &x, &w, None)?;
    let (slab, bank) = (values(&x, DType::F32), values(&w, DType::F32));
    // Negative control: a reference without one product of each sum, as from a kernel that drops a term.
    let reduction = 512 * 9;
    w.chunks_exact_mut(reduction).for_each(|filter| filter[reduction - 1] = 0.0);
    let dropped = reference(&shape, &x, &w, None)?;
    engine.poison_outputs(true);
    let caps = *engine.device().caps();
    let able = Kernel::ALL.into_iter().filter(|kernel| kernel.runs_on(&caps, DType::F32));
    let ways = able.flat_map(|kernel| {
        let winograd = Candidate::winograd(Some(kernel), &shape, &caps, DType::F32);
        [Candidate::of(kernel, &shape, &caps, DType::F32), winograd].concat()
    });
    for candidate in ways {
        let filters = engine.install_as(&shape, 1, 1, &bank, candidate)?;
        let mut got = Vec::new();
        engine.run(&filters, 1, &slab, None, &|| false, &mut |_, v| got = widened(&v))?;
        let error = relative_l2(&got, &expected);
        assert!(error <= BOUND, "{candidate}: {error:.2e}");
        let error = relative_l2(&got, &dropped);
        assert!(error > 100.0 * BOUND, "{candidate}, one term less: {error:.2e}");
    }
    Ok(())
}

fn more_workgroups_than_a_dimension_holds() -> Outcome {
    let mut engine = engine()?;
    // One column block and 70,000 channels: as many workgroups. The numbers are small, so that sums are exact.
    let shape = shape(&[1, 1, 2], &[70_000, 1, 2], &ConvParams::default());
    let w: Vec<f64> = (0..140_000).map(|i| f64::from(i % 1009)).collect();
    let filters = engine.install(&shape, 1, 1, &values(&w, DType::F32), Some(Kernel::Naive))?;
    engine.poison_outputs(true);
    let expected = reference(&shape, &[1.0, 3.0], &w, None)?;
    let mut got = Vec::new();
    engine
        .run(&filters, 1, &values(&[1.0, 3.0], DType::F32), None, &|| false, &mut |_, v| got = widened(&v))?;
    assert_eq!(got, expected);
    Ok(())
}

/// Submissions of 5,000 multiply-adds: every plan has several, and results do not depend on it.
fn many_submissions_give_the_same() -> Outcome {
    let gpu = GpuDevice::open(&select(None)?[0], "test")?.with_submission_macs(5_000);
    let mut engine = ConvEngine::new(gpu);
    let shape = shape(&[2, 6, 20, 21], &[34, 3, 3, 3], &ConvParams::default().groups(2));
    for kernel in Kernel::ALL {
        if kernel.runs_on(engine.device().caps(), DType::F32) {
            let error = error_of(&mut engine, kernel, &shape, DType::F32, 0.0)?;
            assert!(error <= TOLERANCE_F32, "{kernel}: {error:.2e}");
        }
    }
    // Cancelled in the middle of the second sub-result: the first was delivered, and the next run is correct.
    let (x, w) = (random(shape.input_elems(), 1), random(2 * shape.weight_elems(), 2));
    let filters = engine.install(&shape, 1, 2, &values(&w, DType::F32), None)?;
    let emitted = Cell::new(0);
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + usize::from(emitted.get() > 0));
        asked.get() > 2
    };
    let outcome = engine
        .run(&filters, 1, &values(&x, DType::F32), None, &stop, &mut |_, _| emitted.set(emitted.get() + 1));
    assert!(matches!(outcome, Err(Error::Cancelled)));
    assert_eq!(emitted.get(), 1);
    assert!(error_of(&mut engine, filters.plan().kernel(), &shape, DType::F32, 0.0)? <= TOLERANCE_F32);
    Ok(())
}

fn staging_buffers_carry_the_same() -> Outcome {
    let mut engine = ConvEngine::new(GpuDevice::open(&select(None)?[0], "test")?.with_staging());
    for (name, shape) in layers() {
        let error = error_of(&mut engine, Kernel::Naive, &shape, DType::F32, 0.0)?;
        assert!(error <= TOLERANCE_F32, "{name}: {error:.2e}");
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut tests: Vec<(String, Box<dyn FnOnce() -> Outcome + Send>)> = Vec::new();
    let device = select(None).ok().and_then(|found| GpuDevice::open(&found[0], "listing").ok());
    let mut unable = Vec::new();
    for kernel in Kernel::ALL {
        for dtype in [DType::F32, DType::F64] {
            let able = device.as_ref().is_none_or(|device| kernel.runs_on(device.caps(), dtype));
            let name = format!("{kernel}_{dtype}_matches_the_reference");
            unable.extend(
                (!able)
                    .then(|| [name.clone(), format!("{name}_where_the_plan_splits")])
                    .into_iter()
                    .flatten(),
            );
            tests.push((name, Box::new(move || kernel_matches(kernel, dtype, &layers()))));
            let name = format!("{kernel}_{dtype}_matches_the_reference_where_the_plan_splits");
            tests.push((name, Box::new(move || kernel_matches(kernel, dtype, &split_layers()))));
        }
    }
    macro_rules! add {
        ($($test:ident),* $(,)?) => {$(tests.push((stringify!($test).to_owned(), Box::new($test)));)*};
    }
    add!(
        corrupted_weight_is_noticed,
        elements_reach_only_the_outputs_that_see_them,
        every_candidate_is_accurate_at_512_channels,
        winograd_matches,
        half_storage_rounds_and_nothing_else,
        half_storage_refuses_what_it_cannot_hold,
        split_reductions_are_accurate_and_repeatable,
        more_workgroups_than_a_dimension_holds,
        many_submissions_give_the_same,
        staging_buffers_carry_the_same,
    );
    if device.is_some_and(|device| !device.caps().f16) {
        unable.extend(
            tests.iter().map(|(name, _)| name.clone()).filter(|name| name.starts_with("half_storage")),
        );
    }
    support::trials("kernels", tests, &unable)
}
