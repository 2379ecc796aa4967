//! Container of the model server: created, adopted, replaced and removed.

use super::{
    InferenceError, Plan, Settings, Source,
    plan::{MODEL_SERVER_PORT, container_name},
};
use crate::{
    api::jobs::PullPolicy,
    background,
    backoff::Backoff,
    engine::{
        Engine, EngineError, Images, labels,
        service::{Service, ServiceSpec},
    },
    inference::ollama::OllamaClient,
    node::gpu::Vendor,
};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

const SERVICE_KIND: &str = "model-server";
/// Port and home of Ollama in its container.
const CONTAINER_PORT: u16 = MODEL_SERVER_PORT;
const CONTAINER_HOME: &str = "/root/.ollama";
/// Time limit for an answer of a container that runs already, before it is replaced.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts to create the container while another process takes its name first.
const MAX_CREATE_ATTEMPTS: u32 = 3;

/// Manager of the container of the model server.
#[derive(Clone)]
pub(in crate::node) struct ModelServerManager {
    engine: Engine,
    images: Arc<Images>,
    /// Image patterns of the operator; empty allows all.
    allowed_images: Vec<String>,
    node_uuid: String,
    slug: String,
    start_timeout: Duration,
    /// Locked while podman creates a container, which goes on when the caller stops waiting: a removal must
    /// come after it.
    creation: Arc<Mutex<()>>,
}

impl ModelServerManager {
    pub(in crate::node) fn new(
        engine: &Engine,
        node_uuid: &str,
        slug: &str,
        settings: &Settings,
        allowed_images: &[String],
    ) -> Self {
        let images = Images::new(engine.clone(), settings.pull_timeout, allowed_images);
        Self {
            images: Arc::new(images),
            allowed_images: allowed_images.to_owned(),
            engine: engine.clone(),
            node_uuid: node_uuid.to_owned(),
            slug: slug.to_owned(),
            start_timeout: settings.start_timeout,
            creation: Arc::default(),
        }
    }

    /// Ensures that the planned server answers. On failure, no container of this node is left that does not.
    pub(super) async fn ensure_running(&self, plan: &Plan) -> Result<Source, InferenceError> {
        if !plan.image.is_allowed_by(&self.allowed_images) {
            self.remove_all_except(None).await?;
            let image = plan.image.to_string();
            return Err(InferenceError::ImageNotAllowed { image });
        }
        let server = OllamaClient::at(plan.address());
        let name = plan.name();
        self.remove_all_except(Some(&name)).await?;
        let mut attempts = 0;
        loop {
            let Some(found) = self.engine.service_find(&name).await? else {
                if server.version().await.is_some() {
                    tracing::info!(address = %server.address(), "using the model server that runs already");
                    return Ok(Source::External);
                }
                if TcpListener::bind(server.address()).is_err() {
                    return Err(InferenceError::PortTaken { port: plan.port });
                }
                attempts += 1;
                match self.create(plan, &name).await {
                    // The next round finds the container that took the name.
                    Err(InferenceError::NotStarted { source, .. })
                        if attempts < MAX_CREATE_ATTEMPTS
                            && source.to_string().contains("already in use") => {}
                    Err(error) => {
                        self.remove_failed(&name).await;
                        return Err(error);
                    }
                    Ok(()) => return self.confirm_started(&server, &name).await,
                }
                continue;
            };
            if found.label(labels::NODE) != self.node_uuid {
                let owner = container_owner(&found);
                return Err(InferenceError::NotOurs { name, owner });
            }
            if self.is_as_planned(&found, plan).await?
                && self.adopt(&server, &name, found.running).await
            {
                return Ok(Source::Container);
            }
            self.engine.service_remove(&name).await?;
        }
    }

    /// Whether a model server answers at this address that is not a container of this node.
    pub(super) async fn is_existing(&self, address: SocketAddr) -> bool {
        let port = address.port();
        if OllamaClient::at(address).version().await.is_none() {
            return false;
        }
        let found = self.engine.service_find(&container_name(port)).await;
        !matches!(found, Ok(Some(found)) if found.label(labels::NODE) == self.node_uuid)
    }

    /// Whether the container is known to have exited; podman may be too busy to answer.
    pub(super) async fn has_ended(&self, name: &str) -> bool {
        let found = self.engine.service_find(name).await;
        found.is_ok_and(|found| !found.is_some_and(|found| found.running))
    }

    /// Restarts a server that has exited, or that runs and does not answer.
    pub(super) async fn restart(&self, plan: &Plan) -> Result<Source, InferenceError> {
        let name = plan.name();
        if let Some(found) = self.engine.service_find(&name).await?
            && found.running
            && found.label(labels::NODE) == self.node_uuid
            // It may have recovered meanwhile.
            && OllamaClient::at(plan.address()).version().await.is_none()
        {
            self.engine.service_remove(&name).await?;
        }
        self.ensure_running(plan).await
    }

    /// Whether a container has the planned image and settings.
    async fn is_as_planned(&self, found: &Service, plan: &Plan) -> Result<bool, InferenceError> {
        let spec = self.spec(plan, self.image(plan).await?);
        let is_same = spec.spec_hash(&self.engine) == found.label(labels::SPEC_HASH);
        if !is_same {
            tracing::info!(
                container = plan.name(),
                "replacing the model server: image or settings changed"
            );
        }
        Ok(is_same)
    }

