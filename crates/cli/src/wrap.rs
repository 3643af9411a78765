//! Breaks texts into lines.

/// The words of `text` in lines of at most `width` characters, unless a single word is longer. The first line begins with
/// `first`, every other one with `rest`.
pub(crate) fn lines(text: &str, width: usize, first: &str, rest: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut line, mut empty) = (first.to_owned(), true);
    // Control characters in names of a file must not reach the terminal.
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    for word in plain.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, rest.to_owned()));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn lines_keep_their_width_and_words_stay_whole() {
        let text = "one two\nthree four-and-a-half five";
        assert_eq!(lines(text, 11, "> ", "  "), ["> one two", "  three", "  four-and-a-half", "  five"]);
        assert_eq!(lines("", 11, "> ", "  "), ["> "]);
        assert_eq!(lines("red\u{1b}[31m", 11, "", ""), ["red [31m"]);
    }
}
