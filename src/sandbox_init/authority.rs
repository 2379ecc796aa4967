//! File of authorities of a sandbox in which the proxy opens TLS: those of the image, and behind them the one that was
//! made for this sandbox.
//!
//! Programs find it by variables, which name the one file in place of the image's own. So it holds both, and a host whose
//! TLS the proxy passes on as it is keeps to be trusted by the image's rules. An image may name a file of its own by the
//! variable that ours replaces.

use super::listeners::RUNTIME_DIRECTORY;
use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Name of the file in [`RUNTIME_DIRECTORY`].
const FILE_NAME: &str = "ca.pem";
/// Path of the file.
pub const AUTHORITIES: &str = "/run/cynode/ca.pem";
/// Variable by which an image names its file.
const VARIABLE: &str = "SSL_CERT_FILE";
/// Files in which images have their authorities: Debian and Alpine, Fedora, SUSE, and others.
const OF_IMAGES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Largest file of an image that is copied; the usual ones have a tenth.
const MAX_BYTES: u64 = 2 * 1024 * 1024;
/// Mode of the file, which any user of the image reads.
const MODE: u32 = 0o644;

/// Writes the file with this authority in PEM; does nothing where there is none.
pub(super) fn place(authority: &[u8]) -> io::Result<()> {
    if authority.is_empty() {
        return Ok(());
    }
    // Init has the variables of the image, and none of the job.
    let named = env::var_os(VARIABLE);
    let usual = OF_IMAGES.iter().map(Path::new);
    let of_images: Vec<&Path> = named.iter().map(Path::new).chain(usual).collect();
    write(Path::new(RUNTIME_DIRECTORY), &of_images, authority).map_err(|error| {
        io::Error::other(format!("the file of authorities can't be written: {error}"))
    })
}

fn write(directory: &Path, of_images: &[&Path], authority: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(directory.join(FILE_NAME))?;
    if let Some(own) = of_images.iter().find_map(|path| read(path)) {
        file.write_all(&own)?;
        file.write_all(b"\n")?;
    }
    file.write_all(authority)
}

/// Content of an image's file; `None` where it is not there, or is no plain file of that size.
fn read(path: &Path) -> Option<Vec<u8>> {
    // A pipe would never open.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    read_file(&file).ok().flatten()
}

fn read_file(file: &File) -> io::Result<Option<Vec<u8>>> {
    let metadata = file.metadata()?;
    // Those of /proc, to which a link of the image may lead, have no length: they are about init, and not for the command.
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= MAX_BYTES).then_some(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn authority_stands_behind_those_of_image() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        let (gone, directory, large, own) = (path("gone"), path("dir"), path("large"), path("own"));
        fs::create_dir(&directory).unwrap();
        fs::write(&large, vec![b'x'; 2 * 1024 * 1024 + 1]).unwrap();
        fs::write(&own, "OWN").unwrap();
        let all: [&str; 5] = [&gone, &directory, &large, "/proc/self/maps", &own];
        let all = all.map(Path::new);
        write(home.path(), &all, b"NEW\n").unwrap();
        let written = home.path().join(FILE_NAME);
        assert_eq!(fs::read_to_string(&written).unwrap(), "OWN\nNEW\n");
        fs::remove_file(&written).unwrap();
        write(home.path(), &all[..4], b"NEW\n").unwrap();
        assert_eq!(fs::read_to_string(&written).unwrap(), "NEW\n");
        assert!(write(home.path(), &[], b"NEW\n").is_err(), "written once");
    }

    #[test]
    fn path_is_in_directory_of_its_own() {
        assert_eq!(
            Path::new(RUNTIME_DIRECTORY).join(FILE_NAME),
            Path::new(AUTHORITIES)
        );
    }
}
