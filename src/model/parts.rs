//! Parts of models for workers that compute them whole.
//!
//! Relevant if you make workers that are to hold parts: give them an [`OnnxParts`].
//!
//! Invariant: the file of a part passes the same checks as any model file, and nothing of it is coded.

use ndarray::ArrayViewD;
use prost::Message as _;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

use super::guard::refused;
use super::load::Model;
use super::memory::ModelMemory;
use super::outputs::infos;
use super::prepared::PreparedModel;
use super::sections::{Sections, declared};
use super::tensor::Tensor;
use super::view::TensorView;
use crate::array::{DType, Values};
use crate::error::{Error, Result};
use crate::worker::{CancelToken, CompiledPart, PartArray, PartCompiler, PartFile, PartSignature};

/// Bytes that the smallest part takes, at most.
const SMALLEST_BYTES: u64 = 1 << 10;

/// Makes parts of ONNX models executable on threads of this machine.
///
/// # Examples
///
/// ```
/// use fcdcc::array::Values;
/// use fcdcc::model::OnnxParts;
/// use fcdcc::worker::PartCompiler;
/// use fcdcc::{CancelToken, Model};
///
/// let model = Model::load("assets/digits/lenet5.onnx")?.with_input_shape("image", &[1, 1, 32, 32])?;
/// let file = model.sections()?.part(&(0..1))?;
/// let mut part = OnnxParts.compile(&file, 1)?;
/// let outputs = part.run(&[Values::F32(vec![0.0; 32 * 32])], &CancelToken::new())?;
/// assert_eq!(outputs[0].len(), part.signature().outputs[0].shape.iter().product::<usize>());
/// # Ok::<(), fcdcc::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct OnnxParts;

impl OnnxParts {
    /// A part of one operator on one number, to see whether a worker takes parts.
    #[must_use]
    pub fn smallest() -> PartFile {
        let one = |name: &str| declared(name, &PartArray { dtype: DType::F32, shape: vec![1] });
        let node = NodeProto {
            op_type: "Relu".to_owned(),
            input: vec!["x".to_owned()],
            output: vec!["y".to_owned()],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            name: "smallest".to_owned(),
            node: vec![node],
            input: vec![one("x")],
            output: vec![one("y")],
            ..GraphProto::default()
        };
        let opset = OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() };
        let proto = ModelProto {
            ir_version: 8,
            opset_import: vec![opset],
            graph: Some(graph),
            ..ModelProto::default()
        };
        PartFile { bytes: proto.encode_to_vec().into(), memory_bytes: SMALLEST_BYTES }
    }
}

impl PartCompiler for OnnxParts {
    fn compile(&self, file: &PartFile, threads: usize) -> Result<Box<dyn CompiledPart>> {
        let threads = threads.max(1);
        let pool = (threads != rayon::current_num_threads()).then(|| workers(threads)).transpose()?;
        let compile = || -> Result<Part> {
            let model = Model::from_bytes("a part of a model", &file.bytes)?;
            let signature = signature(&model)?;
            let prepared = model.prepare_here()?;
            Ok(Part { memory_bytes: held(&prepared.memory()), prepared, signature, pool: None })
        };
        let part = match &pool {
            Some(pool) => pool.install(compile),
            None => compile(),
        };
        Ok(Box::new(Part { pool, ..part? }))
    }
}

/// The threads of a part.
fn workers(threads: usize) -> Result<ThreadPool> {
    let pool =
        ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("fcdcc part-{index}"));
    pool.build().map_err(|error| Error::Unavailable {
        what: format!("{threads} threads for a part of a model ({error})"),
        help: "the system is out of threads".into(),
    })
}

/// Bytes that a part takes: its constants as the file has them and as the operators read them, and the arrays of a run.
fn held(memory: &ModelMemory) -> u64 {
    memory.constants.saturating_mul(2).saturating_add(memory.host)
}

