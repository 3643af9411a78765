//! `fcdcc bench` as scripts use it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use fcdcc_bench::schema::BenchReport;
use fcdcc_test_support::every_row;
use fcdcc_test_support::folder::Folder;

const METHODS: [&str; 5] = ["uncoded", "hedged", "replication", "mds", "crme"];

fn report(folder: &Folder, file: &str) -> BenchReport {
    serde_json::from_str(&fs::read_to_string(folder.path(file)).unwrap()).unwrap()
}

#[test]
fn a_network_is_compared_and_the_report_has_everything() {
    let folder = Folder::empty();
    let said = folder.run(
        "bench --layers lenet5 --trials 5 --delay 4ms --no-break-even --backend cpu --output out --report r.json",
    );
    assert_eq!(said.status, 0, "{}", said.err);
    let found = report(&folder, "out/bench.json");
    assert_eq!(report(&folder, "r.json"), found);
    assert_eq!((found.setting.mode.as_str(), found.setting.trials), ("real", 5));
    assert!(found.setting.command.starts_with("fcdcc bench --layers lenet5"), "{}", found.setting.command);
    assert!(found.setting.workers.contains("6 x cpu"), "{}", found.setting.workers);
    let studies: Vec<&str> = found.studies.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(studies, ["lenet5/conv1", "lenet5/conv2", "lenet5/conv3"]);
    let html = fs::read_to_string(folder.path("out/report.html")).unwrap();
    for study in &found.studies {
        assert_eq!(study.scenarios.len(), 8);
        for scenario in &study.scenarios {
            assert!(html.contains(&scenario.name) && said.out.contains(&scenario.name), "{}", scenario.name);
            let methods: Vec<&str> = scenario.methods.iter().map(|m| m.method.as_str()).collect();
            // The last layer has one row, which a code over the input alone cannot split.
            let there = |m: &&str| study.name != "lenet5/conv3" || *m != "mds";
            assert_eq!(methods, METHODS.into_iter().filter(there).collect::<Vec<_>>());
            assert!(scenario.methods.iter().all(|m| m.failed == 0 && m.latencies_ms.len() == 5));
        }
    }
    assert!(METHODS.iter().all(|method| html.contains(method) && said.out.contains(method)));
    assert!(
        found.findings.iter().any(|f| f.starts_with("lenet5/conv3: mds is left out")),
        "{:?}",
        found.findings
    );
    assert_eq!(found.codec.len(), 3);
    assert!(found.conditions.iter().any(|c| c.code == "crme"));
}

#[test]
fn scenarios_methods_and_layers_can_be_given() {
    let folder = Folder::empty();
    folder.write("delays.txt", "0 3 0 0\n# a crash\n2, x, 0, 0\n");
    folder.write(
        "l.toml",
        "[[layer]]\nname = 'mine'\ninput = [1, 4, 12, 12]\nweight = [8, 4, 3, 3]\npadding = 1\nstride = [2, 1]\n",
    );
    let said = folder.run(
        "bench --layers l.toml --trials 2 --workers 4 --tolerate 1 --methods crme,uncoded --fault 0:delay=3ms \
         --scenario trace=delays.txt --scenario none --quiet --backend cpu --no-break-even --precision f64 --report r.json",
    );
    assert_eq!((said.status, said.out.as_str(), said.err.as_str()), (0, "", ""));
    let found = report(&folder, "r.json");
    let faults: Vec<String> = found.studies[0].scenarios.iter().map(|s| s.faults.join(" ")).collect();
    assert_eq!(faults, ["0:delay=3ms", "trace=delays.txt", ""]);
    let plans: Vec<(&str, usize)> =
        found.studies[0].plans.iter().map(|p| (p.method.as_str(), p.tolerated)).collect();
    assert_eq!(plans, [("crme", 1), ("uncoded", 0)]);
    assert_eq!((found.setting.precision.as_str(), found.studies[0].workers), ("f64", 4));
}

