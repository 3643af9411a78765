//! What is known of values that change from one iteration to the next.
//!
//! Invariant: what is said of a value holds in every iteration.

use std::collections::HashSet;
use std::sync::Arc;

use tract_onnx::prelude::{DatumType, InferenceFact, InferenceModel, Tensor, TractResult};
use tract_onnx::tract_core::internal::{IntoArcTensor, Symbol, TDim};
use tract_onnx::tract_hir::infer::{Factoid, GenericFactoid, ShapeFactoid};

use super::lower::lower;

/// What is known of a value that tract computes as a size, as a number.
pub(super) fn plain(fact: &InferenceFact) -> InferenceFact {
    if fact.datum_type.concretize() != Some(DatumType::TDim) {
        return fact.clone();
    }
    let number = |value: Arc<Tensor>| Some(value.cast_to::<i64>().ok()?.into_owned().into_arc_tensor());
    let value = fact.value.concretize().and_then(number);
    InferenceFact {
        datum_type: DatumType::I64.into(),
        shape: fact.shape.clone(),
        value: value.map_or(GenericFactoid::Any, GenericFactoid::Only),
    }
}

/// What holds for both of two values.
pub(super) fn either(one: &InferenceFact, other: &InferenceFact) -> InferenceFact {
    let same = |a: &GenericFactoid<TDim>, b: &GenericFactoid<TDim>| {
        if a == b { a.clone() } else { GenericFactoid::Any }
    };
    let (ranks, dims) = ([one.shape.rank(), other.shape.rank()], one.shape.dims().zip(other.shape.dims()));
    let shape = match ranks {
        [GenericFactoid::Only(a), GenericFactoid::Only(b)] if a == b => {
            ShapeFactoid::closed(dims.map(|(a, b)| same(a, b)).collect())
        }
        _ => ShapeFactoid::default(),
    };
    let types = one.datum_type == other.datum_type;
    InferenceFact {
        datum_type: if types { one.datum_type } else { GenericFactoid::Any },
        shape,
        value: GenericFactoid::Any,
    }
}

/// What is known of a list of `count` arrays, from what is known of each.
pub(super) fn listed(one: InferenceFact, count: GenericFactoid<TDim>) -> InferenceFact {
    let dims = std::iter::once(count).chain(one.shape.dims().cloned()).collect();
    let shape = if one.shape.is_open() { ShapeFactoid::open(dims) } else { ShapeFactoid::closed(dims) };
    InferenceFact { datum_type: one.datum_type, shape, value: GenericFactoid::Any }
}

/// The symbols of the sizes of values.
fn symbols(facts: &[InferenceFact]) -> HashSet<Symbol> {
    facts
        .iter()
        .flat_map(|fact| fact.shape.dims())
        .filter_map(Factoid::concretize)
        .flat_map(|dim| dim.symbols())
        .collect()
}

/// What is known of the outputs of a graph with these inputs once its nodes are translated, which finds more than their
/// rules do where values are not known. Unknown sizes have symbols meanwhile, whose names begin with `name`.
pub(super) fn translated(
    mut graph: InferenceModel,
    name: &str,
    inputs: &[InferenceFact],
) -> TractResult<Vec<InferenceFact>> {
    let given = symbols(inputs);
    for (at, fact) in inputs.iter().enumerate() {
        let mut fact = fact.clone();
        let unknown = |(axis, dim): (usize, &GenericFactoid<TDim>)| {
            let symbol = || TDim::Sym(graph.symbols.sym(&format!("{name} {at}.{axis}")));
            GenericFactoid::Only(dim.concretize().unwrap_or_else(symbol))
        };
        if !fact.shape.is_open() {
            fact.shape = ShapeFactoid::closed(fact.shape.dims().enumerate().map(unknown).collect());
        }
        graph.set_input_fact(at, fact)?;
    }
    let typed = lower(graph)?;
    let known = |dim: &TDim| {
        if dim.symbols().iter().all(|symbol| given.contains(symbol)) {
            GenericFactoid::Only(dim.clone())
        } else {
            GenericFactoid::Any
        }
    };
    let outputs = typed.output_outlets()?.iter().map(|outlet| {
        let fact = typed.outlet_fact(*outlet)?;
        let shape = ShapeFactoid::closed(fact.shape.iter().map(known).collect());
        Ok(plain(&InferenceFact { shape, ..InferenceFact::from(fact) }))
    });
    outputs.collect()
}
