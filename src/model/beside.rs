//! Plans of a model for other input shapes, whose coded filters a further plan shares.
//!
//! Coded filters depend on the filters and the code of a layer, not on the size of its input. A further plan therefore uses
//! the code that the layer has in an earlier plan, unless another one is predicted to be clearly faster for its own size.

use std::sync::Arc;

use super::find::Found;
use super::prepared::{CodedLayer, PreparedModel};
use crate::array::DType;
use crate::coding::Code;
use crate::error::Result;
use crate::planner::{Rates, subtask_shape};

/// A code of an earlier plan is used if the layer takes at most this many times the time of the best one.
const WORTH_SHARING: f64 = 1.1;

/// The plans that are ready.
pub(super) struct Beside<'a>(pub(super) &'a [Arc<PreparedModel>]);

impl Beside<'_> {
    fn layers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a CodedLayer> {
        self.0.iter().filter_map(move |model| model.layer(name))
    }

    /// A layer of this name and code in an earlier plan.
    pub(super) fn layer<'a>(&'a self, name: &'a str, code: &'a Code) -> Option<&'a CodedLayer> {
        self.layers(name).find(|layer| layer.code() == code)
    }

    /// The code to use where `best` is the planner's choice.
    ///
    /// # Errors
    /// Those of [`Rates::predict`].
    pub(super) fn code(
        &self,
        name: &str,
        found: &Found,
        best: Code,
        dtype: DType,
        rates: &Rates,
    ) -> Result<Code> {
        let time = |code: &Code| {
            let prediction = match dtype {
                DType::F32 => rates.predict::<f32>(&found.shape, code),
                DType::F64 => rates.predict::<f64>(&found.shape, code),
            };
            prediction.map(|prediction| prediction.total_s())
        };
        for layer in self.layers(name) {
            let code = layer.code();
            let alike = (code.kind(), code.n()) == (best.kind(), best.n())
                && code.recovery_threshold() <= best.recovery_threshold();
            let fits = alike && subtask_shape(&found.shape, code).is_ok();
            if fits && (*code == best || time(code)? <= WORTH_SHARING * time(&best)?) {
                return Ok(code.clone());
            }
        }
        Ok(best)
    }
}
