//! The command under limits of memory or threads: it refuses before it begins, or works with less.
//!
//! The limits are those of a process (`ulimit -v`, `prlimit --nproc`); the machine's own limits are not changed.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; a skipped test says so"
)]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use fcdcc::conv::reference;
use fcdcc::{ConvParams, ConvShape};
use fcdcc_test_support::folder::{Folder, INPUT, Said, WEIGHT};
use fcdcc_test_support::{every_row, relative_l2};

/// f32 workers at condition numbers below 100.
const EXACT: f64 = 3e-5;
/// Address space of the command, enough for small inputs.
const SPACE_KIB: u32 = 8 << 20;

/// Runs the command with unchanged arguments under `wrapper`.
fn below(folder: &Folder, wrapper: &[&str], args: &str) -> Said {
    let binary = env!("CARGO_BIN_EXE_fcdcc");
    let out = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .arg(binary)
        .args(args.split_whitespace())
        .env("FCDCC_CACHE", env!("CARGO_TARGET_TMPDIR"))
        .env_remove("RUST_LOG")
        .current_dir(folder.path("."))
        .output()
        .unwrap();
    Said {
        status: out.status.code().unwrap_or(-1),
        out: String::from_utf8(out.stdout).unwrap(),
        err: String::from_utf8(out.stderr).unwrap(),
    }
}

/// Runs the command with little address space.
fn confined(folder: &Folder, args: &str) -> Said {
    let limit = format!("ulimit -v {SPACE_KIB}; exec \"$@\"");
    below(folder, &["sh", "-c", &limit, "sh"], args)
}

/// A minimal protocol buffer encoder, enough for one Conv.
mod onnx {
    fn number(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 128 {
            bytes.push(value.to_le_bytes()[0] | 128);
            value /= 128;
        }
        bytes.push(value.to_le_bytes()[0]);
        bytes
    }

    fn integer(field: u64, value: u64) -> Vec<u8> {
        [number(field << 3), number(value)].concat()
    }

    fn part(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = content.as_ref();
        [number(field << 3 | 2), number(content.len() as u64), content.to_vec()].concat()
    }

    fn value(name: &str, shape: &[u64]) -> Vec<u8> {
        let dims: Vec<u8> = shape.iter().flat_map(|size| part(1, integer(1, *size))).collect();
        let tensor = [integer(1, 1), part(2, dims)].concat();
        [part(1, name), part(2, part(1, tensor))].concat()
    }

    /// `y = Conv(x, w)` with `x` of `[1, 1, 8, 8]`, a 3x3 filter of ones and `pads` on all four sides.
    pub(super) fn conv(pads: u64) -> Vec<u8> {
        let pads =
            [part(1, "pads"), (0..4).flat_map(|_| integer(8, pads)).collect(), integer(20, 7)].concat();
        let node =
            [part(1, "x"), part(1, "w"), part(2, "y"), part(3, "conv"), part(4, "Conv"), part(5, pads)];
        let weight: Vec<u8> = (0..9).flat_map(|_| 1.0f32.to_le_bytes()).collect();
        let dims: Vec<u8> = [1, 1, 3, 3].into_iter().flat_map(|size| integer(1, size)).collect();
        let filter = [dims, integer(2, 1), part(8, "w"), part(9, weight)].concat();
        let graph = [
            part(1, node.concat()),
            part(2, "g"),
            part(5, filter),
            part(11, value("x", &[1, 1, 8, 8])),
            part(12, part(1, "y")),
        ];
        let opset = [part(1, ""), integer(2, 13)].concat();
        [integer(1, 8), part(7, graph.concat()), part(8, opset)].concat()
    }
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_both_numbers_before_it_is_allocated() {
    let folder = Folder::new();
    folder.array("eight.npy", &[1, 1, 8, 8], vec![1.0f32; 64]);
    folder.write("small.onnx", onnx::conv(1));
    folder.write("large.onnx", onnx::conv(25_000));
    let conv = "conv --backend cpu --input x.npy --weight w.npy --output y.npy --quiet";
    let run = "run --backend cpu --input eight.npy --output y.npy --quiet";
    let rows = [
        ("layer conv", format!("{conv} --padding 25000")),
        ("large.onnx", format!("{run} large.onnx")),
        ("large.onnx", format!("{run} large.onnx --precision f64")),
    ];
    every_row(rows, |(what, args)| {
        let error = folder.refused(2, &args, confined);
        for part in [what, " GB of memory", "ulimit -v", " left"] {
            assert!(error.contains(part), "{args}: {part} is not in {error}");
        }
        assert!(error.matches("GB").count() + error.matches("MB").count() == 2, "{error}");
    });
    // The same layer with little padding fits, and is correct.
    let rows = [(format!("{conv} --padding 1"), None), (format!("{run} small.onnx"), Some(9.0))];
    every_row(rows, |(args, expected)| {
        let said = confined(&folder, &args);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{args}");
        let output = folder.load::<f32>("y.npy");
        assert!(output.len() >= 64, "{args}");
        if let Some(expected) = expected {
            assert!((output[[0, 0, 4, 4]] - expected).abs() < 1e-4, "{args}: {output}");
        }
    });
}

#[test]
fn where_threads_are_short_fewer_workers_do_the_work() {
    let folder = Folder::new();
    // A user id that only this test uses: the limit counts all processes of a user.
    let user = (3_000_000 + std::process::id()).to_string();
    std::fs::set_permissions(folder.path("."), std::fs::Permissions::from_mode(0o777)).unwrap();
    let limited = |threads: usize, args: &str| {
        let limit = format!("--nproc={threads}");
        let user = ["setpriv", "--reuid", &user, "--clear-groups"];
        below(&folder, &[&user[..], &["prlimit", &limit]].concat(), args)
    };
    let possible = limited(1000, "--version");
    if possible.status != 0 {
        println!("skipped: another user cannot be become here, or may not run the binary: {}", possible.err);
        return;
    }
    let (x, w) = (folder.load::<f32>("x.npy"), folder.load::<f32>("w.npy"));
    let shape = ConvShape::new(&INPUT, &WEIGHT, &ConvParams::default()).unwrap();
    let truth = reference(&shape, x.as_slice().unwrap(), w.as_slice().unwrap(), None).unwrap();
    let args = "conv --backend cpu --workers 6 --input x.npy --weight w.npy --output y.npy";
    let cores = std::thread::available_parallelism().unwrap().get();
    // The main thread, one for each core, and one for each worker.
    let enough = 1 + cores + 6;
    for threads in (2..=enough).rev() {
        let _ = std::fs::remove_file(folder.path("y.npy"));
        let said = limited(threads, args);
        assert_eq!(said.status, 0, "{threads} threads: {}", said.err);
        let output = folder.load::<f32>("y.npy").into_raw_vec_and_offset().0;
        let error = relative_l2(&output, &truth);
        assert!(error < EXACT, "{threads} threads: {error}");
        let there = threads.saturating_sub(1 + cores);
        let notice = format!("{there} of 6 workers do the work");
        assert_eq!(said.err.contains(&notice), threads < enough, "{threads} threads: {}", said.err);
    }
    // No thread besides the main one: nothing can run, and one line says so.
    let said = limited(1, args);
    assert_eq!(said.status, 2, "{}", said.err);
    assert!(said.err.starts_with("error: a thread") && said.err.contains("pids.max"), "{}", said.err);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
}
