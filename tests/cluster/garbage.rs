//! Foreign zenoh peers: workers and masters that send garbage, other protocol versions, wrong sizes or wrong checksums.
//! Such messages are rejected, and cause no crash and no wait.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fcdcc::Outcome;
use fcdcc::array::{DType, WireFormat};
use fcdcc::cluster::wire::{
    Answer, Call, ContentId, DeviceInfo, HostInfo, MasterId, Object, Progress, Refusal, Request, SlabsName,
    Spec, pack, unpack,
};
use fcdcc::cluster::{Cluster, Seats};
use fcdcc_test_support::every_row;
use fcdcc_test_support::fleet::{SOON, endpoint, master, pool_of, server, until, usable, workers};
use fcdcc_test_support::layer::{self, EXACT_F32, options};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zenoh::Wait;
use zenoh::query::Query;

/// A plain zenoh session that connects to the listener at `at`.
fn raw(at: &fcdcc::cluster::Endpoint) -> zenoh::Session {
    let mut config = zenoh::Config::default();
    config.insert_json5("mode", "\"client\"").unwrap();
    config.insert_json5("connect/endpoints", &format!("[\"tcp/{at}\"]")).unwrap();
    config.insert_json5("scouting/multicast/enabled", "false").unwrap();
    zenoh::open(config).wait().unwrap()
}

pub(super) fn info(name: &str, boot: u64) -> HostInfo {
    let device = DeviceInfo {
        name: "cpu-0".to_owned(),
        gpu: false,
        device: "1 thread".to_owned(),
        f64: true,
        adapter: None,
        lost: None,
        load: 0,
        filters: 0,
        filter_bytes: 0,
        done: 0,
        cancelled: 0,
        failed: 0,
    };
    HostInfo {
        name: name.to_owned(),
        boot,
        version: "9.9.9".to_owned(),
        uptime_s: 1,
        devices: vec![device],
        memory_limit_bytes: 1 << 30,
        memory_used_bytes: 0,
        masters: 0,
        clock_unix_ms: 13,
        clock_us: 14,
        certificate_until_unix_s: Some(-14),
    }
}

/// Answers a query with this header and payload.
pub(super) fn answer(query: &Query, header: Vec<u8>, payload: Vec<u8>) {
    // The other side may be gone.
    let _ = query.reply(query.key_expr().clone(), payload).attachment(header).wait();
}

/// How an impostor handles a request.
type Misdeed = Box<dyn Fn(&Query, Request) + Send + Sync>;

/// A worker called `name` that describes itself by `says` and handles requests by `does`; it lasts as long as the result.
pub(super) fn impostor(
    at: &fcdcc::cluster::Endpoint,
    name: &str,
    says: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    does: impl Fn(&Query, Request) + Send + Sync + 'static,
) -> Box<dyn Send> {
    let session = raw(at);
    let base = format!("fcdcc/default/w/{name}/{:016x}", 7);
    let told = session
        .declare_queryable(format!("{base}/info"))
        .callback(move |query| answer(&query, says(), Vec::new()))
        .wait()
        .unwrap();
    let called = session
        .declare_queryable(format!("{base}/call"))
        .callback(move |query| {
            let header = query.attachment().unwrap().to_bytes().into_owned();
            does(&query, unpack::<Call>(&header).unwrap().request);
        })
        .wait()
        .unwrap();
    let token = session.liveliness().declare_token(format!("{base}/alive")).wait().unwrap();
    Box::new((told, called, token, session))
}

fn problem(cluster: &Cluster, machine: &str) -> Option<String> {
    cluster.members().into_iter().find(|m| m.machine == machine)?.info.err()
}

#[test]
fn machines_that_say_nonsense_of_themselves_are_named_and_not_used() {
    let at = endpoint();
    let cluster = master(&at);
    let other_version = || {
        let mut header = pack(&Answer::Info(Box::new(info("newer", 7))));
        header[4] = 99;
        header
    };
    let devices = || HostInfo { devices: vec![info("x", 7).devices[0].clone(); 2000], ..info("many", 7) };
    let long = || HostInfo { version: "v".repeat(1000), ..info("long", 7) };
    let _impostors = [
        impostor(&at, "garbage", || vec![1, 2, 3], |_, _| {}),
        impostor(&at, "newer", other_version, |_, _| {}),
        impostor(&at, "twofaced", || pack(&Answer::Info(Box::new(info("alpha", 7)))), |_, _| {}),
        impostor(&at, "many", move || pack(&Answer::Info(Box::new(devices()))), |_, _| {}),
        impostor(&at, "long", move || pack(&Answer::Info(Box::new(long()))), |_, _| {}),
        impostor(&at, "wrong", || pack(&Answer::Done), |_, _| {}),
    ];
    let rows = [
        ("garbage", "not a message"),
        ("newer", "version 99 of the protocol, this side 5"),
        ("twofaced", "says that it is alpha"),
        ("many", "2000 devices"),
        ("long", "version too long"),
        ("wrong", "it answers Done"),
    ];
    every_row(rows, |(machine, words)| {
        let told = || problem(&cluster, machine).is_some_and(|p| p.contains(words));
        until(&format!("{machine} is found out: {:?}", cluster.members()), told);
    });
    let seats = [Seats { count: Some(1), ..Seats::default() }];
    assert!(cluster.workers(&seats, Duration::from_millis(200))[0].unavailable_reason().is_some());
    // Positive control: an impostor with valid information is used.
    let _honest = impostor(&at, "honest", || pack(&Answer::Info(Box::new(info("honest", 7)))), |_, _| {});
    assert_eq!(cluster.workers(&seats, SOON)[0].info().host, "honest");
}

