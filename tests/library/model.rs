//! Prepared models through the library: reuse, workers that crash or hang in the middle of a run, tampered files.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fcdcc::model::{GemmChoice, Model, ModelOptions, ModelRun, Tensor};
use fcdcc::worker::{Intercept, intercept};
use fcdcc::{
    CancelToken, CpuWorker, Error, ErrorKind, LayerOptions, OnShortfall, Outcome, Pool, Result, SubtaskId,
    Worker, WorkerId,
};
use fcdcc_test_support::{normal, relative_l2};
use ndarray::ArrayD;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LENET5: &[u8] = include_bytes!("../../assets/digits/lenet5.onnx");
const WORKERS: usize = 6;

/// Two f32 runs decoded from different workers, at condition numbers below 10.
const SAME: f64 = 1e-5;

/// A CPU worker that counts its filters, and crashes at a chosen task. Installing waits until `hangs_until` is set.
fn scripted(
    name: String,
    installs: Arc<AtomicUsize>,
    dies_at: Option<usize>,
    hangs_until: Option<Arc<AtomicBool>>,
) -> Intercept {
    let mut tasks = 0;
    intercept(CpuWorker::new(name, 1))
        .on_install(move |inner, key, shape, banks| {
            let end = Instant::now() + Duration::from_mins(1);
            while hangs_until.as_ref().is_some_and(|released| !released.load(Ordering::SeqCst)) {
                assert!(Instant::now() < end, "the worker was not released");
                std::thread::yield_now();
            }
            installs.fetch_add(1, Ordering::SeqCst);
            inner.install(key, shape, banks)
        })
        .on_execute(move |inner, task, emit| {
            if dies_at == Some(tasks) {
                let (worker, cause) = ("scripted".to_owned(), "unplugged".to_owned());
                return Err(Error::WorkerLost { worker, cause });
            }
            tasks += 1;
            inner.execute(task, emit)
        })
        .never_respawned()
}

/// Six workers; the first `special.len()` of them crash or hang as given (crash at task, hang until).
fn pool(special: &[(Option<usize>, Option<Arc<AtomicBool>>)]) -> (Pool, Arc<AtomicUsize>) {
    let installs = Arc::new(AtomicUsize::new(0));
    let workers = (0..WORKERS).map(|i| -> Box<dyn Worker> {
        let (dies_at, hangs_until) = special.get(i).cloned().unwrap_or_default();
        scripted(format!("cpu-{i}"), Arc::clone(&installs), dies_at, hangs_until).boxed()
    });
    (Pool::new(workers.collect()).unwrap(), installs)
}

fn lenet(batch: usize) -> (Model, Tensor) {
    let shape = vec![batch, 1, 32, 32];
    let model = Model::from_bytes("lenet5.onnx", LENET5).unwrap().with_input_shape("image", &shape).unwrap();
    let images = ArrayD::from_shape_vec(shape, normal::<f32>(batch * 1024, 7)).unwrap();
    (model, images.into())
}

fn options() -> ModelOptions {
    let layer = LayerOptions::default().partial(false);
    let layer = layer.on_shortfall(OnShortfall::Fail).deadline(Duration::from_mins(1));
    ModelOptions { layer, ..ModelOptions::default() }
}

fn logits(run: &ModelRun) -> Vec<f64> {
    run.outputs[0].tensor.to_f64()
}

#[test]
fn a_run_of_a_model_ends_when_its_caller_cancels_it() {
    let (model, images) = lenet(1);
    let (pool, _) = pool(&[]);
    let prepared = model.prepare(&pool, &options()).unwrap();
    let cancel = CancelToken::new();
    let mut layers = 0;
    let end = prepared.run_cancellable(std::slice::from_ref(&images), &cancel, &mut |_| {
        layers += 1;
        cancel.cancel();
    });
    assert!(matches!(end, Err(Error::Cancelled)), "{:?}", end.map(|run| run.layers.len()));
    assert_eq!(layers, 1, "nothing is computed after the layer that was at work");
    // Negative control.
    assert_eq!(logits(&prepared.run(&[images]).unwrap()).len(), 10);
}

