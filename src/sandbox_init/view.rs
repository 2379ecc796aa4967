//! View of a sandbox from inside: namespaces, mounts, variables, devices, privileges.
//!
//! Init captures it when a probe asks for it, and the node compares it with what it requested of podman. It travels as
//! lines of text, each a kind, a name and a value; std only, as all of init.

use std::{fs, io, path::Path};

/// Namespaces of a process, by their names below `/proc/self/ns`.
pub const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
/// Lines of `/proc/self/status` that describe privileges.
const PRIVILEGES: [&str; 3] = ["CapBnd", "NoNewPrivs", "Seccomp"];

/// View of a sandbox from inside. Entries that could not be read are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Name and identity of each namespace.
    pub namespaces: Vec<(String, String)>,
    /// File system type and mount point of each mount.
    pub mounts: Vec<(String, String)>,
    /// Names of environment variables.
    pub variables: Vec<String>,
    /// Names below `/dev`.
    pub devices: Vec<String>,
    /// Name and value of lines in `/proc/self/status`.
    pub privileges: Vec<(String, String)>,
}

impl View {
    /// View of this process.
    pub fn capture() -> Self {
        let variables = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
        let devices = fs::read_dir("/dev").into_iter().flatten().flatten();
        let devices = devices.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let status = fs::read("/proc/self/status").unwrap_or_default();
        Self {
            namespaces: namespaces(),
            mounts: String::from_utf8_lossy(&mounts)
                .lines()
                .filter_map(mount)
                .collect(),
            variables: variables.collect(),
            devices: devices.collect(),
            privileges: String::from_utf8_lossy(&status)
                .lines()
                .filter_map(privilege)
                .collect(),
        }
    }

    /// Text of the view, a line for each entry.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let mut line = |kind: &str, words: [&str; 2]| {
            let words = words.map(|word| word.replace(char::is_control, "?"));
            text += &format!("{kind}\t{}\t{}\n", words[0], words[1]);
        };
        for (name, id) in &self.namespaces {
            line("namespace", [name, id]);
        }
        for (kind, place) in &self.mounts {
            line("mount", [kind, place]);
        }
        for name in &self.variables {
            line("variable", [name, ""]);
        }
        for name in &self.devices {
            line("device", [name, ""]);
        }
        for (name, value) in &self.privileges {
            line("privilege", [name, value]);
        }
        text
    }

    /// View from text; lines of an unknown kind are left out.
    pub fn decode(text: &str) -> Self {
        let mut view = Self::default();
        for line in text.lines() {
            let mut words = line.split('\t').map(str::to_owned);
            let (Some(kind), Some(name), Some(value)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            match kind.as_str() {
                "namespace" => view.namespaces.push((name, value)),
                "mount" => view.mounts.push((name, value)),
                "variable" => view.variables.push(name),
                "device" => view.devices.push(name),
                "privilege" => view.privileges.push((name, value)),
                _ => {}
            }
        }
        view
    }
}

/// Name and identity of each namespace of this process.
pub fn namespaces() -> Vec<(String, String)> {
    let identity = |name: &&str| {
        let link = fs::read_link(Path::new("/proc/self/ns").join(name)).ok()?;
        Some(((*name).to_owned(), link.to_string_lossy().into_owned()))
    };
    NAMESPACES.iter().filter_map(identity).collect()
}

/// File system type and mount point out of a line of mountinfo, see proc(5); `None` for the empty directory by which
/// crun closes directories of the kernel's file systems.
fn mount(line: &str) -> Option<(String, String)> {
    let (ours, of_its_type) = line.split_once(" - ")?;
    let mut fields = ours.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    if root.ends_with("/.empty-directory") {
        return None;
    }
    let kind = of_its_type.split(' ').next()?;
    Some((kind.to_owned(), place.to_owned()))
}

/// Upper directory of this process's root, as it was named when the root was mounted: it takes all that is written
/// outside of other mounts. `None` where the root is not an overlay.
pub fn upper_directory() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    // The last one hides what was mounted there before.
    mounts.lines().rev().find_map(upper_of_root)
}

fn upper_of_root(line: &str) -> Option<String> {
    mount(line).filter(|mount| *mount == ("overlay".to_owned(), "/".to_owned()))?;
    let options = line.split_once(" - ")?.1.split(' ').nth(2)?;
    let mut options = options.split(',');
    options.find_map(|option| Some(option.strip_prefix("upperdir=")?.to_owned()))
}

fn privilege(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let is_one = PRIVILEGES.contains(&name);
    is_one.then(|| (name.to_owned(), value.trim().to_owned()))
}

/// Identity of the PID namespace of this process: device and inode, which no two namespaces share at a time.
pub fn pid_namespace() -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let namespace = fs::metadata("/proc/self/ns/pid")?;
    Ok((namespace.dev(), namespace.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_survives_round_trip() {
        let view = View::capture();
        assert_eq!(view.namespaces.len(), NAMESPACES.len());
        assert_eq!(view.privileges.len(), PRIVILEGES.len());
        assert!(view.mounts.iter().any(|(_, place)| place == "/"));
        assert!(view.devices.iter().any(|name| name == "null"));
        assert!(view.variables.iter().any(|name| name == "PATH"));
        assert_eq!(View::decode(&view.encode()), view);
    }

    #[test]
    fn mount_is_identified_by_type_and_target() {
        let line =
            "79 73 254:0 /run/x/hosts /etc/my\\040hosts rw,relatime shared:1 - ext4 /dev/vda rw";
        let expected = ("ext4".to_owned(), "/etc/my\\040hosts".to_owned());
        assert_eq!(mount(line), Some(expected));
        assert_eq!(mount("nonsense"), None);
    }

    #[test]
    fn only_rootful_overlay_has_upper_directory() {
        let line = |place: &str, kind: &str| {
            format!(
                "79 73 0:45 / {place} rw - {kind} overlay rw,lowerdir=/l/A:/l/B,upperdir=/s/1/diff,workdir=/w"
            )
        };
        let upper = |place, kind| upper_of_root(&line(place, kind));
        assert_eq!(upper("/", "overlay").as_deref(), Some("/s/1/diff"));
        assert_eq!(upper("/mnt", "overlay"), None);
        assert_eq!(upper("/", "ext4"), None);
    }

    #[test]
    fn variable_names_forge_no_lines() {
        let view = View {
            variables: vec!["A\nmount\text4\t/x".to_owned()],
            ..View::default()
        };
        let read = View::decode(&view.encode());
        assert_eq!((read.mounts.len(), read.variables.len()), (0, 1));
    }
}
