//! Exit codes of the errors of roles.

use crate::{
    data_dir::DataDirError,
    engine::EngineError,
    exit::{Exit, Failure},
    http::client::CallError,
    node::NodeError,
    orchestrator::StartError,
};

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match error {
            StartError::Setting(_) => Exit::Usage,
            StartError::Incomplete(_) => Exit::NotFound,
            _ => Exit::Internal,
        };
        Self::chain(exit, &error)
    }
}

impl From<DataDirError> for Failure {
    fn from(error: DataDirError) -> Self {
        let exit = match error {
            DataDirError::Io { .. } => Exit::Internal,
            _ => Exit::Usage,
        };
        Self::chain(exit, &error)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::chain(Exit::Internal, &error)
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        let exit = match &error {
            NodeError::WrongPsk
            | NodeError::WrongJoinToken
            | NodeError::Call(CallError::Untrusted { .. }) => Exit::NotAllowed,
            NodeError::InvalidSetting(_) => Exit::Usage,
            NodeError::TlsOnly { .. }
            | NodeError::PlainJoinToken { .. }
            | NodeError::UnusableAnswer { .. }
            | NodeError::Call(CallError::Malformed { .. }) => Exit::Invalid,
            NodeError::Call(error) => match error.status().map(|status| status.as_u16()) {
                Some(401 | 403) => Exit::NotAllowed,
                Some(409) => Exit::Conflict,
                Some(400) => Exit::Invalid,
                None => Exit::Unreachable,
                Some(_) => Exit::Internal,
            },
            NodeError::NoRoute { .. } => Exit::Unreachable,
            _ => Exit::Internal,
        };
        Self::chain(exit, &error)
    }
}
