//! Checks of what a job asks for beside its command: files, limits, network and devices.

use super::{
    MAX_GRACE_SECONDS, SandboxSpec, check_gpu_env, files,
    resources::{MAX_MEMORY_BYTES, MAX_PIDS, MIN_MEMORY_BYTES, MIN_PIDS},
};
use crate::api::{
    problem::Problem,
    secrets::{MAX_JOB_SECRETS, check_refs, check_sent},
    size::ByteSize,
};

impl SandboxSpec {
    /// Checks files, patterns, limits, network and devices; `base` is the pointer of the object that they are in.
    pub fn check_extras(&self, base: &str) -> Result<(), Problem> {
        let range =
            |field: &str, detail: String| Problem::field(&format!("{base}/{field}"), detail);
        if let Some(grace) = self
            .grace_seconds
            .filter(|grace| *grace > MAX_GRACE_SECONDS)
        {
            let detail =
                format!("must be a whole number from 0 to {MAX_GRACE_SECONDS}, got {grace}");
            return Err(range("grace_seconds", detail));
        }
        if self.files.len() > files::MAX_FILES {
            let detail = format!(
                "must have at most {} files, got {}; send an archive with extract instead",
                files::MAX_FILES,
                self.files.len()
            );
            return Err(range("files", detail));
        }
        for (n, file) in self.files.iter().enumerate() {
            files::check_path(&format!("{base}/files/{n}/path"), &file.path, file.extract)?;
        }
        if self.artifacts.len() > files::MAX_PATTERNS {
            let detail = format!(
                "must have at most {} patterns, got {}",
                files::MAX_PATTERNS,
                self.artifacts.len()
            );
            return Err(range("artifacts", detail));
        }
        for (n, pattern) in self.artifacts.iter().enumerate() {
            files::check_pattern(&format!("{base}/artifacts/{n}"), pattern)?;
        }
        self.check_limits(base)?;
        self.check_secrets(base)?;
        self.check_network(base)?;
        match &self.gpus {
            Some(gpus) => {
                gpus.check(&format!("{base}/gpus"))?;
                check_gpu_env(&format!("{base}/env"), self.env.as_ref())
            }
            None => Ok(()),
        }
    }

    /// Checks the secrets that the job names. A prompt has no environment that could get them.
    fn check_secrets(&self, base: &str) -> Result<(), Problem> {
        let pointer = format!("{base}/secrets");
        if self.prompt.is_some() && !self.secrets.is_empty() {
            let detail = "must be left out for a prompt: a model gets no environment";
            return Err(Problem::field(&pointer, detail));
        }
        if self.secrets.len() > MAX_JOB_SECRETS {
            let count = self.secrets.len();
            let detail = format!("must have at most {MAX_JOB_SECRETS} secrets, got {count}");
            return Err(Problem::field(&pointer, detail));
        }
        check_refs(&pointer, &self.secrets, self.env.as_ref())?;
        check_sent(&pointer, &self.secrets, self.egress.is_some())
    }

    fn check_limits(&self, base: &str) -> Result<(), Problem> {
        let range =
            |field: &str, detail: String| Problem::field(&format!("{base}/{field}"), detail);
        if let Some(ByteSize(memory)) = self.memory.filter(|memory| memory.0 < MIN_MEMORY_BYTES) {
            let least = ByteSize(MIN_MEMORY_BYTES);
            return Err(range(
                "memory",
                format!("must be at least {least}, got {memory} bytes"),
            ));
        }
        if self.shm_size == Some(ByteSize(0)) {
            let detail = "must be at least 1 byte, got 0".to_owned();
            return Err(range("shm_size", detail));
        }
        for (field, size) in [("memory", self.memory), ("shm_size", self.shm_size)] {
            if size.is_some_and(|size| size.0 > MAX_MEMORY_BYTES) {
                let most = ByteSize(MAX_MEMORY_BYTES);
                return Err(range(field, format!("must be at most {most}")));
            }
        }
        if let Some(pids) = self
            .pids
            .filter(|pids| !(MIN_PIDS..=MAX_PIDS).contains(pids))
        {
            let detail =
                format!("must be a whole number from {MIN_PIDS} to {MAX_PIDS}, got {pids}");
            return Err(range("pids", detail));
        }
        Ok(())
    }
}
