//! The binary as scripts use it: exit statuses, files, and output.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::time::{Duration, Instant};

use fcdcc::conv::reference;
use fcdcc::{CodeKind, ConvParams, ConvShape, Element};
use fcdcc_test_support::folder::{Folder, INPUT, WEIGHT, header, npy};
use fcdcc_test_support::{every_row, relative_l2};
use ndarray_npy::{ReadableElement, WritableElement};
use serde_json::Value;

/// Relative L2: f32 (f64) workers at condition numbers below 100 and sums of fewer than 100 products.
const EXACT_F32: f64 = 3e-5;
const EXACT_F64: f64 = 1e-12;

fn agrees<T: Element + ReadableElement + WritableElement>(
    input: &[usize],
    weight: &[usize],
    args: &str,
    params: ConvParams,
    tolerance: f64,
) {
    let folder = Folder::empty();
    let x = folder.random::<T>("x.npy", input, 1);
    let w = folder.random::<T>("w.npy", weight, 2);
    let b = folder.random::<T>("b.npy", &weight[..1], 3);
    let shape = ConvShape::new(input, weight, &params).unwrap();
    for bias in [false, true] {
        let with_bias = if bias { "--bias b.npy" } else { "" };
        folder.exact(&format!("{args} {with_bias} --precision {}", T::DTYPE));
        let got = folder.load::<T>("y.npy");
        assert_eq!(got.shape(), shape.output_shape(), "{args}");
        let truth = reference(&shape, &x, &w, bias.then_some(&b)).unwrap();
        let mut got = got.as_slice().unwrap().to_vec();
        let error = relative_l2(&got, &truth);
        assert!(error < tolerance, "{args}: {error:e}");
        // Negative control: one wrong element is detected.
        got[0] += T::from_f64(0.1);
        assert!(relative_l2(&got, &truth) > tolerance);
    }
}

#[test]
fn every_spelling_of_the_parameters_in_one_two_and_three_dimensions() {
    let p = ConvParams::default;
    let table: [(&[usize], &[usize], &str, ConvParams); 12] = [
        (&INPUT, &WEIGHT, "", p()),
        (&INPUT, &WEIGHT, "--stride 2 --padding 1", p().stride([2]).padding([1])),
        (&INPUT, &WEIGHT, "--stride 2,1 --padding 1,2", p().stride([2, 1]).padding([1, 2])),
        (&INPUT, &WEIGHT, "--stride 1 2 --padding 0,1,2,0", p().stride([1, 2]).padding([0, 1, 2, 0])),
        (&INPUT, &WEIGHT, "--dilation 2", p().dilation([2])),
        (&INPUT, &WEIGHT, "--dilation 3,2 --padding 2", p().dilation([3, 2]).padding([2])),
        (&[2, 6, 9, 9], &[8, 3, 3, 3], "--groups 2", p().groups(2)),
        (&[1, 6, 9, 9], &[6, 1, 3, 3], "--groups 6 --stride=2", p().groups(6).stride([2])),
        (&[2, 3, 40], &[6, 3, 5], "--stride 2 --padding 3,1", p().stride([2]).padding([3, 1])),
        (&[1, 2, 7, 8, 9], &[4, 2, 3, 3, 2], "--stride 1,2,3", p().stride([1, 2, 3])),
        (
            &[1, 2, 7, 8, 9],
            &[4, 2, 3, 3, 2],
            "--padding 1,0,1,0,1,2 --dilation 2,1,1",
            p().padding([1, 0, 1, 0, 1, 2]).dilation([2, 1, 1]),
        ),
        (&[1, 4, 1, 1], &[10, 4, 1, 1], "--code crme", p()),
    ];
    every_row(table, |(input, weight, args, params)| {
        agrees::<f32>(input, weight, args, params.clone(), EXACT_F32);
        agrees::<f64>(input, weight, args, params, EXACT_F64);
    });
}