#[test]
fn results_of_impostors_never_reach_an_output() {
    let layer = layer::small();
    let installed = |query: &Query| answer(query, pack(&Answer::Installed), Vec::new());
    let progress = Progress::default();
    let part = move |index, crc| Answer::Part { index, crc, format: WireFormat::Full, progress };
    let misdeeds: Vec<(&str, Misdeed)> = vec![
        (
            "short result",
            Box::new(move |query, request| match request {
                Request::Task { .. } => answer(query, pack(&part(0, 0)), vec![0; 4]),
                _ => installed(query),
            }),
        ),
        (
            "wrong checksum",
            Box::new(move |query, request| match request {
                // As long as a sub-result of the probe: 4 channels of 3 x 4.
                Request::Task { .. } => answer(query, pack(&part(0, 1)), vec![0; 192]),
                _ => installed(query),
            }),
        ),
        (
            "unasked result",
            Box::new(move |query, request| match request {
                Request::Task { .. } => answer(query, pack(&part(77, 0)), Vec::new()),
                _ => installed(query),
            }),
        ),
        (
            "done at once",
            Box::new(move |query, request| match request {
                Request::Task { .. } => answer(query, pack(&Answer::Done), Vec::new()),
                _ => installed(query),
            }),
        ),
        (
            "huge result announced",
            Box::new(move |query, request| match request {
                Request::Task { .. } => {
                    answer(query, pack(&Answer::Ready { index: 0, bytes: u64::MAX, progress }), Vec::new());
                }
                _ => installed(query),
            }),
        ),
        (
            "says that slabs are missing",
            Box::new(move |query, request| match request {
                Request::Task { .. } => {
                    answer(query, pack(&Answer::refused(Refusal::SlabsMissing, "not here")), Vec::new());
                }
                _ => installed(query),
            }),
        ),
        ("plain garbage", Box::new(|query, _| answer(query, vec![0xff; 100], vec![0; 100]))),
        (
            "asks for chunks without end",
            Box::new(|query, request| match request {
                Request::Chunk { .. } => {
                    answer(query, pack(&Answer::Ack { received: 0, at_us: 0 }), Vec::new());
                }
                _ => answer(query, pack(&Answer::Send { from: u64::MAX }), Vec::new()),
            }),
        ),
        ("hangs up", Box::new(|_, _| {})),
    ];
    for (what, does) in misdeeds {
        let at = endpoint();
        let cluster = master(&at);
        let _honest = server("alpha", &at, 5);
        let _evil = impostor(&at, "evil", || pack(&Answer::Info(Box::new(info("evil", 7)))), does);
        let pool = pool_of(workers(&cluster, 6));
        let evil = pool.workers().position(|info| info.host == "evil").unwrap();
        let prepared = layer.prepare(&pool, options(4, 4)).unwrap();
        for _ in 0..5 {
            let run = prepared.run(layer.input.view()).unwrap();
            assert!(layer.error(&run.output) < EXACT_F32, "{what}: {:#?}", run.report);
            let own = pool.workers().nth(evil).unwrap().name.clone();
            let used = run.report.workers.iter().any(|w| w.worker == own && w.outcome == Outcome::Used);
            assert!(!used, "{what}: {:#?}", run.report);
        }
        until(what, || usable(&pool) == 5);
    }
}

