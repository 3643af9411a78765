//! Plans the segments of a model: which pieces are computed where.
//!
//! Relevant if you want to know from what the planner predicts the times of segments. The time of a piece is that of its
//! layers; all other operators count as nothing. Of the cuts between two layers, only the one with the fewest bytes is
//! considered.
//!
//! Invariant: pieces of a plan are numbered as those of the [`Sections`] that were planned.

use std::collections::HashMap;
use std::ops::Range;

use serde::Serialize;

use super::load::Model;
use super::options::{ModelOptions, SegmentChoice};
use super::place::PlannedLayer;
use super::sections::{Sections, bytes_of};
use crate::array::DType;
use crate::conv::ConvShape;
use crate::error::{Error, Result};
use crate::planner::{
    Chain, ChainPlan, LayerPlan, Piece, Place, Rates, SegmentOptions, SegmentPlan, plan_segments,
};
use crate::scheduler::PartReport;

/// A segment of a model, and what was decided about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSegment {
    /// Name of the value that enters it; `None` for the inputs of the model.
    pub from: Option<String>,
    /// Name of the value that leaves it; `None` for the outputs of the model.
    pub to: Option<String>,
    /// Names of its layers.
    pub layers: Vec<String>,
    /// Place, predicted times and reason; its pieces are those of the [`Sections`].
    #[serde(flatten)]
    pub plan: SegmentPlan,
}

/// What happened in one segment of a run.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SegmentReport {
    /// Where it was to be computed.
    pub place: Place,
    /// Name of the value that entered it; `None` for the inputs of the model.
    pub from: Option<String>,
    /// Name of the value that left it; `None` for the outputs of the model.
    pub to: Option<String>,
    /// Time, in milliseconds.
    pub total_ms: f64,
    /// For a replicated segment what happened on the workers.
    pub workers: Option<PartReport>,
    /// Why this machine computed a replicated segment; `None` if it did not.
    pub fallback: Option<String>,
}

impl Model {
    /// The segments that [`Model::prepare`] would choose on `workers` workers with `rates`; needs no workers. Also the model's
    /// sections, and the plan as a whole.
    ///
    /// # Errors
    /// Those of [`Model::plan`], [`Model::sections`] and [`Sections::plan`].
    pub fn plan_segments(
        &self,
        workers: usize,
        rates: &Rates,
        options: &ModelOptions,
        choice: &SegmentChoice,
    ) -> Result<(Sections, Vec<ModelSegment>, ChainPlan)> {
        let sections = self.sections()?;
        let layers = self.plan(workers, rates, options)?;
        let planning = SegmentOptions {
            objective: choice.objective,
            tolerate: options.layer.tolerate,
            rates: *rates,
            workers: choice.workers.clone(),
        };
        let (segments, plan) = sections.plan(&layers, &planning, options.precision.unwrap_or(DType::F32))?;
        Ok((sections, segments, plan))
    }
}

impl Sections {
    /// The best segments for the layers that [`Model::plan`](super::Model::plan) planned with the same rates. `dtype`: the
    /// element type that the rates are for. Also the plan as a whole, whose segments are the same.
    ///
    /// # Errors
    /// Those of [`plan_segments`].
    pub fn plan(
        &self,
        layers: &[PlannedLayer],
        options: &SegmentOptions,
        dtype: DType,
    ) -> Result<(Vec<ModelSegment>, ChainPlan)> {
        let places: HashMap<&str, usize> =
            self.layers().iter().map(|(name, piece)| (name.as_str(), *piece)).collect();
        let mut of_pieces: Vec<Vec<&PlannedLayer>> = vec![Vec::new(); self.pieces()];
        for layer in layers {
            of_pieces[places.get(layer.name.as_str()).copied().unwrap_or_default()].push(layer);
        }
        let groups = self.groups(&of_pieces);
        let chain = self.chain(&groups, &of_pieces, options, dtype);
        let mut plan = plan_segments(&chain, options)?;
        for segment in &mut plan.segments {
            let pieces = &segment.pieces;
            segment.pieces = groups[pieces.start].start..groups[pieces.end - 1].end;
        }
        let segment = |plan: &SegmentPlan| {
            let (from, to) = self.ends_of(&plan.pieces);
            let layers = of_pieces[plan.pieces.clone()].iter().flatten().map(|layer| layer.name.clone());
            ModelSegment { from, to, layers: layers.collect(), plan: plan.clone() }
        };
        Ok((plan.segments.iter().map(segment).collect(), plan))
    }

