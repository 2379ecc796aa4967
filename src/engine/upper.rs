//! Where podman keeps what a container writes outside of its mounts.

use super::{Engine, EngineError};
use std::{path::PathBuf, time::Duration};

/// How long podman may take to say it.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Engine {
    /// The upper directory of a container's overlay; `None` where there is no such container, or its
    /// storage driver has none.
    pub async fn upper_dir(&self, container: &str) -> Result<Option<PathBuf>, EngineError> {
        let format = "--format={{index .GraphDriver.Data \"UpperDir\"}}";
        let inspect = ["container", "inspect", format, container];
        match self.call(&inspect, INSPECT_TIMEOUT).await {
            Ok(path) => {
                let path = PathBuf::from(path.trim());
                Ok(path.is_absolute().then_some(path))
            }
            Err(EngineError::Failed { message, .. }) if message.contains("no such container") => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
