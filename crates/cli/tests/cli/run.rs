//! `fcdcc run` and `fcdcc demo` as scripts use them, on files written by the demo.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use fcdcc_test_support::folder::{Folder, Said, header, npy};
use fcdcc_test_support::{every_row, relative_l2};
use ndarray::{ArrayD, Axis, Slice};

/// Coded and uncoded f32 logits of LeNet-5: four layers at condition numbers below 10.
const EXACT: f64 = 1e-5;

/// A folder with the model, 450 digits, one of them as a picture, and the names of the classes.
fn material() -> Folder {
    let folder = Folder::empty();
    let said = folder.run("demo --backend cpu --write . --quiet --fault 0:delay=0ms");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    folder
}

fn run(folder: &Folder, args: &str) -> Said {
    folder.run(&format!("run lenet5.onnx --backend cpu {args}"))
}

fn exact(folder: &Folder, args: &str) -> Said {
    let said = run(folder, args);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{args}");
    said
}

/// The first `count` digits as an input file.
fn digits(folder: &Folder, count: usize) {
    let all = folder.load::<f32>("digits.npy");
    let some = all.slice_axis(Axis(0), Slice::from(..count)).to_owned();
    ndarray_npy::write_npy(folder.path("some.npy"), &some).unwrap();
}

#[test]
fn the_demo_is_right_while_two_of_six_straggle() {
    let folder = Folder::empty();
    let said = folder.run("demo --backend cpu --report r.json");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    let rows: Vec<&str> = said.out.lines().filter(|l| l.ends_with("450 of 450")).collect();
    assert_eq!(rows.len(), 3, "{}", said.out);
    for row in &rows {
        let accuracy: f64 =
            row.split('%').next().unwrap().split_whitespace().last().unwrap().parse().unwrap();
        assert!(accuracy >= 97.0, "{row}");
    }
    assert!(said.out.contains("predictions identical to those of the uncoded run"), "{}", said.out);
    let seconds = |row: &str| -> f64 {
        row.split(" s ").next().unwrap().split_whitespace().last().unwrap().parse().unwrap()
    };
    // Three layers of five batches wait 200 ms each.
    assert!(seconds(rows[1]) > 3.0 && seconds(rows[0]) < seconds(rows[1]) / 2.0, "{rows:?}");
    let report = folder.json("r.json");
    assert_eq!(report["command"], "demo");
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 15);
    let late = |layer: &serde_json::Value| -> Vec<String> {
        let all = layer["workers"].as_array().unwrap().iter();
        all.filter(|w| w["outcome"] != "used").map(|w| w["worker"].as_str().unwrap().to_owned()).collect()
    };
    assert!(layers.iter().all(|l| late(l) == late(&layers[0]) && late(l).len() == 2));
}

#[test]
fn the_demo_survives_other_faults_and_writes_all_or_nothing() {
    let folder = Folder::empty();
    let said = folder.run("demo --backend cpu --quiet --fault random:2:crash --fault 5:nan --seed 3");
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{}", said.out);
    fs::create_dir(folder.path("edges.npy")).unwrap();
    folder.refused(2, "demo --backend cpu --write .", Folder::run);
}

#[test]
fn what_the_demo_writes_is_what_conv_takes() {
    let folder = material();
    let said = folder.run("conv --input digits.npy --weight edges.npy --output y.npy --backend cpu --quiet");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    assert_eq!(folder.load::<f32>("y.npy").shape(), [450, 8, 28, 28]);
}

#[test]
fn a_picture_is_recognised_and_named() {
    let folder = material();
    let said = exact(&folder, "--input digit.png --top 2 --labels labels.txt --quiet --output y.npy");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    // The first held-out digit, compared with its logits from the array.
    digits(&folder, 1);
    exact(&folder, "--input some.npy --output some_y.npy --quiet");
    let (picture, array) = (folder.load::<f32>("y.npy"), folder.load::<f32>("some_y.npy"));
    let best = (0..10).max_by(|a, b| array[[0, *a]].total_cmp(&array[[0, *b]])).unwrap();
    assert!(lines[0].contains(&format!("class {best} ")), "{lines:?}");
    // A picture has 256 levels.
    assert!(relative_l2(picture.as_slice().unwrap(), array.as_slice().unwrap()) < 1e-2);
    assert_ne!(picture, array);
}

