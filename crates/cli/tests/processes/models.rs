//! Whole models over six worker processes, any two of which are killed at any moment: the same class, and within 1e-4 of
//! the local result.
//!
//! LeNet-5 is shipped; `scripts/onnx_model_cases.py` makes ResNet-50; without a suitable Python that test is shown as
//! ignored.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::time::{Duration, Instant};

use fcdcc::model::{Model, ModelOptions, PreparedModel, Tensor};
use fcdcc_test_support::binary::repository;
use fcdcc_test_support::fleet::{Process, endpoint, master, pool_of, until, usable, workers};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use ndarray::{ArrayD, IxDyn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PACKAGES: &str = "onnx, onnxruntime, numpy";
const MACHINES: usize = 6;
const TOLERANCE: f64 = 1e-4;

/// Number of batch items with another largest value, and the relative L2 distance.
fn difference(got: &Tensor, want: &Tensor) -> (usize, f64) {
    let classes = want.shape()[1..].iter().product();
    let (got, want) = (got.to_f64(), want.to_f64());
    let largest = |scores: &[f64]| (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let moved =
        got.chunks(classes).zip(want.chunks(classes)).filter(|(g, w)| largest(g) != largest(w)).count();
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let off = square(&mut got.iter().zip(&want).map(|(g, w)| g - w));
    (moved, (off / square(&mut want.iter().copied())).sqrt())
}

fn check(output: &Tensor, truth: &Tensor) -> Result<(), Failed> {
    match difference(output, truth) {
        (0, error) if error <= TOLERANCE => Ok(()),
        (moved, error) => Err(format!("{moved} classes differ, relative L2 {error:e}").into()),
    }
}

fn one_run(prepared: &PreparedModel, inputs: &[Tensor]) -> Result<(Tensor, Duration), Failed> {
    let started = Instant::now();
    let run = prepared.run(inputs)?;
    Ok((run.outputs[0].tensor.clone(), started.elapsed()))
}

/// Kills two of six processes at a random moment of each round, and starts them again after it.
fn survives(path: &Path, input: (&str, Tensor), rounds: usize, seed: u64) -> Result<(), Failed> {
    let model = Model::load(path)?.with_input_shape(input.0, input.1.shape())?;
    let inputs = [input.1];
    let truth = model.on_host()?.run(&inputs)?.swap_remove(0).tensor;
    let at = endpoint();
    let cluster = master(&at);
    let mut processes: Vec<Process> =
        (0..MACHINES).map(|i| Process::connect(&format!("m{i}"), &at, 1)).collect();
    let pool = pool_of(workers(&cluster, MACHINES));
    let prepared = model.prepare(&pool, &ModelOptions::default())?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Without losses: the duration of a run.
    let (output, calm) = one_run(&prepared, &inputs)?;
    check(&output, &truth)?;
    // Negative control: another class's score in one item is detected, and so is a small error everywhere.
    let Tensor::F32(mut spoilt) = output else { return Err("the model is not f32".into()) };
    spoilt.mapv_inplace(|v| v * 1.0003);
    if check(&spoilt.clone().into(), &truth).is_ok() {
        return Err("an error of 3e-4 was not noticed".into());
    }
    for round in 0..rounds {
        let first = random.random_range(0..MACHINES);
        let second = (first + random.random_range(1..MACHINES)) % MACHINES;
        let delays = [(); 2].map(|()| calm.mul_f64(random.random_range(0.0..1.5)));
        let result = std::thread::scope(|scope| {
            for (victim, delay) in victims(&mut processes, first, second).into_iter().zip(delays) {
                scope.spawn(move || {
                    std::thread::sleep(delay);
                    victim.kill();
                });
            }
            // Repeats runs until both kills have happened during one of them.
            let end = Instant::now() + calm.mul_f64(2.0);
            loop {
                let (output, _) = one_run(&prepared, &inputs)?;
                check(&output, &truth)?;
                if Instant::now() > end {
                    return Ok::<(), Failed>(());
                }
            }
        });
        result.map_err(|e| format!("seed {seed}, round {round}, without {first} and {second}: {e:?}"))?;
        for index in [first, second] {
            processes[index].restart();
        }
        until("both are back", || usable(&pool) == MACHINES);
    }
    for process in processes {
        assert_eq!(process.terminate(), Some(0), "a worker ends in order when it is asked to");
    }
    Ok(())
}

fn victims(processes: &mut [Process], first: usize, second: usize) -> Vec<&mut Process> {
    let chosen = |(index, process)| (index == first || index == second).then_some(process);
    processes.iter_mut().enumerate().filter_map(chosen).collect()
}

fn lenet() -> Result<(), Failed> {
    let path = repository().join("assets/digits/lenet5.onnx");
    let pixels = (0..4 * 32 * 32u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32 / 256.0).collect();
    let batch = ArrayD::from_shape_vec(IxDyn(&[4, 1, 32, 32]), pixels)?;
    survives(&path, ("image", batch.into()), 12, 1)
}

fn resnet(folder: &Path) -> Result<(), Failed> {
    let case: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json"))?)?;
    let name = case["inputs"][0]["name"].as_str().ok_or("the case names its input")?;
    let file = case["inputs"][0]["file"].as_str().ok_or("the case names its file")?;
    let input: ArrayD<f32> = ndarray_npy::read_npy(folder.join(file))?;
    survives(&folder.join("model.onnx"), (name, input.into()), 3, 2)
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![Trial::test("models::lenet5", lenet)];
    match oracle::cases("onnx_model_cases.py", &[], PACKAGES).map(|cases| oracle::folders(&cases)) {
        Ok(folders) => {
            let folder = folders.into_iter().find(|(name, _)| name == "resnet50").map(|(_, path)| path);
            trials.push(Trial::test("models::resnet50", move || {
                resnet(&folder.ok_or("there is no such case")?)
            }));
        }
        Err(why) => trials.extend(oracle::instead("models::resnet50", PACKAGES, why)),
    }
    trials
}