#[test]
fn every_code_survives_two_dead_workers_and_says_its_name() {
    every_row(CodeKind::ALL, |code| {
        // Without a code the dead workers' parts are computed again.
        let args = format!("--code {code} --fault 0,3:crash");
        agrees::<f64>(&INPUT, &WEIGHT, &args, ConvParams::default(), EXACT_F64);
        agrees::<f32>(&INPUT, &WEIGHT, &args, ConvParams::default(), EXACT_F32);
        let folder = Folder::new();
        let said = folder.exact(&format!("{args} --report r.json"));
        assert!(said.out.contains(code.name()), "{}", said.out);
        assert_eq!(folder.json("r.json")["layers"][0]["code"], code.name());
    });
    let folder = Folder::new();
    // Both copies of part 1 of three are lost: the other four results are not enough.
    let error = folder.refused(
        3,
        "--code replication --partitions 3,1 --on-shortfall fail --fault 1,4:crash",
        Folder::conv,
    );
    assert!(error.contains("needs 5 of 6 results") && error.contains("subtask 4 on cpu-4"), "{error}");
    let help = folder.run("conv --help").out;
    assert!(CodeKind::ALL.iter().all(|code| help.contains(code.name())), "{help}");
}

#[test]
fn output_has_the_type_of_the_precision_not_of_the_files() {
    let folder = Folder::new();
    folder.exact("--precision f64");
    let wide = folder.load::<f64>("y.npy");
    folder.random::<f64>("x.npy", &INPUT, 1);
    folder.exact("");
    let narrow = folder.load::<f32>("y.npy");
    assert!(relative_l2(narrow.as_slice().unwrap(), wide.as_slice().unwrap()) < EXACT_F32);
}

#[test]
fn column_major_files_are_read_as_what_they_mean() {
    let folder = Folder::new();
    folder.exact("");
    let y = fs::read(folder.path("y.npy")).unwrap();
    let x = folder.load::<f32>("x.npy");
    let bytes: Vec<u8> = x.t().iter().flat_map(|v| v.to_le_bytes()).collect();
    folder.write("x.npy", npy(&header("<f4", "(1, 3, 12, 10)").replace("False", "True"), &bytes));
    assert_eq!(folder.load::<f32>("x.npy"), x);
    // With one worker there is one responder set: no difference in rounding.
    folder.exact("--workers 1 --partitions 1,1 --output a.npy");
    let (a, b) = (folder.load::<f32>("a.npy"), folder.load::<f32>("y.npy"));
    assert!(relative_l2(a.as_slice().unwrap(), b.as_slice().unwrap()) < EXACT_F32);
    assert_eq!(fs::read(folder.path("y.npy")).unwrap(), y);
}

fn error_of_output(folder: &Folder) -> f64 {
    let shape = ConvShape::new(&INPUT, &WEIGHT, &ConvParams::default()).unwrap();
    let (x, w) = (folder.load::<f32>("x.npy"), folder.load::<f32>("w.npy"));
    let truth = reference(&shape, x.as_slice().unwrap(), w.as_slice().unwrap(), None).unwrap();
    relative_l2(folder.load::<f32>("y.npy").as_slice().unwrap(), &truth)
}