    /// Adopts a container of an earlier process. Returns false where it does not answer.
    async fn adopt(&self, server: &OllamaClient, name: &str, running: bool) -> bool {
        if !running && let Err(error) = self.engine.service_start(name).await {
            tracing::warn!(container = name, %error, "container of the model server cannot be started; replacing it");
            return false;
        }
        let limit = if running {
            ADOPTION_TIMEOUT.min(self.start_timeout)
        } else {
            self.start_timeout
        };
        match self.wait_until_ready(server, name, limit).await {
            Ok(version) => {
                tracing::info!(
                    container = name,
                    version,
                    was_running = running,
                    "adopted the running model server"
                );
                true
            }
            Err(error) => {
                tracing::warn!(container = name, %error, "adopted model server does not work; replacing it");
                false
            }
        }
    }

    async fn create(&self, plan: &Plan, name: &str) -> Result<(), InferenceError> {
        let spec = self.spec(plan, self.image(plan).await?);
        tracing::info!(container = name, image = %plan.image, accelerator = plan.accelerator.map_or("none", Vendor::display_name), "starting the model server");
        let (engine, creation) = (
            self.engine.clone(),
            Arc::clone(&self.creation).lock_owned().await,
        );
        let made = background::spawn("create_model_server", async move {
            let _creating = creation;
            engine.service_run(&spec).await
        });
        made.await.map_err(io::Error::from).map_err(EngineError::from).flatten().map_err(|source| {
            let words = source.to_string();
            let hint = (words.contains("CDI") || words.contains("nvidia.com/gpu")).then_some(
                "NVIDIA GPUs need a CDI specification: install nvidia-container-toolkit and run nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml, or start this node with --inference off",
            );
            InferenceError::NotStarted { source, hint }
        })
    }

    async fn image(&self, plan: &Plan) -> Result<String, InferenceError> {
        self.images
            .resolve(&plan.image, PullPolicy::Missing, |_| ())
            .await
            .map(|found| found.id)
            .map_err(|source| InferenceError::Image {
                image: plan.image.to_string(),
                source,
            })
    }

    fn spec(&self, plan: &Plan, image: String) -> ServiceSpec {
        ServiceSpec {
            name: plan.name(),
            image,
            service: SERVICE_KIND,
            node_uuid: self.node_uuid.clone(),
            slug: self.slug.clone(),
            env: env(plan),
            publish: (OllamaClient::at(plan.address()).address(), CONTAINER_PORT),
            volume: (plan.name(), CONTAINER_HOME),
            extra: plan.podman_args(self.engine.info().rootless),
        }
    }

    /// Waits for the first answer of a new container, and removes one that gives none.
    async fn confirm_started(
        &self,
        server: &OllamaClient,
        name: &str,
    ) -> Result<Source, InferenceError> {
        match self
            .wait_until_ready(server, name, self.start_timeout)
            .await
        {
            Ok(version) => {
                tracing::info!(container = name, version, address = %server.address(), "model server is ready");
                Ok(Source::Container)
            }
            Err(error) => {
                self.remove_failed(name).await;
                Err(error)
            }
        }
    }

    /// Removes a container that failed. A failure to do so is only logged: the first one matters.
    async fn remove_failed(&self, name: &str) {
        let found = self.engine.service_find(name).await;
        let ours = matches!(found, Ok(Some(found)) if found.label(labels::NODE) == self.node_uuid);
        if ours && let Err(error) = self.engine.service_remove(name).await {
            tracing::warn!(container = name, %error, "failed model server could not be removed");
        }
    }

    /// Waits until the server answers. Fails when its container exits, or at the limit.
    async fn wait_until_ready(
        &self,
        server: &OllamaClient,
        name: &str,
        limit: Duration,
    ) -> Result<String, InferenceError> {
        let deadline = Instant::now() + limit;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            if let Some(version) = server.version().await {
                return Ok(version);
            }
            if self.has_ended(name).await {
                let output = self.engine.service_log_tail(name).await;
                let found = self.engine.service_find(name).await.ok().flatten();
                let code = found.map(|found| found.exit_code);
                return Err(InferenceError::Exited { code, output });
            }
            if Instant::now() >= deadline {
                let output = self.engine.service_log_tail(name).await;
                return Err(InferenceError::Unresponsive { limit, output });
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Removes all model servers of this node except the named one.
    pub(in crate::node) async fn remove_all_except(
        &self,
        name: Option<&str>,
    ) -> Result<(), InferenceError> {
        let _creating = self.creation.lock().await;
        for left in self
            .engine
            .service_list(&self.node_uuid, SERVICE_KIND)
            .await?
        {
            if Some(left.as_str()) != name {
                tracing::info!(
                    container = left,
                    "removing a model server that is not configured any more; its models stay"
                );
                self.engine.service_remove(&left).await?;
            }
        }
        Ok(())
    }
}

/// Environment of the model server.
fn env(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut env = vec![("OLLAMA_HOST", format!("0.0.0.0:{CONTAINER_PORT}"))];
    let length = plan.context_length.map(|tokens| tokens.to_string());
    env.extend(length.map(|tokens| ("OLLAMA_CONTEXT_LENGTH", tokens)));
    env
}

/// Owner of a container, for an error message.
pub fn container_owner(found: &Service) -> String {
    match (found.label(labels::SLUG), found.label(labels::NODE)) {
        (_, "") => "no node of cynode".to_owned(),
        (slug, uuid) => format!("the node {slug} ({uuid})"),
    }
}
