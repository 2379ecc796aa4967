//! Tar archives of files and directories, made while they are sent and unpacked while they arrive.
//!
//! An archive of a directory has what is in it, by paths relative to it, so that unpacking it elsewhere makes a copy; an
//! archive of a file has that file. Links are links, also further names of one file. FIFOs, sockets and devices are left
//! out, and so is what can't be read: the archive then ends with a comment (pax) that counts them, since programs that
//! read archives pass over comments.

use super::{
    answer::Answer,
    failure::{name, problem},
    query::invalid,
    request::Body,
    transfer::{check_room, open_regular},
};
use crate::{
    api::problem::Problem,
    archive::{
        self, Archive, BLOCK_BYTES, END_BYTES, EntryFields, ExtractError, Links, Meter, Tree,
        comment_blocks, header_blocks, quoted,
    },
};
use http::StatusCode;
use rustix::io::Errno;
use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read as _, Write},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};
use tar::EntryType;

/// Bytes that are read of a file at a time.
const BLOCK: usize = 256 << 10;
/// Memory for the paths of directories that are not read yet, and as much for those of files with several names.
const MAX_PATHS_BYTES: usize = 4 << 20;
/// Memory that a path takes besides its bytes.
const PATH_OVERHEAD_BYTES: usize = 64;
/// Size from which a file is checked for room before it is written.
const CHECK_BYTES: u64 = 1 << 20;

/// Answers with an archive of a directory or a file.
pub(super) fn get(path: &Path) -> Result<Answer, Problem> {
    let at_path = |error: io::Error| problem(path, &error);
    let metadata = fs::metadata(path).map_err(at_path)?;
    if metadata.is_dir() {
        // Fails here where it can't be read, and not in the middle of the answer.
        drop(fs::read_dir(path).map_err(at_path)?);
        let root = path.to_owned();
        let write = move |output: &mut dyn Write| Bundle::new(root, output).write_directory();
        return Ok(Answer::Archive(Box::new(write)));
    }
    let (file, metadata) = open_regular(path)?;
    let path = path.to_owned();
    let write = move |output: &mut dyn Write| {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .as_bytes()
            .to_vec();
        let mut bundle = Bundle::new(path, output);
        bundle.write_file(&name, file, &metadata)?;
        bundle.finish()
    };
    Ok(Answer::Archive(Box::new(write)))
}

/// Archive that is being written.
struct Bundle<'a> {
    root: PathBuf,
    output: &'a mut dyn Write,
    buffer: Vec<u8>,
    /// Directories that are not read yet, relative to the root.
    unread: Vec<PathBuf>,
    unread_bytes: usize,
    /// First paths of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    linked_bytes: usize,
    left_out: u64,
    /// First entry that was left out.
    example: Option<PathBuf>,
}

impl<'a> Bundle<'a> {
    fn new(root: PathBuf, output: &'a mut dyn Write) -> Self {
        Self {
            root,
            output,
            buffer: vec![0; BLOCK],
            unread: Vec::new(),
            unread_bytes: 0,
            linked: HashMap::new(),
            linked_bytes: 0,
            left_out: 0,
            example: None,
        }
    }

