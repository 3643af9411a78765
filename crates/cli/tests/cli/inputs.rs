//! Inputs of the command line: arrays of every type, archives, pictures, streams, and limits for endless inputs.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::script::script;
use fcdcc::conv::reference;
use fcdcc::{ConvParams, ConvShape};
use fcdcc_test_support::folder::{Folder, npy};
use fcdcc_test_support::{every_row, normal, relative_l2};
use half::f16;
use image::{GrayImage, ImageFormat};
use rustix::fs::{CWD, Mode, mkfifoat};
use zip::write::{SimpleFileOptions, ZipWriter};

/// Maximum time of anything here.
const LIMIT: Duration = Duration::from_mins(1);

/// With one worker, results are bit-identical.
const ALONE: &str = "--backend cpu --code uncoded --workers 1 --tolerate 0 --quiet";

/// The result of the folder's conv for this input.
fn conv(folder: &Folder, input: &str) -> Vec<u8> {
    let said = folder.conv(&format!("--input {input} {ALONE}"));
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{input}");
    fs::read(folder.path("y.npy")).unwrap()
}

/// numpy's header of an array.
fn header(dtype: &str, fortran: bool) -> String {
    let fortran = if fortran { "True" } else { "False" };
    format!("{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': (1, 3, 12, 10), }}")
}

