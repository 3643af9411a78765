//! Whole CNNs from ONNX files, with coded convolutions.
//!
//! [`Model::load`] parses a file. [`Model::prepare`] replaces every Conv node (and the fully connected layers for which
//! it pays) by a coded layer on the workers of a [`Pool`](crate::Pool). All other nodes run on this machine: the frequent
//! ones of CNNs by [`ops`](crate::ops) and [`conv`](crate::conv) on all cores, the rest by
//! [tract](https://docs.rs/tract-onnx). Values lie in memory that is planned when the model is prepared and used again by
//! every run, unless sizes depend on data: then tract runs the whole graph. [`PreparedModel::run`] returns the outputs and a report for
//! every layer. A constant scale and shift for each channel (a batch normalisation, a bias) is folded into filters and
//! bias, and a following ReLU or clip is applied in the pass that writes the decoded output. Layers that cannot be
//! coded run locally, and the report says why. Models of 16-bit floats are computed in f32.
//!
//! ```no_run
//! use fcdcc::model::{Model, ModelOptions};
//! use fcdcc::worker::CpuWorker;
//! use fcdcc::Pool;
//! use ndarray::ArrayD;
//!
//! let pool = Pool::new(CpuWorker::fleet(6))?;
//! let prepared = Model::load("resnet50.onnx")?.prepare(&pool, &ModelOptions::default())?;
//! let run = prepared.run(&[ArrayD::<f32>::zeros(vec![1, 3, 224, 224]).into()])?;
//! println!("{:?}, {} layers", run.outputs[0].tensor.shape(), run.layers.len());
//! # Ok::<(), fcdcc::Error>(())
//! ```
//!
//! Relevant if you want to run whole models rather than single layers. No other module uses tract.
//!
//! Invariant: the graph that runs computes the same function as the file; only the place and the order of additions
//! differ.

mod batch;
mod beside;
mod branch;
mod branch_op;
mod cancel;
mod check;
mod compiled;
mod conv;
mod cut;
mod deform;
mod examine;
mod execute;
mod external;
mod extremes;
mod filters;
mod find;
mod findings;
mod fold;
mod fresh;
mod functions;
mod guard;
mod half;
mod host;
mod inner;
mod inspect;
mod inspection;
mod load;
#[cfg(test)]
mod loaded;
mod loop_facts;
mod loop_run;
mod loop_spec;
mod loops;
mod lower;
mod memory;
mod nodes;
mod numbers;
mod op;
mod operators;
mod options;
mod origin;
mod outputs;
mod parted;
mod parts;
mod place;
mod planned;
mod prelu;
mod prepare;
mod prepared;
mod quantised;
mod read;
mod recurrent;
mod replicated;
mod resize;
mod rewrite;
mod round;
mod runnable;
mod schedule;
mod sections;
mod segments;
mod sequences;
mod sets;
mod shapes;
mod shift;
mod signature;
mod slots;
mod steps;
mod survey;
mod tensor;
#[cfg(test)]
mod testing;
mod tidy;
mod transpose;
mod unary;
mod upsample;
mod value;
mod view;
mod whole;
mod wire;

pub use ::half::{bf16, f16};
pub use findings::{NodeName, Reason, ReasonKind};
pub use half::Widened;
pub use host::HostModel;
pub use inspection::{
    AssumedShape, AxisSize, ExternalFile, InputShape, InspectedLayer, Inspection, OperatorCount, Opset, Port,
};
pub use load::{InputInfo, Model};
pub use memory::ModelMemory;
pub use options::{AutoChoices, GemmChoice, ModelOptions, Progress, SegmentChoice};
pub use outputs::OutputInfo;
pub use parted::PartedModel;
pub use parts::OnnxParts;
pub use place::{Forecast, PlannedLayer};
pub use prepared::{ModelRun, PreparedModel};
pub use sections::{Cut, Sections};
pub use segments::{ModelSegment, SegmentReport};
pub use shapes::ModelShapes;
pub use signature::Output;
pub use tensor::Tensor;
pub use view::TensorView;
