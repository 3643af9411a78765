//! Choosing partitions: a cost model over shapes, and the cheapest pair (k_A, k_B).
//!
//! Pure functions. [`place_conv`] and [`place_gemm`] also decide whether a layer of a model is coded at all. What a
//! subtask uploads, downloads, stores and computes is exact arithmetic on shapes;
//! [`Rates`] turn it into seconds. Who gives `partitions` explicitly can skip this module.

use serde::Serialize;

use crate::coding::{Code, CodeKind};
use crate::conv::ConvShape;
use crate::error::{Error, Result};
use crate::partition::{FilterPartition, InputPartition};
use crate::worker::SubtaskShape;

/// What one subtask costs, in elements and multiply-adds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SubtaskCost {
    /// l_A coded slabs.
    pub upload_elems: usize,
    /// l_A l_B sub-results.
    pub download_elems: usize,
    /// l_B coded filter banks, held by the worker.
    pub storage_elems: usize,
    /// Multiply-adds of all sub-results.
    pub macs: f64,
}

/// Seconds for a unit of each cost: the weights of the cost model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Moving one element to or from a worker.
    pub transfer_s: f64,
    /// Holding one filter element: its share of a refill, and of caches it occupies.
    pub storage_s: f64,
    /// One multiply-add on a worker.
    pub mac_s: f64,
}

impl Default for Rates {
    /// One element in 4 ns (f32 over 1 GB/s), a refill every forty runs, 25 G multiply-adds a second.
    fn default() -> Self {
        Self { transfer_s: 4e-9, storage_s: 1e-10, mac_s: 4e-11 }
    }
}

impl SubtaskCost {
    /// The cost of one subtask of `shape` under `code`.
    #[must_use]
    pub fn of(shape: &SubtaskShape) -> Self {
        Self {
            upload_elems: shape.upload_elems(),
            download_elems: shape.download_elems(),
            storage_elems: shape.filter_elems(),
            macs: shape.sub_results() as f64 * shape.conv.macs(),
        }
    }

    /// Weighted sum, in seconds.
    #[must_use]
    pub fn seconds(&self, rates: &Rates) -> f64 {
        (self.upload_elems + self.download_elems) as f64 * rates.transfer_s
            + self.storage_elems as f64 * rates.storage_s
            + self.macs * rates.mac_s
    }
}

/// The shape of one subtask of `code` over `layer`.
///
/// # Errors
/// [`Error::InvalidParameter`] when the layer cannot be cut into the code's parts.
pub fn subtask_shape(layer: &ConvShape, code: &Code) -> Result<SubtaskShape> {
    let input = InputPartition::new(layer, code.k_a())?;
    let filters = FilterPartition::new(layer, code.k_b())?;
    Ok(SubtaskShape { conv: input.slab_conv(filters.bank_channels()), slabs: code.l_a(), banks: code.l_b() })
}

/// Where a layer of a model is computed.
#[derive(Clone, Debug, PartialEq)]
pub enum Placement {
    /// On the workers, with these partitions.
    Coded {
        /// k_A.
        k_a: usize,
        /// k_B.
        k_b: usize,
    },
    /// On the host, because of `why`.
    Local {
        /// The reason, readable.
        why: String,
    },
}

/// Dispatch, gathering and decoding of a layer beside the arithmetic, in seconds.
const LAYER_OVERHEAD_S: f64 = 2e-4;

/// Places a convolution: on the workers, unless it is too small to be split although it should be.
///
/// # Errors
/// Those of [`choose_partitions`].
pub fn place_conv(
    layer: &ConvShape,
    kind: CodeKind,
    n: usize,
    tolerate: usize,
    rates: &Rates,
) -> Result<Placement> {
    let (k_a, k_b) = choose_partitions(layer, kind, n, tolerate, rates)?;
    let wanted = kind.parts(n, tolerate);
    if (k_a, k_b) == (1, 1) && wanted > 1 {
        let (rows, filters) = (layer.output[layer.split_axis()], layer.out_channels / layer.groups);
        let why = format!(
            "too small to split: {rows} output rows, {filters} filters a group; every worker would compute all of it"
        );
        return Ok(Placement::Local { why });
    }
    Ok(Placement::Coded { k_a, k_b })
}

