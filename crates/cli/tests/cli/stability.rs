//! `fcdcc stability` as scripts use it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use fcdcc::CodeKind;
use fcdcc_bench::stability_record::StabilityReport;
use fcdcc_test_support::every_row;
use fcdcc_test_support::folder::Folder;

#[test]
fn a_quick_study_writes_its_page_and_its_figures() {
    let folder = Folder::empty();
    let said = folder.run("stability --quick --output study --seed 3");
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{}", said.out);
    let html = fs::read_to_string(folder.path("study/stability.html")).unwrap();
    let json = fs::read_to_string(folder.path("study/stability.json")).unwrap();
    for kind in CodeKind::ALL {
        for text in [&html, &json, &said.out] {
            assert!(text.contains(kind.name()), "{kind}");
        }
    }
    let report: StabilityReport = serde_json::from_str(&json).unwrap();
    assert_eq!((report.schema, report.setting.seed), (1, 3));
    assert!(report.setting.command.ends_with("stability --quick --output study --seed 3"));
    assert!(html.contains("stability --quick --output study --seed 3") && html.contains("1\u{202f}551"));
    assert!(html.contains("<svg") && !html.contains("src=") && !html.contains("NaN"));
    // No decoded output exceeds the error bound of a run.
    assert!(report.errors.len() > 50);
    assert!(report.errors.iter().all(|e| e.relative_l2 <= e.bound));
    let crme =
        report.errors.iter().find(|e| e.code == "crme" && e.dtype == "f64" && e.set == "median").unwrap();
    assert!(crme.mse < 1e-25, "{crme:?}");
    assert_eq!(fs::read_dir(folder.path("study")).unwrap().count(), 2);
}

#[test]
fn other_figures_can_be_asked_for() {
    let folder = Folder::empty();
    let args = "stability --n 12,7 --delta 9 --code khatri-rao,crme --layers none --limit 9 --samples 30";
    let said = folder.run(&format!("{args} --json"));
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    let report: StabilityReport = serde_json::from_str(&said.out).unwrap();
    // delta = 9 of n = 7 is not a cell; four numbers of responders for two codes.
    let labels: Vec<&str> = report.tables.iter().map(|t| &*t.label).collect();
    assert_eq!((labels, report.responders.len()), (vec!["n = 12, delta = 9"], 4 * 2));
    assert!(report.tables[0].rows.iter().all(|row| !row.exhaustive && row.sets > 30 && row.sets < 60));
    assert_eq!(report.tables[0].rows[0].code, "khatri-rao");
    assert!(report.errors.is_empty() && report.sweep.is_empty());
    let single = folder.run("stability --n 5 --delta 4 --layers lenet5/conv2 --precision f64 --quiet");
    assert_eq!((single.status, single.out.as_str(), single.err.as_str()), (0, "", ""));
    assert!(folder.content().is_empty());
}

#[test]
fn impossible_studies_are_refused() {
    let folder = Folder::empty();
    folder.write("file", "what was there before");
    let rows = [
        ("--n 20", "--delta"),
        ("--delta 16", "--n"),
        ("--n 20 --delta 21", "up to 20"),
        ("--n 20 --delta 0", "delta is 0"),
        ("--n 0 --delta 0", "n is 0"),
        ("--n 9999 --delta 16", "9999"),
        ("--n x --delta 16", "'x'"),
        ("--n 20,20 --delta 16", "twice"),
        ("--code foo", "foo"),
        ("--code crme,crme", "twice"),
        ("--samples 0", "--samples"),
        ("--samples 99999999", "99999999"),
        ("--limit 99999999", "99999999"),
        ("--precision f16", "f16"),
        ("--precision f32,f32", "twice"),
        ("--layers vgg17", "vgg17"),
        ("--seed -1", "-1"),
        ("--output missing/there", "missing"),
        ("--output file", "is a file"),
    ];
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, &format!("stability {args}"), Folder::run);
        assert!(error.contains(says), "{args}: {error}");
    });
}