#[test]
fn a_worker_survives_whatever_it_is_sent() {
    let at = endpoint();
    let cluster = master(&at);
    let server = server("alpha", &at, 6);
    let mut honest = workers(&cluster, 6);
    let boot = server.info().boot;
    let session = raw(&at);
    let key = format!("fcdcc/default/w/alpha/{boot:016x}/call");
    let answered = std::sync::Arc::new(AtomicU64::new(0));
    let send = |header: Vec<u8>, payload: Vec<u8>| {
        let count = std::sync::Arc::clone(&answered);
        let callback = move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        session.get(key.as_str()).attachment(header).payload(payload).callback(callback).wait().unwrap();
    };
    let spec = Spec {
        dtype: DType::F32,
        input: vec![1, 2, 8, 8],
        weight: vec![2, 2, 3, 3],
        stride: vec![1, 1],
        dilation: vec![1, 1],
        groups: 1,
        slabs: 1,
        banks: 1,
        plain: false,
    };
    let content = ContentId::of(&spec, &[0; 144]);
    let huge = Spec { weight: vec![1 << 20, 2, 3, 3], ..spec.clone() };
    let from = MasterId(42);
    let order = Some((0..5000).collect());
    let format = WireFormat::F16;
    let task = |task, slabs, order, inline_bytes| {
        let (crc, results) = (0, WireFormat::Bf16);
        Request::Task { task, device: 0, content, order, slabs, inline_bytes, crc, format, results }
    };
    let run_part = |task, content| {
        let (crc, results) = (0, WireFormat::Bf16);
        Request::RunPart { task, device: 0, content, inline_bytes: u32::MAX, crc, format, results }
    };
    let requests = [
        Request::Install { device: 9, content, spec: spec.clone() },
        Request::Install { device: 0, content, spec: huge },
        Request::Install { device: 0, content, spec: Spec { groups: 0, ..spec.clone() } },
        Request::Install { device: 0, content, spec: Spec { slabs: u64::MAX, ..spec.clone() } },
        // The content does not match its id.
        Request::Install { device: 0, content: ContentId([1; 32]), spec: spec.clone() },
        Request::Chunk { object: Object::Filters(content), offset: 0, total: u64::MAX, crc: 0, format },
        Request::Chunk {
            object: Object::Slabs { name: SlabsName::OfTask(1), dtype: DType::F64 },
            offset: 0,
            total: 1 << 33,
            crc: 0,
            format,
        },
        Request::Chunk {
            object: Object::Slabs { name: SlabsName::Shared(2), dtype: DType::F64 },
            offset: u64::MAX,
            total: 8,
            crc: 0,
            format,
        },
        Request::Chunk {
            object: Object::Slabs { name: SlabsName::OfTask(3), dtype: DType::F64 },
            offset: 0,
            total: 7,
            crc: 0,
            format,
        },
        Request::Chunk { object: Object::Part(content), offset: 0, total: u64::MAX, crc: 0, format },
        Request::Chunk {
            object: Object::Slabs { name: SlabsName::Input { task: 4, index: 9 }, dtype: DType::F32 },
            offset: 0,
            total: 144,
            crc: 0,
            format: WireFormat::Full,
        },
        Request::InstallPart { device: 0, content, bytes: u64::MAX, memory_bytes: 1 },
        Request::InstallPart { device: 0, content, bytes: 144, memory_bytes: u64::MAX },
        // The content does not match its id.
        Request::InstallPart { device: 0, content, bytes: 144, memory_bytes: 1 },
        // It does, and is no part.
        Request::InstallPart {
            device: 0,
            content: ContentId::of_part(&[0; 144]),
            bytes: 144,
            memory_bytes: 1,
        },
        run_part(4, content),
        run_part(5, ContentId::of_part(&[0; 144])),
        task(1, SlabsName::OfTask(1), None, u32::MAX),
        task(2, SlabsName::Shared(2), order, 0),
        task(3, SlabsName::Shared(99), None, 0),
        Request::Fetch { task: 1, index: u32::MAX, offset: u64::MAX, len: u32::MAX, format },
        Request::Forget { slabs: u64::MAX },
        Request::Release { device: u32::MAX, content },
        Request::Cancel { task: u64::MAX },
        Request::Await { task: u64::MAX },
        Request::Info,
    ];
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut sent = 0;
    for request in &requests {
        let header = pack(&Call { from, request: request.clone() });
        send(header.clone(), vec![0; 144]);
        send(header.clone(), Vec::new());
        send(header.clone(), vec![7; 2 << 20]);
        sent += 3;
        // The same requests with bytes changed, cut off, or added.
        for _ in 0..40 {
            let mut other = header.clone();
            match random.random_range(0..3) {
                0 => {
                    let at = random.random_range(0..other.len());
                    other[at] = random.random();
                }
                1 => other.truncate(random.random_range(0..other.len())),
                _ => other.extend((0..random.random_range(1..9)).map(|_| random.random::<u8>())),
            }
            send(other, vec![0; 8]);
            sent += 1;
        }
    }
    for _ in 0..100 {
        let mut noise = vec![0; random.random_range(0..400)];
        random.fill_bytes(&mut noise);
        send(noise, Vec::new());
        sent += 1;
    }
    session.put(key.replace("/call", "/ctl"), vec![9; 1000]).wait().unwrap();
    let all = || answered.load(Ordering::Relaxed) >= sent;
    until(&format!("every one of {sent} is answered"), all);
    // The server still computes for a proper master, and nothing is left of the others.
    server.check_ready(SOON).unwrap();
    for worker in &mut honest {
        fcdcc::worker::Probe::new(DType::F32).check(worker.as_mut(), &fcdcc::CancelToken::new()).unwrap();
    }
    let layer = layer::small();
    let pool = pool_of(honest);
    let run = layer.prepare(&pool, options(4, 4)).unwrap().run(layer.input.view()).unwrap();
    assert!(layer.error(&run.output) < EXACT_F32);
    drop(session);
    assert!(server.info().memory_used_bytes < 1 << 20, "{}", server.info().memory_used_bytes);
}
