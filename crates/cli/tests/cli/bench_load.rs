//! `fcdcc bench --load` as scripts use it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use fcdcc_bench::under_load::{LoadMethod, LoadStudy, State};
use fcdcc_test_support::every_row;
use fcdcc_test_support::folder::Folder;

const SMALL: &str = "title = 'A <small> one'\nmodels = ['lenet5']\nrequests = 600\nwarmup = 50\nruns = 2\nloads = [0.1, 3.0]\n\
    most_in_flight = 100\n\n[machines]\ncount = 6\nmac_rate = 1.0\n\n[coding]\ngroup = 6\ntolerate = 2\n\n\
    [[fault]]\nkind = 'pause'\nevery = '1s'\nlasting = 'exp(20ms)'\n";
const MAP: &str = "models = ['alexnet/conv3']\nruns = 1\nwarmup = 20\n\n[machines]\nmac_rate = 10.0\n\n[map]\nload = 0.1\n\
    macs_per_byte = [10.0, 100000.0]\ndelay_ratio = [0.0, 2.0]\nrequests = 500\n";

fn study(folder: &Folder, file: &str) -> LoadStudy {
    serde_json::from_str(&fs::read_to_string(folder.path(file)).unwrap()).unwrap()
}

#[test]
fn methods_are_loaded_until_they_are_saturated_and_equal_files_give_equal_results() {
    let folder = Folder::empty();
    folder.write("small.toml", SMALL);
    let said = folder.run("bench --load small.toml --output out --report r.json");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    let found = study(&folder, "out/bench.json");
    assert_eq!(study(&folder, "r.json"), found);
    assert_eq!((found.kind.as_str(), found.setting.mode.as_str()), ("under-load", "virtual"));
    let [light, heavy] = found.models[0].points.as_slice() else { panic!("{:?}", found.models) };
    assert_eq!(light.methods.iter().map(|m| m.method).collect::<Vec<_>>(), LoadMethod::ALL);
    let replicas = &light.methods[1];
    assert_eq!((replicas.state.clone(), replicas.requests, replicas.failed), (State::Steady, 1200, 0));
    assert!(replicas.p50 <= replicas.p90 && replicas.p90 <= replicas.p99 && replicas.p50 < replicas.p99);
    // 1200 requests have no 99.9th percentile, and what is saturated has none at all.
    assert_eq!(replicas.p999, None);
    let saturated = &heavy.methods[1];
    assert_eq!((saturated.state.clone(), saturated.p50, saturated.p99), (State::Saturated, None, None));
    assert!(said.out.contains("saturated") && said.out.contains("replicas-hedged at p"), "{}", said.out);
    let html = fs::read_to_string(folder.path("out/report.html")).unwrap();
    assert!(html.contains("A &lt;small&gt; one") && html.contains("<svg") && !html.contains("<script"));
    for method in LoadMethod::ALL {
        assert!(html.contains(method.name()), "{}", method.name());
    }
    // All but date and command.
    assert_eq!(folder.run("bench --load small.toml --virtual --quiet --report again.json").status, 0);
    let mut again = study(&folder, "again.json");
    again.setting = found.setting.clone();
    let text = |study: &LoadStudy| serde_json::to_string(study).unwrap();
    assert_eq!(text(&again), text(&found));
    folder.write("other.toml", format!("seed = 9\n{SMALL}"));
    assert_eq!(folder.run("bench --load other.toml --quiet --report other.json").status, 0);
    assert_ne!(study(&folder, "other.json").models, found.models);
}

#[test]
fn a_map_says_where_coding_wins_and_infinitely_slow_links_make_it_lose() {
    let folder = Folder::empty();
    folder.write("map.toml", MAP);
    let said = folder.run("bench --load map.toml --output out");
    assert_eq!(said.status, 0, "{}", said.err);
    let found = study(&folder, "out/bench.json");
    let cells = &found.maps[0].cells;
    assert_eq!(cells.len(), 4);
    let slow: Vec<f64> =
        cells.iter().filter(|c| c.macs_per_byte > 1e4).filter_map(|c| c.coding_gain).collect();
    assert!(slow.iter().all(|gain| *gain < 0.7), "{slow:?}");
    // Negative control: the same stragglers with fast links.
    assert!(cells[2].coding_gain.unwrap() > slow[1], "{:?}", cells[2].coding_gain);
    assert!(fs::read_to_string(folder.path("out/report.html")).unwrap().contains("where coding pays"));
    assert!(said.out.contains("delay ratio") && said.out.contains("clearly loses"), "{}", said.out);
}

