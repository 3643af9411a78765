//! Bad input and bad usage: exit status 2, one helpful line, and no output files.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use fcdcc_test_support::folder::{Folder, INPUT, header, npy};
use fcdcc_test_support::{every_row, normal};

#[test]
fn unfit_input_files_are_refused() {
    let folder = Folder::new();
    let good = fs::read(folder.path("x.npy")).unwrap();
    let mut too_new = good.clone();
    too_new[6] = 9;
    let values = |value: f32| {
        let mut values = normal::<f32>(INPUT.iter().product(), 1);
        values[7] = value;
        values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()
    };
    let shape = "(1, 3, 12, 10)";
    let huge = "(1, 3, 99999999999, 99999999999)";
    let rows = [
        ("rank 2", npy(&header("<f4", "(3, 4)"), &[0; 48]), "[3, 4]"),
        ("rank 6", npy(&header("<f4", "(1, 3, 1, 1, 1, 1)"), &[0; 12]), "is 6"),
        ("other channels", npy(&header("<f4", "(1, 4, 12, 10)"), &[0; 1920]), "4"),
        ("complex", npy(&header("<c8", shape), &[0; 2880]), "<c8"),
        ("words", npy(&header("<U1", shape), &[0; 1440]), "<U1"),
        (
            "records",
            npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }", &[0; 12]),
            "<f4",
        ),
        ("truncated data", good[..good.len() - 7].to_vec(), "1433 bytes"),
        ("truncated header", good[..40].to_vec(), "40 bytes"),
        ("too long", [good.as_slice(), b"xx"].concat(), "1442 bytes"),
        ("garbage", (0..=255).cycle().take(5000).collect(), "not a .npy"),
        ("empty", Vec::new(), "0 bytes"),
        ("magic only", good[..6].to_vec(), "6 bytes"),
        ("unknown version", too_new, "x.npy"),
        ("NaN in the shape", npy(&header("<f4", "(nan,)"), &[0; 4]), "not a .npy"),
        ("negative axis", npy(&header("<f4", "(-1, 3)"), &[]), "-1"),
        ("deeply nested", npy(&"(".repeat(30_000), &[]), "not a .npy"),
        ("long header", npy(&"x".repeat(30_000), &[]), "not a .npy"),
        ("huge shape", npy(&header("<f4", huge), &[]), "more than memory"),
        (
            "overflow hidden by a zero",
            npy(&header("<f4", "(1, 0, 9999999999, 9999999999999999)"), &[]),
            "shape",
        ),
        ("zero-size axis", npy(&header("<f4", "(1, 3, 0, 10)"), &[]), "[1, 3, 0, 10]"),
        ("no batch", npy(&header("<f4", "(0, 3, 12, 10)"), &[]), "[0, 3, 12, 10]"),
        ("NaN", npy(&header("<f4", shape), &values(f32::NAN)), "NaN at flat index 7"),
        ("infinity", npy(&header("<f4", shape), &values(f32::INFINITY)), "inf at flat index 7"),
        (
            "beyond f32",
            npy(&header("<f8", "(1, 3, 3, 3)"), &1e300_f64.to_le_bytes().repeat(27)),
            "--precision f64",
        ),
    ];
    every_row(rows, |(what, bytes, says)| {
        folder.write("x.npy", bytes);
        let error = folder.refused(2, "", Folder::conv);
        assert!(error.contains(says), "{what}: {error}");
    });
    fs::create_dir(folder.path("folder")).unwrap();
    every_row(["missing.npy", "folder"], |input| {
        let error = folder.refused(2, &format!("--input {input}"), Folder::conv);
        assert!(error.contains(input), "{error}");
    });
}

