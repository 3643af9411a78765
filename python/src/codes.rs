//! Codes: generator blocks, condition numbers, encoding and decoding of arrays.

use std::sync::Arc;

use fcdcc::coding::{Decoder, Epilogue, SubResult, decode, encode_filters, encode_input};
use fcdcc::conv::{ConvParams, ConvShape};
use fcdcc::partition::{FilterPartition, InputPartition, OutputTiling};
use fcdcc::{CodeKind, Error, SubtaskId};
use ndarray::{ArrayD, IxDyn};
use numpy::IntoPyArray;
use pyo3::prelude::*;

use super::arrays::{Borrowed, borrowed};
use super::errors;

/// A code; `fcdcc.codes.Code` wraps it.
#[pyclass(frozen, module = "fcdcc._fcdcc")]
pub(crate) struct Code(Arc<fcdcc::coding::Code>);

/// Stride, padding, dilation and groups.
type Geometry = (Vec<usize>, Vec<usize>, Vec<usize>, usize);

fn array(values: Vec<f64>, shape: &[usize]) -> ArrayD<f64> {
    ArrayD::from_shape_vec(IxDyn(shape), values).expect("the blocks have the sizes of the code")
}

fn shape_of(
    py: Python<'_>,
    input: &[usize],
    weight: &[usize],
    (stride, padding, dilation, groups): Geometry,
) -> PyResult<ConvShape> {
    let params = ConvParams::default().stride(stride).padding(padding).dilation(dilation).groups(groups);
    ConvShape::new(input, weight, &params).map_err(|error| errors::raise(py, error))
}

impl Code {
    pub(crate) fn of(code: fcdcc::coding::Code) -> Self {
        Self(Arc::new(code))
    }

    pub(crate) fn inner(&self) -> &Arc<fcdcc::coding::Code> {
        &self.0
    }

    fn check(&self, py: Python<'_>, subtasks: &[usize]) -> PyResult<()> {
        let n = self.0.n();
        if let Some(outside) = subtasks.iter().find(|subtask| **subtask >= n) {
            let help = format!("the code has the subtasks 0 to {}", n - 1);
            return Err(errors::raise(py, Error::invalid("subtask", *outside, help)));
        }
        let mut sorted = subtasks.to_vec();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(errors::raise(py, Error::invalid("subtask named twice", twice[0], "name each once")));
        }
        Ok(())
    }
}

#[pymethods]
impl Code {
    #[staticmethod]
    fn family(py: Python<'_>, kind: &str, k_a: usize, k_b: usize, n: usize) -> PyResult<Self> {
        let code = kind.parse::<CodeKind>().and_then(|kind| fcdcc::coding::Code::new(kind, k_a, k_b, n));
        code.map(Self::of).map_err(|error| errors::raise(py, error))
    }