#[test]
fn a_model_says_what_it_takes_and_gives() {
    let model = Model::from_bytes("lenet5.onnx", LENET5).unwrap();
    let input = &model.inputs()[0];
    assert_eq!((input.name.as_str(), input.dtype.as_str()), ("image", "f32"));
    assert_eq!(input.shape, Some(vec![None, Some(1), Some(32), Some(32)]));
    assert!(input.admits(&[5, 1, 32, 32]) && !input.admits(&[5, 3, 32, 32]) && !input.admits(&[5, 1, 32]));
    assert_eq!(model.outputs(), ["logits"]);
    let (pool, _) = pool(&[]);
    let open = model.prepare(&pool, &options()).unwrap_err();
    assert_eq!(open.kind(), ErrorKind::BadInput);
    assert!(open.to_string().contains("[batch, 1, 32, 32]"), "{open}");
    let (model, images) = lenet(2);
    let prepared = model.prepare(&pool, &options()).unwrap();
    assert_eq!(prepared.input_shapes(), [("image", &[2, 1, 32, 32][..])]);
    assert_eq!(prepared.coded_layers(), 3);
    let wrong = prepared.run(&[]).unwrap_err().to_string();
    assert!(wrong.contains("is 0 where 1 (image)"), "{wrong}");
    let wrong = prepared.run(&[lenet(3).1]).unwrap_err().to_string();
    assert!(wrong.contains("is [3, 1, 32, 32] where [2, 1, 32, 32] f32"), "{wrong}");
    let Tensor::F32(images) = images else { panic!("f32") };
    let wide = prepared.run(&[images.mapv(f64::from).into()]).unwrap();
    assert!(relative_l2(&logits(&wide), &logits(&prepared.run(&[images.into()]).unwrap())) < SAME);
}

#[test]
fn filters_are_installed_once_for_any_number_of_runs_on_any_number_of_threads() {
    let (model, images) = lenet(3);
    let (pool, installs) = pool(&[]);
    let all = ModelOptions { gemm: GemmChoice::On, ..options() };
    let prepared = model.prepare(&pool, &all).unwrap();
    drop(model);
    // Three convolutions and two fully connected layers.
    assert_eq!(installs.load(Ordering::SeqCst), 5 * WORKERS);
    let first = logits(&prepared.run(std::slice::from_ref(&images)).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let run = prepared.run(std::slice::from_ref(&images)).unwrap();
                    assert!(relative_l2(&logits(&run), &first) < SAME);
                    assert!(run.layers.iter().all(|l| l.used.len() >= 4));
                }
            });
        }
    });
    assert_eq!(installs.load(Ordering::SeqCst), 5 * WORKERS);
    // Negative control: other images give other logits.
    let other = ArrayD::from_shape_vec(vec![3, 1, 32, 32], normal::<f32>(3072, 8)).unwrap();
    assert!(relative_l2(&logits(&prepared.run(&[other.into()]).unwrap()), &first) > 0.1);
}

#[test]
fn workers_that_die_in_the_middle_cost_their_share_alone() {
    let (model, images) = lenet(4);
    let truth =
        logits(&model.prepare(&pool(&[]).0, &options()).unwrap().run(std::slice::from_ref(&images)).unwrap());
    // One worker crashes at its second task, another at its fifth. Tasks cancelled before they begin do not count, so the
    // number of layers until then is open; each run has three.
    let (pool, _) = pool(&[(Some(1), None), (Some(4), None)]);
    let prepared = model.prepare(&pool, &options()).unwrap();
    let gone = || [0, 1].map(|worker| pool.lost(WorkerId(worker)).is_some());
    let mut before = gone();
    for run in 0.. {
        let done = prepared.run(std::slice::from_ref(&images)).unwrap();
        assert!(relative_l2(&logits(&done), &truth) < SAME, "run {run}");
        for layer in &done.layers {
            assert_eq!((layer.used.len(), layer.redispatched, &layer.fallback), (4, 0, &None));
            for worker in (0..2).filter(|worker| before[*worker]) {
                // A worker lost before the run has no outcome; this is known at once, so the run does not wait for it.
                let outcome =
                    layer.workers.iter().find(|w| w.subtask == Some(SubtaskId(worker))).unwrap().outcome;
                assert!(matches!(outcome, Outcome::Failed | Outcome::Cancelled), "{outcome:?}");
            }
        }
        if before == [true, true] {
            assert!(done.layers.iter().all(|layer| layer.used == [2, 3, 4, 5].map(SubtaskId)));
            break;
        }
        assert!(run < 10_000, "no worker came to its fifth task");
        before = gone();
    }
}

