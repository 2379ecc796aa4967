//! Names in an OCI archive, checked before podman reads it.
//!
//! The sender of an archive must not choose what podman makes of it. So only the plain form is accepted in which
//! podman and buildah save images: a tar archive, not compressed, of `oci-layout`, `index.json` and blobs, each once,
//! with no extension of the format that another reader may understand in another way. Podman names the image as the
//! one entry of the index says.

use crate::api::image::ImageRef;
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Read as _,
};
use tar::{Archive, EntryType, Header};

/// Most entries of an archive. An image has 127 layers at most.
const MAX_ENTRIES: usize = 1024;
/// Largest index, in bytes.
const MAX_INDEX_BYTES: u64 = 64 * 1024;
/// Name of an image in the index.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Name that podman prefers where it is present.
const OTHER_NAME: &str = "io.containerd.image.name";
/// Bytes of a header behind all that a plain entry uses: the prefix of a long path, or fields of an extension.
const EXTENSION_BYTES: std::ops::Range<usize> = 345..512;

/// Archive that is not accepted, with the reason.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; make it with: podman save --format oci-archive NAME")]
pub(super) struct InvalidArchive(String);

/// Index of an archive, of which every field is known: podman ignores the case of names, so that another field
/// could stand for one of these.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a field that is not read is a known one")]
struct Index {
    schema_version: Value,
    media_type: Option<Value>,
    artifact_type: Option<Value>,
    manifests: Vec<Manifest>,
    annotations: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a field that is not read is a known one")]
struct Manifest {
    media_type: Value,
    digest: Value,
    size: Value,
    artifact_type: Option<Value>,
    platform: Option<Value>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

fn invalid(reason: impl Into<String>) -> InvalidArchive {
    InvalidArchive(reason.into())
}

/// Name of the image in an archive. Reads the headers and the index; may block.
pub(super) fn image_name(file: File) -> Result<ImageRef, InvalidArchive> {
    let unreadable = |error| invalid(format!("it is not a tar archive: {error}"));
    let mut archive = Archive::new(file);
    let entries = archive.entries_with_seek().map_err(unreadable)?.raw(true);
    let (mut seen, mut index) = (HashSet::new(), None);
    for entry in entries {
        let mut entry = entry.map_err(unreadable)?;
        let path = plain_path(entry.header())?;
        if path == "index.json" {
            let mut bytes = Vec::new();
            let mut limited = entry.by_ref().take(MAX_INDEX_BYTES + 1);
            limited.read_to_end(&mut bytes).map_err(unreadable)?;
            index = Some(bytes);
        }
        if !seen.insert(path.clone()) {
            return Err(invalid(format!("it has {path} twice")));
        }
        if seen.len() > MAX_ENTRIES {
            return Err(invalid(format!("it has more than {MAX_ENTRIES} entries")));
        }
    }
    let index = index.filter(|_| seen.contains("oci-layout"));
    let index = index.ok_or_else(|| invalid("it is not an OCI archive"))?;
    name_in(&index)
}

/// Path of an entry that may be in an archive.
fn plain_path(header: &Header) -> Result<String, InvalidArchive> {
    let path = String::from_utf8_lossy(&header.path_bytes()).into_owned();
    let kind = header.entry_type();
    let is_blob = path.strip_prefix("blobs/sha256/").is_some_and(|name| {
        name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    let is_plain = match &path[..] {
        // With a size, a directory has content for some readers, and for others what follows are entries.
        "blobs/" | "blobs/sha256/" => {
            kind == EntryType::Directory && header.entry_size().is_ok_and(|size| size == 0)
        }
        "oci-layout" | "index.json" => kind == EntryType::Regular,
        _ => is_blob && kind == EntryType::Regular,
    };
    let is_extended = header.as_bytes()[EXTENSION_BYTES].iter().any(|b| *b != 0);
    if !is_plain || is_extended {
        let path: String = path.chars().take(100).collect();
        return Err(invalid(format!(
            "it has the entry {path:?}, which is none of an OCI archive"
        )));
    }
    Ok(path)
}

fn name_in(index: &[u8]) -> Result<ImageRef, InvalidArchive> {
    if index.len() as u64 > MAX_INDEX_BYTES {
        return Err(invalid("its index.json is too large"));
    }
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| invalid(format!("its index.json is not valid: {error}")))?;
    let [manifest] = &index.manifests[..] else {
        let count = index.manifests.len();
        return Err(invalid(format!("it has {count} images, and must have one")));
    };
    let name = match (
        manifest.annotations.get(OTHER_NAME),
        manifest.annotations.get(NAME),
    ) {
        (None, Some(name)) => name,
        (None, None) => return Err(invalid("its image has no name: it was saved by its id")),
        (Some(_), _) => {
            return Err(invalid(format!(
                "its image has the annotation {OTHER_NAME}"
            )));
        }
    };
    let image = name.parse::<ImageRef>().ok();
    // Podman makes something else of a short name than a registry would.
    let image = image.filter(|image| image.as_str() == name && !name.contains('@'));
    image.ok_or_else(|| {
        let name: String = name.chars().take(100).collect();
        invalid(format!(
            "its image is called {name:?}, which is not a whole name with a tag, such as localhost/tool:1"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Seek as _, Write as _};

    fn index(name: &str) -> Value {
        json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
            "digest": "sha256:0", "annotations": {NAME: name},
        }]})
    }

    fn header(path: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        header
    }

    fn name_of(entries: &[(&str, EntryType, &[u8])]) -> Result<String, InvalidArchive> {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (path, kind, bytes) in entries {
            let header = header(path, *kind, bytes.len() as u64);
            builder.append(&header, *bytes).unwrap();
        }
        let mut file = builder.into_inner().unwrap();
        file.rewind().unwrap();
        image_name(file).map(|image| image.to_string())
    }

    fn with_index(
        index: &[u8],
        more: &[(&str, EntryType, &[u8])],
    ) -> Result<String, InvalidArchive> {
        let blob = format!("blobs/sha256/{}", "a".repeat(64));
        let plain = [
            ("blobs/", EntryType::Directory, &b""[..]),
            ("blobs/sha256/", EntryType::Directory, b""),
            (&blob, EntryType::Regular, &[7; 2000]),
            ("index.json", EntryType::Regular, index),
            ("oci-layout", EntryType::Regular, b"{}"),
        ];
        name_of(&[&plain[..], more].concat())
    }

    #[test]
    fn name_is_that_of_index() {
        for name in [
            "localhost/tool:1",
            "registry.example.com:5000/team/tool:1.2",
        ] {
            let found = with_index(index(name).to_string().as_bytes(), &[]);
            assert_eq!(found.as_deref(), Ok(name));
        }
    }

    #[test]
    fn ambiguous_names_are_refused() {
        let digest = format!("localhost/tool@sha256:{}", "a".repeat(64));
        for name in [
            "",
            "tool",
            "tool:1",
            "localhost/tool",
            "-v",
            "a\nb",
            &digest,
        ] {
            let found = with_index(index(name).to_string().as_bytes(), &[]);
            assert!(found.is_err(), "{name}");
        }
        let good = index("localhost/a:1");
        let mut two = good.clone();
        two["manifests"] = json!([good["manifests"][0], good["manifests"][0]]);
        let mut none = good.clone();
        none["manifests"][0]["annotations"] = json!({});
        let mut other = good.clone();
        other["manifests"][0]["annotations"][OTHER_NAME] = json!("localhost/b:1");
        let mut case = good.clone();
        case["Manifests"] = good["manifests"].clone();
        let mut inner = good.clone();
        inner["manifests"][0]["Annotations"] = json!({NAME: "localhost/b:1"});
        for index in [two, none, other, case, inner, json!({}), json!([])] {
            let found = with_index(index.to_string().as_bytes(), &[]);
            assert!(found.is_err(), "{index}");
        }
        let text = good.to_string();
        let twice = text.replacen('{', &format!("{{\"manifests\":{},", good["manifests"]), 1);
        assert!(with_index(twice.as_bytes(), &[]).is_err(), "{twice}");
        assert!(with_index(&vec![b' '; 70_000], &[]).is_err());
    }

    #[test]
    fn directory_with_content_is_refused() {
        let (good, evil) = (index("localhost/a:1"), index("localhost/b:1"));
        let (good, evil) = (good.to_string(), evil.to_string());
        let mut hidden = header("index.json", EntryType::Regular, evil.len() as u64)
            .as_bytes()
            .to_vec();
        hidden.extend(evil.as_bytes());
        hidden.resize(1024, 0);
        let found = name_of(&[
            ("index.json", EntryType::Regular, good.as_bytes()),
            ("oci-layout", EntryType::Regular, b"{}"),
            ("blobs/", EntryType::Directory, &hidden),
        ]);
        assert!(found.is_err(), "{found:?}");
    }

    #[test]
    fn only_plain_entries_are_accepted() {
        let good = index("localhost/a:1").to_string();
        for (path, kind) in [
            ("index.json", EntryType::Regular),
            ("./index.json", EntryType::Regular),
            ("manifest.json", EntryType::Regular),
            ("blobs/sha256/../../index.json", EntryType::Regular),
            ("blobs/sha256/0", EntryType::Regular),
            ("/etc/passwd", EntryType::Regular),
            ("x", EntryType::Symlink),
            ("x", EntryType::Char),
            ("././@LongLink", EntryType::GNULongName),
            ("pax", EntryType::XHeader),
            ("pax", EntryType::XGlobalHeader),
        ] {
            let found = with_index(good.as_bytes(), &[(path, kind, b"x")]);
            assert!(found.is_err(), "{path} {kind:?}");
        }
        let layout: (&str, _, &[u8]) = ("oci-layout", EntryType::Regular, b"{}");
        assert!(name_of(&[layout]).is_err());
        assert!(name_of(&[]).is_err());
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&[b'x'; 5000]).unwrap();
        text.rewind().unwrap();
        assert!(image_name(text).is_err());
    }
}