#[test]
fn two_of_six_crash_and_the_report_says_so() {
    let folder = Folder::new();
    folder.exact("--fault 0,3:crash --report r.json");
    assert!(error_of_output(&folder) < EXACT_F32);
    let report = folder.json("r.json");
    assert_eq!((&report["schema"], &report["command"]), (&1.into(), &"conv".into()));
    assert!(report["total_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(report["layers"].as_array().unwrap().len(), 1);
    let layer = &report["layers"][0];
    let count = |key: &str| layer[key].as_u64().unwrap_or_else(|| panic!("{key} is {}", layer[key]));
    let real = |key: &str| layer[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", layer[key]));
    assert!(layer["name"].is_string());
    assert_eq!((layer["code"].as_str(), layer["backend"].as_str()), (Some("crme"), Some("cpu")));
    assert_eq!((count("n"), count("recovery_threshold")), (6, 4));
    let degree = |k: u64| if k == 1 { 1 } else { k / 2 };
    assert_eq!(degree(count("k_a")) * degree(count("k_b")), 4);
    assert!(count("bytes_up") > 0 && count("bytes_down") > 0);
    assert_eq!(count("redispatched"), 0);
    assert!(real("condition_number") >= 1.0 && real("error_bound") > 0.0);
    let parts = real("encode_ms") + real("wait_ms") + real("decode_ms");
    assert!(parts > 0.0 && parts <= real("total_ms"));
    assert_eq!(layer["used"], serde_json::json!([1, 2, 4, 5]));
    assert_eq!(layer["flagged"], serde_json::json!([]));
    let workers = layer["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 6);
    for (i, row) in workers.iter().enumerate() {
        assert_eq!(row["subtask"].as_u64(), Some(i as u64));
        assert_eq!(row["worker"], format!("cpu-{i}"));
        let outcome = row["outcome"].as_str().unwrap();
        if [0, 3].contains(&i) {
            assert!(["failed", "cancelled"].contains(&outcome), "{row}");
        } else {
            assert!(outcome == "used" && row["latency_ms"].is_f64(), "{row}");
        }
    }
}

#[test]
fn three_of_six_crash() {
    let folder = Folder::new();
    folder.write("y.npy", "what was there before");
    let started = Instant::now();
    let error = folder.refused(
        3,
        "--fault 0,3,5:crash --on-shortfall fail --deadline 60s --report r.json",
        Folder::conv,
    );
    assert!(started.elapsed() < Duration::from_secs(30), "waited for the dead");
    assert!(error.contains("needs 4 of 6"), "{error}");
    for dead in [0, 3, 5] {
        assert!(error.contains(&format!("subtask {dead} on cpu-{dead}")), "{error}");
    }
    every_row(["", "--on-shortfall redispatch", "--on-shortfall local"], |fallback| {
        folder.exact(&format!("--fault 0,3,5:crash {fallback} --report r.json"));
        assert!(error_of_output(&folder) < EXACT_F32, "{fallback}");
        let layer = &folder.json("r.json")["layers"][0];
        assert_eq!(layer["redispatched"].as_u64().unwrap() > 0, !fallback.contains("local"), "{layer}");
    });
    folder.exact("--fault all:crash --report r.json");
    assert!(error_of_output(&folder) < EXACT_F32);
    assert_eq!(folder.json("r.json")["layers"][0]["fallback"], "local");
}

#[test]
fn every_kind_of_fault_within_the_code_is_survived() {
    let folder = Folder::new();
    let rows = [
        "0,1:nan",
        "4,5:drop",
        "2:device-lost --fault 3:crash",
        "all:slow=2x",
        "0:delay=20s --fault 5:delay=exp(20s)",
        "random:2:delay=shifted-exp(20s,1s)",
    ];
    every_row(rows, |fault| {
        let started = Instant::now();
        folder.exact(&format!("--fault {fault}"));
        assert!(error_of_output(&folder) < EXACT_F32, "{fault}");
        assert!(started.elapsed() < Duration::from_secs(15), "{fault}: waited for stragglers");
    });
    folder.exact("--fault 0,1,2:nan --report r.json --partitions 1,1");
    assert!(error_of_output(&folder) < EXACT_F32);
    let layer = &folder.json("r.json")["layers"][0];
    assert!(layer["flagged"].as_array().unwrap().iter().all(|s| s.as_u64() < Some(3)), "{layer}");
    folder.refused(3, "--fault 0,1,2:drop --on-shortfall fail --deadline 100ms", Folder::conv);
}

#[test]
fn a_result_over_the_tolerance_is_refused() {
    let folder = Folder::new();
    let error = folder.refused(4, "--max-error 1e-12 --report r.json", Folder::conv);
    assert!(error.contains("1.000e-12"), "{error}");
    folder.exact("--max-error 1e-3");
    folder.exact("--max-error 1e-12 --precision f64 --output wide.npy");
}

#[test]
fn liars_are_found_or_refused() {
    let folder = Folder::new();
    // Without an audit the error is in the output: four of four are needed, the faulty worker included.
    folder.exact("--workers 4 --partitions 4,4 --fault 2:corrupt=1e-2");
    assert!(error_of_output(&folder) > 1e-3);
    // Whether the faulty worker answers before five correct ones is random; with these delays it is very likely.
    let caught = (0..20).any(|_| {
        folder.exact(
            "--partitions 4,4 --audit correct --fault 2:corrupt=1e-2 --fault 0,1,3,4,5:delay=100ms --report r.json",
        );
        assert!(error_of_output(&folder) < EXACT_F32);
        let layer = &folder.json("r.json")["layers"][0];
        assert!(layer["audit_floor"].as_f64().is_some_and(|floor| floor <= 1e-3), "{layer}");
        let honest = layer["used"].as_array().unwrap().iter().all(|used| *used != 2);
        assert!(honest && layer["completion"] == "exact", "{layer}");
        let flagged = layer["flagged"] == serde_json::json!([2]);
        let row = &layer["workers"].as_array().unwrap()[2];
        assert_eq!(flagged, row["outcome"] == "corrupt", "{layer}");
        assert!(flagged || layer["flagged"] == serde_json::json!([]), "{layer}");
        flagged
    });
    assert!(caught, "the liar was late twenty times");
    let folder = Folder::new();
    let five = "--workers 5 --partitions 4,4 --fault 2:corrupt=1e-2 --report r.json";
    let error = folder.refused(4, &format!("{five} --audit detect"), Folder::conv);
    assert!(error.contains("contradict") && error.contains("--audit correct"), "{error}");
    assert_eq!(folder.json("r.json")["layers"][0]["completion"], "refused");
    // One spare result detects an error, but cannot locate the faulty worker.
    let error = folder.refused(2, "--workers 5 --partitions 4,4 --audit correct", Folder::conv);
    assert!(error.contains("is 1 where at least 2"), "{error}");
}

#[test]
fn scheduling_is_chosen_by_options() {
    let folder = Folder::new();
    // Two more workers than the code tolerates are silent: only copies help.
    let silent = "--partitions 4,4 --fault 0,1,2:drop --report r.json";
    let layer = |folder: &Folder| folder.json("r.json")["layers"][0].clone();
    folder.exact(silent);
    assert!(error_of_output(&folder) < EXACT_F32);
    assert!(layer(&folder)["hedged"].as_u64() > Some(0), "{}", layer(&folder));
    folder.exact(&format!("{silent} --hedge off --deadline 2s"));
    assert!(error_of_output(&folder) < EXACT_F32);
    let second = layer(&folder);
    assert!(second["hedged"] == 0 && second["wait_ms"].as_f64() >= Some(1000.0), "{second}");
    // Whole subtasks only: a worker that is used has delivered all sub-results.
    folder.exact("--partitions 4,4 --partial-work off --report r.json");
    assert!(error_of_output(&folder) < EXACT_F32);
    let workers = layer(&folder)["workers"].as_array().unwrap().clone();
    let used: Vec<_> = workers.iter().filter(|row| row["outcome"] == "used").collect();
    assert!(used.len() >= 4 && used.iter().all(|row| row["sub_results"] == 4), "{workers:?}");
}

#[test]
fn uncoded_layers_need_everybody() {
    let folder = Folder::new();
    folder.exact("--code uncoded --report r.json");
    assert!(error_of_output(&folder) < EXACT_F32);
    let layer = &folder.json("r.json")["layers"][0];
    assert_eq!((&layer["code"], &layer["recovery_threshold"]), (&"uncoded".into(), &6.into()));
    folder.refused(3, "--code uncoded --fault 2:crash --on-shortfall fail", Folder::conv);
}

#[test]
fn pool_files() {
    let folder = Folder::new();
    let bad = "name = \"bad\"\ncount = 2\nfault = \"crash\"";
    folder.write(
        "p.toml",
        format!("[[worker]]\nkind = \"cpu\"\ncount = 4\n[[worker]]\nkind = \"cpu\"\n{bad}\n"),
    );
    folder.exact("--pool p.toml --report r.json");
    assert!(error_of_output(&folder) < EXACT_F32);
    let layer = &folder.json("r.json")["layers"][0];
    assert_eq!((&layer["n"], &layer["workers"][5]["worker"]), (&6.into(), &"bad-1".into()));
    assert_eq!(layer["used"], serde_json::json!([0, 1, 2, 3]));

    let rows = [
        ("unknown-key.toml", "[[worker]]\nkind = \"cpu\"\nkolor = 4\n", "kolor"),
        ("unknown-kind.toml", "[[worker]]\nkind = \"abacus\"\n", "abacus"),
        ("empty.toml", "", "no worker"),
        ("no-table.toml", "worker = []\n", "no worker"),
        ("garbage.toml", "nonsense[[", "line 1"),
        ("none.toml", "[[worker]]\nkind = \"cpu\"\ncount = 0\n", "is 0"),
        (
            "wire.toml",
            "[cluster]\nconnect = \"127.0.0.1\"\nwire = \"f8\"\n[[worker]]\nkind = \"remote\"\n",
            "f8",
        ),
        ("fault.toml", "[[worker]]\nkind = \"cpu\"\nfault = \"sulk\"\n", "sulk"),
    ];
    every_row(rows, |(name, text, says)| {
        folder.write(name, text);
        let error = folder.refused(2, &format!("--pool {name}"), Folder::conv);
        assert!(error.contains(says), "{error}");
    });
    let error = folder.refused(2, "--pool p.toml --wire f16", Folder::conv);
    assert!(error.contains("--wire") && error.contains("remote"), "{error}");
    folder.refused(2, "--wire f16", Folder::conv);
    folder.refused(2, "--pool p.toml --wire f8", Folder::conv);
    folder.refused(2, "--pool missing.toml", Folder::conv);
    folder.refused(2, "--pool p.toml --backend cpu", Folder::conv);
    folder.refused(2, "--pool p.toml --fault 6:crash", Folder::conv);
}

#[test]
fn quiet_says_nothing() {
    let folder = Folder::new();
    every_row(["--quiet", "-q --fault 0,3:crash", "-q --fault all:crash"], |args| {
        let said = folder.exact(args);
        assert_eq!(said.out, "", "{args}");
    });
    let said = folder.exact("");
    assert!(said.out.contains("recovery threshold 4") && said.out.contains("y.npy"), "{}", said.out);
}

#[test]
fn the_same_seed_draws_the_same_faulty_workers() {
    let folder = Folder::new();
    let used = |seed: u64| {
        folder.exact(&format!("--fault random:2:crash --seed {seed} --report r.json"));
        let used = folder.json("r.json")["layers"][0]["used"].to_string();
        assert_eq!(used.split(',').count(), 4);
        used
    };
    let drawn: Vec<String> = (0..6).map(used).collect();
    assert_eq!(drawn, (0..6).map(used).collect::<Vec<_>>());
    assert!(drawn.iter().any(|other| *other != drawn[0]), "every seed draws {}", drawn[0]);
}

#[test]
fn every_command_has_help_with_an_example() {
    let folder = Folder::empty();
    let help = folder.run("--help").out;
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(
        ["demo", "run", "conv", "stability", "devices"].iter().all(|c| commands.contains(c)),
        "{commands:?}"
    );
    every_row(commands.into_iter().chain([""]), |command| {
        for flag in ["--help", "-h"] {
            let said = folder.run(&format!("{command} {flag}"));
            assert_eq!((said.status, said.err.as_str()), (0, ""), "{command}");
            assert!(said.out.contains("Example") && said.out.contains("fcdcc "), "{command}: {}", said.out);
        }
    });
    assert!(folder.run("--version").out.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn devices_are_listed_for_people_and_programs() {
    let folder = Folder::empty();
    let said = folder.run("devices");
    assert!(said.status == 0 && said.out.contains("CPU: "), "{}{}", said.out, said.err);
    let said = folder.run("devices --json");
    assert_eq!(said.status, 0, "{}", said.err);
    let devices: Value = serde_json::from_str(&said.out).unwrap();
    assert!(devices["adapters"].is_array());
    assert!(["cpu", "gpu"].contains(&devices["auto"]["backend"].as_str().unwrap()));
}

#[test]
fn a_result_without_a_certain_digit_is_computed_locally_and_limits_hold_for_that_too() {
    let folder = Folder::new();
    let args =
        "--code vandermonde --workers 20 --partitions 4,4 --fault 16,17,18,19:crash --on-shortfall fail";
    let said = folder.conv(&format!("{args} --max-error 1e-9"));
    assert_eq!((said.status, said.out.as_str()), (4, ""), "{}", said.err);
    assert!(said.err.contains("--max-error") && !folder.path("y.npy").exists(), "{}", said.err);
    folder.exact(&format!("{args} --report r.json"));
    let report: Value = serde_json::from_str(&fs::read_to_string(folder.path("r.json")).unwrap()).unwrap();
    assert_eq!(report["layers"][0]["completion"], "exact-locally", "{report}");
    folder.exact(&format!("{args} --precision f64"));
    assert!(folder.path("y.npy").exists());
}
