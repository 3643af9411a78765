//! Inspections against loading and preparing the same models.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use tract_onnx::pb::tensor_shape_proto::dimension::Value;
use tract_onnx::pb::{AttributeProto, StringStringEntryProto, TensorProto, type_proto};

use super::super::testing::{Attributes, Net};
use super::*;
use crate::scheduler::Pool;
use crate::worker::CpuWorker;

const NAME: &str = "net.onnx";
/// Where the models seem to come from: external files are looked for in the folder of an existing file.
const PATH: &str = "assets/digits/lenet5.onnx";

fn inspected(proto: ModelProto, shapes: &[InputShape]) -> Result<Inspection> {
    let told = Inspection { file: NAME.to_owned(), ..Inspection::default() };
    told.told(Ok((framework(), proto, 0)), Path::new(PATH), shapes)
}

fn loaded(proto: ModelProto) -> Result<Model> {
    Model::of_proto(NAME.to_owned(), framework(), proto, 0, Some(Path::new(PATH)))
}

/// The error with which the model is refused before it runs.
fn refused(proto: ModelProto) -> Option<String> {
    let pool = Pool::new(CpuWorker::fleet(6)).unwrap();
    let prepared = loaded(proto).and_then(|model| model.prepare(&pool, &ModelOptions::default()));
    prepared.err().map(|error| error.to_string().replacen("net.onnx: ", "", 1))
}

fn floats(count: usize) -> Vec<f32> {
    (0..count).map(|at| (at % 7) as f32 - 3.0).collect()
}

/// `x [1, 4, 8, 8]` through a convolution `c1` of 8 filters, a pool and a product `fc` with 10 outputs.
fn net() -> Net {
    let mut net = Net::new(&[1, 4, 8, 8]);
    net.floats("w", &[8, 4, 3, 3], &floats(288));
    net.floats("m", &[128, 10], &floats(1280));
    net.node("Conv", &["x", "w"], "a").ints("pads", &[1, 1, 1, 1]).ints("strides", &[2, 2]).name =
        "c1".to_owned();
    net.node("Relu", &["a"], "b");
    net.node("Flatten", &["b"], "f");
    net.node("MatMul", &["f", "m"], "y").name = "fc".to_owned();
    net
}

/// A model of `net`, changed.
fn changed(change: impl FnOnce(&mut ModelProto)) -> ModelProto {
    let mut proto = net().proto();
    change(&mut proto);
    proto
}

fn in_file(tensor: &mut TensorProto, location: &str) {
    let entry = StringStringEntryProto { key: "location".to_owned(), value: location.to_owned() };
    tensor.external_data.push(entry);
    tensor.data_location = Some(1);
    tensor.float_data.clear();
}

/// Graphs that run and graphs that do not, by the parts of the first reason.
fn cases() -> Vec<(&'static str, ModelProto, &'static str)> {
    let graph = |change: fn(&mut GraphProto)| changed(|proto| change(proto.graph.as_mut().unwrap()));
    vec![
        ("plain", net().proto(), ""),
        ("no graph", changed(|proto| proto.graph = None), "no graph of operators"),
        ("unknown", graph(|g| g.node[1].op_type = "Nothing".to_owned()), "cannot be run: Nothing"),
        ("domain", graph(|g| g.node[1].domain = "com.example".to_owned()), "com.example"),
        (
            "attribute",
            graph(|g| {
                g.node[0].attribute[1].ints = vec![0, 2];
            }),
            "strides is [0, 2]",
        ),
        ("twice", graph(|g| g.node[1].output[0] = "a".to_owned()), "gives the name a again"),
        ("no output", graph(|g| g.output[0].name = "z".to_owned()), "computes its output z"),
        ("undefined", graph(|g| g.node[1].input[0] = "q".to_owned()), "nothing in it defines: q"),
        ("missing file", graph(|g| in_file(&mut g.initializer[0], "w.bin")), "\"w.bin\""),
        ("outside", graph(|g| in_file(&mut g.initializer[0], "/w.bin")), "outside the model's folder"),
        ("product", graph(|g| g.initializer[1].dims = vec![64, 20]), "fit together"),
        ("data", graph(|g| g.initializer[0].dims = vec![8, 4, 3, 5]), ""),
        ("kernel", graph(|g| g.node[0].attribute[0].ints = vec![0, 0, 0, 0]), "fit together"),
        ("training", graph(|g| g.node[1].op_type = "BatchNormalization".to_owned()), ""),
        (
            "not a number",
            graph(|g| g.initializer[0].float_data[5] = f32::NAN),
            "weight holds NaN at flat index 5",
        ),
        ("product with NaN", graph(|g| g.initializer[1].float_data[5] = f32::NAN), ""),
        ("huge", graph(|g| g.initializer[0].dims = vec![i64::MAX, 4, 3, 3]), ""),
        ("negative", graph(|g| g.initializer[0].dims = vec![-8, 4, 3, 3]), ""),
        (
            "string input",
            graph(|g| {
                let Some(type_proto::Value::TensorType(tensor)) =
                    g.input[0].r#type.as_mut().unwrap().value.as_mut()
                else {
                    unreachable!()
                };
                tensor.elem_type = 8;
            }),
            "",
        ),
    ]
}