/// An element type by numpy's name, and how to write a value in it.
type Writer = (&'static str, fn(i8) -> Vec<u8>);

const SHAPE: [usize; 4] = [1, 3, 12, 10];

/// Integers that every type can represent.
fn values(least: i8) -> Vec<i8> {
    let count: usize = SHAPE.iter().product();
    (0..count).map(|i| i8::try_from(i * 37 % 101).unwrap().max(least)).collect()
}

/// The same elements in column-major order.
fn transposed<T: Copy>(values: &[T]) -> Vec<T> {
    let [n, c, h, w] = SHAPE;
    let mut all = Vec::with_capacity(values.len());
    for x in 0..w {
        for y in 0..h {
            for channel in 0..c {
                for item in 0..n {
                    all.push(values[((item * c + channel) * h + y) * w + x]);
                }
            }
        }
    }
    all
}

#[test]
fn arrays_of_every_type_order_and_layout_give_one_result() {
    let folder = Folder::new();
    let numbers = values(0);
    folder.array("x.npy", &SHAPE, numbers.iter().map(|v| f32::from(*v)).collect());
    let expected = conv(&folder, "x.npy");
    let little: [Writer; 11] = [
        ("f2", |v| f16::from_f32(f32::from(v)).to_le_bytes().to_vec()),
        ("f4", |v| f32::from(v).to_le_bytes().to_vec()),
        ("f8", |v| f64::from(v).to_le_bytes().to_vec()),
        ("i1", |v| v.to_le_bytes().to_vec()),
        ("i2", |v| i16::from(v).to_le_bytes().to_vec()),
        ("i4", |v| i32::from(v).to_le_bytes().to_vec()),
        ("i8", |v| i64::from(v).to_le_bytes().to_vec()),
        ("u1", |v| vec![v.cast_unsigned()]),
        ("u2", |v| u16::from(v.cast_unsigned()).to_le_bytes().to_vec()),
        ("u4", |v| u32::from(v.cast_unsigned()).to_le_bytes().to_vec()),
        ("u8", |v| u64::from(v.cast_unsigned()).to_le_bytes().to_vec()),
    ];
    every_row(little, |(name, write)| {
        for (order, fortran) in [('<', false), ('>', false), ('<', true), ('>', true)] {
            let numbers = if fortran { transposed(&numbers) } else { numbers.clone() };
            let bytes = numbers.iter().flat_map(|value| {
                let mut bytes = write(*value);
                if order == '>' {
                    bytes.reverse();
                }
                bytes
            });
            let order = if name.ends_with('1') { '|' } else { order };
            let dtype = format!("{order}{name}");
            folder.write("x.npy", npy(&header(&dtype, fortran), &bytes.collect::<Vec<_>>()));
            assert!(conv(&folder, "x.npy") == expected, "{dtype}, fortran {fortran}");
        }
    });
    // Booleans become 0 and 1.
    let truth: Vec<u8> = numbers.iter().map(|v| u8::from(*v > 50)).collect();
    folder.write("x.npy", npy(&header("|b1", false), &truth));
    let booleans = conv(&folder, "x.npy");
    folder.array("x.npy", &SHAPE, truth.iter().map(|v| f32::from(*v)).collect());
    assert!(conv(&folder, "x.npy") == booleans && booleans != expected);
    let rows =
        [("<c8", 8, "c8"), ("<U3", 12, "U3"), ("|O", 8, "|O"), ("<f16", 16, "f16"), ("<M8[s]", 8, "M8")];
    every_row(rows, |(dtype, size, says)| {
        folder.write("x.npy", npy(&header(dtype, false), &vec![0; size * numbers.len()]));
        let error = folder.refused(2, "", Folder::conv);
        assert!(error.contains(says) && error.contains("astype"), "{error}");
    });
}

/// A zip archive as written by numpy.savez.
fn archive(arrays: &[(&str, &[u8])], deflated: bool) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let method = if deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
    for (name, bytes) in arrays {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn archives_give_the_array_that_is_meant() {
    let folder = Folder::new();
    let x = fs::read(folder.path("x.npy")).unwrap();
    let w = fs::read(folder.path("w.npy")).unwrap();
    let expected = conv(&folder, "x.npy");
    every_row([false, true], |deflated| {
        folder.write("one.npz", archive(&[("arr_0.npy", &x)], deflated));
        folder.write("several", archive(&[("w.npy", &w), ("x.npy", &x), ("other.npy", b"")], deflated));
        assert!(conv(&folder, "one.npz") == expected);
        assert!(conv(&folder, "several --weight several") == expected);
        let piped = format!("cat one.npz | $FCDCC conv --input - --weight w.npy --output y.npy {ALONE}");
        let said = script(&folder, &piped);
        assert_eq!((said.status, said.err.as_str()), (0, ""));
        assert!(fs::read(folder.path("y.npy")).unwrap() == expected);
    });
    let whole = archive(&[("arr_0.npy", &x)], true);
    let mut wrong = archive(&[("arr_0.npy", &x)], false);
    // One bit of the data is flipped: the checksum detects it.
    wrong[600] ^= 1;
    let rows = [
        (archive(&[("a.npy", &x), ("b.npy", &x)], false), "holds 2 arrays (a, b) and none called input or x"),
        (archive(&[("notes.txt", b"x")], false), "without a .npy array"),
        (archive(&[("m/data.pkl", b"x")], false), "PyTorch"),
        (archive(&[], false), "without a .npy array"),
        (archive(&[("arr_0.npy", &x[..1000])], true), "arr_0: has 872 bytes"),
        (whole[..whole.len() / 2].to_vec(), "damaged zip archive"),
        (wrong, "arr_0"),
        (b"PK\x03\x04".to_vec(), "damaged zip archive"),
    ];
    every_row(rows, |(bytes, says)| {
        folder.write("x.npz", bytes);
        let error = folder.refused(2, "--input x.npz", Folder::conv);
        assert!(error.contains(says), "{error}");
    });
}

#[test]
fn streams_are_read_like_files() {
    let folder = Folder::new();
    let expected = conv(&folder, "x.npy");
    mkfifoat(CWD, folder.path("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
    folder.write("behind", [b"12345".as_slice(), &fs::read(folder.path("x.npy")).unwrap()].concat());
    let rest = format!("{ALONE} --output y.npy");
    let rows = [
        format!("cat x.npy | $FCDCC conv --input - --weight w.npy {rest}"),
        format!("$FCDCC conv --input - --weight w.npy {rest} < x.npy"),
        format!("$FCDCC conv --input <(cat x.npy) --weight <(cat w.npy) {rest}"),
        format!("$FCDCC conv --input /dev/stdin --weight w.npy {rest} < x.npy"),
        format!("cat x.npy > pipe & $FCDCC conv --input pipe --weight w.npy {rest}; wait"),
        // The file descriptor is not at the beginning of the file.
        format!("{{ head -c 5 > /dev/null; $FCDCC conv --input - --weight w.npy {rest}; }} < behind"),
        // A slow writer.
        format!(
            "(head -c 100 x.npy; sleep 1; tail -c +101 x.npy) | $FCDCC conv --input - --weight w.npy {rest}"
        ),
    ];
    every_row(rows, |text| {
        // A row that failed has left none.
        let _ = fs::remove_file(folder.path("y.npy"));
        let said = script(&folder, &text);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{text}");
        assert!(fs::read(folder.path("y.npy")).unwrap() == expected, "{text}");
    });
    let said = script(&folder, &format!("cat x.npy | $FCDCC conv --input - --weight - {rest}"));
    assert!(said.status == 2 && said.err.contains("read only once"), "{}", said.err);
}

/// A folder with LeNet-5 and a digit in `digit.png`.
fn material() -> Folder {
    let folder = Folder::empty();
    let said = folder.run("demo --backend cpu --write . --quiet --fault 0:delay=0ms");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    folder
}

fn logits(folder: &Folder, input: &str) -> Vec<f32> {
    let said = folder.run(&format!("run lenet5.onnx --backend cpu --quiet --output y.npy --input {input}"));
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{input}");
    folder.load::<f32>("y.npy").iter().copied().collect()
}

#[test]
fn pictures_are_told_by_their_content() {
    let folder = material();
    let expected = logits(&folder, "digit.png");
    let digit = image::open(folder.path("digit.png")).unwrap();
    let save = |name: &str, format| {
        // WebP has no grey format.
        let digit = if format == ImageFormat::WebP { digit.to_rgb8().into() } else { digit.clone() };
        digit.save_with_format(folder.path(name), format).unwrap();
    };
    // Misleading file names.
    let rows = [
        ("a.npy", ImageFormat::Png),
        ("b.jpg", ImageFormat::WebP),
        ("c", ImageFormat::Bmp),
        ("d.png", ImageFormat::Tiff),
    ];
    every_row(rows, |(name, format)| {
        save(name, format);
        let got = logits(&folder, name);
        assert!(relative_l2(&got, &expected) < 1e-5, "{name}");
    });
    // JPEG is lossy: close, but not the same.
    save("e.webp", ImageFormat::Jpeg);
    let off = relative_l2(&logits(&folder, "e.webp"), &expected);
    assert!(off > 1e-5 && off < 0.2, "{off}");
    assert_eq!(logits(&folder, "a.npy b.jpg c d.png").len(), 40);
    // An array with the name of a picture.
    let digits = folder.load::<f32>("digits.npy");
    let one = digits.slice_axis(ndarray::Axis(0), ndarray::Slice::from(..1)).to_owned();
    ndarray_npy::write_npy(folder.path("array.png"), &one).unwrap();
    assert!(relative_l2(&logits(&folder, "array.png"), &expected) < 1e-2);
    let said = script(&folder, "$FCDCC run lenet5.onnx --backend cpu -q --output z.npy --input - < b.jpg");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    let streamed: Vec<f32> = folder.load::<f32>("z.npy").iter().copied().collect();
    assert!(relative_l2(&streamed, &expected) < 1e-5);

    folder.write("x.gif", b"GIF89a............");
    folder.write("x.txt", "a digit");
    folder.write("x.heic", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00");
    folder.write("nothing.png", "");
    let png = fs::read(folder.path("digit.png")).unwrap();
    folder.write("cut.png", &png[..png.len() / 2]);
    let rows = [
        ("x.gif", "GIF"),
        ("x.txt", "a text that begins with \"a digit\""),
        ("x.heic", "HEIF"),
        ("nothing.png", "empty, 0 bytes"),
        ("cut.png", "PNG picture that cannot be decoded"),
        ("digit.png x.gif", "GIF"),
        ("digit.png digits.npy", "a .npy array"),
        ("lenet5.onnx", "neither an array nor a picture"),
        (".", "folder"),
    ];
    every_row(rows, |(input, says)| {
        let error = folder.refused(2, &format!("run lenet5.onnx --backend cpu --input {input}"), Folder::run);
        assert!(error.contains(says), "{input}: {error}");
    });
    let error = folder.refused(2, "--input digit.png --weight edges.npy", Folder::conv);
    assert!(error.contains("not a .npy or .npz array but a PNG picture"), "{error}");
}

/// A PNG that claims this size and has no pixels.
fn claimed(width: u32, height: u32) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [kind.as_slice(), data].concat();
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        [length.as_slice(), &body, &crc32fast::hash(&body).to_be_bytes()].concat()
    };
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &[size.as_slice(), &[8, 2, 0, 0, 0]].concat()),
        chunk(b"IDAT", b"\x78\x9c"),
        chunk(b"IEND", b""),
    ]
    .concat()
}

#[test]
fn what_has_no_end_or_is_too_large_is_refused_with_both_numbers() {
    let folder = material();
    folder.random::<f32>("x.npy", &SHAPE, 1);
    folder.random::<f32>("w.npy", &[8, 3, 3, 3], 2);
    // Sparse: 20 MiB that take no disk space.
    File::create(folder.path("long.txt")).unwrap().set_len(20 << 20).unwrap();
    folder.write("large.png", claimed(30_000, 30_000));
    folder.write("wide.png", claimed(40_000, 2));
    let huge = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1000000, 1000000), }", b"");
    folder.write("huge.npy", &huge);
    File::options()
        .write(true)
        .open(folder.path("huge.npy"))
        .unwrap()
        .set_len(huge.len() as u64 + 4_000_000_000_000)
        .unwrap();
    let before = folder.path("long.txt");
    let (text, piped) = ((16 << 20).to_string(), "cat huge.npy | ");
    let run = "$FCDCC run lenet5.onnx --backend cpu --input";
    let conv = "$FCDCC conv --backend cpu --weight w.npy --output y.npy --input";
    let started = Instant::now();
    let rows = [
        (format!("{run} digit.png --top 1 --labels /dev/zero"), vec!["/dev/zero", text.as_str()]),
        (format!("{run} digit.png --top 1 --labels long.txt"), vec!["20971520", text.as_str()]),
        (
            "$FCDCC conv --input x.npy --weight w.npy --output y.npy --pool /dev/zero".to_owned(),
            vec![text.as_str()],
        ),
        (
            "$FCDCC conv --input x.npy --weight w.npy --output y.npy --pool long.txt".to_owned(),
            vec!["20971520"],
        ),
        ("$FCDCC bench --backend cpu --layers /dev/zero".to_owned(), vec![text.as_str()]),
        ("$FCDCC bench --backend cpu --layers long.txt".to_owned(), vec!["20971520", text.as_str()]),
        ("$FCDCC plan --backend cpu --layers /dev/zero".to_owned(), vec![text.as_str()]),
        ("$FCDCC bench --backend cpu --scenario trace=/dev/zero".to_owned(), vec![text.as_str()]),
        ("$FCDCC worker --listen 127.0.0.1:0 --config /dev/zero".to_owned(), vec![text.as_str()]),
        (
            "$FCDCC worker --listen 127.0.0.1:0 --ca /dev/zero --certificate /dev/zero --key /dev/zero"
                .to_owned(),
            vec!["1048576"],
        ),
        ("$FCDCC run /dev/zero --backend cpu --input digit.png".to_owned(), vec!["zero byte"]),
        (format!("{run} /dev/zero"), vec!["/dev/zero"]),
        (format!("{run} large.png"), vec!["30000 x 30000 = 900000000", "67108864"]),
        (format!("{run} wide.png"), vec!["40000 x 2", "32768"]),
        (format!("{conv} /dev/zero"), vec!["not a .npy"]),
        (format!("{conv} huge.npy"), vec!["4000.0 GB", "left"]),
        (format!("{piped}{conv} -"), vec!["4000.0 GB", "left"]),
    ];
    every_row(rows, |(command, says)| {
        // Under a memory limit that an endless input would soon exceed.
        let said = script(&folder, &format!("ulimit -v 16777216; {command}"));
        assert_eq!(said.status, 2, "{command}: {}", said.err);
        assert!(says.iter().all(|says| said.err.contains(says)), "{command}: {}", said.err);
        assert_eq!((said.err.lines().count(), said.out.as_str()), (1, ""), "{command}");
    });
    assert!(started.elapsed() < 2 * LIMIT, "{:?}", started.elapsed());
    assert_eq!(fs::metadata(before).unwrap().len(), 20 << 20);
    // Negative control: a file of exactly the maximum length is read.
    let labels = "zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n";
    let last = "n".repeat((16 << 20) - labels.len());
    folder.write("longest.txt", format!("{labels}{last}"));
    let said = folder.run("run lenet5.onnx --backend cpu --input digit.png --top 1 --labels longest.txt -q");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
}

