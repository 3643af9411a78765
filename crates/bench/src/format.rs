//! Formats numbers and text for a report: short, and fitted to a width.
//!
//! Invariant: wrapped lines are never wider than asked for.

/// Whether XML allows a character at all.
pub(super) fn allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..) && c != '\u{7f}'
}

/// Three significant digits: `0.0123`, `1.23`, `123`, `12 300`, `1.23×10⁷`; `–` for NaN.
#[must_use]
pub fn number(value: f64) -> String {
    if value.is_nan() {
        return "–".to_owned();
    }
    let (sign, size) = (if value < 0.0 { "−" } else { "" }, value.abs());
    if size.is_infinite() {
        return format!("{sign}∞");
    }
    if size == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e7).contains(&size) {
        return format!("{sign}{}", scientific(size, 2));
    }
    // 9.996 must be rounded first: as 10.0 it has three significant digits.
    let rounded: f64 = format!("{size:.2e}").parse().expect("a formatted number");
    let decimals = decimals_for(rounded, 3);
    if rounded >= 1000.0 {
        return format!("{sign}{}", thousands(&format!("{rounded:.0}")));
    }
    format!("{sign}{rounded:.decimals$}")
}

/// Two significant digits, for a sentence: `0.0095`, `1.2`, `35`, `350`; otherwise as [`number`].
#[must_use]
pub fn rough(value: f64) -> String {
    if !(1e-4..1e3).contains(&value) {
        return number(value);
    }
    let rounded: f64 = format!("{value:.1e}").parse().expect("a formatted number");
    let decimals = decimals_for(rounded, 2);
    format!("{rounded:.decimals$}")
}

/// A time with its unit: `12.3 ms`, `12.3 s` (from ten thousand milliseconds on), `45.0 µs`.
#[must_use]
pub fn time(ms: f64) -> String {
    match ms.abs() {
        size if size.is_finite() && size >= 1e4 => format!("{} s", number(ms / 1e3)),
        size if size > 0.0 && size < 0.1 => format!("{} µs", number(ms * 1e3)),
        _ => format!("{} ms", number(ms)),
    }
}

/// Bytes with a decimal unit: `12.3 MB`.
#[must_use]
pub fn bytes(bytes: f64) -> String {
    let (unit, name) = match bytes.abs() {
        size if size >= 1e9 && size.is_finite() => (1e9, "GB"),
        size if size >= 1e6 => (1e6, "MB"),
        size if size >= 1e3 => (1e3, "kB"),
        _ => return if bytes.is_finite() { format!("{bytes:.0} B") } else { number(bytes) },
    };
    format!("{} {name}", number(bytes / unit))
}

/// A share as a percentage: `4.2 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    match share * 100.0 {
        p if !p.is_finite() => number(p),
        p if p == 0.0 || p.abs() >= 99.95 => format!("{p:.0} %"),
        p if p.abs() < 0.05 => "<0.1 %".to_owned(),
        p => format!("{p:.1} %"),
    }
}

/// `1.23×10⁷`, or `10⁷` if the factor is 1.
pub(super) fn scientific(size: f64, decimals: usize) -> String {
    let text = format!("{size:.decimals$e}");
    let (digits, exponent) = text.split_once('e').expect("the format has an exponent");
    let raised: String = exponent
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            c => char::from_u32(0x2070 + c.to_digit(10).unwrap_or(0)).unwrap_or(c),
        })
        .collect();
    let digits =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    if digits == "1" { format!("10{raised}") } else { format!("{digits}×10{raised}") }
}

/// Digits after the point that show `significant` digits of a positive number.
fn decimals_for(size: f64, significant: i32) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "logarithms of f64 are small")]
    let leading = size.log10().floor() as i32;
    usize::try_from(significant - 1 - leading).unwrap_or(0)
}

/// Groups of three digits, separated by narrow no-break spaces.
pub(super) fn thousands(digits: &str) -> String {
    let mut grouped = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(c);
    }
    grouped
}

/// Estimated width of a line in a sans-serif font of size 1, rather too great than too small: the font is not known here.
pub(super) fn width(text: &str) -> f64 {
    let of = |c: char| match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' => 0.29,
        'f' | 'r' | 't' | 'I' | ' ' | '(' | ')' | '[' | ']' | '-' | '/' | '\u{202f}' => 0.37,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.92,
        'A'..='Z' | '+' | '=' | '×' | '≤' | '≥' => 0.7,
        ' '..='\u{24f}' | '–' | '\u{2070}'..='\u{209f}' => 0.58,
        _ => 1.0,
    };
    text.chars().map(of).sum::<f64>() * 1.03
}

