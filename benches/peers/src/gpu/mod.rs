//! The comparison on one GPU adapter: a table of whole calls and one of computing alone.
//!
//! burn chooses the adapter (`CUBECL_WGPU_DEFAULT_DEVICE` names another), and everybody else computes on the same.

mod burn;
mod ceilings;
mod ours;

use std::time::Duration;

use anyhow::Result;
use fcdcc::gpu::{AdapterSelector, AdapterSummary, select};
use serde_json::json;

use crate::engine::{Clock, Engine, Job, Span};
use crate::layers::Layer;
use crate::python::TORCH;
use crate::report::{Demand, Table};
use crate::rounds::{Outcome, compare};
use crate::verify::Data;
use crate::{Absent, Arguments, Deadline, Peer, progress, python_engine, watchdog};

const BURN: &str = "burn";

/// burn, or why there is none, and the adapter of the comparison.
fn adapter(arguments: &Arguments) -> Result<(Option<Box<dyn Engine>>, AdapterSummary)> {
    if !arguments.wants(Peer::Burn) {
        return Ok((None, select(None)?.swap_remove(0)));
    }
    match burn::Burn::open() {
        Ok(burn) => {
            let name = AdapterSelector::Name(burn.adapter().to_owned());
            Ok((Some(Box::new(burn)), select(Some(&name))?.swap_remove(0)))
        }
        Err(error) => {
            eprintln!("{BURN}: {error:#}");
            let absent = Absent { name: BURN, why: format!("{error:#}") };
            Ok((Some(Box::new(absent)), select(None)?.swap_remove(0)))
        }
    }
}

/// Compares on the adapter; no table where there is none.
pub(crate) fn tables(arguments: &Arguments, layers: &[Layer], deadline: Deadline) -> Result<Vec<Table>> {
    let found = watchdog::within("opening burn's device", Duration::from_mins(2), || adapter(arguments));
    let (burn, adapter) = match found {
        Ok(found) => found,
        Err(error) => {
            println!("no GPU comparison: {error:#}");
            return Ok(Vec::new());
        }
    };
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(ours::Ours::open(&adapter)?)];
    engines.extend(burn);
    if arguments.wants(Peer::Torch) {
        engines.push(python_engine(TORCH));
    }
    eprintln!("ceilings of {}", adapter.name);
    let ceilings =
        watchdog::within("measuring ceilings", Duration::from_mins(2), || ceilings::measure(&adapter))?;
    let limits = arguments.limits()?;
    let spans = [
        (Span::Whole, "whole calls: upload, computing, readback"),
        (Span::Compute, "computing: many convolutions, fcdcc reads each back"),
    ];
    let least = if adapter.software { 4.0 } else { 1.0 };
    let mut tables: Vec<_> = spans
        .iter()
        .map(|(span, what)| Table {
            title: format!("{} ({}), {what}", adapter.name, adapter.backend),
            key: json!({ "on": adapter.name, "driver": adapter.driver_info, "span": span.name() }),
            engines: engines.iter().map(|engine| engine.name().to_owned()).collect(),
            ceilings: ceilings.clone(),
            rows: Vec::new(),
            // Only whole calls include the same on both sides.
            demands: if *span == Span::Whole && arguments.wants(Peer::Burn) {
                vec![Demand { peer: BURN, mean: least, least: None }]
            } else {
                Vec::new()
            },
        })
        .collect();
    for (index, layer) in layers.iter().enumerate() {
        if deadline.passed() {
            break;
        }
        let data = Data::new(layer);
        let job = Job { layer, data: &data, threads: 1, pin: false, clock: Clock::Wall };
        let outcomes: Vec<Vec<Outcome>> = compare(&mut engines, &job, &spans.map(|(span, _)| span), limits);
        for ((table, outcomes), (span, _)) in tables.iter_mut().zip(outcomes).zip(&spans) {
            progress(index, layers, span.name(), &outcomes);
            table.push(layer, outcomes);
        }
    }
    Ok(tables)
}
