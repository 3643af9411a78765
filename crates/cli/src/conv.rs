//! `fcdcc conv`: one coded convolution of arrays on disk.

use std::path::PathBuf;

use clap::Args;
use fcdcc::files::Output;
use fcdcc::{CodedConv, ConvParams, Element, Error, Report, Result};
use ndarray::{ArrayD, Ix1};

use super::ledger::Ledger;
use super::npy::Stored;
use super::options::{LayerArgs, Precision};
use super::{Console, arrays, pool, print};

/// Compute one coded convolution (semantics of ONNX Conv) of .npy arrays.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    fcdcc conv --input x.npy --weight w.npy --output y.npy --stride 4 --workers 20 --partitions 8,8 \
    --fault random:4:crash\n  \
    fcdcc conv --input x.npy --weight w.npy --bias b.npy --output y.npy --padding 1 --backend cpu --report r.json")]
pub(crate) struct ConvArgs {
    /// Input, [batch, channels, spatial...] with 1, 2 or 3 spatial axes; .npy or .npz, - for standard input
    #[arg(long, value_name = "X.npy")]
    input: PathBuf,
    /// Filters, [out, channels/groups, kernel...]
    #[arg(long, value_name = "W.npy")]
    weight: PathBuf,
    /// Bias, [out]
    #[arg(long, value_name = "B.npy")]
    bias: Option<PathBuf>,
    /// Where the output goes, [batch, out, spatial...]; - for standard output
    #[arg(long, value_name = "Y.npy")]
    output: PathBuf,
    /// One number or one an axis [default: 1]
    #[arg(long, value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    stride: Vec<usize>,
    /// One number, one an axis, or begins then ends [default: 0]
    #[arg(long, value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    padding: Vec<usize>,
    /// One number or one an axis [default: 1]
    #[arg(long, value_delimiter = ',', num_args = 1.., allow_negative_numbers = true)]
    dilation: Vec<usize>,
    /// Groups of channels
    #[arg(long, default_value_t = 1)]
    groups: usize,
    #[command(flatten)]
    layer: LayerArgs,
}

pub(crate) fn run(args: &ConvArgs, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    ledger.input("--input", &args.input)?;
    ledger.input("--weight", &args.weight)?;
    if let Some(bias) = &args.bias {
        ledger.input("--bias", bias)?;
    }
    let output = ledger.output("--output", &args.output)?;
    let report = pool::files(&args.layer, &mut ledger)?;
    let console = console.beside(&ledger);
    match args.layer.precision.unwrap_or_default() {
        Precision::F32 => run_in::<f32>(args, output, report, console),
        Precision::F64 => run_in::<f64>(args, output, report, console),
    }
}

fn run_in<T: Element + Stored>(
    args: &ConvArgs,
    output: Output,
    report: Option<Output>,
    console: Console,
) -> Result<()> {
    let mut options = args.layer.layer_options("conv")?;
    let input: ArrayD<T> = arrays::read_array(&args.input, &["input", "x"])?;
    let weight: ArrayD<T> = arrays::read_array(&args.weight, &["weight", "w"])?;
    let bias = match &args.bias {
        None => None,
        Some(path) => {
            let bias: ArrayD<T> = arrays::read_array(path, &["bias", "b"])?;
            let shape = bias.shape().to_vec();
            Some(bias.into_dimensionality::<Ix1>().map_err(|_| {
                Error::mismatch(
                    "rank of the bias",
                    format!("{} (shape {shape:?})", shape.len()),
                    1,
                    "give [out]",
                )
            })?)
        }
    };
    let params = ConvParams {
        stride: args.stride.clone(),
        padding: args.padding.clone(),
        dilation: args.dilation.clone(),
        groups: args.groups,
    };
    // Wrong shapes are refused before devices are opened.
    fcdcc::ConvShape::new(input.shape(), weight.shape(), &params)?;
    // A single layer does not justify measuring rates.
    let pool;
    (pool, options.rates) = pool::assemble(&args.layer, T::DTYPE, false, console)?;
    let bias = bias.as_ref().map(|b| b.view());
    let layer = CodedConv::builder(&pool, input.shape(), weight.view())
        .bias(bias)
        .params(params.clone())
        .options(options)
        .prepare()?;
    pool::tell_refusals(&pool, console);
    let run = layer.try_run(input.view())?;
    if let Ok(result) = &run.output {
        arrays::write_array(output, result)?;
    }
    let about = Report::new("conv", run.report.total_ms, vec![run.report]);
    // A failed run has a report too: it names the late workers.
    if let Some(report) = report {
        arrays::write_report(report, &about)?;
    }
    let output = run.output?;
    if console.tables {
        print::layer_table(&about.layers[0])?;
        print::out(format_args!("  {} {:?} {}", args.output.display(), output.shape(), T::DTYPE))?;
    }
    Ok(())
}