    /// Blocks `[n, k_a, l_a]` and `[n, k_b, l_b]`.
    #[staticmethod]
    fn from_generators(a: &Bound<'_, PyAny>, b: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = a.py();
        let (a, b) = (borrowed::<f64>(a)?, borrowed::<f64>(b)?);
        let sizes = |array: &Borrowed<'_, f64>, what: &str| {
            <[usize; 3]>::try_from(array.shape()).map_err(|_| {
                let help = "give one block for each subtask, as [n, k, l]";
                errors::raise(py, Error::mismatch(what, array.shape(), "three axes [n, k, l]", help))
            })
        };
        let ([n, k_a, l_a], [also, k_b, l_b]) =
            (sizes(&a, "shape of the blocks A")?, sizes(&b, "shape of the blocks B")?);
        if also != n {
            let help = "give as many blocks A as blocks B";
            return Err(errors::raise(py, Error::mismatch("number of blocks B", also, n, help)));
        }
        let (a, b) = (a.as_slice()?.to_vec(), b.as_slice()?.to_vec());
        let code = py.detach(|| fcdcc::coding::Code::from_generators(n, (k_a, l_a), (k_b, l_b), a, b));
        code.map(Self::of).map_err(|error| errors::raise(py, error))
    }

    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind().name()
    }

    /// n, k_a, k_b, l_a, l_b, recovery threshold.
    #[getter]
    fn numbers(&self) -> (usize, usize, usize, usize, usize, usize) {
        let code = &self.0;
        (code.n(), code.k_a(), code.k_b(), code.l_a(), code.l_b(), code.recovery_threshold())
    }

    /// A, `[n, k_a, l_a]`.
    #[getter]
    fn input_blocks<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        let blocks = (0..self.0.n()).flat_map(|i| self.0.input_block(SubtaskId(i)).iter().copied());
        array(blocks.collect(), &[self.0.n(), self.0.k_a(), self.0.l_a()]).into_pyarray(py).into_any()
    }

    /// B, `[n, k_b, l_b]`.
    #[getter]
    fn filter_blocks<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        let blocks = (0..self.0.n()).flat_map(|i| self.0.filter_block(SubtaskId(i)).iter().copied());
        array(blocks.collect(), &[self.0.n(), self.0.k_b(), self.0.l_b()]).into_pyarray(py).into_any()
    }

    /// The recovery matrix of whole subtasks, `[k_a k_b, subtasks l_a l_b]`.
    fn recovery_matrix<'py>(&self, py: Python<'py>, subtasks: Vec<usize>) -> PyResult<Bound<'py, PyAny>> {
        self.check(py, &subtasks)?;
        let columns = self.0.sub_results_of(&subtasks);
        let rows = self.0.k_a() * self.0.k_b();
        let mut matrix = ArrayD::<f64>::zeros(IxDyn(&[rows, columns.len()]));
        for (column, of) in columns.iter().enumerate() {
            for (row, value) in self.0.recovery_column(*of).enumerate() {
                matrix[[row, column]] = value;
            }
        }
        Ok(matrix.into_pyarray(py).into_any())
    }

    fn condition(&self, py: Python<'_>, subtasks: Vec<usize>) -> PyResult<f64> {
        self.check(py, &subtasks)?;
        Ok(py.detach(|| self.0.condition(&subtasks)))
    }

    /// Condition numbers of many responder sets.
    fn conditions(&self, py: Python<'_>, sets: Vec<Vec<usize>>) -> PyResult<Vec<f64>> {
        sets.iter().try_for_each(|set| self.check(py, set))?;
        Ok(py.detach(|| sets.iter().map(|set| self.0.condition(set)).collect()))
    }

    /// The condition number of the decoder of whole subtasks; refuses sets that do not determine the parts.
    fn check_decodes(&self, py: Python<'_>, subtasks: Vec<usize>) -> PyResult<f64> {
        self.check(py, &subtasks)?;
        let decoder = py.detach(|| Decoder::for_subtasks(&self.0, &subtasks));
        decoder.map(|decoder| decoder.condition()).map_err(|error| errors::raise(py, error))
    }

    /// The coded slabs of each subtask of a layer, `[n, l_a, N, C, slab spatial...]`.
    fn encode_input<'py>(
        &self,
        py: Python<'py>,
        input: &Bound<'py, PyAny>,
        weight_shape: Vec<usize>,
        geometry: Geometry,
    ) -> PyResult<Bound<'py, PyAny>> {
        let input = borrowed::<f64>(input)?;
        let cut = Cut::new(py, &self.0, input.shape(), &weight_shape, geometry)?;
        let values = input.as_slice()?.to_vec();
        let slabs = py.detach(|| encode_input(&self.0, &cut.shape, &cut.slabs, &values, Vec::new()));
        let sizes = [vec![self.0.n(), self.0.l_a()], cut.subtask().input_shape()].concat();
        Ok(array(slabs.concat(), &sizes).into_pyarray(py).into_any())
    }

    /// The coded filter banks of each subtask of a layer, `[n, l_b, O', C/g, kernel...]`.
    fn encode_filters<'py>(
        &self,
        py: Python<'py>,
        weight: &Bound<'py, PyAny>,
        input_shape: Vec<usize>,
        geometry: Geometry,
    ) -> PyResult<Bound<'py, PyAny>> {
        let weight = borrowed::<f64>(weight)?;
        let cut = Cut::new(py, &self.0, &input_shape, weight.shape(), geometry)?;
        let values = weight.as_slice()?.to_vec();
        let bank = |i| encode_filters(&self.0, &cut.banks, &values, &[], SubtaskId(i));
        let banks: Vec<f64> = py.detach(|| (0..self.0.n()).flat_map(bank).collect());
        let sizes = [vec![self.0.n(), self.0.l_b()], cut.subtask().weight_shape()].concat();
        Ok(array(banks, &sizes).into_pyarray(py).into_any())
    }

    /// The output of a layer, `[N, O, spatial...]`, from the results of whole subtasks,
    /// `[subtasks, l_a, l_b, N, O', spatial...]`.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        subtasks: Vec<usize>,
        results: &Bound<'py, PyAny>,
        shapes: (Vec<usize>, Vec<usize>),
        geometry: Geometry,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.check(py, &subtasks)?;
        let results = borrowed::<f64>(results)?;
        let (input_shape, weight_shape) = shapes;
        let cut = Cut::new(py, &self.0, &input_shape, &weight_shape, geometry)?;
        let sizes = [vec![subtasks.len(), self.0.l_a(), self.0.l_b()], cut.subtask().output_shape()].concat();
        if results.shape() != sizes {
            let help =
                "give the results of the subtasks in their order, each as [l_a, l_b, N, O', spatial...]";
            let error = Error::mismatch("shape of the results", results.shape(), sizes.as_slice(), help);
            return Err(errors::raise(py, error));
        }
        let values = results.as_slice()?.to_vec();
        let shape = cut.shape.output_shape();
        let mut output = vec![0.0; cut.shape.output_elems()];
        py.detach(|| cut.decode(&self.0, &subtasks, &values, &mut output))
            .map_err(|error| errors::raise(py, error))?;
        Ok(array(output, &shape).into_pyarray(py).into_any())
    }
}