#[test]
fn a_worker_that_hangs_while_filters_are_installed_is_waited_for_once() {
    let (model, images) = lenet(1);
    let released = Arc::new(AtomicBool::new(false));
    let (pool, installs) = pool(&[(None, Some(Arc::clone(&released)))]);
    let started = Instant::now();
    let all = ModelOptions { gemm: GemmChoice::On, ..options() };
    let prepared = model.prepare(&pool, &all).unwrap();
    // The first layer waits for one second, the other four do not wait.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let run = prepared.run(std::slice::from_ref(&images)).unwrap();
    assert!(run.layers.iter().all(|l| !l.used.contains(&SubtaskId(0))));
    released.store(true, Ordering::SeqCst);
    drop((prepared, pool));
    assert_eq!(installs.load(Ordering::SeqCst), 5 * WORKERS);
}

#[test]
fn progress_is_told_for_every_layer() {
    let (model, images) = lenet(1);
    let mut seen = Vec::new();
    let (pool, _) = pool(&[]);
    let prepared = model
        .prepare_observed(&pool, &options(), &mut |p| seen.push((p.done, p.total, p.layer.to_owned())))
        .unwrap();
    prepared.run_observed(&[images], &mut |p| seen.push((p.done, p.total, p.layer.to_owned()))).unwrap();
    let layers = ["conv1", "conv2", "conv3"].iter().enumerate();
    let once: Vec<_> = layers.map(|(i, name)| (i + 1, 3, (*name).to_owned())).collect();
    assert_eq!(seen, [once.clone(), once].concat());
}

#[test]
fn options_that_no_layer_can_have_are_refused() {
    let (model, _) = lenet(1);
    let (pool, _) = pool(&[]);
    let refused = |layer: LayerOptions| {
        let error = model.prepare(&pool, &ModelOptions { layer, ..ModelOptions::default() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
        error.to_string()
    };
    assert!(refused(LayerOptions::default().deadline(Duration::ZERO)).contains("deadline"));
    assert!(refused(LayerOptions::default().tolerate(6)).contains("LayerOptions::tolerate"));
    assert!(refused(LayerOptions::default().partitions(3, 4)).contains('3'));
    assert!(refused(LayerOptions::default().partitions(8, 8)).contains("is 6 where at least 16"));
}

/// Bytes changed, removed or duplicated anywhere give an error or a model, never a panic or a hang.
#[test]
fn tampered_files_are_refused_or_run() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (pool, _) = pool(&[]);
    let images = lenet(1).1;
    // The structure (names, sizes, attributes) lies between the weights and at both ends.
    let structure: Vec<usize> = (0..LENET5.len())
        .filter(|at| {
            LENET5[at.saturating_sub(8)..].iter().take(16).filter(|b| b.is_ascii_graphic()).count() > 9
        })
        .collect();
    let (mut ran, mut refused) = (0, 0);
    for round in 0..400 {
        let mut bytes = LENET5.to_vec();
        for _ in 0..=round % 4 {
            let at = structure[rng.random_range(0..structure.len())].min(bytes.len() - 1);
            match round % 3 {
                0 => bytes[at] = rng.next_u32().to_le_bytes()[0],
                1 => drop(bytes.remove(at)),
                _ => bytes[at] ^= 1 << rng.random_range(0..8),
            }
        }
        let attempt = || -> Result<()> {
            let mut model = Model::from_bytes("tampered", &bytes)?;
            let inputs: Vec<String> = model.inputs().iter().map(|i| i.name.clone()).collect();
            for name in &inputs {
                model = model.with_input_shape(name, &[1, 1, 32, 32])?;
            }
            let prepared = model.prepare(&pool, &options())?;
            prepared.run(&vec![images.clone(); inputs.len()]).map(drop)
        };
        match attempt() {
            Ok(()) => ran += 1,
            Err(error) => {
                let text = error.to_string();
                // A changed weight may be so large that the sums overflow.
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::BadInput | ErrorKind::Refused), "round {round}: {text}");
                assert!(!text.contains('\n'), "{text}");
                refused += 1;
            }
        }
    }
    assert!(ran > 20 && refused > 100, "{ran} ran, {refused} refused");
}
