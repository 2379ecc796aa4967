//! The one model server of this machine: an Ollama in a container of its own.
//!
//! [`plan`] says what should be; [`ModelServerManager::ensure_running`] compares it with what is, and does what is
//! missing. It can be repeated at any time, and is: at each start of the node, and whenever the
//! server has died ([`monitor`]).
//!
//! | there is | then |
//! |---|---|
//! | our container, made from the same image and settings | it is adopted, and started if it had ended |
//! | our container, made from others | it is replaced; its models stay in their volume |
//! | somebody else's container of that name | an error that says whose it is; it is never touched |
//! | no container, and a model server at the port | that one is used (`existing_service`) |
//! | no container, and something else at the port | an error |
//! | nothing | the image is fetched and a container made |
//!
//! Never two: the name carries the port, podman gives a name only once on a host, and what we have
//! left under another name is removed first. The server is published on loopback only; whoever is
//! to reach it from elsewhere comes through the Worker API.
//!
//! The container outlives the node, so that a restart of the node costs no reload of a model.

mod error;
mod monitor;
mod ollama;
mod plan;

pub use error::InferenceError;
pub(super) use monitor::run_monitor;
pub use plan::{MODEL_SERVER_PORT, Settings, container_name};
pub(super) use plan::{Plan, plan};

use crate::{
    background,
    backoff::Backoff,
    engine::{
        Engine, EngineError, Images, labels,
        service::{Service, ServiceSpec},
    },
    node::gpu::Vendor,
};
use ollama::OllamaClient;
use std::{io, net::TcpListener, sync::Arc, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

const SERVICE_KIND: &str = "model-server";
/// Where Ollama listens inside, and keeps its models.
const CONTAINER_PORT: u16 = MODEL_SERVER_PORT;
const CONTAINER_HOME: &str = "/root/.ollama";
/// How long a server that was running before us may take to answer before it is replaced.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How often we look again when somebody else was quicker to take the name.
const MAX_CREATE_ATTEMPTS: u32 = 3;

/// Where the model server comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// It is our container.
    Container,
    /// It was there before us, and isn't ours to start or stop.
    External,
}

/// Brings the one model server up, and takes it away.
#[derive(Clone)]
pub(super) struct ModelServerManager {
    engine: Engine,
    images: Arc<Images>,
    /// Image patterns of the operator; empty allows all.
    allowed_images: Vec<String>,
    node_uuid: String,
    slug: String,
    start_timeout: Duration,
    /// Held while podman makes a container: it goes on with that when we are not asked to wait for it
    /// any more, and whoever removes has to know that it is through.
    creation: Arc<Mutex<()>>,
}

