//! Image references in their normal form.
//!
//! People write `alpine`; Docker means `docker.io/library/alpine:latest`. All code that compares, allows or pulls
//! an image works on that long form. The grammar is that of the distribution project's `reference` package. It
//! excludes transports (`dir:/etc`) and options (`-v`), which podman would interpret.

use std::{fmt, str::FromStr};

/// Pattern of a reference, for schemas.
pub const PATTERN: &str = concat!(
    "^(?![0-9A-Fa-f]{64}$)",
    // A domain or a first path component, then further components.
    "(?:(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*(?::[0-9]{1,5})?",
    "|[a-z0-9]+(?:(?:__?|-+)[a-z0-9]+)*)/",
    "(?:[a-z0-9]+(?:(?:\\.|__?|-+)[a-z0-9]+)*/)*)?",
    // The last component, tag, digest.
    "[a-z0-9]+(?:(?:\\.|__?|-+)[a-z0-9]+)*",
    "(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$"
);
/// Longest reference, in bytes, as written and in normal form.
pub const MAX_BYTES: usize = 512;
/// Longest reference that a user may write, in bytes: its normal form, with `docker.io/library/` and `:latest`
/// added, is never too long.
pub const MAX_INPUT_BYTES: usize = MAX_BYTES - "docker.io/library/:latest".len();

/// Registry of references that name none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Registry of images that exist only on the machine where they were built.
const LOCAL_REGISTRY: &str = "localhost";
/// Suffixes of host names that only a local resolver knows (RFC 6761, 6762, 8375, and common practice).
const PRIVATE_SUFFIXES: [&str; 10] = [
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
];
const TOO_LONG_IMAGE: InvalidImage = InvalidImage("it is longer than 512 bytes");

/// Image reference in normal form: `domain/path:tag` or `domain/path@digest`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ImageRef(String);

