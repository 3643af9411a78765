//! `fcdcc inspect`: shows what an ONNX file holds, and every reason why it cannot run.

use std::path::PathBuf;

use clap::Args;
use fcdcc::model::{AxisSize, InspectedLayer, Inspection, NodeName, Port, Reason};
use fcdcc::{Error, Result};
use serde::Serialize;

use super::inputs::shape_before;
use super::ledger::Ledger;
use super::print::{bytes, out, out_json};
use super::{Console, wrap};

/// Show what an ONNX file holds, and every reason why it cannot run.
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 if the file can run, 2 if it cannot; the report is printed in both cases.\n\n\
    Examples:\n  \
    fcdcc inspect resnet50.onnx\n  \
    fcdcc inspect detector.onnx --shape 1,3,640,640 --json"
)]
pub(crate) struct InspectArgs {
    /// An ONNX file
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Shape of an input, where the file leaves it open or to override it: [NAME=]SIZE,SIZE,... (may be repeated).
    /// Without it, a batch size that the file leaves open is taken as 1
    #[arg(long, value_name = "SHAPE")]
    shape: Vec<String>,
    /// Machine-readable output: one JSON object
    #[arg(long)]
    json: bool,
}

/// The JSON of `--json`.
#[derive(Serialize)]
struct InspectReport<'a> {
    schema: u32,
    command: &'static str,
    #[serde(flatten)]
    inspection: &'a Inspection,
}

/// Width of the report.
const WIDTH: usize = 80;
/// Lines of nodes below a reason.
const MOST_NODES: usize = 8;

pub(crate) fn run(args: &InspectArgs, console: Console) -> Result<()> {
    let mut ledger = Ledger::default();
    ledger.input("the model", &args.model)?;
    let shapes = args.shape.iter().map(|text| shape_before(text)).collect::<Result<Vec<_>>>()?;
    let told = Inspection::of(&args.model, &shapes)?;
    if args.json {
        out_json(&InspectReport { schema: 1, command: "inspect", inspection: &told })?;
    } else if console.tables {
        report(&told)?;
    }
    let Some(first) = told.reasons.first() else { return Ok(()) };
    let others = match told.reasons.len() - 1 + told.reasons_left_out {
        0 => String::new(),
        others => format!(" (the first of {} reasons)", others + 1),
    };
    Err(Error::Model { model: told.file.clone(), cause: format!("{}{others}", first.message).into() })
}

fn report(told: &Inspection) -> Result<()> {
    let opsets: Vec<String> = told
        .opsets
        .iter()
        .map(|o| {
            if o.domain == "ai.onnx" {
                format!("{}", o.version)
            } else {
                format!("{} of {}", o.version, o.domain)
            }
        })
        .collect();
    let mut about = format!("{}: {}", told.file, size(told.file_bytes));
    if told.ir_version > 0 {
        about = format!("{about}, IR version {}, opset {}", told.ir_version, opsets.join(", "));
    }
    if !told.producer.is_empty() {
        about = format!("{about}, written by {} {}", told.producer, told.producer_version);
    }
    paragraph(about.trim_end(), "", "  ")?;
    for (what, ports) in [("input", &told.inputs), ("output", &told.outputs)] {
        for port in ports {
            paragraph(&format!("{what} {} {} {}", port.name, port.dtype, axes(port)), "", "  ")?;
        }
    }
    operators(told)?;
    layers(&told.layers)?;
    if told.nodes > 0 {
        costs(told)?;
    }
    for file in &told.external {
        let there = file.bytes.map_or_else(|| "cannot be read".to_owned(), size);
        let tensors = format!("{} for {}", size(file.tensor_bytes), counted(file.tensors, "tensor"));
        paragraph(&format!("data in {}: {there}; needed: {tensors}", file.location), "", "  ")?;
    }
    if !told.widened.is_empty() {
        out(format_args!("computed in f32: {}", told.widened.join(" and ")))?;
    }
    for assumed in &told.assumed {
        let text = format!(
            "checked with {} {:?}: the file leaves the batch size open (--shape gives another)",
            assumed.input, assumed.sizes
        );
        paragraph(&text, "", "  ")?;
    }
    verdict(told)
}

fn operators(told: &Inspection) -> Result<()> {
    if told.operators.is_empty() {
        return Ok(());
    }
    let operators = told.operators.iter().map(|o| {
        let domain = if o.domain.is_empty() { String::new() } else { format!("{}.", o.domain) };
        let unknown = if o.known { "" } else { " (unknown)" };
        format!("{domain}{} {}{unknown}", o.op, o.count)
    });
    let mut text = format!("{}: {}", counted(told.nodes, "node"), operators.collect::<Vec<_>>().join(", "));
    if told.functions > 0 {
        text = format!("{text}; the file defines {}", counted(told.functions, "function"));
    }
    paragraph(&text, "", "  ")
}

