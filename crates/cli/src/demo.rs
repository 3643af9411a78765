//! `fcdcc demo`: LeNet-5 reads handwritten digits while workers straggle; compares with the same model uncoded.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use fcdcc::files::{self, Output};
use fcdcc::internal::digits::{DIGITS, LABELS, MODEL};
use fcdcc::model::{Model, ModelOptions, Tensor};
use fcdcc::worker::{FaultSpec, inject};
use fcdcc::{CodeKind, Error, LayerOptions, LayerReport, Pool, Report, Result};
use ndarray::{Array3, Array4, ArrayD, Axis, Slice};

use super::kept_rates::{Calibrate, Measuring};
use super::layers::Summary;
use super::ledger::Ledger;
use super::npy::Npy;
use super::options::Backend;
use super::progress::Bar;
use super::{Console, arrays, decode, pool, print};

const WORKERS: usize = 6;
/// Two of the six workers answer each task late.
const FAULT: &str = "random:2:delay=200ms";
/// Number of digits in a batch.
const BATCH: usize = 90;
/// Number of digits that are printed.
const SHOWN: usize = 4;
/// Side of the model's input.
const SIDE: usize = 32;

/// LeNet-5 classifies 450 handwritten digits over six coded workers while two of them straggle; then the same model
/// uncoded, over equally many workers with the same faults, and whole on this machine.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc demo --fault random:2:crash\n  \
    fcdcc demo --write . && fcdcc run lenet5.onnx --input digit.png --top 3")]
