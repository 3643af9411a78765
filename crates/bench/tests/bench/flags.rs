//! The texts of errors as users of the command line read them, word for word, and as users of the library do.

use std::time::Duration;

use fcdcc::coding::Code;
use fcdcc::engine::WindowwiseLimit;
use fcdcc::error::Parameter;
use fcdcc::planner::{PlanOptions, feasible_partitions};
use fcdcc::{Audit, CodeKind, ConvParams, ConvShape, Error, LayerOptions};
use fcdcc_bench::with_flags;
use fcdcc_test_support::every_row;
use fcdcc_test_support::layer::{fail, options, pool, small};

/// The error has the text `line` on the command line, and no flag in the library.
fn check(error: Error, line: &str) {
    let (own, kind) = (error.to_string(), error.kind());
    assert!(!own.contains("--"), "{own}");
    let error = with_flags(error);
    assert_eq!((error.to_string().as_str(), error.kind()), (line, kind));
}

/// The refusal of a layer with these options on six workers.
fn refused(options: LayerOptions) -> Error {
    small().prepare(&pool(6, &[]), options).err().unwrap()
}

#[test]
fn options_have_the_names_of_their_flags() {
    let defaults = LayerOptions::default;
    check(
        refused(defaults().deadline(Duration::ZERO)),
        "deadline (--deadline) is 0: give a time above zero, such as 500ms or 2s",
    );
    check(
        refused(LayerOptions { subtasks: Some(0), ..defaults() }),
        "number of subtasks n (--workers) is 0: use at least one",
    );
    check(
        refused(defaults().hedge(Some(2.0))),
        "hedging quantile (--hedge) is 2: give a number between 0 and 1, or off",
    );
    check(refused(defaults().patience(-1.0)), "patience (--patience) is -1: give a number of at least 0");
    check(
        refused(LayerOptions { max_windowwise: WindowwiseLimit::At(0.0), ..defaults() }),
        "windowwise limit (--max-windowwise) is 0: give a relative error above zero, such as 1e-4, or off",
    );
    check(
        refused(LayerOptions { max_error: Some(0.0), ..defaults() }),
        "tolerance (--max-error) is 0: give a relative error above zero, such as 1e-3",
    );
    check(
        refused(options(4, 4).audit(Audit::Correct).partitions(4, 8)),
        "number of subtasks n (--workers) is 6 where at least 8, the recovery threshold of crme for partitions 4,8 was \
         expected: use more workers or fewer partitions",
    );
}

#[test]
fn shapes_codes_and_plans_have_the_names_of_their_flags() {
    check(
        Code::new(CodeKind::Crme, 4, 4, 3).unwrap_err(),
        "number of subtasks n (--workers) is 3 where at least 4, the recovery threshold of crme for partitions 4,4 was \
         expected: use more workers or fewer partitions",
    );
    let shape = ConvShape::new(&[1, 2, 8, 8], &[4, 2, 3, 3], &ConvParams::default()).unwrap();
    check(
        feasible_partitions(&shape, CodeKind::Crme, 6, 6).unwrap_err(),
        "stragglers to tolerate (--tolerate) is 6: it must be below the number of subtasks, 6",
    );
    check(
        PlanOptions::new(0, 2).check().unwrap_err(),
        "number of workers (--workers) is 0: use at least one",
    );
    check(
        ConvShape::new(&[1, 4, 8, 8], &[4, 3, 3, 3], &ConvParams::default()).unwrap_err(),
        "channels of the weight (its axis 1) is 3 where 4 (4 input channels / 1 groups) was expected: check --groups and \
         the weight's layout [out, channels/groups, kernel...]",
    );
}

#[test]
fn audits_have_the_names_of_their_flags() {
    let five = small().prepare(&pool(5, &[]), options(4, 4).audit(Audit::Correct)).err().unwrap();
    check(
        five,
        "spare results for --audit correct is 1 where at least 2 was expected: 5 subtasks of which 4 are needed leave no \
         more: raise --workers, or lower --partitions",
    );
    let replicated = LayerOptions { code: CodeKind::Replication, ..options(2, 1) };
    let two = LayerOptions { subtasks: Some(6), ..replicated }.audit(Audit::Correct);
    let line = with_flags(small().prepare(&pool(2, &[]), two).err().unwrap()).to_string();
    assert!(line.contains("where at least 3 for --audit correct was expected: give each of the 6"), "{line}");
    let vandermonde = LayerOptions { code: CodeKind::Vandermonde, ..options(6, 6) };
    let error = small().prepare(&pool(40, &[]), vandermonde).err().unwrap();
    let line = with_flags(error).to_string();
    assert!(line.ends_with("use fewer partitions (--partitions, --tolerate), or code crme"), "{line}");
}

#[test]
fn runs_have_the_names_of_their_flags() {
    let layer = small();
    let run = |faults: &[&str], options: LayerOptions| {
        let prepared = layer.prepare(&pool(6, faults), options).unwrap();
        prepared.run(layer.input.view()).unwrap_err()
    };
    let late = with_flags(run(&["0,1,2:drop"], fail(4, 4).deadline(Duration::from_millis(100)))).to_string();
    let help =
        "raise --deadline, allow --on-shortfall redispatch, add workers or lower the recovery threshold";
    assert!(late.ends_with(help), "{late}");
    // Without worker 5, the results of the liar are needed.
    let detected = run(&["0:corrupt=1e-2", "5:drop"], fail(4, 4).audit(Audit::Detect));
    let detected = with_flags(detected).to_string();
    let help = "use --audit correct with two spare results for each liar, or replace workers";
    assert!(detected.ends_with(help), "{detected}");
    check(
        Error::over_tolerance(1e-3, 1e-4, 2.0),
        "error bound 1.000e-3 exceeds the tolerance 1.000e-4 (condition number 2.000e0): use f64, lower the recovery \
         threshold, or raise --max-error",
    );
}

#[test]
fn every_parameter_has_a_flag_and_layers_pass_it_on() {
    every_row(Parameter::ALL, |parameter| {
        let named = with_flags(Error::invalid("value", 0, parameter.clone())).to_string();
        assert!(named.contains("--"), "{parameter}: {named}");
    });
    let inner = Box::new(Error::over_tolerance(1.0, 0.5, 1.0));
    let layer = with_flags(Error::Layer { layer: "conv1".to_owned(), source: inner }).to_string();
    assert!(layer.starts_with("layer conv1: error bound") && layer.ends_with("raise --max-error"), "{layer}");
    let input = Parameter::InputShape { input: "x".to_owned() };
    let shape = with_flags(Error::invalid("shape", "[?]", input)).to_string();
    assert_eq!(shape, "shape is [?]: --shape x=SIZES, or Model::with_input_shape");
}
