//! `fcdcc plan`: its plan is the one that `run` uses; its files.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use fcdcc_test_support::every_row;
use fcdcc_test_support::folder::Folder;
use serde_json::Value;

fn json(folder: &Folder, args: &str) -> Value {
    let said = folder.run(args);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{args}");
    serde_json::from_str(&said.out).unwrap()
}

fn refused(folder: &Folder, args: &str, why: &[&str]) {
    let said = folder.run(args);
    assert_eq!((said.status, said.out.as_str()), (2, ""), "{args}: {}", said.err);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    for text in why {
        assert!(said.err.contains(text), "{args}: {}", said.err);
    }
}

#[test]
fn a_run_does_what_the_plan_says() {
    let folder = Folder::empty();
    assert_eq!(folder.run("demo --backend cpu --write . --quiet --fault 0:delay=0ms").status, 0);
    let rows = ["", "--workers 9 --tolerate 3", "--code replication", "--partitions 4,4", "--auto"];
    every_row(rows, |options| {
        let common = format!("--backend cpu --calibrate never {options}");
        let plan = json(&folder, &format!("plan lenet5.onnx --shape 1,1,32,32 --json {common}"));
        let said = folder.run(&format!("run lenet5.onnx --input digit.png --report r.json {common}"));
        assert_eq!(said.status, 0, "{options}: {}", said.err);
        let report = folder.json("r.json");
        let layers = report["layers"].as_array().unwrap();
        let planned = plan["layers"].as_array().unwrap();
        for layer in layers {
            let of = planned.iter().find(|p| p["name"] == layer["name"]).unwrap();
            for key in ["code", "n", "recovery_threshold", "k_a", "k_b"] {
                assert_eq!(layer[key], of[key], "{options}: {key} of {}", layer["name"]);
            }
        }
        assert!(planned.iter().all(|p| p["why"].as_str().is_some_and(|why| !why.is_empty())));
    });
}

#[test]
fn a_run_has_the_segments_of_the_plan() {
    let folder = Folder::empty();
    assert_eq!(folder.run("demo --backend cpu --write . --quiet --fault 0:delay=0ms").status, 0);
    every_row(["latency", "throughput"], |objective| {
        let common = format!("--backend cpu --calibrate never --auto --objective {objective}");
        let plan = json(&folder, &format!("plan lenet5.onnx --shape 1,1,32,32 --json {common}"));
        let planned = &plan["segments"];
        assert_eq!(planned["objective"], objective);
        let segments = planned["segments"].as_array().unwrap();
        let layers = segments.iter().map(|own| own["layers"].as_array().unwrap().len()).sum::<usize>();
        assert_eq!(layers, plan["layers"].as_array().unwrap().len());
        let why_not = planned["whole"][2]["why_not"].as_str().unwrap();
        assert!(why_not.contains("cores of this machine"), "{why_not}");
        let said =
            folder.run(&format!("run lenet5.onnx --input digit.png --compare --report r.json {common}"));
        assert_eq!(said.status, 0, "{}", said.err);
        let report = folder.json("r.json");
        let run = report["segments"].as_array().unwrap();
        let key = |own: &Value| [own["from"].clone(), own["to"].clone(), own["place"].clone()];
        assert_eq!(run.iter().map(key).collect::<Vec<_>>(), segments.iter().map(key).collect::<Vec<_>>());
        assert!(report["compare"][0]["relative_l2"].as_f64().unwrap() < 1e-5);
    });
    let said = folder.run("plan lenet5.onnx --shape 1,1,32,32 --objective latency");
    assert!(said.status == 2 && said.err.contains("--auto"), "{}", said.err);
    refused(&folder, "plan lenet5.onnx --auto --objective speed", &["latency or throughput"]);
}