/// Element type and shape of what enters and leaves a model.
fn signature(model: &Model) -> Result<PartSignature> {
    let (graph, name) = (model.typed()?, model.name());
    let array = |what: &str, dtype: &str, shape: Option<Vec<usize>>| {
        let dtype = match dtype {
            "f32" => Some(DType::F32),
            "f64" => Some(DType::F64),
            _ => None,
        };
        dtype.zip(shape).map(|(dtype, shape)| PartArray { dtype, shape }).ok_or_else(|| {
            refused(
                name,
                &format!("{what} is not an array of f32 or f64 of fixed shape: cut the model elsewhere"),
            )
        })
    };
    let inputs = model.inputs().iter();
    let inputs = inputs.map(|own| array(&format!("input {}", own.name), &own.dtype, own.fixed_shape()));
    let outputs = infos(model, &graph)?
        .into_iter()
        .map(|own| array(&format!("output {}", own.name), own.dtype, own.shape.into_iter().collect()));
    Ok(PartSignature { inputs: inputs.collect::<Result<_>>()?, outputs: outputs.collect::<Result<_>>()? })
}

/// A part that is ready to be computed.
struct Part {
    prepared: PreparedModel,
    signature: PartSignature,
    memory_bytes: u64,
    /// Its threads; `None` for those of the current pool of rayon.
    pool: Option<ThreadPool>,
}

impl CompiledPart for Part {
    fn signature(&self) -> &PartSignature {
        &self.signature
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn run(&mut self, inputs: &[Values], cancel: &CancelToken) -> Result<Vec<Values>> {
        let views = views(&self.signature.inputs, inputs)?;
        let run = || self.prepared.run_views(&views, cancel, &mut |_| {});
        let run = match &self.pool {
            Some(pool) => pool.install(run),
            None => run(),
        }?;
        run.outputs.into_iter().map(|output| values(output.tensor)).collect()
    }
}

/// The values as arrays of these shapes, in place.
fn views<'a>(arrays: &[PartArray], values: &'a [Values]) -> Result<Vec<TensorView<'a>>> {
    if values.len() != arrays.len() {
        let help = "give each input of the part";
        return Err(Error::mismatch("number of inputs of a part", values.len(), arrays.len(), help));
    }
    let view = |(array, values): (&PartArray, &'a Values)| {
        let wrong = || {
            let got = format!("{} elements of {}", values.len(), values.dtype());
            let expected = format!("{:?} of {}", array.shape, array.dtype);
            Error::mismatch("input of a part", got, expected, "give data of its shape and type")
        };
        if values.dtype() != array.dtype {
            return Err(wrong());
        }
        Ok(match values {
            Values::F32(own) => {
                TensorView::F32(ArrayViewD::from_shape(array.shape.clone(), own).map_err(|_| wrong())?)
            }
            Values::F64(own) => {
                TensorView::F64(ArrayViewD::from_shape(array.shape.clone(), own).map_err(|_| wrong())?)
            }
        })
    };
    arrays.iter().zip(values).map(view).collect()
}

/// The elements of a tensor in row-major order.
pub(super) fn values(tensor: Tensor) -> Result<Values> {
    fn flat<T: Copy>(array: ndarray::ArrayD<T>) -> Vec<T> {
        if !array.is_standard_layout() {
            return array.iter().copied().collect();
        }
        let len = array.len();
        let (mut all, offset) = array.into_raw_vec_and_offset();
        let offset = offset.unwrap_or(0);
        if offset > 0 {
            all.drain(..offset);
        }
        all.truncate(len);
        all
    }
    match tensor {
        Tensor::F32(array) => Ok(Values::F32(flat(array))),
        Tensor::F64(array) => Ok(Values::F64(flat(array))),
        other => Err(Error::mismatch(
            "element type of a value between parts",
            other.dtype(),
            "f32 or f64",
            "cut the model elsewhere",
        )),
    }
}

