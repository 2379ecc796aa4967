//! Policies of a sandbox: its network, and the pull of its image.

use crate::api::string_form::named_enum;

named_enum! {
    /// When a node pulls an image.
    #[derive(Default)]
    pub enum PullPolicy {
        /// Where the node doesn't have it.
        #[default]
        Missing,
        /// Before each job, so that a tag that moved is followed.
        Always,
        /// Not at all: a node without it refuses the job.
        Never,
    }
}

named_enum! {
    /// Network policy of a sandbox. None of them gives it a network device: all are podman's `--network=none`.
    #[derive(Default)]
    pub enum NetworkPolicy {
        /// Only a loopback interface.
        None,
        /// Nothing but an operator's exceptions, of which there are none yet.
        #[default]
        Restricted,
        /// Hosts on a list, through a proxy of the node.
        Allowlist,
    }
}
