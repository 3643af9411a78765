//! Parts of models on other machines: the same outputs, files sent once, cancellation, lost machines, limits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use fcdcc::array::{DType, Values, WireFormat};
use fcdcc::cluster::wire::{Answer, Request, pack};
use fcdcc::cluster::{Cluster, Endpoint, ServeOptions, WorkerServer};
use fcdcc::engine::{ReplicatedOptions, ReplicatedPart};
use fcdcc::scheduler::ReplicaPolicy;
use fcdcc::worker::{PartArray, PartFile, PartKey, PartSignature};
use fcdcc::{Audit, CancelToken, CpuWorker, Error, Pool};
use fcdcc_test_support::fleet::{
    self, endpoint, master, pool_of, server, serving, until, usable, workers, workers_sending,
};
use fcdcc_test_support::parts::{Affine, compiler};
use fcdcc_test_support::{every_row, relative_l2};

use crate::garbage::{answer, impostor, info};

const SMALL: Affine = Affine { a: 2.0, b: 1.0, elems: 100, millis: 0 };
/// Its arrays of 600 kB are sent in chunks.
const LARGE: Affine = Affine { a: -3.0, b: 0.5, elems: 150_000, millis: 0 };
const KEY: PartKey = PartKey(1 << 60);

fn lending(name: &str, at: &Endpoint, count: usize) -> WorkerServer {
    lending_with(&serving(name, at), count)
}

fn lending_with(options: &ServeOptions, count: usize) -> WorkerServer {
    WorkerServer::start(CpuWorker::fleet_with_parts(count, &compiler()), options).unwrap()
}

fn install(pool: &Pool, file: &PartFile, audit: Audit) -> ReplicatedPart {
    let policy = ReplicaPolicy { deadline: fleet::SOON, ..ReplicaPolicy::default() };
    let options = ReplicatedOptions { tolerate: 0, policy, audit, ..ReplicatedOptions::default() };
    ReplicatedPart::install(pool, file, &options).unwrap()
}

fn numbers(values: &Values) -> &[f32] {
    values.as_slice().unwrap()
}

#[test]
fn parts_give_the_same_outputs_there_in_every_format() {
    let at = endpoint();
    let cluster = master(&at);
    let _servers = [lending("alpha", &at, 1), lending("beta", &at, 1)];
    for (format, most) in [(WireFormat::Full, 0.0), (WireFormat::F16, 1e-3), (WireFormat::Bf16, 1e-2)] {
        let pool = pool_of(workers_sending(&cluster, 2, format));
        for what in [SMALL, LARGE] {
            // Both compute each run, and agree.
            let part = install(&pool, &what.file(), Audit::Detect);
            for seed in 0..2 {
                let inputs = what.inputs(seed);
                let run = part.run(Arc::clone(&inputs), None, &CancelToken::new()).unwrap();
                assert!(run.report.confirmed, "{:?}", run.report);
                for (got, want) in run.outputs.iter().zip(&what.outputs(&inputs)) {
                    let error = relative_l2(numbers(got), numbers(want));
                    assert!(error <= most && (error > 0.0) == (most > 0.0), "{format}: {error}");
                }
            }
        }
    }
}

#[test]
fn the_file_is_sent_once_to_each_machine_and_kept_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let at = endpoint();
    let cluster = master(&at);
    let cached = || {
        let cache = Some((folder.path().to_owned(), 1 << 30));
        lending_with(&ServeOptions { cache, ..serving("alpha", &at) }, 3)
    };
    let first = cached();
    let pool = pool_of(workers(&cluster, 3));
    let file = SMALL.file_with(3 << 20);
    let part = install(&pool, &file, Audit::Off);
    assert_eq!(part.holders().len(), 3);
    let sent = |server: &WorkerServer| server.traffic().received_bytes as f64 / file.bytes.len() as f64;
    assert!((0.99..1.1).contains(&sent(&first)), "{} times the file", sent(&first));
    // Each device has its own memory; the file goes after a while.
    let used = first.info().memory_used_bytes;
    assert!((3 * file.memory_bytes..8 * file.memory_bytes).contains(&used), "{used}");
    let content = fcdcc::cluster::wire::ContentId::of_part(&file.bytes);
    until("it is on disk", || folder.path().join(format!("{content}.filters")).exists());
    drop(first);
    until("the loss is seen", || {
        // The result does not matter: a run must notice the loss.
        let _ = part.run(SMALL.inputs(1), None, &CancelToken::new());
        part.holders().is_empty()
    });
    let second = cached();
    until("the workers are back with the part", || part.holders().len() == 3 && usable(&pool) == 3);
    assert!(sent(&second) < 0.1, "{} times the file", sent(&second));
    part.run(SMALL.inputs(1), None, &CancelToken::new()).unwrap();
}

