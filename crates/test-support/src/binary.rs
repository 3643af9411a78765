//! The command under test, and where its tests may leave files.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The `fcdcc` binary of the package under test. Runners name it in the environment; else it lies beside the folder of the
/// test binary.
pub fn command() -> PathBuf {
    let named = ["CARGO_BIN_EXE_fcdcc", "NEXTEST_BIN_EXE_fcdcc"].into_iter().find_map(std::env::var_os);
    named.map_or_else(|| profile().join(format!("fcdcc{}", std::env::consts::EXE_SUFFIX)), PathBuf::from)
}

/// A folder in the target folder that is kept between runs.
pub fn kept() -> PathBuf {
    let folder = profile().with_file_name("tmp");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The folder of this build's profile: test binaries are in its folder `deps`.
fn profile() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).expect("a test binary is two folders below the target folder").to_owned()
}
