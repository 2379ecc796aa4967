//! Commands as a person would type them.

use super::print::clean;

/// Command as one line for a shell. Control characters are written as escapes, so that the line stays one and can't
/// change the terminal.
pub(super) fn quoted(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    words.join(" ")
}

fn quote(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    if !word.chars().any(char::is_control) {
        return clean(&format!("'{}'", word.replace('\'', r"'\''")));
    }
    let mut quoted = String::from("$'");
    for c in word.chars() {
        match c {
            '\n' => quoted.push_str(r"\n"),
            '\t' => quoted.push_str(r"\t"),
            '\\' | '\'' => quoted.extend(['\\', c]),
            c if c.is_ascii_control() => quoted.push_str(&format!(r"\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    clean(&quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_needed() {
        for (words, line) in [
            (
                &["python3", "train.py", "--lr=1e-4"][..],
                "python3 train.py --lr=1e-4",
            ),
            (&["sh", "-c", "echo $HOME"], "sh -c 'echo $HOME'"),
            (&["echo", "", "it's"], r"echo '' 'it'\''s'"),
            (&["a\nb\t'\\\u{1b}[2J"], r"$'a\nb\t\'\\\x1b[2J'"),
            (&["\u{202e}x"], "' x'"),
            (&["*", "ä"], "'*' 'ä'"),
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(quoted(&words), line);
        }
    }
}
