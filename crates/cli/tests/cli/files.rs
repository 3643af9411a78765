//! Files of the command line: where outputs go, what inputs may be, and what is refused for either.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::script::script;
use fcdcc_test_support::every_row;
use fcdcc_test_support::folder::{Folder, Said};
use rustix::fs::{CWD, FileType, Mode, makedev, mkfifoat, mknodat};

/// Maximum wait for what takes a second.
const LIMIT: Duration = Duration::from_mins(1);

/// All options of a conv except its output. With one worker, results are bit-identical.
const CONV: &str =
    "$FCDCC conv --input x.npy --weight w.npy --backend cpu --code uncoded --workers 1 --tolerate 0";

fn exact(folder: &Folder, text: &str) -> Said {
    let said = script(folder, text);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{text}: {}", said.out);
    said
}

/// A folder with x.npy, w.npy, and the result of their conv, computed by a run of its own.
fn with_result() -> (Folder, Vec<u8>) {
    let folder = Folder::new();
    exact(&folder, &format!("{CONV} --output result.npy --quiet"));
    let result = fs::read(folder.path("result.npy")).unwrap();
    (folder, result)
}

fn fifo(folder: &Folder, name: &str) {
    mkfifoat(CWD, folder.path(name), Mode::RUSR | Mode::WUSR).unwrap();
}

fn is_report(text: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(text).is_ok_and(|report| report["command"] == "conv")
}

#[test]
fn what_is_no_regular_file_is_written_into() {
    let (folder, result) = with_result();
    let kind = |name: &str| fs::symlink_metadata(folder.path(name)).unwrap().file_type();
    fifo(&folder, "pipe");
    exact(&folder, &format!("cat pipe > got.npy & {CONV} --output pipe --quiet; wait"));
    assert!(kind("pipe").is_fifo() && fs::read(folder.path("got.npy")).unwrap() == result);
    // A reader that opens the pipe late.
    exact(&folder, &format!("{CONV} --output pipe --quiet & sleep 1; cat pipe > late.npy; wait"));
    assert!(fs::read(folder.path("late.npy")).unwrap() == result);

    let listener = UnixListener::bind(folder.path("socket")).unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        bytes
    });
    exact(&folder, &format!("{CONV} --output socket --quiet"));
    assert!(kind("socket").is_socket() && reader.join().unwrap() == result);
    // The listener is closed.
    let said = folder.conv("--output socket");
    assert!(said.status == 2 && said.err.contains("nobody listens"), "{}", said.err);

    // A file descriptor: the file keeps its content, and writing continues at its position.
    fs::write(folder.path("log"), "before\n").unwrap();
    let inode = fs::metadata(folder.path("log")).unwrap().ino();
    exact(&folder, &format!("{CONV} --output y.npy --report /dev/fd/3 --quiet 3>>log"));
    let log = fs::read(folder.path("log")).unwrap();
    assert!(log.starts_with(b"before\n") && is_report(&log[7..]));
    assert_eq!(fs::metadata(folder.path("log")).unwrap().ino(), inode);
    exact(&folder, &format!("{CONV} --output y.npy --report /dev/stdout > out.json"));
    assert!(is_report(&fs::read(folder.path("out.json")).unwrap()));
    exact(&folder, &format!("{CONV} --output >(cat > sub.npy) --quiet; wait $!"));
    assert!(fs::read(folder.path("sub.npy")).unwrap() == result);
    let rows = [("/dev/fd/9", "cannot be written"), ("/dev/fd/4", "not open for writing")];
    every_row(rows, |(descriptor, says)| {
        let said = script(&folder, &format!("{CONV} --output {descriptor} 4<x.npy"));
        assert!(said.status == 2 && said.err.contains(says), "{}", said.err);
    });
}

