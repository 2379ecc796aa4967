//! Names of tasks, normalized so that they can stand in a path and on a command line.

/// Longest name of a task, in characters, as given and normalized.
pub const MAX_NAME_CHARS: usize = 200;
/// Name of a task whose given name has no ASCII letter or digit.
const FALLBACK_NAME: &str = "task";

/// Normal form of a name: lower case, `-` for each run of other characters, none at either end. `None` where
/// nothing is left.
pub fn normalize_name(text: &str) -> Option<String> {
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(MAX_NAME_CHARS);
    name.truncate(name.trim_end_matches('-').len());
    (!name.is_empty()).then_some(name)
}

/// Base of the name of a task; `None` for an empty text, which asks for no name.
pub(super) fn base_name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| normalize_name(text).unwrap_or_else(|| FALLBACK_NAME.to_owned()))
}

/// Name of the `n`th task with the same base: `build`, `build-2`, `build-3`, …, cut where it would be too long.
pub fn numbered_name(base: &str, n: u64) -> String {
    if n <= 1 {
        return base.to_owned();
    }
    let number = format!("-{n}");
    let end = base.floor_char_boundary(MAX_NAME_CHARS.saturating_sub(number.len()));
    format!("{}{number}", &base[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_normalised() {
        for (text, name) in [
            ("build", Some("build")),
            ("Nightly Build #7!", Some("nightly-build-7")),
            ("--a__b..c--", Some("a-b-c")),
            ("Übung", Some("bung")),
            ("日本", None),
            ("", None),
        ] {
            assert_eq!(normalize_name(text).as_deref(), name, "{text}");
        }
        assert_eq!(base_name("日本").as_deref(), Some("task"));
        assert_eq!(base_name(""), None);
    }

    proptest! {
        #[test]
        fn normalised_name_is_unchanged(text in "\\PC{0,250}", n in 1u64..u64::MAX) {
            if let Some(name) = normalize_name(&text) {
                prop_assert_eq!(normalize_name(&name), Some(name.clone()));
                let numbered = numbered_name(&name, n);
                prop_assert!(numbered.len() <= MAX_NAME_CHARS);
                let number = format!("-{n}");
                prop_assert!(n == 1 || numbered.ends_with(&number));
            }
        }
    }
}
