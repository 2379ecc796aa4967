//! Settings file for podman: the host's settings without those that change containers.
//!
//! The `[containers]` section of `containers.conf` applies to every container of a host: variables, mounts,
//! devices, sysctls, annotations, namespaces shared with the host, another seccomp profile. A sandbox asks for none
//! of them, and with `pidns="host"` a sandbox that kills its PID namespace would kill the host. Flags of `podman
//! run` override single values but can't empty a list such as `env`, `volumes` or `devices`, and
//! `CONTAINERS_CONF_OVERRIDE`, which could, is unknown before podman 4.6. So podman gets a file of ours as
//! `CONTAINERS_CONF`, which every version reads in place of all others. It has the content of the host's files,
//! merged as podman merges them, but of `[containers]` only [`KEPT_KEYS`] and [`OWN_SETTINGS`]. This also removes
//! settings that a later podman introduces. Storage, registries and policy are separate files and stay in force, and
//! so do `[engine]`, `[network]` and the other sections.
//!
//! `mounts.conf` is a separate file, too, and is disabled by [`NO_DEFAULT_MOUNTS_ARG`]. Beside this, every setting
//! that has a flag is passed as a flag ([`container`](super::container)), and [`isolation`](super::isolation) checks
//! the result.
//!
//! The host's files are read once per start of cynode.

use super::EngineError;
use crate::files::{Durability, replace_file};
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// The variable that names the only file to read.
pub(super) const CONF_VARIABLE: &str = "CONTAINERS_CONF";
/// The variable that names a file to read after all others.
pub(super) const CONF_OVERRIDE_VARIABLE: &str = "CONTAINERS_CONF_OVERRIDE";
/// The variable that chooses a user namespace for all containers.
pub(super) const USERNS_VARIABLE: &str = "PODMAN_USERNS";
/// Makes `run` and `start` read an empty list of mounts instead of `mounts.conf`.
pub(super) const NO_DEFAULT_MOUNTS_ARG: &str = "--default-mounts-file=/dev/null";

/// Name of the file.
const FILE_NAME: &str = "containers.conf";
/// Section about containers.
const CONTAINERS_SECTION: &str = "containers";
/// Keys of that section without which containers can't run on some hosts, and which give them nothing.
const KEPT_KEYS: [&str; 2] = ["cgroups", "keyring"];
/// Key of that section that is kept where it has this value. It is needed where podman can't load its own profile,
/// as in a container, and gives a job no access that the rest of the sandbox doesn't close.
const KEPT_SETTING: (&str, &str) = ("apparmor_profile", "unconfined");
/// Our own settings of that section: no names of the host in `/etc/hosts`.
const OWN_SETTINGS: [(&str, &str); 2] = [
    ("base_hosts_file", "none"),
    ("host_containers_internal_ip", "none"),
];
/// Element of a list with which podman 4.8 and later append to the list of earlier files.
const APPEND_KEY: &str = "append";

/// Writes the file into `dir` and returns its path. Fails where a file of the host can't be read.
pub(super) fn write(dir: &Path) -> Result<PathBuf, EngineError> {
    let mut merged = Table::new();
    for path in host_files()? {
        if let Some(table) = read(&path)? {
            merge(&mut merged, table);
        }
    }
    let text = toml::to_string(&replace_containers_section(merged)).map_err(io::Error::other)?;
    // Absolute: conmon calls podman again from another directory.
    let path = std::path::absolute(dir.join(FILE_NAME))?;
    replace_file(&path, text.as_bytes(), Durability::Content)?;
    Ok(path)
}

/// Files of the host that podman would read, in its order (containers.conf(5)).
fn host_files() -> Result<Vec<PathBuf>, EngineError> {
    let named = |variable| env::var_os(variable).filter(|path| !path.is_empty());
    let mut paths = Vec::new();
    if let Some(path) = named(CONF_VARIABLE) {
        paths.push(existing(path.into(), CONF_VARIABLE)?);
    } else {
        paths.push("/usr/share/containers/containers.conf".into());
        with_drop_ins(&mut paths, "/etc/containers/containers.conf".into())?;
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            let everybody: PathBuf = "/etc/containers/containers.rootless.conf".into();
            let only_this = Path::new("/etc/containers/containers.rootless.conf.d")
                .join(uid.as_raw().to_string());
            with_drop_ins(&mut paths, everybody)?;
            drop_ins(&mut paths, &only_this)?;
            let home = named("HOME").map(|home| Path::new(&home).join(".config"));
            let config = named("XDG_CONFIG_HOME").map(PathBuf::from).or(home);
            if let Some(config) = config {
                with_drop_ins(&mut paths, config.join("containers").join(FILE_NAME))?;
            }
        }
    }
    if let Some(path) = named(CONF_OVERRIDE_VARIABLE) {
        paths.push(existing(path.into(), CONF_OVERRIDE_VARIABLE)?);
    }
    Ok(paths)
}

/// Checks a file that a variable names; a missing one is an error for podman, too.
fn existing(path: PathBuf, variable: &str) -> Result<PathBuf, EngineError> {
    fs::metadata(&path).map_err(|error| invalid(&path, format!("named by {variable}: {error}")))?;
    Ok(path)
}

