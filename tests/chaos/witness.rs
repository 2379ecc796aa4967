//! Record of all sandboxes, made by wrappers of `podman` and `runc`.
//!
//! Each `podman run` of a job, not of a probe, gets one more volume at `/witness`, where the job records that it
//! started, with a random id, and how it ended. So a start that never reached the command differs from one that did,
//! and one command from another. A warm sandbox belongs to no job when podman starts it; the log of its node says which
//! one takes it.
//!
//! The wrappers wait at chosen points while a file exists.

use crate::support::{eventually, process::with_tool, read};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
};

const PODMAN: &str = r#"
hold() {
  while [ -e "$HERE/hold/$1" ]; do echo $$ >"$HERE/hold/$1.held"; sleep 0.02; done
}
case "$1 $2" in "image inspect"|"image exists") hold image ;; esac
job= attempt= sandbox=
for word; do case $word in
  --label=io.cynode.job-id=*) job=${word#*job-id=} ;;
  --label=io.cynode.attempt=*) attempt=${word#*attempt=} ;;
  --label=io.cynode.sandbox-id=*) sandbox=${word#*sandbox-id=} ;;
esac; done
name=$job-$attempt
[ "$job" != warm ] || name=warm
[ -n "$attempt" ] || [ "$name" = warm ] || exec "$REAL" "$@"
run=1
place=$HERE/seen/$name.$sandbox.$$
mkdir "$place"
for word; do
  shift
  set -- "$@" "$word"
  [ "$word" != run ] || [ -z "$run" ] || { run=; set -- "$@" "--volume=$place:/witness:rw"; }
done
hold run
exec "$REAL" "$@"
"#;

/// What a node logs when a job takes a warm sandbox, before the sandbox gets its command.
const HANDED_OVER: &str = "job takes a warm sandbox";

const RUNC: &str = r#"
for word; do
  case $word in create|start|delete)
    while [ -e "$HERE/hold/$word" ]; do echo $$ >"$HERE/hold/$word.held"; sleep 0.02; done
    break ;;
  esac
done
exec "$REAL" "$@"
"#;

/// Point at which sandboxes are held.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Point {
    /// Podman is asked for an image.
    Image,
    /// Podman is started.
    Run,
    /// The runtime is about to create the container.
    Create,
    /// Podman has created the container and is about to start it.
    Start,
    /// The container has ended and is about to be deleted.
    Delete,
}

impl Point {
    fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Run => "run",
            Self::Create => "create",
            Self::Start => "start",
            Self::Delete => "delete",
        }
    }
}

/// One `podman run` of a job.
#[derive(Debug)]
pub(crate) struct Start {
    /// Attempt.
    pub(crate) attempt: u64,
    /// Random ids of the commands that started: one at most.
    pub(crate) started: Vec<String>,
    /// Exit codes of the commands.
    pub(crate) ended: Vec<String>,
    /// Directory of the record.
    place: PathBuf,
}

impl Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.place.file_name().unwrap_or_default().to_string_lossy();
        write!(f, "{name} began {:?} ended {:?}", self.started, self.ended)
    }
}

/// Wrappers and records of all sandboxes.
pub(crate) struct Witness {
    here: PathBuf,
}

fn real(tool: &str) -> String {
    let found = std::env::var("PATH").unwrap();
    let found = found.split(':').map(|dir| Path::new(dir).join(tool));
    let path = found.into_iter().find(|path| path.exists());
    path.unwrap_or_else(|| panic!("there is no {tool}; run `make setup`"))
        .display()
        .to_string()
}

impl Witness {
    /// Witness with its files below `home`.
    pub(crate) fn new(home: &Path) -> Self {
        let here = home.join("witness");
        for name in ["seen", "hold"] {
            fs::create_dir_all(here.join(name)).unwrap();
        }
        for (tool, script) in [("podman", PODMAN), ("runc", RUNC)] {
            let script = script
                .replace("$HERE", &here.display().to_string())
                .replace("$REAL", &real(tool));
            with_tool(&here, tool, &script);
        }
        Self { here }
    }

