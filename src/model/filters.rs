//! The filters of a layer of a model, and the coded convolution that they make.
//!
//! Invariant: filters are not copied where the model holds them in the order, type and scale of the workers.

use std::sync::Arc;

use tract_onnx::prelude::DatumType;
use tract_onnx::tract_core::internal::{Datum, Tensor as TractTensor};

use super::find::{FilterOrder, Found, LayerOp};
use super::guard::guarded;
use super::prepared::CodedLayer;
use crate::array::{DType, Element, first_non_finite};
use crate::engine::{CodedConv, LayerOptions, SharedWeight};
use crate::error::{Error, Result};
use crate::scheduler::Pool;

/// The element type of a layer in the graph.
pub(super) fn own_type(found: &Found) -> DType {
    if found.dtype == f64::datum_type() { DType::F64 } else { DType::F32 }
}

/// Bytes of filters that a layer does not share with the model.
pub(super) fn copied_bytes(found: &Found, dtype: DType) -> u64 {
    let shared = match dtype {
        DType::F32 => Shared::<f32>::of(found).is_some(),
        DType::F64 => Shared::<f64>::of(found).is_some(),
    };
    if shared { 0 } else { (found.shape.weight_elems() * dtype.size_bytes()) as u64 }
}

/// Codes a layer in `dtype` and installs its filters, shared with `other` where they can be.
pub(super) fn prepare_layer(
    pool: &Pool,
    found: Found,
    op: LayerOp,
    options: LayerOptions,
    dtype: DType,
    other: Option<&CodedLayer>,
) -> Result<CodedLayer> {
    Ok(match (own_type(&found), dtype) {
        (DType::F32, DType::F32) => {
            CodedLayer::f32(op, convolution::<f32, f32>(pool, found, options, other)?)
        }
        (DType::F32, DType::F64) => {
            CodedLayer::f64(op, convolution::<f32, f64>(pool, found, options, other)?)
        }
        (DType::F64, DType::F32) => {
            CodedLayer::f32(op, convolution::<f64, f32>(pool, found, options, other)?)
        }
        (DType::F64, DType::F64) => {
            CodedLayer::f64(op, convolution::<f64, f64>(pool, found, options, other)?)
        }
    })
}

/// A coded layer in `T` from filters in `S`, beside `other` if that is of the same type.
fn convolution<S: Element + Datum, T: Element>(
    pool: &Pool,
    found: Found,
    options: LayerOptions,
    other: Option<&CodedLayer>,
) -> Result<CodedConv<T>> {
    let bias = found.folded.shift.iter().map(|b| T::from_f64(*b)).collect();
    let weight: SharedWeight<T> = match Shared::<T>::of(&found) {
        Some(shared) => Arc::new(shared),
        None => Arc::new(scaled::<S, T>(&found)?),
    };
    let other = other.and_then(CodedLayer::conv);
    CodedConv::prepare_beside(pool, found.shape, weight, Some(bias), options, other)
}

/// The error for a NaN or infinity in filters or bias, with which a coded layer is refused.
pub(super) fn flaw(found: &Found) -> Result<Option<Error>> {
    match own_type(found) {
        DType::F32 => flaw_of::<f32>(found),
        DType::F64 => flaw_of::<f64>(found),
    }
}

fn flaw_of<T: Element + Datum>(found: &Found) -> Result<Option<Error>> {
    let error = |what, found: Option<(usize, f64)>| {
        found.map(|(index, value)| Error::NonFinite { what, value, index })
    };
    let filters = match Shared::<T>::of(found) {
        Some(shared) => first_non_finite(shared.as_ref()),
        None => first_non_finite(&scaled::<T, T>(found)?),
    };
    let bias: Vec<T> = found.folded.shift.iter().map(|b| T::from_f64(*b)).collect();
    Ok(error("weight", filters).or_else(|| error("bias", first_non_finite(&bias))))
}

/// The filters of the model itself, usable if neither order, type nor scale have to change.
struct Shared<T> {
    tensor: Arc<TractTensor>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Shared<T> {
    fn of(found: &Found) -> Option<Self> {
        let same = matches!(
            (T::DTYPE, found.weight.datum_type()),
            (DType::F32, DatumType::F32) | (DType::F64, DatumType::F64)
        );
        let given = matches!(found.order, FilterOrder::ByOutputs);
        let fits = same && given && found.folded.keeps_filters();
        let shared = Self { tensor: Arc::clone(&found.weight), element: std::marker::PhantomData };
        (fits && shared.as_ref().len() == found.weight.len()).then_some(shared)
    }
}

impl<T: Element> AsRef<[T]> for Shared<T> {
    fn as_ref(&self) -> &[T] {
        let bytes = self.tensor.as_plain_ram().map_or(&[][..], |view| view.as_bytes());
        // Tensors are aligned to more than any element; otherwise `Shared::of` would see a wrong length.
        bytemuck::try_cast_slice(bytes).unwrap_or_default()
    }
}

/// A copy of the filters `[O, C/g, kernel...]`, each multiplied by the scale of its channel.
fn scaled<S: Element + Datum, T: Element>(found: &Found) -> Result<Vec<T>> {
    guarded("filters", || {
        let view = found.weight.try_as_plain_ram()?;
        let from = view.as_slice::<S>()?;
        let terms = found.shape.reduction();
        let outputs = found.shape.out_channels;
        let at = |o: usize, c: usize| {
            let source = found.order.source((outputs, terms), o, c);
            source.map_or(0.0, |index| from[index].to_f64())
        };
        let mut to = Vec::with_capacity(outputs * terms);
        for (o, scale) in found.folded.scale.iter().enumerate() {
            to.extend((0..terms).map(|c| T::from_f64(at(o, c) * scale)));
        }
        Ok(to)
    })
}
