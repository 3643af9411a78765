//! Checks the floors of ARCHITECTURE.md: a file imports only from lower floors, and imports have no cycles.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use fcdcc_test_support::every_row;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Folders (or files) directly under src/ and their floors, in tenths: an import goes to a lower floor, or stays on its
/// floor if that makes no cycle. The crates have floors too.
const FLOORS: &[(&str, u32)] = &[
    ("error", 10),
    // Independent of the content of files.
    ("files", 10),
    // Types of numbers that every module may name.
    ("ids", 10),
    ("cache", 10),
    ("dates", 10),
    ("sync", 10),
    // Available memory, for every module that allocates much.
    ("memory", 12),
    // Parallel loops.
    ("share", 12),
    // Above the errors it reports, below everything that computes.
    ("array", 15),
    ("conv", 20),
    // Beside it: operators that workers may compute too.
    ("ops", 20),
    ("partition", 30),
    // Scales of partitions.
    ("scaling", 32),
    // Codes combine partitions; partitions do not depend on codes.
    ("coding", 35),
    ("gpu", 40),
    ("worker", 50),
    // Checks workers.
    ("testing", 52),
    // Estimates subtasks of workers (`SubtaskShape` of worker), hence above the workers.
    ("planner", 55),
    ("cluster", 60),
    ("scheduler", 60),
    ("engine", 70),
    ("telemetry", 75),
    ("model", 80),
    // Re-exports of all below.
    ("low_level", 72),
    ("bench", 90),
    // Beside it: models over HTTP.
    ("serve", 90),
    ("cli", 100),
    // The Python package carries the command line.
    ("python", 105),
    ("test-support", 110),
];

/// Crates on top of the library, by their folders under crates/ (of the Python package: python/). They import its items, and one another's, by the names of
/// the packages.
const CRATES: &[(&str, &str)] = &[
    ("bench", "fcdcc_bench::"),
    ("cli", "fcdcc_cli::"),
    ("python", "_fcdcc::"),
    ("serve", "fcdcc_serve::"),
    ("test-support", "fcdcc_test_support::"),
];

/// Only declarations and re-exports, above all floors.
const ROOTS: &[&str] = &["lib", "internal"];

fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// A source file by its path under src/, without extension: `conv/params`, `error`. The paths of a crate begin with its
/// name: `cli/plan` is crates/cli/src/plan.rs.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn folder(&self) -> &str {
        self.path.split('/').next().unwrap()
    }

    /// Code without line comments (and so without links in documentation).
    fn code(&self) -> String {
        let lines = self.text.lines().map(|line| line.split("//").next().unwrap());
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, root: &Path, name: &str, all: &mut Vec<Source>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, name, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let path_here = Path::new(name).join(path.strip_prefix(root).unwrap()).with_extension("");
                let text = std::fs::read_to_string(&path).unwrap();
                all.push(Source { path: path_here.to_str().unwrap().replace('\\', "/"), text });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
    let mut all = Vec::new();
    walk(&root.join("src"), &root.join("src"), "", &mut all);
    for (name, _) in CRATES {
        let folder = if *name == "python" { root.clone() } else { root.join("crates") };
        let folder = folder.join(name).join("src");
        walk(&folder, &folder, name, &mut all);
    }
    all
}