impl Sections {
    /// The file of a part for workers, and the memory that they need for it.
    ///
    /// # Errors
    /// Those of [`Sections::file`] and [`Model::from_bytes`]; [`Error::Model`] for a part that workers cannot hold, see
    /// [`Sections::signature`].
    pub fn part(&self, pieces: &std::ops::Range<usize>) -> Result<PartFile> {
        let bytes = self.file(pieces)?;
        let model = Model::from_bytes(self.name_of(pieces), &bytes)?;
        signature(&model)?;
        let memory = ModelMemory::of(model.name(), &model.typed()?)?;
        Ok(PartFile { bytes: bytes.into(), memory_bytes: held(&memory) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{Attributes, Net};
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let mut state = u32::try_from(seed).unwrap().wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn model(net: Net) -> Model {
        Model::from_shared("net.onnx", net.proto().encode_to_vec().into()).unwrap()
    }

    fn conv(net: &mut Net, (from, to): (&str, &str), channels: usize, groups: usize, seed: usize) {
        let filters = format!("{to}.w");
        net.floats(
            &filters,
            &[channels, channels / groups, 3, 3],
            &numbers(channels * channels / groups * 9, seed),
        );
        let node = net.node("Conv", &[from, &filters], to).ints("pads", &[1, 1, 1, 1]);
        node.int("group", i64::try_from(groups).unwrap());
    }

    /// Two residual blocks, and a head whose shape is computed from that of the input.
    fn residual() -> Net {
        let mut net = Net::new(&[2, 4, 6, 6]);
        for (block, from, to) in [(0, "x", "a"), (1, "a", "b")] {
            let inner = |what: &str| format!("{what}{block}");
            conv(&mut net, (from, &inner("c")), 4, 1, block);
            net.node("Relu", &[&inner("c")], &inner("r"));
            conv(&mut net, (&inner("r"), &inner("d")), 4, 1, 7 + block);
            net.node("Add", &[&inner("d"), from], to);
        }
        net.node("GlobalAveragePool", &["b"], "p");
        net.integers("zero", &[0]);
        net.integers("rest", &[-1]);
        net.node("Shape", &["x"], "shape");
        net.node("Gather", &["shape", "zero"], "batch").int("axis", 0);
        net.node("Concat", &["batch", "rest"], "flat").int("axis", 0);
        net.node("Reshape", &["p", "flat"], "v");
        net.floats("m", &[4, 3], &numbers(12, 3));
        net.node("Transpose", &["m"], "mt").ints("perm", &[1, 0]);
        net.node("Transpose", &["mt"], "mtt").ints("perm", &[1, 0]);
        net.node("MatMul", &["v", "mtt"], "y");
        net
    }

    /// Grouped convolutions in branches that are joined again.
    fn branchy() -> Net {
        let mut net = Net::new(&[1, 4, 7, 5]);
        conv(&mut net, ("x", "a"), 4, 2, 1);
        net.node("Relu", &["a"], "b");
        conv(&mut net, ("b", "left"), 4, 4, 2);
        conv(&mut net, ("b", "right"), 4, 1, 3);
        net.node("Concat", &["left", "right"], "joined").int("axis", 1);
        conv(&mut net, ("joined", "c"), 8, 2, 4);
        net.node("Sigmoid", &["c"], "y");
        net
    }

    fn compiled(sections: &Sections, pieces: std::ops::Range<usize>) -> Box<dyn CompiledPart> {
        let (file, signature) = (sections.part(&pieces).unwrap(), sections.signature(&pieces).unwrap());
        let part = OnnxParts.compile(&file, 1).unwrap();
        assert_eq!(*part.signature(), signature);
        assert_eq!(part.memory_bytes(), file.memory_bytes);
        part
    }

    fn distance(got: &[f32], want: &[f32]) -> f64 {
        let pairs = got.iter().zip(want);
        let (error, norm) = pairs.fold((0.0, 0.0), |(error, norm), (g, w)| {
            (error + f64::from(g - w).powi(2), norm + f64::from(*w).powi(2))
        });
        (error / norm).sqrt()
    }

    #[test]
    fn the_parts_of_every_cut_give_the_result_of_the_whole() {
        let lenet = Model::load("assets/digits/lenet5.onnx").unwrap();
        let lenet = lenet.with_input_shape("image", &[1, 1, 32, 32]).unwrap();
        for (model, most) in
            [(lenet, "Conv"), (model(residual()), "a b p v"), (model(branchy()), "a b joined c")]
        {
            let sections = model.sections().unwrap();
            let names: Vec<&str> = sections.cuts().iter().map(|cut| cut.name.as_str()).collect();
            assert!(most == "Conv" || names.join(" ") == most, "{names:?}");
            assert!(names.len() >= 4 && sections.whole_only().is_none());
            let token = CancelToken::new();
            let elems = sections.signature(&(0..1)).unwrap().inputs[0].shape.iter().product();
            let input = Values::F32(numbers(elems, 11));
            let all = 0..sections.pieces();
            let whole = compiled(&sections, all.clone()).run(std::slice::from_ref(&input), &token).unwrap();
            let whole = whole[0].as_slice::<f32>().unwrap();
            let shape = model.inputs()[0].fixed_shape().unwrap();
            let image = ndarray::ArrayD::from_shape_vec(shape, numbers(elems, 11)).unwrap();
            let truth = model.on_host().unwrap().run(&[image.into()]).unwrap().remove(0);
            let Values::F32(truth) = values(truth.tensor).unwrap() else { panic!("it was f32") };
            assert!(distance(whole, &truth) < 1e-5);
            for at in 1..sections.pieces() {
                let middle = compiled(&sections, 0..at).run(std::slice::from_ref(&input), &token).unwrap();
                let mut rest = compiled(&sections, at..all.end);
                let end = rest.run(&middle, &token).unwrap();
                assert!(
                    distance(end[0].as_slice::<f32>().unwrap(), whole) < 1e-5,
                    "at cut {}",
                    names[at - 1]
                );
                // Negative control: another value there gives another result.
                let Values::F32(mut other) = middle[0].clone() else { panic!("it was f32") };
                for value in &mut other {
                    *value += 1.0;
                }
                let end = rest.run(&[Values::F32(other)], &token).unwrap();
                assert!(
                    distance(end[0].as_slice::<f32>().unwrap(), whole) > 1e-3,
                    "at cut {}",
                    names[at - 1]
                );
            }
            let layers: Vec<usize> = sections.layers().iter().map(|(_, piece)| *piece).collect();
            assert!(layers.is_sorted() && *layers.last().unwrap() > 0, "{layers:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_part_is_refused_with_its_reason() {
        let model = model(branchy());
        let sections = model.sections().unwrap();
        let mut part = compiled(&sections, 0..1);
        let token = CancelToken::new();
        let refused = |part: &mut dyn CompiledPart, inputs: &[Values]| {
            part.run(inputs, &token).unwrap_err().to_string()
        };
        assert!(refused(&mut *part, &[]).contains("is 0 where 1"));
        assert!(refused(&mut *part, &[Values::F32(vec![0.0; 3])]).contains("3 elements of f32"));
        assert!(refused(&mut *part, &[Values::F64(vec![0.0; 140])]).contains("f64"));
        token.cancel();
        assert!(matches!(part.run(&[Values::F32(vec![0.0; 140])], &token), Err(Error::Cancelled)));
        for range in [0..0, 0..9] {
            assert!(matches!(sections.file(&range), Err(Error::InvalidParameter { .. })));
        }
        let mut smallest = OnnxParts.compile(&OnnxParts::smallest(), 2).unwrap();
        assert_eq!(
            smallest.run(&[Values::F32(vec![-1.0])], &CancelToken::new()).unwrap(),
            [Values::F32(vec![0.0])]
        );
        let broken = PartFile { bytes: Arc::from([7u8; 9].as_slice()), memory_bytes: 0 };
        assert!(matches!(OnnxParts.compile(&broken, 1).err(), Some(Error::Model { .. })));
        // Without its bytes a model is one piece.
        let gone =
            Model::from_bytes("net.onnx", &branchy().proto().encode_to_vec()).unwrap().sections().unwrap();
        assert!(gone.cuts().is_empty() && gone.whole_only().unwrap().contains("not kept"));
        assert!(gone.file(&(0..1)).is_err() && gone.signature(&(0..1)).is_none());
    }

    #[test]
    fn an_input_that_has_a_value_for_good_is_no_input_of_a_part() {
        let mut net = Net::new(&[2, 6]);
        net.input("sizes", 7, &[2]);
        net.node("Relu", &["x"], "a");
        net.node("Reshape", &["a", "sizes"], "y");
        let sizes = Tensor::from(ndarray::arr1(&[3_i64, 4]).into_dyn());
        let model = model(net).with_input_value("sizes", &sizes).unwrap();
        let sections = model.sections().unwrap();
        assert_eq!(sections.cuts().iter().map(|cut| cut.name.as_str()).collect::<Vec<_>>(), ["a"]);
        let mut part = compiled(&sections, 1..2);
        assert_eq!(part.signature().outputs[0].shape, [3, 4]);
        let values: Vec<f32> = (0..12u8).map(f32::from).collect();
        let out = part.run(&[Values::F32(values.clone())], &CancelToken::new()).unwrap();
        assert_eq!(out, [Values::F32(values)]);
    }
}