/// A cache like that of Hugging Face: the names in a snapshot are links to blobs.
fn cache(folder: &Folder, location: &str, offset: usize, filters: &[f32]) {
    for path in ["hub/blobs", "hub/snapshots/abc/onnx", "elsewhere"] {
        fs::create_dir_all(folder.path(path)).unwrap();
    }
    folder.write("hub/blobs/m", crate::external::model(location, offset as u64));
    folder.write("hub/blobs/d", crate::external::data(offset, filters));
    folder.write("elsewhere/d", crate::external::data(offset, filters));
}

#[test]
fn weights_beside_a_model_are_read_where_they_may_lie() {
    let filters = normal::<f32>(crate::external::FILTERS, 4);
    let x = normal::<f32>(36, 5);
    let shape = ConvShape::new(&[1, 1, 6, 6], &[2, 1, 3, 3], &ConvParams::default()).unwrap();
    let truth = reference(&shape, &x, &filters, None).unwrap();
    let folder = Folder::empty();
    folder.array("x.npy", &[1, 1, 6, 6], x);
    let offset = 128;
    cache(&folder, "model.onnx_data", offset, &filters);
    let link = |to: &str, name: &str| symlink(to, folder.path(name)).unwrap();
    link("../../../blobs/m", "hub/snapshots/abc/onnx/model.onnx");
    link("../../../blobs/d", "hub/snapshots/abc/onnx/model.onnx_data");
    link("../../blobs/m", "hub/snapshots/abc/model.onnx");
    link("../../blobs/d", "hub/snapshots/abc/model.onnx_data");
    // Copies, beside one another.
    fs::create_dir(folder.path("plain")).unwrap();
    fs::copy(folder.path("hub/blobs/m"), folder.path("plain/model.onnx")).unwrap();
    fs::copy(folder.path("hub/blobs/d"), folder.path("plain/model.onnx_data")).unwrap();
    // A link to the folder.
    link("hub/snapshots/abc", "current");
    let run = |model: &str| {
        folder
            .run(&format!("run {model} --backend cpu --calibrate never --input x.npy --output y.npy --quiet"))
    };
    let rows = [
        "hub/snapshots/abc/onnx/model.onnx",
        "hub/snapshots/abc/model.onnx",
        "plain/model.onnx",
        "current/model.onnx",
    ];
    every_row(rows, |model| {
        let said = run(model);
        assert_eq!((said.status, said.err.as_str()), (0, ""), "{model}");
        let got: Vec<f32> = folder.load::<f32>("y.npy").iter().copied().collect();
        assert!(relative_l2(&got, &truth) < 1e-5, "{model}");
        let mut other = got;
        other[3] += 0.1;
        assert!(relative_l2(&other, &truth) > 1e-5);
        fs::remove_file(folder.path("y.npy")).unwrap();
        if model == "plain/model.onnx" {
            return;
        }
        // The file of the weights is an input, too.
        let args = format!("run {model} --backend cpu --input x.npy --report hub/blobs/d");
        let error = folder.refused(2, &args, Folder::run);
        assert!(error.contains("never written over"), "{error}");
        assert_eq!(fs::read(folder.path("hub/blobs/d")).unwrap(), crate::external::data(offset, &filters));
    });
}

