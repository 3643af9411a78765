//! Access control of a cluster with mutual TLS: the command as machine, master, viewer and intruder, on loopback, with
//! certificates from `scripts/dev_ca.sh`. Every denied access is compared with an allowed one in the same set-up.
//!
//! Without the openssl command every test is shown as ignored, never as passed; with `CI=true` they fail.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;
use std::time::{Duration, Instant};

use crate::site::{Site, certificate, free_port, soon, tls};
use fcdcc::array::DType;
use fcdcc::cluster::wire::{self, Answer, Call, ContentId, MasterId, Request, Spec};
use fcdcc::cluster::{Cluster, Refused};
use fcdcc::worker::SubtaskShape;
use fcdcc::{ConvParams, ConvShape};
use fcdcc_test_support::every_row;
use fcdcc_test_support::folder::Folder;
use libtest_mimic::Trial;
use zenoh::Wait;

/// How long to watch that something does not happen: connections are retried at least every second.
const WINDOW: Duration = Duration::from_millis(2500);

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.members().into_iter().map(|member| member.machine).collect()
}

/// Exactly the machines `there` become visible, and stay the only ones for a while.
fn only(cluster: &Cluster, there: &[&str]) {
    soon("those who may join", || {
        there.iter().all(|name| names(cluster).iter().any(|n| n == name)).then_some(())
    });
    let end = Instant::now() + WINDOW;
    while Instant::now() < end {
        for name in names(cluster) {
            assert!(there.contains(&name.as_str()), "{name} is seen");
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn machines_connect_to_a_listening_master() {
    let site = Site::new(&["master", "alpha", "beta"]);
    let connect = format!("--connect {}", site.endpoint());
    let _alpha = site.worker(&format!("{connect} --name alpha {}", certificate("alpha")));
    let _beta = site.worker(&format!("{connect} --name beta {}", certificate("beta")));
    site.pool(
        &format!("listen = \"{}\"\nwait = \"30s\"\n{}", site.endpoint(), tls("master")),
        &["alpha", "beta"],
    );
    site.exact(&["alpha", "beta"]);
}

fn named_masters_connect_to_a_listening_machine() {
    let site = Site::new(&["master", "boss", "alpha"]);
    let listen = format!("--listen {} --name alpha --master boss", site.endpoint());
    let _alpha = site.worker(&format!("{listen} {}", certificate("alpha")));
    let pool = |name: &str, wait: &str| {
        site.pool(
            &format!("connect = \"{}\"\nwait = \"{wait}\"\n{}", site.endpoint(), tls(name)),
            &["alpha"],
        );
    };
    pool("boss", "30s");
    site.exact(&["alpha"]);
    pool("master", "2s");
    site.nobody_joins();
    // The machine has not left meanwhile.
    pool("boss", "30s");
    site.exact(&["alpha"]);
}

fn nobody_waits_for_a_side_that_is_not_there() {
    let site = Site::new(&["master", "alpha"]);
    let absent = format!("127.0.0.1:{}", free_port());
    let listen = format!("--listen {} --connect {absent} --name alpha", site.endpoint());
    let _alpha = site.worker(&format!("{listen} {}", certificate("alpha")));
    let pool = |endpoints: &str, wait: &str| {
        site.pool(&format!("connect = {endpoints}\nwait = \"{wait}\"\n{}", tls("master")), &["alpha"]);
    };
    pool(&format!("[\"{absent}\", \"{}\"]", site.endpoint()), "30s");
    site.exact(&["alpha"]);
    pool(&format!("[\"{absent}\"]"), "1s");
    site.nobody_joins();
}

fn a_machine_cannot_take_the_name_of_another() {
    let site = Site::new(&["master", "alpha", "beta", "gamma"]);
    let cluster = site.master(&["alpha", "beta", "gamma"]);
    let connect = format!("--connect {}", site.endpoint());
    let _thief = site.impostor("alpha", "beta");
    let _beta = site.worker(&format!("{connect} --name beta {}", certificate("beta")));
    only(&cluster, &["beta"]);
    // Positive control: under its own name it is visible.
    let _gamma = site.impostor("gamma", "gamma");
    let _alpha = site.worker(&format!("{connect} --name alpha {}", certificate("alpha")));
    only(&cluster, &["alpha", "beta", "gamma"]);
    assert_eq!(names(&cluster).len(), 3, "the thief is still not seen");
}

fn a_name_that_is_not_the_certificates_ends_a_worker_at_its_start() {
    let site = Site::new(&["alpha", "beta"]);
    let worker = format!("worker --backend cpu --workers 1 {}", certificate("beta"));
    let refused = |args: &str| site.folder.refused(2, &format!("{worker} {args}"), Folder::run);
    let error = refused(&format!("--name alpha --connect {}", site.endpoint()));
    for part in
        ["\"alpha\"", "certs/beta.pem", "\"beta\"", "serve under the name beta", "a certificate for alpha"]
    {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    refused(&format!("--name alpha --listen {} --connect {}", site.endpoint(), site.endpoint()));
    // Masters that connect to a machine accept any name; its own name works too.
    drop(site.worker(&format!("--name alpha --listen {} {}", site.endpoint(), certificate("beta"))));
    drop(site.worker(&format!("--name beta --connect {} {}", site.endpoint(), certificate("beta"))));
    // Without TLS there is no certificate that the name could differ from.
    drop(site.worker(&format!("--name alpha --connect tcp/{} {}", site.endpoint(), certificate("beta"))));
}

fn strangers_cannot_join() {
    let site = Site::new(&["master", "alpha", "gamma", "operator"]);
    site.authority("others", &["alpha", "operator"]);
    let cluster = site.master(&["alpha"]);
    let connect = format!("--connect {}", site.endpoint());
    let _foreign = site.worker(&format!("{connect} --name alpha {}", certificate("others/alpha")));
    let _plain = site.worker(&format!("--connect tcp/{} --name alpha", site.endpoint()));
    let _unnamed = site.worker(&format!("{connect} --name gamma {}", certificate("gamma")));
    assert_eq!(names(&cluster), [""; 0]);
    let _alpha = site.worker(&format!("{connect} --name alpha {}", certificate("alpha")));
    only(&cluster, &["alpha"]);
    assert_eq!(names(&cluster).len(), 1);

    // Without the checks of this crate, the other side refuses.
    let locator = format!("quic/{}", site.endpoint());
    let joined = |ca: &str, certificate: Option<&str>| site.raw(&locator, ca, certificate).map(drop);
    joined("certs/ca.pem", Some("certs/operator")).unwrap();
    joined("certs/ca.pem", Some("others/operator")).unwrap_err();
    joined("certs/ca.pem", None).unwrap_err();
    joined("others/ca.pem", Some("certs/operator")).unwrap_err();
    site.raw(&format!("tcp/{}", site.endpoint()), "certs/ca.pem", None).unwrap_err();
    joined("certs/ca.pem", Some("certs/operator")).unwrap();

    let survey = |args: &str| {
        let args = format!("cluster --wait 2s --json {args}");
        site.folder.refused(2, &args, Folder::run)
    };
    let error = survey(&format!("--connect tcp/{}", site.endpoint()));
    assert!(error.contains("certificates"), "{error}");
    survey(&format!("{connect} {}", certificate("others/operator")));
    assert_eq!(site.listing("operator"), [("alpha".to_owned(), true)]);
}

/// Time for a refusal to be known on both sides, after everything has started.
const TOLD: Duration = Duration::from_secs(2);

/// The names and reasons of refusals.
fn refusals(refused: Vec<Refused>) -> Vec<(String, String)> {
    refused.into_iter().map(|Refused { name, why }| (name, why)).collect()
}

/// Waits until `told` holds; that took at most [`TOLD`].
fn told(what: &str, mut told: impl FnMut() -> bool) {
    let start = Instant::now();
    soon(what, || told().then_some(()));
    assert!(start.elapsed() <= TOLD, "{what}: after {:?}", start.elapsed());
}

fn who_is_not_taken_is_told_so_on_both_sides() {
    let site = Site::new(&["master", "alpha", "beta"]);
    let cluster = site.master(&["alpha"]);
    let worker = |name: &str| {
        site.worker(&format!("--connect {} --name {name} {}", site.endpoint(), certificate(name)))
    };
    let alpha = worker("alpha");
    only(&cluster, &["alpha"]);
    assert_eq!((refusals(cluster.refused()), cluster.refusals()), (vec![], 0));

    let unlisted = worker("beta");
    told("a machine that is not listed", || {
        !cluster.refused().is_empty() && unlisted.said().contains("refused")
    });
    let why = "beta is not listed: name it in a [[worker]] table";
    let [(name, here)] = &refusals(cluster.refused())[..] else { panic!("{:?}", cluster.refused()) };
    assert!(name == "beta" && here.starts_with(why) && unlisted.said().contains(why), "{}", unlisted.said());
    drop(unlisted);

    // A second process of a machine is seen, but gets no work before the first is gone.
    let second = worker("alpha");
    told("a name that is taken", || second.said().contains("another process serves as alpha (up "));
    assert!(refusals(cluster.refused()).iter().any(|(name, why)| name == "alpha" && why.contains("stop it")));
    let usable = || cluster.members().into_iter().filter(|member| member.info.is_ok()).count();
    assert_eq!((cluster.members().len(), usable(), cluster.refusals()), (2, 1, 2));
    assert!(!alpha.said().contains("refused"), "{}", alpha.said());
    drop(alpha);
    soon("the second takes over", || (cluster.members().len() == 1 && usable() == 1).then_some(()));
    soon("it is told so", || second.said().contains("taken by the other side").then_some(()));
    assert_eq!(second.said().matches("refused").count(), 1, "once: {}", second.said());
}

fn a_master_that_a_machine_does_not_take_is_told_so_on_both_sides() {
    let site = Site::new(&["master", "boss", "alpha"]);
    let alpha = site.worker(&format!("--listen {} --name alpha {}", site.endpoint(), certificate("alpha")));
    let pool = |name: &str| {
        let lines = format!("connect = \"{}\"\nwait = \"2s\"\n{}", site.endpoint(), tls(name));
        site.pool(&lines, &["alpha"]);
    };
    pool("boss");
    let error = site.folder.refused(2, "--pool pool.toml --quiet", Folder::conv);
    let why = "boss may not use machine alpha: add it to the `masters`";
    assert!(error.contains("refuses this master") && error.contains(why), "{error}");
    assert!(alpha.said().contains("master refused") && alpha.said().contains(why), "{}", alpha.said());
    pool("master");
    site.exact(&["alpha"]);
    assert_eq!(alpha.said().matches("refused").count(), 1, "{}", alpha.said());
}

fn a_cluster_is_checked_machine_by_machine() {
    let site = Site::new(&["master", "alpha", "beta"]);
    let worker = |name: &str| {
        site.worker(&format!("--connect {} --name {name} {}", site.endpoint(), certificate(name)))
    };
    let _alpha = worker("alpha");
    site.pool(&format!("listen = \"{}\"\n{}", site.endpoint(), tls("master")), &["alpha", "beta"]);
    let check = |wait: &str| {
        let start = Instant::now();
        let said = site.folder.run(&format!("cluster check pool.toml --json --wait {wait}"));
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}: {}", start.elapsed(), said.err);
        let report: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        (said, report)
    };
    let in_order = |row: &serde_json::Value| {
        assert_eq!((&row["ok"], &row["devices"]), (&true.into(), &2.into()), "{row}");
        for rate in ["up_bytes_per_s", "down_bytes_per_s", "round_trip_ms", "certificate_days"] {
            assert!(row[rate].as_f64().unwrap() > 0.0, "{row}");
        }
        // Both are processes of this machine.
        assert!(row["clock_ahead_s"].as_f64().unwrap().abs() < 5.0, "{row}");
    };
    let (said, report) = check("4s");
    assert_eq!(said.status, 2, "{}", said.err);
    assert!(said.err.contains("1 of 2 machines need attention"), "{}", said.err);
    in_order(&report["machines"][0]);
    let missing = &report["machines"][1];
    assert_eq!((&missing["name"], &missing["ok"]), (&"beta".into(), &false.into()), "{missing}");
    let problem = missing["problems"][0].as_str().unwrap();
    assert!(problem.contains("has not connected to quic/") && problem.contains("one authority"), "{problem}");

    let beta = worker("beta");
    let (said, report) = check("10s");
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    report["machines"].as_array().unwrap().iter().for_each(in_order);
    let said = site.folder.run("cluster check pool.toml");
    assert_eq!(said.status, 0, "{}", said.err);
    for part in
        ["cluster default at quic/", "this side: certificate for", "alpha: ok: fcdcc", "Mbit/s there and"]
    {
        assert!(said.out.contains(part), "{part} is not in {}", said.out);
    }
    // A machine that is not named is refused, and named with the reason.
    site.pool(&format!("listen = \"{}\"\n{}", site.endpoint(), tls("master")), &["alpha"]);
    let (said, report) = check("6s");
    assert_eq!(said.status, 2, "{}", said.err);
    in_order(&report["machines"][0]);
    let problem = report["machines"][1]["problems"][0].as_str().unwrap();
    assert!(problem.contains("it was refused: beta is not listed"), "{problem}");
    for log in [beta.said(), said.err] {
        assert!(!log.contains("/src/") && !log.contains("Timeout!"), "{log}");
    }
    let error = site.folder.refused(2, "cluster check nowhere.toml", Folder::run);
    assert!(error.contains("nowhere.toml"), "{error}");
    site.folder.write("local.toml", "[[worker]]\nkind = \"cpu\"\n");
    let error = site.folder.refused(2, "cluster check local.toml", Folder::run);
    assert!(error.contains("has no [cluster]"), "{error}");
}

fn viewers_see_and_do_nothing_else_at_a_master() {
    let site = Site::new(&["master", "alpha", "operator", "stranger"]);
    let cluster = site.master(&["alpha"]);
    let connect = format!("--connect {}", site.endpoint());
    let _spy = site.worker(&format!("{connect} --name operator {}", certificate("operator")));
    let _thief = site.impostor("alpha", "operator");
    assert_eq!(names(&cluster), [""; 0]);
    let _alpha = site.worker(&format!("{connect} --name alpha {}", certificate("alpha")));
    only(&cluster, &["alpha"]);
    assert_eq!(names(&cluster).len(), 1);
    assert_eq!(site.listing("operator"), [("alpha".to_owned(), true)]);
    for blind in ["stranger", "alpha"] {
        assert_eq!(site.listing(blind), [], "{blind}");
    }
}

fn viewers_see_and_do_nothing_else_at_a_machine() {
    let site = Site::new(&["master", "alpha", "operator", "stranger"]);
    let _alpha = site.worker(&format!("--listen {} --name alpha {}", site.endpoint(), certificate("alpha")));
    for sees in ["operator", "master"] {
        assert_eq!(site.listing(sees), [("alpha".to_owned(), true)], "{sees}");
    }
    assert_eq!(site.listing("stranger"), []);
    let pool = |name: &str, wait: &str| {
        site.pool(
            &format!("connect = \"{}\"\nwait = \"{wait}\"\n{}", site.endpoint(), tls(name)),
            &["alpha"],
        );
    };
    // The operator sees the machine, but cannot compute on it.
    for name in ["operator", "stranger"] {
        pool(name, "2s");
        let said = site.run();
        assert_ne!(said.status, 0, "{name}: {}", said.err);
        assert!(!site.folder.path("y.npy").exists(), "{name}");
    }
    pool("stranger", "2s");
    site.nobody_joins();
    pool("master", "30s");
    site.exact(&["alpha"]);
}

/// The answers to a request under a key, in words.
fn answers(session: &zenoh::Session, key: &str, request: Request) -> Vec<String> {
    let call = Call { from: MasterId(7), request };
    let replies = session
        .get(key.to_owned())
        .attachment(wire::pack(&call))
        .target(zenoh::query::QueryTarget::All)
        .consolidation(zenoh::query::ConsolidationMode::None)
        .timeout(Duration::from_secs(2))
        .wait()
        .unwrap();
    let said = |reply: zenoh::query::Reply| {
        let sample = reply.into_result().ok()?;
        let answer = wire::unpack::<Answer>(&sample.attachment()?.to_bytes()).unwrap();
        Some(format!("{answer:?}"))
    };
    replies.into_iter().filter_map(said).collect()
}

fn viewers_may_ask_who_is_there_and_no_more() {
    let site = Site::new(&["master", "alpha", "operator"]);
    let _alpha = site.worker(&format!("--listen {} --name alpha {}", site.endpoint(), certificate("alpha")));
    let locator = format!("quic/{}", site.endpoint());
    let session = |name: &str| site.raw(&locator, "certs/ca.pem", Some(&format!("certs/{name}"))).unwrap();
    let (operator, master) = (session("operator"), session("master"));
    let conv = ConvShape::new(&[1, 2, 6, 6], &[2, 2, 3, 3], &ConvParams::default()).unwrap();
    let spec = Spec::of(&SubtaskShape { conv, slabs: 1, banks: 1, plain: false }, DType::F32);
    let install = Request::Install { device: 0, content: ContentId::of(&spec, &[]), spec };
    let (info, call) = ("fcdcc/default/w/*/*/info", "fcdcc/default/w/alpha/*/call");
    assert!(answers(&operator, info, Request::Info).iter().any(|a| a.starts_with("Info")));
    assert!(answers(&master, call, install.clone()).iter().any(|a| a.starts_with("Send")));
    for key in [info, call] {
        assert_eq!(answers(&operator, key, install.clone()), [""; 0], "{key}");
    }
}

fn nothing_listens_in_the_open_by_accident() {
    let site = Site::new(&["master", "alpha"]);
    let open = format!("0.0.0.0:{}", site.port);
    let refused = |args: &str| site.folder.refused(2, args, Folder::run);
    every_row([open.as_str(), "tcp/0.0.0.0", "[::]:7447", "192.0.2.1:7447"], |endpoint| {
        let error = refused(&format!("worker --backend cpu --workers 1 --name alpha --listen {endpoint}"));
        for part in
            [endpoint.trim_start_matches("tcp/"), "without mutual TLS", "dev_ca.sh", "127.0.0.1", "insecure"]
        {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    });
    // Certificates do not protect a tcp endpoint.
    let tcp = format!("worker --backend cpu --workers 1 --name alpha --listen tcp/{open}");
    assert!(refused(&format!("{tcp} {}", certificate("alpha"))).contains("without mutual TLS"));
    site.pool(&format!("listen = \"{open}\""), &["alpha"]);
    let error = site.folder.refused(2, "--pool pool.toml", Folder::conv);
    assert!(error.contains("without mutual TLS"), "{error}");

    // Allowed with certificates, or with explicit consent.
    drop(site.worker(&format!("--listen {open} --name alpha {}", certificate("alpha"))));
    drop(site.worker(&format!("--listen {open} --name alpha --insecure")));
}

fn certificates_that_cannot_be_used_are_named() {
    let site = Site::new(&["alpha", "beta"]);
    site.authority("others", &["alpha"]);
    let garbled = "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n";
    site.folder.write("certs/garbled.pem", garbled);
    site.folder.write("certs/text.pem", "hello\n");
    let (ca, alpha, key) = ("certs/ca.pem", "certs/alpha.pem", "certs/alpha.key");
    let rows = [
        ("certs/none.pem", alpha, key, "none.pem", "the authority"),
        (ca, "certs/none.pem", key, "none.pem", "the certificate"),
        (ca, alpha, "certs/none.key", "none.key", "the key"),
        ("certs/text.pem", alpha, key, "text.pem", "the authority"),
        (ca, "certs/text.pem", key, "text.pem", "the certificate"),
        (ca, alpha, "certs/text.pem", "text.pem", "the key"),
        ("certs/garbled.pem", alpha, key, "garbled.pem", "the authority"),
        (ca, "certs/garbled.pem", key, "garbled.pem", "alpha.key"),
        (ca, alpha, "certs/beta.key", "alpha.pem", "beta.key"),
        ("others/ca.pem", alpha, key, "alpha.pem", "others/ca.pem"),
    ];
    every_row(rows, |(ca, certificate, key, at, why)| {
        let files = format!("--ca {ca} --certificate {certificate} --key {key}");
        for command in [
            "worker --backend cpu --workers 1 --name alpha --listen",
            "worker --name alpha --connect",
            "cluster --connect",
        ] {
            let args = format!("{command} {} {files}", site.endpoint());
            let error = site.folder.refused(2, &args, Folder::run);
            assert!(error.contains(at) && error.contains(why), "{at}, {why}: {error}");
        }
    });
    // All three files or none.
    let rows =
        ["--ca certs/ca.pem", "--certificate certs/alpha.pem", "--key certs/alpha.key --ca certs/ca.pem"];
    every_row(rows, |args| {
        let said = site.folder.run(&format!("cluster --connect {} {args}", site.endpoint()));
        assert_eq!(said.status, 2, "{args}: {}", said.err);
    });
    drop(site.worker(&format!("--listen {} --name alpha {}", site.endpoint(), certificate("alpha"))));
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut tests: Vec<(&str, fn())> = Vec::new();
    macro_rules! add {
        ($($test:ident),* $(,)?) => {$(tests.push((stringify!($test), $test));)*};
    }
    add!(
        machines_connect_to_a_listening_master,
        named_masters_connect_to_a_listening_machine,
        nobody_waits_for_a_side_that_is_not_there,
        a_machine_cannot_take_the_name_of_another,
        a_name_that_is_not_the_certificates_ends_a_worker_at_its_start,
        strangers_cannot_join,
        who_is_not_taken_is_told_so_on_both_sides,
        a_cluster_is_checked_machine_by_machine,
        a_master_that_a_machine_does_not_take_is_told_so_on_both_sides,
        viewers_see_and_do_nothing_else_at_a_master,
        viewers_see_and_do_nothing_else_at_a_machine,
        viewers_may_ask_who_is_there_and_no_more,
        nothing_listens_in_the_open_by_accident,
        certificates_that_cannot_be_used_are_named,
    );
    let present = Command::new("openssl").arg("version").output().is_ok_and(|said| said.status.success());
    let required = std::env::var("CI").is_ok_and(|v| v == "true");
    tests
        .into_iter()
        .map(|(name, test)| {
            let trial = Trial::test(format!("tls::{name}"), move || {
                if !present {
                    return Err("there is no openssl command, and CI=true requires one".into());
                }
                test();
                Ok(())
            });
            // Marked when the tests are listed, so that every runner shows them as ignored.
            trial.with_ignored_flag(!present && !required)
        })
        .collect()
}
