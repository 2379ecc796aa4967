//! Downloads of artifacts: after the end of a task, and by id.
//!
//! Names come from the sandbox, so they are hostile: a file is written below the chosen directory, or not at all.
//! It appears under its name once it is complete and its hash is right. None is written to a `.git`, whose files name
//! commands that run on the user's machine.

use super::{
    api_client::ApiClient,
    many::Failures,
    paths,
    print::{self, clean},
    receive, remarks,
};
use crate::{
    api::{
        artifacts::{Artifact, ArtifactList},
        jobs::files::{check_path, check_pattern},
        tasks::{CreateTask, TaskResult},
    },
    cli::{OutputFormat, TaskArtifactsArgs},
    exit::{Exit, Failure},
};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// `--download GLOB[:DIR]`.
struct Download {
    flag: String,
    patterns: Vec<String>,
    matcher: GlobSet,
    dir: PathBuf,
}

/// Downloads that were asked for.
pub(super) struct Wanted(Vec<Download>);

impl Download {
    fn parse(flag: &str) -> Result<Self, Failure> {
        let (glob, dir) = split(flag);
        let usage = |detail: String| Failure::usage(format!("--download {flag}: {detail}"));
        if dir.is_empty() {
            return Err(usage("give a directory after the colon".to_owned()));
        }
        check_pattern("", glob)
            .map_err(|problem| usage(format!("the pattern {}", problem.detail)))?;
        let glob = glob.strip_prefix("/workspace/").unwrap_or(glob);
        let glob = glob
            .strip_prefix("./")
            .unwrap_or(glob)
            .trim_end_matches('/');
        let glob = if matches!(glob, "." | "") { "**" } else { glob };
        // A directory stands for all that is in it.
        let mut patterns = vec![glob.to_owned()];
        if !glob.ends_with("**") {
            patterns.push(format!("{glob}/**"));
        }
        let mut matcher = GlobSetBuilder::new();
        for pattern in &patterns {
            let pattern = GlobBuilder::new(pattern).literal_separator(true).build();
            matcher.add(pattern.map_err(|error| usage(error.kind().to_string()))?);
        }
        Ok(Self {
            flag: flag.to_owned(),
            patterns,
            matcher: matcher.build().map_err(Failure::internal)?,
            dir: dir.into(),
        })
    }
}

/// Pattern and directory of a flag: those before and after the last colon that is in no class of characters.
fn split(flag: &str) -> (&str, &str) {
    let bytes = flag.as_bytes();
    let (mut colon, mut at) = (None, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 1,
            b':' => colon = Some(at),
            b'[' => {
                let mut first = at + 1;
                first += usize::from(matches!(bytes.get(first), Some(b'!' | b'^')));
                // A bracket that comes first stands for itself.
                first += usize::from(bytes.get(first) == Some(&b']'));
                let rest = bytes.get(first..).unwrap_or_default();
                if let Some(length) = rest.iter().position(|byte| *byte == b']') {
                    at = first + length;
                }
            }
            _ => {}
        }
        at += 1;
    }
    match colon {
        Some(colon) => (&flag[..colon], &flag[colon + 1..]),
        None => (flag, "."),
    }
}

impl Wanted {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Downloads of the flags; fails before a task is created.
    pub(super) fn parse_all(flags: &[String]) -> Result<Self, Failure> {
        let downloads = flags.iter().map(|flag| Download::parse(flag));
        downloads.collect::<Result<_, _>>().map(Self)
    }

    /// Has the task collect what is to be downloaded.
    pub(super) fn add_patterns(&self, task: &mut CreateTask) {
        let patterns = self.0.iter().flat_map(|download| &download.patterns);
        let mut patterns = patterns.cloned().peekable();
        if patterns.peek().is_some() {
            task.artifacts.get_or_insert_default().extend(patterns);
        }
    }
}

/// Downloads what was asked for, after the end of a task. Fails with 4 where nothing matches a pattern, and where files
/// are missing that should have been collected.
pub(super) fn after_end(
    api: &mut ApiClient,
    id: &str,
    wanted: &Wanted,
    result: &TaskResult,
) -> Result<(), Failure> {
    if wanted.is_empty() {
        return Ok(());
    }
    let artifacts = list_of_task(api, id, ApiClient::get_patiently)?.artifacts;
    let mut failures = Failures::default();
    match remarks::skipped(result) {
        Some(left_out) if remarks::only_irregular(result) => {
            print::note(&format!("warning: {left_out}"));
        }
        Some(missing) => failures.add(Exit::NotFound, missing),
        None => {}
    }
    for download in &wanted.0 {
        let matching = artifacts
            .iter()
            .filter(|artifact| download.matcher.is_match(&artifact.name));
        let mut found = false;
        for artifact in matching {
            found = true;
            if let Err(failure) = into_dir(api, artifact, &download.dir) {
                if receive::is_stopped() {
                    return Err(failure);
                }
                failures.add(
                    failure.exit,
                    format!("{}: {}", clean(&artifact.name), failure.message),
                );
            }
        }
        if !found {
            let text = format!(
                "--download {}: the task left no such file",
                clean(&download.flag)
            );
            failures.add(Exit::NotFound, text);
        }
    }
    failures.finish()
}

