//! The feasible partitions (k_A, k_B) of a layer, and the choice of the fastest.

use crate::array::Element;
use crate::coding::{Code, CodeKind};
use crate::conv::ConvShape;
use crate::error::{Error, Message, Parameter, Result};

use super::rates::{Prediction, Rates};

/// The feasible pairs (k_A, k_B) for `layer` on `n` subtasks of which `tolerate` may be missing, and the number of parts
/// into which they divide it.
///
/// All pairs have the largest number of parts that the rows and channels allow: n - tolerate subtasks' worth for codes, n
/// for an uncoded layer, n / (tolerate + 1) for replication. More parts mean less work for each subtask; fewer would only
/// raise the number of subtasks that may be missing.
///
/// # Errors
/// [`Error::InvalidParameter`] when `tolerate` leaves no subtask to wait for, or the layer has no output to partition.
pub fn feasible_partitions(
    layer: &ConvShape,
    kind: CodeKind,
    n: usize,
    tolerate: usize,
) -> Result<Vec<(usize, usize)>> {
    let wanted = kind.parts(n, tolerate);
    if wanted == 0 {
        return Err(Error::invalid(
            Message::about("stragglers to tolerate", Parameter::Tolerate),
            tolerate,
            format!("it must be below the number of subtasks, {n}"),
        ));
    }
    let rows = layer.output[layer.split_axis()];
    let filters = layer.out_channels / layer.groups;
    let sides = |limit: usize| (1..=limit.min(wanted * 2)).filter(move |k| kind.allows(*k));
    let mut most = 0;
    let mut pairs = Vec::new();
    for k_a in sides(rows) {
        for k_b in sides(filters) {
            let Ok(degree) = kind.degree(k_a, k_b) else { continue };
            if degree > wanted || degree < most {
                continue;
            }
            if degree > most {
                most = degree;
                pairs.clear();
            }
            pairs.push((k_a, k_b));
        }
    }
    if pairs.is_empty() {
        return Err(Error::invalid("layer", format!("{layer:?}"), "it has no output to partition"));
    }
    Ok(pairs)
}

/// Whether the pair codes both sides. In a code that pairs parts, every subtask has both parts of a side with two parts,
/// so that side gains nothing over one part.
fn codes_something(kind: CodeKind, (k_a, k_b): (usize, usize)) -> bool {
    kind != CodeKind::Crme || (k_a != 2 && k_b != 2)
}

/// The pair of [`feasible_partitions`] with the shortest predicted time, and its prediction, for elements of type `T`.
///
/// # Errors
/// Those of [`feasible_partitions`].
pub fn choose_partitions<T: Element>(
    layer: &ConvShape,
    kind: CodeKind,
    n: usize,
    tolerate: usize,
    rates: &Rates,
) -> Result<((usize, usize), Prediction)> {
    let pairs = feasible_partitions(layer, kind, n, tolerate)?;
    let worth = pairs.iter().any(|pair| codes_something(kind, *pair));
    let mut best: Option<((usize, usize), Prediction)> = None;
    for pair in pairs {
        if worth && !codes_something(kind, pair) {
            continue;
        }
        let prediction = rates.predict::<T>(layer, &Code::new(kind, pair.0, pair.1, n)?)?;
        if best.is_none_or(|(_, least)| prediction.total_s() < least.total_s()) {
            best = Some((pair, prediction));
        }
    }
    Ok(best.expect("there is a pair, and one that is worth looking at if any is"))
}