/// Wraps `text` into lines of at most `most` (see [`width`]), between words, or within words that are longer.
pub(super) fn wrap(text: &str, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let joined = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        if width(&joined) <= most {
            line = joined;
            continue;
        }
        lines.extend((!line.is_empty()).then(|| std::mem::take(&mut line)));
        for c in word.chars() {
            if !line.is_empty() && width(&line) + width(&c.to_string()) > most {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.extend((!line.is_empty()).then_some(line));
    lines
}

/// The first defect of an HTML page or an SVG element, judged by its tags and escapes: enough to notice text that was not escaped.
#[cfg(test)]
pub(super) fn malformed(xml: &str) -> Option<String> {
    let mut open: Vec<&str> = Vec::new();
    let page = xml.strip_prefix("<!DOCTYPE html>");
    let mut rest = page.unwrap_or(xml);
    while let Some((text, tag)) = rest.split_once('<') {
        if text.contains('>') && open.last() != Some(&"style") {
            return Some(format!("a lone > in {text:?}"));
        }
        let (mut end, mut quoted) = (None, false);
        for (i, c) in tag.char_indices() {
            match c {
                '"' => quoted = !quoted,
                '<' => return Some(format!("< within a tag: {:?}", &tag[..i])),
                '>' if !quoted => {
                    end = Some(i);
                    break;
                }
                _ => {}
            }
        }
        let Some(end) = end else { return Some(format!("a tag without an end: {tag:.60}")) };
        let inside = &tag[..end];
        rest = &tag[end + 1..];
        let name = inside.trim_matches('/').split_whitespace().next().unwrap_or("");
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Some(format!("not a tag: {inside:?}"));
        }
        if inside.starts_with('/') {
            match open.pop() {
                Some(opened) if opened == name => {}
                other => return Some(format!("</{name}> where {other:?} is open")),
            }
        } else if !(inside.ends_with('/') || page.is_some() && name == "meta") {
            open.push(name);
        }
    }
    for (at, _) in xml.match_indices('&') {
        let name = xml[at + 1..].split(';').next().unwrap_or("");
        if !["lt", "gt", "amp", "quot", "apos", "#39"].contains(&name) {
            return Some(format!("a lone & before {:.20}", &xml[at + 1..]));
        }
    }
    (!open.is_empty()).then(|| format!("left open: {open:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_formed_is_noticed() {
        assert_eq!(malformed("<!DOCTYPE html><p a=\"1>2\">x &lt; y<br/></p>"), None);
        assert_eq!(malformed("<!DOCTYPE html><head><meta charset=\"utf-8\"></head>"), None);
        for wrong in
            ["<p>", "<meta>", "<p></b>", "<p>a & b</p>", "<p><</p>", "<p>a > b</p>", "<p a=\"<b>\"></p>"]
        {
            assert!(malformed(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (f64::NAN, "–"),
            (f64::INFINITY, "∞"),
            (-2.0, "−2.00"),
            (9.996, "10.0"),
            (0.012_34, "0.0123"),
            (999.6, "1\u{202f}000"),
            (123.4, "123"),
            (12_345.0, "12\u{202f}300"),
            (12_345_678.0, "1.23×10⁷"),
            (1e-9, "10⁻⁹"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(
            [0.009_47, 0.96, 9.96, 347.0, 1.5e6, f64::NAN].map(rough),
            ["0.0095", "0.96", "10", "350", "1\u{202f}500\u{202f}000", "–"]
        );
        assert_eq!([time(0.01), time(12.0), time(20_000.0)], ["10.0 µs", "12.0 ms", "20.0 s"]);
        assert_eq!([bytes(12.0), bytes(1.5e6), bytes(2e9)], ["12 B", "1.50 MB", "2.00 GB"]);
        assert_eq!(
            [percent(0.0), percent(0.0001), percent(0.049), percent(1.0)],
            ["0 %", "<0.1 %", "4.9 %", "100 %"]
        );
    }

    #[test]
    fn lines_fit() {
        let long = "three of six workers are late and one dies abcdefghijklmnopqrstuvwxyzabcdefghijklmnop";
        let lines = wrap(long, 12.0);
        assert!(lines.iter().all(|line| width(line) <= 12.0 && !line.is_empty()), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), long.replace(' ', ""));
        assert!(wrap("  ", 5.0).is_empty());
    }
}