#[test]
fn devices_are_written_into() {
    let (folder, _) = with_result();
    // The device numbers of the null device.
    let made =
        mknodat(CWD, folder.path("null"), FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(1, 3));
    if made.is_err() || File::options().write(true).open(folder.path("null")).is_err() {
        println!("skipped: no device can be made in a folder here");
        return;
    }
    let rows = ["--output null", "--output y.npy --report null", "--output null --report null"];
    every_row(rows, |args| {
        exact(&folder, &format!("{CONV} {args} --quiet"));
        assert!(fs::symlink_metadata(folder.path("null")).unwrap().file_type().is_char_device(), "{args}");
    });
    symlink("null", folder.path("link")).unwrap();
    exact(&folder, &format!("{CONV} --output link --quiet"));
    assert!(fs::symlink_metadata(folder.path("null")).unwrap().file_type().is_char_device());
}

#[test]
fn links_are_followed_and_rights_are_kept() {
    let (folder, result) = with_result();
    let mode = |name: &str| fs::metadata(folder.path(name)).unwrap().mode() & 0o7777;
    for (umask, new) in [("022", 0o644), ("027", 0o640), ("077", 0o600)] {
        exact(&folder, &format!("umask {umask}; {CONV} --output y.npy --report r.json --quiet"));
        assert_eq!((mode("y.npy"), mode("r.json")), (new, new), "{umask}");
        fs::set_permissions(folder.path("y.npy"), fs::Permissions::from_mode(0o604)).unwrap();
        exact(&folder, &format!("umask {umask}; {CONV} --output y.npy --quiet"));
        assert_eq!(mode("y.npy"), 0o604, "{umask}");
        fs::remove_file(folder.path("y.npy")).unwrap();
        fs::remove_file(folder.path("r.json")).unwrap();
    }
    fs::create_dir(folder.path("there")).unwrap();
    symlink("there/new.npy", folder.path("to_new")).unwrap();
    symlink("to_new", folder.path("to_link")).unwrap();
    for _ in 0..2 {
        exact(&folder, &format!("{CONV} --output to_link --quiet"));
        assert!(fs::read(folder.path("there/new.npy")).unwrap() == result);
        for link in ["to_new", "to_link"] {
            assert!(fs::symlink_metadata(folder.path(link)).unwrap().is_symlink());
        }
    }
    assert_eq!(fs::read_dir(folder.path("there")).unwrap().count(), 1);
    // Symbolic links to folders too.
    symlink("there", folder.path("folder")).unwrap();
    exact(&folder, "$FCDCC stability --n 5 --delta 4 --layers none --output folder --quiet");
    assert!(folder.path("there/stability.json").exists());
}

#[test]
fn a_dash_is_standard_output_for_one() {
    let (folder, result) = with_result();
    exact(&folder, &format!("{CONV} --output - > y.npy"));
    assert!(fs::read(folder.path("y.npy")).unwrap() == result);
    exact(&folder, &format!("{CONV} --output - | cat > y.npy"));
    assert!(fs::read(folder.path("y.npy")).unwrap() == result);
    let said = exact(&folder, &format!("{CONV} --output y.npy --report -"));
    assert!(is_report(said.out.as_bytes()), "{}", said.out);
    let rows = [
        (format!("{CONV} --output - --report -"), "--report -"),
        (format!("{CONV} --output - --report /dev/stdout | cat"), "name two files"),
        (
            "$FCDCC plan --layers lenet5 --backend cpu --calibrate never --json --report -".to_owned(),
            "--json",
        ),
        ("$FCDCC bench --layers lenet5 --backend cpu --output -".to_owned(), "name a folder"),
        ("$FCDCC stability --output -".to_owned(), "name a folder"),
        ("$FCDCC demo --write -".to_owned(), "-"),
    ];
    every_row(rows, |(command, says)| {
        let said = script(&folder, &format!("set -o pipefail; {command}"));
        assert!(
            said.status == 2 && said.out.is_empty() && said.err.contains(says),
            "{command}: {}",
            said.err
        );
        assert_eq!(said.err.lines().count(), 1);
    });
    // The reader ends early: not a success.
    let said = script(&folder, &format!("set -o pipefail; {CONV} --output - --quiet | true"));
    assert_eq!(said.status, 1, "{}", said.err);
}

/// Options for a run that would take minutes if it began.
const LONG: &str = "--fault all:delay=100s --deadline 200s --on-shortfall fail";

