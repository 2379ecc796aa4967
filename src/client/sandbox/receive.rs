//! Copies out of a sandbox: a file, a directory that is unpacked here, or an archive to stdout.

use super::{
    copy::{Found, look},
    local::{SandboxPath, ends_as_directory},
    target::Target,
    unpack::unpack,
};
use crate::{
    client::{
        api_client::{ApiClient, Payload},
        paths,
        print::clean,
        progress::Progress,
        receive::{is_special, sweep},
    },
    exit::{Exit, Failure},
    files::Replacement,
    terminal::write_failure,
};
use http::Method;
use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use ureq::Body;

/// Size of a piece.
const PIECE_BYTES: usize = 256 * 1024;
/// Header with the mode of a file, as octal digits.
const MODE_HEADER: &str = "cynode-file-mode";
/// Bits of a mode that a copy keeps.
const MODE_BITS: u32 = 0o777;

/// Copies a file or a directory of the sandbox. Returns the path here.
pub(super) fn path(
    api: &mut ApiClient,
    target: &Target,
    from: &SandboxPath,
    to: &Path,
) -> Result<String, Failure> {
    let place = match look(api, target, from)? {
        Found::Directory => directory(api, target, from, to)?,
        Found::File => file(api, target, from, to)?,
        Found::Nothing => {
            let text = format!("there is no {} in the sandbox", clean(&from.path));
            return Err(Failure::new(Exit::NotFound, text));
        }
    };
    Ok(place.display().to_string())
}

/// Writes the archive of a path to stdout.
pub(super) fn stdout(
    api: &mut ApiClient,
    target: &Target,
    from: &SandboxPath,
) -> Result<(), Failure> {
    let path = archive_path(target, from);
    let mut body = body(open(api, &path)?);
    let mut out = io::stdout().lock();
    pump(&mut body, &mut out, |_| {})?;
    out.flush().map_err(write_failure)
}

fn archive_path(target: &Target, from: &SandboxPath) -> String {
    paths::with_query(&target.path("/archive"), &[("path", Some(&from.path))])
}

/// Successful answer.
fn open(api: &mut ApiClient, path: &str) -> Result<http::Response<Body>, Failure> {
    let answer = api.exchange(&Method::GET, path, &[], Payload::None)?;
    api.check_status(answer)
}

/// Body of an answer, however long it is.
fn body(answer: http::Response<Body>) -> impl Read {
    let body = answer.into_body().into_with_config();
    body.limit(u64::MAX).reader()
}

/// Copies everything; a cut is an error.
fn pump(
    from: &mut impl Read,
    to: &mut impl Write,
    mut count: impl FnMut(u64),
) -> Result<u64, Failure> {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut done = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(cut(&error)),
        };
        to.write_all(&buffer[..read]).map_err(write_failure)?;
        done += read as u64;
        count(read as u64);
    }
}

/// Failure of a copy that ended early.
pub(super) fn cut(error: &dyn std::fmt::Display) -> Failure {
    let text = format!("the copy broke off: {error}; run the command again");
    Failure::new(Exit::Unreachable, text)
}

fn file(
    api: &mut ApiClient,
    target: &Target,
    from: &SandboxPath,
    to: &Path,
) -> Result<PathBuf, Failure> {
    let place = place_of_file(from, to)?;
    let named = |error: io::Error| Failure::internal(format!("{}: {error}", place.display()));
    if is_special(&place) {
        let text = format!(
            "{} is there and is not a regular file; name another place",
            clean(&place.display().to_string())
        );
        return Err(Failure::new(Exit::Conflict, text));
    }
    let path = paths::with_query(&target.path("/files"), &[("path", Some(&from.path))]);
    let answer = open(api, &path)?;
    let header = |name: &str| answer.headers().get(name)?.to_str().ok();
    let mode = header(MODE_HEADER).and_then(|mode| u32::from_str_radix(mode, 8).ok());
    let size = header("content-length").and_then(|size| size.parse().ok());
    sweep(&place);
    let mode = mode.unwrap_or(0o666) & MODE_BITS;
    let mut file = Replacement::begin(&place, mode).map_err(named)?;
    let mut progress = Progress::start("copy", &from.path, size.unwrap_or(0));
    let mut body = body(answer);
    pump(&mut body, &mut file, |bytes| progress.add(bytes))?;
    file.commit().map_err(named)?;
    Ok(place)
}

/// Path here of a file: in a directory that is there, or the path itself.
fn place_of_file(from: &SandboxPath, to: &Path) -> Result<PathBuf, Failure> {
    if to.is_dir() {
        let name = from
            .name()
            .ok_or_else(|| Failure::usage("name the file here"))?;
        return Ok(to.join(name));
    }
    if ends_as_directory(to) {
        let text = format!(
            "there is no directory {}; make it, or leave the slash out to name the file so",
            clean(&to.display().to_string())
        );
        return Err(Failure::new(Exit::NotFound, text));
    }
    Ok(to.to_owned())
}

fn directory(
    api: &mut ApiClient,
    target: &Target,
    from: &SandboxPath,
    to: &Path,
) -> Result<PathBuf, Failure> {
    let place = match (from.is_content, from.name()) {
        (false, Some(name)) if to.is_dir() => to.join(name),
        _ => to.to_owned(),
    };
    let body = body(open(api, &archive_path(target, from))?);
    match fs::create_dir(&place) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && place.is_dir() => {}
        Err(error) => {
            let text = format!("{}: {error}", clean(&place.display().to_string()));
            return Err(Failure::new(Exit::Conflict, text));
        }
    }
    unpack(body, &from.path, &place)?;
    Ok(place)
}
