//! What the suites of cases share: reading a case, and comparing outputs.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use fcdcc::model::Tensor;
use ndarray::ArrayD;
use ndarray_npy::ReadableElement;
use serde_json::Value;

/// An array of a case, of whatever type its file has.
pub(crate) fn array(path: &Path) -> Tensor {
    fn of<T: ReadableElement>(path: &Path) -> Option<Tensor>
    where
        ArrayD<T>: Into<Tensor>,
    {
        ndarray_npy::read_npy::<_, ArrayD<T>>(path).ok().map(Into::into)
    }
    let floats = of::<f32>(path).or_else(|| of::<f64>(path));
    let wide = floats.or_else(|| of::<i64>(path)).or_else(|| of::<i32>(path));
    wide.or_else(|| of::<u8>(path)).or_else(|| of::<i8>(path)).or_else(|| of::<bool>(path)).unwrap()
}

/// What the script says of a case.
pub(crate) fn facts(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap()
}

/// The first output that is wrong, if any: by number, type, shape, or by what `far` says of its values.
pub(crate) fn difference<'a>(
    got: impl IntoIterator<Item = &'a Tensor>,
    wanted: &[Tensor],
    far: impl Fn(usize, &Tensor, &Tensor) -> Option<String>,
) -> Option<String> {
    let got: Vec<&Tensor> = got.into_iter().collect();
    if got.len() != wanted.len() {
        return Some(format!("{} outputs where {} were expected", got.len(), wanted.len()));
    }
    got.into_iter().zip(wanted).enumerate().find_map(|(index, (got, want))| {
        if got.shape() != want.shape() || got.dtype() != want.dtype() {
            let of = |t: &Tensor| format!("{} {:?}", t.dtype(), t.shape());
            return Some(format!("output {index}: {} where {} was expected", of(got), of(want)));
        }
        far(index, got, want)
    })
}