#[test]
fn a_batch_with_two_dead_workers_equals_the_uncoded_run() {
    let folder = material();
    digits(&folder, 7);
    exact(&folder, "--input some.npy --output clean.npy --quiet");
    let args = "--input some.npy --fault 1,4:crash --compare --report r.json --outputs out --output y.npy";
    let said = exact(&folder, args);
    assert!(said.out.contains("deviates from the uncoded run by"), "{}", said.out);
    let conv1 = said.out.lines().find(|l| l.starts_with("conv1 ")).unwrap();
    assert!(["cpu-1 ", "cpu-4 "].iter().all(|w| conv1.contains(w)) && !conv1.contains("cpu-0"), "{conv1}");
    let report = folder.json("r.json");
    assert_eq!((&report["schema"], &report["command"]), (&1.into(), &"run".into()));
    assert!(report["total_ms"].as_f64().unwrap() >= report["host_ms"].as_f64().unwrap());
    let layers = report["layers"].as_array().unwrap();
    let names: Vec<&str> = layers.iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["conv1", "conv2", "conv3"]);
    for layer in layers {
        assert_eq!(layer["used"], serde_json::json!([0, 2, 3, 5]));
        assert_eq!((&layer["op"], &layer["code"], &layer["n"]), (&"Conv".into(), &"crme".into(), &6.into()));
    }
    assert_eq!(report["local_gemms"].as_array().unwrap().len(), 2);
    assert!(report["compare"][0]["relative_l2"].as_f64().unwrap() < EXACT);
    let clean = folder.load::<f32>("clean.npy");
    assert_eq!(clean.shape(), [7, 10]);
    for file in ["y.npy", "out/logits.npy"] {
        let got = folder.load::<f32>(file);
        assert!(relative_l2(got.as_slice().unwrap(), clean.as_slice().unwrap()) < EXACT);
    }
    // Fully connected layers on the workers too, in double precision, and uncoded: the same function.
    let rows = ["--gemm on", "--precision f64", "--code uncoded --gemm on", "--partitions 4,4 --workers 8"];
    every_row(rows, |args| {
        exact(&folder, &format!("--input some.npy --output z.npy --report g.json {args}"));
        let got = folder.load::<f32>("z.npy");
        assert!(relative_l2(got.as_slice().unwrap(), clean.as_slice().unwrap()) < EXACT, "{args}");
        let layers = folder.json("g.json")["layers"].as_array().unwrap().len();
        assert_eq!(layers, if args.contains("--gemm on") { 5 } else { 3 }, "{args}");
    });
}

#[test]
fn every_code_runs_the_whole_model() {
    let folder = material();
    digits(&folder, 3);
    exact(&folder, "--input some.npy --output clean.npy --quiet");
    let clean = folder.load::<f32>("clean.npy");
    every_row(fcdcc::CodeKind::ALL, |code| {
        // The third layer has one output row: the planner replaces partitions that do not fit.
        for partitions in ["", "--partitions 2,2"] {
            let args = format!("--code {code} {partitions} --gemm on --fault 1,4:crash");
            exact(&folder, &format!("--input some.npy --output y.npy --report r.json {args}"));
            let mut got = folder.load::<f32>("y.npy");
            let off = relative_l2(got.as_slice().unwrap(), clean.as_slice().unwrap());
            assert!(off < EXACT, "{args}: {off:e}");
            got[[1, 3]] += 0.1;
            assert!(relative_l2(got.as_slice().unwrap(), clean.as_slice().unwrap()) > EXACT);
            let report = folder.json("r.json");
            let layers = report["layers"].as_array().unwrap();
            assert!(layers.len() == 5 && layers.iter().all(|l| l["code"] == code.name()), "{args}");
        }
    });
}

#[test]
fn several_pictures_make_a_batch() {
    let folder = material();
    let said = exact(&folder, "--input digit.png digit.png digit.png --top 1 --output y.npy --quiet");
    assert_eq!(said.out.lines().filter(|l| l.starts_with("item ")).count(), 3);
    let got: ArrayD<f32> = folder.load("y.npy");
    assert_eq!(got.shape(), [3, 10]);
    let values = got.as_slice().unwrap();
    assert!(relative_l2(&values[..10], &values[20..]) < EXACT);
}

