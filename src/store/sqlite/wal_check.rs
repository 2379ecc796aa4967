//! Damaged logs beside the database, which SQLite would ignore.
//!
//! SQLite treats a log with a damaged header as an empty one, without an error, and overwrites it: commits
//! that were not copied into the database yet are lost. So such a file is renamed before the database is
//! opened, and the log of the orchestrator says so.

use super::wal;
use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Bytes of the header (SQLite file format, section 4.1).
const HEADER_BYTES: usize = 32;
/// Magic numbers: checksums go by little-endian and by big-endian words.
const LITTLE_ENDIAN: u32 = 0x377f_0682;
const BIG_ENDIAN: u32 = 0x377f_0683;

/// Renames the log of the database at `path` where it is damaged.
pub(super) fn quarantine_if_damaged(path: &Path) -> io::Result<()> {
    let log = wal::path_of(path);
    if !is_damaged(&log)? {
        return Ok(());
    }
    let kept = free_name(&log);
    fs::rename(&log, &kept)?;
    tracing::error!(
        log = %log.display(),
        kept = %kept.display(),
        "log of the database is damaged, and commits that were only in it are lost; starting without it and keeping \
         the file. If a copy of the whole data directory or a backup is newer, stop the orchestrator and restore \
         it, as docs/usage.md says"
    );
    Ok(())
}

/// Whether the file exists, isn't empty, and would be ignored by SQLite.
pub(super) fn is_damaged(log: &Path) -> io::Result<bool> {
    let mut header = Vec::new();
    match File::open(log) {
        Ok(file) => file.take(HEADER_BYTES as u64).read_to_end(&mut header)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(!header.is_empty() && !is_valid(&header))
}

fn is_valid(header: &[u8]) -> bool {
    let words: Vec<[u8; 4]> = header
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok())
        .collect();
    let [magic, _, _, _, _, _, first, second] = words[..] else {
        return false;
    };
    let read = match u32::from_be_bytes(magic) {
        LITTLE_ENDIAN => u32::from_le_bytes,
        BIG_ENDIAN => u32::from_be_bytes,
        _ => return false,
    };
    let mut sums = (0_u32, 0_u32);
    for pair in words[..6].chunks_exact(2) {
        sums.0 = sums.0.wrapping_add(read(pair[0])).wrapping_add(sums.1);
        sums.1 = sums.1.wrapping_add(read(pair[1])).wrapping_add(sums.0);
    }
    sums == (u32::from_be_bytes(first), u32::from_be_bytes(second))
}

/// Unused name beside the log.
fn free_name(log: &Path) -> PathBuf {
    let name = |n: u32| {
        let mut name = log.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        PathBuf::from(name)
    };
    let mut n = 1;
    while name(n).exists() {
        n += 1;
    }
    name(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    /// Database with a log, as a killed process leaves them.
    fn killed(home: &Path) -> PathBuf {
        let path = home.join("cynode.db");
        let other = home.join("other.db");
        let writer = Connection::open(&other).unwrap();
        writer
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE probes (filler BLOB)")
            .unwrap();
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        writer.query_row(sql, [], |_| Ok(())).unwrap();
        writer
            .execute_batch("INSERT INTO probes VALUES (zeroblob(9))")
            .unwrap();
        fs::copy(&other, &path).unwrap();
        fs::copy(wal::path_of(&other), wal::path_of(&path)).unwrap();
        path
    }

    fn probes(path: &Path) -> i64 {
        let database = Connection::open(path).unwrap();
        let count = database.query_row("SELECT count(*) FROM probes", [], |row| row.get(0));
        count.unwrap()
    }

    #[test]
    fn intact_log_stays() {
        let home = tempfile::tempdir().unwrap();
        let path = killed(home.path());
        assert!(!is_damaged(&wal::path_of(&path)).unwrap());
        quarantine_if_damaged(&path).unwrap();
        assert_eq!(probes(&path), 1);
    }

    #[test]
    fn damaged_log_is_renamed() {
        for damage in [
            |bytes: &mut Vec<u8>| bytes[0] ^= 1,
            |bytes: &mut Vec<u8>| bytes[17] ^= 1,
            |bytes: &mut Vec<u8>| bytes.truncate(20),
        ] {
            let home = tempfile::tempdir().unwrap();
            let path = killed(home.path());
            let log = wal::path_of(&path);
            let mut bytes = fs::read(&log).unwrap();
            damage(&mut bytes);
            fs::write(&log, &bytes).unwrap();
            quarantine_if_damaged(&path).unwrap();
            assert_eq!(probes(&path), 0, "SQLite ignores it, too");
            let kept = home.path().join("cynode.db-wal.damaged-1");
            assert_eq!(fs::read(kept).unwrap(), bytes);
        }
    }
}