#[test]
fn models_are_compared_whole() {
    let folder = Folder::empty();
    assert_eq!(folder.run("demo --backend cpu --write . --quiet --fault 0:delay=0ms").status, 0);
    let said = folder.run(
        "bench --model lenet5.onnx --trials 2 --no-break-even --backend cpu --scenario random:2:delay=5ms \
         --scenario random:1:crash --report r.json",
    );
    assert_eq!(said.status, 0, "{}", said.err);
    let found = report(&folder, "r.json");
    let study = &found.studies[0];
    assert_eq!((study.kind.as_str(), study.scenarios.len(), found.studies.len()), ("model", 2, 1));
    let methods: Vec<&str> = study.scenarios[0].methods.iter().map(|m| m.method.as_str()).collect();
    assert_eq!(methods, ["uncoded", "hedged", "replication", "crme"]);
    assert!(study.macs > 1e5 && study.scenarios.iter().flat_map(|s| &s.methods).all(|m| m.failed == 0));
    assert!(found.findings.iter().any(|f| f.contains("mds is left out")), "{:?}", found.findings);
}

#[test]
fn hundreds_of_workers_are_simulated() {
    let folder = Folder::empty();
    let said = folder.run(
        "bench --virtual --workers 200 --tolerate 20 --layers vgg16/conv4_2 --trials 2 --link-latency 1ms --report r.json",
    );
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    let found = report(&folder, "r.json");
    assert_eq!((found.setting.mode.as_str(), found.studies[0].workers), ("virtual", 200));
    assert!(found.setting.workers.contains("200 x simulated") && found.setting.workers.contains("1ms"));
    assert!(found.studies[0].scenarios.iter().flat_map(|s| &s.methods).all(|m| m.failed == 0));
    let rows = [
        ("--workers 10001", "10001"),
        ("--bandwidth 0", "is 0"),
        ("--mac-rate -1", "is -1"),
        ("--audit detect", "detect"),
    ];
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, &format!("bench --virtual {args}"), Folder::run);
        assert!(error.contains(says), "{args}: {error}");
    });
}

#[test]
fn what_cannot_be_compared_is_refused_and_nothing_written() {
    let folder = Folder::empty();
    folder.write("bad.toml", "[[layer]]\nname = 'a'\ninput = [1, 3]\nweight = [1]\n");
    folder.write("bad.txt", "1 2\n3 y\n");
    folder.write("file", "");
    let rows = [
        ("--trials 0", "is 0"),
        ("--layers vgg17", "vgg17"),
        ("--layers vgg16/conv9", "vgg16/conv5_1"),
        ("--layers bad.toml", "bad.toml"),
        ("--methods crme,magic", "magic"),
        ("--methods crme,crme", "once"),
        ("--methods crme --code chebyshev", "--methods"),
        ("--scenario 0:nan", "`0:nan`"),
        ("--scenario 9:crash", "is 9"),
        ("--scenario trace=bad.txt", "line 2"),
        ("--scenario trace=missing.txt", "missing.txt"),
        ("--fault 0:corrupt=1", "corrupt"),
        ("--fault random:7:crash", "is 7"),
        ("--delay 0s", "is 0"),
        ("--delay soon", "soon"),
        ("--tolerate 6", "is 6"),
        ("--workers 0", "is 0"),
        ("--workers 3 --partitions 4,4", "is 3"),
        ("--partitions 3,4", "is 3"),
        ("--audit maybe", "maybe"),
        ("--output missing/out", "missing"),
        ("--output file", "is a file"),
        ("--report missing/r.json", "missing"),
        ("--input x.npy", "--model"),
        ("--bandwidth 5", "--virtual"),
        ("--virtual --backend cpu", "--backend"),
        ("--model file", "is not an ONNX model"),
    ];
    every_row(rows, |(args, says)| {
        let backend = if args.starts_with("--virtual") { "" } else { "--backend cpu" };
        let error = folder.refused(2, &format!("bench {backend} --quiet {args}"), Folder::run);
        assert!(error.contains(says), "{args}: {error}");
    });
}