    /// Ranges of pieces, each with at most one piece that has layers: between two such pieces the cut with the fewest bytes
    /// counts, the last one of several.
    fn groups(&self, of_pieces: &[Vec<&PlannedLayer>]) -> Vec<Range<usize>> {
        let with_layers = (0..of_pieces.len()).filter(|piece| !of_pieces[*piece].is_empty());
        let with_layers: Vec<usize> = with_layers.collect();
        let mut groups = Vec::new();
        let mut start = 0;
        for pair in with_layers.windows(2) {
            // Piece p ends with cut p.
            let best = (pair[0]..pair[1]).rev().min_by_key(|cut| self.cuts()[*cut].bytes());
            let end = best.map_or(pair[1], |cut| cut + 1);
            groups.push(start..end);
            start = end;
        }
        groups.push(start..of_pieces.len());
        groups
    }

    fn chain(
        &self,
        groups: &[Range<usize>],
        of_pieces: &[Vec<&PlannedLayer>],
        options: &SegmentOptions,
        dtype: DType,
    ) -> Chain {
        let piece = |group: &Range<usize>| {
            let mut piece = Piece { on_workers: vec![0.0; options.workers.len()], ..Piece::default() };
            for layer in of_pieces[group.clone()].iter().flatten() {
                if let Ok((shape, plan)) = &layer.plan {
                    add(&mut piece, shape, plan, options, dtype);
                }
            }
            piece
        };
        let of = |arrays: &[crate::worker::PartArray]| {
            arrays.iter().fold(0, |sum: u64, array| sum.saturating_add(bytes_of(array)))
        };
        let elems = |bytes: u64| bytes as f64 / dtype.size_bytes() as f64;
        let (first, last) = (0..groups[0].end, groups[groups.len() - 1].start..self.pieces());
        let mut ends = vec![self.inputs_of(&first).map(|inputs| elems(of(&inputs)))];
        ends.extend(
            groups[1..].iter().map(|group| self.cuts().get(group.start - 1).map(|cut| elems(cut.bytes()))),
        );
        ends.push(self.outputs_of(&last).map(|outputs| elems(of(&outputs))));
        Chain { pieces: groups.iter().map(piece).collect(), elems: ends }
    }
}

/// Adds the times and the memory of a layer.
fn add(piece: &mut Piece, shape: &ConvShape, plan: &LayerPlan, options: &SegmentOptions, dtype: DType) {
    let total_s = plan.total_s();
    // Where no worker is elsewhere, all of them use the cores of this machine.
    let all_here = options.rates.network.is_none() && options.rates.cores.is_some();
    piece.local_s += plan.local_s;
    piece.coded_s += total_s;
    piece.coded_here_s += match &plan.prediction {
        Some(prediction) if !all_here => prediction.encode_s + prediction.decode_s,
        _ => total_s,
    };
    for (seconds, worker) in piece.on_workers.iter_mut().zip(&options.workers) {
        *seconds += worker.rates.compute_s(shape);
    }
    // Filters as the file has them and as they are read, and what a layer reads and writes.
    let elems = 2 * shape.weight_elems() + shape.input_elems() + shape.output_elems();
    let bytes = (elems as u64).saturating_mul(dtype.size_bytes() as u64);
    piece.memory_bytes = piece.memory_bytes.saturating_add(bytes);
}

/// Checks that the segments are all pieces in order.
pub(super) fn check(sections: &Sections, segments: &[(Range<usize>, Place)]) -> Result<()> {
    let mut next = 0;
    let in_order = segments.iter().all(|(pieces, _)| {
        let follows = pieces.start == next && !pieces.is_empty();
        next = pieces.end;
        follows
    });
    if in_order && next == sections.pieces() {
        return Ok(());
    }
    let got = format!("{:?}", segments.iter().map(|(pieces, _)| pieces).collect::<Vec<_>>());
    let help = format!("give pieces 0 to {} in order, each once", sections.pieces() - 1);
    Err(Error::invalid("segments of a model", got, help))
}
