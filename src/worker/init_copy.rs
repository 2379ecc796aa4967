//! The copy of our own binary that sandboxes get as their init.
//!
//! A copy, named by its hash, so that an upgrade never pulls it from under a running job.

use crate::{data_dir::make_private_dir, digest::sha256_hex};
use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Makes the copy in `dir` unless it is there, and answers where it is.
pub(crate) fn install(dir: &Path) -> io::Result<PathBuf> {
    make_private_dir(dir)?;
    let binary = fs::read("/proc/self/exe")?;
    if is_dynamic(&binary) {
        return Err(io::Error::other(
            "this cynode is linked dynamically and can't be the init of a sandbox; \
             build it with the project's own .cargo/config.toml (make build), or take a release",
        ));
    }
    let path = dir.join(format!("init-{}", &sha256_hex(&binary)[..16]));
    if fs::metadata(&path).is_ok_and(|there| there.len() == binary.len() as u64) {
        return Ok(path);
    }
    let temporary = dir.join(format!(".{}", std::process::id()));
    fs::write(&temporary, &binary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o555))?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, &path)?;
    Ok(path)
}

/// Whether an ELF file asks for a dynamic linker (a `PT_INTERP` segment), by the layout in elf(5).
fn is_dynamic(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at + size)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_usize, |n, byte| n << 8 | usize::from(*byte)),
        )
    };
    let segments = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|n| number(start + n * size, 4))
            .collect::<Option<Vec<_>>>()
    };
    segments().is_none_or(|kinds| kinds.contains(&(PT_INTERP as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_static_from_dynamic() {
        assert!(
            !is_dynamic(&fs::read("/proc/self/exe").unwrap()),
            "tests are built as the binary is"
        );
        assert!(is_dynamic(&fs::read("/bin/sh").unwrap()));
        assert!(is_dynamic(b"#!/bin/sh\n"));
    }
}
