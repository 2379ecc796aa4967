//! Requirements of rootless podman: subordinate ids, and processes that outlive a login.
//!
//! Users and ranges are read from the files themselves: the binary is static, and the C library's look-ups would load
//! modules of the host. On hosts that keep users or ranges elsewhere (LDAP) this check may be wrong; the check
//! `sandbox` decides.

use super::{Check, host::in_path};
use std::{fs, path::Path};

const NAME: &str = "rootless";
const LINGER: &str = "linger";
/// Users of a container: images have files of any 16-bit id.
const MIN_SUBORDINATE_IDS: u64 = 65_536;
/// First subordinate id by convention, above the ids of ordinary users.
const FIRST_SUBORDINATE_ID: u64 = 100_000;

/// One user and the user's subordinate ids.
struct User {
    uid: u32,
    /// Name in /etc/passwd.
    name: Option<String>,
    /// Content of /etc/subuid and /etc/subgid.
    ranges: [String; 2],
    /// Whether each of [`ID_MAP_HELPERS`] is in PATH.
    helpers: [bool; 2],
}

/// Files of subordinate ids.
const SUBORDINATE_ID_FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// Programs that assign them.
const ID_MAP_HELPERS: [&str; 2] = ["newuidmap", "newgidmap"];

/// Checks for subordinate ids, and that processes continue after logout.
pub(super) fn checks(rootless: bool) -> [Check; 2] {
    if !rootless {
        return [
            Check::ok(NAME, "podman runs as root"),
            Check::ok(LINGER, "not needed: podman runs as root"),
        ];
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let uid = rustix::process::geteuid().as_raw();
    let user = User {
        uid,
        name: name_of(&read("/etc/passwd"), uid),
        ranges: SUBORDINATE_ID_FILES.map(read),
        helpers: ID_MAP_HELPERS.map(|name| in_path(name).is_some()),
    };
    let systemd = Path::new("/run/systemd/system").exists();
    let name = user.name.clone().unwrap_or_else(|| uid.to_string());
    let lingers = Path::new("/var/lib/systemd/linger").join(&name).exists();
    [verdict(&user), linger_verdict(systemd, lingers, &name)]
}

fn verdict(user: &User) -> Check {
    let who = format!("podman runs rootless as uid {}", user.uid);
    let missing: Vec<&str> = ID_MAP_HELPERS
        .into_iter()
        .zip(user.helpers)
        .filter_map(|(name, there)| (!there).then_some(name))
        .collect();
    if !missing.is_empty() {
        return Check::fail(
            NAME,
            format!(
                "{who}, but containers need {} in PATH",
                missing.join(" and ")
            ),
            "apt-get install uidmap, or dnf install shadow-utils",
        );
    }
    let has = user
        .ranges
        .each_ref()
        .map(|text| count_of(text, user.name.as_deref(), user.uid));
    let short: Vec<String> = SUBORDINATE_ID_FILES
        .into_iter()
        .zip(has)
        .filter(|(_, has)| *has < MIN_SUBORDINATE_IDS)
        .map(|(file, has)| format!("{has} ids in {file}"))
        .collect();
    if short.is_empty() {
        let [users, groups] = has;
        return Check::ok(
            NAME,
            format!("{who}, with {users} subordinate uids and {groups} gids"),
        );
    }
    Check::fail(
        NAME,
        format!(
            "{who}, but with only {}; images need {MIN_SUBORDINATE_IDS}",
            short.join(" and ")
        ),
        range_fix(user),
    )
}

/// Fix that adds an unused range. In a shared range, two users could access each other's files.
fn range_fix(user: &User) -> String {
    let first = user
        .ranges
        .iter()
        .flat_map(|text| ranges(text))
        .map(|(_, start, count)| start.saturating_add(count))
        .fold(FIRST_SUBORDINATE_ID, u64::max);
    let last = first + MIN_SUBORDINATE_IDS - 1;
    match &user.name {
        Some(name) => format!(
            "run as root: usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {name}\n\
             then run: podman system migrate"
        ),
        None => format!(
            "as root, add the line {}:{first}:{MIN_SUBORDINATE_IDS} to /etc/subuid and /etc/subgid\n\
             then run: podman system migrate",
            user.uid
        ),
    }
}

fn linger_verdict(systemd: bool, lingers: bool, name: &str) -> Check {
    if !systemd {
        Check::ok(LINGER, "not needed: systemd does not run here")
    } else if lingers {
        Check::ok(
            LINGER,
            format!("on: processes of {name} continue after logout"),
        )
    } else {
        Check::warn(
            LINGER,
            format!("off: roles that {name} runs end with the last login session"),
            format!("loginctl enable-linger {name}"),
        )
    }
}

/// Name of a user in the content of /etc/passwd.
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Number of subordinate ids that a user has in the content of a file, by name or by number (subuid(5)).
fn count_of(text: &str, name: Option<&str>, uid: u32) -> u64 {
    let uid = uid.to_string();
    ranges(text)
        .filter(|(owner, _, _)| *owner == uid || Some(*owner) == name)
        .fold(0, |sum, (_, _, count)| sum.saturating_add(count))
}

/// Owner, first id and count of each line. Invalid lines are ignored, as the helpers do.
fn ranges(text: &str) -> impl Iterator<Item = (&str, u64, u64)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next().filter(|owner| !owner.is_empty())?;
        let (start, count) = (fields.next()?, fields.next()?);
        let ids = (start.parse::<u32>().ok()?, count.parse::<u32>().ok()?);
        Some((owner, ids.0.into(), ids.1.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n+::::::\nbob:x:1001:100::/home/bob:/bin/sh\n";

    #[test]
    fn users_are_found_by_number() {
        assert_eq!(name_of(PASSWD, 0).as_deref(), Some("root"));
        assert_eq!(name_of(PASSWD, 1001).as_deref(), Some("bob"));
        // Neither the id of a group nor a prefix.
        assert_eq!(name_of(PASSWD, 100), None);
        assert_eq!(name_of("", 0), None);
    }

    #[test]
    fn ranges_by_name_and_number_are_summed() {
        let text = "ann:100000:65536\n# a remark\nbob:165536:1000\n1000:300000:10\nann:x:5\nann:1\n\nann:1:99999999999\n";
        assert_eq!(count_of(text, Some("ann"), 1000), 65_546);
        assert_eq!(count_of(text, Some("bob"), 1001), 1000);
        assert_eq!(count_of(text, None, 1000), 10);
        assert_eq!(count_of(text, Some("an"), 100), 0);
        assert_eq!(count_of("", Some("ann"), 1000), 0);
    }

    fn user(subuid: &str, subgid: &str) -> User {
        User {
            uid: 1000,
            name: Some("ann".to_owned()),
            ranges: [subuid.to_owned(), subgid.to_owned()],
            helpers: [true, true],
        }
    }

    #[test]
    fn both_files_need_enough_ids() {
        let enough = "ann:100000:65536\n";
        assert_eq!(verdict(&user(enough, enough)).status, Status::Ok);
        let check = verdict(&user(enough, "1000:100000:65535\n"));
        assert_eq!(check.status, Status::Fail);
        assert!(
            check.detail.contains("only 65535 ids in /etc/subgid;"),
            "{}",
            check.detail
        );
        let check = verdict(&user("", ""));
        assert!(
            check
                .detail
                .contains("0 ids in /etc/subuid and 0 ids in /etc/subgid")
        );
        assert!(
            check
                .fix
                .unwrap()
                .contains("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann\n")
        );
    }

    #[test]
    fn fix_avoids_id_ranges_of_others() {
        let fix = range_fix(&user("bob:100000:65536\n", "eve:200000:10\n"));
        assert!(fix.contains("--add-subuids 200010-265545 --add-subgids 200010-265545 ann"));
        let mut nameless = user("", "");
        nameless.name = None;
        assert!(range_fix(&nameless).contains("1000:100000:65536"));
    }

    #[test]
    fn missing_id_helpers_are_reported() {
        let mut user = user("ann:100000:65536\n", "ann:100000:65536\n");
        user.helpers = [true, false];
        let check = verdict(&user);
        assert_eq!(check.status, Status::Fail);
        assert!(
            check.detail.ends_with("containers need newgidmap in PATH"),
            "{}",
            check.detail
        );
    }

    #[test]
    fn lingering_counts_where_systemd_runs() {
        assert_eq!(linger_verdict(false, false, "ann").status, Status::Ok);
        assert_eq!(linger_verdict(true, true, "ann").status, Status::Ok);
        let off = linger_verdict(true, false, "ann");
        assert_eq!(off.fix.as_deref(), Some("loginctl enable-linger ann"));
    }
}