/// `cynode task artifacts`.
pub(super) fn task_artifacts(args: &TaskArtifactsArgs) -> Result<(), Failure> {
    let mut api = ApiClient::from_args(&args.task.client)?;
    let list = list_of_task(&mut api, &args.task.id, ApiClient::get)?;
    let mut failures = Failures::default();
    if let Some(dir) = &args.out {
        for artifact in &list.artifacts {
            if let Err(failure) = into_dir(&mut api, artifact, dir) {
                failures.add(
                    failure.exit,
                    format!("{}: {}", clean(&artifact.name), failure.message),
                );
            }
        }
    }
    if args.task.client.output == OutputFormat::Json {
        print::json(&list)?;
    } else if args.out.is_none() {
        print_list(&list.artifacts)?;
    }
    failures.finish()
}

/// Prints artifacts as a table.
pub(super) fn print_list(artifacts: &[Artifact]) -> Result<(), Failure> {
    let rows = artifacts.iter().map(|artifact| {
        [
            artifact.artifact_id.to_string(),
            print::size(artifact.size_bytes),
            clean(&artifact.name),
        ]
    });
    print::table(["ID", "SIZE", "NAME"], rows)
}

/// All artifacts of a task, fetched page by page.
fn list_of_task(
    api: &mut ApiClient,
    id: &str,
    get: impl Fn(&mut ApiClient, &str) -> Result<ArtifactList, Failure>,
) -> Result<ArtifactList, Failure> {
    let first = paths::task(id, "/artifacts");
    let mut list = get(api, &first)?;
    while !list.next_cursor.is_empty() {
        let path = paths::with_query(&first, &[("cursor", Some(&list.next_cursor))]);
        let page = get(api, &path)?;
        list.artifacts.extend(page.artifacts);
        list.next_cursor = page.next_cursor;
    }
    Ok(list)
}

/// Downloads an artifact below a directory, to the path that its name is.
fn into_dir(api: &mut ApiClient, artifact: &Artifact, dir: &Path) -> Result<(), Failure> {
    let path = path_below(dir, &artifact.name)?;
    receive::to_file(api, artifact, &path)?;
    print::note(&format!(
        "{} ({})",
        clean(&path.display().to_string()),
        print::size(artifact.size_bytes)
    ));
    Ok(())
}

/// Path of a name below a directory. Makes the directories on the way; none of them is a link.
fn path_below(dir: &Path, name: &str) -> Result<PathBuf, Failure> {
    check_path("", name, false).map_err(|problem| {
        Failure::internal(format!("is not written: the name {}", problem.detail))
    })?;
    let relative = name.strip_prefix("/workspace/").unwrap_or(name);
    let is_git = |part: &str| part.eq_ignore_ascii_case(".git");
    if relative.split('/').any(is_git) {
        let text = "is not written: a file in .git can run commands here; download it by its id (cynode artifacts \
                    download ID --out FILE)";
        return Err(Failure::new(Exit::Conflict, text));
    }
    fs::create_dir_all(dir)?;
    let mut path = dir.to_owned();
    let mut parts = relative.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        if parts.peek().is_none() {
            break;
        }
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => {
                let text = format!("is not written: {} is not a directory", path.display());
                return Err(Failure::new(Exit::Conflict, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(&path)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn downloads_stay_below_their_directory() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("out");
        for name in ["a", "b/c/d", "..x", "/workspace/e", ".gitignore"] {
            let path = path_below(&dir, name).unwrap();
            assert!(
                path.starts_with(&dir) && path.parent().unwrap().is_dir(),
                "{name}"
            );
        }
        symlink("/tmp", dir.join("link")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/../../x",
            "a//b",
            "link/x",
            "file/x",
            ".git",
            "a/.Git/config",
        ] {
            assert!(path_below(&dir, name).is_err(), "{name:?}");
        }
        // A link at the place of a file is replaced, not followed.
        assert_eq!(path_below(&dir, "link").unwrap(), dir.join("link"));
    }

    #[test]
    fn directory_stands_for_its_files() {
        let matches =
            |flag: &str, name: &str| Download::parse(flag).unwrap().matcher.is_match(name);
        for (flag, name, expected) in [
            ("out/*.json", "out/a.json", true),
            ("out/*.json", "out/b/a.json", false),
            ("out", "out/b/a.json", true),
            ("out/", "out/a", true),
            ("./out:dir", "out/a", true),
            ("/workspace/model.bin", "model.bin", true),
            ("**", "a/b", true),
            (".:dir", "a/b", true),
            ("out", "outer", false),
        ] {
            assert_eq!(matches(flag, name), expected, "{flag} {name}");
        }
        for (flag, glob, dir) in [
            ("out", "out", "."),
            ("out:dir", "out", "dir"),
            ("a:b:dir", "a:b", "dir"),
            ("out/[[:digit:]]*", "out/[[:digit:]]*", "."),
            ("[a:b]*:dir", "[a:b]*", "dir"),
            ("[!]:]x:dir[1]", "[!]:]x", "dir[1]"),
            ("\\[a:dir]", "\\[a", "dir]"),
            ("[a:dir", "[a", "dir"),
        ] {
            assert_eq!(split(flag), (glob, dir), "{flag}");
        }
        for flag in ["", "/etc/*", "../x", "a:", "[a"] {
            assert!(Download::parse(flag).is_err(), "{flag}");
        }
    }
}
