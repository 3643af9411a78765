//! Bearer tokens: who may use a server beyond this machine.
//!
//! Relevant if you want to serve other machines. A token file has one token a line; empty lines and lines that begin with
//! `#` are skipped.
//!
//! Invariant: the time of a check depends on the lengths of the tokens only, never on how much of one was guessed.

use std::fmt;
use std::path::{Path, PathBuf};

use fcdcc::{Error, Result};
use subtle::{Choice, ConstantTimeEq};

/// Shortest token: 16 characters of a random generator cannot be guessed.
const LEAST_LENGTH: usize = 16;

/// The accepted tokens.
#[derive(Clone)]
pub struct Tokens {
    path: PathBuf,
    all: Vec<Vec<u8>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.all.len())
    }
}

impl Tokens {
    /// Reads a token file.
    ///
    /// # Errors
    /// [`Error::File`] for a file without tokens, or with one that is too short or not printable ASCII; [`Error::Io`] where
    /// it cannot be read. No error shows a token.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |cause: String| Error::File { path: path.display().to_string(), cause, input: true };
        let text = fcdcc::files::read_text(path)?;
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let token = line.trim();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            if token.len() < LEAST_LENGTH || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(bad(format!(
                    "line {} is no token: use at least {LEAST_LENGTH} printable ASCII characters without spaces",
                    index + 1
                )));
            }
            tokens.push(token.as_bytes().to_vec());
        }
        if tokens.is_empty() {
            return Err(bad("holds no token: write one a line".to_owned()));
        }
        Ok(Self { path: path.to_owned(), all: tokens })
    }

    /// The first token of the file, for a client.
    #[must_use]
    pub fn first(&self) -> String {
        // They are printable ASCII, and there is one at least.
        self.all.first().map(|token| String::from_utf8_lossy(token).into_owned()).unwrap_or_default()
    }

    /// The file that they come from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the value of an `Authorization` header holds one of the tokens.
    pub(crate) fn admit(&self, header: Option<&[u8]>) -> bool {
        let Some((scheme, token)) = header.and_then(|header| header.split_at_checked(7)) else {
            return false;
        };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return false;
        }
        let token = token.trim_ascii();
        // All are compared, so that the position of a match does not show.
        let found = self.all.iter().fold(Choice::from(0), |found, own| found | own.as_slice().ct_eq(token));
        found.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Tokens> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, text).unwrap();
        Tokens::read(&path)
    }

    #[test]
    fn a_token_of_the_file_is_admitted_and_nothing_else() {
        let tokens = read("# clients\n\nabcdefghijklmnop\n  second-token-of-20c  \n").unwrap();
        for good in ["Bearer abcdefghijklmnop", "bearer second-token-of-20c", "Bearer  abcdefghijklmnop "] {
            assert!(tokens.admit(Some(good.as_bytes())), "{good}");
        }
        let bad = [
            "Bearer abcdefghijklmno",
            "Bearer abcdefghijklmnopq",
            "Basic abcdefghijklmnop",
            "Bearer ",
            "Bea",
            "",
            "Bearer # clients",
        ];
        for bad in bad {
            assert!(!tokens.admit(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!tokens.admit(None));
        assert_eq!(format!("{tokens:?}"), "Tokens(2)");
    }

    #[test]
    fn files_without_good_tokens_are_refused_without_showing_them() {
        for (text, part) in [
            ("# none\n", "holds no token"),
            ("long-enough-token-1\nsecret\n", "line 2"),
            ("two words in one token", "line 1"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("secret") && !error.contains("words"), "{error}");
        }
    }
}
