//! The effect of each scheduler policy under the same faults: the tables of docs/stragglers.md.
//!
//! `cargo bench --bench stragglers [-- TABLE...]` with TABLE among `faults`, `lies`, `uneven`, `audit`, `overhead`. Two
//! cores cannot simulate a dozen machines at full speed, so workers are paced: each computes its (small) sub-results for
//! real and delivers them at its pace. Everything else is the unmodified library.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench"
)]

use std::time::{Duration, Instant};

use fcdcc::conv::reference;
use fcdcc::worker::{CpuWorker, FaultSpec, WorkerKind, inject, intercept};
use fcdcc::{Audit, CodedConv, ConvParams, ConvShape, Error, LayerOptions, OnShortfall, Pool, Worker};
use ndarray::{ArrayD, IxDyn};

const MS: Duration = Duration::from_millis(1);

/// Workers that each deliver a sub-result in every time of their pace. The scheduler treats each as a machine of its own.
fn workers(paces: &[Duration]) -> Vec<Box<dyn Worker>> {
    let paced = |(i, pace): (usize, &Duration)| {
        let pace = *pace;
        intercept(CpuWorker::new(format!("cpu-{i}"), 1))
            .with_info(|own| (own.kind, own.host) = (WorkerKind::Remote, own.name.clone()))
            .on_execute(move |inner, task, emit| {
                let (mut due, mut late) = (Instant::now(), false);
                inner.execute(task, &mut |index, values| {
                    due += pace;
                    late |= task.cancel.sleep(due.saturating_duration_since(Instant::now()));
                    if !late {
                        emit(index, values);
                    }
                })?;
                if late { Err(Error::Cancelled) } else { Ok(()) }
            })
            .never_respawned()
            .boxed()
    };
    paces.iter().enumerate().map(paced).collect()
}

struct Layer {
    x: ArrayD<f32>,
    w: ArrayD<f32>,
    params: ConvParams,
    truth: Vec<f32>,
}

fn layer(input: &[usize], weight: &[usize]) -> Layer {
    let mut state = 1_u64;
    let mut uniform = |shape: &[usize]| {
        let len: usize = shape.iter().product();
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
        };
        ArrayD::from_shape_vec(IxDyn(shape), (0..len).map(next).collect()).unwrap()
    };
    let (x, w, params) = (uniform(input), uniform(weight), ConvParams::default().padding([1]));
    let shape = ConvShape::new(input, weight, &params).unwrap();
    let truth = reference(&shape, x.as_slice().unwrap(), w.as_slice().unwrap(), None).unwrap();
    Layer { x, w, params, truth }
}

/// Latencies in ms (sorted), runs that exceeded their own error bound, refused or failed runs.
struct Sample {
    ms: Vec<f64>,
    wrong: usize,
    refused: usize,
    failed: usize,
    mean_used: f64,
}

impl Sample {
    fn quantile(&self, q: f64) -> f64 {
        self.ms.get(((self.ms.len() as f64 * q) as usize).min(self.ms.len() - 1)).copied().unwrap_or(f64::NAN)
    }
}

fn sample(layer: &Layer, pool: &Pool, options: LayerOptions, warm: usize, runs: usize) -> Sample {
    let prepared = CodedConv::builder(pool, layer.x.shape(), layer.w.view())
        .params(layer.params.clone())
        .options(options)
        .prepare()
        .unwrap();
    let mut found = Sample { ms: Vec::new(), wrong: 0, refused: 0, failed: 0, mean_used: 0.0 };
    for run in 0..warm + runs {
        let started = Instant::now();
        let attempted = prepared.try_run(layer.x.view()).unwrap();
        let ms = started.elapsed().as_secs_f64() * 1e3;
        if run < warm {
            continue;
        }
        found.ms.push(ms);
        found.mean_used += attempted.report.used.len() as f64 / runs as f64;
        match attempted.output {
            Ok(output) => {
                let (mut error, mut norm) = (0.0, 0.0);
                for (got, want) in output.iter().zip(&layer.truth) {
                    error += f64::from(got - want).powi(2);
                    norm += f64::from(*want).powi(2);
                }
                let relative = (error / norm).sqrt();
                found.wrong += usize::from(relative.is_nan() || relative > attempted.report.error_bound);
            }
            Err(error) if error.kind() == fcdcc::ErrorKind::Refused => found.refused += 1,
            Err(_) => found.failed += 1,
        }
    }
    found.ms.sort_by(f64::total_cmp);
    found
}

