//! Inspections of the models of the other suites, whole and damaged, against loading and preparing them.
//!
//! A file must be said to run exactly if it is prepared, and the first reason must be the error. Damaged copies have some
//! random bytes changed, or are cut; `FCDCC_DAMAGED=COUNT` and `FCDCC_SEED=S` draw others. Neither may panic, hang or
//! take more memory than there is.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};

use fcdcc::model::{InputShape, Inspection, Model, ModelOptions};
use fcdcc::{CpuWorker, Error, Pool};
use fcdcc_test_support::oracle;
use libtest_mimic::{Failed, Trial};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PACKAGES: &str = "onnx, onnxruntime, numpy, ml_dtypes";
/// Damaged copies in one trial.
const COUNT: usize = 500;
const SEED: u64 = 2;

/// What loading and preparing say: nothing, or the error without the name of the file.
fn refused(path: &Path, pool: &Pool, told: &Inspection) -> Option<Error> {
    let prepare = || {
        let mut model = Model::load(path)?;
        for assumed in &told.assumed {
            model = model.with_input_shape(&assumed.input, &assumed.sizes)?;
        }
        model.prepare(pool, &ModelOptions::default()).map(drop)
    };
    prepare().err()
}

/// Whether inspection and preparation agree on a file; gives whether it runs.
fn agrees(path: &Path, pool: &Pool) -> Result<bool, String> {
    let told = Inspection::of(path, &[]).map_err(|error| format!("no inspection: {error}"))?;
    let refused = refused(path, pool, &told);
    let first = told.reasons.first().map(|reason| reason.message.as_str());
    match &refused {
        None if told.runs => Ok(true),
        // Sizes that are open are not checked.
        Some(_) if told.runs && !told.unchecked.is_empty() => Ok(true),
        // Coded layers need more memory than an inspection counts.
        Some(Error::Memory { .. }) => Ok(false),
        Some(error) if !told.runs && first.is_some_and(|first| error.to_string().ends_with(first)) => {
            Ok(false)
        }
        _ => Err(format!("{}: prepared: {refused:?}, inspected: {:?}", path.display(), told.reasons)),
    }
}

fn all_agree(folders: &[PathBuf]) -> Result<(), Failed> {
    let pool = Pool::new(CpuWorker::fleet(6))?;
    let mut running = 0;
    for folder in folders {
        let models = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
        for path in models.collect::<Result<Vec<_>, _>>()? {
            if path.extension().is_some_and(|ending| ending == "onnx") {
                running += usize::from(agrees(&path, &pool)?);
            }
        }
    }
    // Nearly all of these models run.
    if running * 10 < folders.len() * 9 {
        Err(format!("{running} of {} run", folders.len()).into())
    } else {
        Ok(())
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn damaged_files_agree(folders: &[PathBuf]) -> Result<(), Failed> {
    let pool = Pool::new(CpuWorker::fleet(6))?;
    let mut random = ChaCha8Rng::seed_from_u64(number("FCDCC_SEED", SEED));
    let folder = tempfile::tempdir()?;
    let (mut running, mut refused) = (0, 0);
    let count = number("FCDCC_DAMAGED", COUNT as u64);
    for _ in 0..count {
        let source = &folders[random.random_range(..folders.len())];
        let mut bytes = std::fs::read(source.join("model.onnx"))?;
        if bytes.is_empty() || bytes.len() > 100_000 {
            continue;
        }
        if random.random_range(0..8) == 0 {
            bytes.truncate(random.random_range(..bytes.len()));
        }
        // The graph stands before and after its weights; a few bytes of it decide about the rest.
        for _ in 0..random.random_range(1..6) {
            if !bytes.is_empty() {
                let at = random.random_range(..bytes.len());
                bytes[at] = random.random();
            }
        }
        // Damaged names are new names, which keeps the cases apart.
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, &bytes)?;
        match agrees(&path, &pool) {
            Ok(true) => running += 1,
            Ok(false) => refused += 1,
            Err(why) => {
                let kept = std::env::temp_dir().join("fcdcc-damaged.onnx");
                std::fs::copy(&path, &kept)?;
                return Err(format!("{} ({why}), kept as {}", source.display(), kept.display()).into());
            }
        }
    }
    if count >= 100 && (running == 0 || refused < 10) {
        return Err(format!(
            "{running} ran and {refused} were refused: the damage is too small or too large"
        )
        .into());
    }
    Ok(())
}

/// The comparison notices a file that runs with the shapes of another.
fn a_wrong_shape_is_noticed(folder: &Path) -> Result<(), Failed> {
    let path = folder.join("model.onnx");
    let input = Inspection::of(&path, &[])?.inputs.remove(0).name;
    let told = Inspection::of(&path, &[InputShape { input: Some(input), sizes: vec![1, 1, 1, 1] }])?;
    if told.runs { Err("it runs with another shape".into()) } else { Ok(()) }
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut all = Vec::new();
    let half = "onnx_half_cases.py";
    for (script, arguments) in [
        (half, &[][..]),
        ("onnx_quantised_cases.py", &[][..]),
        ("onnx_loop_cases.py", &[][..]),
        ("onnx_graph_cases.py", &["--count", "300", "--seed", "1"][..]),
        ("onnx_transpose_cases.py", &["--count", "400", "--seed", "1"][..]),
    ] {
        match oracle::cases(script, arguments, PACKAGES) {
            Ok(cases) => {
                // Cases that are to be refused are so when they run, some of them.
                let folders = oracle::folders(&cases).into_iter();
                let folders = folders.filter(|(name, _)| !name.starts_with("refused_")).map(|(_, path)| path);
                let folders: Vec<PathBuf> =
                    folders.filter(|folder| folder.join("model.onnx").is_file()).collect();
                all.push((script.trim_end_matches("_cases.py").to_owned(), folders));
            }
            Err(why) => return oracle::instead("inspect::inspect", PACKAGES, why),
        }
    }
    let mut trials = Vec::new();
    for (name, folders) in all {
        if name == "onnx_half" {
            let network = folders.iter().find(|folder| folder.ends_with("f16_network")).unwrap().clone();
            trials.push(Trial::test("inspect::a_wrong_shape_is_noticed", move || {
                a_wrong_shape_is_noticed(&network)
            }));
        }
        let damaged = folders.clone();
        trials.push(Trial::test(format!("inspect::{name}"), move || all_agree(&folders)));
        trials.push(Trial::test(format!("inspect::{name}_damaged"), move || damaged_files_agree(&damaged)));
    }
    trials
}
