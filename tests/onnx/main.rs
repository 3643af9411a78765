//! Layers and models against the ONNX project's own: cases that Python makes, one test a case.

#[cfg(feature = "onnx")]
mod cases;
mod conv;
#[cfg(feature = "onnx")]
mod graphs;
#[cfg(feature = "onnx")]
mod half;
#[cfg(feature = "onnx")]
mod inspect;
#[cfg(feature = "onnx")]
mod loops;
#[cfg(feature = "onnx")]
mod models;
#[cfg(feature = "onnx")]
mod quantised;
#[cfg(feature = "onnx")]
mod transpose;

use fcdcc_test_support::suites::Suites;

fn main() {
    let suites = Suites::from_arguments().add("conv", conv::trials);
    #[cfg(feature = "onnx")]
    let suites = suites.add("graphs", graphs::trials).add("half", half::trials);
    #[cfg(feature = "onnx")]
    let suites = suites.add("inspect", inspect::trials).add("loops", loops::trials);
    #[cfg(feature = "onnx")]
    let suites = suites.add("models", models::trials);
    #[cfg(feature = "onnx")]
    let suites = suites.add("quantised", quantised::trials).add("transpose", transpose::trials);
    suites.run();
}