#[test]
fn places_that_cannot_be_written_are_found_before_any_work() {
    let folder = Folder::new();
    let long = "n".repeat(256);
    let deep = "d/".repeat(2100);
    symlink("circle", folder.path("circle")).unwrap();
    fs::create_dir(folder.path("folder")).unwrap();
    let mut rows = vec![
        (format!("--output {long}"), "256 bytes"),
        (format!("--report {long}"), "256 bytes"),
        (format!("--output {deep}y.npy"), "too long"),
        ("--output circle".to_owned(), "links"),
        ("--output folder/".to_owned(), "is a folder"),
        ("--output new/".to_owned(), "is a folder"),
        ("--output x.npy/y.npy".to_owned(), "x.npy"),
    ];
    if cfg!(target_os = "linux") {
        // Not even root can create a file there.
        rows.push(("--output /proc/y.npy".to_owned(), "/proc"));
    }
    let started = Instant::now();
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, &format!("{args} {LONG}"), Folder::conv);
        assert!(error.contains(says), "{args}: {error}");
    });
    every_row([format!("--output {long}"), "--output x.npy".to_owned()], |args| {
        for command in
            ["bench --layers vgg16 --trials 1000", "stability", "plan --layers vgg16 --measure --trials 1000"]
        {
            let backend = if command == "stability" { "" } else { "--backend cpu" };
            folder.refused(2, &format!("{command} {backend} {args}"), Folder::run);
        }
    });
    assert!(started.elapsed() < LIMIT, "{:?}", started.elapsed());
}

#[test]
fn rights_are_looked_at_before_any_work() {
    let folder = Folder::new();
    let set =
        |name: &str, mode| fs::set_permissions(folder.path(name), fs::Permissions::from_mode(mode)).unwrap();
    set(".", 0o755);
    fs::create_dir(folder.path("closed")).unwrap();
    set("closed", 0o555);
    fs::create_dir(folder.path("open")).unwrap();
    set("open", 0o777);
    folder.write("open/mine.npy", "mine");
    set("open/mine.npy", 0o444);
    let as_nobody = |output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fcdcc"));
        command
            .args("conv --input x.npy --weight w.npy --backend cpu --quiet --output".split(' '))
            .arg(output);
        command.current_dir(folder.path(".")).env("FCDCC_CACHE", "open/cache").uid(65_534).gid(65_534);
        command.output()
    };
    // Only root can change its user; any other user already meets the permissions.
    let root = rustix::process::geteuid().is_root();
    let run = |output: &str| {
        if root {
            as_nobody(output).ok().map(|out| (out.status.code(), String::from_utf8(out.stderr).unwrap()))
        } else {
            let said = folder.conv(&format!("--output {output} --quiet"));
            Some((Some(said.status), said.err))
        }
    };
    if run("open/y.npy").is_none_or(|(status, _)| status != Some(0)) {
        println!("skipped: the binary cannot be run as another user here");
        return;
    }
    every_row(["closed/y.npy", "open/mine.npy"], |output| {
        let (status, error) = run(output).unwrap();
        assert_eq!(status, Some(2), "{output}: {error}");
        assert!(error.contains("ermission") && error.lines().count() == 1, "{output}: {error}");
    });
    assert_eq!(fs::read(folder.path("open/mine.npy")).unwrap(), b"mine");
}