    /// Variables by which a node uses the wrappers.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        let tool = |name: &str| self.here.join("bin").join(name).display().to_string();
        [
            ("CYNODE_ENGINE", tool("podman")),
            ("CYNODE_ENGINE_RUNTIME", tool("runc")),
        ]
    }

    /// All starts of a job, by attempt.
    pub(crate) fn starts(&self, job: &str) -> Vec<Start> {
        let lines = |path: PathBuf| -> Vec<String> {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        let mut starts = Vec::new();
        let handed_over = self.handed_over();
        for entry in fs::read_dir(self.here.join("seen")).unwrap() {
            let place = entry.unwrap().path();
            let name = place.file_name().unwrap().to_str().unwrap();
            let mut parts = name.split('.');
            let (label, sandbox) = (parts.next().unwrap(), parts.next().unwrap());
            let of = match label.rsplit_once('-') {
                Some((of, attempt)) => Some((of.to_owned(), attempt.parse().unwrap())),
                None => handed_over.get(sandbox).cloned(),
            };
            let Some((_, attempt)) = of.filter(|(of, _)| of == job) else {
                continue;
            };
            starts.push(Start {
                attempt,
                started: lines(place.join("begun")),
                ended: lines(place.join("ended")),
                place,
            });
        }
        starts.sort_by(|a, b| (a.attempt, &a.place).cmp(&(b.attempt, &b.place)));
        starts
    }

    /// Job and attempt that took each warm sandbox.
    fn handed_over(&self) -> BTreeMap<String, (String, u64)> {
        let mut taken = BTreeMap::new();
        let homes = fs::read_dir(self.here.parent().unwrap()).unwrap();
        let homes = homes.map(|entry| entry.unwrap().path());
        for home in homes.filter(|path| path.is_dir()) {
            let files = fs::read_dir(home).unwrap();
            let logs = files.map(|entry| entry.unwrap().path());
            for log in logs.filter(|path| path.extension().is_some_and(|kind| kind == "stderr")) {
                let text = read(&log);
                // The last line may not be complete yet.
                let lines = text
                    .split_inclusive('\n')
                    .filter(|line| line.ends_with('\n'));
                for line in lines.filter(|line| line.contains(HANDED_OVER)) {
                    let attempt = field(line, "attempt").parse().unwrap();
                    taken.insert(field(line, "sandbox"), (field(line, "job"), attempt));
                }
            }
        }
        taken
    }

    /// Jobs with a started sandbox.
    pub(crate) fn jobs(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.here.join("seen")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter_map(|name| Some(name.split_once('.')?.0.rsplit_once('-')?.0.to_owned()))
            .collect()
    }

    /// Number of starts of each exec in a sandbox that stays.
    pub(crate) fn execs(&self) -> BTreeMap<String, usize> {
        let mut starts = BTreeMap::new();
        for entry in fs::read_dir(self.here.join("seen")).unwrap() {
            let path = entry.unwrap().path().join("execs");
            for id in fs::read_to_string(path).unwrap_or_default().lines() {
                *starts.entry(id.to_owned()).or_default() += 1;
            }
        }
        starts
    }

    /// Number of sandboxes started in all.
    pub(crate) fn count(&self) -> usize {
        fs::read_dir(self.here.join("seen")).unwrap().count()
    }

    /// Releases the commands of a job.
    pub(crate) fn release_command(&self, job: &str) {
        for start in self.starts(job) {
            fs::write(start.place.join("go"), "").unwrap();
        }
    }

    /// Holds every process that reaches a point.
    pub(crate) fn hold(&self, point: Point) {
        let _ = fs::remove_file(self.held(point));
        fs::write(self.here.join("hold").join(point.name()), "").unwrap();
    }

    /// Waits until a process is held at a point; returns its id.
    pub(crate) fn wait_held(&self, point: Point) -> i32 {
        eventually(&format!("a process reaches {point:?}"), || {
            let held = self.held(point);
            held.exists()
                .then(|| read(held).trim().parse().ok())
                .flatten()
        })
    }

    /// Releases all processes.
    pub(crate) fn release(&self) {
        for entry in fs::read_dir(self.here.join("hold")).unwrap() {
            let _ = fs::remove_file(entry.unwrap().path());
        }
    }

    fn held(&self, point: Point) -> PathBuf {
        self.here
            .join("hold")
            .join(format!("{}.held", point.name()))
    }
}

/// Value of a field in a line of a log: an id or a number.
fn field(line: &str, name: &str) -> String {
    let (_, value) = line.rsplit_once(&format!("{name}=")).unwrap();
    let is_part = |c: &char| c.is_ascii_hexdigit() || *c == '-';
    value.chars().take_while(is_part).collect()
}
