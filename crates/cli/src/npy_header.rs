//! The header of a `.npy` array: a Python dictionary of element type, order and shape.
//!
//! Relevant if you want to read another version of the format. Invariant: a shape consists of sizes that `usize` can hold;
//! their product may be larger.

/// What a header says.
#[derive(Debug, PartialEq)]
pub(crate) struct Header {
    /// The element type as it stands there, such as `'<f4'`.
    pub(crate) descr: String,
    /// Whether the first axis is contiguous, and not the last.
    pub(crate) fortran: bool,
    pub(crate) shape: Vec<usize>,
}

impl Header {
    /// Reads a dictionary such as `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|e| format!("its header is no text: {e}"))?;
        let inner = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let mut rest = inner.ok_or("its header is no dictionary")?.trim_start();
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let key = literal(&mut rest, ':')?;
            let value = literal(&mut rest, ',')?;
            match unquoted(key) {
                "descr" => descr = Some(value.to_owned()),
                "fortran_order" => {
                    fortran = Some(match value {
                        "True" => true,
                        "False" => false,
                        _ => {
                            return Err(format!("fortran_order is {value} where True or False was expected"));
                        }
                    });
                }
                "shape" => shape = Some(sizes(value)?),
                _ => return Err(format!("its header has an unknown key {key}")),
            }
        }
        let missing = |key| format!("its header has no {key}");
        Ok(Self {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// `text` without the quotation marks around it.
pub(crate) fn unquoted(text: &str) -> &str {
    let inner = |mark| text.strip_prefix(mark).and_then(|text| text.strip_suffix(mark));
    inner('\'').or_else(|| inner('"')).unwrap_or(text)
}

/// Takes the text before `end` from `rest`, and `end`, which may be missing after the last value. Within brackets and
/// quotation marks `end` is part of the text.
fn literal<'a>(rest: &mut &'a str, end: char) -> Result<&'a str, String> {
    let (mut depth, mut mark, mut escaped) = (0_u32, None, false);
    for (at, char) in rest.char_indices() {
        if let Some(open) = mark {
            if !escaped && char == open {
                mark = None;
            }
            escaped = !escaped && char == '\\';
            continue;
        }
        match char {
            '\'' | '"' => mark = Some(char),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth =
                    depth.checked_sub(1).ok_or_else(|| format!("its header has {char} without a start"))?;
            }
            _ if char == end && depth == 0 => {
                let text = rest[..at].trim();
                *rest = rest[at + 1..].trim_start();
                return Ok(text);
            }
            _ => {}
        }
    }
    if depth > 0 || mark.is_some() || end != ',' {
        return Err(format!("its header ends without {end:?} or a closing bracket or quotation mark"));
    }
    Ok(std::mem::take(rest).trim())
}

/// The sizes of a tuple such as `(3, 4)`, `(3,)` or `()`.
fn sizes(tuple: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("shape is {tuple} where a tuple of sizes was expected");
    let inner = tuple.strip_prefix('(').and_then(|text| text.strip_suffix(')')).ok_or_else(wrong)?.trim();
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    let (listed, comma) = inner.strip_suffix(',').map_or((inner, false), |listed| (listed, true));
    // Old versions of Python write 3L.
    let size = |text: &str| text.trim().trim_end_matches('L').parse().map_err(|_| wrong());
    let sizes: Vec<usize> = listed.split(',').map(size).collect::<Result<_, _>>()?;
    // (3) is a number in brackets.
    if sizes.len() == 1 && !comma { Err(wrong()) } else { Ok(sizes) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_python_writes_them() {
        for (text, descr, fortran, shape) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n", "'<f4'", false, &[3, 4][..]),
            ("{\"shape\":(3,),\"fortran_order\":True,\"descr\":\">i8\"}", "\">i8\"", true, &[3]),
            ("{'descr': '|b1', 'fortran_order': False, 'shape': ()}", "'|b1'", false, &[]),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (2L, 5L)}", "'<f8'", false, &[2, 5]),
            (
                "{'descr': [('a, }', '<f4'), ('it\\'s', '<i4', (2,))], 'fortran_order': False, 'shape': (1,)}",
                "[('a, }', '<f4'), ('it\\'s', '<i4', (2,))]",
                false,
                &[1],
            ),
        ] {
            let header = Header::parse(text.as_bytes()).unwrap();
            assert_eq!(header, Header { descr: descr.to_owned(), fortran, shape: shape.to_vec() }, "{text}");
        }
    }

    #[test]
    fn what_is_no_header_is_named() {
        for (text, says) in [
            ("", "no dictionary"),
            ("[1]", "no dictionary"),
            ("{}", "no descr"),
            ("{'descr': '<f4', 'shape': (1,)}", "no fortran_order"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "fortran_order is 0"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}", "(-1, 3)"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (nan,)}", "(nan,)"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3)}", "shape is (3)"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': 3}", "shape is 3"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
                "99999999999999999999",
            ),
            ("{'descr': '<f4', 'other': 1}", "unknown key 'other'"),
            ("{'descr': '<f4, 'fortran_order': False}", "ends without"),
            ("{'descr'}", "ends without"),
            ("{'shape': 1)}", "without a start"),
        ] {
            let error = Header::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(Header::parse(b"{'descr': \xff}").unwrap_err().contains("no text"));
    }
}
