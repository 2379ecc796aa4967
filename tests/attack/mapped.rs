//! Deleted files of which a page each is mapped, and that nothing holds open.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    ptr,
};

/// Size of each file.
const FILE_BYTES: usize = 8 << 20;
const PAGE_BYTES: usize = 4096;

/// Fills the disk below a directory with them until it is full.
pub(super) fn fill(place: &str) -> io::Result<()> {
    let path = format!("{place}/mapped");
    loop {
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        fs::remove_file(&path)?;
        let written = file.write_all(&vec![7; FILE_BYTES]);
        // SAFETY: a fresh mapping at an address of the kernel's choice, which is never read.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        written?;
    }
}
