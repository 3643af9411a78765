//! The answer of a request, before a protocol encodes it.
//!
//! Relevant if you want to know which outputs an answer has, and what `classification` makes of one: strings
//! `value:index`, or `value:index:label` where the model has labels, the largest value first.
//!
//! Invariant: outputs come in the order of the request, or in the order of the model where it asks for none.

use std::sync::Arc;

use fcdcc::Report;
use fcdcc::model::{Output, Tensor};

use crate::cost::RunTimes;
use crate::datatype::Datatype;
use crate::error::ApiError;
use crate::request::{Settings, Wanted};
use crate::served::Served;
use crate::strings::BYTES;

/// An answer.
pub(crate) struct Answer {
    pub(crate) model: Arc<Served>,
    pub(crate) id: Option<String>,
    pub(crate) outputs: Vec<Sent>,
    /// The coding report of the run as JSON, where the request asked for it.
    pub(crate) report: Option<String>,
    pub(crate) mark_final: bool,
}

/// One output.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) name: String,
    pub(crate) values: Values,
    /// Whether HTTP sends it as bytes.
    pub(crate) binary: bool,
}

/// The elements of an output.
#[derive(Clone, Debug)]
pub(crate) enum Values {
    Numbers(Datatype, Tensor),
    /// Shape and elements.
    Classes(Vec<usize>, Vec<String>),
}

impl Values {
    /// The name of the datatype in the protocol.
    pub(crate) fn datatype(&self) -> &'static str {
        match self {
            Self::Numbers(datatype, _) => datatype.name(),
            Self::Classes(..) => BYTES,
        }
    }

    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::Numbers(_, tensor) => tensor.shape(),
            Self::Classes(shape, _) => shape,
        }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape().iter().product()
    }
}

/// What the computation of a request leaves.
pub(crate) struct Computed {
    pub(crate) outputs: Vec<Output>,
    /// The report of the run, which other requests may share.
    pub(crate) report: Arc<Report>,
    pub(crate) times: RunTimes,
}

impl Answer {
    /// Chooses the outputs that a request wants.
    ///
    /// # Errors
    /// 400 for an output that is not there or has nothing to classify, 500 for a type that the protocol lacks.
    pub(crate) fn of(
        model: Arc<Served>,
        id: Option<String>,
        settings: &Settings,
        wanted: &[Wanted],
        computed: Computed,
    ) -> Result<Self, ApiError> {
        let report = settings.report.then(|| serde_json::to_string(&*computed.report));
        let report = report.transpose().map_err(|e| ApiError::internal(e.to_string()))?;
        let outputs = choose(computed.outputs, wanted, settings.binary_outputs, &model.labels)?;
        Ok(Self { model, id, outputs, report, mark_final: settings.mark_final })
    }
}

fn choose(
    outputs: Vec<Output>,
    wanted: &[Wanted],
    binary: bool,
    labels: &[String],
) -> Result<Vec<Sent>, ApiError> {
    if wanted.is_empty() {
        let sent = |output: Output| {
            let values = numbers(&output.name, output.tensor)?;
            Ok(Sent { name: output.name, values, binary })
        };
        return outputs.into_iter().map(sent).collect();
    }
    let find = |wanted: &Wanted| {
        let found = outputs.iter().find(|output| output.name == wanted.name);
        let found = found.ok_or_else(|| ApiError::bad(format!("there is no output {}", wanted.name)))?;
        let values = match wanted.classes {
            Some(count) => classified(found, count, labels)?,
            None => numbers(&found.name, found.tensor.clone())?,
        };
        Ok(Sent { name: found.name.clone(), values, binary: wanted.binary.unwrap_or(binary) })
    };
    wanted.iter().map(find).collect()
}

fn numbers(name: &str, tensor: Tensor) -> Result<Values, ApiError> {
    let datatype = Datatype::of_library(tensor.dtype())
        .ok_or_else(|| ApiError::internal(format!("output {name} is of type {}", tensor.dtype())))?;
    Ok(Values::Numbers(datatype, tensor))
}

/// The `count` largest elements of each item; the items are along the first axis where there are more axes than one.
fn classified(output: &Output, count: usize, labels: &[String]) -> Result<Values, ApiError> {
    let scores = output.tensor.to_f64();
    let (items, shape) = match output.tensor.shape() {
        [] => (1, 1),
        [size] => (1, *size),
        [items, rest @ ..] => (*items, rest.iter().product()),
    };
    if items == 0 || shape == 0 || scores.len() != items * shape {
        return Err(ApiError::bad(format!(
            "output {} has shape {:?}, which has no classes: ask for it without classification",
            output.name,
            output.tensor.shape()
        )));
    }
    let count = count.min(shape);
    let texts = scores.chunks(shape).flat_map(|item| {
        largest(item, count).into_iter().map(|index| match labels.get(index) {
            Some(label) => format!("{:.6}:{index}:{label}", item[index]),
            None => format!("{:.6}:{index}", item[index]),
        })
    });
    let texts: Vec<String> = texts.collect();
    let shape = if output.tensor.shape().len() > 1 { vec![items, count] } else { vec![count] };
    Ok(Values::Classes(shape, texts))
}

/// The indices of the `count` largest scores, the largest first; equal ones in their order.
pub(crate) fn largest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let count = count.min(order.len());
    let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, by_score);
        order.truncate(count);
    }
    order.sort_by(by_score);
    order
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::ArrayD;

    use super::*;

    fn output(shape: &[usize], values: Vec<f32>) -> Output {
        Output { name: "y".to_owned(), tensor: ArrayD::from_shape_vec(shape, values).unwrap().into() }
    }

    #[test]
    fn classes_are_the_largest_values_of_each_item_with_their_labels() {
        let scores = output(&[2, 3], vec![0.5, 2.0, 1.0, 7.0, 7.0, -1.0]);
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let Values::Classes(shape, texts) = classified(&scores, 2, &labels).unwrap() else { panic!() };
        assert_eq!(shape, [2, 2]);
        assert_eq!(texts, ["2.000000:1:dog", "1.000000:2", "7.000000:0:cat", "7.000000:1:dog"]);
        // One item without an axis of items, and more classes than there are.
        let one = classified(&output(&[2], vec![1.0, 2.0]), 9, &[]).unwrap();
        let Values::Classes(shape, texts) = one else { panic!() };
        assert_eq!((shape, texts), (vec![2], vec!["2.000000:1".to_owned(), "1.000000:0".to_owned()]));
        assert_eq!(classified(&output(&[0, 3], vec![]), 1, &[]).unwrap_err().status, 400);
    }

    #[test]
    fn outputs_come_in_the_order_of_the_request() {
        let of = |name: &str| Output { name: name.to_owned(), ..output(&[1], vec![1.0]) };
        let wanted = |name: &str, binary| Wanted { name: name.to_owned(), binary, classes: None };
        let names = |sent: Vec<Sent>| sent.into_iter().map(|s| (s.name, s.binary)).collect::<Vec<_>>();
        let all = choose(vec![of("a"), of("b")], &[], true, &[]).unwrap();
        assert_eq!(names(all), [("a".to_owned(), true), ("b".to_owned(), true)]);
        let some = [wanted("b", None), wanted("a", Some(false))];
        let some = choose(vec![of("a"), of("b")], &some, true, &[]).unwrap();
        assert_eq!(names(some), [("b".to_owned(), true), ("a".to_owned(), false)]);
        assert_eq!(choose(vec![of("a")], &[wanted("w", None)], true, &[]).unwrap_err().status, 400);
    }
}