/// A code for a layer that mixes no parts of the input, for the same `tolerate`. It splits the filters, which loses no
/// accuracy whatever the input is, or replicates the layer, whichever leaves less work for a subtask.
///
/// `None` if every subtask would have to compute the whole layer: then one machine suffices.
#[must_use]
pub fn unmixed_partitions(
    layer: &ConvShape,
    kind: CodeKind,
    n: usize,
    tolerate: usize,
) -> Option<(CodeKind, (usize, usize))> {
    let filters = layer.out_channels / layer.groups;
    let share = |kind: CodeKind, (k_a, k_b): (usize, usize)| {
        let code = Code::new(kind, k_a, k_b, n).ok()?;
        let rows = layer.output[layer.split_axis()];
        let part = rows.div_ceil(k_a) as f64 / rows as f64 * filters.div_ceil(k_b) as f64 / filters as f64;
        Some(part * (code.l_a() * code.l_b()) as f64)
    };
    let split = (1..=filters).filter(|k_b| kind.mixes() && kind.allows(*k_b));
    let split =
        split.filter(|k_b| kind.degree(1, *k_b).is_ok_and(|degree| degree <= n.saturating_sub(tolerate)));
    let split = split.max().map(|k_b| (kind, (1, k_b)));
    let copies = feasible_partitions(layer, CodeKind::Replication, n, tolerate).unwrap_or_default();
    let copies = copies.into_iter().next_back().map(|pair| (CodeKind::Replication, pair));
    let shares = split.into_iter().chain(copies).filter_map(|way| Some((way, share(way.0, way.1)?)));
    let least = shares.min_by(|(_, a), (_, b)| a.total_cmp(b));
    least.filter(|(_, share)| *share < 1.0).map(|(way, _)| way)
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
        choose_partitions::<f32>(&layer, kind, n, tolerate, &Rates::default()).unwrap().0
    }

    #[test]
    fn without_mixing_inputs_filters_are_split_or_rows_are_copied() {
        let layer = |input: &[usize], weight: &[usize], groups| {
            ConvShape::new(input, weight, &ConvParams::default().padding([1]).groups(groups)).unwrap()
        };
        let dense = layer(&[1, 8, 32, 32], &[64, 8, 3, 3], 1);
        assert_eq!(unmixed_partitions(&dense, CodeKind::Crme, 6, 2), Some((CodeKind::Crme, (1, 8))));
        assert_eq!(
            unmixed_partitions(&dense, CodeKind::Chebyshev, 6, 2),
            Some((CodeKind::Chebyshev, (1, 4)))
        );
        // Depthwise filters cannot be split: two thirds of the copies are redundant.
        let depthwise = layer(&[1, 8, 32, 32], &[8, 1, 3, 3], 8);
        let way = unmixed_partitions(&depthwise, CodeKind::Crme, 6, 2);
        assert_eq!(way, Some((CodeKind::Replication, (2, 1))));
        // If four of six may be missing every worker has to compute the whole layer.
        assert_eq!(unmixed_partitions(&depthwise, CodeKind::Crme, 6, 4), None);
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
        // Depthwise, three output rows: neither four parts per side nor any filters to split.
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
    fn every_family_gets_what_it_can_use() {
        let pick = |kind| {
            let (a, b) = choose(&[1, 8, 33, 33], &[64, 8, 3, 3], ConvParams::default(), kind, 9, 2);
            kind.degree(a, b).unwrap()
        };
        assert_eq!([CodeKind::Crme, CodeKind::Chebyshev, CodeKind::KhatriRao].map(pick), [7, 7, 7]);
        // Three copies of each of three parts.
        assert_eq!([CodeKind::Replication, CodeKind::Uncoded].map(pick), [3, 9]);
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
        let error = choose_partitions::<f32>(&layer, CodeKind::Crme, 6, 6, &Rates::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("is 6") && error.contains("subtasks, 6"), "{error}");
    }

    #[test]
    fn what_is_chosen_is_never_slower_than_what_was_not() {
        let rates = Rates::default();
        let layer =
            ConvShape::new(&[1, 96, 27, 27], &[256, 96, 5, 5], &ConvParams::default().padding([2])).unwrap();
        let (pair, least) = choose_partitions::<f32>(&layer, CodeKind::Crme, 20, 4, &rates).unwrap();
        let pairs = feasible_partitions(&layer, CodeKind::Crme, 20, 4).unwrap();
        assert!(pairs.contains(&pair) && pairs.contains(&(8, 8)) && pairs.contains(&(2, 32)), "{pairs:?}");
        for other in pairs.into_iter().filter(|p| codes_something(CodeKind::Crme, *p)) {
            let code = Code::new(CodeKind::Crme, other.0, other.1, 20).unwrap();
            assert!(rates.predict::<f32>(&layer, &code).unwrap().total_s() >= least.total_s(), "{other:?}");
        }
    }
}