/// Places a fully connected layer: on the workers where that is estimated to be faster than the host.
///
/// `sharing` is how many workers share one processor of the host: 1 where each has its own.
///
/// # Errors
/// Those of [`choose_partitions`].
pub fn place_gemm(
    layer: &ConvShape,
    kind: CodeKind,
    n: usize,
    tolerate: usize,
    rates: &Rates,
    sharing: f64,
) -> Result<Placement> {
    let placement = place_conv(layer, kind, n, tolerate, rates)?;
    let Placement::Coded { k_a, k_b } = placement else { return Ok(placement) };
    let n = if kind == CodeKind::Uncoded { k_a * k_b } else { n };
    let cost = SubtaskCost::of(&subtask_shape(layer, &Code::new(kind, k_a, k_b, n)?)?);
    let compute = cost.macs * rates.mac_s;
    let workers = cost.seconds(rates) + compute * (sharing.max(1.0) - 1.0) + LAYER_OVERHEAD_S;
    let host = layer.macs() * rates.mac_s;
    if workers < host {
        return Ok(placement);
    }
    let why = format!("about {:.2} ms on the host, {:.2} ms on the workers", host * 1e3, workers * 1e3);
    Ok(Placement::Local { why })
}

/// The cheapest (k_A, k_B) for `layer` on `n` subtasks of which `tolerate` may be missing.
///
/// The largest [`degree`](CodeKind::degree) up to [`CodeKind::parts`] that the layer's rows and channels allow (less
/// work a subtask): for most codes that is n - tolerate, for an uncoded layer n. Among the pairs of one degree the
/// cost decides.
///
/// # Errors
/// [`Error::InvalidParameter`] when `tolerate` leaves no subtask to wait for.
pub fn choose_partitions(
    layer: &ConvShape,
    kind: CodeKind,
    n: usize,
    tolerate: usize,
    rates: &Rates,
) -> Result<(usize, usize)> {
    let wanted = kind.parts(n, tolerate);
    if wanted == 0 {
        return Err(Error::invalid(
            "stragglers to tolerate (--tolerate)",
            tolerate,
            format!("it must be below the number of subtasks, {n}"),
        ));
    }
    let rows = layer.output[layer.split_axis()];
    let filters = layer.out_channels / layer.groups;
    // With CRME a side of two parts carries both in every subtask: it codes nothing that one part does not.
    let idle = |k: usize| kind == CodeKind::Crme && k == 2;
    let sides = |limit: usize| (1..=limit.min(wanted * 2)).filter(move |k| kind.allows(*k) && !idle(*k));
    let mut best: Option<(usize, f64, (usize, usize))> = None;
    for k_a in sides(rows) {
        for k_b in sides(filters) {
            let Ok(degree) = kind.degree(k_a, k_b) else { continue };
            if degree > wanted || best.is_some_and(|(most, ..)| degree < most) {
                continue;
            }
            let code = Code::new(kind, k_a, k_b, n)?;
            let cost = SubtaskCost::of(&subtask_shape(layer, &code)?).seconds(rates);
            if best.is_none_or(|(most, least, _)| degree > most || cost < least) {
                best = Some((degree, cost, (k_a, k_b)));
            }
        }
    }
    best.map(|(.., pair)| pair)
        .ok_or_else(|| Error::invalid("layer", format!("{layer:?}"), "it has no output to partition"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::ConvParams;

    fn choose(
        input: &[usize],
        weight: &[usize],
        params: ConvParams,
        kind: CodeKind,
        n: usize,
        tolerate: usize,
    ) -> (usize, usize) {
        let layer = ConvShape::new(input, weight, &params).unwrap();
        choose_partitions(&layer, kind, n, tolerate, &Rates::default()).unwrap()
    }

    #[test]
    fn early_layers_split_the_input_and_late_ones_the_filters() {
        let p = || ConvParams::default().padding([1]);
        let early = choose(&[1, 3, 224, 224], &[64, 3, 3, 3], p(), CodeKind::Crme, 20, 4);
        let late = choose(&[1, 512, 14, 14], &[512, 512, 3, 3], p(), CodeKind::Crme, 20, 4);
        assert!(early.0 > late.0 && early.1 < late.1, "{early:?} {late:?}");
        for (k_a, k_b) in [early, late] {
            assert_eq!(CodeKind::Crme.degree(k_a, k_b).unwrap(), 16);
        }
    }

    #[test]
    fn layers_too_small_for_the_threshold_get_the_largest_that_fits() {
        // Depthwise, three output rows: neither four parts a side nor any filters to split.
        let p = ConvParams::default().groups(8);
        assert_eq!(choose(&[1, 8, 5, 5], &[8, 1, 3, 3], p, CodeKind::Crme, 6, 2), (1, 1));
        // A fully connected layer can be split along its filters only.
        assert_eq!(
            choose(&[1, 64, 1, 1], &[100, 64, 1, 1], ConvParams::default(), CodeKind::Crme, 6, 2),
            (1, 8)
        );
        // Five is prime: only one side is split, into ten parts.
        let (k_a, k_b) = choose(&[1, 8, 32, 32], &[64, 8, 3, 3], ConvParams::default(), CodeKind::Crme, 7, 2);
        assert!(matches!((k_a, k_b), (1, 10) | (10, 1)));
    }

    #[test]
    fn what_cannot_be_split_stays_on_the_host() {
        let place = |weight: &[usize], n, tolerate| {
            let layer = ConvShape::new(&[1, 1, 2, 2], weight, &ConvParams::default()).unwrap();
            place_conv(&layer, CodeKind::Crme, n, tolerate, &Rates::default()).unwrap()
        };
        let Placement::Local { why } = place(&[1, 1, 1, 1], 6, 2) else { panic!("coded") };
        assert!(why.contains("2 output rows, 1 filters"), "{why}");
        assert!(matches!(place(&[8, 1, 1, 1], 6, 2), Placement::Coded { k_b: 8, .. }));
        // Whoever wants all but one worker to be dispensable wants replication.
        assert_eq!(place(&[1, 1, 1, 1], 3, 2), Placement::Coded { k_a: 1, k_b: 1 });
    }

    #[test]
    fn a_fully_connected_layer_is_coded_where_it_pays() {
        let place = |inputs: usize, outputs: usize, sharing| {
            let layer =
                ConvShape::new(&[1, inputs, 1], &[outputs, inputs, 1], &ConvParams::default()).unwrap();
            place_gemm(&layer, CodeKind::Crme, 6, 2, &Rates::default(), sharing).unwrap()
        };
        assert!(matches!(place(25088, 4096, 1.0), Placement::Coded { k_a: 1, k_b: 8 }));
        let Placement::Local { why } = place(84, 10, 1.0) else { panic!("coded") };
        assert!(why.contains("0.00 ms on the host"), "{why}");
        // Six workers on one processor only add work.
        assert!(matches!(place(25088, 4096, 6.0), Placement::Local { .. }));
    }

    #[test]
    fn uncoded_layers_use_all_workers() {
        let (k_a, k_b) =
            choose(&[1, 8, 32, 32], &[64, 8, 3, 3], ConvParams::default(), CodeKind::Uncoded, 6, 2);
        assert_eq!(k_a * k_b, 6);
        assert_eq!(
            choose(&[1, 8, 1, 1], &[5, 8, 1, 1], ConvParams::default(), CodeKind::Uncoded, 6, 2),
            (1, 5)
        );
    }

    #[test]
    fn tolerating_everybody_is_refused_with_both_numbers() {
        let layer = ConvShape::new(&[1, 1, 4, 4], &[1, 1, 1, 1], &ConvParams::default()).unwrap();
        let error =
            choose_partitions(&layer, CodeKind::Crme, 6, 6, &Rates::default()).unwrap_err().to_string();
        assert!(error.contains("is 6") && error.contains("subtasks, 6"), "{error}");
    }
}