#[test]
fn inputs_are_never_written_over() {
    let folder = Folder::new();
    let said = folder.run("demo --backend cpu --write . --quiet --fault 0:delay=0ms");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    folder.random::<f32>("b.npy", &[8], 3);
    folder.write("pool.toml", "[[worker]]\nkind = \"cpu\"\ncount = 6\n");
    folder.write("layers.toml", "[[layer]]\nname = 'a'\ninput = [1, 3, 8, 8]\nweight = [4, 3, 3, 3]\n");
    folder.write("trace.txt", "1 2 3\n");
    let files = [
        "x.npy",
        "w.npy",
        "b.npy",
        "lenet5.onnx",
        "digit.png",
        "labels.txt",
        "pool.toml",
        "layers.toml",
        "trace.txt",
    ];
    for file in files {
        symlink(file, folder.path(&format!("soft_{file}"))).unwrap();
        fs::hard_link(folder.path(file), folder.path(&format!("hard_{file}"))).unwrap();
    }
    let conv = "conv --backend cpu --input x.npy --weight w.npy --bias b.npy";
    let pooled = "conv --pool pool.toml --input x.npy --weight w.npy --output y.npy";
    let run = "run lenet5.onnx --backend cpu --input digit.png --top 1 --labels labels.txt";
    let bench = "bench --backend cpu --layers layers.toml --scenario trace=trace.txt --trials 1";
    let rows = [
        (conv, &["--output"][..], &["x.npy", "w.npy", "b.npy"][..]),
        (
            "conv --backend cpu --input x.npy --weight w.npy --bias b.npy --output y.npy",
            &["--report"],
            &["x.npy", "w.npy", "b.npy"],
        ),
        (pooled, &["--report"], &["pool.toml", "x.npy"]),
        (run, &["--output", "--report"], &["lenet5.onnx", "digit.png", "labels.txt"]),
        (bench, &["--report"], &["layers.toml", "trace.txt"]),
        ("plan --backend cpu --layers layers.toml", &["--report"], &["layers.toml"]),
    ];
    every_row(rows, |(command, options, inputs)| {
        for (option, input) in options.iter().flat_map(|o| inputs.iter().map(move |i| (o, i))) {
            for name in
                [(*input).to_owned(), format!("./{input}"), format!("soft_{input}"), format!("hard_{input}")]
            {
                let error = folder.refused(2, &format!("{command} {option} {name}"), Folder::run);
                assert!(error.contains("never written over") && error.contains(option), "{name}: {error}");
            }
        }
    });
    // A folder that receives a file with the name of an input.
    fs::create_dir(folder.path("out")).unwrap();
    fs::hard_link(folder.path("x.npy"), folder.path("out/logits.npy")).unwrap();
    let error = folder.refused(2, "run lenet5.onnx --backend cpu --input x.npy --outputs out", Folder::run);
    assert!(error.contains("never written over"), "{error}");
    let error = folder.refused(2, &format!("{conv} --output y.npy --report ./y.npy"), Folder::run);
    assert!(error.contains("name two files"), "{error}");
}

#[test]
fn what_dead_processes_left_is_cleared() {
    let folder = Folder::new();
    folder.write(".fcdcc-0123456789abcdef.part", "left");
    folder.write(".fcdcc-fedcba9876543210.part", "held");
    folder.write(".fcdcc-of-a-user", "mine");
    let held = File::open(folder.path(".fcdcc-fedcba9876543210.part")).unwrap();
    held.lock().unwrap();
    exact(&folder, &format!("{CONV} --output y.npy --quiet"));
    let there = folder.content();
    assert!(!there.contains_key(".fcdcc-0123456789abcdef.part"));
    assert!(there.contains_key(".fcdcc-fedcba9876543210.part") && there.contains_key(".fcdcc-of-a-user"));
    drop(held);
    exact(&folder, &format!("{CONV} --output y.npy --quiet"));
    assert_eq!(folder.content().keys().filter(|name| name.starts_with(".fcdcc-")).count(), 1);
}

/// Whether process `id` has a file in `folder` open for writing.
fn writes(id: u32, folder: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{id}/fd")) else { return false };
    descriptors.filter_map(Result::ok).any(|entry| {
        let path = entry.path();
        let part = fs::read_link(&path).is_ok_and(|to| {
            to.starts_with(folder)
                && (to.to_string_lossy().contains("deleted") || to.to_string_lossy().contains(".part"))
        });
        part && fs::metadata(&path).is_ok_and(|about| about.len() > 0)
    })
}