    /// Writes everything in the root. Its error is one of the output, or of a file that was cut while it was read.
    fn write_directory(&mut self) -> io::Result<()> {
        let mut directory = PathBuf::new();
        loop {
            match fs::read_dir(self.root.join(&directory)) {
                Ok(entries) => {
                    for entry in entries {
                        // One that is gone meanwhile is none.
                        let Ok(entry) = entry else { continue };
                        let path = directory.join(entry.file_name());
                        match entry.metadata() {
                            Ok(metadata) => self.write_entry(path, &metadata)?,
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                            Err(_) => self.leave_out(path),
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => self.leave_out(directory),
            }
            let Some(next) = self.unread.pop() else {
                return self.finish();
            };
            self.unread_bytes -= next.as_os_str().len() + PATH_OVERHEAD_BYTES;
            directory = next;
        }
    }

    fn write_entry(&mut self, path: PathBuf, metadata: &Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        let bytes = path.as_os_str().as_bytes();
        if kind.is_dir() {
            let name = [bytes, b"/"].concat();
            self.write_header(EntryType::Directory, &name, b"", metadata, 0)?;
            let cost = bytes.len() + PATH_OVERHEAD_BYTES;
            if self.unread_bytes + cost > MAX_PATHS_BYTES {
                self.leave_out(path);
            } else {
                self.unread_bytes += cost;
                self.unread.push(path);
            }
            return Ok(());
        }
        if kind.is_symlink() {
            let Ok(target) = fs::read_link(self.root.join(&path)) else {
                self.leave_out(path);
                return Ok(());
            };
            let target = target.as_os_str().as_bytes();
            return self.write_header(EntryType::Symlink, bytes, target, metadata, 0);
        }
        if let Some(first) = self.linked.get(&(metadata.dev(), metadata.ino())) {
            let first = first.clone();
            return self.write_header(EntryType::Link, bytes, &first, metadata, 0);
        }
        if kind.is_file()
            && let Ok((file, metadata)) = open_regular(&self.root.join(&path))
        {
            self.remember_name(bytes, &metadata);
            return self.write_file(bytes, file, &metadata);
        }
        self.leave_out(path);
        Ok(())
    }

    /// Remembers the path of a file that has others, as long as there is memory. Without it, they are files themselves.
    fn remember_name(&mut self, path: &[u8], metadata: &Metadata) {
        let cost = path.len() + PATH_OVERHEAD_BYTES;
        if metadata.nlink() > 1 && self.linked_bytes + cost <= MAX_PATHS_BYTES {
            self.linked_bytes += cost;
            let file = (metadata.dev(), metadata.ino());
            self.linked.insert(file, path.to_owned());
        }
    }

    /// Writes a file. One that is cut meanwhile ends the archive, unless it is small.
    fn write_file(&mut self, path: &[u8], mut file: File, metadata: &Metadata) -> io::Result<()> {
        let most = usize::try_from(metadata.size()).unwrap_or(BLOCK).min(BLOCK);
        let mut buffer = std::mem::take(&mut self.buffer);
        let first = read_full(&mut file, &mut buffer[..most]);
        let size = match first {
            Ok(read) if read < most => read as u64,
            Ok(_) => metadata.size(),
            Err(_) => {
                self.buffer = buffer;
                self.leave_out(PathBuf::from(String::from_utf8_lossy(path).into_owned()));
                return Ok(());
            }
        };
        self.write_header(EntryType::Regular, path, b"", metadata, size)?;
        let mut left = size;
        let mut length = most.min(usize::try_from(size).unwrap_or(most));
        while left > 0 {
            self.output.write_all(&buffer[..length])?;
            left -= length as u64;
            length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            if read_full(&mut file, &mut buffer[..length])? < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.buffer = buffer;
        let padding = size.next_multiple_of(BLOCK_BYTES) - size;
        self.output
            .write_all(&[0; BLOCK_BYTES as usize][..padding as usize])
    }

    fn write_header(
        &mut self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        metadata: &Metadata,
        size: u64,
    ) -> io::Result<()> {
        self.output.write_all(&header_blocks(&EntryFields {
            kind,
            path,
            target,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            size,
            modified: metadata.mtime(),
        }))
    }

    fn leave_out(&mut self, path: PathBuf) {
        self.left_out += 1;
        self.example.get_or_insert(path);
    }

    fn finish(&mut self) -> io::Result<()> {
        if let Some(example) = &self.example {
            let comment = format!(
                "cynode: left out {} entries that are no files, directories or links, or can't be read, such as {}",
                self.left_out,
                name(example)
            );
            self.output.write_all(&comment_blocks(&comment))?;
        }
        self.output.write_all(&[0; END_BYTES])
    }
}

/// Reads until a buffer is full or the file ends.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Unpacks an archive, plain or compressed by gzip or zstd, into a directory, which is made where it is missing.
pub(super) fn put(path: &Path, body: &mut Body<'_>) -> Result<Answer, Problem> {
    let at_path = |error: io::Error| problem(path, &error);
    if fs::metadata(path).is_ok_and(|found| !found.is_dir()) {
        return Err(at_path(Errno::NOTDIR.into()));
    }
    let mut archive =
        Archive::open(body).map_err(|error| invalid(format!("the archive {error}")))?;
    fs::create_dir_all(path).map_err(at_path)?;
    let path = &fs::canonicalize(path).map_err(at_path)?;
    let tree = Tree::open(path, "", Links::Beneath).map_err(at_path)?;
    archive::extract(tree, &mut archive, &mut Room { path }).map_err(|error| {
        let mut problem = extract_problem(path, error);
        problem
            .detail
            .push_str("; the entries before it were unpacked and stay");
        problem
    })?;
    Ok(Answer::Empty(StatusCode::NO_CONTENT))
}

fn extract_problem(path: &Path, error: ExtractError<Problem>) -> Problem {
    match error {
        ExtractError::Archive(error) => invalid(format!("the archive {error}")),
        ExtractError::Entry(reason) => invalid(format!("the archive is refused: {reason}")),
        ExtractError::Io(entry, error) => {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::XDEV | Errno::LOOP) => invalid(format!(
                    "the archive is refused: the path of file {} leads through a link out of the directory",
                    quoted(&entry)
                )),
                _ => problem(&path.join(OsStr::from_bytes(&entry)), &error),
            }
        }
        ExtractError::Limit(problem) => problem,
    }
}

/// Room of the file system that an archive is unpacked into.
struct Room<'a> {
    path: &'a Path,
}

impl Meter for Room<'_> {
    type Error = Problem;

    fn count_entries(&mut self, _: u64) -> Result<(), Problem> {
        Ok(())
    }

    /// Refuses a large file before it takes all the room, and not after.
    fn check_room(&self, bytes: u64) -> Result<(), Problem> {
        if bytes < CHECK_BYTES {
            return Ok(());
        }
        check_room(self.path, self.path, Some(bytes))
    }

    fn spend(&mut self, _: u64) -> Result<(), Problem> {
        Ok(())
    }
}