fn costs(told: &Inspection) -> Result<()> {
    out(format_args!("{} parameters, {}", told.parameters, size(told.parameter_bytes)))?;
    if let Some(count) = told.multiply_adds {
        out(format_args!("{:.1} million multiply-adds in a run", count as f64 / 1e6))?;
    }
    if let (Some(all), Some(peak)) = (told.activation_bytes, told.peak_activation_bytes) {
        out(format_args!("{} of activations in a run, at most {} at one time", size(all), size(peak)))?;
    }
    Ok(())
}

fn layers(layers: &[InspectedLayer]) -> Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    let width = layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).clamp(5, 18);
    out("layers:")?;
    out(format_args!(
        "  {:width$}  {:13} {:>13} {:>6} {:>6} {:>8}  coded",
        "name", "operator", "filters", "groups", "stride", "MMAC"
    ))?;
    for layer in layers {
        let join = |sizes: &[usize]| sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
        let stride: Vec<String> = layer.stride.iter().map(ToString::to_string).collect();
        let count = layer.multiply_adds.map_or_else(|| "?".to_owned(), |m| format!("{:.1}", m as f64 / 1e6));
        let coded = match layer.coded {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        out(format_args!(
            "  {:width$}  {:13} {:>13} {:>6} {:>6} {count:>8}  {coded}",
            shortened(&layer.name, width),
            layer.op,
            layer.filters.as_deref().map_or_else(|| "computed".to_owned(), join),
            layer.groups,
            if stride.is_empty() { "-".to_owned() } else { stride.join(",") },
        ))?;
        if let (Some(false), Some(why)) = (layer.coded, &layer.why) {
            paragraph(&format!("on this machine: {why}"), "    ", "      ")?;
        }
    }
    let unknown = layers.iter().find(|layer| layer.coded.is_none()).and_then(|layer| layer.why.as_ref());
    if let Some(why) = unknown {
        paragraph(&format!("which of them can be coded is not known: {why}"), "  ", "    ")?;
    }
    out("  MMAC: million multiply-adds; coded: six workers of which two may be late can")?;
    out("  compute it together (`fcdcc plan` shows how)")
}

fn verdict(told: &Inspection) -> Result<()> {
    let count = told.reasons.len() + told.reasons_left_out;
    if count == 0 {
        for name in &told.unchecked {
            let text = format!(
                "the shape of input {name} is open and was not checked: give it with --shape {name}=SIZES"
            );
            paragraph(&text, "", "  ")?;
        }
        return out(if told.unchecked.is_empty() {
            "It can run."
        } else {
            "It can run, if its shapes fit together."
        });
    }
    out(format_args!("It cannot run, for {}:", counted(count, "reason")))?;
    for (number, reason) in told.reasons.iter().enumerate() {
        explain(number + 1, reason)?;
    }
    if told.reasons_left_out > 0 {
        out(format_args!("and {} more", told.reasons_left_out))?;
    }
    Ok(())
}

fn explain(number: usize, reason: &Reason) -> Result<()> {
    let said = reason.message.strip_suffix(&reason.help).map(|rest| rest.trim_end_matches([':', ' ']));
    paragraph(said.unwrap_or(&reason.message), &format!("{number:>3}. "), "     ")?;
    // A message with a single node names it.
    if reason.node_count > 1 {
        for NodeName { name, op, .. } in reason.nodes.iter().take(MOST_NODES) {
            paragraph(&format!("{op} node {name}"), "     - ", "       ")?;
        }
    }
    if reason.node_count > MOST_NODES {
        out(format_args!("     - and {} more nodes", reason.node_count - MOST_NODES))?;
    }
    paragraph(&format!("help: {}", reason.help), "     ", "     ")
}

fn axes(port: &Port) -> String {
    let Some(axes) = &port.axes else { return "[...]".to_owned() };
    let size = |size: &AxisSize| match size {
        AxisSize::Fixed(size) => size.to_string(),
        AxisSize::Symbol(name) => name.clone(),
        AxisSize::Open => "?".to_owned(),
    };
    format!("[{}]", axes.iter().map(size).collect::<Vec<_>>().join(", "))
}

/// The end of a name, which differs more from other names than its start.
fn shortened(name: &str, width: usize) -> String {
    let count = name.chars().count();
    if count <= width {
        return name.to_owned();
    }
    format!("..{}", name.chars().skip(count + 2 - width).collect::<String>())
}

/// A number of things: `1 node`, `2 nodes`.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn size(count: u64) -> String {
    bytes(usize::try_from(count).unwrap_or(usize::MAX))
}

/// Prints a text in lines of the report's width.
fn paragraph(text: &str, first: &str, rest: &str) -> Result<()> {
    wrap::lines(text, WIDTH, first, rest).into_iter().try_for_each(out)
}
