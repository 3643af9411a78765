//! Checks that a pool's workers compute coded layers correctly: runs a small layer and compares it with the definition.

use std::time::Duration;

use ndarray::ArrayD;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::layer::CodedConv;
use super::options::LayerOptions;
use crate::array::{Element, normal};
use crate::conv::{ConvParams, ConvShape, reference};
use crate::error::{Error, Message, Parameter, Result};
use crate::scheduler::{OnShortfall, Pool};

/// The deadline of a self-test.
const DEADLINE: Duration = Duration::from_secs(5);
const INPUT: [usize; 4] = [1, 3, 24, 20];
const WEIGHT: [usize; 4] = [16, 3, 3, 3];

/// A small coded layer with a known output, prepared on a pool. It uses no fallback: it passes only if enough workers
/// compute correctly in time.
pub struct SelfTest {
    layer: CodedConv<f32>,
    input: ArrayD<f32>,
    answer: Vec<f64>,
}

impl SelfTest {
    /// Prepares the layer on `pool`.
    ///
    /// # Errors
    /// Those of [`CodedConvBuilder::prepare`](super::CodedConvBuilder::prepare).
    pub fn prepare(pool: &Pool) -> Result<Self> {
        let array = |shape: [usize; 4], seed: u64| -> Result<ArrayD<f32>> {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let values = (0..shape.iter().product()).map(|_| f32::from_f64(normal(&mut random))).collect();
            ArrayD::from_shape_vec(shape.to_vec(), values)
                .map_err(|e| Error::invalid("shape", e.to_string(), "must fit"))
        };
        let (input, weight) = (array(INPUT, 1)?, array(WEIGHT, 2)?);
        let params = ConvParams::default().padding([1]);
        let shape = ConvShape::new(&INPUT, &WEIGHT, &params)?;
        let wide = |array: &ArrayD<f32>| -> Vec<f64> { array.iter().map(|v| f64::from(*v)).collect() };
        let answer = reference(&shape, &wide(&input), &wide(&weight), None)?;
        let options = LayerOptions {
            name: "self-test".to_owned(),
            tolerate: LayerOptions::default().tolerate.min(pool.len() - 1),
            ..LayerOptions::default()
        }
        .deadline(DEADLINE)
        .on_shortfall(OnShortfall::Fail)
        .hedge(None);
        let layer = CodedConv::builder(pool, input.shape(), weight.view())
            .params(params.clone())
            .options(options)
            .prepare()?;
        Ok(Self { layer, input, answer })
    }

    /// Runs the layer and checks its output.
    ///
    /// # Errors
    /// Those of [`CodedConv::run`], and [`Error::Inexact`] for a wrong output.
    pub fn run(&self) -> Result<()> {
        let run = self.layer.run(self.input.view())?;
        let off = run.output.iter().zip(&self.answer).map(|(got, want)| (f64::from(*got) - want).powi(2));
        let error = (off.sum::<f64>() / self.answer.iter().map(|v| v * v).sum::<f64>()).sqrt();
        let bound = run.report.error_bound;
        // Written so that a NaN fails too.
        if error <= bound {
            Ok(())
        } else {
            let help = Message::from("check the workers with ").and(Parameter::Audit).and(" correct");
            Err(Error::Inexact { what: "self-test".to_owned(), error, bound, help })
        }
    }
}