#[test]
fn answers_are_probabilities_and_json_where_they_are_asked_for() {
    let folder = material();
    fs::copy(folder.path("digit.png"), folder.path("other.png")).unwrap();
    let said = exact(&folder, "--input digit.png other.png --top 10 --softmax --json --labels labels.txt");
    let answers: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let items = answers["items"].as_array().unwrap();
    let files: Vec<&str> = items.iter().map(|item| item["file"].as_str().unwrap()).collect();
    assert_eq!((files, &answers["output"]), (vec!["digit.png", "other.png"], &"logits".into()));
    let top = items[1]["top"].as_array().unwrap();
    let number = |class: &serde_json::Value, field: &str| class[field].as_f64().unwrap();
    let powers: f64 = top.iter().map(|class| (number(class, "value") - number(&top[0], "value")).exp()).sum();
    for class in top {
        let by_hand = (number(class, "value") - number(&top[0], "value")).exp() / powers;
        assert!((number(class, "probability") - by_hand).abs() < 1e-12, "{class}");
        assert!(class["label"].is_string());
    }
    // Lines: the same order, probabilities in place of values.
    let said = exact(&folder, "--input digit.png other.png --top 2 --softmax --quiet");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!((lines[0], lines[3]), ("item 0  digit.png", "item 1  other.png"));
    let written: f64 = lines[4].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((written - number(&top[0], "probability")).abs() < 1e-6, "{lines:?}");
    let plain = exact(&folder, "--input digit.png other.png --top 2 --quiet");
    assert!(!plain.out.contains(lines[4]));
    // An array names no file; without --softmax there is no probability.
    digits(&folder, 2);
    let said = exact(&folder, "--input some.npy --top 1 --json");
    let answers: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let item = &answers["items"][1];
    assert!(item["file"].is_null() && item["top"][0]["probability"].is_null(), "{answers}");
    for unfit in ["--softmax", "--json"] {
        let error = folder.refused(2, &format!("run lenet5.onnx --input some.npy {unfit}"), Folder::run);
        assert!(error.contains("--top"), "{error}");
    }
}

#[test]
fn labels_beside_the_model_are_used_if_they_fit() {
    let folder = material();
    let args = "run lenet5.onnx --backend cpu --input digit.png --top 1";
    // Values differ in their last digits with the workers that answer.
    let class = |said: &Said| {
        let first = said.out.lines().next().unwrap();
        first.split_once("class ").unwrap().1.to_owned()
    };
    // The name must be that of the model: labels.txt is not taken.
    let plain = class(&folder.run(&format!("{args} --quiet")));
    assert!(plain.parse::<usize>().is_ok(), "{plain}");
    fs::copy(folder.path("labels.txt"), folder.path("lenet5.labels.txt")).unwrap();
    let said = folder.run(args);
    assert_eq!((said.status, said.err.as_str()), (0, "notice: labels are from lenet5.labels.txt\n"));
    let named = class(&said);
    assert!(named.starts_with(&format!("{plain}  ")), "{named}");
    // Labels that were asked for win.
    folder.write("upper.txt", "A\nB\nC\nD\nE\nF\nG\nH\nI\nJ\n");
    let said = folder.run(&format!("{args} --labels upper.txt"));
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    assert!(class(&said).starts_with(&format!("{plain}  ")) && class(&said) != named, "{}", said.out);
    folder.write("lenet5.labels.txt", "one\ntwo\n");
    let said = folder.run(args);
    assert_eq!((said.status, class(&said)), (0, plain));
    assert!(said.err.contains("it has 2 labels where output logits has 10 values"), "{}", said.err);
}

#[test]
fn a_model_with_a_fixed_batch_is_run_as_often_as_needed() {
    let folder = material();
    digits(&folder, 6);
    exact(&folder, "--input some.npy --output whole.npy --quiet");
    let said = exact(
        &folder,
        "--input some.npy --shape 2,1,32,32 --output pieces.npy --report r.json --compare --top 1",
    );
    let (whole, pieces) = (folder.load::<f32>("whole.npy"), folder.load::<f32>("pieces.npy"));
    assert_eq!(pieces.shape(), [6, 10]);
    assert!(relative_l2(pieces.as_slice().unwrap(), whole.as_slice().unwrap()) < EXACT);
    assert!(said.out.contains("3 runs") && said.out.contains("item 5"), "{}", said.out);
    let report = folder.json("r.json");
    assert_eq!(report["layers"].as_array().unwrap().len(), 9);
    assert!(report["compare"][0]["relative_l2"].as_f64().unwrap() < EXACT);
    exact(&folder, "--input digit.png digit.png --shape 1,1,32,32 --output two.npy --quiet");
    assert_eq!(folder.load::<f32>("two.npy").shape(), [2, 10]);
}

#[test]
fn too_few_workers_end_by_the_options_and_the_deadline() {
    let folder = material();
    digits(&folder, 1);
    let few = |args: &str| format!("run lenet5.onnx --backend cpu --input some.npy --output y.npy {args}");
    let error = folder.refused(3, &few("--fault 0,1,2:crash --on-shortfall fail"), Folder::run);
    assert!(error.contains("layer conv1") && error.contains("needs 4 of 6"), "{error}");
    let error = folder.refused(4, &few("--max-error 1e-12"), Folder::run);
    assert!(error.contains("layer conv1") && error.contains("exceeds the tolerance"), "{error}");
    // No worker answers: every layer is computed locally, before its deadline.
    let said = exact(&folder, "--input some.npy --fault all:drop --deadline 200ms");
    assert!(said.out.contains("fallback"), "{}", said.out);
}

