//! Upsample, the operator that Resize replaced in opset 10.
//!
//! Files of YOLO v3 and v4 and of old versions of PyTorch's exporter contain it. `mode` is `nearest` or `linear`; positions are
//! those of Resize's `asymmetric`, rounded down for the nearest element. Scales are an attribute in opset 7 and 8, and an
//! input from opset 9 on.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto, attribute_proto};
use tract_onnx::prelude::TractResult;
use tract_onnx::tract_core::internal::format_err;
use tract_onnx::tract_hir::infer::InferenceOp;

use super::check::{attribute, called, is_standard, text};
use super::resize;

/// The operator name given to nodes that interpolate; it cannot occur in a file.
pub(super) const LINEAR: &str = "Upsample by interpolation";

/// The opset whose Resize has the inputs and positions of Upsample, and the last one that has Upsample.
const RESIZE_OPSET: i64 = 10;

/// Whether a node is of this kind.
pub(super) fn takes(node: &NodeProto) -> bool {
    node.op_type == "Upsample" && is_standard(node)
}

/// Turns a node into one of the operators that stand for Upsample. Gives the scales if they have to become a constant, which
/// is then the second input.
///
/// # Errors
/// One line, for modes without meaning, missing scales, and opsets that have no Upsample.
pub(super) fn as_resize(node: &mut NodeProto, opset: i64) -> Result<Option<TensorProto>, String> {
    if opset > RESIZE_OPSET {
        return Err(format!(
            "{}: opset {opset} has no Upsample: export the model with Resize, or for opset 9",
            called(node)
        ));
    }
    let mode = text(node, "mode").unwrap_or("nearest").to_owned();
    let operator = match mode.as_str() {
        "nearest" => resize::NAME,
        "linear" => LINEAR,
        _ => {
            return Err(format!(
                "{}: attribute mode is {mode:?} where nearest or linear was expected: export the model again",
                called(node)
            ));
        }
    };
    let constant = match (node.input.len(), attribute(node, "scales")) {
        (2, None) => None,
        (1, Some(scales)) if !scales.floats.is_empty() => Some(TensorProto {
            dims: vec![i64::try_from(scales.floats.len()).unwrap_or(i64::MAX)],
            data_type: 1,
            float_data: scales.floats.clone(),
            ..TensorProto::default()
        }),
        _ => {
            return Err(format!(
                "{}: it needs scales either as an attribute or as the second input: export the model again",
                called(node)
            ));
        }
    };
    operator.clone_into(&mut node.op_type);
    node.attribute.retain(|attribute| attribute.name == "mode");
    node.attribute.push(AttributeProto {
        name: "nearest_mode".to_owned(),
        r#type: attribute_proto::AttributeType::String.into(),
        s: b"floor".to_vec(),
        ..AttributeProto::default()
    });
    Ok(constant)
}

/// The parser of [`LINEAR`] for tract's operator register.
///
/// # Errors
/// As tract's Resize.
pub(super) fn parse_linear(
    ctx: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let resize = ctx.framework.op_register.0.get("Resize");
    let resize = resize.ok_or_else(|| format_err!("there is no Resize to interpolate with"))?;
    let ctx = ParsingContext { onnx_operator_set_version: RESIZE_OPSET, ..ctx.clone() };
    resize(&ctx, node)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::super::testing::{Attributes, Net};
    use super::*;

    fn node(inputs: &[&str], mode: &str) -> NodeProto {
        let mut net = Net::new(&[1, 1, 2, 2]);
        net.node("Upsample", inputs, "y").string("mode", mode);
        net.graph().node.remove(0)
    }

    #[test]
    fn scales_are_an_attribute_or_an_input() {
        let mut given = node(&["x", "s"], "nearest");
        assert!(takes(&given));
        assert_eq!(as_resize(&mut given, 9).unwrap(), None);
        assert_eq!((given.op_type.as_str(), text(&given, "nearest_mode")), (resize::NAME, Some("floor")));
        let mut own = node(&["x"], "linear");
        own.attribute.push(AttributeProto {
            name: "scales".to_owned(),
            floats: vec![1.0, 1.0, 2.0, 3.0],
            ..AttributeProto::default()
        });
        let scales = as_resize(&mut own, 7).unwrap().unwrap();
        assert_eq!((scales.dims, scales.float_data), (vec![4], vec![1.0, 1.0, 2.0, 3.0]));
        assert_eq!(own.op_type, LINEAR);
        assert!(attribute(&own, "scales").is_none());
    }

    #[test]
    fn what_has_no_meaning_is_refused_with_the_node() {
        for (mut node, opset, says) in [
            (node(&["x"], "nearest"), 9, "scales"),
            (node(&["x", "s"], "cubic"), 9, "\"cubic\""),
            (node(&["x", "s"], "nearest"), 11, "opset 11"),
        ] {
            let said = as_resize(&mut node, opset).unwrap_err();
            assert!(said.contains(says) && said.contains("makes y"), "{said}");
        }
        let other = NodeProto { domain: "com.other".to_owned(), ..node(&["x", "s"], "nearest") };
        assert!(!takes(&other));
    }
}