#[test]
fn unfit_options_are_refused() {
    let folder = Folder::new();
    fs::create_dir(folder.path("folder")).unwrap();
    folder.array("long.npy", &[9], vec![0.0_f32; 9]);
    folder.array("square.npy", &[8, 8], vec![0.0_f32; 64]);
    folder.array("nan.npy", &[8], vec![f32::NAN; 8]);
    folder.write("y.npy", "what was there before");
    let rows = [
        ("--partitions 3,4", "is 3"),
        ("--partitions 4,5", "is 5"),
        ("--partitions 0,1", "is 0"),
        ("--partitions 2,2,2", "is 3 where 2"),
        ("--partitions 4", "is 1 where 2"),
        ("--partitions x,y", "x,y"),
        ("--partitions 400,2", "200"),
        ("--workers 3 --partitions 4,4", "is 3 where at least 4"),
        ("--workers 0", "is 0"),
        ("--workers 99999", "99999"),
        ("--tolerate 6", "is 6"),
        ("--code foo", "foo"),
        ("--backend abacus", "abacus"),
        ("--backend gpu --adapter no-such-adapter", "no-such-adapter"),
        ("--adapter 0", "--backend cpu"),
        ("--precision f16", "f16"),
        ("--audit perhaps", "perhaps"),
        ("--audit correct --tolerate 1", "is 1 where at least 2"),
        ("--audit detect --tolerate 0", "is 0 where at least 1"),
        ("--hedge 2", "\"2\""),
        ("--hedge 0", "\"0\""),
        ("--hedge always", "always"),
        ("--partial-work maybe", "maybe"),
        ("--patience -1", "-1"),
        ("--patience nan", "NaN"),
        ("--patience inf", "inf"),
        ("--no-such-option", "--no-such-option"),
        ("--seed -3", "-3"),
        ("--max-error -1", "-1"),
        ("--max-error 0", "is 0"),
        ("--max-error nan", "NaN"),
        ("--on-shortfall cry", "cry"),
        ("--deadline 0", "is 0"),
        ("--deadline 0ms", "is 0"),
        ("--deadline soon", "soon"),
        ("--deadline=-1s", "-1s"),
        ("--deadline 5", "5"),
        ("--fault 0", "`0`"),
        ("--fault 0:sulk", "sulk"),
        ("--fault :crash", "workers"),
        ("--fault 6:crash", "is 6"),
        ("--fault random:7:crash", "is 7"),
        ("--fault 0:slow=0.5x", "0.5"),
        ("--fault 0:corrupt=nan", "nan"),
        ("--fault 0:delay=20", "20"),
        ("--bias long.npy", "is 9 where 8"),
        ("--bias square.npy", "is 2 (shape [8, 8]) where 1"),
        ("--bias nan.npy", "bias holds NaN"),
        ("--bias missing.npy", "missing.npy"),
        ("--weight missing.npy", "missing.npy"),
        ("--groups 2", "is 2"),
        ("--groups 0", "is 0"),
        ("--groups 99999999999999999999", "99999999999999999999"),
        ("--stride 0", "is 0"),
        ("--stride 1,2,3", "is 3 where 1 or 2"),
        ("--stride 1.5", "1.5"),
        ("--padding 1,2,3", "is 3 where 1, 2 or 4"),
        ("--padding -1", "-1"),
        ("--padding 99999999999999999", "padded input"),
        ("--dilation 9", "is 19 where at most 12"),
        ("--dilation 99999999999999999999", "99999999999999999999"),
        ("--output missing/y.npy", "missing"),
        ("--output folder", "is a folder"),
        ("--report missing/r.json", "missing"),
        ("--report folder", "is a folder"),
        ("--report y.npy", "y.npy"),
        ("--report ./y.npy", "y.npy"),
    ];
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, args, Folder::conv);
        assert!(error.contains(says), "{args}: {error}");
    });
    let rows = [
        ("", "command"),
        ("sing", "sing"),
        ("conv", "--input"),
        ("conv --backend cpu --input x.npy --weight w.npy", "--output"),
        ("devices --yaml", "--yaml"),
        ("demo --backend abacus", "abacus"),
        ("demo --report missing/r.json", "missing"),
        ("demo --write missing", "missing"),
        ("demo --backend cpu --fault 9:crash", "9"),
        ("run", "MODEL.onnx"),
        ("run m.onnx", "--input"),
        ("run m.onnx --input x.npy --labels l.txt", "--top"),
        ("run m.onnx --input x.npy", "m.onnx"),
        ("run x.npy --input x.npy", "is not an ONNX model"),
        ("run . --input x.npy", "cannot be read"),
    ];
    every_row(rows, |(args, says)| {
        let error = folder.refused(2, args, Folder::run);
        assert!(error.contains(says), "{args}: {error}");
    });
}
