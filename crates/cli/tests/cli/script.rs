//! The command in bash scripts.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::Command;

use fcdcc_test_support::folder::{Folder, Said};

/// Runs a bash script in which `$FCDCC` is the binary.
pub(crate) fn script(folder: &Folder, text: &str) -> Said {
    let out = Command::new("bash")
        .args(["-c", text])
        .current_dir(folder.path("."))
        .env("FCDCC", env!("CARGO_BIN_EXE_fcdcc"))
        .env("FCDCC_CACHE", env!("CARGO_TARGET_TMPDIR"))
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    Said {
        status: out.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&out.stdout).into_owned(),
        err: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}