/// First segments of the paths after `prefix`: `crate::a::b` gives a, `crate::{a::b, c}` a and c.
fn heads(code: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let inside_a_word = |at: usize| code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix).filter(|(at, _)| !inside_a_word(*at)) {
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    found.insert(word(&group[i..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// The violations, one line each.
fn violations(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut folders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let (from, path, code) = (source.folder(), &source.path, source.code());
        if ROOTS.contains(&path.as_str()) {
            continue;
        }
        let Some(own) = floor(from) else {
            wrong.push(format!("{path}: src/{from} is on no floor: give it one in tests/layering.rs"));
            continue;
        };
        // Other crates import the library by name.
        let outside = CRATES.iter().any(|(name, _)| *name == from);
        let mut imports = heads(&code, if outside { "fcdcc::" } else { "crate::" });
        for (name, prefix) in CRATES {
            if code.contains(prefix) {
                imports.insert((*name).to_owned());
            }
        }
        for to in imports.iter().filter(|to| *to != from) {
            match floor(to) {
                Some(other) if other > own => {
                    wrong.push(format!("{path} (floor {own}) imports {to} (floor {other})"));
                }
                Some(other) => {
                    if other == own {
                        folders.entry(from.to_owned()).or_default().insert(to.clone());
                    }
                }
                // Outside the library the re-exports of lib.rs are the proper names.
                None if outside => {}
                None => wrong.push(format!("{path} imports crate::{to}: name the module it comes from")),
            }
        }
        if code.contains("super::super::super") {
            wrong.push(format!("{path} climbs with super::super::super: name the module from crate::"));
        }
        let siblings = heads(&code, "super::");
        // In a crate of its own `crate::` is the folder.
        let of_the_crate = if outside { heads(&code, "crate::") } else { BTreeSet::new() };
        for to in siblings.union(&of_the_crate) {
            let sibling = format!("{from}/{to}");
            if sibling != *path && sources.iter().any(|s| s.path == sibling) {
                files.entry(path.clone()).or_default().insert(sibling);
            }
        }
    }
    wrong.extend(circle(&folders));
    wrong.extend(circle(&files));
    wrong
}

/// A cycle of imports, if there is one: what remains after repeatedly removing files that import nothing, or are imported
/// by nothing, among those left.
fn circle(imports: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let mut left = imports.clone();
    loop {
        let before = left.len();
        let importing: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, to| to.iter().any(|t| importing.contains(t)));
        let imported: BTreeSet<String> = left.values().flatten().cloned().collect();
        left.retain(|from, _| imported.contains(from));
        if left.is_empty() {
            return None;
        }
        if left.len() == before {
            return Some(format!("circle of imports: {}", left.into_keys().collect::<Vec<_>>().join(", ")));
        }
    }
}

fn synthetic(files: &[(&str, &str)]) -> Vec<String> {
    let file = |(path, text): &(&str, &str)| Source { path: (*path).to_owned(), text: (*text).to_owned() };
    violations(&files.iter().map(file).collect::<Vec<_>>())
}

#[test]
fn imports_go_downwards_without_circles() {
    let sources = sources();
    assert!(sources.len() > 40, "only {} files found", sources.len());
    assert!(
        ["conv/mod", "bench/lib", "cli/lib", "serve/lib", "test-support/lib"]
            .iter()
            .all(|path| sources.iter().any(|s| s.path == *path))
    );
    let wrong = violations(&sources);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rules_see_the_imports_there_are() {
    let sources = sources();
    let of = |path: &str| heads(&sources.iter().find(|s| s.path == path).unwrap().code(), "crate::");
    assert!(["array", "coding", "conv", "scheduler"].iter().all(|m| of("engine/layer").contains(*m)));
}

#[test]
fn forbidden_imports_are_reported() {
    let rows = [
        ("conv/params", "use crate::worker::Worker;"),
        ("error", "use crate::array::Element;"),
        ("array/element", "use crate::conv::ConvShape;"),
        ("partition/apcp", "use crate::coding::Code;"),
        ("gpu/conv", "use crate::worker::Worker;"),
        ("worker/mod", "fn f() -> crate::engine::Run<f32> { todo!() }"),
        ("coding/code", "use crate::{error::{Error, Result}, scheduler::Pool};"),
        ("conv/kernel", "#[cfg(test)]\nmod tests {\n    use crate::planner::Rates;\n}"),
        ("attic/mod", "use crate::error::Error;"),
        ("bench/page", "use fcdcc_cli::print;"),
        ("engine/layer", "use fcdcc_bench::stats;"),
        ("conv/mod", "use crate::Worker;"),
    ];
    every_row(rows, |(path, text)| {
        assert_eq!(synthetic(&[(path, text)]).len(), 1, "{path}: {text}");
    });
    let rows = [
        ("conv/params", "use crate::error::{Error, Result};\nuse crate::array::Element;"),
        ("conv/params", "// use crate::worker::Worker;\n/// [`W`](crate::worker::Worker)"),
        ("cli/conv", "use fcdcc::{Pool, engine::CodedConv};\nuse fcdcc_bench::machine;"),
        ("bench/page", "use crate::format::number;\nuse fcdcc::error::Result;"),
    ];
    every_row(rows, |(path, text)| {
        assert_eq!(synthetic(&[(path, text)]), Vec::<String>::new(), "{path}: {text}");
    });
}

#[test]
fn circles_are_reported() {
    let folders =
        [("cluster/mod", "use crate::scheduler::Pool;"), ("scheduler/mod", "use crate::cluster::R;")];
    assert_eq!(synthetic(&folders).len(), 1);
    assert!(synthetic(&folders[..1]).is_empty());
    let files =
        [("conv/a", "use super::b::B;"), ("conv/b", "use super::c::C;"), ("conv/c", "use super::a::A;")];
    assert_eq!(synthetic(&files).len(), 1);
    assert!(synthetic(&files[..2]).is_empty());
    let files = [("bench/a", "use crate::b::B;"), ("bench/b", "use super::a::A;")];
    assert_eq!(synthetic(&files).len(), 1);
}

/// Longest file and function that need no entry below, in lines.
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

/// Files and functions (`file::name`) that are longer, and how long. A ratchet: they may shrink, and the number here with
/// them; nothing may be added without a reason beside it.
const LONGER: &[(&str, usize)] = &[
    ("cli/demo::run", 88),
    ("cli/plan::run", 91),
    ("cluster/serve/mod::start", 93),
    ("conv/params::new", 109),
    ("gpu/plan::of", 88),
    ("gpu/plan::fill_steps", 79),
    ("model/find::gemm", 71),
    ("test-support/uneven::random", 104),
];
/// By how much an entry may be too large.
const SLACK: usize = 12;

/// The functions of formatted code, with their lines: from `fn` to the brace that closes it at the same indentation.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indentation = &line[..line.len() - code.len()];
        let mut words = code.split([' ', '(', '<']);
        let qualifiers = ["pub", "const", "async", "unsafe", "extern", "crate)", "super)", "\"C\""];
        let Some("fn") = words.find(|word| !qualifiers.contains(word)) else { continue };
        let name = words.next().unwrap_or_default();
        // A declaration without a body, or a body in the same line.
        let opened = lines[first..].iter().position(|l| l.ends_with(['{', ';', '}'])).unwrap_or(0);
        if !lines[first + opened].ends_with('{') {
            continue;
        }
        let closing = format!("{indentation}}}");
        if let Some(length) = lines[first..].iter().position(|line| *line == closing) {
            found.push((name.to_owned(), length + 1));
        }
    }
    found
}

/// What is longer than `longer` allows, and what is allowed more than it needs.
fn lengths(sources: &[Source], longer: &[(&str, usize)]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut unseen: BTreeSet<&str> = longer.iter().map(|(name, _)| *name).collect();
    let mut check = |name: &str, lines: usize, most: usize| {
        let listed = longer.iter().find(|(of, _)| *of == name).map(|(_, lines)| *lines);
        unseen.remove(name);
        match listed {
            None if lines > most => {
                wrong.push(format!("{name} has {lines} lines, at most {most}: divide it"));
            }
            Some(listed) if lines > listed => {
                wrong.push(format!("{name} has {lines} lines, {listed} before: divide it"));
            }
            Some(listed) if lines + SLACK < listed || lines <= most => {
                wrong.push(format!("{name} has {lines} lines now: lower its entry ({listed}) or remove it"));
            }
            _ => {}
        }
    };
    for source in sources {
        check(&source.path, source.text.lines().count(), FILE_LINES);
        let mut longest: BTreeMap<String, usize> = BTreeMap::new();
        for (name, lines) in functions(&source.text) {
            let most = longest.entry(name).or_default();
            *most = lines.max(*most);
        }
        for (name, lines) in longest {
            check(&format!("{}::{name}", source.path), lines, FUNCTION_LINES);
        }
    }
    wrong.extend(unseen.into_iter().map(|name| format!("{name} is gone: remove its entry")));
    wrong
}

#[test]
fn files_and_functions_grow_no_longer() {
    let wrong = lengths(&sources(), LONGER);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_too_long_is_reported() {
    let function = |lines: usize| {
        format!(
            "impl A {{\n    pub(crate) fn long<T>(\n        a: T,\n    ) {{\n{}    }}\n}}\n",
            "        b();\n".repeat(lines - 4)
        )
    };
    let source = |text: String| [Source { path: "conv/a".to_owned(), text }];
    assert_eq!(functions(&function(71)), [("long".to_owned(), 71)]);
    let none: &[(&str, usize)] = &[];
    assert!(lengths(&source(function(70)), none).is_empty());
    let rows = [
        (function(71), none),
        ("//\n".repeat(501), none),
        (function(90), &[("conv/a::long", 89)]),
        (function(80), &[("conv/a::long", 93)]),
        (function(60), &[("conv/a::long", 71)]),
        (function(60), &[("conv/b::gone", 80)]),
    ];
    every_row(rows, |(text, listed)| {
        assert_eq!(lengths(&source(text), listed).len(), 1, "{listed:?}");
    });
    assert!(lengths(&source(function(90)), &[("conv/a::long", 92)]).is_empty());
}

/// Where texts address users of the command line. Everywhere else options have the library's names.
const FRONT_ENDS: [&str; 3] = ["bench", "cli", "test-support"];

/// The lines of the library's code that name a flag of the command line. (In Rust itself no name follows `--`.)
fn flags(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| !FRONT_ENDS.contains(&s.folder())) {
        for line in source.code().lines() {
            let begins = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-');
            let flag = |at: usize| begins(at) && line[at + 2..].starts_with(|c: char| c.is_ascii_lowercase());
            if line.match_indices("--").any(|(at, _)| flag(at)) {
                found.push(format!("{}: {} names a flag: name a `Parameter`", source.path, line.trim()));
            }
        }
    }
    found
}

#[test]
fn texts_of_the_library_name_no_flags() {
    let found = flags(&sources());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn flags_in_texts_are_reported() {
    let source = |path: &str, text: &str| [Source { path: path.to_owned(), text: text.to_owned() }];
    let rows = [r#"let help = "raise --deadline";"#, r#"f("a", "(--shape {}=SIZES)")"#, r#"what("--audit")"#];
    every_row(rows, |text| {
        assert_eq!(flags(&source("engine/options", text)).len(), 1, "{text}");
        assert!(flags(&source("cli/options", text)).is_empty(), "{text}");
    });
    every_row([r#"let a = "n -- delta";"#, "/// The option `--audit`.", r#""a--b""#], |text| {
        assert!(flags(&source("engine/options", text)).is_empty(), "{text}");
    });
}
