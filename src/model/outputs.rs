//! Names, element types and shapes of a model's outputs, without preparing or running the model.
//!
//! Relevant if you want to describe a model to clients before its first run.
//!
//! Invariant: the element type is that of the [`Tensor`](super::Tensor) that a run returns.

use tract_onnx::tract_core::internal::{DatumType, TDim, TypedModel};

use super::guard::guarded;
use super::load::Model;
use crate::error::Result;

/// One output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputInfo {
    /// Its name in the file.
    pub name: String,
    /// Element type of the result, as [`Tensor::dtype`](super::Tensor::dtype) names it.
    pub dtype: &'static str,
    /// Sizes of the axes for the present shapes of the inputs, `None` for a size that depends on data.
    pub shape: Vec<Option<usize>>,
}

impl Model {
    /// The outputs of the model, in order, for the shapes that its inputs have now.
    ///
    /// # Errors
    /// Those of [`Model::prepare`] that concern the model.
    ///
    /// # Examples
    ///
    /// ```
    /// let model = fcdcc::Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[2, 1, 32, 32])?;
    /// let outputs = model.output_infos()?;
    /// assert_eq!((outputs[0].dtype, outputs[0].shape.as_slice()), ("f32", [Some(2), Some(10)].as_slice()));
    /// # Ok::<(), fcdcc::Error>(())
    /// ```
    pub fn output_infos(&self) -> Result<Vec<OutputInfo>> {
        infos(self, &self.typed()?)
    }
}

/// The outputs of a model with this graph.
pub(super) fn infos(model: &Model, graph: &TypedModel) -> Result<Vec<OutputInfo>> {
    guarded(model.name(), || {
        let outlets = graph.output_outlets()?.iter().zip(model.outputs());
        outlets
            .map(|(outlet, name)| {
                let fact = graph.outlet_fact(*outlet)?;
                let size = |axis: usize| {
                    fact.shape.get(axis).and_then(TDim::as_i64).and_then(|s| usize::try_from(s).ok())
                };
                let shape = (0..fact.shape.rank()).map(size).collect();
                let half = model.half().outputs.get(name).map(|half| half.name());
                let dtype = half.unwrap_or_else(|| dtype(fact.datum_type));
                Ok(OutputInfo { name: name.clone(), dtype, shape })
            })
            .collect()
    })
}

/// The type to which [`Tensor`](super::Tensor) converts elements of this type.
fn dtype(of: DatumType) -> &'static str {
    match of {
        DatumType::F64 => "f64",
        DatumType::I8 => "i8",
        DatumType::I16 => "i16",
        DatumType::I32 => "i32",
        DatumType::U8 => "u8",
        DatumType::U16 => "u16",
        DatumType::U32 => "u32",
        DatumType::U64 => "u64",
        DatumType::Bool => "bool",
        float if float.is_float() => "f32",
        _ => "i64",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use ndarray::arr1;

    use super::super::loaded::loaded;
    use super::super::testing::Net;
    use crate::model::Tensor;

    fn sizes(values: &[i64]) -> Tensor {
        arr1(values).into_dyn().into()
    }

    #[test]
    fn a_shape_that_depends_on_an_input_is_known_once_its_value_is() {
        let mut net = Net::new(&[2, 6]);
        net.input("sizes", 7, &[2]);
        net.node("Reshape", &["x", "sizes"], "y");
        let model = loaded(net).unwrap();
        assert_eq!(model.inputs().len(), 2);
        for given in [[3, 4], [12, 1]] {
            let fixed = model.clone().with_input_value("sizes", &sizes(&given)).unwrap();
            assert_eq!(fixed.inputs().iter().map(|input| input.name.as_str()).collect::<Vec<_>>(), ["x"]);
            let shape = &fixed.output_infos().unwrap()[0].shape;
            assert_eq!(shape, &given.map(|size| usize::try_from(size).ok()));
            let x = Tensor::from(ndarray::ArrayD::<f32>::ones(vec![2, 6]));
            let y = &fixed.on_host().unwrap().run(&[x]).unwrap()[0].tensor;
            assert_eq!(y.shape(), given.map(|size| usize::try_from(size).unwrap()));
        }
        // Without its value the shape is not known.
        let open = model.output_infos().map(|infos| infos[0].shape.clone());
        assert!(open.is_err() || open.unwrap().contains(&None));
    }

    #[test]
    fn a_value_that_an_input_cannot_have_is_refused_by_name() {
        let mut net = Net::new(&[2, 6]);
        net.input("sizes", 7, &[2]);
        net.node("Reshape", &["x", "sizes"], "y");
        let model = loaded(net).unwrap();
        let refused =
            |name: &str, value: Tensor| model.clone().with_input_value(name, &value).unwrap_err().to_string();
        assert!(refused("size", sizes(&[3, 4])).contains("sizes"));
        assert!(refused("sizes", sizes(&[12])).contains("shape of input sizes is [1]"));
        let halves = Tensor::from(arr1(&[1.5_f32, 8.0]).into_dyn());
        assert!(refused("sizes", halves).contains("element type of input sizes"));
    }
}