#[test]
fn traces_are_stretched_and_repeated() {
    let folder = Folder::empty();
    folder.write("times.txt", "# two close ones, then a gap\n0\n0.001\n5\n");
    let file = format!("arrivals = 'trace'\ntrace = 'times.txt'\n{SMALL}").replace("[0.1, 3.0]", "[0.2]");
    folder.write("trace.toml", &file);
    let said = folder.run("bench --load trace.toml --quiet --report r.json");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    assert!(
        study(&folder, "r.json").models[0].points[0].methods.iter().all(|method| method.requests == 1200)
    );
    folder.write("times.txt", "3\n2\n");
    let error = folder.refused(2, "bench --load trace.toml", Folder::run);
    assert!(error.contains("times.txt") && error.contains("line 2"), "{error}");
}

#[test]
fn bad_files_are_refused_with_the_key_and_what_to_do() {
    let folder = Folder::empty();
    let rows = [
        ("loads = [0.1, 3.0]", "loads = []", "`loads`"),
        ("loads = [0.1, 3.0]", "loads = [0.0]", "`loads`"),
        ("loads = [0.1, 3.0]", "loads = [0.1]\nrates = [4.0]", "`rates`"),
        ("loads = [0.1, 3.0]", "laods = [0.1]", "line 6: unknown field `laods`"),
        ("requests = 600", "requests = 0", "`requests`"),
        ("requests = 600", "requests = 600\nmethods = ['crme', 'magic']", "magic"),
        ("requests = 600", "requests = 600\nmethods = ['crme', 'crme']", "each method once"),
        ("requests = 600", "requests = 600\nhedge = [1.5]", "`hedge`"),
        ("requests = 600", "requests = 600\nhedge = []", "`hedge`"),
        ("requests = 600", "requests = 600\ntrace = 't.txt'", "arrivals = \"trace\""),
        ("requests = 600", "requests = 600\narrivals = 'trace'", "`trace`"),
        ("['lenet5']", "['lenet6']", "lenet6"),
        ("['lenet5']", "[]", "`models`"),
        ("count = 6", "count = 0", "`machines.count`"),
        ("count = 6", "count = 5", "`coding.group`"),
        ("count = 6", "count = 20000", "`machines.count`"),
        ("mac_rate = 1.0", "mac_rate = 0.0", "`machines.mac_rate`"),
        ("mac_rate = 1.0", "latency = 'soon'", "20ms"),
        ("tolerate = 2", "tolerate = 6", "`coding.tolerate`"),
        ("'exp(20ms)'", "'exp(20)'", "exp(MEAN)"),
        ("'exp(20ms)'", "'exp(1h)'", "`lasting`"),
        ("every = '1s'", "every = '1us'", "`every`"),
        ("kind = 'pause'", "kind = 'sulk'", "sulk"),
        ("kind = 'pause'", "kind = 'slow'\nfactor = 0.5", "`factor`"),
    ];
    every_row(rows, |(good, bad, says)| {
        let text = SMALL.replacen(good, bad, 1);
        assert_ne!(text, SMALL, "{good}");
        folder.write("bad.toml", &text);
        let error = folder.refused(2, "bench --load bad.toml --output out", Folder::run);
        assert!(error.contains("bad.toml") && error.contains(says), "{bad}: {error}");
    });
    assert!(!folder.path("out/bench.json").exists());
    folder.write("good.toml", SMALL);
    let rows = [
        ("--load missing.toml", "missing.toml"),
        ("--load good.toml --layers lenet5", "--layers"),
        ("--load good.toml --workers 4", "--workers"),
        ("--load good.toml --serve http://127.0.0.1:1 --model m", "--serve"),
        ("--load good.toml --report good.toml", "good.toml"),
        ("--load good.toml --output good.toml", "good.toml"),
    ];
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, &format!("bench {args}"), Folder::run);
        assert!(error.contains(says), "{args}: {error}");
    });
}

/// The files of docs/choosing.md, with few requests.
#[test]
fn the_files_of_the_documentation_run() {
    let folder = Folder::empty();
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/choosing")).unwrap();
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path();
        let shorter = |line: &str| match line.split(" = ").next() {
            Some("requests") => "requests = 10".to_owned(),
            Some("warmup") => "warmup = 2".to_owned(),
            Some("runs") => "runs = 1".to_owned(),
            _ => line.to_owned(),
        };
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<String> = text.lines().map(shorter).collect();
        folder.write("short.toml", lines.join("\n"));
        let said = folder.run("bench --load short.toml --quiet --report r.json");
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{}", path.display());
        let found = study(&folder, "r.json");
        assert!(!found.spec.title.is_empty() && found.spec.requests == 10 || !found.maps.is_empty());
        count += 1;
    }
    assert!(count >= 7, "{count}");
}