/// A layer as a code cuts it.
struct Cut {
    shape: ConvShape,
    slabs: InputPartition,
    banks: FilterPartition,
}

impl Cut {
    fn new(
        py: Python<'_>,
        code: &fcdcc::coding::Code,
        input: &[usize],
        weight: &[usize],
        geometry: Geometry,
    ) -> PyResult<Self> {
        let shape = shape_of(py, input, weight, geometry)?;
        let slabs = InputPartition::new(&shape, code.k_a()).map_err(|error| errors::raise(py, error))?;
        let banks = FilterPartition::new(&shape, code.k_b()).map_err(|error| errors::raise(py, error))?;
        Ok(Self { shape, slabs, banks })
    }

    /// The convolution of one sub-result.
    fn subtask(&self) -> ConvShape {
        self.slabs.slab_conv(self.banks.bank_channels())
    }

    fn decode(
        &self,
        code: &fcdcc::coding::Code,
        subtasks: &[usize],
        values: &[f64],
        output: &mut [f64],
    ) -> fcdcc::Result<()> {
        let decoder = Decoder::for_subtasks(code, subtasks)?;
        let size = self.subtask().output_elems();
        let place = |of: &SubResult| {
            let row = subtasks.iter().position(|subtask| *subtask == of.subtask.0).unwrap_or(0);
            &values[(row * code.sub_results() + code.index_of(*of)) * size..][..size]
        };
        let results: Vec<&[f64]> = decoder.inputs().iter().map(place).collect();
        let tiling = OutputTiling::new(&self.shape, &self.slabs, &self.banks);
        decode(&decoder, &tiling, &results, Epilogue::default(), output).map(drop)
    }
}