#[test]
fn a_file_runs_exactly_if_it_is_prepared_and_the_first_reason_is_the_error() {
    let mut refusals = 0;
    for (what, proto, says) in cases() {
        let (told, refused) = (inspected(proto.clone(), &[]).unwrap(), refused(proto));
        assert_eq!(told.runs, refused.is_none(), "{what}: {refused:?} and {:?}", told.reasons);
        assert_eq!(told.reasons.is_empty(), told.runs, "{what}");
        if let Some(refused) = refused {
            refusals += 1;
            assert_eq!(told.reasons[0].message, refused, "{what}");
            assert!(refused.contains(says), "{what}: {refused}");
            assert!(told.reasons.iter().all(|reason| !reason.help.is_empty()), "{what}");
        }
    }
    assert!(refusals > 12, "{refusals} refusals");
}

#[test]
fn all_reasons_are_there_at_once_with_their_nodes() {
    let proto = changed(|proto| {
        let graph = proto.graph.as_mut().unwrap();
        graph.node[0].attribute[1].ints = vec![0, 2];
        graph.node[1].op_type = "Nothing".to_owned();
        let mut second = graph.node[1].clone();
        (second.name, second.output[0]) = ("second".to_owned(), "unused".to_owned());
        graph.node.push(second);
        graph.node[2].domain = "com.example".to_owned();
        in_file(&mut graph.initializer[0], "missing.bin");
        in_file(&mut graph.initializer[1], "missing.bin");
        graph.output[0].name = "z".to_owned();
    });
    let told = inspected(proto, &[]).unwrap();
    let kinds: Vec<ReasonKind> = told.reasons.iter().map(|reason| reason.kind).collect();
    let (node, operator) = (ReasonKind::Node, ReasonKind::Operator);
    assert_eq!(kinds, [operator, node, node, ReasonKind::Graph, ReasonKind::External], "{:?}", told.reasons);
    // The node without a name has that of its output.
    let names: Vec<&str> = told.reasons[0].nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!((names, told.reasons[0].node_count), (vec!["b", "second"], 2));
    assert_eq!(
        (told.reasons[1].nodes[0].name.as_str(), told.reasons[1].nodes[0].op.as_str()),
        ("c1", "Conv")
    );
    let [external] = &told.external[..] else { panic!("{:?}", told.external) };
    assert_eq!((external.bytes, external.tensors, external.tensor_bytes), (None, 2, 4 * (288 + 1280)));
    assert_eq!(
        told.operators.iter().find(|o| o.op == "Nothing").map(|o| (o.count, o.known)),
        Some((2, false))
    );
    assert!(told.layers.iter().all(|layer| layer.coded.is_none() && layer.why.is_some()));
}

#[test]
fn reasons_are_counted_beyond_those_that_are_kept() {
    let mut net = Net::new(&[1, 3]);
    for index in 0..1000 {
        let (from, to) = (format!("v{index}"), format!("v{}", index + 1));
        net.node("Relu", &[&from], &to).domain = "com.example".to_owned();
    }
    let told = inspected(net.proto(), &[]).unwrap();
    assert_eq!(told.reasons.len() + told.reasons_left_out, 1001);
    assert_eq!(told.reasons.len(), 200);
}

