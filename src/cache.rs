//! Files that save time and nothing else: measured rates, chosen kernels.
//!
//! Whoever reads one treats a file that is not there, damaged or foreign as empty. Invariant: a file is replaced as a
//! whole, so a reader finds the old or the new text and nothing in between.

use std::path::{Path, PathBuf};

/// The folder of these files: `$FCDCC_CACHE`, else `fcdcc` in the user's cache folder; `None` where there is neither.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("FCDCC_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("fcdcc")))
        .or_else(|| set("HOME").map(|p| p.join(".cache/fcdcc")))
        .or_else(|| set("LOCALAPPDATA").map(|p| p.join("fcdcc")))
}

/// Replaces the file at `path`, and makes its folder where there is none.
///
/// # Errors
/// What the file system says; the old file is then as it was.
pub fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;

    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Several processes and threads may write at once, each its own file.
    let mut beside = tempfile::NamedTempFile::new_in(folder)?;
    beside.write_all(text.as_bytes())?;
    beside.persist(path)?;
    Ok(())
}