#[test]
fn weights_elsewhere_are_not_read() {
    let filters = normal::<f32>(crate::external::FILTERS, 4);
    let folder = Folder::empty();
    folder.array("x.npy", &[1, 1, 6, 6], vec![1.0f32; 36]);
    cache(&folder, "d", 0, &filters);
    let outside = folder.path("elsewhere/d").display().to_string();
    let refused = |location: &str, says: &str| {
        folder.write("m.onnx", crate::external::model(location, 0));
        let error = folder.refused(2, "run m.onnx --backend cpu --input x.npy", Folder::run);
        assert!(error.contains("tensor w") && error.contains(says), "{location}: {error}");
    };
    refused("elsewhere/../elsewhere/d", "outside the model's folder");
    refused("../d", "outside the model's folder");
    refused(&outside, "outside the model's folder");
    refused("", "outside the model's folder");
    refused("missing", "cannot be read");
    refused("elsewhere", "no regular file");
    fs::create_dir(folder.path("models")).unwrap();
    folder.write("models/m.onnx", crate::external::model("d", 0));
    symlink("../elsewhere/d", folder.path("models/d")).unwrap();
    let error = folder.refused(2, "run models/m.onnx --backend cpu --input x.npy", Folder::run);
    assert!(error.contains("is a link to") && error.contains("elsewhere"), "{error}");
    // As a hard link instead of a symbolic one it is read.
    fs::remove_file(folder.path("models/d")).unwrap();
    fs::hard_link(folder.path("elsewhere/d"), folder.path("models/d")).unwrap();
    let said = folder.run("run models/m.onnx --backend cpu --calibrate never --input x.npy --quiet");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    folder.write("models/d", &crate::external::data(0, &filters)[..40]);
    let error = folder.refused(2, "run models/m.onnx --backend cpu --input x.npy", Folder::run);
    assert!(error.contains("72 where it has 40"), "{error}");
    fs::remove_file(folder.path("models/d")).unwrap();
    mkfifoat(CWD, folder.path("models/d"), Mode::RUSR | Mode::WUSR).unwrap();
    let started = Instant::now();
    let said = folder.run("run models/m.onnx --backend cpu --input x.npy");
    assert!(said.status == 2 && said.err.contains("no regular file"), "{}", said.err);
    assert!(started.elapsed() < LIMIT);
}

#[test]
fn a_grey_picture_of_any_depth_is_grey() {
    let folder = material();
    // 16-bit levels that equal the 8-bit ones.
    let deep = image::open(folder.path("digit.png")).unwrap().to_luma16();
    deep.save_with_format(folder.path("deep"), ImageFormat::Tiff).unwrap();
    let (eight, sixteen) = (logits(&folder, "digit.png"), logits(&folder, "deep"));
    assert!(relative_l2(&sixteen, &eight) < 1e-5);
    GrayImage::new(32, 32).save_with_format(folder.path("black"), ImageFormat::Bmp).unwrap();
    assert!(relative_l2(&logits(&folder, "black"), &eight) > 0.1);
}
