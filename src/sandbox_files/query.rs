//! Query parameters, whose values are bytes: a name of a file need not be UTF-8.

use crate::api::{
    jobs::files::FileMode,
    problem::{Problem, ProblemKind},
    sandboxes::files::MAX_PATH_BYTES,
};
use percent_encoding::percent_decode_str;
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

/// Query string of a request.
pub(super) struct Query<'a>(pub(super) &'a str);

impl Query<'_> {
    /// First value of a parameter, decoded (`application/x-www-form-urlencoded`).
    fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.0.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decode_str(&value.replace('+', " ")).collect())
        })
    }

    /// Path of the file or directory that the request is about.
    pub(super) fn path(&self) -> Result<Vec<u8>, Problem> {
        self.value("path").ok_or_else(|| {
            invalid("query parameter `path` is missing; name a file or directory in it")
        })
    }

    /// Whether a parameter is true; absent, it is not.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.value(name).as_deref() {
            None | Some(b"false") => Ok(false),
            Some(b"true" | b"") => Ok(true),
            Some(_) => Err(invalid(format!(
                "query parameter `{name}` must be true or false"
            ))),
        }
    }

    /// A number that is allowed; `None` where the parameter is absent.
    pub(super) fn number(&self, name: &str, least: u32, most: u32) -> Result<Option<u32>, Problem> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let number = str::from_utf8(&value)
            .ok()
            .and_then(|text| text.parse().ok());
        let number = number.filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| {
            invalid(format!(
                "query parameter `{name}` must be a whole number from {least} to {most}"
            ))
        })
    }

    /// Permission bits; `None` where the parameter is absent.
    pub(super) fn mode(&self) -> Result<Option<u32>, Problem> {
        let Some(value) = self.value("mode") else {
            return Ok(None);
        };
        let mode = str::from_utf8(&value).ok();
        let mode = mode.and_then(|text| text.parse::<FileMode>().ok());
        mode.map(|mode| Some(mode.0)).ok_or_else(|| {
            invalid("query parameter `mode` must be octal digits from 000 to 0777, such as 0755")
        })
    }
}

/// Path in the sandbox. A relative one begins at `base`. Slashes at its end say nothing and are left out, so that a
/// link is meant itself and not its target.
pub(super) fn resolve(base: &Path, path: &[u8]) -> Result<PathBuf, Problem> {
    if path.is_empty() {
        return Err(invalid("`path` must not be empty; \".\" is /workspace"));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(invalid(format!(
            "`path` must be at most {MAX_PATH_BYTES} bytes long, got {}",
            path.len()
        )));
    }
    if path.contains(&0) {
        return Err(invalid("`path` must not contain a NUL character"));
    }
    let end = path.iter().rposition(|byte| *byte != b'/');
    let trimmed = end.map_or(&path[..1], |end| &path[..=end]);
    Ok(base.join(OsStr::from_bytes(trimmed)))
}

pub(super) fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::InvalidRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_come_through_query(path in prop::collection::vec(any::<u8>(), 0..200)) {
            let encoded = percent_encode(&path, NON_ALPHANUMERIC).to_string();
            let query = format!("depth=1&path={encoded}&path=other");
            prop_assert_eq!(Query(&query).path().unwrap(), path);
        }

        #[test]
        fn resolved_path_is_same_file(path in prop::collection::vec(any::<u8>(), 0..5000)) {
            let base = Path::new("/base");
            match resolve(base, &path) {
                Ok(resolved) => {
                    prop_assert!(resolved.is_absolute());
                    let is_absolute = path[0] == b'/';
                    prop_assert!(is_absolute || resolved.starts_with(base));
                    let expected = Path::new("/base").join(OsStr::from_bytes(&path));
                    prop_assert!(resolved.components().eq(expected.components()));
                    let bytes = resolved.as_os_str().as_bytes();
                    prop_assert!(bytes == b"/" || bytes.last() != Some(&b'/'));
                }
                Err(problem) => {
                    prop_assert_eq!(problem.kind.status(), 400);
                    let is_bad = path.is_empty() || path.contains(&0) || path.len() > MAX_PATH_BYTES;
                    prop_assert!(is_bad);
                }
            }
        }

        #[test]
        fn hostile_query_never_panics(query in "[ -~]{0,60}") {
            let query = Query(&query);
            let _ = (query.path(), query.flag("recursive"), query.mode(), query.number("depth", 1, 9));
        }
    }

    #[test]
    fn wrong_values_say_what_is_expected() {
        let detail = |problem: Problem| problem.detail;
        let query = Query("recursive=yes&mode=888&depth=0&path");
        assert!(detail(query.flag("recursive").unwrap_err()).ends_with("must be true or false"));
        assert!(detail(query.mode().unwrap_err()).contains("octal digits"));
        assert!(detail(query.number("depth", 1, 9).unwrap_err()).ends_with("from 1 to 9"));
        assert_eq!(query.path().unwrap(), b"");
        assert!(Query("").path().unwrap_err().detail.contains("is missing"));
        assert_eq!(Query("mode=0755").mode().unwrap(), Some(0o755));
        assert!(Query("recursive").flag("recursive").unwrap());
    }

    #[test]
    fn plus_is_space_in_query() {
        assert_eq!(Query("path=a+b%2Bc").path().unwrap(), b"a b+c");
    }
}