#[test]
fn what_cannot_be_run_is_refused_in_a_line() {
    let folder = material();
    digits(&folder, 2);
    let whole = fs::read(folder.path("lenet5.onnx")).unwrap();
    folder.write("half.onnx", &whole[..whole.len() / 2]);
    folder.write("text.onnx", "this is no model");
    folder.write("empty.onnx", "");
    folder.write("few.txt", "one\ntwo\n");
    folder.array("flat.npy", &[2, 1024], vec![0.5f32; 2048]);
    folder.array("wide.npy", &[1, 1, 40, 40], vec![0.5f32; 1600]);
    folder.array("nan.npy", &[1, 1, 32, 32], vec![f32::NAN; 1024]);
    folder.write("words.npy", npy(&header("<U1", "(1, 1, 32, 32)"), &[0; 4096]));
    let rows = [
        ("half.onnx --input some.npy", "half.onnx: is not an ONNX model"),
        ("text.onnx --input some.npy", "text.onnx: is not an ONNX model"),
        ("empty.onnx --input some.npy", "0 bytes"),
        ("missing.onnx --input some.npy", "missing.onnx: cannot be read"),
        ("lenet5.onnx --input missing.npy", "missing.npy"),
        ("lenet5.onnx --input missing.png", "missing.png"),
        ("lenet5.onnx --input flat.npy", "is [2, 1024] where [batch, 1, 32, 32]"),
        ("lenet5.onnx --input wide.npy", "is [1, 1, 40, 40] where [batch, 1, 32, 32]"),
        ("lenet5.onnx --input wide.npy --shape 1,1,40,40", "fit together"),
        ("lenet5.onnx --input some.npy --shape 3,1,32,32", "is [2, 1, 32, 32] where [3, 1, 32, 32]"),
        ("lenet5.onnx --input digits.npy --shape 4,1,32,32", "is [450, 1, 32, 32] where [4, 1, 32, 32]"),
        ("lenet5.onnx --input some.npy --shape 3,1,32", "is [3, 1, 32] where"),
        ("lenet5.onnx --input some.npy --shape 0,1,32,32", "at least 1"),
        ("lenet5.onnx --input some.npy --shape picture=1,1,32,32", "picture where image"),
        ("lenet5.onnx --input some.npy --shape big", "big"),
        ("lenet5.onnx --input nan.npy", "layer conv1: input holds NaN"),
        ("lenet5.onnx --input words.npy", "holds '<U1'"),
        ("lenet5.onnx --input some.npy some.npy", "is 2 where one .npy or .npz array"),
        ("lenet5.onnx --input label=some.npy", "label=some.npy"),
        ("lenet5.onnx --input some.npy --top 0", "is 0"),
        ("lenet5.onnx --input some.npy --top 1 --labels few.txt", "is 2 where 10"),
        ("lenet5.onnx --input some.npy --top 1 --labels missing.txt", "missing.txt"),
        ("lenet5.onnx --input some.npy --output missing/y.npy", "missing"),
        ("lenet5.onnx --input some.npy --outputs lenet5.onnx", "is a file"),
        ("lenet5.onnx --input some.npy --outputs missing/out", "missing"),
        ("lenet5.onnx --input some.npy --output y.npy --report y.npy", "y.npy"),
        ("lenet5.onnx --input some.npy --gemm some", "auto, on or off"),
        ("lenet5.onnx --input some.npy --partitions 3,4", "3"),
        ("lenet5.onnx --input some.npy --partitions 8,8", "is 6 where at least 16"),
        ("lenet5.onnx --input digit.png --mean 0.5,0.5", "--mean"),
        ("lenet5.onnx --input digit.png --mean half", "half"),
        ("lenet5.onnx --input digit.png --std 0", "--std"),
        ("lenet5.onnx --input digit.png --layout nhwc", "--layout"),
        ("lenet5.onnx --input digit.png --fit squeeze", "squeeze"),
        ("lenet5.onnx --input digit.png digit.png --shape 3,1,32,32", "is 2 where a multiple of 3"),
    ];
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, &format!("run --backend cpu {args}"), Folder::run);
        assert!(error.contains(says), "{args}: {error}");
    });
}
