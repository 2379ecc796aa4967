//! Profiles: named lists of hosts that common tools need to download from public registries.
//!
//! A name is on a list only where a tool asks for it with its default settings, and where strangers can't have a
//! host under it. Mirrors and registries of one's own stand on the list of the job. A profile allows downloads; most of
//! these hosts also take uploads from whoever has an account there.

use super::EgressPattern;
use crate::api::string_form::named_enum;

named_enum! {
    /// Named list of hosts.
    #[derive(Hash)]
    pub enum Profile {
        /// pip, uv, Poetry.
        Python,
        /// npm, pnpm, Yarn.
        Node,
        /// cargo and rustup.
        Rust,
        /// apt on Debian and Ubuntu.
        Debian,
        /// apk on Alpine Linux.
        Alpine,
        /// Models and data sets of Hugging Face.
        Models,
        /// Repositories of public forges, over HTTPS.
        Git,
    }
}

/// Hosts of Python tools.
const PYTHON: &[&str] = &[
    // The index: pip, uv, Poetry.
    "pypi.org:443",
    // Wheels and source archives, to which the index refers.
    "files.pythonhosted.org:443",
];

/// Hosts of Node.js tools.
const NODE: &[&str] = &[
    // The registry and its archives: npm, pnpm, Yarn from version 2 on.
    "registry.npmjs.org:443",
    // The registry as Yarn 1 calls it.
    "registry.yarnpkg.com:443",
    // Headers that node-gyp needs for native modules; Node.js itself for nvm.
    "nodejs.org:443",
];

/// Hosts of Rust tools.
const RUST: &[&str] = &[
    // The sparse index of cargo.
    "index.crates.io:443",
    // Archives of crates.
    "static.crates.io:443",
    // `cargo search` and `cargo info`, and archives by their older address.
    "crates.io:443",
    // Toolchains of rustup.
    "static.rust-lang.org:443",
];

/// Hosts of apt, which checks signatures and so uses plain HTTP, too.
const DEBIAN: &[&str] = &[
    // Packages of Debian.
    "deb.debian.org",
    // Security updates of older releases of Debian.
    "security.debian.org",
    // Packages of Ubuntu.
    "archive.ubuntu.com",
    // Security updates of Ubuntu.
    "security.ubuntu.com",
    // Packages of Ubuntu for other processors than x86.
    "ports.ubuntu.com",
];

/// Hosts of apk, which checks signatures. Images name `https://` today; older ones name `http://`.
const ALPINE: &[&str] = &[
    // Packages and their indexes.
    "dl-cdn.alpinelinux.org",
];

/// Hosts of Hugging Face. Ollama's registry is left out: its downloads come from a storage service whose host names any
/// customer can have.
const MODELS: &[&str] = &[
    // The hub: names, small files.
    "huggingface.co:443",
    // Large files, by region.
    "*.huggingface.co:443",
    // Large files in the newer storage.
    "*.hf.co:443",
];

/// Hosts of public forges.
const GIT: &[&str] = &[
    // Clones and fetches from GitHub.
    "github.com:443",
    // Archives of a commit or tag.
    "codeload.github.com:443",
    // Single files.
    "raw.githubusercontent.com:443",
    // Files of releases, at their older and newer address, and of Git LFS.
    "objects.githubusercontent.com:443",
    "release-assets.githubusercontent.com:443",
    "github-cloud.githubusercontent.com:443",
    // Clones, fetches and archives of other forges.
    "gitlab.com:443",
    "bitbucket.org:443",
    "codeberg.org:443",
];

impl Profile {
    /// Hosts of the profile.
    pub fn patterns(self) -> Vec<EgressPattern> {
        // A test parses them all, so none is lost here.
        let texts = self.texts().iter();
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    const fn texts(self) -> &'static [&'static str] {
        match self {
            Self::Python => PYTHON,
            Self::Node => NODE,
            Self::Rust => RUST,
            Self::Debian => DEBIAN,
            Self::Alpine => ALPINE,
            Self::Models => MODELS,
            Self::Git => GIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_has_valid_patterns() {
        for profile in Profile::ALL {
            let patterns = profile.patterns();
            assert!(!patterns.is_empty());
            let texts: Vec<_> = patterns.iter().map(ToString::to_string).collect();
            assert_eq!(texts, profile.texts(), "{profile:?}");
        }
    }

    #[test]
    fn profiles_have_names() {
        let names: Vec<_> = Profile::ALL
            .iter()
            .map(|profile| profile.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "python", "node", "rust", "debian", "alpine", "models", "git"
            ]
        );
    }
}