/// Error of a text that is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a valid image reference: {0}; write it like alpine, localhost/tool:1 or registry.example.com/team/tool:1.2"
)]
pub struct InvalidImage(&'static str);

impl ImageRef {
    /// Normal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Registry: a host, with a port where one is named.
    pub fn registry(&self) -> &str {
        self.0.split_once('/').map_or("", |(registry, _)| registry)
    }

    /// Whether the image is local, and so never pulled.
    pub fn is_local(&self) -> bool {
        self.registry() == LOCAL_REGISTRY
    }

    /// Whether a node may pull the image. A pull makes the node connect to a host that a user names, so a registry
    /// that may be in the node's own network has to be named by one of the operator's `patterns`.
    pub fn is_pullable(&self, patterns: &[String]) -> bool {
        !is_private(self.registry()) || self.has_named_registry(patterns)
    }

    /// Whether one of `patterns` matches and names the registry without a wildcard.
    pub fn has_named_registry(&self, patterns: &[String]) -> bool {
        let names_registry = |pattern: &String| {
            let registry = pattern.split_once('/').map(|(registry, _)| registry);
            registry == Some(self.registry()) && matches_glob(pattern, &self.0)
        };
        patterns.iter().any(names_registry)
    }

    /// Whether one of `patterns` matches; `*` stands for any characters. An empty list allows everything.
    pub fn is_allowed_by(&self, patterns: &[String]) -> bool {
        patterns.is_empty()
            || patterns
                .iter()
                .any(|pattern| matches_glob(pattern, &self.0))
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageRef {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        if text.is_empty() {
            return Err(InvalidImage("it is empty"));
        }
        if text.len() > MAX_BYTES {
            return Err(TOO_LONG_IMAGE);
        }
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidImage("it is an image id"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (domain, rest) = match name.split_once('/') {
            Some((first, rest)) if is_domain_like(first) => (first, rest),
            _ => (DEFAULT_DOMAIN, name),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if !is_valid_domain(domain) {
            return Err(InvalidImage(
                "the registry must be a host name (transports such as dir: are not allowed)",
            ));
        }
        if !path.split('/').all(is_valid_component) {
            return Err(InvalidImage(
                "the name must be lower-case letters and digits, joined by single '.', '_' or '-'",
            ));
        }
        if tag.is_some_and(|tag| !is_valid_tag(tag)) {
            return Err(InvalidImage("the tag is not valid"));
        }
        if digest.is_some_and(|digest| !is_valid_digest(digest)) {
            return Err(InvalidImage("the digest must be sha256:<64 hex digits>"));
        }
        let domain = if domain == "index.docker.io" {
            DEFAULT_DOMAIN
        } else {
            domain
        };
        let library = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            "library/"
        } else {
            ""
        };
        // A digest is more specific than a tag, and podman takes only one of them.
        let normal = match digest {
            Some(digest) => format!("{domain}/{library}{path}@{digest}"),
            None => format!("{domain}/{library}{path}:{}", tag.unwrap_or("latest")),
        };
        if normal.len() > MAX_BYTES {
            return Err(TOO_LONG_IMAGE);
        }
        Ok(Self(normal))
    }
}

/// Docker's rule that distinguishes `localhost/x` and `host:5000/x` from `user/x`.
fn is_domain_like(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// Whether a registry may be a machine of the local network: an address in any spelling that a resolver accepts,
/// a port, a name without a dot, or a name that only a local resolver knows.
fn is_private(registry: &str) -> bool {
    let host = registry.to_ascii_lowercase();
    let last = host.rsplit('.').next().unwrap_or_default();
    // Test of the URL standard for an IPv4 address: the last label is a number.
    let is_number = last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    let ends_with = |ending: &&str| {
        let rest = host.strip_suffix(*ending);
        rest.is_some_and(|rest| rest.ends_with('.'))
    };
    registry.contains(':')
        || !registry.contains('.')
        || is_number
        || PRIVATE_SUFFIXES.iter().any(ends_with)
}

fn is_valid_domain(domain: &str) -> bool {
    let (host, port) = match domain.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (domain, None),
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    host.split('.').all(label)
        && port.is_none_or(|p| (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a path component is `[a-z0-9]+` runs joined by `.`, `_`, `__` or any number of `-`.
fn is_valid_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if alnum(*a) && alnum(*z)) {
        return false;
    }
    bytes
        .split(|b| alnum(*b))
        .filter(|run| !run.is_empty())
        .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'))
}

fn is_valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_valid_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Whether `pattern` matches `text`; `*` matches any characters, or none.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(text: &str) -> Option<String> {
        text.parse::<ImageRef>().ok().map(|image| image.0)
    }

    #[test]
    fn normalises_as_docker_does() {
        let digest = "a".repeat(64);
        for (text, expected) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("team/tool", "docker.io/team/tool:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/t:1", "localhost/t:1"),
            ("localhost:5000/t", "localhost:5000/t:latest"),
            ("ghcr.example.org/a/b/c:v1", "ghcr.example.org/a/b/c:v1"),
            ("docker-archive:foo", "docker.io/library/docker-archive:foo"),
            (
                &format!("a:1@sha256:{digest}"),
                &format!("docker.io/library/a@sha256:{digest}"),
            ),
        ] {
            assert_eq!(normal(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn refuses_transports_options_and_nonsense() {
        for text in [
            "",
            " ",
            "-v",
            "--privileged",
            "-v/etc:/x",
            "dir:/etc",
            "oci:/tmp/x",
            "docker://alpine",
            "Alpine",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:12",
            "a..b",
            "a.-b",
            "a\n",
            "a\0",
            "../a",
            "a:b:c",
            "localhost:/a",
            "containers-storage:[overlay@/x]a",
            "é",
            &"a".repeat(600),
            // Too long in its normal form, which nodes receive.
            &"a".repeat(500),
            &"0".repeat(64),
        ] {
            assert_eq!(normal(text), None, "{text:?}");
        }
    }

    #[test]
    fn patterns_match_normal_form() {
        let image: ImageRef = "alpine".parse().unwrap();
        let allowed = |patterns: &[&str]| {
            image.is_allowed_by(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>())
        };
        assert!(allowed(&[]));
        assert!(allowed(&["docker.io/library/*"]));
        assert!(allowed(&["nothing", "docker.io/*:latest"]));
        assert!(allowed(&["*alpine*"]));
        assert!(!allowed(&["alpine"]));
        assert!(!allowed(&["docker.io/library/alpine"]));
        assert!(!allowed(&["*alpine*:3"]));
    }

    #[test]
    fn private_registry_needs_permission() {
        let may = |image: &str, patterns: &[&str]| {
            let image: ImageRef = image.parse().unwrap();
            let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
            image.is_pullable(&patterns)
        };
        for public in [
            "alpine",
            "2130706433/x",
            "ghcr.example.org/x",
            "10.example.org/x",
            "x.0xg/y",
            "local.example.org/x",
            "mylocal/x",
            "a.mylocal/x",
        ] {
            assert!(may(public, &[]), "{public}");
        }
        for private in [
            "10.0.0.5/x",
            "127.1/x",
            "1.0x7f000001/x",
            "0X7F.0X1/x",
            "127.0.0.1:5000/x",
            "registry.example.org:5000/x",
            "docker.io:443/x",
            "localhost:5000/x",
            "registry:5000/x",
            "LOCALHOST/x",
            "Registry/x",
            "a.localhost/x",
            "metadata.google.INTERNAL/x",
            "nas.home.arpa/x",
            "nas.local/x",
        ] {
            assert!(!may(private, &[]), "{private}");
            assert!(!may(private, &["*", "*/x:*", "1*/x:latest"]), "{private}");
            let registry = private.split_once('/').unwrap().0;
            assert!(may(private, &["*", &format!("{registry}/*")]), "{private}");
            assert!(!may(private, &[&format!("{registry}/y:*")]), "{private}");
        }
        assert!("localhost/x".parse::<ImageRef>().unwrap().is_local());
        assert!(!"localhost:1/x".parse::<ImageRef>().unwrap().is_local());
    }

    proptest! {
        #[test]
        fn glob_agrees_with_slow_reference(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            fn slow(p: &[u8], t: &[u8]) -> bool {
                match p.split_first() {
                    None => t.is_empty(),
                    Some((b'*', rest)) => (0..=t.len()).any(|n| slow(rest, &t[n..])),
                    Some((c, rest)) => t.first() == Some(c) && slow(rest, &t[1..]),
                }
            }
            prop_assert_eq!(matches_glob(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