pub(crate) struct DemoArgs {
    /// Who computes
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// What goes wrong (may be repeated) [default: random:2:delay=200ms]
    #[arg(long, value_name = "SPEC")]
    fault: Vec<FaultSpec>,
    /// Which workers are hit
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Write a machine-readable report
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Also write the model, digits and some filters to this folder, to try `run` and `conv` on
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

/// The result of running the model over all digits.
struct Outcome {
    logits: Vec<f64>,
    summary: Summary,
    /// Reports of every layer of every run.
    reports: Vec<LayerReport>,
    time: Duration,
}

pub(crate) fn run(args: &DemoArgs, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    let report = args.report.as_ref().map(|path| ledger.output("--report", path)).transpose()?;
    let material = args.write.as_ref().map(|folder| Material::plan(folder, &mut ledger)).transpose()?;
    let console = console.beside(&ledger);
    let out = |line: std::fmt::Arguments<'_>| if console.tables { print::out(line) } else { Ok(()) };
    let digits = read_digits()?;
    let labels = read::<ndarray::Ix1>(LABELS)?.to_vec();
    let images = enlarge(&digits);
    if let Some(material) = material {
        material.write(&images)?;
    }
    let model =
        Model::from_bytes("lenet5.onnx", MODEL)?.with_input_shape("image", &[BATCH, 1, SIDE, SIDE])?;
    let faults = if args.fault.is_empty() { vec![FAULT.parse()?] } else { args.fault.clone() };
    let workers = |console: Console| -> Result<Pool> {
        let kept = Measuring { how: Calibrate::Auto, unknown: false };
        let workers = pool::from_backend(args.backend, None, WORKERS, kept, console)?;
        pool::start(inject(workers, &faults, args.seed)?, console)
    };
    let pool = workers(console)?;

    let faulty: Vec<String> = args.fault.iter().map(ToString::to_string).collect();
    out(format_args!(
        "LeNet-5 reads {} handwritten digits it has never seen, over {WORKERS} workers; any 4 of them are enough.\n\
         Faults: {}.\n",
        labels.len(),
        if faulty.is_empty() {
            "two of the six answer every task 200 ms late".to_owned()
        } else {
            faulty.join(", ")
        }
    ))?;
    let coded = classify(&model, CodeKind::Crme, pool, &images, console)?;
    if console.tables {
        show(&digits, &coded.logits)?;
        coded.summary.table()?;
        print::out("")?;
        coded.summary.workers()?;
        print::out("")?;
    }

    let uncoded = classify(&model, CodeKind::Uncoded, workers(Console::new(true))?, &images, console)?;
    let started = Instant::now();
    let host = whole(&model, &images)?;
    let host_time = started.elapsed();
    out(format_args!("{:28} {:>9}  {:>9}  identical predictions", "", "time", "accuracy"))?;
    let right = |logits: &[f64]| {
        predictions(logits).iter().zip(&labels).filter(|(p, l)| **p == usize::from(**l)).count()
    };
    let percent = |count: usize| 100.0 * count as f64 / labels.len() as f64;
    let row = |what: &str, time: Duration, logits: &[f64]| {
        let same =
            predictions(logits).iter().zip(&predictions(&coded.logits)).filter(|(a, b)| a == b).count();
        out(format_args!(
            "{what:28} {:>7.2} s  {:>7.2} %  {same} of {}",
            time.as_secs_f64(),
            percent(right(logits)),
            labels.len()
        ))
    };
    row("coded, these workers", coded.time, &coded.logits)?;
    row("uncoded, these workers", uncoded.time, &uncoded.logits)?;
    row("whole, on this machine", host_time, &host)?;
    let identical = predictions(&coded.logits) == predictions(&uncoded.logits);
    let deviation = print::relative_l2(&coded.logits, &host);
    out(format_args!(
        "\naccuracy {:.2} % ({} of {} digits), predictions {} those of the uncoded run\n\
         an uncoded run loses {:.2} s to the same faults; coded and whole outputs differ by {deviation:.1e} (relative L2)",
        percent(right(&coded.logits)),
        right(&coded.logits),
        labels.len(),
        if identical { "identical to" } else { "DIFFERENT from" },
        uncoded.time.saturating_sub(coded.time).as_secs_f64()
    ))?;
    let condition = coded.summary.condition();
    if let Some(place) = report {
        let total_ms = coded.time.as_secs_f64() * 1e3;
        let report = Report::new("demo", total_ms, coded.reports);
        arrays::write_report(place, &report)?;
    }
    // A demonstration with wrong results must not look successful.
    let tolerance = 1e-3;
    if deviation.is_nan() || deviation > tolerance || predictions(&coded.logits) != predictions(&host) {
        return Err(Error::over_tolerance(deviation, tolerance, condition));
    }
    Ok(())
}

/// Runs all images through the model, its convolutions coded by `code`.
fn classify(
    model: &Model,
    code: CodeKind,
    pool: Pool,
    images: &Array4<f32>,
    console: Console,
) -> Result<Outcome> {
    // Uncoded runs without hedging, which would hide the stragglers.
    let hedge = LayerOptions::default().policy.hedge.filter(|_| code != CodeKind::Uncoded);
    let layer = LayerOptions { code, ..LayerOptions::default() }.hedge(hedge);
    let options = ModelOptions { layer, ..ModelOptions::default() };
    let prepared = {
        let bar = Bar::new(console, "preparing");
        model.prepare_observed(&pool, &options, &mut |p| bar.step(p))?
    };
    let bar = Bar::new(console, if code == CodeKind::Crme { "coded" } else { "uncoded" });
    let started = Instant::now();
    let (mut summary, mut reports, mut logits) = (Summary::default(), Vec::new(), Vec::new());
    for batch in batches(images) {
        let run = prepared.run_observed(&[batch], &mut |p| bar.step(p))?;
        logits.extend(run.outputs[0].tensor.to_f64());
        summary.add(&run.layers);
        reports.extend(run.layers);
    }
    Ok(Outcome { logits, summary, reports, time: started.elapsed() })
}

/// Runs the model uncoded on this machine; shares no code with the coded convolutions.
fn whole(model: &Model, images: &Array4<f32>) -> Result<Vec<f64>> {
    let host = model.on_host()?;
    let mut logits = Vec::new();
    for batch in batches(images) {
        logits.extend(host.run(&[batch])?[0].tensor.to_f64());
    }
    Ok(logits)
}

fn batches(images: &Array4<f32>) -> impl Iterator<Item = Tensor> {
    images.axis_chunks_iter(Axis(0), BATCH).map(|batch| Tensor::from(batch.to_owned().into_dyn()))
}

fn predictions(logits: &[f64]) -> Vec<usize> {
    let largest =
        |scores: &[f64]| (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap_or(0);
    logits.chunks(10).map(largest).collect()
}

/// Prints the first digits with their predictions below. A pixel is two characters wide, because characters are about
/// twice as high as wide.
fn show(digits: &Array3<u8>, logits: &[f64]) -> Result<()> {
    const INK: &[u8; 5] = b" .+%@";
    let first = digits.slice_axis(Axis(0), Slice::from(..SHOWN));
    for row in 0..8 {
        let line: Vec<String> = first
            .outer_iter()
            .map(|digit| {
                digit.row(row).iter().flat_map(|v| [char::from(INK[usize::from(*v) / 4]); 2]).collect()
            })
            .collect();
        print::out(format_args!("  {}", line.join("  ").trim_end()))?;
    }
    let said: Vec<String> = predictions(logits).iter().take(SHOWN).map(|p| format!("{p:^16}")).collect();
    print::out(format_args!("  {}  ...\n", said.join("  ").trim_end()))
}

fn read<D: ndarray::Dimension>(bytes: &[u8]) -> Result<ndarray::Array<u8, D>> {
    let bad = |cause| Error::File { path: "the built-in digits".to_owned(), cause, input: false };
    let array = Npy::open(bytes, None, &bad)?.decode::<u8, 1>(&bad, |[byte], _| Ok(byte))?;
    array.into_dimensionality().map_err(|e| bad(e.to_string()))
}

fn read_digits() -> Result<Array3<u8>> {
    read(DIGITS)
}

/// Scales `[N, 8, 8]` of 0 to 16 to `[N, 1, 32, 32]` of 0 to 1, as for the model's training: bilinear by a factor of 4,
/// with half-pixel centres, clamped at the edges.
fn enlarge(digits: &Array3<u8>) -> Array4<f32> {
    const OWN: usize = 8;
    // For output pixel i: the two neighbouring pixels of the digit, and the weight of the second.
    let between: Vec<(usize, usize, f32)> = (0..SIDE)
        .map(|i| {
            let at = ((i as f32 + 0.5) / (SIDE / OWN) as f32 - 0.5).clamp(0.0, (OWN - 1) as f32);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..7")]
            let low = at.floor() as usize;
            (low, (low + 1).min(OWN - 1), at - low as f32)
        })
        .collect();
    Array4::from_shape_fn((digits.shape()[0], 1, SIDE, SIDE), |(n, _, row, column)| {
        let ((top, bottom, down), (left, right, across)) = (between[row], between[column]);
        let ink = |r: usize, c: usize| f32::from(digits[[n, r, c]]) / 16.0;
        let along = |r: usize| ink(r, left) * (1.0 - across) + ink(r, right) * across;
        along(top) * (1.0 - down) + along(bottom) * down
    })
}

/// Output files: the model, the digits as an array and one as a picture, names of the classes, filters for `fcdcc conv`.
struct Material([Output; 5]);

impl Material {
    fn plan(folder: &Path, ledger: &mut Ledger) -> Result<Self> {
        if files::is_standard(folder) || !folder.is_dir() {
            let cause = "is no folder: create it first".to_owned();
            return Err(Error::File { path: folder.display().to_string(), cause, input: true });
        }
        let mut place = |name: &str| ledger.output_within("--write", folder, name);
        Ok(Self([
            place("lenet5.onnx")?,
            place("labels.txt")?,
            place("digits.npy")?,
            place("edges.npy")?,
            place("digit.png")?,
        ]))
    }

    fn write(self, images: &Array4<f32>) -> Result<()> {
        let Self([model, labels, digits, filters, digit]) = self;
        arrays::write_bytes(model, MODEL)?;
        let classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
        arrays::write_bytes(labels, format!("{}\n", classes.join("\n")).as_bytes())?;
        arrays::write_array(digits, &images.to_owned().into_dyn())?;
        arrays::write_array(filters, &edges())?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pixels are 0 to 1")]
        let pixels: Vec<u8> = images.iter().take(SIDE * SIDE).map(|v| (v * 255.0).round() as u8).collect();
        let side = u32::try_from(SIDE).expect("a digit is small");
        let png = decode::grey_png(side, side, &pixels).map_err(|e| Error::File {
            path: digit.name().to_owned(),
            cause: e.to_string(),
            input: false,
        })?;
        arrays::write_bytes(digit, &png)
    }
}

/// Eight filters of 1x5x5 that detect edges in eight directions.
fn edges() -> ArrayD<f32> {
    Array4::from_shape_fn((8, 1, 5, 5), |(filter, _, row, column)| {
        let angle = std::f32::consts::FRAC_PI_4 * filter as f32;
        ((column as f32 - 2.0) * angle.cos() + (row as f32 - 2.0) * angle.sin()) / 25.0
    })
    .into_dyn()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_digits_are_what_the_program_takes_them_for() {
        let (digits, labels) = (read_digits().unwrap(), read::<ndarray::Ix1>(LABELS).unwrap());
        assert_eq!((digits.shape(), labels.len()), (&[450, 8, 8][..], 450));
        assert!(digits.iter().all(|v| *v <= 16) && labels.iter().all(|l| *l < 10));
        assert_eq!(digits.shape()[0] % BATCH, 0);
    }

    #[test]
    fn enlarging_interpolates_between_pixel_centres() {
        let mut digit = Array3::zeros((1, 8, 8));
        digit[[0, 0, 0]] = 16;
        let image = enlarge(&digit);
        // The first two rows and columns lie outside the first centre and are clamped; then four pixels fade.
        let first: Vec<f32> = image.slice(ndarray::s![0, 0, 0, ..8]).to_vec();
        assert_eq!(first, [1.0, 1.0, 0.875, 0.625, 0.375, 0.125, 0.0, 0.0]);
        assert_eq!(image[[0, 0, 2, 3]], 0.875 * 0.625);
        assert_eq!(enlarge(&Array3::from_elem((1, 8, 8), 4)), Array4::from_elem((1, 1, SIDE, SIDE), 0.25));
    }
}