#[test]
fn sizes_and_work_are_those_of_the_definition() {
    let told = inspected(net().proto(), &[]).unwrap();
    let [conv, product] = &told.layers[..] else { panic!("{:?}", told.layers) };
    assert_eq!((conv.name.as_str(), conv.op.as_str(), conv.coded), ("c1", "Conv", Some(true)));
    assert_eq!(conv.filters.as_deref(), Some(&[8, 4, 3, 3][..]));
    assert_eq!(
        (conv.input.as_deref(), conv.output.as_deref()),
        (Some(&[1, 4, 8, 8][..]), Some(&[1, 8, 4, 4][..]))
    );
    assert_eq!((conv.groups, conv.stride.as_slice()), (1, &[2, 2][..]));
    // 8 x 4 x 4 outputs of 4 x 3 x 3 terms; 10 outputs of 128 terms.
    assert_eq!((conv.multiply_adds, product.multiply_adds), (Some(128 * 36), Some(1280)));
    assert_eq!(told.multiply_adds, Some(128 * 36 + 1280));
    assert_eq!((told.parameters, told.parameter_bytes), (288 + 1280, 4 * (288 + 1280)));
    // An input of 256 elements, convolution, Relu and Flatten of 128 each, and 10 outputs.
    assert_eq!(told.activation_bytes, Some(4 * (256 + 3 * 128 + 10)));
    assert_eq!(told.peak_activation_bytes, Some(4 * (256 + 128)));
    assert_eq!(
        (told.outputs[0].dtype.as_str(), told.outputs[0].axes.as_deref()),
        ("f32", Some(&[AxisSize::Fixed(1), AxisSize::Fixed(10)][..]))
    );
}

#[test]
fn layers_that_cannot_be_coded_say_why() {
    let mut net = Net::new(&[1, 4, 8, 8]);
    net.floats("w", &[1, 4, 8, 8], &floats(256));
    net.floats("t", &[4, 2, 2, 2], &floats(32));
    net.node("Conv", &["x", "w"], "small").name = "small".to_owned();
    net.node("Relu", &["x"], "computed");
    net.node("Conv", &["x", "computed"], "dynamic").name = "dynamic".to_owned();
    net.node("ConvTranspose", &["x", "t"], "up").ints("strides", &[2, 2]).name = "up".to_owned();
    net.node("Conv", &["x", "w"], "unused").name = "unused".to_owned();
    net.node("Add", &["small", "dynamic"], "y");
    net.output("up");
    let told = inspected(net.proto(), &[]).unwrap();
    assert!(told.runs, "{:?}", told.reasons);
    let layer = |name: &str| told.layers.iter().find(|layer| layer.name == name).unwrap();
    let why = |name: &str| (layer(name).coded, layer(name).why.clone().unwrap_or_default());
    assert!(why("small").0 == Some(false) && !why("small").1.is_empty(), "{:?}", why("small"));
    assert_eq!(why("dynamic"), (Some(false), "its filters are not constant".to_owned()));
    assert_eq!(why("unused"), (Some(false), "nothing uses its output".to_owned()));
    assert_eq!(why("up"), (Some(true), String::new()));
    // Each of 4 x 8 x 8 elements is added to 2 x 2 x 2 outputs.
    assert_eq!(layer("up").multiply_adds, Some(256 * 8));
}

/// The same model with other sizes of the input; 0 stands for an open size.
fn open(sizes: &[i64]) -> ModelProto {
    changed(|proto| {
        let input = &mut proto.graph.as_mut().unwrap().input[0];
        let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_mut().unwrap().value.as_mut()
        else {
            unreachable!()
        };
        for (dim, size) in tensor.shape.as_mut().unwrap().dim.iter_mut().zip(sizes) {
            dim.value =
                Some(if *size == 0 { Value::DimParam("free".to_owned()) } else { Value::DimValue(*size) });
        }
    })
}