/// A named change of the plain options.
type Policy = (&'static str, fn(LayerOptions) -> LayerOptions);

fn plain() -> LayerOptions {
    LayerOptions::default().hedge(None).partial(false).patience(0.0).deadline(Duration::from_secs(2))
}

const POLICIES: [Policy; 6] = [
    ("plain first-delta", |o| o),
    ("+ partial work", |o| o.partial(true)),
    ("+ hedging", |o| o.hedge(Some(0.5))),
    ("+ partial work, hedging", |o| o.partial(true).hedge(Some(0.5))),
    ("+ patience", |o| o.patience(0.1)),
    ("all (the default)", |o| o.partial(true).hedge(Some(0.5)).patience(0.1)),
];

fn table(faults: &[&str], policies: &[Policy], n: usize, partitions: (usize, usize), runs: usize) {
    let layer = layer(&[1, 4, 16, 12], &[16, 4, 3, 3]);
    for fault in faults {
        println!("\n`{fault}`, n = {n}, partitions {},{}:\n", partitions.0, partitions.1);
        println!(
            "| policy | median ms | p90 | p99 | p99 to plain | inexact | refused | failed | subtasks used |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        let mut first = None;
        for (name, policy) in policies {
            let specs: Vec<FaultSpec> =
                fault.split_whitespace().filter(|f| *f != "none").map(|f| f.parse().unwrap()).collect();
            let pool = Pool::new(inject(workers(&vec![2 * MS; n]), &specs, 11).unwrap()).unwrap();
            let options = policy(plain().partitions(partitions.0, partitions.1));
            let s = sample(&layer, &pool, options, runs / 20, runs);
            let p99 = s.quantile(0.99);
            let plain = *first.get_or_insert(p99);
            println!(
                "| {name} | {:.1} | {:.1} | {p99:.1} | {:.2} | {} | {} | {} | {:.1} |",
                s.quantile(0.5),
                s.quantile(0.9),
                p99 / plain,
                s.wrong,
                s.refused,
                s.failed,
                s.mean_used,
            );
        }
    }
}

fn uneven() {
    println!("\nHalf of 8 workers at a quarter of the speed, n = 20, partitions 8,8 (delta = 16):\n");
    println!("| | ms a layer | share of the workers' summed speed times delta/n |");
    println!("|---|---|---|");
    let layer = layer(&[1, 8, 16, 12], &[16, 8, 3, 3]);
    let paces: Vec<Duration> = (0..8).map(|i| if i % 2 == 0 { 2 * MS } else { 8 * MS }).collect();
    // Total speed in subtasks (of four sub-results) per second.
    let speed: f64 = paces.iter().map(|pace| 0.25 / pace.as_secs_f64()).sum();
    let ideal = 20.0 / speed * 1e3;
    let fixed = |o: LayerOptions| o.on_shortfall(OnShortfall::Fail);
    for (name, options, warm) in [
        ("assigned before anything was measured", fixed(plain()), 5),
        ("plain first-delta, assigned by measured speed", plain().hedge(Some(0.999)), 60),
        ("all policies", LayerOptions::default().deadline(Duration::from_secs(2)), 60),
    ] {
        let pool = Pool::new(workers(&paces)).unwrap();
        let s =
            sample(&layer, &pool, LayerOptions { subtasks: Some(20), ..options.partitions(8, 8) }, warm, 100);
        let ms = s.quantile(0.5);
        println!("| {name} | {ms:.1} | {:.1} % |", ideal / ms * 100.0);
        assert_eq!((s.wrong, s.refused, s.failed), (0, 0, 0));
    }
}

fn audit() {
    println!(
        "\n128 to 128 channels, 3x3, 56x56 on 6 CPU workers, partitions 4,4, nobody faulty, medians of interleaved runs:\n"
    );
    println!("| | results waited for | ms | to the first row |");
    println!("|---|---|---|---|");
    let layer = layer(&[1, 128, 56, 56], &[128, 128, 3, 3]);
    let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
    let prepared = |options: LayerOptions| {
        let options = options.deadline(Duration::from_mins(1));
        CodedConv::builder(&pool, layer.x.shape(), layer.w.view())
            .params(layer.params.clone())
            .options(options)
            .prepare()
            .unwrap()
    };
    let rows = [
        ("no audit", "4 of 6", prepared(plain().partitions(4, 4))),
        ("--audit detect", "5 of 6", prepared(plain().partitions(4, 4).audit(Audit::Detect))),
        ("--audit correct", "5 of 6", prepared(plain().partitions(4, 4).audit(Audit::Correct))),
    ];
    let mut times = vec![Vec::new(); rows.len()];
    for _ in 0..60 {
        for ((.., conv), times) in rows.iter().zip(&mut times) {
            let started = Instant::now();
            conv.run(layer.x.view()).unwrap();
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let medians: Vec<f64> = times
        .iter_mut()
        .map(|t| {
            t.sort_by(f64::total_cmp);
            t[t.len() / 2]
        })
        .collect();
    for ((name, waits, _), median) in rows.iter().zip(&medians) {
        println!("| {name} | {waits} | {median:.1} | {:.3} |", median / medians[0]);
    }
}

fn overhead() {
    println!("\nOne layer of almost no arithmetic on 20 CPU workers (delta = 16), everything included:\n");
    println!("| | median us | p90 |");
    println!("|---|---|---|");
    let layer = layer(&[1, 1, 8, 1], &[8, 1, 3, 3]);
    let pool = Pool::new(CpuWorker::fleet(20)).unwrap();
    let policies: [Policy; 3] =
        [POLICIES[0], POLICIES[5], ("all, --audit detect", |o| o.audit(Audit::Detect))];
    for (name, policy) in policies {
        let s = sample(&layer, &pool, policy(plain().partitions(8, 8)), 500, 4000);
        println!("| {name} | {:.0} | {:.0} |", s.quantile(0.5) * 1e3, s.quantile(0.9) * 1e3);
    }
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |table: &str| asked.is_empty() || asked.iter().any(|a| a == table);
    if wanted("faults") {
        table(&["none", "random:3:slow=5x"], &POLICIES, 12, (4, 8), 400);
        table(&["all:delay=exp(10ms)", "all:delay=exp(4ms)"], &POLICIES, 12, (4, 8), 800);
        table(&["random:5:drop"], &POLICIES, 12, (4, 8), 20);
    }
    if wanted("lies") {
        let policies: [Policy; 3] = [
            ("no audit", |o| o.partial(true).hedge(Some(0.5))),
            ("--audit detect", |o| o.audit(Audit::Detect)),
            ("--audit correct", |o| o.audit(Audit::Correct)),
        ];
        table(&["none", "random:1:corrupt=1e-3", "random:2:corrupt=1e-2"], &policies, 12, (4, 8), 200);
    }
    if wanted("uneven") {
        uneven();
    }
    if wanted("audit") {
        audit();
    }
    if wanted("overhead") {
        overhead();
    }
}
