//! `cynode sandbox ls`.

use super::{
    local::{Place, SandboxPath},
    target::Target,
};
use crate::{
    api::sandboxes::files::{FileEntry, FileKind, FileList},
    cli::{OutputFormat, SandboxLsArgs},
    client::{
        api_client::ApiClient,
        paths,
        print::{self, clean},
    },
    exit::Failure,
};

/// Lists files in a sandbox.
pub(super) fn ls(args: &SandboxLsArgs) -> Result<(), Failure> {
    let (name, path) = match Place::parse(&args.place)? {
        Place::Sandbox(name, path) => (name, path),
        _ => (args.place.clone(), SandboxPath::parse("")),
    };
    let depth = args.depth.to_string();
    let query = [
        ("path", Some(path.path.as_str())),
        ("depth", Some(depth.as_str())),
    ];
    let target = Target::sandbox(&name);
    let path_of_call = paths::with_query(&target.path("/files:list"), &query);
    let list: FileList = ApiClient::from_args(&args.client)?.get(&path_of_call)?;
    if args.client.output == OutputFormat::Json {
        return print::json(&list);
    }
    if args.long {
        let rows = list.entries.iter().map(|entry| long(entry, &path.path));
        print::table(["MODE", "SIZE", "MODIFIED", "NAME"], rows)?;
    } else {
        for entry in &list.entries {
            print::line(&shown(entry, &path.path))?;
        }
    }
    if list.truncated {
        print::note("There are more; list a directory in it, or a smaller --depth");
    }
    Ok(())
}

/// Path of an entry below the directory that was asked for; a directory ends with a slash.
fn shown(entry: &FileEntry, above: &str) -> String {
    let below = entry.path.strip_prefix(above.trim_end_matches('/'));
    let below = below.and_then(|below| below.strip_prefix('/'));
    let below = below.filter(|below| !below.is_empty());
    let slash = match entry.kind {
        FileKind::Directory => "/",
        _ => "",
    };
    clean(&format!("{}{slash}", below.unwrap_or(&entry.path)))
}

fn long(entry: &FileEntry, above: &str) -> [String; 4] {
    let kind = match entry.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Other => '?',
    };
    let target = entry.target.as_deref();
    let target = target.map_or_else(String::new, |target| format!(" -> {}", clean(target)));
    [
        format!("{kind}{}", clean(&entry.mode)),
        print::size(entry.size_bytes),
        entry.modified_at.to_string(),
        format!("{}{target}", shown(entry, above)),
    ]
}