impl ModelServerManager {
    pub(super) fn new(
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

    /// Sees to it that the planned server answers; an error leaves none of ours behind that doesn't.
    pub(super) async fn ensure_running(&self, plan: &Plan) -> Result<Source, InferenceError> {
        if !plan.image.is_allowed_by(&self.allowed_images) {
            self.remove_all_except(None).await?;
            let image = plan.image.to_string();
            return Err(InferenceError::ImageNotAllowed { image });
        }
        let server = OllamaClient::new(plan.port);
        let name = plan.name();
        self.remove_all_except(Some(&name)).await?;
        let mut attempts = 0;
        loop {
            let Some(found) = self.engine.service_find(&name).await? else {
                if server.version().await.is_some() {
                    tracing::info!(address = %server.address(), "a model server runs here already, and is used");
                    return Ok(Source::External);
                }
                if TcpListener::bind(server.address()).is_err() {
                    return Err(InferenceError::PortTaken { port: plan.port });
                }
                attempts += 1;
                match self.create(plan, &name).await {
                    // Whoever was quicker is found on the next look.
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

    /// The models that a server which answers has.
    pub(super) async fn models(&self, plan: &Plan) -> Option<Vec<String>> {
        OllamaClient::new(plan.port).models().await
    }

    /// Whether our container is known to have ended; podman may be too busy to say.
    pub(super) async fn has_ended(&self, name: &str) -> bool {
        let found = self.engine.service_find(name).await;
        found.is_ok_and(|found| !found.is_some_and(|found| found.running))
    }

    /// Brings back a server that has ended, or that runs and doesn't answer.
    pub(super) async fn restart(&self, plan: &Plan) -> Result<Source, InferenceError> {
        let name = plan.name();
        if let Some(found) = self.engine.service_find(&name).await?
            && found.running
            && found.label(labels::NODE) == self.node_uuid
            // It may have come to itself meanwhile, and be at work.
            && OllamaClient::new(plan.port).version().await.is_none()
        {
            self.engine.service_remove(&name).await?;
        }
        self.ensure_running(plan).await
    }

    /// Whether a container of ours is the one that would be made now.
    async fn is_as_planned(&self, found: &Service, plan: &Plan) -> Result<bool, InferenceError> {
        let spec = self.spec(plan, self.image(plan).await?);
        let same = spec.spec_hash(&self.engine) == found.label(labels::SPEC_HASH);
        if !same {
            tracing::info!(
                container = plan.name(),
                "image or settings changed; the model server is replaced"
            );
        }
        Ok(same)
    }

    /// Takes up a container of an earlier process; false when it doesn't come to life.
    async fn adopt(&self, server: &OllamaClient, name: &str, running: bool) -> bool {
        if !running && let Err(error) = self.engine.service_start(name).await {
            tracing::warn!(container = name, %error, "the model server's container can't be started again; it is made anew");
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
                    "the model server of before is taken up"
                );
                true
            }
            Err(error) => {
                tracing::warn!(container = name, %error, "the model server of before doesn't work; it is made anew");
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
                "for NVIDIA cards podman needs a CDI specification: install nvidia-container-toolkit, then nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml; or start this node with --inference off",
            );
            InferenceError::NotStarted { source, hint }
        })
    }

    async fn image(&self, plan: &Plan) -> Result<String, InferenceError> {
        self.images
            .resolve(&plan.image, |_| ())
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
            env: vec![("OLLAMA_HOST", format!("0.0.0.0:{CONTAINER_PORT}"))],
            publish: (OllamaClient::new(plan.port).address(), CONTAINER_PORT),
            volume: (plan.name(), CONTAINER_HOME),
            extra: plan.podman_args(self.engine.info().rootless),
        }
    }

    /// Waits until a server that was just made answers; one that doesn't is removed.
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
                tracing::info!(container = name, version, address = %server.address(), "the model server answers");
                Ok(Source::Container)
            }
            Err(error) => {
                self.remove_failed(name).await;
                Err(error)
            }
        }
    }

    /// Removes what didn't work; why it didn't is what counts.
    async fn remove_failed(&self, name: &str) {
        let found = self.engine.service_find(name).await;
        let ours = matches!(found, Ok(Some(found)) if found.label(labels::NODE) == self.node_uuid);
        if ours && let Err(error) = self.engine.service_remove(name).await {
            tracing::warn!(container = name, %error, "the model server that didn't work could not be removed");
        }
    }

    /// Waits until the server answers, or is seen to have ended.
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
                return Err(InferenceError::Exited { output });
            }
            if Instant::now() >= deadline {
                let output = self.engine.service_log_tail(name).await;
                return Err(InferenceError::Unresponsive { limit, output });
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Removes every model server of this node, but the one of this name.
    pub(super) async fn remove_all_except(&self, name: Option<&str>) -> Result<(), InferenceError> {
        let _creating = self.creation.lock().await;
        for left in self
            .engine
            .service_list(&self.node_uuid, SERVICE_KIND)
            .await?
        {
            if Some(left.as_str()) != name {
                tracing::info!(
                    container = left,
                    "a model server that is not wanted any more is removed; its models stay"
                );
                self.engine.service_remove(&left).await?;
            }
        }
        Ok(())
    }
}

/// Whose a container is, in words.
pub fn container_owner(found: &Service) -> String {
    match (found.label(labels::SLUG), found.label(labels::NODE)) {
        (_, "") => "nobody that cynode knows".to_owned(),
        (slug, uuid) => format!("the node {slug} ({uuid})"),
    }
}