#[test]
fn a_machine_may_die_in_the_middle_and_gets_its_parts_when_it_is_back() {
    let at = endpoint();
    let cluster = master(&at);
    let _alpha = lending("alpha", &at, 1);
    let slow = Affine { millis: 200, ..SMALL };
    let beta = lending("beta", &at, 1);
    let pool = pool_of(workers(&cluster, 2));
    let part = install(&pool, &slow.file(), Audit::Off);
    assert_eq!(part.holders().len(), 2);
    let run = |part: &ReplicatedPart, seed| {
        let inputs = slow.inputs(seed);
        let run = part.run(Arc::clone(&inputs), None, &CancelToken::new()).unwrap();
        assert_eq!(run.outputs, slow.outputs(&inputs));
        run.report
    };
    let reports = std::thread::scope(|scope| {
        let part = &part;
        let runs: Vec<_> = (0..2).map(|seed| scope.spawn(move || run(part, seed))).collect();
        std::thread::sleep(Duration::from_millis(60));
        drop(beta);
        runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    // Whichever worker was asked first, the outputs were right.
    assert!(reports.iter().all(|report| report.worker.is_some()), "{reports:#?}");
    let _again = lending("beta", &at, 1);
    until("it holds the part again", || part.holders().len() == 2);
    until("it computes again", || {
        let host = |name: &str| pool.workers().find(|info| info.name == name).unwrap().host.clone();
        std::thread::scope(|scope| {
            let part = &part;
            let runs: Vec<_> = (0..2).map(|seed| scope.spawn(move || run(part, seed))).collect();
            let reports: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
            reports.iter().any(|report| host(report.worker.as_deref().unwrap()) == "beta")
        })
    });
}

#[test]
fn what_a_machine_refuses_it_says_and_it_stays_usable() {
    let at = endpoint();
    let cluster = master(&at);
    let small = ServeOptions { memory_bytes: 1 << 20, ..serving("alpha", &at) };
    let alpha = lending_with(&small, 1);
    let mut worker = workers(&cluster, 1).remove(0);
    let refused = |worker: &mut Box<dyn fcdcc::Worker>, file: &PartFile| {
        worker.install_part(KEY, file).unwrap_err().to_string()
    };
    let other = PartFile { bytes: Arc::from(*b"something else"), memory_bytes: 1 };
    for (file, words) in [
        (other, "no affine function"),
        (SMALL.file_with(2 << 20), "more than fit"),
        (PartFile { memory_bytes: u64::MAX, ..SMALL.file() }, "more than fit"),
        (PartFile { bytes: Arc::from([]), memory_bytes: 1 }, "1 to 17179869184 bytes"),
        // Its outputs are larger than may travel.
        (Affine { elems: 1 << 40, ..SMALL }.file_with(0), "more than fit"),
        (PartFile { memory_bytes: 9, ..Affine { elems: 1 << 40, ..SMALL }.file() }, "travel as one"),
    ] {
        let error = refused(&mut worker, &file);
        assert!(error.contains(words), "{error}");
    }
    // A part that no master holds makes room for the next.
    for (a, padding) in [(1.0, 300_000), (2.0, 300_000), (3.0, 300_000)] {
        let part = Affine { a, ..SMALL };
        worker.install_part(KEY, &part.file_with(padding)).unwrap();
        let inputs = part.inputs(3);
        assert_eq!(worker.run_part(KEY, &inputs, &CancelToken::new()).unwrap(), part.outputs(&inputs));
        assert!(alpha.info().memory_used_bytes <= 1 << 20);
    }
    let bad = worker.run_part(KEY, &[Values::F32(vec![1.0])], &CancelToken::new());
    assert!(matches!(bad, Err(Error::Mismatch { .. })));
    worker.remove_part(KEY);
    let gone = worker.run_part(KEY, &SMALL.inputs(1), &CancelToken::new()).unwrap_err().to_string();
    assert!(gone.contains("holds no part"), "{gone}");

    // Cancelling ends a run at once, and the device is free for the next one.
    worker.install_part(KEY, &Affine { millis: 60_000, ..SMALL }.file()).unwrap();
    let cancel = CancelToken::new();
    let started = Instant::now();
    let result = std::thread::scope(|scope| {
        let run = scope.spawn(|| worker.run_part(KEY, &SMALL.inputs(1), &cancel));
        std::thread::sleep(Duration::from_millis(50));
        cancel.cancel();
        run.join().unwrap()
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    worker.install_part(KEY, &SMALL.file()).unwrap();
    worker.run_part(KEY, &SMALL.inputs(1), &CancelToken::new()).unwrap();
    assert!(started.elapsed() < fleet::SOON);
    drop((worker, alpha));

    let _plain = server("plain", &at, 1);
    let mut worker = workers(&cluster, 1).remove(0);
    let error = refused(&mut worker, &SMALL.file());
    assert!(error.contains("no compiler of parts of models"), "{error}");
}

#[test]
fn outputs_of_impostors_are_not_believed() {
    let array = |shape: &[usize]| PartArray { dtype: DType::F32, shape: shape.to_vec() };
    let signature =
        |shape: &[usize]| PartSignature { inputs: vec![array(&[1, 100]); 2], outputs: vec![array(shape)] };
    let rows = [
        ("huge", pack(&Answer::PartInstalled { signature: signature(&[usize::MAX, 2]) }), "travel as one"),
        ("other", pack(&Answer::Installed), "it answers Installed"),
        ("done", pack(&Answer::PartInstalled { signature: signature(&[4]) }), "did not come"),
    ];
    every_row(rows, |(name, installed, words)| {
        let at = endpoint();
        let cluster: Cluster = master(&at);
        let evil = impostor(
            &at,
            name,
            move || pack(&Answer::Info(Box::new(info(name, 7)))),
            move |query, request| match request {
                Request::InstallPart { .. } => answer(query, installed.clone(), Vec::new()),
                Request::Chunk { .. } => {
                    answer(query, pack(&Answer::Ack { received: 0, at_us: 0 }), Vec::new());
                }
                _ => answer(query, pack(&Answer::Done), Vec::new()),
            },
        );
        let mut worker = workers(&cluster, 1).remove(0);
        let error = worker
            .install_part(KEY, &SMALL.file())
            .and_then(|_| worker.run_part(KEY, &SMALL.inputs(1), &CancelToken::new()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
        drop((worker, evil));
    });
}