#[test]
fn costs_of_a_shape_are_the_formulas() {
    let folder = Folder::empty();
    let args = "plan --shape 1,64,56,56 --weight 128,64,3,3 --padding 1 --partitions 8,8 --workers 20 \
                --backend cpu --calibrate never --json";
    let plan = json(&folder, args);
    let layer = &plan["layers"][0];
    // Section 6 of the scheme: l_A C ((rows-1) s + KH) (W + 2p), l_A l_B O/k_B H'/k_A W', l_B O/k_B C KH KW, in bytes of f32.
    assert_eq!(layer["upload_bytes"], 2 * 64 * (6 + 3) * 58 * 4);
    assert_eq!(layer["download_bytes"], 4 * 16 * 7 * 56 * 4);
    assert_eq!(layer["storage_bytes"], 2 * 16 * 64 * 9 * 4);
    assert_eq!(layer["macs"], f64::from(4 * 16 * 64 * 9 * 7 * 56));
    assert_eq!((&layer["recovery_threshold"], &layer["why"]), (&16.into(), &"as asked for".into()));
    let sum =
        ["encode_ms", "wait_ms", "decode_ms"].map(|key| layer[key].as_f64().unwrap()).iter().sum::<f64>();
    assert!((sum - layer["predicted_ms"].as_f64().unwrap()).abs() < 1e-9);
    // Double precision, twice the bytes.
    let double = json(&folder, &format!("{args} --precision f64"));
    assert_eq!(double["layers"][0]["upload_bytes"], 2 * 64 * 9 * 58 * 8);
}

#[test]
fn measured_pairs_come_as_a_page_and_as_numbers() {
    let folder = Folder::empty();
    let said = folder
        .run("plan --layers lenet5/conv2 --backend cpu --calibrate never --measure --trials 3 --output out");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    assert!(said.out.contains("chosen") && said.out.contains("paper's optimum"), "{}", said.out);
    let plan = folder.json("out/plan.json");
    let pairs = plan["pairs"][0]["pairs"].as_array().unwrap();
    assert!(pairs.len() >= 3 && pairs.iter().all(|p| p["measured_ms"].as_f64().unwrap() > 0.0));
    let html = std::fs::read_to_string(folder.path("out/plan.html")).unwrap();
    assert!(html.contains("lenet5/conv2") && html.contains("chosen / fastest") && html.contains("<svg"));
}

#[test]
fn rates_are_measured_once_and_kept() {
    let folder = Folder::empty();
    let cache = folder.path("cache");
    let plan = |how: &str| {
        let args = format!("plan --layers lenet5 --backend cpu --json --calibrate {how}");
        let said = folder.run_with(&args, &[("FCDCC_CACHE", cache.to_str().unwrap())]);
        assert_eq!((said.status, said.err.as_str()), (0, ""));
        serde_json::from_str::<Value>(&said.out).unwrap()["rates"].clone()
    };
    let builtin = plan("never");
    assert!(!cache.exists());
    let measured = plan("auto");
    assert_ne!(measured["worker"], builtin["worker"]);
    assert_eq!(plan("auto"), measured, "from the file");
    assert_ne!(plan("always")["worker"], measured["worker"]);
    // An unreadable cache is replaced.
    std::fs::write(cache.join("rates.json"), "{\"schema\":1,").unwrap();
    let again = plan("auto");
    assert_eq!(plan("auto"), again);
    assert!(again["worker"]["mac_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_cannot_be_planned_is_refused_and_nothing_written() {
    let folder = Folder::empty();
    let before = folder.content();
    refused(&folder, "plan", &["required"]);
    refused(&folder, "plan --layers vgg17", &["vgg17", "vgg16"]);
    refused(&folder, "plan --layers vgg16/conv9", &["vgg16/conv9", "vgg16/conv5_1"]);
    refused(&folder, "plan --shape 1,x --weight 1,1,3,3", &["1,x", "1,64,56,56"]);
    refused(&folder, "plan --shape 1,8,2,2 --weight 4,8,3,3", &["kernel"]);
    refused(
        &folder,
        "plan --layers lenet5 --tolerate 6 --backend cpu --calibrate never",
        &["--tolerate", "6"],
    );
    refused(&folder, "plan --layers lenet5 --measure --trials 0", &["--trials"]);
    refused(&folder, "plan nothing.onnx", &["nothing.onnx"]);
    refused(&folder, "plan --layers lenet5 --partitions 3,4 --backend cpu --calibrate never", &["k_A", "3"]);
    assert_eq!(folder.content(), before);
}
