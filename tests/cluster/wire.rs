//! The wire decoder on the corpus of the fuzzer (`fuzz/`), and on random changes of it.
//!
//! `FCDCC_CORPUS=write cargo test --test cluster wire` rewrites the corpus.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::PathBuf;

use fcdcc::array::{DType, WireFormat};
use fcdcc::cluster::wire::{
    Answer, Call, ContentId, DeviceInfo, Hello, HostInfo, MasterId, Object, Progress, Refusal, Request,
    SlabsName, Spec, pack,
};
use fcdcc::worker::{PartArray, PartSignature};
use fcdcc_test_support::every_row;
use proptest::prelude::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/wire")
}

/// One message of every kind, and some invalid ones.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let spec = Spec {
        dtype: DType::F32,
        input: vec![1, 64, 30, 58],
        weight: vec![32, 64, 3, 3],
        stride: vec![1, 2],
        dilation: vec![1, 1],
        groups: 1,
        slabs: 2,
        banks: 2,
        plain: false,
    };
    let (content, crc, format) = (ContentId([0xab; 32]), 0xdead_beef, WireFormat::F16);
    let call = |request| pack(&Call { from: MasterId(1 << 100), request });
    let device = DeviceInfo {
        name: "gpu-0".to_owned(),
        gpu: true,
        device: "llvmpipe".to_owned(),
        f64: false,
        adapter: Some("0 llvmpipe".to_owned()),
        lost: Some("device lost".to_owned()),
        load: 3,
        filters: 4,
        filter_bytes: 5,
        done: 6,
        cancelled: 7,
        failed: 8,
    };
    let info = HostInfo {
        name: "alpha".to_owned(),
        boot: u64::MAX,
        version: "0.1.0".to_owned(),
        uptime_s: 9,
        devices: vec![device; 2],
        memory_limit_bytes: 10,
        memory_used_bytes: 11,
        masters: 12,
        clock_unix_ms: 13,
        clock_us: 15,
        certificate_until_unix_s: Some(-14),
    };
    let order = Some(vec![1, 2, 3, 0]);
    let progress = Progress { at_us: 4, queued_us: 5, computed_us: u64::MAX };
    let impossible = Spec { input: vec![u64::MAX; 5], ..spec.clone() };
    let array = |shape: &[usize]| PartArray { dtype: DType::F64, shape: shape.to_vec() };
    let signature =
        PartSignature { inputs: vec![array(&[1, 3, 8, 8])], outputs: vec![array(&[]), array(&[9])] };
    let endless = PartSignature { inputs: Vec::new(), outputs: vec![array(&[usize::MAX, usize::MAX])] };
    let mut newer = pack(&Answer::Done);
    newer[4] = 6;
    vec![
        ("info", call(Request::Info)),
        ("install", call(Request::Install { device: 1, content, spec: spec.clone() })),
        ("share", call(Request::Share { device: 1, of: content, spec })),
        ("install_impossible", call(Request::Install { device: 1, content, spec: impossible })),
        (
            "chunk_filters",
            call(Request::Chunk { object: Object::Filters(content), offset: 1, total: 2, crc, format }),
        ),
        (
            "chunk_slabs",
            call(Request::Chunk {
                object: Object::Slabs { name: SlabsName::Shared(7), dtype: DType::F64 },
                offset: 0,
                total: u64::MAX,
                crc,
                format,
            }),
        ),
        (
            "task",
            call(Request::Task {
                task: 7,
                device: 0,
                content,
                order,
                slabs: SlabsName::OfTask(7),
                inline_bytes: 1 << 20,
                crc,
                format,
                results: WireFormat::Bf16,
            }),
        ),
        (
            "chunk_part",
            call(Request::Chunk { object: Object::Part(content), offset: 1, total: 2, crc, format }),
        ),
        (
            "chunk_input",
            call(Request::Chunk {
                object: Object::Slabs { name: SlabsName::Input { task: 7, index: 1 }, dtype: DType::F32 },
                offset: 0,
                total: 4,
                crc,
                format,
            }),
        ),
        ("install_part", call(Request::InstallPart { device: 1, content, bytes: 2, memory_bytes: u64::MAX })),
        ("release_part", call(Request::ReleasePart { device: 1, content })),
        (
            "run_part",
            call(Request::RunPart {
                task: 7,
                device: 0,
                content,
                inline_bytes: 1 << 20,
                crc,
                format,
                results: WireFormat::Full,
            }),
        ),
        ("fetch", call(Request::Fetch { task: 7, index: 3, offset: 4, len: 5, format })),
        ("forget", call(Request::Forget { slabs: 7 })),
        ("release", call(Request::Release { device: 0, content })),
        ("cancel", call(Request::Cancel { task: 7 })),
        ("await", call(Request::Await { task: 7 })),
        ("answer_info", pack(&Answer::Info(Box::new(info)))),
        ("answer_installed", pack(&Answer::Installed)),
        ("answer_part_installed", pack(&Answer::PartInstalled { signature })),
        ("answer_part_impossible", pack(&Answer::PartInstalled { signature: endless })),
        ("answer_send", pack(&Answer::Send { from: 3 })),
        ("answer_ack", pack(&Answer::Ack { received: 3, at_us: 4 })),
        ("answer_accepted", pack(&Answer::Accepted { at_us: 4 })),
        ("answer_part", pack(&Answer::Part { index: 1, crc, format, progress })),
        ("answer_ready", pack(&Answer::Ready { index: 1, bytes: 2, progress })),
        ("answer_bytes", pack(&Answer::Bytes { crc, format, at_us: 4 })),
        ("answer_done", pack(&Answer::Done)),
        ("answer_refused", pack(&Answer::refused(Refusal::Memory, "no"))),
        ("answer_unwanted", pack(&Answer::refused(Refusal::Unwanted, "no"))),
        ("hello", pack(&Hello { name: "alpha".to_owned(), boot: u64::MAX, release: "0.1.0".to_owned() })),
        ("newer", newer),
        ("empty", Vec::new()),
        ("no_magic", b"HTTP/1.1 200 OK\r\n".to_vec()),
    ]
}

#[test]
fn the_corpus_has_every_message_and_all_of_it_holds() {
    if std::env::var("FCDCC_CORPUS").is_ok_and(|v| v == "write") {
        std::fs::create_dir_all(folder()).unwrap();
        for (name, bytes) in messages() {
            std::fs::write(folder().join(name), bytes).unwrap();
        }
    }
    every_row(messages(), |(name, bytes)| {
        let kept = std::fs::read(folder().join(name)).unwrap();
        assert_eq!(
            kept, bytes,
            "{name}: a change of the protocol takes another version of it, and a new corpus"
        );
    });
    for entry in std::fs::read_dir(folder()).unwrap() {
        crate::wire_properties::check(&std::fs::read(entry.unwrap().path()).unwrap());
    }
}

proptest! {
    #[test]
    fn changed_messages_are_refused_or_understood(which in 0usize..34, at in any::<usize>(), byte: u8, cut in any::<usize>()) {
        let (_, mut bytes) = messages().swap_remove(which);
        if !bytes.is_empty() {
            let len = bytes.len();
            bytes[at % len] = byte;
            crate::wire_properties::check(&bytes);
            bytes.truncate(cut % len);
        }
        crate::wire_properties::check(&bytes);
    }

    #[test]
    fn random_bodies_are_refused_or_understood(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = pack(&Answer::Done);
        bytes.truncate(6);
        bytes.extend(body);
        crate::wire_properties::check(&bytes);
    }
}
