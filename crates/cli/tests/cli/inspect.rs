//! `fcdcc inspect` as scripts use it, and the errors of `--shape`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use fcdcc_test_support::every_row;
use fcdcc_test_support::folder::{Folder, Said};
use serde_json::Value;

use super::external;

/// A folder with lenet5.onnx.
fn material() -> Folder {
    let folder = Folder::empty();
    let said = folder.run("demo --backend cpu --write . --quiet --fault 0:delay=0ms");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    folder
}

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.out).unwrap()
}

#[test]
fn a_model_is_described_in_eighty_columns_and_in_json() {
    let folder = material();
    let said = folder.run("inspect lenet5.onnx");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    for part in ["opset", "input image f32 [batch, 1, 32, 32]", "61706 parameters", "conv1", "It can run."] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    assert!(said.out.lines().all(|line| line.chars().count() <= 80), "{}", said.out);
    let said = folder.run("inspect lenet5.onnx --json --shape image=7,1,32,32");
    let told = json(&said);
    assert_eq!((said.status, &told["schema"], &told["command"]), (0, &1.into(), &"inspect".into()));
    assert_eq!((&told["runs"], &told["reasons"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(told["inputs"][0]["axes"], serde_json::json!(["batch", 1, 32, 32]));
    assert_eq!(told["layers"][0]["input"], serde_json::json!([7, 1, 32, 32]));
    assert_eq!(told["assumed"], serde_json::json!([]));
    let one = json(&folder.run("inspect lenet5.onnx --json"));
    assert_eq!(one["assumed"][0]["sizes"], serde_json::json!([1, 1, 32, 32]));
    let times = told["multiply_adds"].as_u64().unwrap() / one["multiply_adds"].as_u64().unwrap();
    assert_eq!(times, 7);
    assert_eq!(folder.run("inspect lenet5.onnx --quiet").out, "");
}

#[test]
fn a_file_that_cannot_run_is_described_too() {
    let folder = material();
    let whole = fs::read(folder.path("lenet5.onnx")).unwrap();
    folder.write("half.onnx", &whole[..whole.len() / 2]);
    folder.write("text.onnx", "this is no model");
    folder.write("missing.onnx", external::model("w.bin", 0));
    folder.write("outside.onnx", external::model("../w.bin", 0));
    folder.write("short.bin", [0; 10]);
    folder.write("short.onnx", external::model("short.bin", 0));
    folder.array("x.npy", &[1, 1, 6, 6], vec![0.5f32; 36]);
    folder.array("wide.npy", &[1, 1, 40, 40], vec![0.5f32; 1600]);
    let rows = [
        ("half.onnx", "", "x.npy", "file"),
        ("text.onnx", "", "x.npy", "file"),
        ("missing.onnx", "", "x.npy", "external"),
        ("outside.onnx", "", "x.npy", "external"),
        ("short.onnx", "", "x.npy", "external"),
        ("lenet5.onnx", "--shape 1,1,40,40", "wide.npy", "shape"),
    ];
    every_row(rows, |(model, shape, input, kind)| {
        let refused = folder.run(&format!("run {model} --backend cpu --input {input} {shape}"));
        let said = folder.run(&format!("inspect {model} {shape} --json"));
        assert_eq!((said.status, refused.status), (2, 2), "{}", said.out);
        // The error of `run`, word for word.
        assert_eq!(said.err, refused.err);
        let told = json(&said);
        assert_eq!((&told["runs"], &told["reasons"][0]["kind"]), (&false.into(), &kind.into()));
        let message = told["reasons"][0]["message"].as_str().unwrap();
        assert!(refused.err.trim_end().ends_with(message), "{}", refused.err);
        let report = folder.run(&format!("inspect {model} {shape}")).out;
        assert!(report.contains("It cannot run, for 1 reason:") && report.contains("help: "), "{report}");
    });
    let told = json(&folder.run("inspect missing.onnx --json"));
    assert_eq!(told["layers"][0]["filters"], serde_json::json!([2, 1, 3, 3]));
    assert_eq!(
        (&told["external"][0]["bytes"], &told["external"][0]["tensor_bytes"]),
        (&Value::Null, &72.into())
    );
    // With its file it runs.
    folder.write("w.bin", external::data(0, &[1.0; external::FILTERS]));
    let said = folder.run("inspect missing.onnx --json");
    assert_eq!((said.status, &json(&said)["external"][0]["bytes"]), (0, &72.into()));
}

#[test]
fn unfit_arguments_are_refused_with_the_axes_of_the_input() {
    let folder = material();
    folder.array("x.npy", &[1, 1, 32, 32], vec![0.5f32; 1024]);
    let axes = "[batch, 1, 32, 32]";
    let rows = [
        ("inspect none.onnx", vec!["none.onnx: cannot be read"]),
        ("inspect lenet5.onnx --shape 3,1,32", vec!["is [3, 1, 32] where", axes, "4 sizes, not 3"]),
        ("inspect lenet5.onnx --shape big", vec!["big", "NAME=1,3,224,224"]),
        ("run lenet5.onnx --input x.npy --shape big", vec!["big", axes]),
        ("run lenet5.onnx --input x.npy --shape image=big", vec!["image=big", axes]),
        ("run lenet5.onnx --input x.npy --shape picture=1,1,32,32", vec!["picture where image", axes]),
        ("run lenet5.onnx --input x.npy --shape 0,1,32,32", vec!["[0, 1, 32, 32]", "at least 1", axes]),
        ("plan lenet5.onnx --shape 3,1,32", vec!["is [3, 1, 32] where", axes, "4 sizes, not 3"]),
    ];
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, args, Folder::run);
        assert!(says.iter().all(|part| error.contains(part)), "{args}: {error}");
    });
}