#[test]
#[cfg(target_os = "linux")]
fn a_kill_in_the_middle_leaves_no_part_of_a_file() {
    let folder = Folder::empty();
    // 32 MB of output.
    folder.random::<f32>("x.npy", &[1, 1, 1000, 1000], 1);
    folder.random::<f32>("w.npy", &[8, 1, 1, 1], 2);
    let here = folder.path(".").canonicalize().unwrap();
    let run = || {
        Command::new(env!("CARGO_BIN_EXE_fcdcc"))
            .args("conv --input x.npy --weight w.npy --output y.npy --backend cpu --quiet".split(' '))
            .env("FCDCC_CACHE", env!("CARGO_TARGET_TMPDIR"))
            .current_dir(&here)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut killed = 0;
    let until = Instant::now() + LIMIT;
    for old in [false, true] {
        if old {
            folder.write("y.npy", "old");
        }
        while killed < if old { 2 } else { 1 } {
            assert!(Instant::now() < until, "never killed in the middle");
            let mut child = run();
            while child.try_wait().unwrap().is_none() {
                if writes(child.id(), &here) {
                    child.kill().unwrap();
                    break;
                }
            }
            if child.wait().unwrap().success() {
                // The write ended before it was observed.
                fs::remove_file(folder.path("y.npy")).unwrap();
                if old {
                    folder.write("y.npy", "old");
                }
                continue;
            }
            let there = folder.content();
            match there.get("y.npy") {
                None => assert!(!old),
                Some(bytes) => {
                    assert!(bytes.len() > 30_000_000 || (old && bytes == b"old"), "{}", bytes.len());
                }
            }
            killed += 1;
        }
    }
    assert!(run().wait().unwrap().success());
    assert!(folder.content().keys().all(|name| ["x.npy", "w.npy", "y.npy"].contains(&name.as_str())));
    assert_eq!(folder.load::<f32>("y.npy").shape(), [1, 8, 1000, 1000]);
}

#[test]
fn kept_rates_are_no_pipe_and_lose_nothing() {
    let folder = Folder::new();
    fs::create_dir(folder.path("cache")).unwrap();
    fifo(&folder, "cache/rates.json");
    let plan = "plan --layers lenet5/conv2 --backend cpu --json";
    let cache = folder.path("cache").display().to_string();
    let variables = [("FCDCC_CACHE", cache.as_str())];
    let started = Instant::now();
    let said = folder.run_with(plan, &variables);
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    assert!(started.elapsed() < LIMIT);
    assert!(fs::symlink_metadata(folder.path("cache/rates.json")).unwrap().file_type().is_fifo());
    fs::remove_file(folder.path("cache/rates.json")).unwrap();
    std::thread::scope(|scope| {
        for precision in ["f32", "f64"] {
            let (folder, variables) = (&folder, &variables);
            scope.spawn(move || {
                let said = folder.run_with(&format!("{plan} --precision {precision}"), variables);
                assert_eq!((said.status, said.err.as_str()), (0, ""));
            });
        }
    });
    assert_eq!(folder.json("cache/rates.json")["rates"].as_object().unwrap().len(), 2);
    let names: Vec<_> = fs::read_dir(folder.path("cache")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["rates.json"]);
}

#[test]
fn quiet_commands_print_nothing() {
    let folder = Folder::empty();
    let rows = [
        "demo -q --backend cpu --fault 0:delay=0ms",
        "plan -q --backend cpu --layers lenet5 --calibrate never",
        "stability -q --n 5 --delta 4 --layers none",
    ];
    every_row(rows, |command| {
        let said = folder.run(command);
        assert_eq!((said.status, said.out.as_str(), said.err.as_str()), (0, "", ""), "{command}");
    });
    // Negative control.
    assert!(!folder.run("plan --backend cpu --layers lenet5 --calibrate never").out.is_empty());
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    let folder = Folder::new();
    let bytes = fs::read(folder.path("x.npy")).unwrap();
    let run = |part: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fcdcc"))
            .args("conv --input - --weight w.npy --output y.npy --backend cpu --quiet".split(' '))
            .env("FCDCC_CACHE", env!("CARGO_TARGET_TMPDIR"))
            .current_dir(folder.path("."))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The command may stop reading early.
        let _ = child.stdin.take().unwrap().write_all(part);
        let out = child.wait_with_output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    assert_eq!(run(&bytes), (Some(0), String::new()));
    let rows = [
        (&bytes[..bytes.len() - 7], "1433 bytes"),
        (&bytes[..40], "40 bytes"),
        (&bytes[..0], "0 bytes"),
        (&[bytes.as_slice(), b"xx"].concat(), "more than 1440"),
    ];
    every_row(rows, |(part, says)| {
        let (status, error) = run(part);
        assert!(status == Some(2) && error.contains(says), "{error}");
    });
}
