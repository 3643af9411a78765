//! `fcdcc demo`: a real layer on a picture while workers die, against the same layer uncoded.

use std::f32::consts::{PI, TAU};
use std::time::Duration;

use clap::Args;
use fcdcc::conv::conv_local;
use fcdcc::worker::{FaultSpec, inject};
use fcdcc::{
    CodeKind, CodedConv, ConvParams, ConvShape, Error, LayerOptions, OnShortfall, Pool, Report, Result,
};
use ndarray::{Array4, ArrayD};

use super::options::Backend;
use super::{Console, files, pool, print};

/// Subtasks of the demonstration, and how many of them die.
const WORKERS: usize = 20;
const KILLED: usize = 4;

/// The first layer of AlexNet (3x227x227, 96 filters 11x11, stride 4) on a picture, over 20 coded workers of which
/// four are killed; then the same layer uncoded, over equally many workers with the same faults.
#[derive(Args)]
#[command(after_help = "Example: fcdcc demo --backend cpu --seed 7")]
pub(crate) struct DemoArgs {
    /// Who computes
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// Which workers die
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Write a machine-readable report
    #[arg(long, value_name = "FILE.json")]
    report: Option<std::path::PathBuf>,
    /// Also write the picture and the filters, x.npy and w.npy, into this folder to try `fcdcc conv` on
    #[arg(long, value_name = "DIR")]
    write: Option<std::path::PathBuf>,
}

pub(crate) fn run(args: &DemoArgs, console: Console) -> Result<()> {
    if let Some(path) = &args.report {
        files::check_writable(path)?;
    }
    let (picture, filters) = (picture(227).into_dyn(), filters().into_dyn());
    if let Some(folder) = &args.write {
        let arrays =
            [("x.npy", &picture), ("w.npy", &filters)].map(|(name, array)| (folder.join(name), array));
        for (path, _) in &arrays {
            files::check_writable(path)?;
        }
        for (path, array) in arrays {
            files::write_array(&path, array)?;
        }
    }
    let params = ConvParams::default().stride([4]);
    let shape = ConvShape::new(picture.shape(), filters.shape(), &params)?;
    let fault: FaultSpec = format!("random:{KILLED}:crash").parse()?;
    let pool = |code: CodeKind| -> Result<Pool> {
        let quiet = Console { quiet: console.quiet || code == CodeKind::Uncoded };
        let workers = pool::from_backend(args.backend, None, WORKERS, quiet)?;
        Pool::new(inject(workers, std::slice::from_ref(&fault), args.seed)?)
    };
    let options = |code: CodeKind| LayerOptions {
        name: "AlexNet conv1".to_owned(),
        code,
        on_shortfall: OnShortfall::Fail,
        deadline: Duration::from_secs(30),
        ..LayerOptions::default()
    };

    print::out(format_args!(
        "A picture (3x227x227) through the first layer of AlexNet (96 filters 11x11, stride 4).\n\
         {WORKERS} workers, {KILLED} of them are killed at their first task.\n"
    ))?;
    let coded_pool = pool(CodeKind::Crme)?;
    let coded = options(CodeKind::Crme).partitions(8, 8);
    let layer = CodedConv::prepare(&coded_pool, picture.shape(), filters.view(), None, &params, coded)?;
    let run = layer.run(picture.view())?;
    print::layer_table(&run.report)?;

    let truth = local(&shape, &picture, &filters)?;
    let deviation = relative_l2(run.output.iter(), truth.iter());
    print::out(format_args!(
        "  deviation from the same layer computed whole on this machine: {deviation:.1e} (relative L2)\n"
    ))?;
    if deviation.is_nan() || deviation > 1e-4 {
        return Err(Error::ErrorBound {
            bound: deviation,
            tolerance: 1e-4,
            condition: run.report.condition_number,
        });
    }

    let uncoded_pool = pool(CodeKind::Uncoded)?;
    let uncoded = options(CodeKind::Uncoded);
    let layer = CodedConv::prepare(&uncoded_pool, picture.shape(), filters.view(), None, &params, uncoded)?;
    let verdict = match layer.run(picture.view()) {
        Ok(_) => "survived".to_owned(),
        Err(Error::Shortfall { needed, total, waited_ms, .. }) => {
            format!("lost: it needs {needed} of {total} results (known after {waited_ms} ms)")
        }
        Err(other) => return Err(other),
    };
    print::out(format_args!(
        "The same layer uncoded, over {WORKERS} workers with the same faults, is {verdict}."
    ))?;
    if let Some(path) = &args.report {
        let total_ms = run.report.total_ms;
        files::write_report(
            path,
            &Report { schema: 1, command: "demo".to_owned(), total_ms, layers: vec![run.report] },
        )?;
    }
    Ok(())
}

fn local(shape: &ConvShape, input: &ArrayD<f32>, weight: &ArrayD<f32>) -> Result<Vec<f32>> {
    let flat = |array: &ArrayD<f32>| array.iter().copied().collect::<Vec<f32>>();
    conv_local(shape, &flat(input), &flat(weight), None, 1, &|| false)
}

fn relative_l2<'a>(got: impl Iterator<Item = &'a f32>, want: impl Iterator<Item = &'a f32>) -> f64 {
    let (error, norm) = got.zip(want).fold((0.0, 0.0), |(error, norm), (g, w)| {
        let (g, w) = (f64::from(*g), f64::from(*w));
        (error + (g - w).powi(2), norm + w * w)
    });
    (error / norm).sqrt()
}

/// A landscape of `size` x `size` pixels in RGB, values about -0.5 to 0.5: sky, sun, hills, grass.
fn picture(size: u16) -> Array4<f32> {
    let side = usize::from(size);
    let unit = |i: usize| i as f32 / f32::from(size);
    Array4::from_shape_fn((1, 3, side, side), |(_, channel, row, col)| {
        let (x, y) = (unit(col), unit(row));
        let hill = 0.6 + 0.08 * (x * 7.0).sin() + 0.04 * (x * 19.0 + 1.0).sin();
        let near = 0.75 + 0.05 * (x * 5.0 + 2.0).sin();
        let grain = ((x * 311.7 + y * 183.3).sin() * 4_375.5).fract();
        let color = if y > near {
            [0.20 + 0.08 * grain, 0.45 + 0.15 * grain, 0.15 + 0.05 * grain]
        } else if y > hill {
            [0.30, 0.35 + 0.04 * grain, 0.45]
        } else if (x - 0.7).hypot(y - 0.25) < 0.09 {
            [1.0, 0.9, 0.5]
        } else {
            [0.45 + 0.3 * y, 0.65 + 0.2 * y, 0.95]
        };
        color[channel] - 0.5
    })
}

/// 96 filters of 3x11x11 like those the layer learns: Gabor patches of 12 orientations and 4 frequencies, in grey
/// and in opposed colours.
fn filters() -> Array4<f32> {
    Array4::from_shape_fn((96, 3, 11, 11), |(filter, channel, row, col)| {
        let angle = PI / 12.0 * (filter % 12) as f32;
        let wave = 3.0 + 2.0 * (filter / 12 % 4) as f32;
        let (x, y) = (col as f32 - 5.0, row as f32 - 5.0);
        let along = x * angle.cos() + y * angle.sin();
        let envelope = (-(x * x + y * y) / 18.0).exp();
        let color = if filter < 48 { [1.0, 1.0, 1.0] } else { [1.0, -0.5, -0.5] };
        color[channel] * envelope * (TAU * along / wave).cos() / 11.0
    })
}