#[test]
fn an_open_batch_is_one_item_and_other_open_sizes_are_not_checked() {
    let shape = |sizes: &[usize]| InputShape { input: None, sizes: sizes.to_vec() };
    let told = inspected(open(&[0, 4, 8, 8]), &[]).unwrap();
    assert!(told.runs && told.multiply_adds.is_some() && told.unchecked.is_empty());
    assert_eq!((told.assumed[0].input.as_str(), told.assumed[0].sizes.as_slice()), ("x", &[1, 4, 8, 8][..]));
    assert_eq!(told.inputs[0].axes.as_ref().unwrap()[0], AxisSize::Symbol("free".to_owned()));
    let told = inspected(open(&[1, 4, 0, 8]), &[]).unwrap();
    assert_eq!((told.runs, told.unchecked.as_slice()), (true, &["x".to_owned()][..]));
    assert!(told.multiply_adds.is_none() && told.layers[0].coded.is_none());
    // Three items, and a size with which the product does not fit.
    let told = inspected(open(&[0, 4, 0, 8]), &[shape(&[3, 4, 8, 8])]).unwrap();
    assert_eq!((told.runs, told.multiply_adds), (true, Some(3 * (128 * 36 + 1280))));
    let told = inspected(open(&[0, 4, 0, 8]), &[shape(&[3, 4, 9, 8])]).unwrap();
    assert_eq!((told.runs, told.reasons[0].kind), (false, ReasonKind::Shape));
    // A shape that no input has is an error of the caller.
    let wrong = inspected(net().proto(), &[shape(&[1, 4, 8])]).unwrap_err().to_string();
    assert!(wrong.contains("is [1, 4, 8] where") && wrong.contains("4 sizes, not 3"), "{wrong}");
    let over = inspected(net().proto(), &[shape(&[1, 4, 9, 8])]).unwrap();
    assert!(over.reasons[0].message.contains("with x [1, 4, 9, 8] where the file has"), "{:?}", over.reasons);
}

#[test]
fn operators_inside_branches_are_reasons_only_if_the_file_cannot_run() {
    let with_branch = |condition: &str| {
        let mut net = net();
        let mut inner = Net::new(&[1, 4, 8, 8]);
        inner.node("Nothing", &["a"], "y");
        net.node("If", &[condition], "unused").attribute.push(AttributeProto {
            name: "then_branch".to_owned(),
            g: Some(inner.graph()),
            ..AttributeProto::default()
        });
        net.proto()
    };
    let told = inspected(with_branch("y"), &[]).unwrap();
    let refused = refused(with_branch("y"));
    assert_eq!(told.runs, refused.is_none());
    let named = told.reasons.iter().any(|reason| reason.message.contains("branches or loops"));
    assert_eq!(named, !told.runs, "{:?}", told.reasons);
    assert!(told.operators.iter().any(|o| o.op == "Nothing" && !o.known));
}

#[test]
fn what_is_no_model_is_a_reason_and_what_cannot_be_read_an_error() {
    let folder = std::env::temp_dir().join(format!("fcdcc-inspect-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let whole = std::fs::read("assets/digits/lenet5.onnx").unwrap();
    // Message in message in message: an attribute with a graph with a node with an attribute.
    let mut nested = Vec::new();
    for _ in 0..2000 {
        for tag in [0x0a_u8, 0x2a, 0x32] {
            let length = u64::try_from(nested.len()).unwrap();
            let mut head = vec![tag];
            let mut rest = length;
            while rest >= 128 {
                head.push(rest.to_le_bytes()[0] | 128);
                rest >>= 7;
            }
            head.push(rest.to_le_bytes()[0]);
            head.extend(nested);
            nested = head;
        }
    }
    let cases: [(&str, &[u8]); 5] = [
        ("half", &whole[..whole.len() / 2]),
        ("text", b"this is no model"),
        ("empty", b""),
        ("zero", &[0; 100]),
        ("nested", &nested),
    ];
    for (name, bytes) in cases {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        let told = Inspection::of(&path, &[]).unwrap();
        let error = Model::load(&path).unwrap_err().to_string();
        assert_eq!(
            (told.runs, told.reasons.len(), told.file_bytes),
            (false, 1, bytes.len() as u64),
            "{name}"
        );
        assert!(error.ends_with(&told.reasons[0].message), "{name}: {error}");
        assert_eq!(told.reasons[0].kind, ReasonKind::File);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(Inspection::of(folder.join("half"), &[]), Err(Error::File { .. } | Error::Io { .. })));
}