/// Adds a file and those in the directory beside it, `FILE.d`, by name.
fn with_drop_ins(paths: &mut Vec<PathBuf>, file: PathBuf) -> Result<(), EngineError> {
    let mut dir = file.clone().into_os_string();
    dir.push(".d");
    paths.push(file);
    drop_ins(paths, dir.as_ref())
}

fn drop_ins(paths: &mut Vec<PathBuf>, dir: &Path) -> Result<(), EngineError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(invalid(dir, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| invalid(dir, error))?.path();
        if path.extension().is_some_and(|end| end == "conf") && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    paths.extend(found);
    Ok(())
}

fn read(path: &Path) -> Result<Option<Table>, EngineError> {
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map(Some).map_err(|error: toml::de::Error| {
            invalid(path, error.to_string().trim_end().to_owned())
        }),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(invalid(path, error)),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> EngineError {
    EngineError::InvalidSettings {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Merges a later file: single values are overridden, and a list replaces the earlier one unless it appends.
fn merge(into: &mut Table, from: Table) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Table(before)), Value::Table(value)) => merge(before, value),
            (Some(Value::Array(before)), Value::Array(value)) => {
                if !appends(&value).or(appends(before)).unwrap_or(false) {
                    before.clear();
                }
                before.extend(value);
            }
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}

/// Last value of `append` in a list.
fn appends(list: &[Value]) -> Option<bool> {
    let value = |value: &Value| value.as_table()?.get(APPEND_KEY)?.as_bool();
    list.iter().rev().find_map(value)
}

/// Replaces the section about containers. Podman matches its name in upper and lower case.
fn replace_containers_section(mut settings: Table) -> Table {
    let kept = settings
        .get(CONTAINERS_SECTION)
        .and_then(Value::as_table)
        .cloned();
    settings.retain(|name, _| name.to_uppercase() != CONTAINERS_SECTION.to_uppercase());
    let mut section: Table = kept
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, value)| {
            KEPT_KEYS.contains(&name.as_str())
                || (name.as_str(), value.as_str()) == (KEPT_SETTING.0, Some(KEPT_SETTING.1))
        })
        .collect();
    for (name, value) in OWN_SETTINGS {
        section.insert(name.to_owned(), value.into());
    }
    settings.insert(CONTAINERS_SECTION.to_owned(), section.into());
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(files: &[&str]) -> Table {
        let mut all = Table::new();
        for file in files {
            merge(&mut all, file.parse().unwrap());
        }
        all
    }

    #[test]
    fn later_files_override_single_values() {
        let all = merged(&[
            "[engine]\nruntime='crun'\nevents_logger='file'\n[engine.runtimes]\na=['/a']\nb=['/b']",
            "[engine]\nruntime='runc'\n[engine.runtimes]\nb=['/x']",
        ]);
        let expected =
            "[engine]\nruntime='runc'\nevents_logger='file'\n[engine.runtimes]\na=['/a']\nb=['/x']";
        assert_eq!(all, expected.parse().unwrap());
    }

    #[test]
    fn lists_append_only_with_append_option() {
        let list = |files: &[&str]| merged(files)["x"].to_string();
        assert_eq!(list(&["x=['a']", "x=['b']"]), r#"["b"]"#);
        let added = list(&["x=['a']", "x=['b',{append=true}]", "x=['c']"]);
        assert_eq!(added, r#"["a", "b", { append = true }, "c"]"#);
        let replaced = list(&["x=['a',{append=true}]", "x=['b',{append=false}]"]);
        assert_eq!(replaced, r#"["b", { append = false }]"#);
    }

    #[test]
    fn containers_section_is_replaced() {
        let spellings = [
            "containers",
            "Containers",
            "CONTAINERS",
            "'container\u{17f}'",
        ];
        for spelling in spellings {
            let text = format!("[{spelling}]\nenv=['A=1']\npidns='host'\nnew='x'\n[engine]\nx=1");
            let left = replace_containers_section(text.parse().unwrap());
            let expected = "[engine]\nx=1\n[containers]\nbase_hosts_file='none'\nhost_containers_internal_ip='none'";
            assert_eq!(left, expected.parse().unwrap(), "{spelling}");
        }
        let apparmor = |profile: &str| {
            let text = format!("[containers]\napparmor_profile='{profile}'");
            replace_containers_section(text.parse().unwrap())[CONTAINERS_SECTION].to_string()
        };
        assert!(apparmor("unconfined").contains("unconfined"));
        assert!(!apparmor("mine").contains("mine"));
        let left =
            replace_containers_section("[containers]\ncgroups='disabled'\nenv=[]".parse().unwrap());
        assert_eq!(
            left[CONTAINERS_SECTION]["cgroups"].as_str(),
            Some("disabled")
        );
    }

    #[test]
    fn drop_in_files_are_sorted_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("containers.conf.d");
        fs::create_dir_all(below.join("dir.conf")).unwrap();
        for name in ["2.conf", "1.conf", "0.txt"] {
            fs::write(below.join(name), "").unwrap();
        }
        let mut paths = Vec::new();
        with_drop_ins(&mut paths, dir.path().join(FILE_NAME)).unwrap();
        let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, [FILE_NAME, "1.conf", "2.conf"]);
    }

    #[test]
    fn invalid_toml_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, "[engine\n").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(read(&dir.path().join("missing")).unwrap().is_none());
    }
}
