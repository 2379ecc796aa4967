//! References and patterns of images.

use super::shaped;
use cynode::api::image::ImageRef;

/// An accepted reference has a harmless normal form, which is its own normal form.
pub fn reference(text: &str) {
    let Ok(image) = text.parse::<ImageRef>() else {
        return;
    };
    let normal = image.as_str();
    let again: ImageRef = normal.parse().expect("a normal form is a reference");
    assert_eq!(again, image, "a normal form is its own normal form");
    assert_eq!(image.to_string(), normal);
    assert!(normal.len() <= 512 && text.len() <= 512);
    assert!(
        normal.bytes().all(|b| b.is_ascii_graphic()),
        "white space or control characters: {normal:?}"
    );
    assert!(!text.starts_with('-') && !normal.starts_with('-'));
    assert!(
        !normal.contains("://") && !normal.contains(":/"),
        "{normal}"
    );
    normal_form(normal);
    let owned = |pattern: &str| [pattern.to_owned()];
    assert!(image.is_allowed_by(&[]) && image.is_allowed_by(&owned("*")));
    assert!(image.is_allowed_by(&owned(normal)) && !image.is_allowed_by(&owned("")));
}

/// `host[:port]/name…` and `:tag` or `@sha256:…`, by the words of the contract.
fn normal_form(normal: &str) {
    let (domain, rest) = normal.split_once('/').expect("a registry");
    let host = domain.split(':').next().unwrap_or_default();
    assert!(
        domain == "localhost"
            || domain.contains(['.', ':'])
            || domain.contains(|c: char| c.is_ascii_uppercase()),
        "{domain} is not a registry"
    );
    assert_ne!(domain, "index.docker.io");
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    assert!(
        host.split('.')
            .all(|label| !label.is_empty() && label.chars().all(part))
    );
    let path = match rest.split_once('@') {
        Some((path, digest)) => {
            let hex = digest.strip_prefix("sha256:").expect("a digest");
            assert!(shaped(hex, lower_hex, lower_hex, 63) && hex.len() == 64);
            path
        }
        None => {
            let (path, tag) = rest.split_once(':').expect("a tag");
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let more = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            assert!(shaped(tag, word, more, 127), "{tag}");
            path
        }
    };
    assert!(path.split('/').all(component), "{path}");
    assert!(domain != "docker.io" || path.contains('/'), "{normal}");
}

fn lower_hex(c: char) -> bool {
    c.is_ascii_digit() || ('a'..='f').contains(&c)
}

/// Runs of letters and digits with separators between them.
fn component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let rest = text.trim_start_matches(plain);
    if rest.len() == text.len() {
        return false;
    }
    let joined = rest
        .strip_prefix("__")
        .or_else(|| rest.strip_prefix(['.', '_']))
        .unwrap_or_else(|| rest.trim_start_matches('-'));
    rest.is_empty() || (joined.len() < rest.len() && component(joined))
}

/// A pattern of `allowed_images` matches by the words of the contract; this check may be slow.
pub fn pattern(image: &str, pattern: &str) {
    let Ok(image) = image.parse::<ImageRef>() else {
        return;
    };
    let normal = image.as_str();
    assert_eq!(
        image.is_allowed_by(&[pattern.to_owned()]),
        matches(pattern.as_bytes(), normal.as_bytes()),
        "{pattern:?} for {normal}"
    );
}

/// Column by column: the prefixes of `text` that the pattern so far matches.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for &p in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            next[at] = if p == b'*' {
                reached[at] || (at > 0 && next[at - 1])
            } else {
                at > 0 && reached[at - 1] && text[at - 1] == p
            };
        }
        reached = next;
    }
    reached[text.len()]
}
